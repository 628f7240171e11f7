"""A real task of two heads through every stage: mixture, head weights, distillation, cuts, scores by head, export."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as tensors_of

import autocompress
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job, TrialResult
from autocompress.core.registry import TASKS
from autocompress.core.task import Split, Splits
from autocompress.engine.runner import make_plan
from autocompress.engine.spec import parse_spec
from autocompress.errors import SpecError
from autocompress.export.artifact import Deployable, load_artifact, write_artifact
from autocompress.measure.heads import list_scores
from autocompress.tasks.images import Digits
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial, score_test_split, teacher_record
from autocompress.trial.teacher import TeacherRecipe

NAME = "digits_and_parity"
HEADS = {"label": 10, "parity": 2}
SCORES = tuple(list_scores(["accuracy", "f1_macro", "loss", "retention", "accuracy_worst", "loss@label"], HEADS))
TEACHER = TeacherRecipe(
    Part.of("cnn", width=12, depth=1, stages=2, sharing="shared_middle"),
    Part.of("adamw", epochs=14, learning_rate=1e-2),
)
SETUP = Setup(Part(NAME), 0, TEACHER, SCORES, ("bytes", "flops"))
TRAINING = CompressionConfig(
    Part.of("cnn", width=8, depth=1, stages=2, sharing="mixture", experts=3, head_hidden=12),
    (Part.of("soft_target", temperature=4.0, alpha=0.7, first_temperature=0.5),),
    Part.of("adamw", epochs=14, learning_rate=1.5e-2, head_weights="dynamic"),
    seed=3,
)
PRUNED = Part.of("structured", pruning_ratio=0.25, recovery_epochs=2)
EIGHT = Part.of("post_training", weight_bits=8, activation_bits=8)
JOB = Job(0, TRAINING, (CompressionRecipe(), CompressionRecipe(PRUNED, EIGHT)))

SPEC = f"""
task: {NAME}
search: {{trials: 2, backend: serial}}
teacher:
  student: {json.dumps(TEACHER.student.to_json())}
  fit: {json.dumps(TEACHER.fit.to_json())}
student: {{cnn: {{width: 8, depth: 1, stages: 2, sharing: [shared_bottom, mixture]}}}}
fit: {{adamw: {{epochs: 6, learning_rate: 1e-2, head_weights: uncertainty}}}}
quantize: {{none: , post_training: {{weight_bits: [8, 2], activation_bits: 8}}}}
objectives: [accuracy_worst, accuracy@parity, bytes]
limits: {{accuracy@label: {{min: 0.5}}}}
"""


class DigitsAndParity(Digits):
    """Which digit, and whether it is odd."""

    name = NAME
    heads: Mapping[str, int] = {"label": 10, "parity": 2}
    views = 1

    def splits(self, seed: int) -> Splits:
        """Return the digits' splits with both heads."""
        plain = super().splits(seed)
        both = {
            name: Split(split.inputs, {**split.targets, "parity": split.targets["label"] % 2})
            for name, split in plain.items()
        }
        return Splits(**both)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Register the task for this module alone: the contracts run over every registered one."""
    TASKS.names()
    TASKS.add(NAME, DigitsAndParity)
    yield
    del TASKS._objects[NAME]


@pytest.fixture(scope="module")
def result(registered: None) -> TrialResult:
    with reproducible_torch():
        return run_trial(JOB, SETUP)


@pytest.mark.slow
def test_the_scores_of_each_head_are_stored_and_make_up_the_mean_and_the_worst(result: TrialResult) -> None:
    assert not result.reason
    for candidate in result.candidates:
        for split in ("search_val", "select_val"):
            found = candidate.scores[split]
            assert set(found) == set(SCORES)
            by_head = [found[f"accuracy@{head}"] for head in HEADS]
            assert found["accuracy"] == pytest.approx(sum(by_head) / 2)
            assert found["accuracy_worst"] == min(by_head)
            assert found["accuracy@label"] > 0.6
            assert found["accuracy@parity"] > 0.8
            assert found["retention@label"] > 0.6
        assert {head: len(rows) for head, rows in candidate.details["per_class"].items()} == {"label": 10, "parity": 2}


@pytest.mark.slow
def test_pruning_shrinks_the_encoder_of_a_mixture_and_says_why_its_gates_stay(result: TrialResult) -> None:
    whole, cut = result.candidates
    assert cut.costs["flops"] < 0.75 * whole.costs["flops"]
    assert cut.costs["bytes"] < 0.35 * whole.costs["bytes"]
    uncut = cut.details["prune"]["uncut"]
    assert any("gates" in name and "softmax" in reason for name, reason in uncut.items())
    assert cut.details["prune"]["channels"]["heads.towers.label.0"] == [12, 9]


@pytest.mark.slow
def test_the_test_split_and_the_teacher_are_scored_by_head_too(result: TrialResult) -> None:
    candidate = result.candidates[1]
    with reproducible_torch():
        chosen = {candidate.id: (candidate, result.checkpoints[candidate.checkpoint])}
        scores, teacher = score_test_split(chosen, SETUP)
        record = teacher_record(SETUP)
    names = [set(scores[candidate.id].scores), set(teacher.scores), set(record["scores"]["select_val"])]
    assert names == [set(SCORES)] * 3


@pytest.mark.slow
def test_an_exported_mixture_reloads_with_equal_logits(result: TrialResult, tmp_path: Path) -> None:
    candidate = result.candidates[1]
    with reproducible_torch():
        place = load_pipeline(SETUP)
        rebuilt = place.rebuild(candidate.config, result.checkpoints[candidate.checkpoint])
        task = place.task
        folder = write_artifact(
            tmp_path / "pick",
            Deployable(
                candidate.config,
                task.name,
                {},
                task.labels,
                dict(task.heads),
                task.inputs,
                task.example(),
                rebuilt.float_model,
                rebuilt.model,
                rebuilt.prune,
                rebuilt.quantize,
            ),
            {"title": "mixture", "summary": "", "scores": {}, "costs": {}},
        )
        inputs = place.splits.test.inputs
        with torch.inference_mode():
            ours, theirs = rebuilt.model(*inputs), load_artifact(folder)(*inputs)
    assert set(ours) == set(HEADS)
    for head in HEADS:
        assert torch.equal(ours[head], theirs[head])


@pytest.mark.slow
def test_the_weight_of_a_head_decides_which_one_is_learned(result: TrialResult) -> None:
    scores = {}
    for first in (0.02, 50.0):
        fit = Part.of("adamw", epochs=8, learning_rate=1e-2, first_head=first)
        with reproducible_torch():
            found = run_trial(
                Job(1, replace(TRAINING, fit=fit, distill=(Part("none"),)), (CompressionRecipe(),)), SETUP
            )
        scores[first] = found.candidates[0].scores["select_val"]
    assert scores[50.0]["loss@label"] < 0.5 * scores[0.02]["loss@label"]
    assert scores[0.02]["accuracy@parity"] > scores[50.0]["accuracy@parity"]


@pytest.mark.slow
def test_the_kind_of_weights_and_the_first_heads_temperature_change_the_outcome(result: TrialResult) -> None:
    term = Part.of("soft_target", temperature=4.0, alpha=0.7)
    short = replace(TRAINING, fit=Part.of("adamw", epochs=3, learning_rate=1e-2))
    dynamic = Part.of("adamw", epochs=3, learning_rate=1e-2, head_weights="dynamic")
    with reproducible_torch():
        weights = [
            tensors_of(next(iter(run_trial(Job(2, training, (CompressionRecipe(),)), SETUP).checkpoints.values())))
            for training in (
                replace(short, distill=(term,)),
                replace(short, distill=(term,), fit=dynamic),
                replace(short),
            )
        ]
    name = "heads.towers.label.2.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("objectives=[accuracy@pairty, bytes]", "objectives.accuracy@pairty.*no head 'pairty': did you mean 'parity'"),
        ("objectives=[acuracy@parity, bytes]", "unknown objective 'acuracy': did you mean 'accuracy'"),
        ("objectives=[accuracy, bytes@parity]", "measured on the model, not on a head"),
        ("limits={accuracy@colour: {min: 0.5}}", "limits.accuracy@colour.*no head 'colour': known: label, parity"),
    ],
)
def test_a_wrong_head_is_refused_before_anything_is_trained(change: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(parse_spec(SPEC, "two.yaml", [change]))


@pytest.mark.slow
def test_a_search_ranks_limits_and_reads_by_head(tmp_path: Path) -> None:
    spec = tmp_path / "two.yaml"
    spec.write_text(SPEC)
    front = autocompress.search(spec, runs=tmp_path)
    assert [each["name"] for each in front.meta["objectives"]] == ["accuracy_worst", "accuracy@parity", "bytes"]
    boxes = {each["name"]: each["box"] for each in front.meta["objectives"]}
    assert boxes["accuracy@parity"] == [0.5, 1.0]
    assert boxes["accuracy_worst"] == [0.1, 1.0]
    table = front.candidates
    assert (table["accuracy_worst"] <= table["accuracy"] + 1e-9).all()
    shown = front.to_pandas()
    expected = shown[(shown["accuracy@label"] >= 0.6) & (shown["retention@parity"] > 0)]
    assert front.where("accuracy@label >= 0.6 and retention@parity > 0")["id"].tolist() == expected["id"].tolist()
    assert len(expected) > 0
    assert (shown["accuracy@label"] >= 0.5).all()
    assert front.pick(min={"accuracy@parity": 0.6}).row["accuracy@parity"] >= 0.6
    with (front.folder / "candidates.csv").open() as file:
        columns = next(csv.reader(file))
    assert {f"{score}@{head}" for score in ("accuracy", "f1_macro", "retention") for head in HEADS} <= set(columns)
    assert {"accuracy@label_search", "accuracy@label_test"} <= set(columns)
    page = (front.folder / "report.html").read_text()
    assert "accuracy (worst head)" in page
    assert "retention (parity)" in page
