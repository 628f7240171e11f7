"""Semi-structured (n:m) pruning: n of every m weights along the input axis remain."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autocompress.core.knobs import Choice, knob
from autocompress.core.method import Context, MethodState, Recovery
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import check_output_varies
from autocompress.prune.importance import WEIGHT_CRITERION_CHOICE
from autocompress.prune.masking import (
    Masks,
    apply_masks,
    check_masks,
    find_prunable_weights,
    score_weights,
)

# Embedding tables have no input axis, so they are missing here.
LAYERS = (_ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class NMConfig(Recovery):
    """The n:m pattern and the criterion that selects the remaining weights.

    Example:
        >>> NMConfig(n=1, m=4).criterion
        'l1'
    """

    label: ClassVar[str] = "prune.n_m"

    n: int = knob(2, Choice((1, 2, 4)), "remaining weights of every m; n = m keeps all")
    m: int = knob(4, Choice((4, 8)), "consecutive weights along the input axis that share the pattern")
    criterion: str = knob("l1", WEIGHT_CRITERION_CHOICE, "what makes a weight important")


class NM:
    """Keeps the n most important of every m weights along the input axis (Mishra 2021, arXiv:2104.08378).

    Accelerators have kernels for 2:4. A layer whose inputs do not divide by m stays dense, and the report's
    ``uncut`` holds the reason. The state's masks keep removed weights at zero in further training.
    """

    name: ClassVar[str] = "n_m"
    config = NMConfig

    def is_identity(self, config: NMConfig) -> bool:
        """Return whether the config keeps all weights."""
        return config.n >= config.m

    def apply(self, model: nn.Module, config: NMConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy whose weights follow the pattern, and its masks; ``model`` is not changed.

        Raises:
            CompressionError: No layer's inputs divide by m, a weight is not finite, the context lacks the data that
                the criterion needs, or the sparse model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"masked": []}, report={"sparsity": 0.0, "density": {}, "uncut": {}})
        axes: dict[str, int] = {}
        skipped: dict[str, str] = {}
        for name, layer, weight in find_prunable_weights(pruned):
            axis = input_axis(layer)
            if not isinstance(layer, LAYERS):
                skipped[name] = f"{type(layer).__name__} has no input axis"
            elif weight.shape[axis] % config.m:
                skipped[name] = f"its {weight.shape[axis]} inputs do not divide by {config.m}"
            else:
                axes[name] = axis
        if not axes:
            reasons = ", ".join(f"'{name}': {reason}" for name, reason in skipped.items())
            raise CompressionError(f"no layer can follow the pattern {config.n}:{config.m} ({reasons})")
        # A generator of its own leaves torch's global random state unchanged.
        generator = torch.Generator().manual_seed(context.seed)
        scores = score_weights(pruned, axes, config.criterion, context, generator)
        masks: Masks = {name: n_m_mask(scores[name], config.n, config.m, axis) for name, axis in axes.items()}
        state = apply_masks(pruned, masks, uncut=skipped, pattern=f"{config.n}:{config.m}")
        check_output_varies(pruned, context)
        return pruned, state

    def restore(self, model: nn.Module, config: NMConfig, state: MethodState) -> nn.Module:
        """Return a freshly built model in evaluation mode; its saved weights contain the zeros.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return check_masks(model, state)


def input_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight that runs over its inputs."""
    # Transposed convolutions store their weight as [inputs, outputs, ...].
    return 0 if getattr(layer, "transposed", False) else 1


def n_m_mask(scores: Tensor, n: int, m: int, axis: int = 1) -> Tensor:
    """Return a mask that keeps the n largest of every m consecutive scores along an axis, ``[D, C] -> [D, C]``.

    Example:
        >>> n_m_mask(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 2, 4).tolist()
        [[True, False, False, True]]
    """
    groups = _group_weights(scores, m, axis)
    # Stable, so that equal scores keep the first weights on every platform.
    order = torch.argsort(groups, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :n], True)
    return mask.flatten(-2).movedim(-1, axis).contiguous()


def has_n_m_pattern(weight: Tensor, n: int, m: int, axis: int = 1) -> bool:
    """Return whether at most n of every m consecutive weights along an axis are nonzero.

    Example:
        >>> has_n_m_pattern(torch.tensor([[3.0, 0.0, 0.0, 4.0]]), 2, 4), has_n_m_pattern(torch.ones(1, 4), 2, 4)
        (True, False)
    """
    return bool((_group_weights(weight, m, axis).count_nonzero(-1) <= n).all())


def _group_weights(weight: Tensor, m: int, axis: int) -> Tensor:
    """Return the weight with an axis of length m at the end, ``[D, C] -> [D, C / m, m]`` for axis 1."""
    grouped: Tensor = weight.movedim(axis, -1).unflatten(-1, (-1, m))
    return grouped


PRUNE.add(NM.name, NM())
