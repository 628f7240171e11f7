"""Distillation: the terms of the loss, the one training loop, and the cached teacher."""

from autocompress.distill import fit, losses
from autocompress.distill.base import Activations, DistillTerm

__all__ = ["Activations", "DistillTerm", "fit", "losses"]
