from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, CompressionRecipe, Job, State
from autocompress.core.task import Splits
from autocompress.errors import ArtifactError, UsageError
from autocompress.measure import Subject, measure
from autocompress.measure.heads import count_confusions
from autocompress.measure.thresholds import choose_threshold, set_thresholds
from autocompress.tasks.images import Digits
from autocompress.trial import runner
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline, reproducible_torch
from autocompress.trial.runner import TrialRunner, is_out_of_memory, run_trial, score_test_split, teacher_record
from autocompress.trial.teacher import Teacher, TeacherRecipe, compute_teacher_logits

SETUP = Setup(
    Part("digits"),
    0,
    TeacherRecipe(Part.of("cnn", width=12, depth=1), Part.of("adamw", epochs=16, learning_rate=1e-2)),
    ("accuracy", "agreement", "kl", "loss"),
    ("bytes", "effective_flops", "flops"),
)
TRAINING = CompressionConfig(
    Part.of("cnn", width=8, depth=1),
    (Part.of("soft_target", temperature=4.0, alpha=0.9),),
    Part.of("adamw", epochs=10, learning_rate=1e-2),
    seed=11,
)
PRUNED = Part.of("structured", pruning_ratio=0.25, recovery_epochs=3)
EIGHT = Part.of("post_training", weight_bits=8, activation_bits=8)
THREE = Part.of("post_training", weight_bits=3, activation_bits=3)
CUTS = (
    CompressionRecipe(),
    CompressionRecipe(quantize=EIGHT),
    CompressionRecipe(quantize=THREE),
    CompressionRecipe(prune=PRUNED),
    CompressionRecipe(PRUNED, EIGHT),
)
JOB = Job(4, TRAINING, CUTS)


@pytest.fixture(scope="module")
def result():  # type: ignore[no-untyped-def]
    actual = TrialRunner(SETUP)(JOB)
    assert actual.state is State.COMPLETE, actual.reason
    return actual


@pytest.mark.slow
def test_one_training_feeds_a_candidate_for_each_cut(result) -> None:  # type: ignore[no-untyped-def]
    assert [candidate.id for candidate in result.candidates] == [f"t4c{n}" for n in range(5)]
    assert [candidate.epochs for candidate in result.candidates] == [10] * 5
    for candidate, cut in zip(result.candidates, CUTS, strict=True):
        assert candidate.config == replace(TRAINING, prune=cut.prune, quantize=cut.quantize)
        assert set(candidate.scores) == {"search_val", "select_val"}
        assert set(candidate.costs) == set(SETUP.costs)
    assert len(result.curve) == 10
    assert set(result.checkpoints) == {"t4p0", "t4p1"}
    assert result.seconds > 0


@pytest.mark.slow
def test_the_cuts_differ_as_their_configs_say(result) -> None:  # type: ignore[no-untyped-def]
    parent, eight, three, pruned, both = (candidate.costs for candidate in result.candidates)
    assert parent["flops"] == eight["flops"] == three["flops"] == parent["effective_flops"]
    assert eight["effective_flops"] == pytest.approx(parent["flops"] / 16)
    assert three["effective_flops"] == pytest.approx(parent["flops"] * 9 / 1024)
    assert pruned["flops"] < parent["flops"]
    assert both["effective_flops"] == pytest.approx(pruned["flops"] / 16)
    assert both["bytes"] < eight["bytes"] < parent["bytes"]


@pytest.mark.slow
def test_the_student_learns_and_fewer_bits_hurt(result) -> None:  # type: ignore[no-untyped-def]
    parent, eight, three, *_ = (candidate.scores["select_val"]["accuracy"] for candidate in result.candidates)
    assert parent > 0.7
    assert eight > parent - 0.05
    assert three < parent


def test_details_say_what_was_done(result) -> None:  # type: ignore[no-untyped-def]
    details = result.candidates[4].details
    assert [row["weight_bits"] for row in details["layers"]]
    assert details["prune"]["channels"]
    assert len(details["per_class"]["label"]) == 10


@pytest.mark.slow
def test_a_trial_run_again_from_its_record_gives_identical_weights_and_scores(result) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(12345)
    again = TrialRunner(SETUP)(JOB)
    assert again.checkpoints == result.checkpoints
    assert again.candidates == result.candidates


def test_a_candidate_is_cut_again_from_its_checkpoint(result) -> None:  # type: ignore[no-untyped-def]
    with reproducible_torch():
        pipeline = load_pipeline(SETUP)
        for candidate in result.candidates:
            rebuilt = pipeline.rebuild(candidate.config, result.checkpoints[candidate.checkpoint])
            logits = pipeline.predict(rebuilt.model, pipeline.splits.select_val)
            subject = Subject(logits, pipeline.splits.select_val.targets, pipeline.teacher.logits["select_val"])
            again = measure(subject, ["accuracy", "loss"])
            assert again["accuracy"] == candidate.scores["select_val"]["accuracy"]
            assert again["loss"] == pytest.approx(candidate.scores["select_val"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_recovery_trains_the_pruned_model(result) -> None:  # type: ignore[no-untyped-def]
    bare = Part.of("structured", pruning_ratio=0.25, recovery_epochs=0)
    without = run_trial(replace(JOB, recipes=(CompressionRecipe(prune=bare),)), SETUP).candidates[0]
    assert result.candidates[3].scores["select_val"]["loss"] < without.scores["select_val"]["loss"]


def test_the_test_split_is_scored_from_checkpoints(result) -> None:  # type: ignore[no-untyped-def]
    parent = result.candidates[0]
    with reproducible_torch():
        scores, teacher = score_test_split({parent.id: (parent, result.checkpoints["t4p0"])}, SETUP)
    assert scores[parent.id].scores["accuracy"] == pytest.approx(parent.scores["select_val"]["accuracy"], abs=0.1)
    assert teacher.scores["accuracy"] > 0.8
    assert teacher.scores["agreement"] == 1.0
    assert not teacher.examples, "only a run that names its primary score stores examples"


def test_the_teacher_is_described() -> None:
    with reproducible_torch():
        record = teacher_record(SETUP)
    assert set(record["scores"]) == {"search_val", "select_val"}
    assert record["costs"]["effective_flops"] == record["costs"]["flops"] > 0


@pytest.mark.slow
def test_a_cut_that_fails_leaves_the_others_and_says_why() -> None:
    bad = Part.of("structured", pruning_ratio=0.25, criterion="no_such_criterion")
    actual = TrialRunner(SETUP)(replace(JOB, recipes=(CompressionRecipe(), CompressionRecipe(prune=bad))))
    assert actual.state is State.COMPLETE
    assert [candidate.id for candidate in actual.candidates] == ["t4c0"]
    assert "no_such_criterion" in actual.reason


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (replace(TRAINING, distill=(Part("none"), Part("soft_target"))), "exactly one term"),
        (replace(TRAINING, student=Part.of("cnn", width=10_000)), "width"),
        (replace(TRAINING, student=Part("no_such_family")), "no_such_family"),
    ],
)
def test_a_training_that_cannot_work_becomes_a_failed_result(training: CompressionConfig, reason: str) -> None:
    actual = TrialRunner(SETUP)(Job(0, training, (CompressionRecipe(),)))
    assert actual.state is State.FAILED
    assert reason in actual.reason
    assert not actual.candidates


@pytest.mark.parametrize(
    ("fault", "reason"), [(MemoryError(), "out of memory"), (ZeroDivisionError("oops"), "ZeroDivisionError: oops")]
)
def test_whatever_is_raised_in_a_trial_becomes_its_reason(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, reason: str
) -> None:
    def broken(job: Job, setup: Setup) -> None:
        raise fault

    monkeypatch.setattr("autocompress.trial.runner.run_trial", broken)
    actual = TrialRunner(SETUP)(JOB)
    assert actual.state is State.FAILED
    assert actual.reason == reason


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_checkpoint_is_an_artifact_error(result, damage: str) -> None:  # type: ignore[no-untyped-def]
    content = result.checkpoints["t4p1"]
    content = {"cut": content[: len(content) // 2], "header": b"\xff" * 8 + content[8:], "empty": b""}[damage]
    with pytest.raises(ArtifactError, match="damaged"):
        load_pipeline(SETUP).rebuild(result.candidates[3].config, content)


@pytest.mark.slow
def test_robust_accuracy_is_a_score_that_a_search_can_ask_for() -> None:
    setup = replace(SETUP, scores=("accuracy", "fgsm_accuracy", "pgd_accuracy"))
    actual = run_trial(replace(JOB, recipes=CUTS[:2]), setup)
    for candidate in actual.candidates:
        scores = candidate.scores["select_val"]
        assert scores["pgd_accuracy"] <= scores["fgsm_accuracy"] < scores["accuracy"]


@pytest.mark.slow
def test_a_training_in_segments_gives_the_same_candidates_as_in_one(result) -> None:  # type: ignore[no-untyped-def]
    runner = TrialRunner(SETUP)
    first = runner(replace(JOB, recipes=CUTS[:2], rung=0, until=2))
    assert first.state is State.PAUSED
    assert [candidate.id for candidate in first.candidates] == ["t4r0c0", "t4r0c1"]
    assert not any(candidate.complete or candidate.checkpoint for candidate in first.candidates)
    assert {candidate.epochs for candidate in first.candidates} == {2}
    assert not first.checkpoints
    last = runner(replace(JOB, rung=1, paused=first.paused))
    assert last.state is State.COMPLETE
    assert last.candidates == result.candidates
    assert last.checkpoints == result.checkpoints
    assert last.curve == result.curve


@pytest.mark.slow
def test_a_checkpoint_is_cut_further_without_training_it_again(result) -> None:  # type: ignore[no-untyped-def]
    parent = result.checkpoints["t4p0"]
    job = Job(
        9,
        TRAINING,
        (CompressionRecipe(prune=PRUNED), CompressionRecipe(PRUNED, EIGHT)),
        base=BaseCheckpoint("t4p0", None, 10, parent),
    )
    further = TrialRunner(SETUP)(job)
    assert further.state is State.COMPLETE, further.reason
    assert [candidate.id for candidate in further.candidates] == ["t9c0", "t9c1"]
    # The same cut of the same checkpoint, made in another job: equal to the last bit.
    assert further.checkpoints["t9p0"] == result.checkpoints["t4p1"]
    assert further.candidates[1].scores == result.candidates[4].scores
    assert further.candidates[0].epochs == 10
    tuned = Part.of("lsq", weight_bits=3, activation_bits=4, epochs=2)
    again = Job(
        10,
        TRAINING,
        (CompressionRecipe(PRUNED, tuned),),
        base=BaseCheckpoint("t9p0", PRUNED, 10, further.checkpoints["t9p0"]),
    )
    actual = TrialRunner(SETUP)(again)
    assert actual.state is State.COMPLETE, actual.reason
    assert not actual.checkpoints
    (candidate,) = actual.candidates
    assert candidate.checkpoint == "t9p0"
    assert candidate.config == replace(TRAINING, prune=PRUNED, quantize=tuned)
    assert candidate.costs["flops"] == further.candidates[0].costs["flops"]
    with reproducible_torch():
        pipeline = load_pipeline(SETUP)
        rebuilt = pipeline.rebuild(candidate.config, further.checkpoints["t9p0"])
        logits = pipeline.predict(rebuilt.model, pipeline.splits.select_val)
        subject = Subject(logits, pipeline.splits.select_val.targets, pipeline.teacher.logits["select_val"])
        assert measure(subject, ["accuracy"])["accuracy"] == candidate.scores["select_val"]["accuracy"]


def test_a_pruned_checkpoint_is_not_pruned_once_more(result) -> None:  # type: ignore[no-untyped-def]
    half = replace(PRUNED, settings=Part.of("structured", pruning_ratio=0.5).settings)
    job = Job(
        9,
        TRAINING,
        (CompressionRecipe(prune=half),),
        base=BaseCheckpoint("t4p1", PRUNED, 10, result.checkpoints["t4p1"]),
    )
    actual = TrialRunner(SETUP)(job)
    assert actual.state is State.FAILED
    assert "a pruned checkpoint cannot be pruned again" in actual.reason


def test_memory_that_is_refused_is_told_from_other_faults() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_worker_whose_data_differ_from_the_drivers_is_not_ready() -> None:
    serialized = load_pipeline(SETUP).teacher.serialize()
    TrialRunner(SETUP, serialized_teacher=serialized).prepare()
    other = replace(SETUP, split_seed=1)
    with pytest.raises(UsageError, match="the data of the task 'digits' differ from the driver's"):
        TrialRunner(other, serialized_teacher=serialized).prepare()


class RareDigit(Digits):
    """Whether a digit is a nine."""

    name = "rare_digit"
    views = 1
    heads: Mapping[str, int] = {"label": 2}

    def splits(self, seed: int) -> Splits:
        splits = super().splits(seed)
        return Splits(**{n: replace(s, targets={"label": (s.targets["label"] == 9).long()}) for n, s in splits.items()})


@pytest.mark.slow
def test_each_model_is_scored_at_the_threshold_that_is_best_on_search_val(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("accuracy", "agreement", "balanced_accuracy", "loss", "retention")
    setup = replace(SETUP, scores=names, primary="balanced_accuracy", thresholds=(("label", None),))
    task = RareDigit()
    splits = task.splits(0)
    with reproducible_torch():
        torch.manual_seed(0)
        model = task.build(TRAINING.student).eval()
        logits = compute_teacher_logits(model, task, splits)
        pipeline = TrialPipeline(
            task, splits, Teacher(model, logits, Path()), thresholds=dict(setup.thresholds), primary=setup.primary
        )
        monkeypatch.setattr(runner, "load_pipeline", lambda setup: pipeline)
        training = replace(TRAINING, fit=Part.of("adamw", epochs=1, learning_rate=1e-3), distill=(Part("none"),))
        result = run_trial(Job(0, training, CUTS[:2]), setup)
        candidate = result.candidates[0]
        rebuilt = pipeline.rebuild(candidate.config, result.checkpoints["t0p0"])
        scores, teacher = score_test_split({"t0c0": (candidate, result.checkpoints["t0p0"])}, setup)
        record = teacher_record(setup)
    subjects = {
        name: Subject(pipeline.predict(rebuilt.model, split), split.targets, heads=task.heads)
        for name, split in splits.items()
    }
    chosen = choose_threshold(subjects["search_val"], "label", "balanced_accuracy")
    assert candidate.thresholds == {"label": chosen}
    assert chosen != 0.5
    stored = {**candidate.scores, "test": scores["t0c0"].scores}
    for name in ("search_val", "select_val", "test"):
        decided = set_thresholds(subjects[name], candidate.thresholds)
        assert stored[name]["balanced_accuracy"] == measure(decided, ["balanced_accuracy"])["balanced_accuracy"]
    assert stored["search_val"]["balanced_accuracy"] > 0.6 > measure(subjects["search_val"], names[2:3])[names[2]]
    assert candidate.details["confusion"]["label"] == count_confusions(
        set_thresholds(subjects["select_val"], candidate.thresholds), "label"
    )
    # The teacher has a threshold of its own, with which it agrees with itself.
    assert record["thresholds"] == pipeline.teacher_thresholds != candidate.thresholds
    assert teacher.scores["agreement"] == teacher.scores["retention"] == 1.0
