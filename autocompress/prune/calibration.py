"""What a method learns about a model from the calibration split: its loss, its accuracy, its gradients."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.prune.batch_norm import reestimate_batch_norm
from autocompress.prune.importance import WEIGHTED

Labelled = tuple[tuple[Tensor, ...], Mapping[str, Tensor]]

# Enough to rank layers and weights; more would only cost time.
EXAMPLES = 512
GRADIENTS = 256
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Reading:
    """How well a model does on the calibration split.

    Attributes:
        loss: The task's loss, averaged over the examples.
        accuracy: Head name to the share of examples whose class is predicted, for the heads that name a class.
    """

    loss: float
    accuracy: Mapping[str, float]


def labelled(context: Context, size: int, limit: int = EXAMPLES) -> list[Labelled]:
    """Return inputs and targets of the calibration split, in batches of at most ``size``, ``limit`` examples in all.

    Raises:
        CompressionError: There is no loss, or there are no calibration batches with targets.
    """
    _loss_of(context)
    found: list[Labelled] = []
    left = limit
    for inputs, targets in zip(context.calibration, context.targets, strict=False):
        for start in range(0, min(len(inputs[0]), left), size):
            rows = slice(start, min(start + size, left))
            found.append(
                (tuple(tensor[rows] for tensor in inputs), {head: target[rows] for head, target in targets.items()})
            )
        left -= min(len(inputs[0]), left)
    if not found:
        raise CompressionError("a measured criterion needs calibration batches with their targets")
    return found


@torch.no_grad()
def read(model: nn.Module, context: Context) -> Reading:
    """Measure a model on the calibration split, in the mode that it is in.

    Raises:
        CompressionError: The loss is missing or not finite, or there are no targets.
    """
    measure = _loss_of(context)
    loss, examples = 0.0, 0
    hits: dict[str, int] = {}
    for inputs, targets in labelled(context, EXAMPLES):
        output, count = model(*inputs), len(inputs[0])
        loss += float(measure(output, targets)) * count
        examples += count
        for head, logits in _classes(output, targets).items():
            hits[head] = hits.get(head, 0) + int((logits.argmax(1) == targets[head]).sum())
    if not torch.isfinite(torch.tensor(loss)):
        raise CompressionError(f"the loss of {type(model).__name__} on the calibration split is {loss}")
    return Reading(loss / examples, {head: count / examples for head, count in hits.items()})


@contextmanager
def gradients(model: nn.Module, context: Context) -> Iterator[None]:
    """Give every parameter a gradient in ``grad`` while the body runs, and none afterwards.

    It is the root of the mean square over single examples of the calibration split, each example's whole gradient
    scaled to length 1. At a minimum the mean itself is zero for every weight, and an example that the model is sure
    of, which is nearly every one, would count for nothing beside a few odd ones.

    Raises:
        CompressionError: A loss, targets or calibration batches are missing, or a gradient is not finite.
    """
    measure = _loss_of(context)
    examples = labelled(context, 1, GRADIENTS)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with trainable(model), torch.enable_grad():
        for inputs, targets in examples:
            model.zero_grad()
            try:
                measure(model(*inputs), targets).backward()
            except RuntimeError as error:
                raise CompressionError(f"{type(model).__name__} passes no gradient back: {one_line(error)}") from error
            found = {name: p.grad.square() for name, p in parameters.items() if p.grad is not None}
            length = torch.stack([square.double().sum() for square in found.values()]).sum()
            if not bool(length.isfinite()):
                raise CompressionError(
                    f"{type(model).__name__} has a gradient on the calibration split that is not finite"
                )
            for name, square in found.items():
                squares[name] += square / length.clamp_min(TINY)
    for name, parameter in parameters.items():
        parameter.grad = squares[name].div(len(examples)).sqrt()
    try:
        yield
    finally:
        model.zero_grad()


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Let gradients reach every parameter while the body runs, frozen ones too; the body may replace parameters."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)


def refuse_empty_layers(model: nn.Module) -> None:
    """Refuse a model with a layer that has no channels.

    Raises:
        CompressionError: There is one.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, WEIGHTED) and isinstance(weight, Tensor) and weight.numel() == 0:
            raise CompressionError(f"layer '{name}' has no channels: a model that ignores its input is no model")


@torch.no_grad()
def refuse_dead_model(model: nn.Module, context: Context) -> None:
    """Refuse a model that answers every calibration example alike, once its batch norms are measured again.

    A context with fewer than two calibration examples shows nothing, and everything passes.

    Raises:
        CompressionError: It does, or its output is not finite.
    """
    if max((len(inputs[0]) for inputs in context.calibration), default=0) < 2:
        return
    measured = copy.deepcopy(model)
    reestimate_batch_norm(measured, context.calibration)
    answers = zip(*(tensors(measured(*inputs)) for inputs in context.calibration), strict=True)
    outputs = [torch.cat(parts) for parts in answers]
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise CompressionError("the pruned model's output is not finite")
    if all(bool((output - output[:1]).abs().max() <= 1e-6 * output.abs().max()) for output in outputs):
        raise CompressionError("the pruned model ignores its input: no weight path is left; lower pruning_ratio")


def tensors(output: Any) -> list[Tensor]:
    """Return every tensor of a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def one_line(error: Exception) -> str:
    """Return an error's type and message, in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _loss_of(context: Context) -> Any:
    if context.loss is None:
        raise CompressionError("a measured criterion needs the task's loss, and there is none")
    return context.loss


def _classes(output: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the logits ``{head: [B, C]}`` of the heads whose targets are classes ``[B]``."""
    heads = {next(iter(targets)): output} if isinstance(output, Tensor) and len(targets) == 1 else output
    if not isinstance(heads, Mapping):
        return {}
    return {
        head: heads[head]
        for head, target in targets.items()
        if head in heads and heads[head].dim() == 2 and target.dim() == 1 and not target.is_floating_point()
    }
