"""onnxruntime on the CPU: 8-bit kernels in the form that suits the processor, and weights of 2, 4, 8 and 16 bits."""

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.targets.base import Model, Target

#: Widths of stored weights: one, two or four codes in a byte, and float16 (`autocompress.export.onnx_weights`).
STORED_BITS = (2, 4, 8, 16, 32)


@TARGETS.register("onnxruntime")
class OnnxRuntime(Target):
    """Integer kernels for 8-bit weights with 8-bit inputs; other stored weights are computed in floating point."""

    name = "onnxruntime"
    library = "onnxruntime"
    operators = frozenset({"MatMulNBits", "GatherBlockQuantized"})
    # Blocks of AVX-512; those of AVX2 and NEON are half as large, and divide it.
    channel_multiple = 16

    def precisions(self) -> Precisions:
        """Return its widths, with the form of 8-bit weights that is exact and fastest on this processor."""
        # Imported late: reading a run needs neither onnx nor onnxruntime.
        from autocompress.targets.int8_probe import choose_int8_form

        form = choose_int8_form()
        return Precisions(
            ((8, 8), (32, 32)),
            STORED_BITS,
            decodes_tables=True,
            reduce_range=form.reduce_range,
            weight_type=form.weight_type,
        )

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run.

        Raises:
            ArtifactError: onnxruntime cannot load the model.
        """
        from autocompress.targets.onnx_session import SessionModel, create_session

        return SessionModel(create_session(model, threads))
