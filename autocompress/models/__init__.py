"""Families of models: a teacher and its students are built by the same function from different settings."""

from autocompress.models.base import Family
from autocompress.models.convolutional import CNN, CNN1dConfig, CNNConfig
from autocompress.models.from_teacher import FromTeacherConfig
from autocompress.models.recommender import Interaction, InteractionConfig, TwoTower, TwoTowerConfig
from autocompress.models.text_cnn import TextCNNConfig
from autocompress.models.transformer import TransformerConfig

__all__ = [
    "CNN",
    "CNN1dConfig",
    "CNNConfig",
    "Family",
    "FromTeacherConfig",
    "Interaction",
    "InteractionConfig",
    "TextCNNConfig",
    "TransformerConfig",
    "TwoTower",
    "TwoTowerConfig",
]
