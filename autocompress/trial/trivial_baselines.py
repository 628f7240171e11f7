"""Scores of the trivial baselines of a run, beside which its teacher stands."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from autocompress.baselines.base import Predictor, describe_baseline, draw_rows
from autocompress.baselines.constant import fit_constant
from autocompress.core.heads import as_head
from autocompress.core.registry import BASELINES
from autocompress.core.run_info import TrivialBaselineInfo
from autocompress.core.task import Split, Task
from autocompress.errors import TrialError
from autocompress.measure.heads import get_objective
from autocompress.measure.objectives import Subject
from autocompress.measure.thresholds import set_head_thresholds, set_thresholds
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline

logger = logging.getLogger(__name__)

#: Splits that are scored before the search.
BEFORE_SEARCH = ("train", "search_val", "select_val")
# Of the training split, where scores only tell whether a model has learned it.
_TRAINING_EXAMPLES = 2_000


@dataclass(frozen=True)
class FittedBaseline:
    """A trivial baseline after its fit.

    Attributes:
        name: Registered name.
        text: Description of its predictions in a few words.
        predict: Function from a split to outputs by head; ``None`` if the fit failed.
        seconds: Duration of the fit.
        failure: Reason of a failed fit; empty otherwise.
    """

    name: str
    text: str
    predict: Predictor | None
    seconds: float
    failure: str = ""


@lru_cache(maxsize=2)
def fit_baselines(setup: Setup) -> tuple[FittedBaseline, ...]:
    """Return the baselines that apply to the task of a run, fitted once per process to the training split."""
    pipeline = load_pipeline(setup)
    task, train = pipeline.task, pipeline.splits.train
    if any(as_head(size).kind in ("custom", "detection") for size in task.heads.values()):
        # Outputs whose meaning only the user knows have no constant, and boxes have none that is worth a comparison.
        return ()
    fitted = [_fit_baseline(name, task, train) for name in BASELINES]
    return tuple(baseline for baseline in fitted if baseline is not None)


def _fit_baseline(name: str, task: Task, train: Split) -> FittedBaseline | None:
    """Return a fitted baseline; ``None`` if it does not apply to the task."""
    started, text = time.perf_counter(), describe_baseline(name)
    try:
        predict = BASELINES.get(name)(task, train)
    # A comparison must not end a search, whatever the data does to a library or to a part of another package.
    except Exception as error:
        logger.warning("the baseline %s cannot be fitted", name, exc_info=True)
        return FittedBaseline(name, text, None, time.perf_counter() - started, f"{type(error).__name__}: {error}")
    if predict is None:
        return None
    seconds = time.perf_counter() - started
    logger.info("fitted the baseline %s in %.1f s", name, seconds)
    return FittedBaseline(name, text, _fill_heads(predict, fit_constant(task, train)), seconds)


def _fill_heads(predict: Predictor, constant: Predictor) -> Predictor:
    """Return a predictor whose missing heads have a constant prediction: scores are means over all heads."""

    def predict_all(split: Split) -> Mapping[str, Tensor]:
        outputs = {**constant(split), **predict(split)}
        return {name: outputs[name] for name in split.targets}

    return predict_all


def measure_baselines(
    setup: Setup, splits: Sequence[str] = BEFORE_SEARCH
) -> tuple[dict[str, TrivialBaselineInfo], list[str]]:
    """Return each baseline with its scores, and a notice on each that failed.

    Args:
        setup: Setup of the run.
        splits: Names of the splits to score.
    """
    pipeline = load_pipeline(setup)
    parts = {name: _take_examples(pipeline, name) for name in splits}
    measured, notices = {}, []
    for baseline in fit_baselines(setup):
        failure, scores = baseline.failure, {}
        try:
            if baseline.predict is not None:
                thresholds = _choose_thresholds(pipeline, baseline.predict)
                for name, (split, teacher) in parts.items():
                    subject = _build_subject(pipeline, baseline.predict(split), split, teacher)
                    scores[name] = measure_scores(set_thresholds(subject, thresholds), setup.scores)
        except Exception as error:
            logger.warning("the baseline %s cannot be scored", baseline.name, exc_info=True)
            failure = f"{type(error).__name__}: {error}"
        if failure:
            notices.append(f"the trivial baseline '{baseline.name}' failed, so nothing is compared with it ({failure})")
        else:
            measured[baseline.name] = TrivialBaselineInfo(baseline.text, scores, round(baseline.seconds, 3))
    return measured, notices


def score_training_split(setup: Setup) -> dict[str, float]:
    """Return the scores of the teacher on the examples of the training split that baselines are scored on."""
    pipeline = load_pipeline(setup)
    split, teacher = _take_examples(pipeline, "train")
    subject = _build_subject(pipeline, teacher, split, teacher)
    return measure_scores(set_thresholds(subject, pipeline.teacher_thresholds), setup.scores)


def _choose_thresholds(pipeline: TrialPipeline, predict: Predictor) -> dict[str, float]:
    """Return the thresholds of a baseline, chosen as those of a candidate are; empty without any."""
    if not pipeline.thresholds:
        return {}
    split = pipeline.splits.search_val
    return pipeline.choose_thresholds(_build_subject(pipeline, predict(split), split, {}))


def _take_examples(pipeline: TrialPipeline, name: str) -> tuple[Split, dict[str, Tensor]]:
    """Return the examples of a split with the teacher's outputs; of a large training split, some."""
    split: Split = getattr(pipeline.splits, name)
    teacher = pipeline.teacher.logits.get("train/0" if name == "train" else name, {})
    if name != "train":
        return split, dict(teacher)
    rows = draw_rows(len(split), _TRAINING_EXAMPLES)
    return split.take(rows), {head: outputs[rows] for head, outputs in teacher.items()}


def _build_subject(
    pipeline: TrialPipeline, outputs: Mapping[str, Tensor], split: Split, teacher: Mapping[str, Tensor]
) -> Subject:
    task = pipeline.task
    groups = task.resampling_groups(split)
    teacher_heads = set_head_thresholds(task.heads, pipeline.teacher_thresholds)
    return Subject(
        outputs,
        split.targets,
        teacher,
        heads=task.heads,
        labels=task.labels,
        groups=groups,
        teacher_heads=teacher_heads,
    )


def measure_scores(subject: Subject, names: Sequence[str]) -> dict[str, float]:
    """Return the scores that can be measured on outputs alone; an attack needs gradients, which no baseline has."""
    scores = {}
    for name in names:
        try:
            value = float(get_objective(name).measure(subject))
        except TrialError as error:
            logger.debug("the baseline has no %s: %s", name, error)
            continue
        if math.isfinite(value):
            scores[name] = value
    return scores
