"""What a model costs, counted from its layers and their bit-widths: nothing here reads a clock or a file.

**FLOPs = 2 x multiply-accumulates (MACs).** Counted: convolutions, linear layers, matrix products (attention
included), recurrent and bilinear layers. Not counted: bias additions, activations, pooling, look-ups in embeddings,
element-wise products, and batch norm, which folds into the layer before it.

    BOPs             sum of MACs x weight bits x activation bits
    effective FLOPs  sum of FLOPs x (weight bits x activation bits) / (32 x 32): equals FLOPs at 32 bits
    bytes            sum over layers of  ceil(weights x weight bits / 8) + 4 x (parameters - weights) + 4 x buffers
                     + 4 x channels where the weights have fewer than 32 bits (one scale per output channel)
    sparse bytes     the same, with the weights of each layer as one bit a weight and the values that are not zero
                     where that is smaller:  ceil(weights / 8) + ceil(weights that are not zero x weight bits / 8)

Elsewhere zeros count like any other weight: no dense runtime exploits them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.core.method import LayerBits

FLOPS_PER_MAC = 2
QUANTIZER = "input_quantizer"
"""Name of the submodule that quantizes a layer's input: its ranges are no cost of the model."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one example, before its bit-widths.

    Attributes:
        name: Its dotted name in the model; empty for what the model itself does outside its submodules.
        macs: Multiply-accumulates; a layer that runs twice counts twice.
        weights: Elements of its weight matrices: what the weight bit-width applies to.
        parameters: All its parameters, bias and scales included; a shared one counts once.
        nonzero: Its parameters that are not zero (all of them on the meta device).
        buffers: Floating-point elements that are saved beside the parameters (batch-norm statistics).
        channels: Output channels of its weights: one scale each once they are quantized.
        nonzero_weights: Elements of its weight matrices that are not zero; all of them where it is not said.
        activations: Elements of its outputs; of a layer that runs twice, of both.
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


Layers = Mapping[str, LayerCost]
Bits = Mapping[str, LayerBits]


def layer_costs(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, LayerCost]:
    """Return the cost of every layer that computes or holds something, by name, for one example.

    Work belongs to the innermost module whose forward runs it, so a matrix product written as a function lands
    on the module around it. The model runs once in evaluation mode and is left as it was; on the meta device it
    runs without data.

    Args:
        model: The model to count.
        example: A batch of one, as its positional arguments, ``([1, C, H, W],)``.

    Example:
        >>> layer_costs(nn.Sequential(nn.Linear(4, 3)), (torch.zeros(1, 4),))["0"].macs
        12
    """
    work, outputs = _work(model, example)
    sizes = _sizes(model)
    names = [name for name, _ in model.named_modules() if work.get(name) or name in sizes]
    return {
        name: LayerCost(name, work.get(name, 0), **sizes.get(name, _NOTHING), activations=outputs[name])
        for name in names
    }


def macs(layers: Layers) -> int:
    """Return the multiply-accumulates of one example."""
    return sum(layer.macs for layer in layers.values())


def flops(layers: Layers) -> int:
    """Return the floating-point operations of one example."""
    return FLOPS_PER_MAC * macs(layers)


def bops(layers: Layers, bits: Bits) -> int:
    """Return the bit operations of one example."""
    return sum(layer.macs * _product(name, bits) for name, layer in layers.items())


def effective_flops(layers: Layers, bits: Bits) -> float:
    """Return the FLOPs of one example, scaled by the bit-widths.

    Example:
        >>> effective_flops({"a": LayerCost("a", 512, 1, 1, 1)}, {"a": LayerBits(8, 8)})
        64.0
    """
    return FLOPS_PER_MAC * bops(layers, bits) / (32 * 32)


def activations(layers: Layers) -> int:
    """Return the elements of the outputs of all layers that multiply.

    Memory is what small networks wait for: their time goes with this number rather than with FLOPs (Radosavovic et al.
    2020, arXiv:2003.13678).

    Example:
        >>> activations(layer_costs(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.zeros(1, 4),)))
        3
    """
    return sum(layer.activations for layer in layers.values() if layer.macs)


def parameters(layers: Layers) -> int:
    """Return the number of parameters."""
    return sum(layer.parameters for layer in layers.values())


def nonzero_parameters(layers: Layers) -> int:
    """Return the number of parameters that are not zero."""
    return sum(layer.nonzero for layer in layers.values())


def model_bytes(layers: Layers, bits: Bits) -> int:
    """Return the bytes of the packed parameters and buffers, by the formula above.

    Example:
        >>> layer = LayerCost("a", 12, weights=12, parameters=15, nonzero=15, channels=3)
        >>> model_bytes({"a": layer}, {"a": LayerBits(4)})
        30
    """
    return sum(_dense(layer, bits) + _rest(layer, bits) for layer in layers.values())


def sparse_bytes(layers: Layers, bits: Bits) -> int:
    """Return the bytes of the parameters and buffers with the zeros of pruned layers left out, by the formula above.

    Example:
        >>> layer = LayerCost("a", 64, weights=64, parameters=64, nonzero=16, channels=8, nonzero_weights=16)
        >>> model_bytes({"a": layer}, {}), sparse_bytes({"a": layer}, {})
        (256, 72)
    """
    total = 0
    for layer in layers.values():
        left = layer.weights if layer.nonzero_weights is None else layer.nonzero_weights
        packed = -(-layer.weights // 8) - (-left * _width(layer, bits) // 8)
        total += min(packed, _dense(layer, bits)) + _rest(layer, bits)
    return total


def _dense(layer: LayerCost, bits: Bits) -> int:
    return -(-layer.weights * _width(layer, bits) // 8)


def _rest(layer: LayerCost, bits: Bits) -> int:
    """Return the bytes of all that is no weight: biases, normalizations, buffers, scales."""
    scales = layer.channels if _width(layer, bits) < 32 else 0
    return 4 * (layer.parameters - layer.weights + layer.buffers + scales)


def _width(layer: LayerCost, bits: Bits) -> int:
    return bits.get(layer.name, LayerBits()).weight


def _product(name: str, bits: Bits) -> int:
    widths = bits.get(name, LayerBits())
    return widths.weight * widths.activation


# Kernels that torch's counter does not know; each gets its arguments as shapes.
def _mv(matrix: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(matrix))


def _addmv(_added: Any, matrix: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(matrix))


def _recurrent(inputs: Any, input_weight: Any, hidden_weight: Any, *_: Any, **__: Any) -> int:
    return int(2 * prod(inputs[:2]) * (prod(input_weight) + prod(hidden_weight)))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # Scores [..., T, S] from queries [..., T, D], then their average of values [..., S, E].
    return int(2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _bilinear(first: Any, weight: Any, *_: Any, **__: Any) -> int:
    # Inputs [N, I] and [N, J] meet in weights [K, I, J]: the weights times one input, then its product with the other.
    return int(2 * first[0] * (prod(weight) + prod(weight[:2])))


_aten: Any = torch.ops.aten
_KERNELS = {
    _aten.mv: _mv,
    _aten.dot: _mv,
    _aten.addmv: _addmv,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._trilinear: _bilinear,
}
_NOTHING: Mapping[str, int] = {"weights": 0, "parameters": 0, "nonzero": 0}


def _work(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[dict[str, int], Counter[str]]:
    """Return the multiply-accumulates by module name, read off torch's counter as modules start and end.

    Also the elements of what each module returns, where that is a tensor.
    """
    outputs: Counter[str] = Counter()
    names = {module: name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_KERNELS)
    found = dict.fromkeys(names.values(), 0)
    running: list[str] = []
    seen = 0

    def settle() -> None:
        nonlocal seen
        total = counter.get_total_flops()
        if running:
            found[running[-1]] += (total - seen) // FLOPS_PER_MAC
        seen = total

    def start(module: nn.Module, _: Any) -> None:
        settle()
        running.append(names[module])

    def end(module: nn.Module, _inputs: Any, output: Any) -> None:
        settle()
        running.pop()
        outputs[names[module]] += output.numel() if isinstance(output, Tensor) else 0

    with _untouched(model), _hooked(list(names), start, end), torch.no_grad(), counter:
        model(*example)
    return found, outputs


@contextmanager
def _hooked(modules: list[nn.Module], start: Callable[..., None], end: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(start) for module in modules]
    handles += [module.register_forward_hook(end) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode and undo what it does to flags and buffers."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, buffer, buffer.clone()) for module in model.modules() for name, buffer in _own(module)]
    fused = torch.backends.mha.get_fastpath_enabled()
    # The fused transformer kernels run as one operator that the counter cannot look into.
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                buffer.copy_(before)
                setattr(module, name, buffer)


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.named_buffers(recurse=False))


def _sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Return the sizes of what each module holds itself; modules that hold nothing are left out."""
    saved = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in reversed(saved.items())}
    found: dict[str, dict[str, int]] = {}
    for key, tensor in saved.items():
        path = key.split(".")[:-1]
        if QUANTIZER in path or names[id(tensor)] != key:
            continue
        if "parametrizations" in path:
            path = path[: path.index("parametrizations")]
        size = found.setdefault(
            ".".join(path),
            dict.fromkeys(("weights", "parameters", "nonzero", "buffers", "channels", "nonzero_weights"), 0),
        )
        if not isinstance(tensor, nn.Parameter):
            size["buffers"] += tensor.numel() * tensor.is_floating_point()
            continue
        size["parameters"] += tensor.numel()
        nonzero = tensor.numel() if tensor.is_meta else int(tensor.count_nonzero())
        size["nonzero"] += nonzero
        if tensor.dim() > 1:
            size["weights"] += tensor.numel()
            size["nonzero_weights"] += nonzero
            size["channels"] += tensor.shape[0]
    return found
