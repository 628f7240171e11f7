"""Thresholds of heads with two classes: the probability from which the second class is predicted.

The default, 0.5, is the best one for accuracy if the probabilities are calibrated. For balanced accuracy or F1 under
imbalance it is not: the best threshold for F1 is half of the best F1 (Lipton et al. 2014, arXiv:1402.1892). A threshold
changes predictions, and so the scores that read them; probabilities stay as they are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from autocompress.core.formatting import describe_decision, label_column
from autocompress.core.heads import DEFAULT_THRESHOLD, Head, as_head
from autocompress.errors import UsageError, did_you_mean
from autocompress.measure.heads import AT, get_objective, select_head
from autocompress.measure.objectives import Subject

#: Scores of predicted classes; no other score depends on a threshold.
DECIDED_SCORES = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro")
# More candidates find no better threshold among a few hundred examples, and take time.
_MAX_CANDIDATES = 200


def check_threshold(name: str, heads: Mapping[str, int], value: float | None = None) -> Head:
    """Return the head that a threshold is for.

    Args:
        name: Name of the head.
        heads: Heads of the task.
        value: The threshold; ``None`` for one that is chosen.

    Raises:
        UsageError: There is no such head, it has not two classes, or the value is no probability between 0 and 1.
    """
    if name not in heads:
        raise UsageError(f"a threshold for the head '{name}': {did_you_mean(name, heads)}")
    head = as_head(heads[name])
    if not head.has_threshold:
        raise UsageError(
            f"a threshold decides between two classes, and '{name}' is a head of {head.describe()}; leave it out"
        )
    if value is not None and not 0 < value < 1:
        raise UsageError(f"the threshold of '{name}' is {value:g}; give a probability between 0 and 1, such as 0.3")
    return head


def read_thresholds(texts: Iterable[str], heads: Mapping[str, int], score: str) -> dict[str, float | None]:
    """Return the threshold of each head that a user names; ``None`` for one that is to be chosen.

    Args:
        texts: ``auto`` or a number for the only head of two classes, or ``HEAD=auto`` and ``HEAD=0.3``.
        heads: Heads of the task.
        score: Name of the score that thresholds are chosen for.

    Raises:
        UsageError: A text cannot be read, its head has no threshold, or the score does not depend on one that is to be
            chosen.

    Example:
        >>> read_thresholds(("0.3",), {"label": 2}, "auc")
        {'label': 0.3}
        >>> read_thresholds(("spam=auto",), {"spam": 2, "kind": 4}, "f1_macro")
        {'spam': None}
    """
    thresholds: dict[str, float | None] = {}
    for text in texts:
        name, is_named, number = text.rpartition("=")
        eligible = [head for head, size in heads.items() if as_head(size).has_threshold]
        if not is_named and len(eligible) != 1:
            if not eligible:
                check_threshold(next(iter(heads)), heads)
            raise UsageError(
                f"threshold {text}: several heads have two classes; name one, as in {eligible[0]}={text}, in a search "
                f"space {{{eligible[0]}: {text}}}"
            )
        name = name if is_named else eligible[0]
        try:
            value = None if number == "auto" else float(number)
        except ValueError:
            raise UsageError(f"'{number}' is no threshold: give a number between 0 and 1, or auto") from None
        check_threshold(name, heads, value)
        if value is None:
            check_decided_score(score, name)
        thresholds[name] = value
    return thresholds


def check_decided_score(score: str, head: str) -> None:
    """Check that a threshold can be chosen for a score, such as ``balanced_accuracy@label``.

    Raises:
        UsageError: The score does not read predicted classes.
    """
    if score.partition(AT)[0] not in DECIDED_SCORES:
        raise UsageError(
            f"no threshold of '{head}' is best for {score}, which does not read predicted classes; give a number, or "
            f"search for {' or '.join(DECIDED_SCORES[1:3])}"
        )


def choose_threshold(subject: Subject, head: str, score: str) -> float:
    """Return the threshold of a head at which a score is best; of equal ones the nearest to 0.5.

    Args:
        subject: Outputs of a model on the examples to choose by.
        head: Name of a head with two classes.
        score: Name of the score.

    Raises:
        UsageError: The score does not read predicted classes.

    Example:
        >>> outputs = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.4, 0.0]])
        >>> subject = Subject({"label": outputs}, {"label": torch.tensor([0, 0, 1, 1])}, heads={"label": 2})
        >>> 0.27 < choose_threshold(subject, "label", "balanced_accuracy") < 0.38
        True
    """
    check_decided_score(score, head)
    one = select_head(subject, head)
    rows, _ = replace(one, heads={head: as_head(one.heads[head]).with_threshold(None)}).class_rows(head)
    shares = (rows[:, 1] - rows[:, 0]).double().sigmoid().unique()
    # Between two examples every threshold decides alike; the middle is the safest for new ones.
    middles = (shares[1:] + shares[:-1]) / 2
    if len(middles) > _MAX_CANDIDATES:
        middles = middles[torch.linspace(0, len(middles) - 1, _MAX_CANDIDATES).long()]
    candidates: list[float] = [DEFAULT_THRESHOLD, *(value for value in middles.tolist() if 0 < value < 1)]
    objective = get_objective(score)
    return max(candidates, key=lambda value: (objective.measure(set_thresholds(one, {head: value})), -abs(value - 0.5)))


def choose_thresholds(requested: Mapping[str, float | None], subject: Subject, score: str) -> dict[str, float]:
    """Return the threshold of each head: the requested number, or the one at which a score of the head is best.

    Args:
        requested: Head to its threshold; ``None`` for one that is to be chosen.
        subject: Outputs of a model on the examples to choose by.
        score: Name of the score, such as ``f1_macro``; of ``f1_macro@spam``, the score of each head itself counts.
    """
    own = score.partition(AT)[0]
    return {name: choose_threshold(subject, name, own) if value is None else value for name, value in requested.items()}


def set_head_thresholds(heads: Mapping[str, int], thresholds: Mapping[str, float]) -> dict[str, int]:
    """Return the heads of a task with thresholds for some of them."""
    return {
        name: as_head(size).with_threshold(thresholds[name]) if name in thresholds else size
        for name, size in heads.items()
    }


def set_thresholds(subject: Subject, thresholds: Mapping[str, float]) -> Subject:
    """Return the subject with thresholds for some heads, by which their classes are predicted."""
    if not thresholds:
        return subject
    named = {name: subject.head(name) for name in thresholds}
    return replace(subject, heads=set_head_thresholds({**subject.heads, **named}, thresholds))


def describe_threshold(
    subjects: Mapping[str, Subject], head: str, score: str, threshold: float, *, is_chosen: bool
) -> str:
    """Return a sentence on a threshold with its scores on some splits, the one that it was chosen on first.

    Args:
        subjects: Name of each split to the outputs on it.
        head: Name of the head.
        score: Name of the score.
        threshold: The threshold.
        is_chosen: Whether it is the best one on the first split; otherwise a user gave it.
    """
    objective, figures = get_objective(score), []
    for subject in subjects.values():
        one = select_head(subject, head)
        measured = [objective.measure(set_thresholds(one, {head: value})) for value in (threshold, DEFAULT_THRESHOLD)]
        figures.append(f"{measured[0]:.4f} ({measured[1]:.4f} at {DEFAULT_THRESHOLD:g})")
    first, *others = subjects
    size = len(next(iter(subjects[first].targets.values())))
    source = f"the best one on the {size:,} examples of {first}" if is_chosen else "as requested"
    rest = " and ".join(f"{figure} on {name}" for name, figure in zip(others, figures[1:], strict=True))
    where = "there" if is_chosen else f"on {first}"
    return (
        f"{describe_decision(threshold, head, subjects[first].labels)}, {source}: {label_column(score)} {figures[0]} "
        f"{where}, {rest}"
    )
