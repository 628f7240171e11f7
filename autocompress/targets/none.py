"""No target: every bit-width may be chosen, as for the design of hardware; low bits count as if they had kernels."""

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.targets.base import Model, Target


@TARGETS.register("none")
class NoTarget(Target):
    """Restricts no bit-width. Candidates without a kernel on common processors are marked as simulated."""

    name = "none"

    def precisions(self) -> Precisions:
        """Return precisions without a restriction."""
        return Precisions()

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return the model under onnxruntime, which computes the same numbers."""
        from autocompress.targets.onnxruntime import OnnxRuntime

        return OnnxRuntime().load(model, threads)
