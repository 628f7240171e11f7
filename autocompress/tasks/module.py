"""Task of a user's own trained module and data."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from autocompress.core.config import Part
from autocompress.core.custom_head import ONLY_OUTPUT, BoundHead, is_number
from autocompress.core.heads import Head, as_head, find_custom_head
from autocompress.core.method import match_layers
from autocompress.core.registry import TASKS
from autocompress.core.task import Logits, Split, Targets, Task, logits_by_head
from autocompress.core.untrusted import check_data_file
from autocompress.errors import AutocompressError, TrialError, UsageError
from autocompress.measure.custom_scores import register_metrics
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.tasks.base import Supervised
from autocompress.tasks.data_task import DataTask, KindOption
from autocompress.tasks.module_forms import PreparedModule, copy_module, prepare_module, unwrap_module
from autocompress.tasks.output_sources import Estimator, is_output_source, open_source
from autocompress.tasks.targets import check_head_names
from autocompress.tasks.teacher_outputs import OutputsTask
from autocompress.tasks.tensors import Tensors

Weights = str | Path | Mapping[str, Tensor]
Build = Callable[[], nn.Module]
#: A trained module, a function that builds it, a fitted object with `predict_proba` or `predict`, or an ONNX file.
TeacherModel: TypeAlias = nn.Module | Build | Estimator | str | Path
#: Data of a teacher: a task such as ``Images(path=...)``, ``(inputs, targets)``, or a data set.
Data: TypeAlias = Task | tuple[object, object] | Dataset[Any] | Iterable[object]
ModelOutput = Tensor | Mapping[str, Tensor]
# Prefixes of torch.compile, which may wrap a parallel module, and of data parallelism.
WRAPPER_PREFIXES = ("_orig_mod.", "module.")


# Examples on which a loss and the metrics of a custom head are tried.
LOSS_EXAMPLES, METRIC_EXAMPLES = 8, 64


class CallAdapter(nn.Module):
    """Adapter that calls a module with positional tensors and returns its outputs by head.

    Args:
        module: Module of the user, stored as the submodule ``module``.
        names: Names of the inputs if the module takes them as one mapping or as keywords; empty for positional inputs.
        as_keywords: Whether the names are keyword arguments of ``forward``.
        as_tuple: Whether the module takes all inputs as one tuple.
        heads: Names of the heads, in the order of the outputs if the module returns a sequence; without names, the
            output is returned as it is.
    """

    def __init__(
        self, module: nn.Module, names: Sequence[str], as_keywords: bool, as_tuple: bool, heads: Sequence[str]
    ) -> None:
        super().__init__()
        self.module = module
        self.names, self.heads = tuple(names), tuple(heads)
        self.as_keywords, self.as_tuple = as_keywords, as_tuple

    def forward(self, *inputs: Tensor) -> ModelOutput:
        """Return the logits of the only head ``[B, C]``, or of every head by name."""
        return self.call_module(inputs)

    def call_module(self, inputs: tuple[Tensor, ...]) -> ModelOutput:
        """Return the result of :meth:`forward`."""
        if self.names:
            named = dict(zip(self.names, inputs, strict=True))
            output = self.module(**named) if self.as_keywords else self.module(named)
        else:
            output = self.module(inputs) if self.as_tuple else self.module(*inputs)
        return unpack_outputs(output, self.heads)


class SingleInputAdapter(CallAdapter):
    """Adapter for a single input; its ``forward`` has no variable arguments, which tracing does not support."""

    def forward(self, input: Tensor) -> ModelOutput:  # type: ignore[override]
        """Return the logits of the only head ``[B, C]``, or of every head by name."""
        return self.call_module((input,))


def unpack_outputs(output: Any, heads: Sequence[str]) -> ModelOutput:
    """Return the output of a module as a tensor or as a mapping of heads; ``.logits`` and sequences are unpacked.

    Example:
        >>> unpack_outputs((torch.zeros(1, 2), torch.zeros(1, 3)), ["a", "b"])["b"].shape
        torch.Size([1, 3])
    """
    if not isinstance(output, Tensor | Mapping) and hasattr(output, "logits"):
        output = output.logits
    if not heads:
        return output  # type: ignore[no-any-return]
    # The output of the user's code may have any type; ``as_heads`` checks it later.
    unpacked: ModelOutput = output
    if isinstance(output, tuple | list):
        unpacked = output[0] if len(heads) == 1 else dict(zip(heads, output, strict=False))
    elif isinstance(output, Mapping) and len(heads) == 1:
        unpacked = output.get(heads[0], output.get("logits", next(iter(output.values()))))
    return unpacked


def name_outputs(output: object) -> dict[str, Tensor]:
    """Return the tensors that a module returns, by name: those of a mapping, or numbered ones of a sequence.

    Raises:
        TrialError: There is no tensor, or a sequence holds something else.

    Example:
        >>> list(name_outputs((torch.zeros(1, 2), torch.zeros(1, 3))))
        ['output_0', 'output_1']
    """
    if isinstance(output, Tensor):
        return {ONLY_OUTPUT: output}
    outputs: dict[str, Tensor] = {}
    if isinstance(output, Mapping):
        outputs = {str(name): value for name, value in output.items() if isinstance(value, Tensor)}
    elif isinstance(output, tuple | list) and all(isinstance(value, Tensor) for value in output):
        outputs = {f"{ONLY_OUTPUT}_{position}": value for position, value in enumerate(output)}
    if not outputs:
        raise TrialError(
            f"it returns {type(output).__name__}; a custom head needs a tensor [batch, ...], or a mapping or tuple of "
            "such (decode boxes and the like in the metrics)"
        )
    check_head_names({name: name for name in outputs})
    # One tensor in a container is an only output.
    return {ONLY_OUTPUT: next(iter(outputs.values()))} if len(outputs) == 1 else outputs


class Module(DataTask):
    """Task of a user's trained module, with the data of another task.

    Its default student is ``from_teacher``: the module itself with its weights, which compression then reduces.

    Args:
        model: The module, or a function that builds it; trained, unless ``fit`` is set.
        data: A task such as ``Images(path=...)`` or ``Tensors(...)``, or the data that :class:`Tensors` takes.
        weights: A ``.safetensors`` file or a ``state_dict`` to load into the module.
        fit: Config of a training before the search; by default the module is not trained.
        loss: Function that maps outputs and targets by head to a scalar; by default the loss of each kind of head.
        kinds: Kind of each head, if the data are tensors; see :class:`~autocompress.tasks.tensors.Tensors`.
        groups: Group of each example, ``[N]``, if the data are tensors; see there.
        times: Time of each example, ``[N]``, if the data are tensors; see there.
        ignore: Patterns of layer names whose channels and blocks are not removed.
        precision: Patterns of layer names with the bit-width 32: layers that are not quantized.

    Raises:
        UsageError: The weights do not fit the module, the module fails on an example of the data, or the loss fails, is
            not finite or has no gradient on some of them.
    """

    name = "module"

    def __init__(
        self,
        model: object,
        data: Any,
        *,
        weights: Weights | None = None,
        fit: Part | None = None,
        loss: Callable[[Logits, Targets], Tensor] | None = None,
        kinds: KindOption = None,
        groups: object = None,
        times: object = None,
        ignore: Sequence[str] = (),
        precision: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(data, kinds=kinds, groups=groups, times=times)
        # Precision "auto": evaluating the teacher on all augmented views is most of the work before a search.
        self._fit = fit or Part.of("adamw", epochs=0, precision="auto")
        prepared = _load_module(model, weights)
        self._module_notices = prepared.notices
        self.model = self._adapt_module(prepared.module)
        custom = find_custom_head(self.heads)
        if custom is not None and loss is not None:
            raise UsageError("loss and a CustomHead are given; the loss of the head is used, so leave loss out")
        self._loss = loss or (super().loss if custom is None else custom.compute_loss)
        self._has_own_loss = loss is not None or custom is not None
        if self._has_own_loss:
            self._check_loss()
        if custom is not None:
            self._check_custom_head(custom)
        self.ignore = self._read_patterns("ignore", ignore)
        self.float_layers = self._read_patterns("precision", precision or {})
        if wrong := {pattern: bits for pattern, bits in (precision or {}).items() if bits != 32}:
            raise UsageError(f"precision {wrong}: only 32 is possible, which keeps a layer in floating point")

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the module, such as converted or frozen weights, and on the data."""
        return (*self._module_notices, *self._data.notices)

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Hash of the weights in twelve hex digits, which identifies the module."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            # Names, shapes and types too, because equal bytes may belong to different tensors.
            digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return {"content": digest.hexdigest()[:12]}

    @property
    def has_own_loss(self) -> bool:
        """Whether the user gave a loss."""
        return self._has_own_loss

    def teacher(self) -> tuple[Part, Part]:
        """Return the module itself as the teacher, and its training config: no training by default."""
        return Part(FROM_TEACHER), self._fit

    def build(self, student: Part) -> nn.Module:
        """Return a copy of the module with its weights, or an untrained model of another family."""
        if student.name == FROM_TEACHER:
            return copy.deepcopy(self.model)
        return super().build(student)

    def loss(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the loss of one batch, ``[]``."""
        return self._loss(logits, targets)

    def _check_custom_head(self, custom: BoundHead) -> None:
        """Check metrics, distillation and training outputs of a custom head on examples, before anything is trained.

        Raises:
            UsageError: A function fails or returns no finite number, or the module returns other outputs in training.
        """
        splits = self._data.splits(0)
        examples = splits.search_val.take(slice(0, METRIC_EXAMPLES))
        outputs = self._run_module(examples)
        for metric in custom.head.metrics:
            try:
                value = custom.measure(metric, outputs, examples.targets)
            except TrialError as error:
                raise UsageError(str(error)) from error
            if not is_number(value):
                raise UsageError(
                    f"the metric '{metric}' is {value} on {len(examples)} examples; return a finite number, also where "
                    "nothing is found"
                )
        few = splits.train.take(slice(0, LOSS_EXAMPLES))
        outputs = self._run_module(few)
        try:
            distance = custom.distill(outputs, outputs, few.targets)
        except Exception as error:  # The user's code may raise any exception.
            raise UsageError(f"distillation fails on outputs of the teacher: {_describe_error(error)}") from error
        if not is_number(distance.detach()):
            raise UsageError(
                f"distillation is {float(distance)} for equal outputs; guard logarithms, divisions and roots"
            )
        trained = self._run_module(few, is_training=True)
        shapes = {name: values.shape for name, values in outputs.items()}
        if {name: values.shape for name, values in trained.items()} != shapes:
            raise UsageError(
                f"the teacher returns {_describe_shapes(trained)} in training mode, and {_describe_shapes(outputs)} "
                "otherwise; a custom head needs the same raw outputs in both"
            )

    def _run_module(self, examples: Split, *, is_training: bool = False) -> dict[str, Tensor]:
        """Return the outputs of a copy of the module by head."""
        model = copy.deepcopy(self.model).train(is_training) if is_training else self.model
        try:
            with torch.no_grad():
                return logits_by_head(model(*examples.inputs), self.heads)
        except Exception as error:  # The user's code may raise any exception.
            mode = " in training mode" if is_training else ""
            raise UsageError(
                f"the teacher fails on a batch of {len(examples)} examples{mode}: {_describe_error(error)}"
            ) from error

    def _check_loss(self) -> None:
        """Check the user's loss on outputs of the module for some training examples, before anything is trained.

        Raises:
            UsageError: The loss fails, is no finite number, or has no gradient.
        """
        examples = self._data.splits(0).train.take(slice(0, LOSS_EXAMPLES))
        outputs = self._run_module(examples)
        leaves = {head: output.detach().float().requires_grad_() for head, output in outputs.items()}
        try:
            value = self._loss(leaves, examples.targets)
        except Exception as error:  # The user's code may raise any exception.
            raise UsageError(
                f"loss fails on outputs of the teacher, {_describe_shapes(leaves)}: {_describe_error(error)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UsageError(f"loss returns {given}; return a tensor with one number, such as the mean over the batch")
        if not bool(value.isfinite()):
            number = float(value.detach())
            raise UsageError(f"loss is {number} on outputs of the teacher; guard logarithms, divisions and roots")
        gradients: Sequence[Tensor | None] = ()
        if value.requires_grad:
            gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        received = [gradient for gradient in gradients if gradient is not None]
        if not received:
            raise UsageError(
                "loss has no gradient in the outputs; compute it from them, without argmax, item or detach"
            )
        if not all(bool(gradient.isfinite().all()) for gradient in received):
            raise UsageError("loss has a gradient that is not finite; guard roots and divisions at zero")

    def _read_patterns(self, argument: str, patterns: Iterable[str]) -> tuple[str, ...]:
        """Return patterns of the names in the user's module as patterns of the names in the adapted one.

        Raises:
            UsageError: A pattern matches no layer.
        """
        prefix = "module." if isinstance(self.model, CallAdapter) else ""
        adapted = tuple(f"{prefix}{pattern}" for pattern in patterns)
        for pattern, given in zip(adapted, patterns, strict=True):
            if not match_layers(self.model, [pattern]):
                raise UsageError(f"{argument}: '{given}' matches no layer of the teacher; print(model) lists the names")
        return adapted

    def _adapt_module(self, module: nn.Module) -> nn.Module:
        """Return the module, with an adapter if it does not take positional tensors or return its outputs by head.

        The right form of the call is found by running the module on one example.

        Raises:
            UsageError: The module fails in every form, or its outputs do not match the heads.
        """
        names = getattr(self._data, "names", ())
        # The outputs of a custom head are known after the first call.
        heads = [] if find_custom_head(self.heads) is not None else list(self.heads)
        parameters = inspect.signature(module.forward).parameters
        # Inputs by name are keywords if forward() has parameters of these names, otherwise one mapping.
        as_keywords = bool(names) and set(names) <= set(parameters)
        adapter = SingleInputAdapter if len(self.inputs) == 1 else CallAdapter
        options: list[nn.Module]
        if names:
            options = [adapter(module, names, as_keywords, False, heads)]
        else:
            # The module itself comes first, so an adapter is added only if it is needed.
            options = [module, *(adapter(module, (), False, as_tuple, heads) for as_tuple in (False, True))]
        reasons = []
        for candidate in options:
            candidate.eval()
            try:
                with torch.no_grad():
                    outputs = self._read_outputs(candidate, candidate(*self.example()))
                self._check_outputs(outputs)
            except AutocompressError as error:
                reasons.append(str(error))
            except Exception as error:  # The user's code may raise any exception.
                reasons.append(_describe_error(error))
            else:
                return candidate
        raise UsageError(
            f"{type(module).__name__} fails on one example of the data "
            f"({', '.join(str((1, *spec.shape)) for spec in self.inputs)}): {reasons[0]}"
        )

    def _read_outputs(self, candidate: nn.Module, output: object) -> dict[str, Tensor]:
        """Return the outputs of one example by head; those of a custom head are named.

        Raises:
            TrialError: They do not fit the heads, or are no tensors.
        """
        if find_custom_head(self.heads) is None:
            return logits_by_head(output, self.heads)
        outputs = name_outputs(output)
        if isinstance(candidate, CallAdapter):
            candidate.heads = tuple(outputs)
        elif not isinstance(output, Tensor) and not (isinstance(output, Mapping) and len(outputs) > 1):
            # An adapter names them.
            raise TrialError("its outputs have no names")
        return outputs

    def _check_outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """Check the outputs of one example, and take the kinds and sizes of the heads from them."""
        for name, output in outputs.items():
            if not isinstance(output, Tensor) or not output.dim():
                raise TrialError(f"its output for '{name}' is {type(output).__name__}, not a tensor [batch, ...]")
            if len(output) != 1:
                raise TrialError(f"its output for '{name}' is {list(output.shape)} for a batch of one example")
        if isinstance(self._data, Tensors):
            self._data = self._data.fit_outputs(outputs)
            self._read_data()
        heads = {}
        for name, size in self.heads.items():
            head, output = as_head(size), outputs[name]
            if head.kind == "classes":
                if output.dim() != 2:
                    raise TrialError(f"its output for '{name}' is {list(output.shape)}, not a tensor [batch, classes]")
                if output.shape[1] < head:
                    classes = output.shape[1]
                    raise TrialError(f"its output for '{name}' has {classes} classes, but the data has {head:d}")
                # A module may have more classes than the data, such as one trained on ImageNet.
                head = Head(output.shape[1], head.metric)
            heads[name] = head
        self.heads = heads
        # The names of further classes are unknown.
        if any(name in heads and len(names) != heads[name].named_outputs for name, names in self.labels.items()):
            self.labels = {}


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _describe_shapes(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{head}' {list(output.shape)}" for head, output in outputs.items())


def _load_module(model: object, weights: Weights | None) -> PreparedModule:
    """Return a copy of the module in a form that can be trained, with the weights loaded.

    Raises:
        UsageError: The model is not a module, has a form that cannot be trained, or the weights do not fit.
    """
    if not isinstance(model, nn.Module):
        built = _build_module(model) if callable(model) else model
        if not isinstance(built, nn.Module):
            raise UsageError(
                f"the teacher is {type(built).__name__}; give a torch.nn.Module, a function that builds one, a fitted "
                "object with predict_proba or predict, or the path of an .onnx file"
            )
        model = built
    # Weights first: those of a lazy module give it its shapes.
    if weights is not None:
        model = copy_module(unwrap_module(model))
        _load_weights(model, *_read_weights(weights))
    prepared = prepare_module(model)
    for name, tensor in prepared.module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"the teacher's state_dict has '{name}' of type {type(tensor).__name__}; only tensors fit")
        # Weights that are not finite would otherwise show up as failed trials only.
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"the teacher's '{name}' contains values that are not finite")
    return prepared


def _build_module(build: Callable[[], object]) -> object:
    try:
        return build()
    except Exception as error:  # the user's code may raise any exception
        raise UsageError(
            f"the function that builds the teacher failed: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _read_weights(weights: Weights) -> tuple[Mapping[str, Tensor], str]:
    """Return weights by name, and their source for messages."""
    if not isinstance(weights, str | Path):
        return weights, "the weights"
    if Path(weights).suffix != ".safetensors":
        raise UsageError(
            f"{weights}: weights must be a .safetensors file (other formats can run code when they are loaded)"
        )
    try:
        check_data_file(weights)
        return load_file(weights), str(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{weights} cannot be read: {error}") from error


def _load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    state = module.state_dict()
    # Weights that were saved from a wrapped module.
    for prefix in WRAPPER_PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights) and not set(weights) & set(state):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    faults = [f"'{name}' is missing" for name in state if name not in weights]
    faults += [f"'{name}' is unknown to the module" for name in weights if name not in state]
    faults += [
        f"'{name}' has the shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in state.items()
        # A lazy tensor takes the shape of its weights.
        if name in weights and not is_lazy(tensor) and weights[name].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults[:3])}{more}")
    module.load_state_dict(weights)


@dataclass(frozen=True)
class ModuleFactory:
    """Factory that a user's teacher is registered as: it returns the same task if the teacher is the expected one."""

    task: Module | OutputsTask

    def __call__(self, content: str = "") -> Module | OutputsTask:
        """Return the task.

        Raises:
            UsageError: The run was started with another teacher.
        """
        # A worker, or another process, has the built-in objectives only.
        custom = find_custom_head(self.task.heads)
        if custom is not None:
            register_metrics(custom.head)
        current = self.task.identity_options["content"]
        if content and content != current:
            what = "weights" if isinstance(self.task, Module) else "outputs"
            raise UsageError(
                f"the teacher has other {what} ({current}) than the one this run was started with ({content})"
            )
        return self.task


def bring_model(
    model: TeacherModel,
    data: Data,
    *,
    weights: Weights | None = None,
    fit: Part | None = None,
    loss: Callable[[Logits, Targets], Tensor] | None = None,
    kinds: KindOption = None,
    groups: object = None,
    times: object = None,
    ignore: Sequence[str] = (),
    precision: Mapping[str, int] | None = None,
) -> Module | OutputsTask:
    """Register a trained module and its data as the task ``module`` and return the task.

    A teacher need not be a torch module: students of any family learn from the outputs of a fitted object or an ONNX
    file.

    Call it in a plugin; ``autocompress.search(teacher=..., data=...)`` calls it itself.

    Args:
        model: The module, or a function that builds it; or a fitted object with ``predict_proba``, or with ``predict``
            for numbers; or the path of an ``.onnx`` file, whose outputs are logits, probabilities or numbers.
        data: A task such as ``Images(path=...)``, or ``(inputs, targets)``; see :class:`Module`. A fitted object or an
            ONNX file reads the columns of a table as its file has them.
        weights: A ``.safetensors`` file or a ``state_dict`` to load into the module.
        fit: Config of a training before the search; by default the module is not trained.
        loss: Function that maps outputs and targets by head to a scalar; by default the loss of each kind of head.
        kinds: Kind of each head, if the data are tensors: ``classes``, ``binary``, ``multilabel``, ``dense``, ``tags``
            or ``regression``; inferred by default. A :class:`~autocompress.core.custom_head.CustomHead` has a loss and
            metrics of your own.
        groups: Group of each example, ``[N]``, if the data are tensors, such as its patient: a group is never in two
            splits.
        times: Time of each example, ``[N]``, if the data are tensors: training data is earlier than test data.
        ignore: Patterns of layer names, such as ``["encoder.*"]``, whose channels and blocks are not removed.
        precision: Patterns of layer names with the bit-width 32, ``{"head": 32}``: layers that are not quantized.

    Raises:
        UsageError: The weights do not fit the module, module or loss fail on the data, or a pattern matches no layer;
            or the outputs of another teacher do not fit the data.
    """
    if is_output_source(model):
        options = {"weights": weights, "fit": fit, "loss": loss, "ignore": ignore, "precision": precision}
        if useless := [name for name, value in options.items() if value]:
            raise UsageError(f"{', '.join(useless)}: a teacher that is no torch module has neither layers nor weights")
        predicted = OutputsTask(open_source(model), data, kinds=kinds, groups=groups, times=times)
        TASKS.add(OutputsTask.name, ModuleFactory(predicted), replace=True)
        return predicted
    task = Module(
        model,
        data,
        weights=weights,
        fit=fit,
        loss=loss,
        kinds=kinds,
        groups=groups,
        times=times,
        ignore=ignore,
        precision=precision,
    )
    # Replaces the placeholder below, or the module of an earlier call.
    TASKS.add(Module.name, ModuleFactory(task), replace=True)
    return task


class MissingModule:
    """Your own model and data, passed to ``autocompress.search`` or registered by a plugin."""

    name = Module.name
    metrics = Supervised.metrics

    def __call__(self, content: str = "") -> Module:
        """Refuse to build a task.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "the task module has no model: call autocompress.search(teacher=model, data=...), or write a file that "
            "calls autocompress.bring_model(model, data) and pass it as --plugin"
        )


TASKS.add(Module.name, MissingModule())
