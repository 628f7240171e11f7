"""Pruning: methods that remove weights."""

from autocompress.prune.batch_norm import reestimate_batch_norm
from autocompress.prune.structured import Structured, StructuredConfig

__all__ = ["Structured", "StructuredConfig", "reestimate_batch_norm"]
