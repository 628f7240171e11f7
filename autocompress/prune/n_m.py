"""Semi-structured pruning: of every m weights along the input axis, n stay."""

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
from autocompress.prune.calibration import refuse_dead_model
from autocompress.prune.masking import (
    WEIGHT_CRITERIA,
    Masks,
    masked_state,
    restore_masked,
    weight_scores,
    weighted,
)

LAYERS = (_ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class NMConfig(Recovery):
    """The pattern, and which weights stay in it.

    Example:
        >>> NMConfig(n=1, m=4).criterion
        'l1'
    """

    label: ClassVar[str] = "prune.n_m"

    n: int = knob(2, Choice((1, 2, 4)), "weights that stay of every m; n = m keeps all")
    m: int = knob(4, Choice((4, 8)), "consecutive weights along the input axis that share the pattern")
    criterion: str = knob("l1", Choice(WEIGHT_CRITERIA), "what makes a weight important")


class NM:
    """Keeps the n most important of every m weights along the input axis (Mishra 2021, arXiv:2104.08378).

    Accelerators have kernels for 2:4. A layer whose inputs do not divide by m stays dense, and the report's
    ``uncut`` says why. The state's masks keep the zeros exact while the model trains on.
    """

    name: ClassVar[str] = "n_m"
    config = NMConfig

    def is_identity(self, config: NMConfig) -> bool:
        """Return whether all weights stay."""
        return config.n >= config.m

    def apply(self, model: nn.Module, config: NMConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy whose weights follow the pattern, and its masks; ``model`` stays as it was.

        Raises:
            CompressionError: No layer's inputs divide by m, a weight is not finite, the criterion lacks what it
                measures on, or the sparse model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"masked": []}, report={"sparsity": 0.0, "density": {}, "uncut": {}})
        axes: dict[str, int] = {}
        uncut: dict[str, str] = {}
        for name, layer, weight in weighted(pruned):
            axis = input_axis(layer)
            if not isinstance(layer, LAYERS):
                uncut[name] = f"{type(layer).__name__} has no input axis"
            elif weight.shape[axis] % config.m:
                uncut[name] = f"its {weight.shape[axis]} inputs do not divide by {config.m}"
            else:
                axes[name] = axis
        if not axes:
            reasons = ", ".join(f"'{name}': {reason}" for name, reason in uncut.items())
            raise CompressionError(f"no layer can follow the pattern {config.n}:{config.m} ({reasons})")
        generator = torch.Generator().manual_seed(context.seed)
        scores = weight_scores(pruned, axes, config.criterion, context, generator)
        masks: Masks = {name: best_of(scores[name], config.n, config.m, axis) for name, axis in axes.items()}
        state = masked_state(pruned, masks, uncut=uncut, pattern=f"{config.n}:{config.m}")
        refuse_dead_model(pruned, context)
        return pruned, state

    def restore(self, model: nn.Module, config: NMConfig, state: MethodState) -> nn.Module:
        """Return a fresh model in evaluation mode; its shape is the whole model's, and its weights carry the zeros.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_masked(model, state)


def input_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight along which its inputs lie."""
    return 0 if getattr(layer, "transposed", False) else 1


def best_of(scores: Tensor, n: int, m: int, axis: int = 1) -> Tensor:
    """Return a mask that keeps the n largest of every m consecutive scores along an axis, ``[D, C] -> [D, C]``.

    Example:
        >>> best_of(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 2, 4).tolist()
        [[True, False, False, True]]
    """
    groups = _groups(scores, m, axis)
    order = torch.argsort(groups, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :n], True)
    return mask.flatten(-2).movedim(-1, axis).contiguous()


def follows(weight: Tensor, n: int, m: int, axis: int = 1) -> bool:
    """Return whether at most n of every m consecutive weights along an axis are not zero.

    Example:
        >>> follows(torch.tensor([[3.0, 0.0, 0.0, 4.0]]), 2, 4), follows(torch.ones(1, 4), 2, 4)
        (True, False)
    """
    return bool((_groups(weight, m, axis).count_nonzero(-1) <= n).all())


def _groups(weight: Tensor, m: int, axis: int) -> Tensor:
    grouped: Tensor = weight.movedim(axis, -1).unflatten(-1, (-1, m))
    return grouped


PRUNE.add(NM.name, NM())
