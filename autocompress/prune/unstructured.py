"""Unstructured pruning: single weights are set to zero and stay zero."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.prune.calibration import check_output_varies
from autocompress.prune.importance import WEIGHT_CRITERION_CHOICE
from autocompress.prune.masking import (
    Masks,
    apply_masks,
    check_masks,
    prunable_weights,
    score_weights,
    tighten_masks,
)
from autocompress.prune.schedule import GradualConfig


@dataclass(frozen=True)
class UnstructuredConfig(GradualConfig):
    """The share of weights to remove and the criterion that selects them.

    Example:
        >>> UnstructuredConfig(pruning_ratio=0.9, schedule="cubic").steps
        4
    """

    label: ClassVar[str] = "prune.unstructured"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.95), "share of the weights to remove")
    criterion: str = knob("l2", WEIGHT_CRITERION_CHOICE, "what makes a weight important")
    scope: str = knob(
        "global", Choice(("uniform", "global")), "whether the ratio applies to each layer or to all layers together"
    )


class Unstructured:
    """Sets the least important weights to zero; the model takes fewer bytes when packed, but as many FLOPs.

    Within one layer, ``l1`` and ``l2`` rank weights in the same order. Over all layers, ``l1`` removes the smallest
    weights, and ``l2`` those with the smallest square relative to the remaining weights of their layer (LAMP), which
    protects narrow layers. Every layer keeps at least one weight. The state's masks keep removed weights at zero in
    further training.
    """

    name: ClassVar[str] = "unstructured"
    config = UnstructuredConfig

    def is_identity(self, config: UnstructuredConfig) -> bool:
        """Return whether the config removes nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: UnstructuredConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a sparse copy and its masks; ``model`` is not changed.

        Raises:
            CompressionError: The model has no weight to remove, a weight is not finite, the context lacks the data
                that the criterion needs, or the sparse model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"masked": []}, report={"sparsity": 0.0, "density": {}})
        masks: Masks = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(pruned).items()
        }
        # A generator of its own leaves torch's global random state unchanged.
        generator = torch.Generator().manual_seed(context.seed)
        state = MethodState()
        for step, ratio in enumerate(config.step_ratios(config.pruning_ratio)):
            if step:
                # The masks are applied after each step of the optimizer, which would change removed weights.
                config.train_between_steps(pruned, context, partial(state.apply_masks, pruned))
            scores = score_weights(pruned, masks, config.criterion, context, generator)
            # LAMP is defined on squared weights, which are the scores of the criterion l2.
            masks = tighten_masks(
                scores, masks, ratio, pooled=config.scope == "global", layer_adaptive=config.criterion == "l2"
            )
            state = apply_masks(pruned, masks)
        check_output_varies(pruned, context)
        return pruned, state

    def restore(self, model: nn.Module, config: UnstructuredConfig, state: MethodState) -> nn.Module:
        """Return a freshly built model in evaluation mode; its saved weights contain the zeros.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return check_masks(model, state)


PRUNE.add(Unstructured.name, Unstructured())
