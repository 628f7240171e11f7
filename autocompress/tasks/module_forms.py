"""Forms of a user's module: wrappers are taken off, and a copy in single precision that can be trained is made.

torch.compile, DataParallel                    the module inside
bfloat16, float16, float64, another device     converted to float32 on the CPU, with a notice
frozen parameters                              gradients switched on in the students, with a notice
batch normalization with momentum 0            torch's default momentum in the students, with a notice
weight_norm, spectral_norm, pruning masks       folded into the weights, with a notice (hooks and parametrizations)
TorchScript, quantized, lazy, meta, locks      an error that names the part
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from autocompress.errors import UsageError

# Packages of torch whose modules hold integer weights in forms of their own.
QUANTIZED_PACKAGES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
# Share of a batch in the running statistics of torch's batch normalization, by default.
DEFAULT_MOMENTUM = 0.1


@dataclass(frozen=True)
class PreparedModule:
    """A copy of a user's module that can be trained, copied and sent to workers.

    Attributes:
        module: The copy, in evaluation mode, in single precision, on the CPU.
        notices: Remarks on what was changed.
    """

    module: nn.Module
    notices: tuple[str, ...]


def prepare_module(model: nn.Module) -> PreparedModule:
    """Return a copy of a module in a form that a search can train; the module itself does not change.

    Raises:
        UsageError: The module has a form without weights that can be trained, or a part that cannot be copied.

    Example:
        >>> prepare_module(nn.Linear(2, 1).double()).notices
        ('the weights of Linear are float64; they were converted to float32, in which students compute',)
    """
    inner = unwrap_module(model)
    name = type(inner).__name__
    check_form(inner)
    module = copy_module(inner)
    for parent in list(module.modules()):
        for child_name, child in list(parent.named_children()):
            if (unwrapped := unwrap_module(child)) is not child:
                setattr(parent, child_name, unwrapped)
    notices = [
        *_fold_hooks(module),
        *_fold_parametrizations(module),
        *_convert_weights(module, name),
        *_unfreeze(module, name),
        *_update_batch_norms(module, name),
    ]
    return PreparedModule(module.eval(), tuple(notices))


def unwrap_module(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of ``torch.compile`` and of data parallelism."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        # torch.compile returns a module of a private class.
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_form(module: nn.Module) -> None:
    """Check that a module has float weights with values.

    Raises:
        UsageError: A part has another form; the message names it and what to bring instead.
    """
    for path, part in module.named_modules():
        where = f"its part '{path}'" if path else type(module).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise UsageError(
                f"the teacher is TorchScript ({where}), which can be neither pruned nor trained further here; bring "
                "the nn.Module that it was made from, with weights= for a state_dict"
            )
        if type(part).__module__.startswith(QUANTIZED_PACKAGES):
            raise UsageError(
                f"the teacher is quantized already ({where} is a quantized {type(part).__name__}); bring the module in "
                "floating point: the search quantizes its students"
            )
    for path, tensor in _list_tensors(module):
        if is_lazy(tensor):
            raise UsageError(
                f"'{path}' of the teacher is lazy and has no values yet; run the module once on an example and train it"
            )
        if tensor.is_meta:
            raise UsageError(f"'{path}' of the teacher is on the device 'meta' and has no values; load its weights")
        if tensor.is_complex():
            raise UsageError(f"'{path}' of the teacher is complex; only modules of real weights can be compressed")


def _list_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def copy_module(module: nn.Module) -> nn.Module:
    """Return a deep copy, also where an attribute is a tensor of the autograd graph or of inference mode."""
    memo: dict[int, object] = {}
    # deepcopy refuses computed tensors, such as the weight that old weight_norm sets and an activation that is kept.
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and (not value.is_leaf or value.is_inference()):
                memo[id(value)] = value.detach().clone()
        for name, parameter in part.named_parameters(recurse=False):
            if not is_lazy(parameter) and parameter.is_inference():
                memo[id(parameter)] = nn.Parameter(part.get_parameter(name).clone(), parameter.requires_grad)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # a module may define its own copying
        raise UsageError(
            f"{_find_uncopied(module)} cannot be copied, but each student is a copy of the teacher "
            f"({' '.join(str(error).split())}); remove it from the module, or create it in forward()"
        ) from error


def _find_uncopied(module: nn.Module) -> str:
    """Return the attribute of a module, or of a submodule, that cannot be copied."""
    for path, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:  # the same value that failed before
                return f"'{f'{path}.{attribute}'.lstrip('.')}' of the teacher ({type(value).__name__})"
    return f"the teacher {type(module).__name__}"


def _fold_hooks(module: nn.Module) -> list[str]:
    """Replace weights that a hook computes before each pass by their values; return a notice if there are any."""
    folded: dict[str, list[str]] = {}
    for path, part in module.named_modules():
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
                kind = "weight_norm"
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(part, hook.name)
                kind = "spectral_norm"
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(part, hook._tensor_name)
                kind = "the pruning mask"
            else:
                continue
            folded.setdefault(kind, []).append(path or type(part).__name__)
    return [
        f"{kind} of {len(names)} layers ({_shorten(names)}) is folded into their weights"
        for kind, names in folded.items()
    ]


@torch.no_grad()
def _fold_parametrizations(module: nn.Module) -> list[str]:
    """Replace parametrized tensors by their values, which can be pruned and quantized; return a notice of it.

    Example:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
        >>> _fold_parametrizations(layer), isinstance(layer.weight, nn.Parameter)
        (["the parametrization of 'weight' is folded into it"], True)
    """
    folded: list[str] = []
    # Spectral norm makes a step of its power iteration in training mode only.
    module.eval()
    for path, part in module.named_modules():
        if not is_parametrized(part):
            continue
        # torch's own removal deletes a property of a class that this copy shares with the user's module.
        names = [name for name, _ in part.get_submodule("parametrizations").named_children()]
        values = {name: getattr(part, name).detach().clone() for name in names}
        del part._modules["parametrizations"]
        # The class that torch derived for the parametrization has the layer's own class as its base.
        part.__class__ = type(part).__bases__[0]
        for name, value in values.items():
            part.register_parameter(name, nn.Parameter(value))
            folded.append(f"'{path}.{name}'" if path else f"'{name}'")
    return [f"the parametrization of {_shorten(folded)} is folded into it"] if folded else []


def _convert_weights(module: nn.Module, name: str) -> list[str]:
    """Convert real weights to float32 on the CPU; return a notice if there was another type."""
    types = {tensor.dtype for _, tensor in _list_tensors(module) if tensor.is_floating_point()} - {torch.float32}
    module.to(device="cpu", dtype=torch.float32)
    if not types:
        return []
    described = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
    return [f"the weights of {name} are {described}; they were converted to float32, in which students compute"]


def _unfreeze(module: nn.Module, name: str) -> list[str]:
    """Switch gradients on, because students are trained; return a notice if parameters were frozen."""
    parameters = {path: value for path, value in module.named_parameters() if value.is_floating_point()}
    frozen = [path for path, value in parameters.items() if not value.requires_grad]
    for path in frozen:
        parameters[path].requires_grad_(True)
    if not frozen:
        return []
    amount = "all" if len(frozen) == len(parameters) else f"{len(frozen)} of {len(parameters)}"
    return [f"{amount} parameters of {name} are frozen ({_shorten(frozen)}); students train them"]


def _update_batch_norms(module: nn.Module, name: str) -> list[str]:
    """Let batch normalization update its statistics, which a momentum of 0 prevents; return a notice of it.

    A student that is trained with the statistics of its batches would be evaluated with those of the teacher.

    Example:
        >>> _update_batch_norms(nn.Sequential(nn.BatchNorm1d(2, momentum=0.0)), "Sequential")
        ["1 batch normalizations of Sequential (0) have momentum 0; students use torch's default of 0.1"]
    """
    norms = {path: part for path, part in module.named_modules() if isinstance(part, _BatchNorm) and part.momentum == 0}
    for norm in norms.values():
        norm.momentum = DEFAULT_MOMENTUM
    if not norms:
        return []
    return [
        f"{len(norms)} batch normalizations of {name} ({_shorten(list(norms))}) have momentum 0; students use torch's "
        f"default of {DEFAULT_MOMENTUM}"
    ]


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
