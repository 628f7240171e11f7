"""What jobs cost before they are run: epochs, and how much an epoch takes.

Effort is counted in operations, not in seconds, so that a search repeats itself on any machine.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Candidate, Cut
from autocompress.core.registry import DISTILL, PRUNE, QUANTIZE, Registry
from autocompress.distill.base import Needs
from autocompress.training.optimizers import fit_config

# What a step takes for each layer beside its arithmetic (kernel launches, optimizer), and what each output of a layer
# takes on its way through memory, as FLOPs of a forward pass. Fitted to the seconds of students of four spaces on one
# core: errors of 6 to 24%, and of 10% instead of 28% where images are larger than digits. Small students are not free
# because they are small, and large ones less dear than their FLOPs.
STEP_OVERHEAD = 2.5e7
OUTPUT = 700.0
# Where the layers were not counted.
LAYERS = 8.0
# A term that reads the teacher's layers runs it at every step: as many layers of a student, on the MNIST-1D teacher.
TEACHER_PASS = 20.0


def epochs_of(cut: Cut) -> float:
    """Return how many passes over the training split a cut costs; 0 for one that only measures.

    Example:
        >>> epochs_of(Cut(Part.of("structured", pruning_ratio=0.5, recovery_epochs=6), Part.of("lsq", epochs=4)))
        10.0
        >>> epochs_of(Cut(quantize=Part.of("post_training")))
        0.0
    """
    return _epochs(PRUNE, cut.prune) + _epochs(QUANTIZE, cut.quantize)


def size_of(candidate: Candidate) -> float:
    """Return what an epoch of a candidate's training takes, as FLOPs of an example: arithmetic, memory, overhead.

    Example:
        >>> from autocompress.core.config import CompressionConfig
        >>> config = CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", batch_size=100))
        >>> size_of(Candidate("t0c0", 0, config, 1, {}, {"flops": 3e5, "activations": 1e3, "layers": 10.0}))
        3500000.0
    """
    return size_at(candidate.costs, candidate.config)


def size_at(costs: Mapping[str, float], training: CompressionConfig) -> float:
    """Return what an epoch takes of a student that costs so much and is trained so, as :func:`size_of`."""
    overhead = STEP_OVERHEAD * (costs.get("layers", LAYERS) + TEACHER_PASS * _reads_layers(training.distill))
    passing = costs.get("flops", 0.0) + OUTPUT * costs.get("activations", 0.0)
    return passing + overhead / _batch_of_fit(training.fit)


def _reads_layers(terms: Sequence[Part]) -> bool:
    methods = [(DISTILL.get(part.name), part) for part in terms]
    return any(method.needs(method.config.of(part.values)) is Needs.MODEL for method, part in methods)


def _epochs(registry: Registry[Any], part: Part | None) -> float:
    if part is None:
        return 0.0
    settings = registry.get(part.name).config.of(part.values)
    return float(settings.effort())


@lru_cache(maxsize=1024)
def epochs_of_fit(part: Part) -> int:
    """Return how many epochs a training has that is fitted so."""
    return fit_config(part).epochs


@lru_cache(maxsize=1024)
def _batch_of_fit(part: Part) -> int:
    return max(getattr(fit_config(part), "batch_size", 1), 1)
