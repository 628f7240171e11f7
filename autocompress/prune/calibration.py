"""A model on the calibration split: loss, accuracy and gradients measured, batch-norm statistics estimated again."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.prune.importance import WEIGHTED_LAYERS

LabelledBatch = tuple[tuple[Tensor, ...], Mapping[str, Tensor]]
"""Inputs and targets of one batch."""

# Ranking layers and weights needs no exact scores, so a part of the calibration split is enough.
MAX_EXAMPLES = 512
MAX_GRADIENT_EXAMPLES = 256
# Smallest normal float32: the divisor of a gradient that is zero everywhere.
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class CalibrationMetrics:
    """Loss and accuracy of a model on the calibration split.

    Attributes:
        loss: The task's loss, averaged over the examples.
        accuracy: Head name to the share of correctly classified examples, for classification heads.
    """

    loss: float
    accuracy: Mapping[str, float]


def calibration_batches(context: Context, size: int, limit: int = MAX_EXAMPLES) -> list[LabelledBatch]:
    """Return inputs and targets of the calibration split, in batches of ``size``, at most ``limit`` examples in total.

    Raises:
        CompressionError: The context has no loss, or no calibration batches with targets.
    """
    _require_loss(context)
    batches: list[LabelledBatch] = []
    remaining = limit
    # Without targets there are no pairs, which is reported below.
    for inputs, targets in zip(context.calibration, context.targets, strict=False):
        for start in range(0, min(len(inputs[0]), remaining), size):
            rows = slice(start, min(start + size, remaining))
            batches.append(
                (tuple(tensor[rows] for tensor in inputs), {head: target[rows] for head, target in targets.items()})
            )
        remaining -= min(len(inputs[0]), remaining)
    if not batches:
        raise CompressionError("a criterion measured on data needs calibration batches with their targets")
    return batches


@torch.no_grad()
def measure_calibration(model: nn.Module, context: Context) -> CalibrationMetrics:
    """Return loss and accuracy of a model on the calibration split; the model keeps its mode.

    Raises:
        CompressionError: The loss is missing or not finite, or the targets are missing.
    """
    loss_function = _require_loss(context)
    total_loss, examples = 0.0, 0
    hits: dict[str, int] = {}
    for inputs, targets in calibration_batches(context, MAX_EXAMPLES):
        output, count = model(*inputs), len(inputs[0])
        # Batches may differ in size, so their losses are weighted by the number of examples.
        total_loss += float(loss_function(output, targets)) * count
        examples += count
        for head, logits in _class_logits(output, targets).items():
            hits[head] = hits.get(head, 0) + int((logits.argmax(1) == targets[head]).sum())
    if not torch.isfinite(torch.tensor(total_loss)):
        raise CompressionError(f"the loss of {type(model).__name__} on the calibration split is {total_loss}")
    return CalibrationMetrics(total_loss / examples, {head: count / examples for head, count in hits.items()})


@contextmanager
def calibration_gradients(model: nn.Module, context: Context) -> Iterator[None]:
    """Give every parameter a gradient in ``grad`` while the body runs, and none afterwards.

    The gradient is the root mean square over single examples of the calibration split, with the gradient of each
    example scaled to length 1. In a trained model the mean gradient is close to zero for every weight, and without the
    scaling a few examples with a large loss would outweigh all that the model classifies with confidence.

    Raises:
        CompressionError: A loss, targets or calibration batches are missing, or a gradient is not finite.
    """
    loss_function = _require_loss(context)
    examples = calibration_batches(context, 1, MAX_GRADIENT_EXAMPLES)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with enable_gradients(model), torch.enable_grad():
        for inputs, targets in examples:
            model.zero_grad()
            try:
                loss_function(model(*inputs), targets).backward()
            except RuntimeError as error:  # An output detached from the weights, for example.
                raise CompressionError(
                    f"{type(model).__name__} cannot be differentiated: {format_error(error)}"
                ) from error
            gradient_squares = {name: p.grad.square() for name, p in parameters.items() if p.grad is not None}
            # Summed in double precision: models have millions of small squares.
            squared_norm = torch.stack([square.double().sum() for square in gradient_squares.values()]).sum()
            if not bool(squared_norm.isfinite()):
                raise CompressionError(
                    f"{type(model).__name__} has a gradient on the calibration split that is not finite"
                )
            for name, square in gradient_squares.items():
                squares[name] += square / squared_norm.clamp_min(TINY)
    for name, parameter in parameters.items():
        parameter.grad = squares[name].div(len(examples)).sqrt()
    try:
        yield
    finally:
        model.zero_grad()


@contextmanager
def enable_gradients(model: nn.Module) -> Iterator[None]:
    """Make every parameter require a gradient while the body runs; frozen ones are frozen again afterwards.

    Parameters are looked up by name afterwards, so the body may replace them.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)


def check_layers_not_empty(model: nn.Module) -> None:
    """Check that every layer with weights has channels.

    Raises:
        CompressionError: A layer has none.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, WEIGHTED_LAYERS) and isinstance(weight, Tensor) and weight.numel() == 0:
            raise CompressionError(f"layer '{name}' has no channels, so the model ignores its input")


@torch.no_grad()
def check_output_varies(model: nn.Module, context: Context) -> None:
    """Check that the output of a model differs between calibration examples, after batch-norm re-estimation.

    A context with fewer than two calibration examples passes every model.

    Raises:
        CompressionError: The output is the same for all examples, or it is not finite.
    """
    if max((len(inputs[0]) for inputs in context.calibration), default=0) < 2:
        return
    reestimated = copy.deepcopy(model)
    reestimate_batch_norm(reestimated, context.calibration)
    outputs_of_batches = zip(*(flatten_outputs(reestimated(*inputs)) for inputs in context.calibration), strict=True)
    outputs = [torch.cat(parts) for parts in outputs_of_batches]
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise CompressionError("the pruned model's output is not finite")
    # Relative to the size of the output, so that rounding differences do not count as a reaction to the input.
    if all(bool((output - output[:1]).abs().max() <= 1e-6 * output.abs().max()) for output in outputs):
        raise CompressionError("the pruned model ignores its input: no weight path is left; lower pruning_ratio")


def flatten_outputs(output: object) -> list[Tensor]:
    """Return every tensor of a model's output, nested or not, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in flatten_outputs(part)]


def make_noise(example: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Return noise in the shape of an example; tensors of integers, such as tokens, stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor
        for tensor in example
    )


def format_error(error: Exception) -> str:
    """Return an error's type and message, in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _require_loss(context: Context) -> Callable[[object, Mapping[str, Tensor]], Tensor]:
    if context.loss is None:
        raise CompressionError("a criterion measured on data needs the task's loss, and the context has none")
    return context.loss


def _class_logits(output: object, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the logits ``{head: [B, C]}`` of the heads whose targets are classes ``[B]``."""
    heads = {next(iter(targets)): output} if isinstance(output, Tensor) and len(targets) == 1 else output
    if not isinstance(heads, Mapping):
        return {}
    return {
        head: heads[head]
        for head, target in targets.items()
        if head in heads and heads[head].dim() == 2 and target.dim() == 1 and not target.is_floating_point()
    }


def reestimate_batch_norm(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Replace every batch-norm's running statistics by their plain average over ``batches``, in place.

    Pruning and quantization shift the inputs of each layer, and the statistics of the original model no longer
    fit. No weight changes; dropout stays off; every module keeps its training flag and its momentum. A
    batch of one example has no variance and is skipped. A model without batch norm is not changed.

    Args:
        model: The model to measure.
        batches: Positional arguments of the model, ``([B, ...],)`` each.

    Raises:
        CompressionError: No batch holds two examples.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    usable = [batch for batch in batches if batch[0].shape[0] > 1]
    if not usable:
        raise CompressionError("batch-norm statistics need a calibration batch of at least two examples")
    training_flags = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    # Only the batch norms are set to training mode: dropout would distort the statistics.
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch reads None as a cumulative average over all batches
            norm.train()
        with torch.no_grad():
            for batch in usable:
                model(*batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, flag in training_flags:
            module.training = flag
