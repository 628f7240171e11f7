"""Initialization of a student with the weights of a trained teacher of the same family.

Layers are matched by name. If a group of coupled channels is narrower in the student, the student inherits the
teacher's most important channels, the same ones in every layer that they run through.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from autocompress.core.registry import CRITERIA
from autocompress.errors import CompressionError
from autocompress.prune.channels import ChannelGraph, ChannelGroup, count_channels
from autocompress.prune.importance import LayerSlice, score_channels

LayerSide = tuple[str, bool]
"""Name of a layer and whether its output side is meant rather than its input side."""


@dataclass(frozen=True)
class Inheritance:
    """Summary of the weights that a student inherited.

    Attributes:
        tensors: Names of the inherited tensors in the ``state_dict`` of the student.
        share: Inherited share of the student's parameters.
    """

    tensors: tuple[str, ...]
    share: float


def inherit_weights(student: nn.Module, teacher: nn.Module, example: tuple[Tensor, ...]) -> Inheritance:
    """Copy a teacher's weights into a student where their shapes can be matched, in place.

    A kernel of another size is cropped or padded around its center. Layers that only the student has, and channels that
    feed other layers than in the teacher, keep their values. If one of the models cannot be traced, only tensors of
    equal shape are copied. A layer whose weight cannot be inherited keeps its bias too. The teacher is not changed.

    Args:
        student: The model to initialize.
        teacher: The trained model.
        example: A batch of one, as positional arguments of both models.
    """
    matching = _match_channels(student, teacher, example)
    student_state, teacher_state = student.state_dict(), teacher.state_dict()
    modules = dict(student.named_modules())
    matches = {}
    for name, tensor in student_state.items():
        if name in teacher_state and tensor.is_floating_point():
            match = matching.select_part(name.rpartition(".")[0], modules, tensor, teacher_state[name])
            if match is not None:
                matches[name] = match
    # A bias without its weight would make the layer return the teacher's mean output for every input.
    inherited = [name for name in matches if _weight_name(name) in matches or _weight_name(name) not in student_state]
    with torch.no_grad():
        for name in inherited:
            student_state[name].copy_(matches[name])
    sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
    share = sum(sizes.get(name, 0) for name in inherited) / max(sum(sizes.values()), 1)
    return Inheritance(tuple(inherited), share)


def _weight_name(name: str) -> str:
    """Return the name of the weight in the layer of a tensor."""
    return f"{name.rpartition('.')[0]}.weight".lstrip(".")


@dataclass
class _ChannelMatching:
    """Teacher channels for the channels of each layer of the student.

    Attributes:
        sources: Layer side to the teacher's channel for each of the student's; absent sides match one to one.
        unmatched: Layer sides whose channels have no counterpart in the teacher.
    """

    sources: dict[LayerSide, Tensor] = field(default_factory=dict)
    unmatched: set[LayerSide] = field(default_factory=set)

    def select_part(
        self, layer: str, modules: dict[str, nn.Module], student_tensor: Tensor, teacher_tensor: Tensor
    ) -> Tensor | None:
        """Return the part of a teacher's tensor that fits the student's, or ``None`` if none does."""
        if student_tensor.dim() != teacher_tensor.dim():
            return None
        module = modules.get(layer)
        # Axis 0 holds outputs and axis 1 inputs, except in transposed convolutions.
        sides = [(layer, True), (layer, False)][: student_tensor.dim()]
        if student_tensor.dim() > 1 and getattr(module, "transposed", False):
            sides.reverse()
        for axis, side in enumerate(sides):
            if side in self.unmatched:
                return None
            source = self.sources.get(side)
            size = student_tensor.shape[axis]
            if source is not None and size <= len(source) and teacher_tensor.shape[axis] > 1:
                # The weight of a grouped convolution has the inputs of one block; all blocks use the same channels.
                teacher_tensor = teacher_tensor.index_select(axis, source[:size].to(teacher_tensor.device))
        if isinstance(module, _ConvNd):
            teacher_tensor = _resize_kernel(teacher_tensor, student_tensor.shape)
        return teacher_tensor if teacher_tensor.shape == student_tensor.shape else None


def _match_channels(student: nn.Module, teacher: nn.Module, example: tuple[Tensor, ...]) -> _ChannelMatching:
    """Return the matched channels of both models; an empty matching if one of them cannot be traced."""
    try:
        student_groups, teacher_groups = _trace_groups(student, example), _trace_groups(teacher, example)
    except CompressionError:
        return _ChannelMatching()
    group_of_layer = {group.name: group for group in teacher_groups}
    group_of_layer |= {part.name: group for group in teacher_groups for part in group.slices if part.outputs}
    matching = _ChannelMatching()
    for group in student_groups:
        source_group = group_of_layer.get(group.name)
        selected = None if source_group is None else _select_channels(group, source_group)
        for part in group.slices:
            side = (part.name, part.outputs)
            channels = None
            if source_group is not None and selected is not None:
                channels = _match_slice(part, group, source_group, selected)
            if channels is None:
                matching.unmatched.add(side)
            else:
                source = matching.sources.setdefault(side, torch.full((count_channels(part.layer, part.outputs),), -1))
                source[list(part.indices)] = torch.tensor(channels)
    # A side that is matched only in part, such as one of two concatenated layers, cannot be inherited.
    matching.unmatched |= {side for side, source in matching.sources.items() if bool((source < 0).any())}
    return matching


def _trace_groups(model: nn.Module, example: tuple[Tensor, ...]) -> list[ChannelGroup]:
    """Return the channel groups of a model, which is not changed."""
    return ChannelGraph(model, example).groups


def _select_channels(group: ChannelGroup, source_group: ChannelGroup) -> list[int] | None:
    """Return the teacher's channels that the student inherits, or ``None`` if the student has more of them."""
    if group.channels > source_group.channels:
        return None
    scores = score_channels(source_group.slices, source_group.channels, CRITERIA["l2"], torch.Generator())
    ranking = scores.argsort(descending=True, stable=True)
    return sorted(ranking[: group.channels].tolist())


def _match_slice(
    part: LayerSlice, group: ChannelGroup, source_group: ChannelGroup, selected: list[int]
) -> list[int] | None:
    """Return the teacher's channel for each of the student's in one layer, or ``None`` if the group lacks the layer."""
    source_part = next(
        (other for other in source_group.slices if (other.name, other.outputs) == (part.name, part.outputs)), None
    )
    if source_part is None:
        return None
    indices_of_root: dict[int, list[int]] = {}
    for index, root in zip(source_part.indices, source_part.roots, strict=True):
        indices_of_root.setdefault(root, []).append(index)
    # A channel may occur several times in a layer, after a flatten for example: its occurrences match in order.
    occurrences: dict[int, int] = {}
    channels = []
    for root in part.roots:
        options = indices_of_root.get(selected[root], [])
        occurrence = occurrences.get(root, 0)
        if occurrence >= len(options):
            return None
        occurrences[root] = occurrence + 1
        channels.append(options[occurrence])
    return channels


def _resize_kernel(kernel: Tensor, shape: torch.Size) -> Tensor:
    """Return a kernel with its window cropped or padded around its center, ``[D, C, 5, 5] -> [D, C, 3, 3]``."""
    padding: list[int] = []
    # F.pad takes the last axis first, and a negative padding crops.
    for axis in range(kernel.dim() - 1, 1, -1):
        growth = shape[axis] - kernel.shape[axis]
        padding += [growth // 2, growth - growth // 2]
    return F.pad(kernel, padding)
