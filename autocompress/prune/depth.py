"""Depth pruning: the blocks with the smallest rise of the loss are dropped."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState, Recovery, match_layers
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import (
    check_layers_not_empty,
    check_output_varies,
    format_error,
    measure_calibration,
)
from autocompress.prune.schedule import round_half_up


@dataclass(frozen=True)
class DepthConfig(Recovery):
    """The share of blocks to drop.

    Example:
        >>> DepthConfig(pruning_ratio=0.25).recovery_epochs
        3
    """

    label: ClassVar[str] = "prune.depth"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the shape-preserving blocks to drop")
    selection: str = knob(
        "loss",
        Choice(("loss", "spread")),
        "which blocks go: those with the smallest rise of the loss, or evenly spread ones, so that every k-th stays",
    )


class DroppedBlock(nn.Identity):
    """Replacement of a dropped block; it returns its first input."""

    def forward(self, input: Tensor, *_: object, **__: object) -> Tensor:
        """Return ``input``; further arguments of the block, such as masks, are ignored."""
        return input


class Depth:
    """Drops residual blocks or transformer layers: those with the smallest rise of the loss, or evenly spread ones.

    A block is a module with layers inside, a child of an ``nn.Sequential`` or ``nn.ModuleList``, that runs once and
    returns a tensor shaped like its first input. Blocks are dropped one at a time, and the others are measured again
    after each. At least one block remains. The report holds ``dropped`` (block to the rise of the loss, in order),
    ``blocks`` (all droppable blocks) and ``sparsity`` (dropped share of them).
    """

    name: ClassVar[str] = "depth"
    config = DepthConfig

    def is_identity(self, config: DepthConfig) -> bool:
        """Return whether the config drops nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: DepthConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy without some of its blocks, and their names; ``model`` is not changed.

        Raises:
            CompressionError: No block can be dropped, the loss cannot be measured or is not finite, or the pruned
                model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"dropped": []}, report={"sparsity": 0.0, "dropped": {}, "blocks": []})
        check_layers_not_empty(pruned)
        protected = match_layers(pruned, context.ignore)
        # A block goes with all its layers, so one protected layer keeps it.
        blocks = [
            block
            for block in find_blocks(pruned, context.example)
            if not any(name == block or name.startswith(f"{block}.") for name in protected)
        ]
        if len(blocks) < 2:
            reason = f"'{blocks[0]}' is the only shape-preserving block" if blocks else "none preserves its shape"
            raise CompressionError(f"no block can be dropped: {reason}")
        # At least one block is dropped, and at least one remains.
        drop_count = min(max(round_half_up(config.pruning_ratio * len(blocks)), 1), len(blocks) - 1)
        loss_before = measure_calibration(pruned, context).loss
        dropped: dict[str, float] = {}
        # Greedy: two blocks that are each dispensable may not be so together.
        spread = [] if config.selection == "loss" else list_spread_blocks(blocks, drop_count)
        for index in range(drop_count):
            rises = {}
            for name in spread[index : index + 1] or [name for name in blocks if name not in dropped]:
                with _bypass_block(pruned, name):
                    rises[name] = measure_calibration(pruned, context).loss - loss_before
            least_needed = min(rises, key=lambda name: rises[name])
            _replace_block(pruned, least_needed, DroppedBlock())
            dropped[least_needed] = rises[least_needed]
        pruned.eval()
        check_output_varies(pruned, context)
        report = {"sparsity": drop_count / len(blocks), "dropped": dropped, "blocks": blocks}
        return pruned, MethodState(history={"dropped": list(dropped)}, report=report)

    def restore(self, model: nn.Module, config: DepthConfig, state: MethodState) -> nn.Module:
        """Drop the same blocks of a freshly built model, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        names = state.history.get("dropped")
        if not isinstance(names, list):
            raise CompressionError("the pruning history has no list of dropped blocks")
        modules = dict(model.named_modules())
        if len(names) > len(modules):
            raise CompressionError(f"the pruning history names {len(names)} blocks of {len(modules)} modules")
        for name in names:
            if not isinstance(name, str) or not name or name not in modules:
                raise CompressionError(f"the pruning history does not fit the model: it has no block '{name}'")
            _replace_block(model, name, DroppedBlock())
        return model.eval()


def list_spread_blocks(blocks: Sequence[str], count: int) -> list[str]:
    """Return the blocks to drop so that those which remain are evenly spread, and the last one is among them.

    With half of the blocks to drop, every second one remains, as in patient distillation (Sun et al. 2019,
    arXiv:1908.09355).

    Args:
        blocks: Names of the blocks in their order.
        count: Number of blocks to drop, smaller than that of the blocks.

    Example:
        >>> list_spread_blocks(["0", "1", "2", "3", "4", "5"], 3)
        ['0', '2', '4']
    """
    remaining = len(blocks) - count
    # The last block of each of `remaining` runs of nearly equal length stays.
    stay = {-(-(index + 1) * len(blocks) // remaining) - 1 for index in range(remaining)}
    return [name for position, name in enumerate(blocks) if position not in stay]


@torch.no_grad()
def find_blocks(model: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Return the names of the blocks that can be dropped, in the order of the model.

    Of nested blocks, the inner ones count if the outer one is a plain ``nn.Sequential`` (a stage), and the outer one
    if it has its own ``forward`` (a residual block).

    Raises:
        CompressionError: The model fails on its example.
    """
    candidates = _shape_preserving_blocks(model, example)
    droppable: list[str] = []

    def collect_blocks(module: nn.Module, prefix: str) -> list[str]:
        names: list[str] = []
        for key, child in module.named_children():
            name = f"{prefix}.{key}" if prefix else key
            is_candidate = isinstance(module, nn.Sequential | nn.ModuleList) and name in candidates
            nested = [] if is_candidate and not isinstance(child, nn.Sequential) else collect_blocks(child, name)
            names += nested or ([name] if is_candidate else [])
        return names

    for name in collect_blocks(model, ""):
        with _bypass_block(model, name):
            try:
                model(*example)
            except Exception:  # The model may use attributes of its own blocks; such a block cannot be dropped.
                continue
        droppable.append(name)
    return droppable


def _shape_preserving_blocks(model: nn.Module, example: tuple[Tensor, ...]) -> set[str]:
    """Return the names of modules with layers inside that run once and return a tensor shaped like their input."""
    names = {
        module: name
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters()) and any(module.children())
    }
    calls: dict[str, list[bool]] = {}

    def record_call(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.setdefault(names[module], []).append(bool(inputs) and _have_same_shape(inputs[0], output))

    handles = [module.register_forward_hook(record_call) for module in names]
    try:
        model(*example)
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} fails on its example: {format_error(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    # A block that runs several times, such as a shared one, is not droppable.
    return {name for name, same in calls.items() if same == [True]}


def _have_same_shape(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype


@contextmanager
def _bypass_block(model: nn.Module, name: str) -> Iterator[None]:
    """Drop a block while the body runs."""
    block = model.get_submodule(name)
    _replace_block(model, name, DroppedBlock())
    try:
        yield
    finally:
        _replace_block(model, name, block)


def _replace_block(model: nn.Module, name: str, block: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, block)


PRUNE.add(Depth.name, Depth())
