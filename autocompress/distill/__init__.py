"""Distillation: loss terms on logits and features, attacks, and weights of several heads."""

from autocompress.distill.base import Activations, DistillTerm, Needs, Term

__all__ = ["Activations", "DistillTerm", "Needs", "Term"]
