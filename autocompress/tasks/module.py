"""Bring your own: a trained module of the user's, with the data that it was trained for."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import Logits, Split, Splits, Targets, Task, as_heads
from autocompress.errors import AutocompressError, TrialError, UsageError
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.tasks.base import Supervised
from autocompress.tasks.tensors import Tensors

Weights = str | Path | Mapping[str, Tensor]
Build = Callable[[], nn.Module]


class Calling(nn.Module):
    """A module called with positional tensors, whatever form it takes them in, that answers with heads.

    Args:
        module: The user's own; its parameters are those of ``module`` here.
        names: Names of the inputs where they are passed as one mapping or as keywords; empty for positional ones.
        as_keywords: Whether names are keywords of ``forward``.
        as_tuple: Whether all inputs are passed as one tuple.
        heads: Names of the heads, in the order of the outputs where they are a sequence.
    """

    def __init__(
        self, module: nn.Module, names: Sequence[str], as_keywords: bool, as_tuple: bool, heads: Sequence[str]
    ) -> None:
        super().__init__()
        self.module = module
        self.names, self.heads = tuple(names), tuple(heads)
        self.as_keywords, self.as_tuple = as_keywords, as_tuple

    def forward(self, *inputs: Tensor) -> Any:
        """Return the logits of the only head ``[B, C]``, or of every head by name."""
        return self.call(inputs)

    def call(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return what :meth:`forward` returns."""
        if self.names:
            named = dict(zip(self.names, inputs, strict=True))
            output = self.module(**named) if self.as_keywords else self.module(named)
        else:
            output = self.module(inputs) if self.as_tuple else self.module(*inputs)
        return answered(output, self.heads)


class CallingOne(Calling):
    """The same for a single input; its forward has no variable arguments, so that it can be traced."""

    def forward(self, input: Tensor) -> Any:  # type: ignore[override]
        """Return the logits of the only head ``[B, C]``, or of every head by name."""
        return self.call((input,))


def answered(output: Any, heads: Sequence[str]) -> Any:
    """Return what a module gave as a tensor, or as a mapping of heads: ``.logits`` and sequences are unpacked.

    Example:
        >>> answered((torch.zeros(1, 2), torch.zeros(1, 3)), ["a", "b"])["b"].shape
        torch.Size([1, 3])
    """
    if not isinstance(output, Tensor | Mapping) and hasattr(output, "logits"):
        output = output.logits
    if isinstance(output, tuple | list):
        if len(heads) == 1:
            return output[0]
        return dict(zip(heads, output, strict=False))
    if isinstance(output, Mapping) and len(heads) == 1:
        return output.get(heads[0], output.get("logits", next(iter(output.values()))))
    return output


class Module(Supervised):
    """A trained module of the user's own, and a task that gives the data.

    Its default student is ``from_teacher``: the module itself, cut, its weights kept.

    Args:
        model: The module, or a function that builds it; trained, unless ``fit`` says how to train it.
        data: A task such as ``Images(path=...)`` or ``Tensors(...)``, or what :class:`Tensors` takes.
        weights: A ``.safetensors`` file or a ``state_dict`` to load into it.
        fit: How to train it first; by default it is taken as it is.
        loss: Maps ``{head: [B, C]}`` and ``{head: [B]}`` to a scalar; cross-entropy by default.

    Raises:
        UsageError: The weights do not fit the module, or the module fails on the data; the message says where.
    """

    name = "module"

    def __init__(
        self,
        model: nn.Module | Build,
        data: Any,
        *,
        weights: Weights | None = None,
        fit: Part | None = None,
        loss: Callable[[Logits, Targets], Tensor] | None = None,
    ) -> None:
        self._data: Task = data if hasattr(data, "splits") else Tensors(data)
        self.inputs, self.labels = self._data.inputs, self._data.labels
        self.heads: Mapping[str, int] = self._data.heads
        self.metrics, self.views = self._data.metrics, self._data.views
        self._loss = loss or self._data.loss
        # Its outputs on many augmented views are most of the work before a search.
        self._fit = fit or Part.of("adamw", epochs=0, precision="auto")
        self.model = self._called(_loaded(model, weights))

    @property
    def preprocessing(self) -> str:
        """How the data becomes the module's inputs."""
        return self._data.preprocessing

    @property
    def notices(self) -> Sequence[str]:
        """What a reader of the results should know about the data."""
        return self._data.notices

    @property
    def pinned(self) -> Mapping[str, str]:
        """What tells this module from another one that was trained otherwise: twelve hex digits over its weights."""
        found = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            found.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return {"content": found.hexdigest()[:12]}

    def splits(self, seed: int) -> Splits:
        """Return the splits of the data."""
        return self._data.splits(seed)

    def view(self, split: Split, index: int) -> Split:
        """Return augmented view ``index`` of a split."""
        return self._data.view(split, index)

    def teacher(self) -> tuple[Part, Part]:
        """Return the module as it is, and how it is trained: not at all, unless that was asked for."""
        return Part(FROM_TEACHER), self._fit

    def build(self, student: Part) -> nn.Module:
        """Return a copy of the module with its weights, or an untrained model of another family."""
        if student.name == FROM_TEACHER:
            return copy.deepcopy(self.model)
        return super().build(student)

    def loss(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the loss of one batch, ``[]``."""
        return self._loss(logits, targets)

    def _called(self, module: nn.Module) -> nn.Module:
        """Find out how the module takes the inputs and gives the heads, by running it on one example.

        Raises:
            UsageError: It fails however it is called, or its outputs are none of the heads.
        """
        names = getattr(self._data, "names", ())
        heads = list(self.heads)
        parameters = inspect.signature(module.forward).parameters
        keywords = bool(names) and set(names) <= set(parameters)
        calling = CallingOne if len(self.inputs) == 1 else Calling
        options: list[nn.Module]
        if names:
            options = [calling(module, names, keywords, False, heads)]
        else:
            options = [module, *(calling(module, (), False, as_tuple, heads) for as_tuple in (False, True))]
        reasons = []
        for called in options:
            called.eval()
            try:
                with torch.no_grad():
                    found = as_heads(called(*self.example()), self.heads)
                self._check(found)
            except AutocompressError as error:
                reasons.append(str(error))
            except Exception as error:  # The user's own code may raise anything.
                reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
            else:
                return called
        raise UsageError(
            f"{type(module).__name__} does not work on one example of the data "
            f"({', '.join(str((1, *spec.shape)) for spec in self.inputs)}): {reasons[0]}"
        )

    def _check(self, found: Mapping[str, Tensor]) -> None:
        sizes = {}
        for head, logits in found.items():
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                raise TrialError(f"its output for '{head}' is no tensor [batch, classes]")
            if logits.shape[1] < self.heads[head]:
                raise TrialError(
                    f"its output for '{head}' has {logits.shape[1]} classes, and the data has {self.heads[head]}"
                )
            sizes[head] = logits.shape[1]
        # A module may know classes that this data lacks.
        self.heads = sizes
        if any(head in sizes and len(names) != sizes[head] for head, names in self.labels.items()):
            self.labels = {}


def _loaded(model: nn.Module | Build, weights: Weights | None) -> nn.Module:
    """Return the module, a copy of its own, with the weights in it.

    Raises:
        UsageError: It is no module, or the weights cannot be read or do not fit.
    """
    module = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"the teacher is {type(module).__name__}; give a torch.nn.Module, or a function that builds one"
        )
    if weights is not None:
        source = "the weights"
        if isinstance(weights, str | Path):
            source = str(weights)
            if Path(weights).suffix != ".safetensors":
                raise UsageError(
                    f"{weights}: weights are read from .safetensors files (others may run code as they load)"
                )
            try:
                weights = load_file(weights)
            except (OSError, ValueError, SafetensorError) as error:
                raise UsageError(f"{source} cannot be read: {error}") from error
        _fill(module, weights, source)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"the teacher's '{name}' holds numbers that are not finite")
    return module.eval()


def _fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    own = module.state_dict()
    faults = [f"'{name}' is missing" for name in own if name not in weights]
    faults += [f"'{name}' is unknown to the module" for name in weights if name not in own]
    faults += [
        f"'{name}' has the shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults[:3])}{more}")
    module.load_state_dict(weights)


@dataclass(frozen=True)
class Brought:
    """What a brought module is registered as: it builds nothing, but makes sure that it is the same one still."""

    task: Module

    def __call__(self, content: str = "") -> Module:
        """Return the task.

        Raises:
            UsageError: A run was begun with a module that had other weights.
        """
        pinned = self.task.pinned["content"]
        if content and content != pinned:
            raise UsageError(f"the teacher has other weights ({pinned}) than the one this run began with ({content})")
        return self.task


def bring_model(
    model: nn.Module | Build,
    data: Any,
    *,
    weights: Weights | None = None,
    fit: Part | None = None,
    loss: Callable[[Logits, Targets], Tensor] | None = None,
) -> Module:
    """Make a trained module and its data the task ``module``, which search spaces name; return it.

    A plugin calls this; ``autocompress.search(teacher=..., data=...)`` does so itself.

    Args:
        model: The module, or a function that builds it.
        data: A task such as ``Images(path=...)``, or ``(inputs, targets)``; see :class:`Module`.
        weights: A ``.safetensors`` file or a ``state_dict`` to load into it.
        fit: How to train it first; by default it is taken as it is.
        loss: Maps logits and targets to a scalar; cross-entropy by default.

    Raises:
        UsageError: The weights do not fit the module, or the module fails on the data.
    """
    task = Module(model, data, weights=weights, fit=fit, loss=loss)
    TASKS.add(Module.name, Brought(task), replace=True)
    return task


@TASKS.register(Module.name)
class NotBrought:
    """Your own model and data, brought by ``autocompress.search(teacher=..., data=...)`` or by a plugin."""

    name = Module.name
    metrics = Supervised.metrics

    def __init__(self, content: str = "") -> None:
        raise UsageError(
            "no model has been brought: call autocompress.search(teacher=model, data=...), or write a file that calls "
            "autocompress.bring_model(model, data) and pass it as --plugin"
        )
