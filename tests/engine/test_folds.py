"""Cross-fitting: finalists and teachers are trained in folds, and their out-of-fold predictions decide."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.example_scores import ExampleScores
from autocompress.engine.folds import FOLDER, FoldTrainings, pool_folds
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import Source, parse_spec
from autocompress.errors import RunFolderError, SpecError
from autocompress.front import Front
from autocompress.tasks.recommendation import Recommendation
from autocompress.tasks.recommender import Ranking, Ratings
from autocompress.tasks.shilling import PoisonedRanking, PoisonedRatings
from autocompress.tasks.text import Text

SPEC = """
task: {text: {path: PATH, views: 1, length: 8, vocabulary: 64}}
splits: {folds: 2}
search: {trials: 2, backend: serial, refine: 0}
teacher: {student: {text_cnn: {embedding: 8, width: 8}}, fit: {adamw: {epochs: 2, learning_rate: 1e-2}}}
student: {text_cnn: {embedding: 4, width: [4, 8]}}
fit: {adamw: {epochs: 2, learning_rate: 1e-2}}
quantize: {none: , post_training: {weight_bits: 8, activation_bits: 8}}
pick: {max_drop: 0.5}
"""


def read_source(folder: Path, changes: Sequence[str] = ()) -> Source:
    path = folder / "text.csv"
    if not path.exists():
        Text.write_sample(folder)
        lines = path.read_text().splitlines()
        path.write_text("\n".join([f"{lines[0]},day", *(f"{line},{day}" for day, line in enumerate(lines[1:]))]))
    return parse_spec(SPEC.replace("PATH", str(path)), "text.yaml", changes)


@pytest.mark.slow
def test_the_recommendation_compares_out_of_fold_predictions(tmp_path: Path) -> None:
    notices: list[str] = []
    plan = make_plan(read_source(tmp_path))
    outside = sum(len(split) for name, split in plan.splits.items() if name != "test")
    store = run_search(plan, tmp_path / "run")
    try:
        info = store.run_info()
        notices += info.notices
    finally:
        store.close()
    front = Front(tmp_path / "run")
    pick = front.pick()
    assert pick.certificate is not None
    assert (pick.certificate.splits, pick.certificate.examples) == (("folds",), outside)
    assert f"on {outside:,} out-of-fold examples" in pick.certificate.describe(info.objectives[0])
    finalists = front.candidates[front.candidates["accuracy_folds"].notna()]
    assert pick.id in set(finalists["id"])
    row = finalists.iloc[0]
    stored = ExampleScores.unpack(row["details"]["examples"]["folds"])
    assert stored is not None
    assert stored.values.mean() == pytest.approx(row["accuracy_folds"])
    assert info.teacher.scores["folds"]["accuracy"] > 0
    (notice,) = [text for text in notices if "in 2 folds, each with a teacher of its own" in text]
    trainings = sorted((tmp_path / "run" / FOLDER).iterdir())
    assert f"{len(trainings)} trainings of" in notice
    assert "folds" in front.page()
    # A resumed run reads the stored trainings, and repeats those that are missing.
    times = {path: path.stat().st_mtime_ns for path in trainings}
    trainings[0].unlink()
    run_search(make_plan(read_source(tmp_path)), tmp_path / "run", resume=True).close()
    again = {path: path.stat().st_mtime_ns for path in trainings}
    assert [path for path in trainings if again[path] != times[path]] == trainings[:1]
    assert json.loads(trainings[0].read_text())["candidates"]
    assert Front(tmp_path / "run").pick().certificate == pick.certificate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["splits.time=day"], r"splits\.folds: the examples of the task 'text' are in order of time, and a fold would"),
        (
            ["splits.groups=day", "splits.folds=20", "task.text.path=OTHER"],
            "groups outside of the test split cannot",
        ),
        (["teacher.fit.adamw.epochs=0"], "the teacher must be trained again in every fold"),
        (["pick.confidence=null"], r"pick\.confidence is null"),
        (["splits.folds=1"], "greater than or equal to 2"),
    ],
)
def test_folds_that_mean_nothing_are_refused(tmp_path: Path, changes: list[str], message: str) -> None:
    read_source(tmp_path)
    other = tmp_path / "other.csv"
    lines = (tmp_path / "text.csv").read_text().splitlines()
    other.write_text("\n".join([lines[0], *(f"{line}{number % 8}" for number, line in enumerate(lines[1:]))]))
    other.write_text(re.sub(r",\d+(\d)$", r",\1", other.read_text(), flags=re.M))
    with pytest.raises(SpecError, match=message):
        make_plan(read_source(tmp_path, [change.replace("OTHER", str(other)) for change in changes]))


def test_rankings_and_attacks_have_no_folds() -> None:
    assert Ratings.has_folds
    assert not any(task.has_folds for task in (Ranking, Recommendation, PoisonedRatings, PoisonedRanking))


def test_folds_are_pooled_by_their_examples() -> None:
    bits = [ExampleScores("bits", 2, np.array([1.0, 0.0])), ExampleScores("bits", 1, np.array([1.0]))]
    pooled = pool_folds([{"accuracy": 0.5}, {"accuracy": 1.0}], [part.pack() for part in bits])
    assert pooled is not None
    scores, text = pooled
    unpacked = ExampleScores.unpack(text)
    assert unpacked is not None
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert (unpacked.kind, unpacked.values.tolist()) == ("bits", [1, 0, 1])
    draws = [ExampleScores("replicates", size, np.full(8, value)) for size, value in ((30, 1.0), (10, 3.0))]
    pooled = pool_folds([{"rmse": 1.0}, {"rmse": 3.0}], [part.pack() for part in draws])
    assert pooled is not None
    replicates = ExampleScores.unpack(pooled[1])
    assert replicates is not None
    assert replicates.examples == 40
    assert replicates.values == pytest.approx(np.full(8, 1.5))
    assert pool_folds([{"rmse": 1.0}] * 2, [draws[0].pack(), bits[0].pack()]) is None
    assert pool_folds([{"rmse": 1.0}] * 2, [draws[0].pack(), ""]) is None


def test_a_damaged_result_of_a_fold_is_named(tmp_path: Path) -> None:
    config = CompressionConfig(Part("cnn"), (), Part("adamw"), None, None)
    trainings = FoldTrainings(tmp_path, {"t0c0": config}, 2)
    entry = {"recipe": [None, None], "scores": {"accuracy": 0.5}, "examples": ""}
    for _, _, path in trainings.jobs:
        path.write_text(json.dumps({"seconds": 1, "candidates": [entry]}))
    assert [result["scores"] for result in trainings.read_results("t0c0")] == [{"accuracy": 0.5}] * 2
    assert trainings.sum_seconds() == 2.0
    for damage in ("{", "[]", '{"seconds": [], "candidates": [{}]}', '{"seconds": {}, "candidates": 3}'):
        trainings.jobs[1][2].write_text(damage)
        for read in (trainings.sum_seconds, lambda: trainings.read_results("t0c0")):
            with pytest.raises(RunFolderError, match=r"is damaged .*; remove it"):
                read()
