"""Layers in forms that can be quantized: linear layers for attention and GPT-2's Conv1D, weights that can be replaced.

    Conv1D of GPT-2             a linear layer: the weight is transposed
    nn.MultiheadAttention       four linear layers, for queries, keys, values and outputs
    nn.LSTM, nn.GRU, nn.RNN     the same layer, each weight matrix held by a :class:`WeightHolder`
    nn.ConvTranspose1d to 3d    the same layer, the kernel held with its output channels first

The outputs stay, up to rounding. Linear layers of attention get integer kernels. A held weight is stored as codes and
computed in floating point, because runtimes have no integer kernel for recurrent layers and transposed convolutions.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from autocompress.core.attention import (
    ProjectedAttention,
    disable_nested_tensors,
    has_plain_projections,
    list_projections,
)
from autocompress.core.method import require_distinct
from autocompress.errors import CompressionError


class WeightHolder(nn.Module):
    """A weight as a module of its own, which returns it when it is called.

    Args:
        weight: The weight with its output channels first, ``[C, ...]``.
        requires_grad: Whether the weight is trained.
    """

    def __init__(self, weight: Tensor, *, requires_grad: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad)

    def forward(self) -> Tensor:
        """Return the weight, ``[C, ...]``."""
        return self.weight

    def extra_repr(self) -> str:
        """Return the text that ``repr`` shows between the parentheses."""
        return str(list(self.weight.shape))


class ConvertedLinear(nn.Linear):
    """Linear layer made from GPT-2's Conv1D."""


class SplitAttention(ProjectedAttention, nn.Module):
    """:class:`torch.nn.MultiheadAttention` with a linear layer for each of its four projections.

    Args:
        attention: The attention layer, without added keys (``bias_k``, ``add_zero_attn``).
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = attention.num_heads, attention.batch_first, attention.dropout
        self.embed_dim = attention.embed_dim
        # Without packed projections, torch's encoder layer does not take its fused path, which calls no submodule.
        self.in_proj_weight = self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        self.is_packed = attention.in_proj_weight is not None
        self.q_proj, self.k_proj, self.v_proj = map(_build_linear, *list_projections(attention))
        self.out_proj = _build_linear(attention.out_proj.weight, attention.out_proj.bias)

    def project_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the projections of the inputs, ``[..., E] -> [..., H D]``: queries, keys and values."""
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def original_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the attention layer that this was made from, by name."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        weights = [layer.weight for layer in layers]
        named: dict[str, Tensor] = {"out_proj.weight": self.out_proj.weight}
        if self.is_packed:
            named["in_proj_weight"] = torch.cat(weights)
        else:
            named |= {f"{side}_proj_weight": weight for side, weight in zip("qkv", weights, strict=True)}
        if self.out_proj.bias is not None:
            named["out_proj.bias"] = self.out_proj.bias
        if self.q_proj.bias is not None:
            named["in_proj_bias"] = torch.cat([layer.bias for layer in layers])
        return named


class _HeldMatrices(nn.Module):
    """Base of recurrent layers whose weight matrices are submodules; biases stay parameters."""

    _flat_weights_names: list[str]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [
            self.get_submodule(name)() if name in self._modules else getattr(self, name)
            for name in self._flat_weights_names
        ]

    @_flat_weights.setter
    def _flat_weights(self, weights: object) -> None:
        # torch stores the list when a layer is built, moved or copied; here it is made for each call.
        pass

    def _init_flat_weights(self) -> None:
        pass

    def _update_flat_weights(self) -> None:
        pass

    def original_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the layer that this was made from, by name."""
        return dict(zip(self._flat_weights_names, self._flat_weights, strict=True))


class _HeldKernel(nn.Module):
    """Base of transposed convolutions whose kernel is the submodule ``kernel``, with output channels first."""

    groups: int

    @property
    def weight(self) -> Tensor:
        """The kernel in torch's layout, ``[inputs, outputs / groups, ...]``."""
        return swap_kernel_axes(self.get_submodule("kernel")(), self.groups)

    def original_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the layer that this was made from, by name."""
        return {"weight": self.weight, **dict(self.named_parameters(recurse=False))}


def swap_kernel_axes(kernel: Tensor, groups: int) -> Tensor:
    """Return a kernel ``[inputs, outputs / groups, ...]`` as ``[outputs, inputs / groups, ...]``, or the reverse.

    Example:
        >>> swap_kernel_axes(torch.zeros(4, 3, 5), groups=2).shape
        torch.Size([6, 2, 5])
    """
    swapped: Tensor = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped


# Classes of layers with held weights, by the class that they replace.
_HELD: dict[type[nn.Module], type[nn.Module]] = {
    kind: cast(
        "type[nn.Module]", type(f"Held{kind.__name__}", (base, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    )
    for base, kinds in (
        (_HeldMatrices, (nn.LSTM, nn.GRU, nn.RNN)),
        (_HeldKernel, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    )
    for kind in kinds
}
# So that pickle finds them by name.
globals().update({kind.__name__: kind for kind in _HELD.values()})
CONVERTED = (ConvertedLinear, SplitAttention, *_HELD.values())


def is_convertible(module: nn.Module) -> bool:
    """Return whether :func:`convert_layers` has another form of a layer.

    Subclasses, parametrized layers and layers with hooks stay, because they may compute something else.
    """
    if "parametrizations" in module._modules or module._forward_hooks or module._forward_pre_hooks:
        return False
    return has_plain_projections(module) or type(module) in _HELD or is_gpt2_linear(module)


def is_gpt2_linear(module: nn.Module) -> bool:
    """Return whether a module is the linear layer of GPT-2, whose weight is ``[inputs, outputs]``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(module.weight, nn.Parameter)


def convert_layers(model: nn.Module, stay: Iterable[str] = ()) -> nn.Module:
    """Return a model, changed in place, with layers in forms that can be quantized.

    Args:
        model: Model in any mode.
        stay: Names of layers that are left as they are.
    """
    left = set(stay)
    names = [name for name, module in model.named_modules() if is_convertible(module) and name not in left]
    return convert_named(model, names)


def convert_named(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a model, changed in place, with the named layers in forms that can be quantized.

    Raises:
        CompressionError: A layer has no such form: the model is another one. Or a name occurs twice.
    """
    names = list(names)
    require_distinct(names)
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, CONVERTED):
            continue
        if not is_convertible(module):
            raise CompressionError(f"layer '{name}' has no form that can be quantized: the model is another one")
        converted = _convert_module(module).train(module.training)
        if module is model:
            model = converted
        _replace_module(model, module, converted)
    disable_nested_tensors(model)
    return model


def find_converted(model: nn.Module) -> list[str]:
    """Return the names of the layers that :func:`convert_layers` replaced."""
    return [name for name, module in model.named_modules() if isinstance(module, CONVERTED)]


def find_holders(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each layer with held weights, with the names of their holders."""
    for name, module in model.named_modules():
        if isinstance(module, _HeldMatrices | _HeldKernel):
            prefix = f"{name}." if name else ""
            held = [f"{prefix}{key}" for key, child in module.named_children() if isinstance(child, WeightHolder)]
            yield name, held


def original_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a model with the names and layouts that its layers had before their conversion.

    Example:
        >>> attention = nn.MultiheadAttention(4, 2)
        >>> state = original_state(convert_layers(nn.Sequential(attention)))
        >>> torch.equal(state["0.in_proj_weight"], attention.in_proj_weight)
        True
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    for name in find_converted(model):
        module, prefix = model.get_submodule(name), f"{name}." if name else ""
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]
        state |= {f"{prefix}{key}": tensor.detach() for key, tensor in _read_tensors(module).items()}
    return state


def _read_tensors(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, ConvertedLinear):
        parameters = dict(module.named_parameters())
        return {name: tensor.T if name == "weight" else tensor for name, tensor in parameters.items()}
    assert isinstance(module, SplitAttention | _HeldMatrices | _HeldKernel)
    return module.original_tensors()


def _convert_module(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return SplitAttention(module)
    if isinstance(module, nn.RNNBase):
        # Biases have one axis; the projection of an LSTM is a matrix, too.
        names = [name for name in module._flat_weights_names if module._parameters[name].dim() > 1]  # type: ignore[union-attr]
        return _hold_weights(module, {name: (name, lambda weight: weight) for name in names})
    if type(module) in _HELD:
        groups = int(getattr(module, "groups", 1))
        return _hold_weights(module, {"weight": ("kernel", lambda weight: swap_kernel_axes(weight, groups))})
    weight = module.get_parameter("weight")
    return _build_linear(weight.T, module._parameters.get("bias"), ConvertedLinear)


def _hold_weights(module: nn.Module, names: dict[str, tuple[str, Callable[[Tensor], Tensor]]]) -> nn.Module:
    """Return the layer of the class with held weights that has the state of ``module``.

    Args:
        module: The layer; it does not change.
        names: Name of each parameter to the name of its holder, and the function that puts its outputs first.
    """
    kind = _HELD[type(module)]
    held = kind.__new__(kind)
    state: dict[str, Any] = {
        name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()
    }
    state.pop("_flat_weights", None)
    if "_flat_weight_refs" in state:
        state["_flat_weight_refs"] = []
    for name, (holder, arrange) in names.items():
        parameter = state["_parameters"].pop(name)
        weight = arrange(parameter.detach()).clone(memory_format=torch.contiguous_format)
        state["_modules"][holder] = WeightHolder(weight, requires_grad=parameter.requires_grad)
    vars(held).update(state)
    return held


def _build_linear(weight: Tensor, bias: Tensor | None, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """Return a linear layer with copies of a weight ``[C, K]`` and a bias ``[C]``."""
    # On the meta device, because the random weights of a new layer are replaced.
    linear = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def _replace_module(model: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """Replace a module wherever another one holds it."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is before:
                parent._modules[name] = after
