"""Tasks: data, splits, models, loss and metrics of one learning problem each."""

from autocompress.tasks import images, images_folder, module, recommender, signals, text

__all__ = ["images", "images_folder", "module", "recommender", "signals", "text"]
