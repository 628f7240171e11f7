"""Tasks: data, splits, models, loss and metrics of one learning problem each."""

from autocompress.tasks import images

__all__ = ["images"]
