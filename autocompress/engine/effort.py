"""How many epochs a cut trains."""

from typing import Any

from autocompress.config import Part
from autocompress.records import Cut
from autocompress.registry import PRUNE, QUANTIZE, Registry


def epochs_of(cut: Cut) -> float:
    """Return how many passes over the training split a cut costs; 0 for one that only measures.

    Example:
        >>> epochs_of(Cut(Part.of("structured", pruning_ratio=0.5, recovery_epochs=6), Part.of("lsq", epochs=4)))
        10.0
        >>> epochs_of(Cut(quantize=Part.of("post_training")))
        0.0
    """
    return _epochs(PRUNE, cut.prune) + _epochs(QUANTIZE, cut.quantize)


def _epochs(registry: Registry[Any], part: Part | None) -> float:
    if part is None:
        return 0.0
    settings = registry.get(part.name).config.of(part.values)
    return float(settings.effort())
