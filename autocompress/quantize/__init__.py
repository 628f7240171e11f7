"""Quantization: fewer bits for weights and activations."""

from autocompress.quantize.adaround import AdaRound, AdaRoundConfig
from autocompress.quantize.conversion import convert_layers
from autocompress.quantize.fake_quantize import FakeQuantize
from autocompress.quantize.folding import FoldedBatchNorm, fold_batch_norm
from autocompress.quantize.lookup_quantizers import LookupTable
from autocompress.quantize.lsq import LSQ, LSQConfig
from autocompress.quantize.mixed_precision import MixedPrecision, MixedPrecisionConfig
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.progressive import Progressive, ProgressiveConfig
from autocompress.quantize.qat import QAT, QATConfig
from autocompress.quantize.quantizers import AsymmetricQuantizer, Grid, SymmetricQuantizer
from autocompress.quantize.weight_coding import QuantizedWeight, WeightCoding, encode_weight

__all__ = [
    "LSQ",
    "QAT",
    "AdaRound",
    "AdaRoundConfig",
    "AsymmetricQuantizer",
    "FakeQuantize",
    "FoldedBatchNorm",
    "Grid",
    "LSQConfig",
    "LookupTable",
    "MixedPrecision",
    "MixedPrecisionConfig",
    "PostTraining",
    "PostTrainingConfig",
    "Progressive",
    "ProgressiveConfig",
    "QATConfig",
    "QuantizedWeight",
    "SymmetricQuantizer",
    "WeightCoding",
    "convert_layers",
    "encode_weight",
    "fold_batch_norm",
]
