"""Pruning: methods that remove weights."""

from autocompress.prune.adaptive import Adaptive, AdaptiveConfig
from autocompress.prune.calibration import reestimate_batch_norm
from autocompress.prune.depth import Depth, DepthConfig
from autocompress.prune.masking import masks_from_zeros
from autocompress.prune.n_m import NM, NMConfig
from autocompress.prune.progressive import Progressive, ProgressiveConfig
from autocompress.prune.sparse_linear import use_sparse_kernels
from autocompress.prune.structured import Structured, StructuredConfig
from autocompress.prune.unstructured import Unstructured, UnstructuredConfig
from autocompress.prune.weight_inheritance import Inheritance, inherit_weights

__all__ = [
    "NM",
    "Adaptive",
    "AdaptiveConfig",
    "Depth",
    "DepthConfig",
    "Inheritance",
    "NMConfig",
    "Progressive",
    "ProgressiveConfig",
    "Structured",
    "StructuredConfig",
    "Unstructured",
    "UnstructuredConfig",
    "inherit_weights",
    "masks_from_zeros",
    "reestimate_batch_norm",
    "use_sparse_kernels",
]
