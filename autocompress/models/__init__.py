"""Families of models: a teacher and its students are built by the same function from different settings."""

from autocompress.models.base import Family
from autocompress.models.cnn import CNN, CNNConfig
from autocompress.models.cnn1d import CNN1d, CNN1dConfig

__all__ = ["CNN", "CNN1d", "CNN1dConfig", "CNNConfig", "Family"]
