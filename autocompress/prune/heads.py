"""Head pruning: attention heads that carry little are removed with their queries, keys, values and outputs."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autocompress.core.knobs import Choice, FloatRange, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import (
    MAX_GRADIENT_EXAMPLES,
    TINY,
    calibration_batches,
    check_layers_not_empty,
    check_output_varies,
    enable_gradients,
    format_error,
)
from autocompress.prune.schedule import GradualConfig, select_least_important

# Scores need no exact statistics, and the attention of a batch takes the square of its length.
BATCH = 32


@runtime_checkable
class MultiHeadAttention(Protocol):
    """An attention layer whose heads can be removed.

    ``query``, ``key`` and ``value`` are linear layers with ``heads * head_size`` outputs, those of a head side by side;
    ``out`` is a linear layer that reads the same numbers; ``probabilities`` is a module that returns the attention
    ``[B, H, T, T]``.
    """

    heads: int
    head_size: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    probabilities: nn.Module


@dataclass(frozen=True)
class HeadsConfig(GradualConfig):
    """The share of the heads to remove and what makes a head important.

    Example:
        >>> HeadsConfig(pruning_ratio=0.25).criterion
        'gradient'
    """

    label: ClassVar[str] = "prune.heads"

    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the attention heads to remove")
    criterion: str = knob(
        "gradient",
        Choice(("gradient", "confidence", "random")),
        "what makes a head important: the change of the loss without it, or its largest attention to a token",
    )
    scope: str = knob(
        "global", Choice(("uniform", "global")), "whether the ratio applies to each layer or to all layers together"
    )


class Heads:
    """Removes the attention heads with the smallest importance; every layer keeps at least one head.

    Known are attention layers of the form of :class:`MultiHeadAttention`, such as those of the student ``transformer``.
    The report holds ``sparsity`` (removed share of all heads), ``heads`` (layer to its number of heads before and
    after) and ``importance`` (one row per step and layer: the score of each head before the step).
    """

    name: ClassVar[str] = "heads"
    config = HeadsConfig

    def is_identity(self, config: HeadsConfig) -> bool:
        """Return whether the config removes nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: HeadsConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy with fewer heads and a record of the removal; ``model`` is not changed.

        Raises:
            CompressionError: The model has no attention layer with several heads, its loss cannot be differentiated, or
                the pruned model ignores its input.
        """
        pruned = copy.deepcopy(model).eval()
        if self.is_identity(config):
            return pruned, MethodState(history={"heads": []}, report={"sparsity": 0.0, "heads": {}, "importance": []})
        check_layers_not_empty(pruned)
        layers = find_attention(pruned)
        before = {name: layer.heads for name, layer in layers.items()}
        if not any(count > 1 for count in before.values()):
            reason = "each attention layer has one" if before else "the model has no attention layer of a known form"
            raise CompressionError(f"no attention head can be removed: {reason}")
        generator = torch.Generator().manual_seed(context.seed)
        history: list[list[object]] = []
        rows: list[dict[str, object]] = []
        for step, ratio in enumerate(config.step_ratios(config.pruning_ratio)):
            # Recovery after the last step is left to the pipeline.
            if step:
                config.train_between_steps(pruned, context)
            scores = _CRITERIA[config.criterion](pruned, layers, context, generator)
            selected = select_least_important(
                list(scores.values()),
                ratio,
                pooled=config.scope == "global",
                removed_before=[before[name] - layer.heads for name, layer in layers.items()],
            )
            rows += [{"step": step + 1, "layer": name, "scores": score.tolist()} for name, score in scores.items()]
            for (name, layer), heads in zip(layers.items(), selected, strict=True):
                if heads:
                    remove_heads(layer, heads)
                    history.append([name, heads])
        check_output_varies(pruned, context)
        after = {name: layer.heads for name, layer in layers.items()}
        report = {
            "sparsity": 1 - sum(after.values()) / sum(before.values()),
            "heads": {name: [before[name], after[name]] for name in before},
            "importance": rows,
        }
        return pruned.eval(), MethodState(history={"heads": history}, report=report)

    def restore(self, model: nn.Module, config: HeadsConfig, state: MethodState) -> nn.Module:
        """Remove the same heads from a freshly built model, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        entries = state.history.get("heads")
        if not isinstance(entries, list):
            raise CompressionError("the pruning history has no list of removed heads")
        layers = find_attention(model)
        for entry in entries:
            try:
                name, heads = entry
                layer = layers[name]
                fits = 0 < len(set(heads)) < layer.heads and all(0 <= head < layer.heads for head in heads)
            except (KeyError, TypeError, ValueError) as error:
                raise CompressionError(f"the pruning history does not fit the model: {format_error(error)}") from error
            if not fits:
                raise CompressionError(f"the pruning history does not fit '{name}', which has {layer.heads} heads")
            remove_heads(layer, heads)
        return model.eval()


def find_attention(model: nn.Module) -> dict[str, MultiHeadAttention]:
    """Return the attention layers whose heads can be removed, by name.

    Example:
        >>> find_attention(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MultiHeadAttention) and _has_head_layers(module)
    }


def _has_head_layers(layer: MultiHeadAttention) -> bool:
    size = layer.heads * layer.head_size
    readers = (layer.query, layer.key, layer.value)
    return (
        all(isinstance(part, nn.Linear) for part in (*readers, layer.out))
        and all(part.out_features == size for part in readers)
        and layer.out.in_features == size
    )


@torch.no_grad()
def remove_heads(layer: MultiHeadAttention, heads: Sequence[int]) -> None:
    """Remove heads from an attention layer, in place.

    Args:
        layer: The layer.
        heads: Indices of the heads; at least one other head remains.
    """
    # The outputs of a head lie side by side in queries, keys and values.
    numbers = torch.arange(layer.heads * layer.head_size).view(layer.heads, layer.head_size)
    remaining = numbers[[head for head in range(layer.heads) if head not in set(heads)]].flatten()
    for part in (layer.query, layer.key, layer.value):
        part.weight = _select(part.weight, remaining, axis=0)
        if part.bias is not None:
            part.bias = _select(part.bias, remaining, axis=0)
        part.out_features = len(remaining)
    layer.out.weight = _select(layer.out.weight, remaining, axis=1)
    layer.out.in_features = len(remaining)
    layer.heads = len(remaining) // layer.head_size


def _select(parameter: Tensor, indices: Tensor, axis: int) -> nn.Parameter:
    selected = parameter.index_select(axis, indices.to(parameter.device))
    return nn.Parameter(selected, requires_grad=parameter.requires_grad)


Layers = Mapping[str, MultiHeadAttention]


def score_by_gradient(
    model: nn.Module, layers: Layers, context: Context, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the expected change of the loss when a head is switched off, layer to ``[H]``.

    The first-order change with the factor of a head's output, ``E_x |A_h(x) dL/dA_h(x)|``, scaled to length 1 in each
    layer (Michel et al. 2019, arXiv:1905.10650, equation 2 and section 3.3).

    Raises:
        CompressionError: The loss or its targets are missing, or the loss cannot be differentiated or is not finite.
    """
    batches = calibration_batches(context, BATCH, MAX_GRADIENT_EXAMPLES)
    assert context.loss is not None
    totals = {name: torch.zeros(layer.heads, dtype=torch.float64) for name, layer in layers.items()}
    with enable_gradients(model), torch.enable_grad():
        for inputs, targets in batches:
            with _record_inputs({name: layer.out for name, layer in layers.items()}) as outputs_of_heads:
                loss = context.loss(model(*inputs), targets)
            values = [outputs_of_heads[name] for name in layers]
            try:
                gradients = torch.autograd.grad(loss, values)
            except RuntimeError as error:  # An output detached from the weights, for example.
                raise CompressionError(
                    f"{type(model).__name__} cannot be differentiated: {format_error(error)}"
                ) from error
            for (name, layer), value, gradient in zip(layers.items(), values, gradients, strict=True):
                # [B, T, H d] -> [B, T, H, d], summed over positions and numbers of each example.
                change = (value * gradient).detach().double().unflatten(2, (layer.heads, -1)).sum((1, 3))
                # The loss is a mean over the batch; the change of one example is that of its own loss.
                totals[name] += len(inputs[0]) * change.abs().sum(0).cpu()
    return {name: _check_finite(name, total / total.norm().clamp_min(TINY)) for name, total in totals.items()}


@torch.no_grad()
def score_by_confidence(
    model: nn.Module, layers: Layers, context: Context, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the largest attention of a head to one token, averaged over all tokens, layer to ``[H]``.

    A head that spreads its attention evenly over a text passes on the mean of any text (confidence of Voita et al.
    2019, arXiv:1905.09418, section 4). Padding has no attention and does not count.

    Raises:
        CompressionError: The context has no calibration batches, or a score is not finite.
    """
    if not context.calibration:
        raise CompressionError("the confidence of attention heads needs calibration batches")
    totals = {name: torch.zeros(layer.heads, dtype=torch.float64) for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0.0)
    for inputs in context.calibration:
        with _record_outputs({name: layer.probabilities for name, layer in layers.items()}) as attention:
            model(*inputs)
        for name, probabilities in attention.items():
            # [B, H, T, T]: a position that nothing attends to is padding.
            is_token = (probabilities.amax((1, 2)) > 0).double()
            largest = probabilities.amax(3).double()
            totals[name] += (largest * is_token.unsqueeze(1)).sum((0, 2)).cpu()
            counts[name] += float(is_token.sum())
    return {name: _check_finite(name, total / max(counts[name], 1.0)) for name, total in totals.items()}


def score_at_random(
    model: nn.Module, layers: Layers, context: Context, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return random scores, the baseline of the other criteria, layer to ``[H]``."""
    return {name: torch.rand(layer.heads, generator=generator, dtype=torch.float64) for name, layer in layers.items()}


_CRITERIA: Mapping[str, Callable[[nn.Module, Layers, Context, torch.Generator], dict[str, Tensor]]] = {
    "gradient": score_by_gradient,
    "confidence": score_by_confidence,
    "random": score_at_random,
}


def _check_finite(name: str, scores: Tensor) -> Tensor:
    if not bool(scores.isfinite().all()):
        raise CompressionError(f"the importance of the heads of '{name}' is not finite and cannot be ranked")
    return scores


@contextmanager
def _record_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the input of each module in the passes of the body."""
    recorded: dict[str, Tensor] = {}

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            recorded[name] = inputs[0]

        return record

    handles = [module.register_forward_pre_hook(make_hook(name)) for name, module in modules.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _record_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the output of each module in the passes of the body."""
    recorded: dict[str, Tensor] = {}

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            recorded[name] = output

        return record

    handles = [module.register_forward_hook(make_hook(name)) for name, module in modules.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


PRUNE.add(Heads.name, Heads())
