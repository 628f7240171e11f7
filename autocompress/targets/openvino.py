"""OpenVINO on the CPU, which reads the same ONNX files; installed by ``pip install 'autocompress[openvino]'``."""

from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.errors import ArtifactError
from autocompress.targets.base import Model, Target, as_float32
from autocompress.targets.onnxruntime import STORED_BITS

# Name of the smallest number in a graph.
_LOWEST = "lowest"


@TARGETS.register("openvino")
class OpenVino(Target):
    """Integer kernels for int8 weights with 8-bit inputs; other stored weights are computed in floating point."""

    name = "openvino"
    library = "openvino"
    extra = "openvino"

    def precisions(self) -> Precisions:
        """Return its widths: convolutions with ``uint8`` weights would run in floating point."""
        from autocompress.targets.int8_probe import choose_int8_form

        # The processor decides whether 8-bit sums overflow, whichever runtime uses its instructions.
        form = choose_int8_form()
        return Precisions(
            ((8, 8), (32, 32)),
            STORED_BITS,
            decodes_tables=True,
            reduce_range=form.reduce_range or form.weight_type == "uint8",
            weight_type="int8",
        )

    def adapt_graph(self, graph: ModelProto) -> ModelProto:
        """Return the graph with a maximum, which changes nothing, between a rounded branch and the sum that reads it.

        Otherwise convolution, rounding and sum become one kernel, which leaves the rounding out.
        """
        rounded = {output for node in graph.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
        nodes = list(graph.graph.node)
        del graph.graph.node[:]
        for node in nodes:
            for at, name in enumerate(node.input):
                if node.op_type == "Add" and name in rounded:
                    guarded = f"{node.output[0]}_term{at}"
                    graph.graph.node.append(helper.make_node("Max", [name, _LOWEST], [guarded]))
                    node.input[at] = guarded
            graph.graph.node.append(node)
        if any(_LOWEST in node.input for node in graph.graph.node):
            lowest = np.array(np.finfo(np.float32).min, np.float32)
            graph.graph.initializer.append(numpy_helper.from_array(lowest, _LOWEST))
        return graph

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run.

        Raises:
            ArtifactError: OpenVINO cannot convert the model; the message names the operator.
        """
        self.check_installed()
        import openvino

        # Results would differ from the searched ones without the first two: processors with bfloat16 compute in it, and
        # linear layers with stored codes round their inputs to 8 bits.
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        # A core holds plugins only, so one for each model costs milliseconds.
        core = openvino.Core()
        try:
            compiled = core.compile_model(core.read_model(model), "CPU", config)
        except RuntimeError as error:
            raise ArtifactError(f"OpenVINO cannot run the model: {_shorten(str(error))}") from error
        request = compiled.create_infer_request()
        outputs = list(compiled.outputs)

        def run(arrays: Any) -> Any:
            results = request.infer(list(arrays), share_inputs=True)
            # The request reuses the memory of its outputs in the next run.
            return as_float32([results[output].copy() for output in outputs])

        return run


def _shorten(text: str) -> str:
    """Return the last line of a message, which names the reason, without its stack of source files."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[-1] if lines else "no reason given"
