"""The entry point of training: teachers, students, recovery after pruning and quantization-aware training use it."""

import logging

from torch import nn
from torch.nn.utils import parametrize

from autocompress.training.device import CPU
from autocompress.training.distributed import fit_parallel
from autocompress.training.trainer import FitRequest, FitResult, Trainer, predict

__all__ = ["FitRequest", "FitResult", "fit", "predict"]

logger = logging.getLogger(__name__)


def fit(model: nn.Module, request: FitRequest) -> FitResult:
    """Train ``model`` in place and return its curve and, if the fit pauses, the state from which it resumes.

    A paused and resumed fit gives bit for bit what an uninterrupted one gives. With ``fit.processes`` above 1, several
    processes of this machine share the batches; such a fit does not pause.

    Args:
        model: The model, left in evaluation mode. When a paused fit resumes, its weights are replaced.
        request: Task, data, optimizer, losses and length of the fit.

    Raises:
        TrialError: The loss is no longer finite, a term needs a teacher and there is none, a layer that a term reads
            does not exist, or the paused state is damaged or of another model.

    Example:
        >>> from autocompress.core.config import Part
        >>> from autocompress.tasks.images import Digits
        >>> task = Digits()
        >>> student = task.build(Part.of("cnn", width=4, depth=1))
        >>> result = fit(student, FitRequest(task, task.splits(0).train, Part.of("adamw", epochs=2)))
        >>> len(result.curve)
        2
    """
    processes = request.config.processes
    if processes > 1:
        reason = _find_single_process_reason(model, request)
        if not reason:
            return fit_parallel(model, request)
        logger.info("The fit runs in one process instead of %d: %s", processes, reason)
    return Trainer(model, request).run()


def _find_single_process_reason(model: nn.Module, request: FitRequest) -> str:
    """Return why a fit cannot be shared by several processes; empty if it can."""
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        return "the layers of the model are parametrized"
    if request.after_step is not None:
        return "a callback follows each step"
    if request.auxiliary_loss is not None:
        return "an auxiliary loss belongs to one process"
    return "" if request.device == CPU else "one process uses the GPU"
