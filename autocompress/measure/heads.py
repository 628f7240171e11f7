"""Scores of a single head, written ``accuracy@language``, and scores of the worst head.

A score of several heads is their mean; it hides a head that fails. Any score can be asked of one head: it is measured
on a subject that has no other.
"""

import math
from collections.abc import Collection
from dataclasses import replace

from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError, UsageError, did_you_mean
from autocompress.measure import builtin
from autocompress.measure.objectives import Objective, Subject, objective

AT = "@"
"""Stands between a score and its head; no name of a registered score holds it."""

BY_HEAD = ("accuracy", "f1_macro", "retention")
"""What is measured of each head of a task with several."""


def objective_called(name: str) -> Objective:
    """Return the registered objective of that name, or the score of one head for a name such as ``accuracy@language``.

    Raises:
        UnknownNameError: No objective has that name.
        UsageError: A cost is asked of a head.

    Example:
        >>> objective_called("accuracy@language").doc
        "Share of examples whose class is predicted; of the head 'language' alone."
    """
    base, at, head = name.partition(AT)
    found: Objective = OBJECTIVES.get(base)
    if not at:
        return found
    if found.kind != "score":
        raise UsageError(f"'{base}' is measured on the model, not on a head: write '{base}' for '{name}'")
    doc = f"{found.doc.rstrip('.')}; of the head '{head}' alone."
    return replace(found, name=name, measure=lambda subject: found.measure(only_head(subject, head)), doc=doc)


def refuse_unknown_head(name: str, heads: Collection[str]) -> None:
    """Make sure that the head of a name such as ``accuracy@language`` is one of a task's.

    Raises:
        UsageError: It is not; the message suggests the nearest.

    Example:
        >>> refuse_unknown_head("accuracy@langauge", ["language", "kind"])
        Traceback (most recent call last):
        autocompress.errors.UsageError: the task has no head 'langauge': did you mean 'language'?
    """
    _, at, head = name.partition(AT)
    if at and head not in heads:
        raise UsageError(f"the task has no head '{head}': {did_you_mean(head, heads)}")


def scores_to_measure(asked: Collection[str], heads: Collection[str]) -> list[str]:
    """Return the names of every score to measure where ``asked`` are wanted, sorted; costs are left out.

    Beside each score of one head stands the mean over the heads; a task with several heads adds what
    :data:`BY_HEAD` names for each.

    Example:
        >>> scores_to_measure(["accuracy", "bytes"], ["language", "kind"])
        ['accuracy', 'accuracy@kind', 'accuracy@language']
    """
    names = {*asked, *(name.partition(AT)[0] for name in asked)}
    if len(heads) > 1:
        names |= {f"{score}{AT}{head}" for score in BY_HEAD if score in names for head in heads}
    return sorted(name for name in names if objective_called(name).kind == "score")


def only_head(subject: Subject, head: str) -> Subject:
    """Return the subject with the outputs of one head alone.

    Raises:
        TrialError: It has outputs, and none of that head.
    """
    if subject.logits and head not in subject.logits:
        raise TrialError(f"the model has no head '{head}': {did_you_mean(head, subject.logits)}")
    return replace(
        subject,
        logits={name: logits for name, logits in subject.logits.items() if name == head},
        attacked={
            attack: {name: logits for name, logits in outputs.items() if name == head}
            for attack, outputs in subject.attacked.items()
        },
    )


def worst_head(score: Objective, subject: Subject) -> float:
    """Return a score of the head that is worst in it; one that is not a number is the worst.

    Raises:
        TrialError: The subject lacks what the score reads.
    """
    if not subject.logits:
        return score.measure(subject)
    values = [score.measure(only_head(subject, head)) for head in subject.logits]
    if any(math.isnan(value) for value in values):
        return math.nan
    return min(values) if score.direction == "maximize" else max(values)


@objective("accuracy_worst", "maximize", "score")
def accuracy_worst(subject: Subject) -> float:
    """Accuracy of the head where it is lowest."""
    return worst_head(builtin.accuracy, subject)


@objective("f1_macro_worst", "maximize", "score")
def f1_macro_worst(subject: Subject) -> float:
    """Macro F1 of the head where it is lowest."""
    return worst_head(builtin.f1_macro, subject)


@objective("retention_worst", "maximize", "score")
def retention_worst(subject: Subject) -> float:
    """The student's accuracy divided by the teacher's, of the head where it is lowest."""
    return worst_head(builtin.retention, subject)
