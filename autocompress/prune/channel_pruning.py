"""What the methods that remove channels share: their knobs, and the cuts with the checks around them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.prune.calibration import gradients, refuse_dead_model, refuse_empty_layers, trainable
from autocompress.prune.channels import Channels, Group, History, replay, size_of, verify_cut
from autocompress.prune.importance import CRITERIA, channel_scores
from autocompress.prune.schedule import Gradual


@dataclass(frozen=True)
class ChannelConfig(Gradual):
    """Knobs that every method that removes channels shares."""

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the channels to remove")
    criterion: str = knob("l2", Choice(tuple(CRITERIA)), "what makes a channel important")
    round_to: int = knob(
        1, Choice((1, 2, 4, 8, 16)), "layers keep a multiple of it: int8 kernels take channels by fours"
    )


@dataclass(frozen=True)
class Ranked:
    """A group of channels with one score each.

    Attributes:
        group: The channels.
        scores: ``[channels]``; larger = keep.
        gone: How many of the group's channels earlier cuts removed.
    """

    group: Group
    scores: Tensor
    gone: int


Choose = Callable[[nn.Module, Sequence[Ranked], float], list[list[int]]]
"""Takes the model before a cut, its groups and the ratio to reach; returns the channels to remove from each group."""


def cut_channels(
    model: nn.Module, config: ChannelConfig, context: Context, choose: Choose
) -> tuple[nn.Module, MethodState]:
    """Return a copy with fewer channels, and what was removed; ``model`` stays as it was.

    The state's report holds ``sparsity`` (share of the removable channels that went), ``channels`` (layer to
    outputs before and after) and ``uncut`` (layer to why its channels stayed).

    Raises:
        CompressionError: The model cannot be traced, has nothing to remove, or would compute something else.
    """
    pruned = copy.deepcopy(model).eval()
    if config.pruning_ratio == 0:
        return pruned, MethodState(history={"layers": []}, report={"sparsity": 0.0, "channels": {}, "uncut": {}})
    if not all(isinstance(tensor, Tensor) for tensor in context.example):
        raise CompressionError("structured pruning traces models whose inputs are tensors, not containers of them")
    refuse_empty_layers(pruned)
    # A generator of its own: the global stream stays where it was.
    generator = torch.Generator().manual_seed(context.seed)
    history: History = []
    gone: dict[str, int] = {}
    sizes: dict[str, int] = {}
    uncut: dict[str, str] = {}
    for step, ratio in enumerate(config.ratios(config.pruning_ratio)):
        if step:
            config.between(pruned, context)
        whole = copy.deepcopy(pruned)
        with trainable(pruned):  # Tracing follows gradients, so even frozen weights need one.
            channels = Channels(pruned, context.example)
            ranked = _ranked(pruned, channels, config.criterion, context, generator, gone)
            chosen = choose(pruned, ranked, ratio) if ranked else []
            chosen = [rounded(place, indices, config.round_to) for place, indices in zip(ranked, chosen, strict=True)]
            for place, indices in zip(ranked, chosen, strict=True):
                channels.remove(place.group, indices)
        verify_cut(whole, pruned, channels.history, _probe(context))
        history += channels.history
        uncut.update(channels.uncut)
        for place, indices in zip(ranked, chosen, strict=True):
            gone[place.group.name] = place.gone + len(indices)
        for group in channels.groups:
            sizes.setdefault(group.name, group.channels * group.repeats)
    if not history:
        reasons = ", ".join(f"'{name}': {reason}" for name, reason in uncut.items())
        raise CompressionError(f"there is no channel to spare ({reasons or 'every layer has one'})")
    refuse_dead_model(pruned, context)
    widths = _widths(model, pruned, history)
    removed = sum(before - after for name, (before, after) in widths.items() if name in sizes)
    report = {"sparsity": removed / sum(sizes.values()), "channels": widths, "uncut": uncut}
    return pruned, MethodState(history={"layers": history}, report=report)


def rounded(place: Ranked, indices: Sequence[int], multiple: int) -> list[int]:
    """Return the channels to remove so that a group keeps the nearest multiple, the least important ones going first.

    A group never keeps less than one multiple, nor more than it has.

    Example:
        >>> place = Ranked(Group("a", 6, 1, (), ()), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), 0)
        >>> rounded(place, [5], 4), rounded(place, [3, 4, 5], 4), rounded(place, [5], 1)
        ([4, 5], [4, 5], [5])
    """
    if multiple == 1 or not indices:
        return list(indices)
    channels = place.group.channels
    kept = channels - len(indices)
    order = torch.argsort(place.scores, stable=True).tolist()
    # Those that were chosen go before those that were not, whatever the scores say.
    order.sort(key=lambda index: index not in indices)

    def gone(wanted: int) -> list[int]:
        return sorted(order[: channels - min(max(wanted, multiple), channels)])

    nearest = gone((kept + multiple // 2) // multiple * multiple)
    if any(set(part) <= set(nearest) for part in place.group.parts):
        # One more would be all that a layer has: only putting back is safe.
        return gone(-(-kept // multiple) * multiple)
    return nearest


def restore_channels(model: nn.Module, state: MethodState) -> nn.Module:
    """Give a fresh model the pruned shape, in place, and return it in evaluation mode.

    Raises:
        CompressionError: The history does not fit the model.
    """
    if not isinstance(state.history.get("layers"), list):
        raise CompressionError("the pruning history has no list of layers")
    replay(model, state.history["layers"])
    return model.eval()


def _ranked(
    model: nn.Module,
    channels: Channels,
    name: str,
    context: Context,
    generator: torch.Generator,
    gone: Mapping[str, int],
) -> list[Ranked]:
    criterion = CRITERIA[name]
    found = []
    with ExitStack() as stack:
        if criterion.gradients:
            stack.enter_context(gradients(model, context))
        for group in channels.groups:
            if any(isinstance(part.layer, criterion.layers) for part in group.slices):
                scores = channel_scores(group.slices, group.channels * group.repeats, criterion, generator)
                scores = scores.view(group.repeats, group.channels).mean(0)
                found.append(Ranked(group, scores, gone.get(group.name, 0)))
            else:
                channels.uncut[group.name] = f"the criterion {name} finds no layer to read"
    return found


def _probe(context: Context) -> tuple[Tensor, ...]:
    """Return a few inputs that tell channels apart: calibration examples, or else noise of the example's shape."""
    if context.calibration:
        return tuple(tensor[:8] for tensor in context.calibration[0])
    generator = torch.Generator().manual_seed(context.seed)
    return tuple(
        torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor
        for tensor in context.example
    )


def _widths(model: nn.Module, pruned: nn.Module, history: History) -> dict[str, Any]:
    """Return the outputs of each layer that lost some, ``[before, after]``."""
    widths = {}
    for name, outputs, _ in history:
        before, after = model.get_submodule(name), pruned.get_submodule(name)
        if outputs and isinstance(before, nn.Linear | nn.Embedding | nn.modules.conv._ConvNd):
            widths[name] = [size_of(before, True), size_of(after, True)]
    return widths
