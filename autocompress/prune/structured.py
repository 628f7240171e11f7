"""Structured pruning: whole channels are removed, so the model is smaller and faster on any hardware."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.knobs import Choice, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.prune.allocation import select_least_important
from autocompress.prune.channel_pruning import ChannelConfig, ScoredGroup, prune_channels, restore_channels


@dataclass(frozen=True)
class StructuredConfig(ChannelConfig):
    """The share of channels to remove and the criterion that selects them.

    Example:
        >>> StructuredConfig(pruning_ratio=0.25).criterion
        'l2'
    """

    label: ClassVar[str] = "prune.structured"

    scope: str = knob(
        "uniform", Choice(("uniform", "global")), "whether the ratio applies to each layer or to all layers together"
    )


class Structured:
    """Removes the least important channels together with the weights that read them.

    The class heads keep their outputs, and every layer keeps at least one channel. The state's report holds
    ``sparsity`` (removed share of the removable channels), ``channels`` (layer to its number of outputs before and
    after) and ``uncut`` (layer to the reason why its channels cannot be removed).
    """

    name: ClassVar[str] = "structured"
    config = StructuredConfig

    def is_identity(self, config: StructuredConfig) -> bool:
        """Return whether the config removes nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: StructuredConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy with fewer channels and a record of the removal; ``model`` is not changed.

        Raises:
            CompressionError: The model cannot be traced, has no removable channels, or would compute other values
                after pruning.
        """

        def choose_channels(_: nn.Module, groups: Sequence[ScoredGroup], ratio: float) -> list[list[int]]:
            return select_least_important(
                [scored.scores for scored in groups],
                ratio,
                pooled=config.scope == "global",
                protected_sets=[scored.group.protected_sets for scored in groups],
                removed_before=[scored.removed for scored in groups],
            )

        return prune_channels(model, config, context, choose_channels)

    def restore(self, model: nn.Module, config: StructuredConfig, state: MethodState) -> nn.Module:
        """Shrink a freshly built model to the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_channels(model, state)


PRUNE.add(Structured.name, Structured())
