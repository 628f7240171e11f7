"""Distillation: loss terms on logits and features, attacks, and weights of several heads."""

from autocompress.distill import attacks, feature_losses, kernels, logit_losses
from autocompress.distill.base import Activations, DistillTerm, Needs, Term

__all__ = ["Activations", "DistillTerm", "Needs", "Term", "attacks", "feature_losses", "kernels", "logit_losses"]
