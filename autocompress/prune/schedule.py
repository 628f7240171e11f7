"""Pruning schedules: the growth of the ratio over one or several steps with training between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from autocompress.core.knobs import Choice, IntRange, knob
from autocompress.core.method import Context, Recovery
from autocompress.errors import CompressionError
from autocompress.prune.batch_norm import reestimate_batch_norm

# Share of the final ratio after a share of the steps.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "one_shot": lambda share: 1.0,
    "linear": lambda share: share,
    # Large steps while many weights are redundant, small ones at the end (Zhu and Gupta 2017, arXiv:1710.01878).
    "cubic": lambda share: 1 - (1 - share) ** 3,
}


@dataclass(frozen=True)
class GradualConfig(Recovery):
    """Hyperparameters of a method that can prune in several steps with training between them."""

    schedule: str = knob("one_shot", Choice(tuple(SCHEDULES)), "how the ratio grows over the pruning steps")
    steps: int = knob(4, IntRange(1, 50), "pruning steps of the schedules linear and cubic")
    step_epochs: int = knob(1, IntRange(0, 1000), "passes over the training split between two steps")

    def estimate_epochs(self) -> float:
        """Return the epochs of training between the steps and after the last one."""
        steps = 1 if self.schedule == "one_shot" else self.steps
        return float(self.recovery_epochs + (steps - 1) * self.step_epochs)

    def step_ratios(self, ratio: float) -> list[float]:
        """Return the ratio after each step; the last one is ``ratio`` itself.

        Example:
            >>> GradualConfig(schedule="linear", steps=4).step_ratios(0.5)
            [0.125, 0.25, 0.375, 0.5]
            >>> GradualConfig(schedule="cubic", steps=2).step_ratios(0.5)
            [0.4375, 0.5]
        """
        steps = 1 if self.schedule == "one_shot" else self.steps
        return [ratio * SCHEDULES[self.schedule](step / steps) for step in range(1, steps + 1)]

    def train_between_steps(self, model: nn.Module, context: Context, hold: Callable[[], None] | None = None) -> None:
        """Train a model in place before its next pruning step, and leave it in evaluation mode.

        With ``step_epochs=0`` its batch norms are re-estimated instead, because the criteria of the next step depend
        on their outputs.

        Args:
            model: The model after a pruning step.
            context: The training function and the calibration batches.
            hold: Callback after each training step, such as one that sets masked weights back to zero.

        Raises:
            CompressionError: The context has no training function.
        """
        if self.step_epochs == 0:
            if context.calibration:
                reestimate_batch_norm(model, context.calibration)
        elif context.fine_tune is None:
            raise CompressionError(
                f"schedule '{self.schedule}' trains between its steps, but this context cannot train; set step_epochs=0"
            )
        else:
            context.fine_tune(model, self.step_epochs, self.recovery_learning_rate, hold)
        model.eval()
