"""Pruning: methods that remove weights."""

from autocompress.prune.adaptive import Adaptive, AdaptiveConfig
from autocompress.prune.calibration import reestimate_batch_norm
from autocompress.prune.depth import Depth, DepthConfig
from autocompress.prune.embedding_rank import EmbeddingRank, EmbeddingRankConfig
from autocompress.prune.expansion import ChannelIndices, expand_model, map_channels
from autocompress.prune.heads import Heads, HeadsConfig
from autocompress.prune.masking import masks_from_zeros
from autocompress.prune.n_m import NM, NMConfig
from autocompress.prune.progressive import Progressive, ProgressiveConfig
from autocompress.prune.sparse_linear import use_sparse_kernels
from autocompress.prune.structured import Structured, StructuredConfig
from autocompress.prune.tokens import Tokens, TokensConfig
from autocompress.prune.unstructured import Unstructured, UnstructuredConfig
from autocompress.prune.weight_inheritance import Inheritance, inherit_weights

__all__ = [
    "NM",
    "Adaptive",
    "AdaptiveConfig",
    "ChannelIndices",
    "Depth",
    "DepthConfig",
    "EmbeddingRank",
    "EmbeddingRankConfig",
    "Heads",
    "HeadsConfig",
    "Inheritance",
    "NMConfig",
    "Progressive",
    "ProgressiveConfig",
    "Structured",
    "StructuredConfig",
    "Tokens",
    "TokensConfig",
    "Unstructured",
    "UnstructuredConfig",
    "expand_model",
    "inherit_weights",
    "map_channels",
    "masks_from_zeros",
    "reestimate_batch_norm",
    "use_sparse_kernels",
]
