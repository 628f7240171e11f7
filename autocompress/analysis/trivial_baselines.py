"""Trivial baselines beside the teacher and the recommended candidate, and why a teacher does not beat them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.formatting import format_plural, format_value, is_finite, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo

_SPLITS = (("search_val", "_search"), ("select_val", ""))
# Share of the loss that a training must still lose in its last fifth to count as too short.
_STILL_FALLING = 0.03
_LAST_SHARE = 0.2
_MORE_EPOCHS = 3
# Of n-grams without convolutions beside them. Steps of gradient descent are short for rare n-grams, as the weights of
# a ridge regression are; Adam makes them as long as any (reports/benchmarks/teachers.md).
_NGRAMS_ALONE = {"width": 0, "branch_drop": 0.0, "buckets": 131072}
_SGD = "fit: {sgd: {epochs: 20, learning_rate: 1.0, weight_decay: 1e-5, label_smoothing: 0.1, views: 1}}"
# Share of the distance from the constant prediction to a perfect one below which a model has learned nothing.
_NOTHING_LEARNED = 0.1


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one model of a table: teacher, recommended candidate or baseline.

    Attributes:
        name: ``teacher``, the id of a candidate, or the name of a baseline.
        text: Description of the model in a few words.
        validation: Score on both validation splits together; None if it was not measured.
        test: Score on the test split; None if it was not read.
        is_beaten: Whether the teacher has a better score on the validation splits; True for the teacher itself.
    """

    name: str
    text: str
    validation: float | None
    test: float | None
    is_beaten: bool = True


def list_score_rows(info: RunInfo, pick: Mapping[str, Any] | None = None) -> list[ScoreRow]:
    """Return the teacher, the recommended candidate and the baselines, the best baseline first; empty without any.

    Args:
        info: Description of the run.
        pick: Row of the recommended candidate, if there is one.
    """
    if not info.trivial_baselines:
        return []
    score = primary_objectives(info.objectives)[1]
    teacher = _teacher_score(info)
    rows = [ScoreRow("teacher", "the model to compress", teacher, info.teacher.score(score.name, "test"))]
    if pick is not None:
        tested = pick.get(f"{score.name}_test")
        test = float(tested) if is_finite(tested) else None
        rows.append(ScoreRow(str(pick["id"]), "the recommended candidate", _pick_score(pick, info), test))
    baselines = [
        ScoreRow(
            name.replace("_", " "),
            baseline.text,
            value := _average_splits(baseline.scores, info),
            baseline.scores.get("test", {}).get(score.name),
            value is None or teacher is None or _gain(teacher, value, score) > 0,
        )
        for name, baseline in info.trivial_baselines.items()
    ]
    sign = -1.0 if score.is_maximized else 1.0
    return rows + sorted(baselines, key=lambda row: (row.validation is None, sign * (row.validation or 0.0)))


def describe_weak_teacher(info: RunInfo) -> str:
    """Return a notice with the likely cause if a trivial baseline scores as well as the teacher; else an empty text."""
    score, teacher = primary_objectives(info.objectives)[1], _teacher_score(info)
    best = find_best_baseline(info)
    if best is None or teacher is None or _gain(teacher, best[1], score) > 0:
        return ""
    name, value = best
    text = (
        f"the teacher does not beat a trivial baseline: {format_value(teacher, score)} {label_column(score.name)} on "
        f"the validation splits, and {format_value(value, score)} for {name.replace('_', ' ')} "
        f"({info.trivial_baselines[name].text})"
    )
    return f"{text}; {_explain_weak_teacher(info, value)}"


def describe_weak_pick(info: RunInfo, pick: Mapping[str, Any]) -> str:
    """Return a sentence if a trivial baseline scores as well as the recommended candidate; else an empty text."""
    score, ours, best = primary_objectives(info.objectives)[1], _pick_score(pick, info), find_best_baseline(info)
    if best is None or ours is None or _gain(ours, best[1], score) > 0:
        return ""
    name, value = best
    teacher = _teacher_score(info)
    # A candidate as good as its teacher has nothing more to learn.
    is_easy = teacher is not None and _gain(ours, teacher, score) >= 0 and describe_weak_teacher(info)
    advice = "the baseline is far cheaper" if is_easy else "search larger students, or train them longer"
    return (
        f"the recommended candidate {pick['id']} does not beat a trivial baseline: {format_value(ours, score)} "
        f"{label_column(score.name)} on the validation splits, and {format_value(value, score)} for "
        f"{name.replace('_', ' ')} ({info.trivial_baselines[name].text}); {advice}"
    )


def find_best_baseline(info: RunInfo) -> tuple[str, float] | None:
    """Return name and score, on both validation splits together, of the best baseline; None without one."""
    score = primary_objectives(info.objectives)[1]
    values = {name: _average_splits(baseline.scores, info) for name, baseline in info.trivial_baselines.items()}
    finite = {name: value for name, value in values.items() if value is not None}
    if not finite:
        return None
    name = (max if score.is_maximized else min)(finite, key=finite.__getitem__)
    return name, finite[name]


def _explain_weak_teacher(info: RunInfo, best: float) -> str:
    """Return the likely cause that a teacher scores no better than a baseline, and what to change."""
    score = primary_objectives(info.objectives)[1]
    own = info.teacher.score(score.name, "train")
    if own is None:
        return "check how its input is read: scaling, tokens, and the order of the classes"
    trained = f"{format_value(own, score)} on the training split"
    constant = info.trivial_baselines.get("constant")
    chance = None if constant is None else constant.scores.get("train", {}).get(score.name)
    ideal = score.bounds[1] if score.bounds is not None else own
    if chance is not None and _gain(own, chance, score) <= _NOTHING_LEARNED * abs(ideal - chance):
        return (
            f"with {trained}, it has learned almost nothing: check its learning rate, and how its input and its labels "
            "are read"
        )
    teacher = _teacher_score(info)
    if teacher is not None and _gain(teacher, best, score) == 0 and _gain(own, best, score) >= 0:
        return f"with {trained}, it is not at fault: the task is easy, and the baseline is far cheaper"
    # A model that knows its training split better than the baseline does not generalize.
    if _gain(own, best, score) > 0:
        return (
            f"with {trained}, it knows the training split and does not generalize: give it more examples or augmented "
            f"views, more weight decay, fewer epochs, or a smaller model{_suggest_ngrams(info)}"
        )
    falling, epochs = _measure_fall(info), len(info.teacher.curve)
    if falling >= _STILL_FALLING:
        return (
            f"with {trained}, it was trained too briefly: its loss still fell by {falling:.0%} in the last fifth of "
            f"{format_plural(epochs, 'epoch')}; give it more{_suggest_epochs(info, _MORE_EPOCHS * epochs)}"
        )
    return (
        f"with {trained}, it does not learn what the baseline does: check how its input is read, its learning rate, "
        "and whether it is too small"
    )


def _suggest_ngrams(info: RunInfo) -> str:
    """Return the lines of a search space that give a teacher of texts n-grams alone; empty if it has no other parts."""
    student = info.teacher.config.get("student")
    settings = student.get("text_ngrams") if isinstance(student, Mapping) else None
    if not isinstance(settings, Mapping) or not settings.get("width"):
        return ""
    shape = ", ".join(f"{key}: {value}" for key, value in {**settings, **_NGRAMS_ALONE}.items())
    return (
        f"; few long texts are better read by n-grams alone: teacher: {{student: {{text_ngrams: {{{shape}}}}}, {_SGD}}}"
    )


def _suggest_epochs(info: RunInfo, epochs: int) -> str:
    """Return the lines of a search space that give the teacher so many epochs; empty if its config is not stored."""
    fit = info.teacher.config.get("fit")
    if not isinstance(fit, Mapping) or len(fit) != 1:
        return ""
    ((name, settings),) = fit.items()
    values = {**(settings if isinstance(settings, Mapping) else {}), "epochs": epochs}
    listed = ", ".join(f"{key}: {value}" for key, value in values.items())
    return f", for example teacher: {{fit: {{{name}: {{{listed}}}}}}}"


def _measure_fall(info: RunInfo) -> float:
    """Return the share of its loss that the teacher lost in the last fifth of its epochs."""
    losses = [row["loss"] for row in info.teacher.curve if is_finite(row.get("loss"))]
    before = len(losses) - max(1, round(_LAST_SHARE * len(losses)))
    if before < 1 or losses[before - 1] <= 0:
        # A single epoch cannot show that more of them are useless.
        return 1.0 if len(losses) == 1 else 0.0
    return float((losses[before - 1] - losses[-1]) / losses[before - 1])


def _teacher_score(info: RunInfo) -> float | None:
    return _average_splits(info.teacher.scores, info)


def _pick_score(pick: Mapping[str, Any], info: RunInfo) -> float | None:
    name = primary_objectives(info.objectives)[1].name
    return _average_splits({split: {name: pick.get(f"{name}{end}")} for split, end in _SPLITS}, info)


def _average_splits(scores: Mapping[str, Mapping[str, Any]], info: RunInfo) -> float | None:
    """Return the primary score on both validation splits, weighted by their examples; None if it was not measured."""
    name = primary_objectives(info.objectives)[1].name
    values = [(info.splits.get(split, 1), scores.get(split, {}).get(name)) for split, _ in _SPLITS]
    finite = [(size, float(value)) for size, value in values if is_finite(value)]
    return sum(size * value for size, value in finite) / sum(size for size, _ in finite) if finite else None


def _gain(ours: float, theirs: float, score: ObjectiveSpec) -> float:
    return (ours - theirs) * (1.0 if score.is_maximized else -1.0)


def list_warnings(info: RunInfo, pick: Mapping[str, Any] | None) -> list[str]:
    """Return what stands at the top of a page: that teacher or recommended candidate do not beat a baseline."""
    weak = [describe_weak_teacher(info), describe_weak_pick(info, pick) if pick is not None else ""]
    return [text for text in weak if text]


def summarize_baselines(info: RunInfo, pick: Mapping[str, Any] | None = None) -> str:
    """Return the scores of the baselines on both validation splits together in one line; empty without any."""
    score = primary_objectives(info.objectives)[1]
    rows = [row for row in list_score_rows(info, pick) if row.validation is not None]
    texts = [f"{row.name} {format_value(row.validation, score)}" for row in rows]
    return f"{label_column(score.name)} on the validation splits: {', '.join(texts)}" if len(texts) > 1 else ""
