"""Structured pruning: whole channels are removed, so the model is smaller and faster everywhere."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import CompressionError
from autocompress.knobs import Choice, FloatRange, knob
from autocompress.method import Context, MethodState, Recovery
from autocompress.prune.allocation import least_important
from autocompress.prune.channels import Channels, replay, size_of, verify_cut
from autocompress.prune.importance import CRITERIA, WEIGHTED, channel_scores
from autocompress.registry import PRUNE


@dataclass(frozen=True)
class StructuredConfig(Recovery):
    """How many channels go, and which.

    Example:
        >>> StructuredConfig(pruning_ratio=0.25).criterion
        'l2'
    """

    label: ClassVar[str] = "prune.structured"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the channels to remove")
    criterion: str = knob("l2", Choice(tuple(CRITERIA)), "what makes a channel important")
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
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"layers": []}, report={"sparsity": 0.0, "channels": {}, "uncut": {}})
        if not all(isinstance(tensor, Tensor) for tensor in context.example):
            raise CompressionError("structured pruning traces models whose inputs are tensors, not containers of them")
        _refuse_empty_layers(pruned)
        frozen = [name for name, parameter in pruned.named_parameters() if not parameter.requires_grad]
        # Tracing follows gradients, so even frozen weights need one.
        for parameter in pruned.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        channels = Channels(pruned, context.example)
        self._cut(channels, config, context.seed)
        for name in frozen:
            pruned.get_parameter(name).requires_grad_(False)
        verify_cut(model, pruned, channels.history, _probe(context))
        return pruned, MethodState(history={"layers": channels.history}, report=_report(model, pruned, channels))

    def restore(self, model: nn.Module, config: StructuredConfig, state: MethodState) -> nn.Module:
        """Give a fresh model the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        if not isinstance(state.history.get("layers"), list):
            raise CompressionError("the pruning history has no list of layers")
        replay(model, state.history["layers"])
        return model.eval()

    def _cut(self, channels: Channels, config: StructuredConfig, seed: int) -> None:
        criterion = CRITERIA[config.criterion]
        # A generator of its own: the global stream stays where it was.
        generator = torch.Generator().manual_seed(seed)
        ranked = []
        for group in channels.groups:
            if any(isinstance(part.layer, criterion.layers) for part in group.slices):
                scores = channel_scores(group.slices, group.channels * group.repeats, criterion, generator)
                ranked.append((group, scores.view(group.repeats, group.channels).mean(0)))
            else:
                channels.uncut[group.name] = f"the criterion {config.criterion} finds no layer to read"
        chosen = least_important(
            [scores for _, scores in ranked],
            config.pruning_ratio,
            pooled=config.scope == "global",
            parts=[group.parts for group, _ in ranked],
        )
        if not any(chosen):
            reasons = ", ".join(f"'{name}': {reason}" for name, reason in channels.uncut.items())
            raise CompressionError(f"there is no channel to spare ({reasons or 'every layer has one'})")
        for (group, _), indices in zip(ranked, chosen, strict=True):
            channels.remove(group, indices)


def _refuse_empty_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, WEIGHTED) and isinstance(weight, Tensor) and weight.numel() == 0:
            raise CompressionError(f"layer '{name}' has no channels: a model that ignores its input is no model")


def _probe(context: Context) -> tuple[Tensor, ...]:
    """Return a few inputs that tell channels apart: calibration examples, or else noise of the example's shape."""
    if context.calibration:
        return tuple(tensor[:8] for tensor in context.calibration[0])
    generator = torch.Generator().manual_seed(context.seed)
    return tuple(
        torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor
        for tensor in context.example
    )


def _report(model: nn.Module, pruned: nn.Module, channels: Channels) -> dict[str, object]:
    total = sum(group.channels * group.repeats for group in channels.groups)
    widths = {}
    for name, outputs, _ in channels.history:
        before, after = model.get_submodule(name), pruned.get_submodule(name)
        if outputs and isinstance(before, nn.Linear | nn.modules.conv._ConvNd):
            widths[name] = [size_of(before, True), size_of(after, True)]
    first = {group.name for group in channels.groups}
    removed = sum(before - after for name, (before, after) in widths.items() if name in first)
    return {"sparsity": removed / total, "channels": widths, "uncut": dict(channels.uncut)}


PRUNE.add(Structured.name, Structured())
