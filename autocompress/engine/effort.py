"""How many epochs a training or a cut takes."""

from functools import lru_cache
from typing import Any

from autocompress.config import Part
from autocompress.distill.optimizers import fit_config
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


@lru_cache(maxsize=1024)
def epochs_of_fit(part: Part) -> int:
    """Return how many epochs a training has that is fitted so."""
    return fit_config(part).epochs
