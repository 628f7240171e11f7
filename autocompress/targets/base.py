"""The interface of targets: what a device or runtime stores and computes, and how an exported model runs there."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from autocompress.core.atomic import compute_sha256, open_cache, write_atomic
from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.core.run_info import TargetInfo, read_processor_name
from autocompress.core.untrusted import show_value
from autocompress.errors import ArtifactError, AutocompressError, UsageError

Array: TypeAlias = NDArray[Any]
#: A loaded model: arrays of one batch, in the order of its inputs, to the arrays of its outputs.
Model: TypeAlias = Callable[[Sequence[Array]], list[Array]]


@runtime_checkable
class BindableModel(Protocol):
    """A loaded model whose inputs may be handed over once, so that a timed run holds no conversion of arguments."""

    def bind(self, arrays: Sequence[Array]) -> Callable[[], None]:
        """Return a function that runs the model on these inputs and leaves its outputs in the runtime.

        Args:
            arrays: Inputs of one batch, in the order of the model's inputs.
        """


#: Variable of the environment that allows the programs of every run folder.
RUN_PROGRAMS = "AUTOCOMPRESS_RUN_PROGRAMS"


class Target(ABC):
    """A device or runtime. Its constructor takes the options that a search space gives, by name.

    Attributes:
        name: The name in search spaces, ``target``.
        library: Package that runs models; empty if none is needed on this machine.
        extra: Extra of autocompress that installs the package; empty if it is always installed.
        operators: Operators of ``com.microsoft`` that exported graphs may use: ``MatMulNBits``,
            ``GatherBlockQuantized``.
        channel_multiple: Channels that its kernels in floating point store together. An export also times graphs whose
            channels are padded to a multiple of it; 1 for no such graphs.
    """

    name: ClassVar[str]
    library: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    operators: ClassVar[frozenset[str]] = frozenset()
    channel_multiple: ClassVar[int] = 1

    @classmethod
    def describe_installation(cls) -> str:
        """Return the command that installs what it needs; ``always`` if autocompress comes with it."""
        return f"pip install 'autocompress[{cls.extra}]'" if cls.extra else "always"

    @abstractmethod
    def precisions(self) -> Precisions:
        """Return the bit-widths that it stores and computes with, probed on this processor where they depend on it."""

    @abstractmethod
    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run.

        Args:
            model: Content of an ONNX file.
            threads: Number of threads.

        Raises:
            ArtifactError: The target cannot run the model; the message names the operator or layer it lacks.
        """

    def adapt_graph(self, graph: ModelProto) -> ModelProto:
        """Return a graph that the target computes as written; the graph itself if no kernel departs from it.

        Args:
            graph: An exported graph, which may be changed.
        """
        return graph

    def convert(self, model: bytes) -> dict[str, bytes]:
        """Return the files that the device loads, by name; the ONNX file itself if it needs no other form.

        Args:
            model: Content of an ONNX file.

        Raises:
            ArtifactError: The model has no such form; the message names the operator or layer.
        """
        return {"model.onnx": model}

    def plan_memory(self, files: Mapping[str, bytes]) -> int | None:
        """Return the bytes that files of :meth:`convert` plan for tensors between layers (the arena).

        None if the runtime decides that when it loads them.

        Args:
            files: File name to content.
        """
        return None

    def options(self) -> Mapping[str, Any]:
        """Return the options that it was made with, as JSON values."""
        return {}

    def list_programs(self) -> Sequence[str]:
        """Return the commands, programs and folders of code that its options name; most targets name none."""
        return ()

    def measure(self, model: bytes, seconds: float) -> float | None:
        """Return the latency in milliseconds that the device itself measures; None to time :meth:`load` here.

        Args:
            model: Content of an ONNX file.
            seconds: Seconds to measure.
        """
        return None

    def check_installed(self) -> str:
        """Return the version of its package; empty if it needs none.

        Raises:
            UsageError: The package is not installed; the message names the extra.
        """
        if not self.library:
            return ""
        try:
            return version(self.library)
        except PackageNotFoundError:
            raise UsageError(
                f"the target '{self.name}' needs the package {self.library}; install it with "
                f"pip install 'autocompress[{self.extra}]'"
            ) from None

    def describe(self) -> TargetInfo:
        """Return the description that a run stores.

        Raises:
            UsageError: Its package is not installed.
        """
        installed = self.check_installed()
        precisions = self.precisions()
        processor = read_processor_name() if installed else ""
        return TargetInfo(self.name, dict(self.options()), installed, processor, precisions)


def make_target(name: str, options: Mapping[str, Any]) -> Target:
    """Return a registered target with its options.

    Raises:
        UsageError: No target has that name, or it does not take these options.
    """
    try:
        target: Target = TARGETS.get(name)(**options)
    except AutocompressError:
        raise
    except TypeError as error:
        raise UsageError(f"the target '{name}' does not take these options ({error})") from None
    return target


def open_stored_target(info: TargetInfo) -> Target:
    """Return the target that a run folder describes, unless its options name a program that no search here has run.

    Raises:
        UsageError: The target cannot be made, or names such a program.
    """
    target = make_target(info.name, info.options)
    programs = target.list_programs()
    if programs and not _approval_path(target).is_file() and os.environ.get(RUN_PROGRAMS) != "1":
        raise UsageError(
            f"the target of this run is the program {show_value(' '.join(programs))}, which no search of yours has "
            f"run; if you trust it, set {RUN_PROGRAMS}=1"
        )
    return target


def approve_programs(target: Target) -> None:
    """Remember that the user searched with the programs of a target, so that the run can be exported later.

    Raises:
        StorageError: The cache folder cannot be written.
    """
    if programs := target.list_programs():
        write_atomic(_approval_path(target), json.dumps(list(programs)))


def _approval_path(target: Target) -> Path:
    content = json.dumps([target.name, list(target.list_programs())])
    return open_cache("programs") / f"{compute_sha256(content.encode())}.json"


def make_inputs(model: bytes) -> list[Array]:
    """Return inputs of zeros for one example, in the shapes that an ONNX file declares.

    Args:
        model: Content of an ONNX file.

    Raises:
        ArtifactError: The model is damaged.
    """
    import onnx

    try:
        graph = onnx.load_from_string(model).graph
    except Exception as error:  # protobuf's DecodeError lives in a module that differs between its versions
        raise ArtifactError(f"the ONNX model is damaged: {error}") from error
    inputs = []
    for value in graph.input:
        kind = value.type.tensor_type
        # A dimension with a name is the batch or the length of a list.
        shape = [dimension.dim_value or 1 for dimension in kind.shape.dim]
        inputs.append(np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    return inputs


def check_outputs(runtime: str, model: bytes, run: Model, tolerance: float) -> None:
    """Check that a converted model computes what its ONNX file does, on random inputs.

    Args:
        runtime: Name of the runtime, for the message.
        model: Content of the ONNX file.
        run: The converted model.
        tolerance: Largest difference, relative to the largest output.

    Raises:
        ArtifactError: It computes another output.
    """
    from autocompress.targets.onnxruntime import OnnxRuntime

    generator = np.random.default_rng(0)
    inputs = [
        generator.normal(size=array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for array in make_inputs(model)
    ]
    expected = OnnxRuntime().load(model)(inputs)
    for position, (values, wanted) in enumerate(zip(run(inputs), expected, strict=True)):
        # A NaN fails the comparison.
        limit = tolerance * max(1.0, float(np.abs(wanted).max()))
        if values.shape != wanted.shape or not float(np.abs(values - wanted).max()) <= limit:
            raise ArtifactError(
                f"{runtime} computes another output {position} than the ONNX file, so a layer was translated wrongly; "
                "change the model, or search for the target onnxruntime"
            )


def as_float32(arrays: Sequence[object]) -> list[Array]:
    """Return arrays of a runtime as numpy arrays."""
    return [np.asarray(array) for array in arrays]


def run_in_turn(run_example: Model, arrays: Sequence[Array]) -> list[Array]:
    """Return the outputs of a batch by a model that computes one example at a time.

    Args:
        run_example: Model of a batch of one.
        arrays: Inputs, each ``[B, ...]``.
    """
    if len(arrays[0]) == 1:
        return run_example(arrays)
    rows = [run_example([array[at : at + 1] for array in arrays]) for at in range(len(arrays[0]))]
    return [np.concatenate(values) for values in zip(*rows, strict=True)]
