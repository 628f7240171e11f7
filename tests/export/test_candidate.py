"""The export of a stored candidate, on a run whose model is not trained and whose artifact is not written."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.duplicates import remove_duplicates
from autocompress.core.heads import as_head
from autocompress.core.preprocessing import Preprocessing
from autocompress.core.records import Candidate, CompressionRecipe, Job, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.core.task import InputSpec, Split
from autocompress.errors import UsageError, VerificationError
from autocompress.export import candidate as module
from autocompress.export.artifact import Deployable
from autocompress.export.candidate import (
    REPRODUCED,
    RebuiltRun,
    TimedGraphs,
    build_promise,
    export_candidate,
    export_candidate_graphs,
    export_teacher_graphs,
)
from autocompress.export.graph_choice import ChosenGraph
from autocompress.export.pipeline import _decode_classes as decode_classes
from autocompress.export.preprocess_file import render_preprocess
from autocompress.store.run_store import RunStore
from autocompress.tasks.text import Text
from autocompress.trial.pipeline import RebuiltCandidate, Setup
from autocompress.trial.teacher import TeacherRecipe
from tests.analysis.test_certification import make_run

HEADS = {"label": 4}
CONFIG = CompressionConfig(Part.of("cnn", width=4), (Part("none"),), Part.of("adamw", epochs=5))
SETUP = Setup(Part("patterns"), 0, TeacherRecipe(Part.of("cnn", width=8), Part("adamw"), 7), ("accuracy",), ("bytes",))
# Three of these four predictions are right.
LOGITS = torch.eye(4)[[0, 1, 2, 2]]
SPLIT = Split((torch.zeros(4, 3),), {"label": torch.arange(4)})


class PatternTask:
    """Four rows to classify.

    The rest of the text is not on a card.
    """

    name, heads, inputs = "patterns", HEADS, (InputSpec((3,)),)
    labels: Mapping[str, list[str]] = {"label": ["a", "b", "c", "d"]}
    metrics = ("agreement", "accuracy")
    preprocessing = "Divide by 16."

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3),)

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        return ()


class StoredPipeline:
    """Pipeline whose every model predicts ``LOGITS``; keeps the content of the checkpoints it is given."""

    def __init__(self) -> None:
        self.task, self.model = PatternTask(), nn.Linear(3, 4)
        teacher = nn.Linear(3, 4)
        self.teacher = SimpleNamespace(model=teacher, module=teacher)
        self.splits = SimpleNamespace(select_val=SPLIT, test=SPLIT)
        self.contents: list[bytes] = []
        self.thresholds: dict[str, float | None] = {}

    def rebuild(self, config: CompressionConfig, content: bytes) -> RebuiltCandidate:
        self.contents.append(content)
        return RebuiltCandidate(self.model, self.model, None, None)

    def predict(self, model: nn.Module, split: Split) -> dict[str, Tensor]:
        return {"label": LOGITS}


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> StoredPipeline:
    stored = StoredPipeline()
    monkeypatch.setattr(module, "load_pipeline", lambda setup: stored)
    return stored


@pytest.fixture
def deployables(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Deployable, Mapping[str, object]]]:
    written: list[tuple[Deployable, Mapping[str, object]]] = []

    def write(folder: Path, deployable: Deployable, card: Mapping[str, object]) -> Path:
        written.append((deployable, card))
        return folder

    monkeypatch.setattr(module, "write_artifact", write)
    return written


def write_run(
    folder: Path,
    accuracy: float = 0.75,
    complete: bool = True,
    checkpoint: str = "t0p0",
    details: Mapping[str, object] | None = None,
) -> Path:
    """Write a run of one trial with one candidate, ``t0c0``."""
    scores = {split: {"accuracy": accuracy} for split in ("search_val", "select_val")}
    epochs = 5 if complete else 2
    candidate = Candidate("t0c0", 0, CONFIG, epochs, scores, {"bytes": 9.0}, details or {}, checkpoint, complete)
    checkpoints = {checkpoint: b"weights"} if checkpoint == "t0p0" else {}
    with RunStore.create(folder, RunInfo(name="rows", setup=SETUP.to_json())) as store:
        store.add_job(Job(0, CONFIG, (CompressionRecipe(),)), 0)
        state = State.COMPLETE if complete else State.STOPPED
        store.record_result(TrialResult(0, state, (candidate,), checkpoints=checkpoints), elapsed=1.0, hypervolume=0.1)
    return folder


@pytest.mark.parametrize("integer", [False, True])
def test_the_fastest_graph_is_exported_unless_integers_are_asked_for(
    tmp_path: Path, pipeline: StoredPipeline, deployables: list[tuple[Deployable, Mapping[str, object]]], integer: bool
) -> None:
    export_candidate(write_run(tmp_path / "rows"), "t0c0", verify=False, integer=integer)
    ((deployable, _),) = deployables
    assert deployable.exact is integer


def test_the_artifact_of_a_candidate_holds_its_model_and_its_recipe(
    tmp_path: Path, pipeline: StoredPipeline, deployables: list[tuple[Deployable, Mapping[str, object]]]
) -> None:
    exported = export_candidate(write_run(tmp_path / "rows"), "t0c0", verify=False)
    assert exported.folder == tmp_path / "rows" / "picks" / "t0c0"
    assert exported.verification is None
    assert pipeline.contents == [b"weights"]
    ((deployable, card),) = deployables
    assert deployable.config == CONFIG
    assert (deployable.task_name, deployable.heads, deployable.labels) == ("patterns", HEADS, PatternTask.labels)
    assert deployable.model is pipeline.model
    assert card == {
        "title": "rows t0c0",
        "summary": "One candidate of the search: rows. Four rows to classify.",
        "preprocessing": "Divide by 16.",
        "scores": {split: {"accuracy": 0.75} for split in ("search_val", "select_val")},
        "costs": {"bytes": 9.0},
    }


def test_splits_of_other_sizes_are_named(
    tmp_path: Path, pipeline: StoredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_task", lambda setup: (pipeline.task, pipeline.splits))
    run = write_run(tmp_path / "rows")
    with RunStore.open(run) as store:
        store.update_run_info(replace(store.run_info(), splits={"select_val": 4, "test": 9}))
    with pytest.raises(VerificationError, match="was searched with 9 examples of test, and here there are 4"):
        export_candidate(run, "t0c0", verify=False)


def test_raw_examples_are_those_of_the_split_without_duplicates(tmp_path: Path) -> None:
    train = Text.write_sample(tmp_path)
    test = tmp_path / "test.csv"
    copied = train.read_text().splitlines()[1]
    test.write_text(f"text,label\n{copied.upper().replace('GOOD', 'good').replace('BAD', 'bad')}\nnew words,good\n")
    task = Text(train, test=test)
    split = remove_duplicates(task.splits(0)).splits.test
    assert (len(task.list_test_examples(0)), len(split)) == (2, 1)
    run = SimpleNamespace(
        deployable=SimpleNamespace(preprocessing=task.specify_preprocessing(0)),
        pipeline=SimpleNamespace(task=task),
        seed=0,
    )
    assert module._list_examples(cast(RebuiltRun, run), split) == ["new words"]


@pytest.mark.parametrize("difference", [-0.001, 0.001])
def test_a_difference_from_rounding_is_accepted(
    difference: float,
    tmp_path: Path,
    pipeline: StoredPipeline,
    deployables: list[tuple[Deployable, Mapping[str, object]]],
) -> None:
    export_candidate(write_run(tmp_path / "rows", 0.75 + difference), "t0c0", verify=False)
    assert len(deployables) == 1


@pytest.mark.parametrize("difference", [-2 * REPRODUCED, 2 * REPRODUCED])
def test_another_score_is_another_model_also_if_it_is_better(
    difference: float,
    tmp_path: Path,
    pipeline: StoredPipeline,
    deployables: list[tuple[Deployable, Mapping[str, object]]],
) -> None:
    run = write_run(tmp_path / "rows", 0.75 + difference)
    with pytest.raises(VerificationError, match=rf"accuracy 0.7500 on select_val here and {0.75 + difference:.4f}"):
        export_candidate(run, "t0c0", verify=False)
    assert not deployables


def test_without_a_checkpoint_the_trial_is_trained_again(
    tmp_path: Path,
    pipeline: StoredPipeline,
    deployables: list[tuple[Deployable, Mapping[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: list[Job] = []

    def run_trial(job: Job, setup: Setup) -> TrialResult:
        jobs.append(job)
        assert setup == SETUP
        return TrialResult(job.number, State.COMPLETE, checkpoints={"t0p0": b"trained again"})

    monkeypatch.setattr("autocompress.trial.runner.run_trial", run_trial)
    export_candidate(write_run(tmp_path / "rows", checkpoint="t0p1"), "t0c0", verify=False)
    assert jobs == [Job(0, CONFIG, (CompressionRecipe(),))]
    assert pipeline.contents == [b"trained again"]


def test_a_candidate_of_an_incomplete_training_is_refused(tmp_path: Path, pipeline: StoredPipeline) -> None:
    run = write_run(tmp_path / "rows", complete=False)
    with pytest.raises(UsageError, match="'t0c0' was measured after 2 epochs of an incomplete training"):
        export_candidate(run, "t0c0")
    assert not pipeline.contents


def test_an_unknown_id_is_refused(tmp_path: Path, pipeline: StoredPipeline) -> None:
    with pytest.raises(UsageError, match="has no candidate 't9c9'"):
        export_candidate_graphs(write_run(tmp_path / "rows"), "t9c9")


def test_graphs_of_candidate_and_teacher_come_with_their_inputs(
    tmp_path: Path, pipeline: StoredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Deployable] = []

    def export(deployable: Deployable, seconds: float) -> ChosenGraph:
        exported.append(deployable)
        return ChosenGraph(b"graph", "integer", {}, b"float graph")

    monkeypatch.setattr(module, "export_chosen_graph", export)
    run = write_run(tmp_path / "rows")
    graphs = TimedGraphs(b"graph", b"float graph", [([1, 3], "float32")])
    assert export_candidate_graphs(run, "t0c0") == export_teacher_graphs(run) == graphs
    candidate, teacher = exported
    assert candidate.model is pipeline.model
    assert teacher.model is pipeline.teacher.model
    assert (teacher.config.student, teacher.config.seed) == (SETUP.teacher.student, 7)


def test_the_card_states_what_is_promised_and_certified() -> None:
    table, info = make_run({"t0c0": (0, 0), "t0c1": (1, 2)})
    examples = {**table["details"][1]["examples"], "test": info.teacher.examples["select_val"]}
    teacher = replace(
        info.teacher,
        scores={**info.teacher.scores, "test": {"accuracy": 0.98}},
        examples={**info.teacher.examples, "test": info.teacher.examples["select_val"]},
    )
    row = table.iloc[1]
    scores = {
        "search_val": {"accuracy": row["accuracy_search"]},
        "select_val": {"accuracy": row["accuracy"]},
        "test": {"accuracy": 0.98},
    }
    candidate = Candidate("t0c1", 0, CONFIG, 3, scores, {"bytes": 500.0}, {"examples": examples})
    card = build_promise(candidate, replace(info, teacher=teacher, recommended="t0c1"))
    certified, tested = card["promise"]  # type: ignore[misc]
    assert certified.startswith("Promised: at most 1.0 point lost. Certified: at most 0.7 points of accuracy lost")
    assert tested.startswith("Against the teacher, it loses no accuracy on test [")
    (other,) = build_promise(replace(candidate, details={}, id="t0c0"), replace(info, teacher=teacher))["promise"]  # type: ignore[misc]
    assert other == "Against the teacher, it loses no accuracy on test."
    assert build_promise(candidate, RunInfo()) == {}


# The second class is ranked first and never predicted.
TWO_LOGITS = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
TWO = Split((torch.zeros(4, 3),), {"label": torch.tensor([0, 0, 0, 1])})


class TwoClasses(StoredPipeline):
    """Pipeline of a head with two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.task.heads, self.task.labels = {"label": 2}, {"label": ["common", "rare"]}
        self.splits = SimpleNamespace(search_val=TWO, select_val=TWO, test=TWO)

    def predict(self, model: nn.Module, split: Split) -> dict[str, Tensor]:
        return {"label": TWO_LOGITS[: len(split)] if len(split) == 4 else TWO_LOGITS.repeat(len(split) // 4, 1)}


@pytest.fixture
def two_classes(monkeypatch: pytest.MonkeyPatch) -> TwoClasses:
    stored = TwoClasses()
    monkeypatch.setattr(module, "load_pipeline", lambda setup: stored)
    monkeypatch.setattr(module, "load_task", lambda setup: (stored.task, stored.splits))
    monkeypatch.setattr(PatternTask, "metrics", ("accuracy",))
    return stored


def test_a_threshold_is_chosen_on_the_validation_split_and_written_into_artifact_and_card(
    tmp_path: Path, two_classes: TwoClasses, deployables: list[tuple[Deployable, Mapping[str, object]]]
) -> None:
    exported = export_candidate(write_run(tmp_path / "rows"), "t0c0", verify=False, thresholds=["auto"])
    ((deployable, card),) = deployables
    head = as_head(deployable.heads["label"])
    assert head.threshold is not None
    assert 0.05 < head.threshold < 0.27
    assert head.predict(TWO_LOGITS).tolist() == [0, 0, 0, 1]
    assert card["thresholds"] == list(exported.thresholds)
    assert "on the 4 examples of search_val: accuracy 1.0000 (0.7500 at 0.5) there" in exported.thresholds[0]
    # The card shows the decisions of the exported model.
    assert card["Confusion matrix of label: true classes as rows"] == {
        "common": {"common": 3, "rare": 0},
        "rare": {"common": 0, "rare": 1},
    }
    entry = json.loads(render_preprocess(replace(deployable, example=(torch.zeros(1, 3),)), False))["outputs"][0]
    assert entry["threshold"] == head.threshold
    # The file that reads raw input decides as the head does.
    decoded = [decode_classes(entry, row.numpy(), {})["class"] for row in TWO_LOGITS]
    assert decoded == ["common", "common", "common", "rare"]


def test_the_threshold_of_the_search_is_exported_unless_another_one_is_requested(
    tmp_path: Path, two_classes: TwoClasses, deployables: list[tuple[Deployable, Mapping[str, object]]]
) -> None:
    two_classes.thresholds = {"label": None}
    # The stored score is that at the stored threshold.
    run = write_run(tmp_path / "rows", accuracy=1.0, details={"thresholds": {"label": 0.2}})
    exported = export_candidate(run, "t0c0", verify=False)
    assert exported.thresholds[0].startswith("threshold 0.2 for 'rare' of label, the best one on the 4 examples")
    export_candidate(run, "t0c0", verify=False, thresholds=["0.5"])
    heads = [as_head(deployable.heads["label"]) for deployable, _ in deployables]
    assert [head.threshold for head in heads] == [0.2, 0.5]
    assert [head.predict(TWO_LOGITS).tolist()[-1] for head in heads] == [1, 0]


def test_a_threshold_for_more_classes_is_refused_before_anything_is_rebuilt(
    tmp_path: Path, pipeline: StoredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_task", lambda setup: (pipeline.task, pipeline.splits))
    with pytest.raises(UsageError, match="'label' is a head of 4 classes"):
        export_candidate(write_run(tmp_path / "rows"), "t0c0", verify=False, thresholds=["0.3"])
    assert not pipeline.contents
