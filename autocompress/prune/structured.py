"""Structured pruning: whole channels are removed, so the model is smaller and faster on any hardware."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import gcd
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState, match_layers
from autocompress.core.registry import CRITERIA, PRUNE
from autocompress.errors import CompressionError, NothingRemovedError
from autocompress.prune.calibration import (
    calibration_gradients,
    check_layers_not_empty,
    check_output_varies,
    make_noise,
)
from autocompress.prune.channels import (
    ChannelGraph,
    ChannelGroup,
    PruningHistory,
    Removal,
    count_channels,
    get_tensor,
    replay_history,
    verify_pruned_model,
)
from autocompress.prune.importance import CRITERION_CHOICE, score_channels
from autocompress.prune.layer_channels import EMBEDDINGS, is_matrix_layer
from autocompress.prune.schedule import GradualConfig, select_least_important


@dataclass(frozen=True)
class ChannelConfig(GradualConfig):
    """Hyperparameters shared by the methods that remove channels."""

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the channels to remove")
    criterion: str = knob("l2", CRITERION_CHOICE, "what makes a channel important")
    round_to: int = knob(
        1,
        Choice((1, 2, 4, 8, 16)),
        "layers keep a multiple of this number of channels: int8 kernels read channels in groups of four",
    )
    hidden_ratio: float = knob(
        0.0,
        FloatRange(0.0, 0.9),
        "share of the channels that a layer normalization reads to remove: the hidden size of a transformer",
    )

    def removes_nothing(self) -> bool:
        """Return whether neither ratio removes a channel."""
        return self.pruning_ratio == 0 and self.hidden_ratio == 0


@dataclass(frozen=True)
class ScoredGroup:
    """A channel group with one importance score per channel.

    Attributes:
        group: Coupled channels.
        scores: Importance of each channel, ``[channels]``; larger = keep.
        removed: Number of the group's channels that earlier steps removed.
    """

    group: ChannelGroup
    scores: Tensor
    removed: int


ChannelSelector = Callable[[nn.Module, Sequence[ScoredGroup], float], list[list[int]]]
"""Maps the model before a step, its groups and the ratio to reach to the channels to remove from each group."""


def prune_channels(
    model: nn.Module, config: ChannelConfig, context: Context, select_channels: ChannelSelector
) -> tuple[nn.Module, MethodState]:
    """Return a copy with fewer channels and a record of the removal; ``model`` is not changed.

    The state's report holds ``sparsity`` (removed share of the removable channels), ``channels`` (layer to its number
    of outputs before and after) and ``uncut`` (layer to the reason why its channels cannot be removed).

    Raises:
        CompressionError: The model cannot be traced, has no removable channels, or would compute other values after
            pruning.
    """
    pruned = copy.deepcopy(model).eval()
    if config.removes_nothing():
        return pruned, MethodState(history={"layers": []}, report={"sparsity": 0.0, "channels": {}, "uncut": {}})
    if not all(isinstance(tensor, Tensor) for tensor in context.example):
        raise CompressionError("structured pruning needs a model whose inputs are tensors, not containers of tensors")
    check_layers_not_empty(pruned)
    # A generator of its own leaves torch's global random state unchanged.
    generator = torch.Generator().manual_seed(context.seed)
    history: PruningHistory = []
    removed_channels: dict[str, int] = {}
    original_sizes: dict[str, int] = {}
    unprunable: dict[str, str] = {}
    removed = 0
    ratios = zip(config.step_ratios(config.pruning_ratio), config.step_ratios(config.hidden_ratio), strict=True)
    for step, (ratio, hidden_ratio) in enumerate(ratios):
        if step:
            config.train_between_steps(pruned, context)
        # Indices shift when channels are removed, so every step traces the model again.
        layers = match_layers(pruned, context.ignore)
        graph = ChannelGraph(pruned, _trace_inputs(context), layers, hidden=config.hidden_ratio > 0)
        scored = _score_groups(pruned, graph, config.criterion, context, generator, removed_channels)
        hidden = [group for group in scored if group.group.is_hidden]
        groups = [group for group in scored if not group.group.is_hidden]
        selected = select_channels(pruned, groups, ratio) if groups and ratio else [[] for _ in groups]
        # Each hidden size by itself: it runs through all layers, so its importance compares with that of no other.
        selected += select_uniformly(hidden, hidden_ratio)
        removals = _choose_removals([*groups, *hidden], selected, config.round_to)
        pruned, removals = _remove_safely(pruned, graph, removals, _test_inputs(context))
        history += graph.list_removals(removals)
        unprunable.update(graph.unprunable)
        for group, indices in removals:
            removed_channels[group.name] = removed_channels.get(group.name, 0) + len(indices)
            # A channel of a group may be several of a layer, as a head is.
            removed += len(indices) * group.width // group.channels
        for group in graph.groups:
            original_sizes.setdefault(group.name, group.width)
    if not history:
        reasons = ", ".join(f"'{name}': {reason}" for name, reason in unprunable.items())
        # Without groups no ratio removes a channel; with some, this ratio is below one channel of each.
        error = NothingRemovedError if original_sizes else CompressionError
        raise error(f"no channel can be removed ({reasons or 'every layer has one'})")
    check_output_varies(pruned, context)
    widths = _layer_widths(model, pruned, history)
    report = {"sparsity": removed / sum(original_sizes.values()), "channels": widths, "uncut": unprunable}
    return pruned, MethodState(history={"layers": history}, report=report)


def select_uniformly(groups: Sequence[ScoredGroup], ratio: float) -> list[list[int]]:
    """Return the least important channels of each group, a share ``ratio`` of its channels before the first step."""
    scores = [scored.scores for scored in groups]
    return select_least_important(scores, ratio, pooled=False, removed_before=[scored.removed for scored in groups])


def _choose_removals(groups: Sequence[ScoredGroup], selected: Sequence[list[int]], multiple: int) -> list[Removal]:
    """Return the groups with the channels to remove, rounded so that each group keeps a multiple."""
    removals: list[Removal] = []
    for scored, indices in zip(groups, selected, strict=True):
        # A channel of a group may be several of a layer, as a head is: heads of size 16 always make a multiple of 4.
        step = multiple // gcd(multiple, scored.group.width // scored.group.channels)
        if rounded := round_to_multiple(scored, indices, step):
            removals.append((scored.group, rounded))
    return removals


def _remove_safely(
    model: nn.Module, graph: ChannelGraph, removals: Sequence[Removal], inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, list[Removal]]:
    """Return a copy without some channels, and the removals that were safe; the others are noted as unprunable.

    All groups are removed together. Where that fails, each half is tried by itself, so that one group that cannot be
    removed does not keep the others.

    Args:
        model: The model, which is not changed.
        graph: Channel groups of the model.
        removals: Groups and the channels to remove.
        inputs: Real data that the models are compared on.
    """
    pruned = copy.deepcopy(model)
    if not removals:
        return pruned, []
    history = graph.list_removals(removals)
    try:
        replay_history(pruned, history)
        verify_pruned_model(model, pruned, history, inputs)
    except CompressionError as error:
        if len(removals) == 1:
            graph.unprunable[removals[0][0].name] = str(error)
            return copy.deepcopy(model), []
    else:
        return pruned, list(removals)
    middle = len(removals) // 2
    halves = [_remove_safely(model, graph, half, inputs)[1] for half in (removals[:middle], removals[middle:])]
    safe = [removal for half in halves for removal in half]
    if len(safe) == len(removals):
        # Safe by themselves, but not together: the larger part of them is removed.
        return _remove_safely(model, graph, max(halves, key=len), inputs)
    return _remove_safely(model, graph, safe, inputs)


def round_to_multiple(scored: ScoredGroup, indices: Sequence[int], multiple: int) -> list[int]:
    """Return the channels to remove so that the number a group keeps is the nearest multiple.

    The least important channels are removed first. A group keeps at least one multiple, or all it has if that is less.

    Example:
        >>> scored = ScoredGroup(ChannelGroup("a", 6, ()), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), 0)
        >>> round_to_multiple(scored, [5], 4), round_to_multiple(scored, [5], 1)
        ([4, 5], [5])
    """
    if multiple == 1 or not indices:
        return list(indices)
    channels = scored.group.channels
    remaining = channels - len(indices)
    order = torch.argsort(scored.scores, stable=True).tolist()
    # Selected channels come before all others, whatever their scores: the sort is stable.
    order.sort(key=lambda index: index not in indices)

    def remove_down_to(width: int) -> list[int]:
        return sorted(order[: channels - min(max(width, multiple), channels)])

    return remove_down_to((remaining + multiple // 2) // multiple * multiple)


def restore_channels(model: nn.Module, state: MethodState) -> nn.Module:
    """Shrink a freshly built model to the pruned shape, in place, and return it in evaluation mode.

    Raises:
        CompressionError: The history does not fit the model.
    """
    if not isinstance(state.history.get("layers"), list):
        raise CompressionError("the pruning history has no list of layers")
    replay_history(model, state.history["layers"])
    return model.eval()


def _score_groups(
    model: nn.Module,
    graph: ChannelGraph,
    criterion_name: str,
    context: Context,
    generator: torch.Generator,
    removed_channels: Mapping[str, int],
) -> list[ScoredGroup]:
    """Return the groups whose layers the criterion can score; the others are noted as unprunable."""
    criterion = CRITERIA[criterion_name]
    scored_groups = []
    with ExitStack() as stack:
        if criterion.gradients:
            stack.enter_context(calibration_gradients(model, context))
        for group in graph.groups:
            matrices = []
            # The linear layers of another library are parameters here; they count where no layer does.
            if nn.Linear in criterion.layers and not any(criterion.can_score(part.layer) for part in group.slices):
                matrices = [(part, get_tensor(model, part.name)) for part in group.parameters]
                matrices = [pair for pair in matrices if isinstance(pair[1], nn.Parameter) and pair[1].dim() > 1]
            if matrices or any(criterion.can_score(part.layer) for part in group.slices):
                scores = score_channels(group.slices, group.channels, criterion, generator, matrices)
                scored_groups.append(ScoredGroup(group, scores, removed_channels.get(group.name, 0)))
            else:
                graph.unprunable[group.name] = f"the criterion {criterion_name} scores none of its layers"
    return scored_groups


def _trace_inputs(context: Context) -> tuple[Tensor, ...]:
    """Return real examples to trace a model on: a mask without padding may take another branch than real ones."""
    if context.calibration:
        return tuple(tensor[:2] for tensor in context.calibration[0])
    return context.example


def _test_inputs(context: Context) -> tuple[Tensor, ...]:
    """Return inputs to compare models on: calibration examples, or noise of the example's shape without them."""
    if context.calibration:
        return tuple(tensor[:8] for tensor in context.calibration[0])
    return make_noise(context.example, context.seed)


def _layer_widths(model: nn.Module, pruned: nn.Module, history: PruningHistory) -> dict[str, list[int]]:
    """Return the number of outputs ``[before, after]`` of each layer that lost some.

    The projections of torch's attention, and linear layers of other libraries, are parameters, ``[outputs, inputs]``.
    """
    widths = {}
    for name, outputs, _ in history:
        if name.endswith("weight") and outputs is not False and outputs == 0:
            widths[name] = [get_tensor(source, name).shape[0] for source in (model, pruned)]
        if outputs is not True:
            continue
        before, after = model.get_submodule(name), pruned.get_submodule(name)
        if isinstance(before, EMBEDDINGS) or is_matrix_layer(before):
            widths[name] = [count_channels(before, True), count_channels(after, True)]
    return widths


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
        return config.removes_nothing()

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
