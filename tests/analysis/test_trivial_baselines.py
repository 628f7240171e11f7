from dataclasses import replace

import pytest
import yaml

from autocompress.analysis.trivial_baselines import (
    describe_weak_pick,
    describe_weak_teacher,
    list_score_rows,
    list_warnings,
    summarize_baselines,
)
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo, TrivialBaselineInfo
from autocompress.models.text_ngrams import TextNGramsConfig
from autocompress.training.optimizers import SGDConfig

ACCURACY = ObjectiveSpec("accuracy", "maximize", kind="score", bounds=(0.1, 1.0))
RMSE = ObjectiveSpec("rmse", "minimize", kind="score", bounds=(10.0, 0.0))
BYTES = ObjectiveSpec("bytes", "minimize", "B", "cost", (1e6, 1.0))
FALLING = tuple({"epoch": epoch, "loss": 3.0 - 0.2 * epoch} for epoch in range(10))
FLAT = tuple({"epoch": epoch, "loss": 1.0} for epoch in range(10))
FIT = {"student": {"cnn": {}}, "fit": {"adamw": {"epochs": 10, "learning_rate": 0.003}}}


def scores(name: str, train: float, search: float, select: float, test: float) -> dict[str, dict[str, float]]:
    values = {"train": train, "search_val": search, "select_val": select, "test": test}
    return {split: {name: value} for split, value in values.items()}


def make_info(
    train: float = 0.9, search: float = 0.5, select: float = 0.7, curve: tuple[dict[str, float], ...] = FLAT
) -> RunInfo:
    """A run whose linear baseline scores 81% on both validation splits together: 80% of 100 and 82% of 100."""
    return RunInfo(
        objectives=(ACCURACY, BYTES),
        splits={"search_val": 100, "select_val": 100},
        teacher=TeacherInfo(scores("accuracy", train, search, select, 0.6), config=FIT, curve=curve),
        trivial_baselines={
            "constant": TrivialBaselineInfo("the most frequent class", scores("accuracy", 0.1, 0.1, 0.1, 0.1)),
            "linear": TrivialBaselineInfo("a linear model", scores("accuracy", 0.85, 0.8, 0.82, 0.79)),
        },
    )


def test_a_teacher_that_beats_every_baseline_is_not_mentioned() -> None:
    info = make_info(search=0.9, select=0.8)
    assert describe_weak_teacher(info) == ""
    assert list_warnings(info, None) == []


def test_splits_count_by_their_examples() -> None:
    info = replace(make_info(search=0.9, select=0.8), splits={"search_val": 100, "select_val": 900})
    # 81% against 81.8%.
    assert "81.0% accuracy on the validation splits, and 81.8% for linear" in describe_weak_teacher(info)


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        (make_info(train=0.9), "with 90.0% on the training split, it knows the training split and does not generalize"),
        (make_info(train=0.12), "it has learned almost nothing: check its learning rate"),
        (
            make_info(train=0.7, curve=FALLING),
            "its loss still fell by 25% in the last fifth of 10 epochs; give it more",
        ),
        (make_info(train=0.7, curve=FALLING), "teacher: {fit: {adamw: {epochs: 30, learning_rate: 0.003}}}"),
        (make_info(train=0.7), "it does not learn what the baseline does: check how its input is read"),
    ],
)
def test_the_cause_follows_from_training_split_and_curve(info: RunInfo, cause: str) -> None:
    text = describe_weak_teacher(info)
    assert text.startswith("the teacher does not beat a trivial baseline: 60.0% accuracy")
    assert cause in text
    assert list_warnings(info, None) == [text]


def test_few_texts_are_better_read_by_ngrams_alone() -> None:
    """The lines of the advice are a search space that loads."""
    info = make_info(train=0.9)
    for width in (0, 64):
        settings = {"longest": 4, "width": width, "branch_drop": 1.0}
        teacher = replace(info.teacher, config={**FIT, "student": {"text_ngrams": settings}})
        text = describe_weak_teacher(replace(info, teacher=teacher))
        assert ("n-grams alone" in text) == (width > 0)
    lines = yaml.safe_load(text.partition("n-grams alone: ")[2])["teacher"]
    assert TextNGramsConfig.of(lines["student"]["text_ngrams"]).width == 0
    assert SGDConfig.of({**lines["fit"]["sgd"], "weight_decay": 1e-5}).learning_rate == 1.0


def test_a_tie_of_a_teacher_that_has_learned_its_training_split_is_an_easy_task() -> None:
    info = make_info(train=0.81, search=0.8, select=0.82)
    assert describe_weak_teacher(info).endswith("it is not at fault: the task is easy, and the baseline is far cheaper")


def test_a_teacher_that_was_not_scored_on_training_is_asked_for_its_input() -> None:
    info = make_info()
    untold = {split: values for split, values in info.teacher.scores.items() if split != "train"}
    assert "order of the classes" in describe_weak_teacher(replace(info, teacher=TeacherInfo(untold)))


def test_of_an_error_less_is_better() -> None:
    teacher = TeacherInfo(scores("rmse", 0.5, 0.9, 0.9, 0.9))
    baselines = {"biases": TrivialBaselineInfo("biases", scores("rmse", 0.8, 0.8, 0.8, 0.8))}
    info = replace(make_info(), objectives=(RMSE, BYTES), teacher=teacher, trivial_baselines=baselines)
    assert "does not generalize" in describe_weak_teacher(info)
    better = TeacherInfo(scores("rmse", 0.5, 0.7, 0.7, 0.7))
    assert describe_weak_teacher(replace(info, teacher=better)) == ""


def test_a_weak_pick_is_told_though_the_teacher_is_good() -> None:
    info = make_info(search=0.9, select=0.9)
    row = {"id": "t1c2", "accuracy": 0.8, "accuracy_search": 0.8, "accuracy_test": 0.75}
    assert describe_weak_pick(info, row).startswith("the recommended candidate t1c2 does not beat a trivial baseline")
    assert list_warnings(info, row) == [describe_weak_pick(info, row)]
    assert describe_weak_pick(info, {**row, "accuracy": 0.9}) == ""


def test_the_best_baseline_comes_first_and_what_is_not_beaten_is_marked() -> None:
    row = {"id": "t1c2", "accuracy": 0.8, "accuracy_search": 0.8}
    rows = list_score_rows(make_info(), row)
    assert [line.name for line in rows] == ["teacher", "t1c2", "linear", "constant"]
    assert [line.is_beaten for line in rows] == [True, True, False, True]
    assert [line.test for line in rows] == [0.6, None, 0.79, 0.1]
    assert summarize_baselines(make_info(), row) == (
        "accuracy on the validation splits: teacher 60.0%, t1c2 80.0%, linear 81.0%, constant 10.0%"
    )


def test_a_run_of_an_earlier_version_has_none() -> None:
    info = replace(make_info(), trivial_baselines={})
    assert (list_score_rows(info), summarize_baselines(info), describe_weak_teacher(info)) == ([], "", "")
