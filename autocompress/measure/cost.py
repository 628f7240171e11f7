"""Costs of a model, counted from its layers and their bit-widths; nothing is timed and no file is read.

**FLOPs = 2 x multiply-accumulates (MACs).** Counted: convolutions, linear layers, matrix products (attention
included), recurrent and bilinear layers. Not counted: bias additions, activations, pooling, look-ups in embeddings,
element-wise products, and batch norm, which folds into the layer before it.

    BOPs             sum of MACs x weight bits x activation bits
    effective FLOPs  sum of FLOPs x (weight bits x activation bits) / (32 x 32): equals FLOPs at 32 bits
    bytes            those of the tensors of an exported file, see :mod:`autocompress.measure.tensor_storage`. Where
                     only layers are known: sum of
                     ceil(weights x weight bits / 8) + 4 x (parameters - weights + buffers)
                     + 4 x channels where the weights have fewer than 16 bits (one scale per output channel)
    sparse bytes     the same, with the weights of each layer as one bit a weight and the values that are not zero
                     where that is smaller:  ceil(weights / 8) + ceil(weights that are not zero x weight bits / 8)

In all other costs zeros count like any other weight: no dense runtime exploits them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from autocompress.core.latency_model import LOOKUP, OPERATOR, LayerWork
from autocompress.core.method import LayerBits

FLOPS_PER_MAC = 2
QUANTIZER = "input_quantizer"
"""Name of the submodule that quantizes a layer's input; its ranges do not count."""


@dataclass(frozen=True)
class LayerCost:
    """Costs of one layer for one example, before its bit-widths.

    Attributes:
        name: Dotted name in the model; empty for the computations of the model outside its submodules.
        macs: Multiply-accumulates; a layer that runs twice counts twice.
        weights: Elements of the weight matrices, to which the weight bit-width applies.
        parameters: Number of parameters, bias and scales included; a shared one counts once.
        nonzero: Number of parameters that are not zero (all of them on the meta device).
        buffers: Floating-point elements that are saved in addition to the parameters (batch-norm statistics).
        channels: Output channels of the weights; each has one scale once they are quantized.
        nonzero_weights: Elements of the weight matrices that are not zero; ``None`` stands for all of them.
        activations: Elements of the outputs; a layer that runs twice counts twice.
        kind: ``conv``, ``pointwise`` or ``depthwise`` with the number of spatial dimensions, such as ``conv2``;
            ``linear`` for any other layer.
        inputs: Input channels of one group of a convolution.
        operators: Operators without layers that run after it and before the next one, such as the addition of a
            shortcut. Those before the first layer count for the model, whose name is empty.
        elements: Elements of the outputs of these operators.
        lookups: Elements that it reads from a table of embeddings.
    """

    name: str
    macs: int
    weights: int
    parameters: int
    nonzero: int
    buffers: int = 0
    channels: int = 0
    nonzero_weights: int | None = None
    activations: int = field(default=0, compare=False)
    kind: str = field(default="linear", compare=False)
    inputs: int = field(default=1, compare=False)
    operators: int = field(default=0, compare=False)
    elements: int = field(default=0, compare=False)
    lookups: int = field(default=0, compare=False)


Layers = Mapping[str, LayerCost]
Bits = Mapping[str, LayerBits]


def layer_costs(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, LayerCost]:
    """Return the cost of every layer that computes or has parameters, by name, for one example.

    Operations count for the innermost module whose forward runs them, so a matrix product written as a function counts
    for the module around it. The model runs once in evaluation mode and is left as it was; on the meta device it runs
    without data.

    Args:
        model: The model to count.
        example: A batch of one, as its positional arguments, ``([1, C, H, W],)``.

    Example:
        >>> layer_costs(nn.Sequential(nn.Linear(4, 3)), (torch.zeros(1, 4),))["0"].macs
        12
    """
    work, outputs, others, lookups = _count_operations(model, example)
    sizes = _count_elements(model)
    costs = {}
    for name, module in model.named_modules():
        if work.get(name) or name in sizes or name in others:
            kind, inputs = _describe_kernel(module)
            operators, elements = others.get(name, (0, 0))
            costs[name] = LayerCost(
                name,
                work.get(name, 0),
                **sizes.get(name, _NO_ELEMENTS),
                activations=outputs[name],
                kind=kind,
                inputs=inputs,
                operators=operators,
                elements=elements,
                lookups=lookups[name],
            )
    return costs


def count_macs(layers: Layers) -> int:
    """Return the multiply-accumulates of one example."""
    return sum(layer.macs for layer in layers.values())


def count_flops(layers: Layers) -> int:
    """Return the floating-point operations of one example."""
    return FLOPS_PER_MAC * count_macs(layers)


def count_bops(layers: Layers, bits: Bits) -> int:
    """Return the bit operations of one example."""
    return sum(layer.macs * _multiply_bits(name, bits) for name, layer in layers.items())


def count_effective_flops(layers: Layers, bits: Bits) -> float:
    """Return the FLOPs of one example, scaled by the bit-widths.

    Example:
        >>> count_effective_flops({"a": LayerCost("a", 512, 1, 1, 1)}, {"a": LayerBits(8, 8)})
        64.0
    """
    return FLOPS_PER_MAC * count_bops(layers, bits) / (32 * 32)


def count_activations(layers: Layers) -> int:
    """Return the elements of the outputs of all layers that multiply.

    Small networks are bound by memory: their latency follows this number rather than FLOPs (Radosavovic et al. 2020,
    arXiv:2003.13678).

    Example:
        >>> count_activations(layer_costs(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.zeros(1, 4),)))
        3
    """
    return sum(layer.activations for layer in layers.values() if layer.macs)


def count_parameters(layers: Layers) -> int:
    """Return the number of parameters."""
    return sum(layer.parameters for layer in layers.values())


def count_nonzero_parameters(layers: Layers) -> int:
    """Return the number of parameters that are not zero."""
    return sum(layer.nonzero for layer in layers.values())


def count_model_bytes(layers: Layers, bits: Bits) -> int:
    """Return the bytes of the packed parameters and buffers, by the formula above.

    Example:
        >>> layer = LayerCost("a", 12, weights=12, parameters=15, nonzero=15, channels=3)
        >>> count_model_bytes({"a": layer}, {"a": LayerBits(4)})
        30
    """
    return sum(_dense_bytes(layer, bits) + _other_bytes(layer, bits) for layer in layers.values())


def count_sparse_bytes(layers: Layers, bits: Bits) -> int:
    """Return the bytes of the parameters and buffers with the zeros of pruned layers left out, by the formula above.

    Example:
        >>> layer = LayerCost("a", 64, weights=64, parameters=64, nonzero=16, channels=8, nonzero_weights=16)
        >>> count_model_bytes({"a": layer}, {}), count_sparse_bytes({"a": layer}, {})
        (256, 72)
    """
    total = 0
    for layer in layers.values():
        left = layer.weights if layer.nonzero_weights is None else layer.nonzero_weights
        # A mask of one bit a weight, and the remaining weights; negation rounds up.
        packed = -(-layer.weights // 8) - (-left * _weight_bits(layer, bits) // 8)
        total += min(packed, _dense_bytes(layer, bits)) + _other_bytes(layer, bits)
    return total


def list_layer_work(layers: Layers, bits: Bits) -> list[LayerWork]:
    """Return what a latency model needs to know of the layers that multiply, in their order.

    Operators before the first layer, such as the look-ups of a bag of n-grams, come first.

    Example:
        >>> list_layer_work({"a": LayerCost("a", 12, weights=12, parameters=15, nonzero=15)}, {})[0].macs
        12
    """
    works = []
    for name, layer in layers.items():
        widths = bits.get(name, LayerBits())
        if layer.operators and not layer.macs:
            works.append(LayerWork(0, 0, 0, kind=OPERATOR, operators=layer.operators, elements=layer.elements))
        if layer.lookups:
            # A table is not multiplied: its rows are decoded from the bits in which it is stored.
            works.append(LayerWork(0, layer.lookups, 0, (widths.stored, widths.activation), LOOKUP))
        if layer.macs:
            kernel = (widths.weight, widths.activation)
            channels = (layer.inputs, max(layer.channels, 1))
            work = LayerWork(layer.macs, layer.activations, layer.weights, kernel, layer.kind, channels)
            works.append(replace(work, operators=layer.operators, elements=layer.elements))
    return works


def list_float_layers(model: nn.Module, layers: Layers, bits: Bits) -> list[dict[str, str]]:
    """Return the layers of a quantized model that stay in floating point, with their shares of FLOPs and weights.

    Each row has the name of a layer, its class, and whether it multiplies weights; the largest share of FLOPs comes
    first. Products of activations, such as those of attention, have no weights and stay in floating point by design.

    Args:
        model: The quantized model.
        layers: Costs of its layers.
        bits: Bit-widths of the layers that are quantized.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> layers = layer_costs(model, (torch.zeros(1, 4),))
        >>> list_float_layers(model, layers, {"0": LayerBits(8, 8)})
        [{'layer': '1', 'class': 'Linear', 'multiplies': 'weights', 'FLOPs': '33.3%', 'weights': '33.3%'}]
    """
    macs, weights = (
        max(sum(values), 1) for values in zip(*((x.macs, x.weights) for x in layers.values()), strict=True)
    )
    stay = [layer for name, layer in layers.items() if bits.get(name, LayerBits()) == LayerBits()]
    stay = [layer for layer in stay if layer.macs or layer.weights]
    return [
        {
            "layer": layer.name or "(outside of layers)",
            "class": type(model.get_submodule(layer.name)).__name__,
            "multiplies": "weights" if layer.weights else "activations",
            "FLOPs": f"{layer.macs / macs:.1%}",
            "weights": f"{layer.weights / weights:.1%}",
        }
        for layer in sorted(stay, key=lambda layer: -layer.macs)
    ]


def _dense_bytes(layer: LayerCost, bits: Bits) -> int:
    return -(-layer.weights * _weight_bits(layer, bits) // 8)


def _other_bytes(layer: LayerCost, bits: Bits) -> int:
    """Return the bytes of all elements but weights: biases, normalizations, buffers, scales."""
    scales = layer.channels if _weight_bits(layer, bits) < 16 else 0
    return 4 * (layer.parameters - layer.weights + layer.buffers + scales)


def _weight_bits(layer: LayerCost, bits: Bits) -> int:
    return bits.get(layer.name, LayerBits()).weight


def _multiply_bits(name: str, bits: Bits) -> int:
    widths = bits.get(name, LayerBits())
    return widths.weight * widths.activation


# FLOPs of kernels that torch's counter does not know. It passes each argument of a kernel as its shape.
Shape = Sequence[int]


def _count_mv(matrix: Shape, *_: object, **__: object) -> int:
    return 2 * prod(matrix)


def _count_addmv(_added: Shape, matrix: Shape, *_: object, **__: object) -> int:
    return 2 * prod(matrix)


def _count_recurrent(inputs: Shape, input_weight: Shape, hidden_weight: Shape, *_: object, **__: object) -> int:
    # Each step of each sequence multiplies by both weights.
    return 2 * prod(inputs[:2]) * (prod(input_weight) + prod(hidden_weight))


def _count_attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    # Scores [..., T, S] from queries [..., T, D], then their average of values [..., S, E].
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _count_bilinear(first: Shape, weight: Shape, *_: object, **__: object) -> int:
    # Inputs [N, I] and [N, J], weights [K, I, J]: the weights times one input, then that product times the other input.
    return 2 * first[0] * (prod(weight) + prod(weight[:2]))


_aten = torch.ops.aten
_KERNELS = {
    _aten.mv: _count_mv,
    _aten.dot: _count_mv,
    _aten.addmv: _count_addmv,
    _aten.mkldnn_rnn_layer: _count_recurrent,
    _aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    _aten._trilinear: _count_bilinear,
}
_NO_ELEMENTS: Mapping[str, int] = {"weights": 0, "parameters": 0, "nonzero": 0}


class _WholeModel(ModuleTracker):
    """Tracker of torch's counter that follows no module: :func:`_count_operations` does that."""

    def __enter__(self) -> Self:
        """Do nothing; ``parents`` stays the whole model."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def _describe_kernel(module: nn.Module) -> tuple[str, int]:
    """Return the kind of a layer, and the input channels of one group."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "linear", 1
    inputs = module.in_channels // module.groups
    kind = "conv" if prod(module.kernel_size) > 1 else "pointwise"
    if module.groups > 1 and inputs == 1:
        kind = "depthwise"
    return f"{kind}{len(module.kernel_size)}", inputs


# Operators that a runtime computes within a layer, or that only describe the same elements in another way.
_FUSED = {
    torch.ops.aten.relu,
    torch.ops.aten.relu_,
    torch.ops.aten.clone,
    torch.ops.aten.detach,
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training,
    torch.ops.aten.cudnn_batch_norm,
}


# Operators that read rows of a table.
_LOOKUPS = {
    torch.ops.aten.embedding,
    torch.ops.aten._embedding_bag,
    torch.ops.aten._embedding_bag_forward_only,
}


class _OperatorCounter(TorchDispatchMode):
    """Counts the operators that are neither layers nor views, with their output elements, after each layer.

    Elements that are read from tables of embeddings count for the module that reads them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, tuple[int, int]] = {}
        self.lookups: Counter[str] = Counter()
        self.layer = ""
        self.running: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if self.running and self.running[-1].rpartition(".")[2] == QUANTIZER:
            # It computes in the kernel of its layer.
            return output
        if packet in _LOOKUPS:
            table, rows = args[:2]
            self.lookups[self.running[-1]] += rows.numel() * table.shape[1]
            return output
        # Kernels of a layer may return empty tensors beside their outputs.
        if (
            isinstance(output, Tensor)
            and output.numel()
            and not (function.is_view or packet in _FUSED or packet in flop_registry)
        ):
            count, elements = self.counts.get(self.layer, (0, 0))
            self.counts[self.layer] = count + 1, elements + output.numel()
        return output


def _count_operations(
    model: nn.Module, example: tuple[Tensor, ...]
) -> tuple[dict[str, int], Counter[str], dict[str, tuple[int, int]], Counter[str]]:
    """Return by module name: multiply-accumulates, output elements, operators after it with their elements, lookups.

    Torch's counter has only a running total, which is read whenever a module starts or ends.
    """
    outputs: Counter[str] = Counter()
    names = {module: name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_KERNELS)
    # Its own tracker attaches hooks to the gradients of inputs, and fails for a view of a parameter without gradients.
    counter.mod_tracker = _WholeModel()
    macs = dict.fromkeys(names.values(), 0)
    counted = 0
    others = _OperatorCounter()
    running = others.running

    def credit_running_module() -> None:
        nonlocal counted
        total = counter.get_total_flops()
        if running:
            macs[running[-1]] += (total - counted) // FLOPS_PER_MAC
            if total > counted:
                others.layer = running[-1]
        counted = total

    def enter_module(module: nn.Module, _: object) -> None:
        credit_running_module()
        running.append(names[module])

    def leave_module(module: nn.Module, _inputs: object, output: object) -> None:
        credit_running_module()
        running.pop()
        outputs[names[module]] += output.numel() if isinstance(output, Tensor) else 0

    with (
        _preserve_state(model),
        _hook_modules(list(names), enter_module, leave_module),
        torch.no_grad(),
        others,
        counter,
    ):
        model(*example)
    return macs, outputs, others.counts, others.lookups


@contextmanager
def _hook_modules(modules: list[nn.Module], start: Callable[..., None], end: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(start) for module in modules]
    handles += [module.register_forward_hook(end) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _preserve_state(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode and restore flags and buffers after it."""
    training = [(module, module.training) for module in model.modules()]
    own = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
    buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in own]
    fused = torch.backends.mha.get_fastpath_enabled()
    # The fused transformer kernels run as one operator that the counter cannot look into.
    torch.backends.mha.set_fastpath_enabled(False)
    # Batch norm would otherwise update its statistics.
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                # In place, as other modules may share the buffer; a module may also have replaced it.
                buffer.copy_(before)
                setattr(module, name, buffer)


def _count_elements(model: nn.Module) -> dict[str, dict[str, int]]:
    """Return the elements of each module's own parameters and buffers; modules without any are left out."""
    saved = model.state_dict(keep_vars=True)
    # A shared tensor counts for the first of its names.
    names = {id(tensor): name for name, tensor in reversed(saved.items())}
    elements: dict[str, dict[str, int]] = {}
    for key, tensor in saved.items():
        path = key.split(".")[:-1]
        if QUANTIZER in path or names[id(tensor)] != key:
            continue
        # Torch moves a parametrized weight into a submodule of its layer.
        if "parametrizations" in path:
            path = path[: path.index("parametrizations")]
        size = elements.setdefault(
            ".".join(path),
            dict.fromkeys(("weights", "parameters", "nonzero", "buffers", "channels", "nonzero_weights"), 0),
        )
        if not isinstance(tensor, nn.Parameter):
            size["buffers"] += tensor.numel() * tensor.is_floating_point()
            continue
        size["parameters"] += tensor.numel()
        # A tensor on the meta device has no values to count.
        nonzero = tensor.numel() if tensor.is_meta else int(tensor.count_nonzero())
        size["nonzero"] += nonzero
        # Vectors are biases and scales, which are not quantized.
        if tensor.dim() > 1:
            size["weights"] += tensor.numel()
            size["nonzero_weights"] += nonzero
            size["channels"] += tensor.shape[0]
    return elements
