"""Families of models: a teacher and its students are built by the same function from different settings."""

from autocompress.models.base import Family
from autocompress.models.cnn import CNN, CNNConfig

__all__ = ["CNN", "CNNConfig", "Family"]
