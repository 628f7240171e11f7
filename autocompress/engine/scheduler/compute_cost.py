"""Compute cost of trials before they run: the number of epochs and the cost of one epoch.

Costs are counted in operations and not in seconds, so that a seeded search takes the same decisions on any machine.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.knobs import Settings
from autocompress.core.method import Method
from autocompress.core.records import Candidate, CompressionRecipe
from autocompress.core.registry import DISTILL, PRUNE, QUANTIZE, Registry
from autocompress.distill.base import Needs
from autocompress.training.optimizers import fit_config

# A training step has a fixed overhead for each layer (kernel launches, optimizer), and each output of a layer is moved
# through memory; both are expressed as FLOPs of a forward pass. The constants were fitted to the training seconds of
# students of four search spaces on one core: the error is 6 to 24%, and 10% instead of 28% for images that are larger
# than digits. Without them, small students would look too cheap and large students too expensive.
STEP_OVERHEAD = 2.5e7
FLOPS_PER_OUTPUT = 700.0
# Number of layers that is assumed where the layers were not counted.
DEFAULT_LAYERS = 8.0
# A distillation term that reads the teacher's layers runs the teacher at every step. The cost of that pass is given as
# a number of student layers, measured with the teacher of MNIST-1D.
TEACHER_PASS_LAYERS = 20.0


def count_recipe_epochs(recipe: CompressionRecipe) -> float:
    """Return the number of passes over the training split that a compression recipe needs; 0 if it trains nothing.

    Example:
        >>> prune = Part.of("structured", pruning_ratio=0.5, recovery_epochs=6)
        >>> count_recipe_epochs(CompressionRecipe(prune, Part.of("lsq", epochs=4)))
        10.0
        >>> count_recipe_epochs(CompressionRecipe(quantize=Part.of("post_training")))
        0.0
    """
    return _count_step_epochs(PRUNE, recipe.prune) + _count_step_epochs(QUANTIZE, recipe.quantize)


def candidate_epoch_cost(candidate: Candidate) -> float:
    """Return the cost of one epoch of a candidate's training, in FLOPs per example.

    The cost is the sum of arithmetic, memory traffic and the overhead of a step.

    Example:
        >>> from autocompress.core.config import CompressionConfig
        >>> config = CompressionConfig(Part("cnn"), (Part("none"),), Part.of("adamw", batch_size=100))
        >>> costs = {"flops": 3e5, "activations": 1e3, "layers": 10.0}
        >>> candidate_epoch_cost(Candidate("t0c0", 0, config, 1, {}, costs))
        3500000.0
    """
    return estimate_epoch_cost(candidate.costs, candidate.config)


def estimate_epoch_cost(costs: Mapping[str, float], training: CompressionConfig) -> float:
    """Return the cost of one epoch of training a student, in FLOPs per example.

    Args:
        costs: Costs of the uncompressed student: ``flops``, ``activations`` (outputs of all layers) and ``layers``.
        training: Training configuration: its distillation terms and batch size count.
    """
    teacher_layers = TEACHER_PASS_LAYERS * _reads_teacher_layers(training.distill)
    # A model of embeddings alone has no layer that multiplies, and its steps take time nevertheless.
    layers = max(costs.get("layers", DEFAULT_LAYERS), 1.0)
    step_overhead = STEP_OVERHEAD * (layers + teacher_layers)
    example_cost = costs.get("flops", 0.0) + FLOPS_PER_OUTPUT * costs.get("activations", 0.0)
    return example_cost + step_overhead / _batch_size(training.fit)


def _reads_teacher_layers(terms: Sequence[Part]) -> bool:
    methods = [(DISTILL.get(part.name), part) for part in terms]
    return any(method.needs(method.config.of(part.values)) is Needs.MODEL for method, part in methods)


def _count_step_epochs(registry: Registry[Method[Settings]], part: Part | None) -> float:
    if part is None:
        return 0.0
    settings = registry.get(part.name).config.of(part.values)
    return float(settings.estimate_epochs())


# A search asks for the same few fit sections at each of its decisions, so they are parsed once.
@lru_cache(maxsize=1024)
def count_fit_epochs(fit: Part) -> int:
    """Return the number of epochs of a fit section."""
    return fit_config(fit).epochs


@lru_cache(maxsize=1024)
def _batch_size(fit: Part) -> int:
    return max(getattr(fit_config(fit), "batch_size", 1), 1)
