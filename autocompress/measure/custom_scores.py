"""Scores of custom heads: the user's metrics as objectives, and the loss itself."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

from torch import Tensor

from autocompress.core.custom_head import TASK_LOSS, CustomHead
from autocompress.core.heads import find_custom_head
from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError, UsageError, did_you_mean
from autocompress.measure.objectives import Objective, Subject, objective


def register_metrics(head: CustomHead) -> None:
    """Register the metrics of a custom head as objectives; those of an earlier one with the same names are replaced.

    Raises:
        UsageError: A metric has the name of another objective or of no column, or a direction belongs to no metric.
    """
    if not isinstance(head.metrics, Mapping) or not all(isinstance(name, str) for name in head.metrics):
        raise UsageError("metrics is no mapping of names to functions; give {'name': function}")
    directions = head.higher_is_better if isinstance(head.higher_is_better, Mapping) else {}
    for name in directions:
        if name not in head.metrics:
            raise UsageError(f"higher_is_better has '{name}', which is no metric: {did_you_mean(name, head.metrics)}")
    for name in head.metrics:
        if not name.isidentifier():
            raise UsageError(f"a metric cannot be called '{name}'; give a word such as 'map' or 'mean_iou'")
        if name == TASK_LOSS or (name in OBJECTIVES and OBJECTIVES.get(name).reads != "outputs"):
            raise UsageError(f"the metric '{name}' has the name of another score; give it a name of its own")
        direction: Literal["maximize", "minimize"] = "maximize" if head.is_maximized(name) else "minimize"
        doc = f"Metric '{name}' of the custom head."
        measure = partial(_measure_custom, name)
        OBJECTIVES.add(name, Objective(name, direction, "", "score", measure, doc, "outputs"), replace=True)


def _measure_custom(name: str, subject: Subject) -> float:
    bound = find_custom_head(subject.heads)
    if bound is None:
        raise TrialError(f"the score '{name}' belongs to a custom head, and the task has none")
    if name != TASK_LOSS and name not in bound.head.metrics:
        raise TrialError(f"the custom head has no metric '{name}'; it has {sorted(bound.head.metrics)}")
    return bound.measure(name, subject.logits, subject.targets)


def score_custom_examples(name: str, subject: Subject) -> Tensor | None:
    """Return the scores of the examples, ``[N]``, or of all of them, ``[1]``; None for a score of no custom head.

    Raises:
        TrialError: The metric fails.
    """
    bound = find_custom_head(subject.heads)
    if bound is None or OBJECTIVES.get(name).reads != "outputs":
        return None
    return bound.score_examples(name, subject.logits, subject.targets)


@objective(TASK_LOSS, "minimize", "score", reads="outputs")
def task_loss(subject: Subject) -> float:
    """Loss of a custom head."""
    return _measure_custom(TASK_LOSS, subject)
