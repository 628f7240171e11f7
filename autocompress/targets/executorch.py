"""ExecuTorch with the kernels of XNNPACK on the CPU; installed by ``pip install 'autocompress[executorch]'``.

Its programs (.pte) are made by ``torch.export``, so that an ONNX graph is translated to a torch module first. A program
computes one example of fixed shape: examples run one after the other.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.targets.base import Array, Model, Target, check_outputs, make_inputs, run_in_turn

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress.targets.onnx_module import OnnxModule

PROGRAM = "model.pte"
# Largest relative difference of a program in floating point from the ONNX file, for random inputs.
TOLERANCE = 1e-3


@TARGETS.register("executorch")
class ExecuTorch(Target):
    """XNNPACK: 8-bit weights with 8-bit inputs in integers, and floating point."""

    name = "executorch"
    library = "executorch"
    extra = "executorch"

    def precisions(self) -> Precisions:
        """Return its widths; weights of integer kernels are signed, and stored at the width they are computed with."""
        return Precisions(((8, 8), (32, 32)), (8, 32), weight_type="int8")

    def convert(self, model: bytes) -> dict[str, bytes]:
        """Return the program, by name.

        Raises:
            ArtifactError: The model cannot be translated; the message names the operator or output.
        """
        self.check_installed()
        # Imported late: reading a run needs no torch.
        from autocompress.targets.onnx_module import build_program

        content = build_program("ExecuTorch", model, make_inputs(model), _convert_module)
        if b"QuantizeLinear" not in model:
            # Integer kernels may round the last step otherwise; their predictions are compared by the export.
            check_outputs("ExecuTorch", model, _load_program(content, 1), TOLERANCE)
        return {PROGRAM: content}

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run.

        Raises:
            ArtifactError: The model cannot be translated; see :meth:`convert`.
        """
        return _load_program(self.convert(model)[PROGRAM], threads)

    def plan_memory(self, files: Mapping[str, bytes]) -> int | None:
        """Return the bytes that the program plans for tensors between layers, beside its weights."""
        with _silence_library():
            from executorch.exir._serialize._program import deserialize_pte_binary

        plans = deserialize_pte_binary(files[PROGRAM]).program.execution_plan
        return sum(sum(plan.non_const_buffer_sizes) for plan in plans)


def _convert_module(module: "OnnxModule", inputs: "tuple[Tensor, ...]") -> bytes:
    import torch

    with _silence_library():
        # Its modules warn when they are imported, too.
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(module, inputs)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


@contextmanager
def _silence_library() -> Iterator[None]:
    """Silence ExecuTorch, which logs and warns about its passes and its interface."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def _load_program(content: bytes, threads: int) -> Model:
    import torch

    with _silence_library():
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

    with _silence_library():
        # The number of threads is one of the whole process.
        _unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(content)
        method = program.load_method("forward")
    assert method is not None

    def run_example(arrays: Sequence[Array]) -> list[Array]:
        inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        # The next run reuses the memory of the outputs.
        return [output.numpy().copy() for output in method.execute(inputs)]

    def run(arrays: Sequence[Array]) -> list[Array]:
        return run_in_turn(run_example, arrays)

    # The method reads the program's memory.
    run.program = program  # type: ignore[attr-defined]
    return run
