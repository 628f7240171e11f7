"""Weights of a trained model given to a smaller one of the same family: a student starts where its teacher stands.

Layers are matched by name. Where a group of coupled channels is narrower in the student, it takes the teacher's most
important ones, the same ones in every layer that they run through. It works on any two modules of one family.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from autocompress.errors import CompressionError
from autocompress.prune.calibration import trainable
from autocompress.prune.channels import Channels, Group, size_of
from autocompress.prune.importance import CRITERIA, Slice, channel_scores

Side = tuple[str, bool]
"""A layer's name, and whether its output channels are meant."""


@dataclass(frozen=True)
class Inheritance:
    """What a student took over.

    Attributes:
        tensors: Names in its ``state_dict`` that were filled.
        share: Share of its parameters that they hold.
    """

    tensors: tuple[str, ...]
    share: float


def inherit(student: nn.Module, teacher: nn.Module, example: tuple[Tensor, ...]) -> Inheritance:
    """Fill a student's weights from its teacher where their shapes allow it, in place.

    A kernel of another size is cut or padded around its middle. Layers that only the student has, and channels that
    lead elsewhere than in the teacher, keep what they are. Where either cannot be traced, tensors of equal shape are
    taken over. A layer whose weight cannot be filled keeps its bias, too. The teacher stays as it was.

    Args:
        student: The model to fill.
        teacher: The trained model.
        example: A batch of one, as positional arguments of both.
    """
    matching = _match(student, teacher, example)
    ours, theirs = student.state_dict(), teacher.state_dict()
    modules = dict(student.named_modules())
    found = {}
    for name, tensor in ours.items():
        if name in theirs and tensor.is_floating_point():
            taken = matching.taken(name.rpartition(".")[0], modules, tensor, theirs[name])
            if taken is not None:
                found[name] = taken
    # A bias without its weights would answer as the teacher does on average, and leave little to learn.
    filled = [name for name in found if _weight(name) in found or _weight(name) not in ours]
    with torch.no_grad():
        for name in filled:
            ours[name].copy_(found[name])
    sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
    share = sum(sizes.get(name, 0) for name in filled) / max(sum(sizes.values()), 1)
    return Inheritance(tuple(filled), share)


def _weight(name: str) -> str:
    """Return the name of the weight of the layer that a tensor belongs to."""
    return f"{name.rpartition('.')[0]}.weight".lstrip(".")


@dataclass
class _Matching:
    """Where the channels of each side of each layer of the student come from.

    Attributes:
        sources: Side to the teacher's channel for each of the student's; absent sides are matched one to one.
        foreign: Sides that carry something else than in the teacher.
    """

    sources: dict[Side, Tensor] = field(default_factory=dict)
    foreign: set[Side] = field(default_factory=set)

    def taken(self, layer: str, modules: dict[str, nn.Module], ours: Tensor, theirs: Tensor) -> Tensor | None:
        """Return the part of a teacher's tensor that fits the student's, or ``None``."""
        if ours.dim() != theirs.dim():
            return None
        module = modules.get(layer)
        # Axis 0 holds outputs and axis 1 inputs, but for transposed convolutions.
        sides = [(layer, True), (layer, False)][: ours.dim()]
        if ours.dim() > 1 and getattr(module, "transposed", False):
            sides.reverse()
        for axis, side in enumerate(sides):
            if side in self.foreign:
                return None
            source = self.sources.get(side)
            if source is not None and ours.shape[axis] <= len(source) and theirs.shape[axis] > 1:
                # A grouped convolution names the inputs of one block alone: all blocks take the same ones.
                theirs = theirs.index_select(axis, source[: ours.shape[axis]].to(theirs.device))
        if isinstance(module, _ConvNd):
            theirs = _resized(theirs, ours.shape)
        return theirs if theirs.shape == ours.shape else None


def _match(student: nn.Module, teacher: nn.Module, example: tuple[Tensor, ...]) -> _Matching:
    """Match the channels of both models; nothing where one of them cannot be traced."""
    try:
        ours, theirs = _groups(student, example), _groups(teacher, example)
    except CompressionError:
        return _Matching()
    homes = {part.name: group for group in theirs for part in group.slices if part.outputs}
    matching = _Matching()
    for group in ours:
        home = homes.get(group.name)
        kept = None if home is None else _kept(group, home)
        for part in group.slices:
            side = (part.name, part.outputs)
            found = None if home is None or kept is None else _channels(part, group, home, kept)
            if found is None:
                matching.foreign.add(side)
            else:
                source = matching.sources.setdefault(side, torch.full((size_of(part.layer, part.outputs),), -1))
                source[list(part.indices)] = torch.tensor(found)
    # A side of which only a part is known (one of two concatenated layers) cannot be filled.
    matching.foreign |= {side for side, source in matching.sources.items() if bool((source < 0).any())}
    return matching


def _groups(model: nn.Module, example: tuple[Tensor, ...]) -> list[Group]:
    traced = copy.deepcopy(model).eval()
    with trainable(traced):
        return Channels(traced, example).groups


def _kept(group: Group, home: Group) -> list[int] | None:
    """Return which of the teacher's channels the student takes, or ``None`` if it has more."""
    if group.repeats != home.repeats or group.channels > home.channels:
        return None
    scores = channel_scores(home.slices, home.channels * home.repeats, CRITERIA["l2"], torch.Generator())
    best = scores.view(home.repeats, home.channels).mean(0).argsort(descending=True, stable=True)
    return sorted(best[: group.channels].tolist())


def _channels(part: Slice, group: Group, home: Group, kept: list[int]) -> list[int] | None:
    """Return the teacher's channel for each of the student's in one layer, or ``None`` if that layer is elsewhere."""
    twin = next((other for other in home.slices if (other.name, other.outputs) == (part.name, part.outputs)), None)
    if twin is None:
        return None
    places: dict[int, list[int]] = {}
    for index, root in zip(twin.indices, twin.roots, strict=True):
        places.setdefault(root, []).append(index)
    used: dict[int, int] = {}
    found = []
    for root in part.roots:
        block, choice = divmod(root, group.channels)
        options = places.get(block * home.channels + kept[choice], [])
        turn = used.get(root, 0)
        if turn >= len(options):
            return None
        used[root] = turn + 1
        found.append(options[turn])
    return found


def _resized(kernel: Tensor, shape: torch.Size) -> Tensor:
    """Return a kernel whose window is cut or padded around its middle, ``[D, C, 5, 5] -> [D, C, 3, 3]``."""
    padding: list[int] = []
    for axis in range(kernel.dim() - 1, 1, -1):
        more = shape[axis] - kernel.shape[axis]
        padding += [more // 2, more - more // 2]
    return F.pad(kernel, padding)
