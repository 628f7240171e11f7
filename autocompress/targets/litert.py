"""LiteRT (formerly TensorFlow Lite) on the CPU, in floating point; installed by ``pip install 'autocompress[litert]'``.

Its models (.tflite) are made from ``torch.export`` programs, so that an ONNX graph is translated to a torch module
first. A model computes one example of fixed shape: examples run one after the other.
"""

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.errors import UsageError
from autocompress.targets.base import Array, Model, Target, check_outputs, make_inputs, run_in_turn

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress.targets.onnx_module import OnnxModule

PROGRAM = "model.tflite"
# Largest relative difference of a converted model from the ONNX file, for random inputs.
TOLERANCE = 1e-3


@TARGETS.register("litert")
class LiteRt(Target):
    """LiteRT with the kernels of XNNPACK, in floating point."""

    name = "litert"
    library = "ai_edge_litert"
    extra = "litert"

    def precisions(self) -> Precisions:
        """Return its widths: weights and inputs of 32 bits."""
        return Precisions(((32, 32),), (32,))

    def check_installed(self) -> str:
        """Return the version of the runtime.

        Raises:
            UsageError: The runtime or its converter is not installed.
        """
        installed = super().check_installed()
        if find_spec("litert_torch") is None:
            raise UsageError(
                "the target 'litert' needs the package litert-torch; install it with pip install 'autocompress[litert]'"
            )
        return installed

    def convert(self, model: bytes) -> dict[str, bytes]:
        """Return the model of LiteRT, by name.

        Raises:
            ArtifactError: The model cannot be translated; the message names the operator or output.
        """
        self.check_installed()
        # Imported late: reading a run needs no torch.
        from autocompress.targets.onnx_module import build_program

        content = build_program("LiteRT", model, make_inputs(model), _convert_module)
        check_outputs("LiteRT", model, _load_program(content, 1), TOLERANCE)
        return {PROGRAM: content}

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run.

        Raises:
            ArtifactError: The model cannot be translated; see :meth:`convert`.
        """
        return _load_program(self.convert(model)[PROGRAM], threads)


def _convert_module(module: "OnnxModule", inputs: "tuple[Tensor, ...]") -> bytes:
    # The converter prints each of its steps.
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        import litert_torch

        path = Path(folder) / PROGRAM
        litert_torch.convert(module, inputs).export(str(path))
        return path.read_bytes()


def _load_program(content: bytes, threads: int) -> Model:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    # Sorted by name, which ends with the position: the order of the details is that of the tensors in the file.
    inputs, outputs = (
        [entry["index"] for entry in sorted(details, key=lambda entry: (len(entry["name"]), entry["name"]))]
        for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )

    def run_example(arrays: Sequence[Array]) -> list[Array]:
        for index, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(index, np.ascontiguousarray(array))
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return partial(run_in_turn, run_example)
