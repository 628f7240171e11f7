"""Depth pruning: whole blocks are dropped, those without which the loss rises least."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.core.knobs import FloatRange, knob
from autocompress.core.method import Context, MethodState, Recovery
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.allocation import nearest
from autocompress.prune.calibration import one_line, read, refuse_dead_model, refuse_empty_layers


@dataclass(frozen=True)
class DepthConfig(Recovery):
    """How many blocks go.

    Example:
        >>> DepthConfig(pruning_ratio=0.25).recovery_epochs
        3
    """

    label: ClassVar[str] = "prune.depth"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the blocks that keep their shape to drop")


class Dropped(nn.Identity):
    """Stands where a block was, and returns its first input."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return ``input``; masks and the like, which the block took beside it, are ignored."""
        return input


class Depth:
    """Drops residual blocks or transformer layers, those without which the calibration loss rises least.

    A block is a module with layers inside, a child of an ``nn.Sequential`` or ``nn.ModuleList``, that runs once and
    returns a tensor shaped like its first input. One block goes at a time, and what is left is measured again.
    At least one such block is kept. The report holds ``dropped`` (block to the rise of the loss, in order),
    ``blocks`` (all that could have gone) and ``sparsity`` (share of them that went).
    """

    name: ClassVar[str] = "depth"
    config = DepthConfig

    def is_identity(self, config: DepthConfig) -> bool:
        """Return whether nothing is dropped."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: DepthConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy without some of its blocks, and their names; ``model`` stays as it was.

        Raises:
            CompressionError: There is no block to spare, the loss cannot be measured or is not finite, or what
                would be left ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"dropped": []}, report={"sparsity": 0.0, "dropped": {}, "blocks": []})
        refuse_empty_layers(pruned)
        blocks = find_blocks(pruned, context.example)
        if len(blocks) < 2:
            only = f"'{blocks[0]}' is the only one" if blocks else "none"
            raise CompressionError(f"there is no block to spare: of those that keep their shape, {only} can go")
        before = read(pruned, context).loss
        number = min(max(nearest(config.pruning_ratio * len(blocks)), 1), len(blocks) - 1)
        dropped: dict[str, float] = {}
        for _ in range(number):
            rises = {}
            for name in blocks:
                if name not in dropped:
                    with _bypassed(pruned, name):
                        rises[name] = read(pruned, context).loss - before
            weakest = min(rises, key=lambda name: rises[name])
            _replace(pruned, weakest, Dropped())
            dropped[weakest] = rises[weakest]
        pruned.eval()
        refuse_dead_model(pruned, context)
        report = {"sparsity": number / len(blocks), "dropped": dropped, "blocks": blocks}
        return pruned, MethodState(history={"dropped": list(dropped)}, report=report)

    def restore(self, model: nn.Module, config: DepthConfig, state: MethodState) -> nn.Module:
        """Drop the same blocks of a fresh model, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        names = state.history.get("dropped")
        if not isinstance(names, list):
            raise CompressionError("the pruning history has no list of dropped blocks")
        known = dict(model.named_modules())
        for name in names:
            if not isinstance(name, str) or not name or name not in known:
                raise CompressionError(f"the pruning history does not fit the model: it has no block '{name}'")
            _replace(model, name, Dropped())
        return model.eval()


@torch.no_grad()
def find_blocks(model: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Return the names of the blocks that can be dropped, in the order of the model.

    Of blocks within blocks, the inner ones are meant where the outer is a mere chain (a stage), and the outer one
    where it has a forward of its own (a residual block).

    Raises:
        CompressionError: The model fails on its example.
    """
    kept = _keep_their_shape(model, example)
    found: list[str] = []

    def walk(module: nn.Module, prefix: str) -> list[str]:
        inside: list[str] = []
        for key, child in module.named_children():
            name = f"{prefix}.{key}" if prefix else key
            block = isinstance(module, nn.Sequential | nn.ModuleList) and name in kept
            deeper = [] if block and not isinstance(child, nn.Sequential) else walk(child, name)
            inside += deeper or ([name] if block else [])
        return inside

    for name in walk(model, ""):
        with _bypassed(model, name):
            try:
                model(*example)
            except Exception:  # A model may look into its own blocks, in any way; such a block has to stay.
                continue
        found.append(name)
    return found


def _keep_their_shape(model: nn.Module, example: tuple[Tensor, ...]) -> set[str]:
    names = {
        module: name
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters()) and any(module.children())
    }
    calls: dict[str, list[bool]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.setdefault(names[module], []).append(bool(inputs) and _alike(inputs[0], output))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        model(*example)
    except Exception as error:
        raise CompressionError(f"{type(model).__name__} fails on its example: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, same in calls.items() if same == [True]}


def _alike(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.shape == other.shape and one.dtype == other.dtype


@contextmanager
def _bypassed(model: nn.Module, name: str) -> Iterator[None]:
    block = model.get_submodule(name)
    _replace(model, name, Dropped())
    try:
        yield
    finally:
        _replace(model, name, block)


def _replace(model: nn.Module, name: str, block: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, block)


PRUNE.add(Depth.name, Depth())
