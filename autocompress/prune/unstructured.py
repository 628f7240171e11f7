"""Unstructured pruning: single weights become zero, and stay zero."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.prune.calibration import refuse_dead_model
from autocompress.prune.masking import (
    WEIGHT_CRITERIA,
    Masks,
    keep_best,
    masked_state,
    restore_masked,
    weight_scores,
    weights,
)
from autocompress.prune.schedule import Gradual


@dataclass(frozen=True)
class UnstructuredConfig(Gradual):
    """How many weights go, and which.

    Example:
        >>> UnstructuredConfig(pruning_ratio=0.9, schedule="cubic").steps
        4
    """

    label: ClassVar[str] = "prune.unstructured"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.95), "share of the weights to remove")
    criterion: str = knob("l2", Choice(WEIGHT_CRITERIA), "what makes a weight important")
    scope: str = knob("global", Choice(("uniform", "global")), "the ratio holds in each layer, or over all of them")


class Unstructured:
    """Sets the least important weights to zero; fewer bytes when packed, and as many FLOPs as before.

    Within one layer, ``l1`` and ``l2`` rank weights alike. Over all layers ``l1`` takes the smallest weights, and
    ``l2`` those whose square is smallest beside what is left of their layer, which spares narrow layers. Every layer
    keeps at least one weight. The state's masks keep the zeros exact while the model trains on.
    """

    name: ClassVar[str] = "unstructured"
    config = UnstructuredConfig

    def is_identity(self, config: UnstructuredConfig) -> bool:
        """Return whether nothing is removed."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: UnstructuredConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a sparse copy, and its masks; ``model`` stays as it was.

        Raises:
            CompressionError: There is no weight to remove, a weight is not finite, the criterion lacks what it
                measures on, or the sparse model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"masked": []}, report={"sparsity": 0.0, "density": {}})
        masks: Masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights(pruned).items()}
        # A generator of its own: the global stream stays where it was.
        generator = torch.Generator().manual_seed(context.seed)
        state = MethodState()
        for step, ratio in enumerate(config.ratios(config.pruning_ratio)):
            if step:
                config.between(pruned, context, partial(state.hold, pruned))
            scores = weight_scores(pruned, masks, config.criterion, context, generator)
            masks = keep_best(scores, masks, ratio, pooled=config.scope == "global", adapted=config.criterion == "l2")
            state = masked_state(pruned, masks)
        refuse_dead_model(pruned, context)
        return pruned, state

    def restore(self, model: nn.Module, config: UnstructuredConfig, state: MethodState) -> nn.Module:
        """Return a fresh model in evaluation mode; its shape is the whole model's, and its weights carry the zeros.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_masked(model, state)


PRUNE.add(Unstructured.name, Unstructured())
