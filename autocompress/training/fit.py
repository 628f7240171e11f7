"""The one way to train: teachers, students, recovery after a cut and quantization-aware training go through it."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from autocompress.core.config import Part
from autocompress.core.task import Split, Task
from autocompress.distill.base import Beside, TeacherSource
from autocompress.training import distributed as parallel, trainer as loop
from autocompress.training.device import CPU
from autocompress.training.optimizers import fit_config
from autocompress.training.trainer import Fitted, predict

__all__ = ["Fitted", "fit", "fit_until", "predict"]


def fit(
    model: nn.Module,
    task: Task,
    train: Split,
    part: Part,
    *,
    terms: Sequence[Part] = (Part("none"),),
    teacher: TeacherSource | None = None,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    after_step: Callable[[], None] | None = None,
    device: torch.device = CPU,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return its curve, one row an epoch.

    Epoch ``e`` reads augmented view ``e % task.views`` of the training split, and the teacher's cached
    logits of just that view, so that student and teacher see the same pixels (Beyer et al. 2022,
    arXiv:2106.05237). Terms that read layers or perturb inputs, and mixup, run the teacher live.

    With ``fit.processes`` above 1 the batches are shared by as many processes of this machine. A fit that calls
    ``after_step``, or whose layers are parametrized (both belong to one process), runs in this one: slower, but alike.
    So does one on a graphics card.

    Args:
        model: Trained in place and left in evaluation mode.
        task: Gives the views and the loss.
        train: The training split.
        part: The optimizer with its settings: epochs, batch size, learning rate.
        terms: Distillation terms: exactly one on logits, any number on features.
        teacher: The teacher with its cached logits.
        seed: Seeds the order of the examples, mixup and attacks.
        on_epoch: Called with each row of the curve.
        after_step: Called after each optimizer step; masks are put back on here.
        device: Where it runs; the model is on the processor before and after.

    Raises:
        TrialError: The loss is no longer finite, a term needs a teacher and there is none, or a tap does not exist.
    """
    return fit_until(
        model,
        task,
        train,
        part,
        terms=terms,
        teacher=teacher,
        seed=seed,
        on_epoch=on_epoch,
        after_step=after_step,
        device=device,
    ).curve


def fit_until(
    model: nn.Module,
    task: Task,
    train: Split,
    part: Part,
    *,
    terms: Sequence[Part],
    teacher: TeacherSource | None,
    seed: int,
    until: int | None = None,
    paused: bytes = b"",
    beside: Beside | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    after_step: Callable[[], None] | None = None,
    device: torch.device = CPU,
) -> Fitted:
    """Train ``model`` in place as :func:`fit` does, but pause after ``until`` epochs, to go on from there later.

    The segments give bit for bit what one fit gives. A fit by several processes does not pause: it runs to its end.
    What is trained beside the model belongs to one process, so such a fit runs in this one.

    Args:
        model: Trained in place and left in evaluation mode; before a later segment its weights do not matter.
        task: Gives the views and the loss.
        train: The training split.
        part: The optimizer with its settings; its epochs are those of the whole fit.
        terms: Distillation terms.
        teacher: The teacher with its cached logits.
        seed: Seeds the order of the examples, mixup and attacks.
        until: Epochs after which to pause; ``None`` for all.
        paused: What the segment before left.
        beside: A further loss of each batch, of what is trained beside the model.
        on_epoch: Called with each row of the curve.
        after_step: Called after each optimizer step.
        device: Where it runs; on a graphics card segments are alike, not bit for bit.

    Raises:
        TrialError: As in :func:`fit`; or ``paused`` is damaged or of another model.
    """
    parametrized = any(parametrize.is_parametrized(module) for module in model.modules())
    rooted = parametrized or after_step is not None or beside is not None or device != CPU
    if fit_config(part).processes > 1 and not rooted:
        return Fitted(
            parallel.fit_parallel(model, task, train, part, terms=terms, teacher=teacher, seed=seed, on_epoch=on_epoch)
        )
    return loop.run(
        model,
        task,
        train,
        part,
        terms=terms,
        teacher=teacher,
        seed=seed,
        on_epoch=on_epoch,
        after_step=after_step,
        until=until,
        paused=paused,
        beside=beside,
        device=device,
    )
