"""Progressive pruning: small pruning steps with training after each, until the score falls by more than a limit."""

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState, Recovery, ScoreFloor
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.calibration import reestimate_batch_norm
from autocompress.prune.channels import PruningHistory
from autocompress.prune.importance import CRITERION_CHOICE
from autocompress.prune.structured import Structured, StructuredConfig, restore_channels

STRUCTURED = Structured()
# The share of the remaining channels may exceed the range of StructuredConfig.pruning_ratio, which ends here.
MAX_STEP_RATIO = 0.9


@dataclass(frozen=True)
class ProgressiveConfig(Recovery):
    """The final ratio, the size of the steps and the limit on the loss of score.

    Example:
        >>> ProgressiveConfig(pruning_ratio=0.3, step=0.1).step_ratios()
        [0.1, 0.2, 0.3]
    """

    label: ClassVar[str] = "prune.progressive"

    pruning_ratio: float = knob(0.8, FloatRange(0.0, 0.9), "share of the channels to remove at most")
    step: float = knob(0.15, FloatRange(0.02, 0.9), "share of the channels that each step removes")
    step_epochs: int = knob(2, IntRange(0, 1000), "passes over the training split after each step")
    floor: float = knob(
        0.02, FloatRange(0.0, 1.0), "largest loss of the first metric of any head; a step that exceeds it is undone"
    )
    criterion: str = knob("l2", CRITERION_CHOICE, "what makes a channel important")
    scope: str = knob(
        "uniform", Choice(("uniform", "global")), "whether the ratio applies to each layer or to all layers together"
    )

    def estimate_epochs(self) -> float:
        """Return the epochs of all steps and of the recovery, if no step is undone."""
        return float(self.recovery_epochs + len(self.step_ratios()) * self.step_epochs)

    def step_ratios(self) -> list[float]:
        """Return the removed share of the channels after each step; the last one is ``pruning_ratio`` itself."""
        # The small number makes a ratio that is a multiple of the step count as one in binary arithmetic.
        whole = int(self.pruning_ratio / self.step + 1e-9)
        steps = [round(self.step * number, 10) for number in range(1, whole + 1)]
        return steps if steps and steps[-1] >= self.pruning_ratio - 1e-9 else [*steps, self.pruning_ratio]


class Progressive:
    """Repeats pruning, training and measuring on ``search_val`` while no head loses more score than ``floor``.

    The step that exceeds the limit is undone. The report holds ``path`` (one row per step: the ratio, the score after
    training, whether the step was kept) and the entries of ``structured``.
    """

    name: ClassVar[str] = "progressive"
    config = ProgressiveConfig

    def is_identity(self, config: ProgressiveConfig) -> bool:
        """Return whether the config removes nothing."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: ProgressiveConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy after the last step that was kept and a record of the removal; ``model`` is not changed.

        Raises:
            CompressionError: The first step already loses too much score, the context cannot measure or train, or
                channels cannot be removed.
        """
        if self.is_identity(config):
            pruned, state = STRUCTURED.apply(model, StructuredConfig(pruning_ratio=0.0), context)
            return pruned, MethodState(state.history, report={**state.report, "path": []})
        if context.score is None or (config.step_epochs and context.fine_tune is None):
            raise CompressionError(
                "progressive pruning measures and trains after each step, which needs both functions in the context"
            )
        # On a copy, because the model must keep its mode.
        scores = context.measure_heads(copy.deepcopy(model).eval())
        limit = ScoreFloor(scores, config.floor)
        path: list[dict[str, float | bool]] = [{"pruning_ratio": 0.0, **limit.to_row(scores), "kept": True}]
        accepted, accepted_ratio = model, 0.0
        history: PruningHistory = []
        widths: dict[str, list[int]] = {}
        for ratio in config.step_ratios():
            # The ratio refers to the original channels, and the step prunes those that are left.
            share = min(1 - (1 - ratio) / (1 - accepted_ratio), MAX_STEP_RATIO)
            pruned, state = STRUCTURED.apply(accepted, self._step_config(config, share), context)
            self._train_step(pruned, config, context)
            scores = context.measure_heads(pruned)
            is_accepted = limit.accepts(scores)
            path.append({"pruning_ratio": ratio, **limit.to_row(scores), "kept": is_accepted})
            if not is_accepted:
                break
            accepted, accepted_ratio, history = pruned, ratio, [*history, *state.history["layers"]]
            for layer, (before, after) in state.report["channels"].items():
                widths[layer] = [widths.get(layer, [before])[0], after]
        if not history:
            raise CompressionError(
                f"the first step prunes {config.step_ratios()[0]:.0%} of the channels and lowers the score "
                f"{limit.describe(scores)}; use a smaller step or train longer"
            )
        report = {
            "sparsity": _measure_sparsity(widths),
            "channels": widths,
            "uncut": state.report["uncut"],
            "path": path,
        }
        return accepted.eval(), MethodState(history={"layers": history}, report=report)

    def restore(self, model: nn.Module, config: ProgressiveConfig, state: MethodState) -> nn.Module:
        """Shrink a freshly built model to the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_channels(model, state)

    def _step_config(self, config: ProgressiveConfig, share: float) -> StructuredConfig:
        return StructuredConfig(pruning_ratio=share, criterion=config.criterion, scope=config.scope)

    def _train_step(self, model: nn.Module, config: ProgressiveConfig, context: Context) -> None:
        if config.step_epochs and context.fine_tune is not None:
            context.fine_tune(model, config.step_epochs, config.recovery_learning_rate, None)
        if context.calibration:
            reestimate_batch_norm(model, context.calibration)
        model.eval()


def _measure_sparsity(widths: dict[str, list[int]]) -> float:
    """Return the removed share of the outputs of all pruned layers."""
    before, after = (sum(width[end] for width in widths.values()) for end in (0, 1))
    return 1 - after / before if before else 0.0


PRUNE.add(Progressive.name, Progressive())
