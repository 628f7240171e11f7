"""Progressive pruning: a little is cut and trained, again and again, until the score would fall below a floor."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from autocompress.core.knobs import Choice, FloatRange, IntRange, knob
from autocompress.core.method import Context, MethodState, Recovery
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune.batch_norm import reestimate_batch_norm
from autocompress.prune.channel_pruning import restore_channels
from autocompress.prune.importance import CRITERIA
from autocompress.prune.structured import Structured, StructuredConfig

CUT = Structured()
# A share of what is left may exceed what one cut of structured pruning takes.
LARGEST_CUT = 0.9


@dataclass(frozen=True)
class ProgressiveConfig(Recovery):
    """How far to go, in which steps, and where to stop.

    Example:
        >>> ProgressiveConfig(pruning_ratio=0.3, step=0.1).ratios()
        [0.1, 0.2, 0.3]
    """

    label: ClassVar[str] = "prune.progressive"

    pruning_ratio: float = knob(0.8, FloatRange(0.0, 0.9), "share of the channels to remove at most")
    step: float = knob(0.15, FloatRange(0.02, 0.9), "share of the channels that each cut removes")
    step_epochs: int = knob(2, IntRange(0, 1000), "passes over the training split after each cut")
    floor: float = knob(0.02, FloatRange(0.0, 1.0), "what the task's first metric may lose before a cut is undone")
    criterion: str = knob("l2", Choice(tuple(CRITERIA)), "what makes a channel important")
    scope: str = knob("uniform", Choice(("uniform", "global")), "the ratio holds in each layer, or over all of them")

    def effort(self) -> float:
        """Return the epochs of all cuts and of the recovery, if none is undone."""
        return float(self.recovery_epochs + len(self.ratios()) * self.step_epochs)

    def ratios(self) -> list[float]:
        """Return the share of the channels that is gone after each cut, the last one ``pruning_ratio`` itself."""
        whole = int(self.pruning_ratio / self.step + 1e-9)
        steps = [round(self.step * number, 10) for number in range(1, whole + 1)]
        return steps if steps and steps[-1] >= self.pruning_ratio - 1e-9 else [*steps, self.pruning_ratio]


class Progressive:
    """Removes a few channels, trains, measures on ``search_val``, and goes on while the score stays above the floor.

    The cut that falls below it is undone. The report holds ``path`` (one row a cut: the ratio, the score after
    training, whether it stayed) and what ``structured`` reports.
    """

    name: ClassVar[str] = "progressive"
    config = ProgressiveConfig

    def is_identity(self, config: ProgressiveConfig) -> bool:
        """Return whether nothing is removed."""
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: ProgressiveConfig, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a copy after the last cut that stayed, and what was removed; ``model`` stays as it was.

        Raises:
            CompressionError: The first cut already falls below the floor, the context cannot measure or train, or
                channels cannot be removed.
        """
        if self.is_identity(config):
            pruned, state = CUT.apply(model, StructuredConfig(pruning_ratio=0.0), context)
            return pruned, MethodState(state.history, report={**state.report, "path": []})
        if context.score is None or (config.step_epochs and context.tune is None):
            raise CompressionError("progressive pruning measures and trains after each cut; the context does neither")
        start = context.score(copy.deepcopy(model).eval())
        path: list[dict[str, Any]] = [{"pruning_ratio": 0.0, "score": start, "kept": True}]
        kept, history, sizes, gone = model, list[Any](), dict[str, Any](), 0.0
        for ratio in config.ratios():
            share = min(1 - (1 - ratio) / (1 - gone), LARGEST_CUT)
            cut, state = CUT.apply(kept, self._cut(config, share), context)
            self._train(cut, config, context)
            score = context.score(cut)
            stays = score >= start - config.floor
            path.append({"pruning_ratio": ratio, "score": score, "kept": stays})
            if not stays:
                break
            kept, gone, history = cut, ratio, [*history, *state.history["layers"]]
            for layer, (before, after) in state.report["channels"].items():
                sizes[layer] = [sizes.get(layer, [before])[0], after]
        if not history:
            raise CompressionError(
                f"the first cut, {config.ratios()[0]:.0%} of the channels, takes the score from {start:.4f} to "
                f"{path[-1]['score']:.4f}, below the floor of {start - config.floor:.4f}; lower step, or train longer"
            )
        report = {"sparsity": _sparsity(sizes), "channels": sizes, "uncut": state.report["uncut"], "path": path}
        return kept.eval(), MethodState(history={"layers": history}, report=report)

    def restore(self, model: nn.Module, config: ProgressiveConfig, state: MethodState) -> nn.Module:
        """Give a fresh model the pruned shape, in place, and return it in evaluation mode.

        Raises:
            CompressionError: The history does not fit the model.
        """
        return restore_channels(model, state)

    def _cut(self, config: ProgressiveConfig, share: float) -> StructuredConfig:
        return StructuredConfig(pruning_ratio=share, criterion=config.criterion, scope=config.scope)

    def _train(self, model: nn.Module, config: ProgressiveConfig, context: Context) -> None:
        if config.step_epochs and context.tune is not None:
            context.tune(model, config.step_epochs, config.recovery_learning_rate, None)
        if context.calibration:
            reestimate_batch_norm(model, context.calibration)
        model.eval()


def _sparsity(sizes: dict[str, Any]) -> float:
    """Return the share of the outputs of all cut layers that went."""
    before, after = (sum(size[end] for size in sizes.values()) for end in (0, 1))
    return 1 - after / before if before else 0.0


PRUNE.add(Progressive.name, Progressive())
