"""Quantization: fewer bits for weights and activations."""

from autocompress.quantize.adaround import AdaRound, AdaRoundConfig
from autocompress.quantize.fake_quantize import FakeQuantize
from autocompress.quantize.folding import FoldedBatchNorm, fold_batch_norm
from autocompress.quantize.lookup_quantizers import Table
from autocompress.quantize.lsq import LSQ, LSQConfig
from autocompress.quantize.mixed_precision import MixedPrecision, MixedPrecisionConfig
from autocompress.quantize.packing import pack, packed_bytes, unpack
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.progressive import Progressive, ProgressiveConfig
from autocompress.quantize.qat import QAT, QATConfig
from autocompress.quantize.quantizers import Asymmetric, Grid, Symmetric
from autocompress.quantize.weight_coding import Coded, Coding, encode_weight

__all__ = [
    "LSQ",
    "QAT",
    "AdaRound",
    "AdaRoundConfig",
    "Asymmetric",
    "Coded",
    "Coding",
    "FakeQuantize",
    "FoldedBatchNorm",
    "Grid",
    "LSQConfig",
    "MixedPrecision",
    "MixedPrecisionConfig",
    "PostTraining",
    "PostTrainingConfig",
    "Progressive",
    "ProgressiveConfig",
    "QATConfig",
    "Symmetric",
    "Table",
    "encode_weight",
    "fold_batch_norm",
    "pack",
    "packed_bytes",
    "unpack",
]
