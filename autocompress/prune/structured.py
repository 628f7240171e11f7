"""Structured pruning: whole channels are removed, so the model is smaller and faster everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.knobs import Choice, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.prune.allocation import least_important
from autocompress.prune.channel_pruning import ChannelConfig, Ranked, cut_channels, restore_channels


@dataclass(frozen=True)
class StructuredConfig(ChannelConfig):
    """How many channels go, and which.

    Example:
        >>> StructuredConfig(pruning_ratio=0.25).criterion
        'l2'
    """

    label: ClassVar[str] = "prune.structured"

    scope: str = knob("uniform", Choice(("uniform", "global")), "the ratio holds in each layer, or over all of them")


class Structured:
    """Removes the least important channels, with all that depends on them.

    The class heads keep their outputs, and every layer keeps at least one channel. The state's report holds
    ``sparsity`` (share of the removable channels that went), ``channels`` (layer to outputs before and after)
    and ``uncut`` (layer to why its channels stayed).
    """

    name: ClassVar[str] = "structured"
    config = StructuredConfig

    def is_identity(self, config: StructuredConfig) -> bool:
        """Return whether nothing is removed."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: StructuredConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy with fewer channels, and what was removed; ``model`` stays as it was.

        Raises:
            CompressionError: The model cannot be traced, has nothing to remove, or would compute something else.
        """

        def choose(_: nn.Module, ranked: Sequence[Ranked], ratio: float) -> list[list[int]]:
            return least_important(
                [place.scores for place in ranked],
                ratio,
                pooled=config.scope == "global",
                parts=[place.group.parts for place in ranked],
                gone=[place.gone for place in ranked],
            )

        return cut_channels(model, config, context, choose)

    def restore(self, model: nn.Module, config: StructuredConfig, state: MethodState) -> nn.Module:
        """Give a fresh model the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_channels(model, state)


PRUNE.add(Structured.name, Structured())
