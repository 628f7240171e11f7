"""How the pruning ratio grows: in one cut, or over several with training between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from autocompress.core.knobs import Choice, IntRange, knob
from autocompress.core.method import Context, Recovery
from autocompress.errors import CompressionError
from autocompress.prune.batch_norm import reestimate_batch_norm

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "one_shot": lambda share: 1.0,
    "linear": lambda share: share,
    # Much at first, when much is redundant, and little at the end (Zhu and Gupta 2017, arXiv:1710.01878).
    "cubic": lambda share: 1 - (1 - share) ** 3,
}


@dataclass(frozen=True)
class Gradual(Recovery):
    """Knobs of a method that may cut several times, with training between the cuts."""

    schedule: str = knob("one_shot", Choice(tuple(SCHEDULES)), "how the ratio grows from cut to cut")
    steps: int = knob(4, IntRange(1, 50), "cuts of the schedules linear and cubic")
    step_epochs: int = knob(1, IntRange(0, 1000), "passes over the training split between two cuts")

    def effort(self) -> float:
        """Return the epochs between the cuts and after the last."""
        cuts = 1 if self.schedule == "one_shot" else self.steps
        return float(self.recovery_epochs + (cuts - 1) * self.step_epochs)

    def ratios(self, ratio: float) -> list[float]:
        """Return the ratio that each cut reaches, the last one ``ratio`` itself.

        Example:
            >>> Gradual(schedule="linear", steps=4).ratios(0.5), Gradual(schedule="cubic", steps=2).ratios(0.5)
            ([0.125, 0.25, 0.375, 0.5], [0.4375, 0.5])
        """
        steps = 1 if self.schedule == "one_shot" else self.steps
        return [ratio * SCHEDULES[self.schedule](step / steps) for step in range(1, steps + 1)]

    def between(self, model: nn.Module, context: Context, hold: Callable[[], None] | None = None) -> None:
        """Train a model in place before its next cut, and leave it in evaluation mode.

        Without epochs to train, its batch norms are measured again: the next cut is chosen by what they pass on.

        Raises:
            CompressionError: There is nothing to train with.
        """
        if self.step_epochs == 0:
            if context.calibration:
                reestimate_batch_norm(model, context.calibration)
        elif context.tune is None:
            raise CompressionError(f"schedule '{self.schedule}' trains between its cuts; set step_epochs to 0 or train")
        else:
            context.tune(model, self.step_epochs, self.recovery_learning_rate, hold)
        model.eval()
