import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autocompress.backends.base import TrialLimits
from autocompress.backends.ray import Ray
from autocompress.core.example_scores import ExampleScores
from autocompress.core.heads import Custom, Regression
from autocompress.core.run_info import Direction, ObjectiveSpec, RunInfo, TeacherInfo
from autocompress.core.task import Split, Splits
from autocompress.engine import runner
from autocompress.engine.runner import (
    Events,
    detect_validation_leak,
    make_backend,
    make_plan,
    prefer_own_score,
    run_search,
)
from autocompress.engine.spec import Source, parse_spec
from autocompress.errors import SpecError
from autocompress.store.run_store import RunStore
from autocompress.tasks.images import Digits
from autocompress.trial.pipeline import Setup, load_task
from tests.fakes import OBJECTIVES

SOUND = "task: digits\nstudent: {cnn: {width: 8}}\n"


def test_limits_on_a_trial_reach_the_backend() -> None:
    plan = make_plan(parse_spec(SOUND, "x", ["search.memory=2 GiB", "search.trial_minutes=1.5"]))
    assert plan.backend.limits == TrialLimits(90.0, 2 << 30)  # type: ignore[attr-defined]


def test_failed_plan_stops_its_workers() -> None:
    bad = parse_spec("task: digits\nstudent: {cnn: {width: 8}}\nobjectives: [accuracy, nonsense]\n", "x")
    with pytest.raises(SpecError, match="nonsense"):
        make_plan(bad, warm=True)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("{accuracy: [1.0, 0.5], bytes: }", r"the ideal must be the better value, as in \[0.5, 1\]"),
        ("{accuracy: , bytes: [10, 1000]}", r"bytes is to minimize.* as in \[1000, 10\]"),
        ("{accuracy: , bytes: [10, 0]}", "the ideal of a cost is above 0"),
    ],
)
def test_reversed_bounds_are_refused_with_their_line(objectives: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"x:3: .*{message}"):
        make_plan(parse_spec(f"{SOUND}objectives: {objectives}\n", "x"))


def test_a_promise_that_the_data_cannot_carry_is_said_before_the_search() -> None:
    plan = make_plan(parse_spec(SOUND, "x", ["pick.max_drop=0.004"]))
    assert plan.setup.primary == "accuracy"
    (notice,) = plan.notices
    assert "560 validation examples" in notice
    assert "at least 575 examples" in notice
    assert not make_plan(parse_spec(SOUND, "x", ["pick.max_drop=0.02"])).notices
    assert not make_plan(parse_spec(SOUND, "x", ["pick={max_drop: 0.004, confidence: null}"])).notices


def test_examples_of_training_in_the_test_split_are_removed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    make_splits = Digits.splits

    def make_leaky_splits(task: Digits, seed: int) -> Splits:
        splits = make_splits(task, seed)
        train, test = splits.train, splits.test
        inputs = tuple(torch.cat([own, other[:10]]) for own, other in zip(test.inputs, train.inputs, strict=True))
        targets = {head: torch.cat([values, train.targets[head][:10]]) for head, values in test.targets.items()}
        return replace(splits, test=Split(inputs, targets))

    # No other test uses this seed, so no cached splits are taken.
    clean = make_splits(Digits(), 771)
    monkeypatch.setattr(Digits, "splits", make_leaky_splits)
    plan = make_plan(parse_spec(SOUND, "x", ["split_seed=771", "pick.max_drop=0.02"]))
    assert plan.splits.fingerprint() == clean.fingerprint()
    (notice,) = plan.notices
    assert notice.startswith(f"10 of {len(clean.test) + 10} examples of test had the same input")
    # Workers load the same splits; those of runs of earlier versions stay as they were.
    assert load_task(plan.setup)[1].fingerprint() == clean.fingerprint()
    earlier = Setup.from_json({key: value for key, value in plan.setup.to_json().items() if key != "is_distinct"})
    assert len(load_task(earlier)[1].test) == len(clean.test) + 10


SPEC = "task: digits\nsearch:\n  workers: 3\n  {}\nstudent: {{cnn: {{}}}}\n"


def source(line: str, *overrides: str) -> Source:
    return parse_spec(SPEC.format(line), "x", overrides)


def test_backend_gets_its_settings() -> None:
    result = make_backend(
        source(
            "resources: {cpu: 2, gpu: 0.25}", "search.backend=ray", "search.address=host:1", "search.trial_minutes=2"
        )
    )
    assert isinstance(result, Ray)
    assert (result.workers, result.address, result.is_remote) == (3, "host:1", True)
    assert result.resources == {"cpu": 2.0, "gpu": 0.25}
    assert result.limits == TrialLimits(seconds=120)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("address: auto", "x:4: search.address: the backend local does not take address; search.backend=ray does"),
        ("resources: {gpu: 1}", "x:4: search.resources: the backend local does not take resources; search.backend=ray"),
        ("backend: rya", "x:4: search.backend: unknown backend 'rya': did you mean 'ray'?"),
    ],
)
def test_unsupported_setting_is_an_error_with_its_line(line: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        make_backend(source(line))
    assert message in str(refused.value)


@pytest.mark.parametrize("resources", ["{gpu: 0}", "{gpu: -1}", "{gpu: much}", "{}", "2"])
def test_resources_must_be_positive(resources: str) -> None:
    with pytest.raises(SpecError, match=r"x:4: search\.resources"):
        source(f"resources: {resources}")


def test_backend_settings_are_no_immutable_content() -> None:
    here = source("backend: local").spec.immutable_content()
    assert source("backend: ray", "search.address=auto", "search.resources={gpu: 1}").spec.immutable_content() == here


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("backend: local", "cpu"),
        ("device: cuda", "cuda"),
        ("resources: {cpu: 2}", "cpu"),
        ("resources: {gpu: 0.25}", "cuda"),
        ("device: cpu", "cpu"),
    ],
)
def test_training_device_follows_the_resources(line: str, expected: str) -> None:
    assert source(line).spec.search.training_device == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("line", ["device: cuda", "backend: ray", "backend: serial"])
def test_missing_graphics_card_is_an_error_with_its_line(line: str) -> None:
    with pytest.raises(SpecError, match=r"search\.device: the trials need a graphics card"):
        make_backend(source(line, "search.device=cuda"))
    # The machines of a cluster are asked one by one.
    assert make_backend(source(line, "search.device=cuda", "search.backend=ray", "search.address=host:1")).is_remote


@pytest.mark.parametrize(
    ("validation", "test", "size", "is_reported"),
    [
        # What a teacher that has seen its validation split looks like (CIFAR-10, 2,500 and 5,000 images).
        (0.925, 0.877, 2500, True),
        (0.89, 0.877, 2500, False),
        # Large, but so few examples that it may be chance.
        (0.925, 0.877, 100, False),
        # All of so few are right, so they show no spread.
        (1.0, 0.877, 12, False),
        (0.80, 0.877, 2500, False),
    ],
)
def test_leak_of_the_validation_split_gives_a_notice(
    validation: float, test: float, size: int, is_reported: bool
) -> None:
    def pack(share: float, examples: int) -> str:
        return ExampleScores("bits", examples, (np.arange(examples) < share * examples).astype(float)).pack()

    scores = {"select_val": {"accuracy": validation}, "test": {"accuracy": test}}
    examples = {"select_val": pack(validation, size), "test": pack(test, 5000)}
    notice = detect_validation_leak(RunInfo(objectives=OBJECTIVES, teacher=TeacherInfo(scores, examples=examples)))
    assert bool(notice) == is_reported
    assert not notice or f"{validation:.1%}" in notice


@pytest.mark.parametrize(
    ("name", "direction", "validation", "test", "error", "is_reported"),
    [
        ("rmse", "minimize", 0.80, 0.95, 0.02, True),
        ("rmse", "minimize", 0.95, 0.80, 0.02, False),
        # Within four standard errors of the difference.
        ("rmse", "minimize", 0.80, 0.95, 0.04, False),
        # A gap beyond chance, but less than a twentieth of the score.
        ("rmse", "minimize", 0.92, 0.95, 0.001, False),
        ("mean_iou", "maximize", 0.75, 0.60, 0.01, True),
        ("mean_iou", "maximize", 0.60, 0.75, 0.01, False),
        ("ndcg_at_10", "maximize", 0.62, 0.605, 0.001, False),
    ],
)
def test_leak_of_the_validation_split_is_found_by_any_score(
    name: str, direction: Direction, validation: float, test: float, error: float, is_reported: bool
) -> None:
    def pack(value: float) -> str:
        # Replicates of this standard deviation, as that of plus and minus one is 1.
        return ExampleScores("replicates", 500, value + error * np.resize([1.0, -1.0], 200)).pack()

    score = ObjectiveSpec(name, direction, "", "score", (1.0, 0.0) if direction == "minimize" else (0.0, 1.0))
    teacher = TeacherInfo(
        {"select_val": {name: validation}, "test": {name: test}},
        examples={"select_val": pack(validation), "test": pack(test)},
    )
    notice = detect_validation_leak(RunInfo(objectives=(score, OBJECTIVES[1]), teacher=teacher))
    assert bool(notice) == is_reported


def test_no_leak_is_reported_without_scores_of_examples_on_both_splits() -> None:
    bits = ExampleScores("bits", 400, np.arange(400) < 380).pack()
    unfinished = TeacherInfo({"select_val": {"accuracy": 0.95}}, examples={"select_val": bits})
    assert detect_validation_leak(RunInfo(objectives=OBJECTIVES, teacher=unfinished)) == ""
    earlier = TeacherInfo({"select_val": {"accuracy": 0.95}, "test": {"accuracy": 0.5}})
    assert detect_validation_leak(RunInfo(objectives=OBJECTIVES, teacher=earlier)) == ""


@pytest.mark.slow
def test_leak_of_the_validation_split_is_shown_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LEAK_GAP", -1.0)
    monkeypatch.setattr(runner, "LEAK_STANDARD_ERRORS", -1e9)
    short = ["search.trials=1", "search.backend=serial", "search.timing_seconds=0", "fit.adamw.epochs=1"]
    teacher = ["teacher.student={cnn: {width: 4, depth: 1}}", "teacher.fit={adamw: {epochs: 1}}"]
    shown: list[str] = []
    plan = make_plan(parse_spec(SOUND, "x", [*short, *teacher]))
    run_search(plan, tmp_path / "run", events=Events(notice=shown.append)).close()
    with RunStore.read(tmp_path / "run") as store:
        stored = store.run_info().notices
    (leak,) = [notice for notice in shown if "trained on the validation data" in notice]
    assert leak in stored


def test_imbalanced_classes_make_balanced_accuracy_the_first_score_unless_objectives_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_splits = Digits.splits

    def make_rare(task: Digits, seed: int) -> Splits:
        """Digits without most of the nines."""
        splits = make_splits(task, seed)
        kept = {}
        for name, split in splits.items():
            nines = (split.targets["label"] == 9).cumsum(0)
            kept[name] = split.take((split.targets["label"] != 9) | (nines % 12 == 1))
        return Splits(**kept)

    monkeypatch.setattr(Digits, "splits", make_rare)
    plan = make_plan(parse_spec(SOUND, "x", ["split_seed=772", "pick.max_drop=0.05"]))
    assert [objective.name for objective in plan.objectives] == ["balanced_accuracy", "effective_flops"]
    assert plan.setup.primary == "balanced_accuracy"
    assert {"accuracy", "balanced_accuracy"} <= set(plan.setup.scores)
    assert "objectives: [accuracy, effective_flops]" in plan.notices[0]
    named = parse_spec(SOUND + "objectives: [accuracy, bytes]\n", "x", ["split_seed=772", "pick.max_drop=0.05"])
    assert make_plan(named).setup.primary == "accuracy"
    assert not make_plan(named).notices


@pytest.mark.parametrize(("head", "score"), [(Regression(1), "r2"), (Custom(8, "map"), "map")])
def test_a_task_without_classes_is_searched_by_its_own_score(head: int, score: str) -> None:
    task = SimpleNamespace(heads={"y": head}, metrics=(score, "other"))
    assert list(prefer_own_score(parse_spec(SOUND, "x"), task).spec.objectives) == [score, "effective_flops"]
    named = parse_spec(SOUND, "x", ["objectives=[accuracy, bytes]"])
    assert prefer_own_score(named, task) is named
    classes = parse_spec(SOUND, "x")
    assert prefer_own_score(classes, SimpleNamespace(heads={"y": 3, "z": head}, metrics=("mean_score",))) is classes


@pytest.mark.parametrize("key", ["fit.adamw.class_weights", "teacher.fit.adamw.class_weights"])
def test_class_weights_are_refused_for_a_task_with_a_loss_of_its_own(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parse_spec(SOUND, "x", ["split_seed=772", "pick.max_drop=0.05", f"{key}=balanced"])
    assert make_plan(source).task.name == "digits"
    monkeypatch.setattr(Digits, "loss", lambda task, logits, targets: logits["label"].sum())
    with pytest.raises(SpecError, match="the task 'digits' has a loss of its own"):
        make_plan(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["threshold=auto"], "--set threshold: a threshold decides between two classes, and 'label' is a head of 10"),
        (["threshold={labl: 0.3}"], "--set threshold: a threshold for the head 'labl': did you mean 'label'"),
    ],
)
def test_a_threshold_that_a_head_cannot_have_is_an_error_before_the_search(changes: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(parse_spec(SOUND, "x", ["pick.max_drop=0.05", *changes]))


def test_thresholds_of_two_classes_are_read_with_the_first_score(monkeypatch: pytest.MonkeyPatch) -> None:
    make_splits = Digits.splits

    def make_odd(task: Digits, seed: int) -> Splits:
        """Digits that are odd or even."""
        splits = make_splits(task, seed)
        return Splits(**{n: replace(s, targets={"label": s.targets["label"] % 2}) for n, s in splits.items()})

    monkeypatch.setattr(Digits, "splits", make_odd)
    monkeypatch.setattr(Digits, "heads", {"label": 2})

    def plan(*changes: str) -> tuple[tuple[str, float | None], ...]:
        return make_plan(parse_spec(SOUND, "x", ["pick.max_drop=0.05", *changes])).setup.thresholds

    assert plan() == ()
    assert plan("threshold=auto") == (("label", None),)
    assert plan("threshold={label: 0.3}", "objectives=[auc, bytes]") == (("label", 0.3),)
    with pytest.raises(SpecError, match="give a probability between 0 and 1"):
        plan("threshold=1.5")
    with pytest.raises(SpecError, match="no threshold of 'label' is best for auc"):
        plan("threshold=auto", "objectives=[auc, bytes]")
