"""Quantization: fewer bits for weights and activations."""

from autocompress.quantize.fake_quantize import FakeQuantize
from autocompress.quantize.folding import FoldedBatchNorm, fold_batch_norm
from autocompress.quantize.packing import pack, packed_bytes, unpack
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.quantizers import Asymmetric, Grid, Symmetric

__all__ = [
    "Asymmetric",
    "FakeQuantize",
    "FoldedBatchNorm",
    "Grid",
    "PostTraining",
    "PostTrainingConfig",
    "Symmetric",
    "fold_batch_norm",
    "pack",
    "packed_bytes",
    "unpack",
]
