"""Distillation: the terms of the loss, the one training loop, and the cached teacher."""

from autocompress.distill import attacks, feature_losses as feature_terms, logit_losses as logit_terms, kernels as losses

from autocompress.training import optimizers
from autocompress.distill.base import Activations, DistillTerm, Needs, Term

__all__ = [
    "Activations",
    "DistillTerm",
    "Needs",
    "Term",
    "attacks",
    "feature_terms",
    "logit_terms",
    "losses",
    "optimizers",
]
