"""Measurement of objectives: scores of all heads or of one, of the worst head, and their bootstrap replicates.

The score of one head is written ``accuracy@language``.

A score of several heads is their mean, which hides a head that fails. Any score can be measured on one head: the other
heads are removed from the subject.
"""

import base64
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autocompress.core.heads import MultiLabel, as_head
from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError, UsageError, did_you_mean
from autocompress.measure import builtin
from autocompress.measure.objectives import Objective, Subject, objective
from autocompress.measure.quality import per_class

AT = "@"
"""Separator of a score and its head; no registered name contains it."""

BY_HEAD = ("accuracy", "f1_macro", "retention")
"""Scores that are measured on each head of a task with several heads."""


def get_objective(name: str) -> Objective:
    """Return the registered objective of that name, or the score of one head for a name such as ``accuracy@language``.

    Raises:
        UnknownNameError: No objective has that name.
        UsageError: A cost is requested for one head.

    Example:
        >>> get_objective("accuracy@language").doc
        "Share of examples whose class is predicted; of the head 'language' alone."
    """
    base, at, head = name.partition(AT)
    score: Objective = OBJECTIVES.get(base)
    if not at:
        return score
    if score.kind != "score":
        raise UsageError(f"'{base}' is measured on the model, not on a head: write '{base}' for '{name}'")
    doc = f"{score.doc.rstrip('.')}; of the head '{head}' alone."
    if score.reads == "outputs":
        # The user's metric reads all outputs together.
        return replace(score, name=name)
    # A score of one head is derived and not registered, because the heads depend on the task.
    return replace(score, name=name, measure=lambda subject: score.measure(select_head(subject, head)), doc=doc)


def measure(subject: Subject, names: Iterable[str]) -> dict[str, float]:
    """Return the value of each named objective on one subject; a score of several heads is their mean.

    A name such as ``accuracy@language`` is the score of one head.

    Raises:
        UnknownNameError: No objective has that name.
        UsageError: A cost is requested for one head.
        TrialError: The subject lacks the outputs or layers that an objective needs.

    Example:
        >>> from autocompress.measure.cost import LayerCost
        >>> measure(Subject(layers={"a": LayerCost("a", macs=12, weights=12, parameters=15, nonzero=15)}), ["flops"])
        {'flops': 24.0}
    """
    return {name: float(get_objective(name).measure(subject)) for name in names}


def check_head(name: str, heads: Mapping[str, int]) -> None:
    """Check that a score applies to the heads of a task, and that the head in ``accuracy@language`` is one of them.

    Args:
        name: Name of an objective.
        heads: Heads of the task.

    Raises:
        UsageError: The task has no such head (the message suggests the nearest name), or the score needs another kind.

    Example:
        >>> check_head("accuracy@langauge", {"language": 30, "kind": 4})
        Traceback (most recent call last):
        autocompress.errors.UsageError: the task has no head 'langauge': did you mean 'language'?
    """
    base, at, head = name.partition(AT)
    if at and head not in heads:
        raise UsageError(f"the task has no head '{head}': {did_you_mean(head, heads)}")
    score: Objective = OBJECTIVES.get(base)
    read = {head: heads[head]} if at else heads
    if score.kind == "score" and not any(score.applies_to(size) for size in read.values()):
        described = ", ".join(f"'{one}' ({as_head(size).describe()})" for one, size in read.items())
        metrics = sorted({as_head(size).metric for size in read.values()})
        raise UsageError(f"'{base}' cannot score {described}; use {' or '.join(metrics)}")


def list_scores(requested: Collection[str], heads: Mapping[str, int]) -> list[str]:
    """Return the sorted names of all scores to measure for the requested names; costs are left out.

    A score of one head adds the mean over all heads. A task with several heads adds the scores :data:`BY_HEAD` of each,
    and the metric of each head.

    Args:
        requested: Names of scores and costs.
        heads: Heads of the task.

    Example:
        >>> list_scores(["accuracy", "bytes"], {"language": 30, "kind": 4})
        ['accuracy', 'accuracy@kind', 'accuracy@language']
    """
    names = {*requested, *(name.partition(AT)[0] for name in requested)}
    if len(heads) > 1:
        # With one head, its score equals the mean over the heads.
        names |= {
            f"{score}{AT}{head}"
            for score in BY_HEAD
            if score in names
            for head, size in heads.items()
            if OBJECTIVES.get(score).applies_to(size)
        }
        metrics = {head: as_head(size).metric for head, size in heads.items()}
        names |= {f"{metric}{AT}{head}" for head, metric in metrics.items() if metric not in BY_HEAD}
        # A custom metric reads all heads together.
        names -= {f"{as_head(size).metric}{AT}{head}" for head, size in heads.items() if as_head(size).kind == "custom"}
    return sorted(name for name in names if get_objective(name).kind == "score")


def select_head(subject: Subject, head: str) -> Subject:
    """Return the subject with the outputs of one head only.

    Raises:
        TrialError: The subject has outputs, but none of that head.
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


def score_worst_head(score: Objective, subject: Subject) -> float:
    """Return a score of the head where it is worst; NaN is worse than any number.

    Raises:
        TrialError: The subject lacks the outputs or targets that the score needs.
    """
    # The score raises its own error for a subject without outputs.
    if not subject.logits:
        return score.measure(subject)
    heads = [head for head in subject.logits if score.applies_to(subject.head(head))]
    # The score raises its own error for heads of another kind.
    values = [score.measure(select_head(subject, head)) for head in heads or subject.logits]
    # `min` and `max` return NaN only if it comes first, so it is tested beforehand.
    if any(math.isnan(value) for value in values):
        return math.nan
    return min(values) if score.direction == "maximize" else max(values)


@objective("accuracy_worst", "maximize", "score")
def accuracy_worst(subject: Subject) -> float:
    """Accuracy of the head where it is lowest."""
    return score_worst_head(builtin.accuracy, subject)


@objective("f1_macro_worst", "maximize", "score")
def f1_macro_worst(subject: Subject) -> float:
    """Macro F1 of the head where it is lowest."""
    return score_worst_head(builtin.f1_macro, subject)


@objective("retention_worst", "maximize", "score")
def retention_worst(subject: Subject) -> float:
    """The student's accuracy divided by the teacher's, of the head where it is lowest."""
    return score_worst_head(builtin.retention, subject)


#: Largest number of classes whose confusions are counted.
MAX_CONFUSED = 30

DRAWS = 1000
# With more examples, a difference that matters is beyond chance, and the stored record would grow with the split.
MAX_PACKED_EXAMPLES = 20_000
# Arbitrary, but fixed: stored replicates of different runs pair up.
_SEED = 20_593


def resample_score(subject: Subject, name: str, draws: int = DRAWS) -> list[float]:
    """Return the bootstrap replicates of a score, one for each resampling of a split's examples.

    Args:
        subject: Outputs of a model on the split.
        name: Name of the score.
        draws: Number of resamplings.

    Raises:
        TrialError: The subject lacks the outputs or targets that the score needs.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
        >>> subject = Subject({"label": logits}, {"label": torch.tensor([0, 0, 0])})
        >>> replicates = resample_score(subject, "accuracy", 400)
        >>> len(replicates), min(replicates), max(replicates), abs(sum(replicates) / 400 - 2 / 3) < 0.05
        (400, 0.0, 1.0, True)
    """
    score = get_objective(name)
    (size,) = {len(values) for values in subject.logits.values()}
    generator = np.random.default_rng([_SEED, size])
    replicates = []
    for _ in range(draws):
        rows = torch.from_numpy(generator.integers(0, size, size))
        # Six digits are finer than the resolution of any split.
        replicates.append(round(float(score.measure(select_examples(subject, rows))), 6))
    return replicates


def pack_correct(subject: Subject) -> dict[str, dict[str, str]]:
    """Return ``{"right": {head: bits}}``: whether each prediction is correct, packed, one bit an example.

    Paired tests between candidates read it. It is empty for a split of more than ``MAX_PACKED_EXAMPLES``, and for heads
    that do not predict one class for each example.

    Example:
        >>> subject = Subject({"label": torch.eye(3)}, {"label": torch.tensor([0, 1, 1])})
        >>> pack_correct(subject)
        {'right': {'label': '3:wA=='}}
    """
    if any(len(targets) > MAX_PACKED_EXAMPLES for targets in subject.targets.values()):
        return {}
    packed = {}
    for head in subject.logits:
        rows, labels = subject.class_rows(head) if subject.head(head).has_classes else (Tensor(), Tensor())
        if len(rows) != len(subject.logits[head]) or subject.head(head).has_positions:
            return {}
        correct = (rows.argmax(1) == labels).numpy()
        packed[head] = f"{len(correct)}:{base64.b64encode(np.packbits(correct).tobytes()).decode()}"
    return {"right": packed}


def describe_classes(subject: Subject, name: str) -> list[dict[str, float]]:
    """Return one row for each class of a head, or for each of its labels: support, precision, recall and F1.

    Raises:
        TrialError: The outputs are not finite, or do not fit the targets.
    """
    if subject.head(name).kind != "multilabel":
        return per_class(*subject.class_rows(name))
    outputs, targets = (part[name].flatten(1) for part in (subject.logits, subject.targets))
    rows = []
    for label in range(outputs.shape[1]):
        logits, present = MultiLabel(1).select_rows(outputs[:, label], targets[:, label])
        # Of the two classes, the second is that the label is present.
        rows.append({**per_class(logits, present)[1], "label": label})
    return rows


def count_confusions(subject: Subject, name: str) -> list[list[int]]:
    """Return the confusion matrix of a head: the number of examples of each true class, a row, by predicted class.

    It is empty for heads of several labels, and for more than ``MAX_CONFUSED`` classes, whose matrix would be large.

    Example:
        >>> count_confusions(Subject({"label": torch.eye(2)}, {"label": torch.tensor([0, 0])}), "label")
        [[1, 1], [0, 0]]
    """
    head = subject.head(name)
    if not head.has_classes or head.kind in ("multilabel", "candidates") or head.classes > MAX_CONFUSED:
        return []
    rows, labels = subject.class_rows(name)
    counts = torch.bincount(labels * head.classes + rows.argmax(1), minlength=head.classes**2)
    table: list[list[int]] = counts.reshape(head.classes, head.classes).tolist()
    return table


def describe_decisions(subject: Subject) -> dict[str, dict[str, object]]:
    """Return ``per_class``, see :func:`describe_classes`, and ``confusion``, see :func:`count_confusions`, by head."""
    named = [name for name in subject.logits if subject.head(name).has_classes]
    confusions = {name: count_confusions(subject, name) for name in named}
    return {
        "per_class": {name: describe_classes(subject, name) for name in named},
        "confusion": {name: table for name, table in confusions.items() if table},
    }


def select_examples(subject: Subject, rows: Tensor) -> Subject:
    """Return the subject with the examples of some rows only; a row may occur several times."""
    return replace(
        subject,
        groups=None if subject.groups is None else subject.groups[rows],
        logits={head: values[rows] for head, values in subject.logits.items()},
        targets={head: values[rows] for head, values in subject.targets.items()},
        teacher_logits={head: values[rows] for head, values in subject.teacher_logits.items()},
        attacked={
            attack: {head: values[rows] for head, values in outputs.items()}
            for attack, outputs in subject.attacked.items()
        },
    )
