"""An onnxruntime session with the settings that an exported model needs; imports no torch."""

from collections.abc import Callable, Sequence
from functools import partial

import onnx
import onnxruntime
from onnx.external_data_helper import uses_external_data

from autocompress.errors import ArtifactError
from autocompress.targets.base import Array, as_float32

WEIGHTS_ONLY = "autocompress.weights_only"


def create_session(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session on the CPU for an exported model.

    If only weights are quantized, they are decoded once when the model is loaded; by default onnxruntime decodes them
    in every run.

    Raises:
        ArtifactError: The model is damaged, or keeps tensors in other files.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    # Errors only: warnings of the optimizer do not concern users of the model.
    options.log_severity_level = 3
    if is_weights_only(model):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        # A retry with the same provider would print the error, which may contain names from the file.
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common root
        raise ArtifactError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]}") from error


class SessionModel:
    """A session as a loaded model (:class:`autocompress.targets.base.BindableModel`).

    Args:
        session: Session of the model.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs = [entry.name for entry in session.get_inputs()]
        self.outputs = [entry.name for entry in session.get_outputs()]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the outputs of a batch; the inputs are in the order of the model's.

        Raises:
            ArtifactError: An operator of the model fails.
        """
        named = dict(zip(self.inputs, arrays, strict=True))
        try:
            outputs = self.session.run(self.outputs, named)
        except Exception as error:  # onnxruntime's exceptions have no common root
            raise ArtifactError(f"onnxruntime cannot run the model: {str(error).splitlines()[0]}") from error
        return as_float32(outputs)

    def bind(self, arrays: Sequence[Array]) -> Callable[[], None]:
        """Return a function that runs the model on these inputs and leaves its outputs in the runtime.

        The conversion of arguments in Python takes longer than a small model: 4 of 6 microseconds of one operator.
        """
        binding = self.session.io_binding()
        for name, array in zip(self.inputs, arrays, strict=True):
            # The binding keeps the value, so nothing is copied in a run.
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name in self.outputs:
            binding.bind_output(name)
        return partial(self.session.run_with_iobinding, binding)


def is_weights_only(model: bytes) -> bool:
    """Return whether an exported model has quantized weights and floating-point inputs throughout.

    Raises:
        ArtifactError: The model is damaged, or keeps tensors in other files.
    """
    try:
        proto = onnx.load_from_string(model)
    except Exception as error:  # protobuf's DecodeError lives in a module that differs between its versions
        raise ArtifactError(f"the ONNX model is damaged: {error}") from error
    if any(uses_external_data(tensor) for tensor in proto.graph.initializer):
        raise ArtifactError("the ONNX model keeps tensors in other files; that is refused")
    return any(entry.key == WEIGHTS_ONLY for entry in proto.metadata_props)
