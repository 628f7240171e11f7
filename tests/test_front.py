"""A run as a Python object, on a small stored run without trained models."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import cast

import pandas as pd
import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.run_info import LatencyInfo, ObjectiveSpec, RunInfo, TeacherInfo
from autocompress.errors import NoCandidateError, RunFolderError, UnknownNameError, UsageError
from autocompress.front import Front, refuse_worker, tables_of
from autocompress.store.run_store import RunStore
from tests.fakes import OBJECTIVES, fake_result

RECIPES = (CompressionRecipe(), CompressionRecipe(quantize=Part.of("post_training", weight_bits=4)))
TEACHER = TeacherInfo({"select_val": {"accuracy": 0.99}}, {"effective_flops": 1e6})
INFO = RunInfo(name="small", objectives=OBJECTIVES, all_objectives=OBJECTIVES, teacher=TEACHER, max_drop=0.5)


def write_run(folder: Path, widths: tuple[int, ...] = (4, 16), info: RunInfo = INFO) -> Path:
    """Write a run of one trial per width, each with a 32-bit and a 4-bit candidate."""
    with RunStore.create(folder, info) as store:
        store.update_run_info(replace(info, format=store.run_info().format))
        for number, width in enumerate(widths):
            training = CompressionConfig(Part.of("cnn", width=width), (Part("none"),), Part("adamw"))
            job = Job(number, training, RECIPES)
            store.add_job(job, 0)
            store.record_result(replace(fake_result(job), checkpoints={}), elapsed=1.0, hypervolume=0.5)
    return folder


@pytest.fixture
def front(tmp_path: Path) -> Front:
    return Front(write_run(tmp_path / "small"))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        Front(tmp_path)


def test_the_front_holds_the_non_dominated_candidates_cheapest_first(front: Front) -> None:
    assert list(front.candidates["id"]) == ["t0c0", "t0c1", "t1c0", "t1c1"]
    table = front.to_pandas()
    assert list(table["effective_flops"]) == sorted(table["effective_flops"])
    assert list(table["accuracy"]) == sorted(table["accuracy"])
    # 4 bits at width 16 cost twice as much as 32 bits at width 4, and score higher.
    assert list(table["id"]) == ["t0c1", "t0c0", "t1c1", "t1c0"]
    assert len(front) == 4
    assert repr(front) == f"Front({str(front.folder)!r}: 4 of 4 candidates)"


def test_the_limits_of_the_search_bound_the_front(tmp_path: Path) -> None:
    front = Front(write_run(tmp_path / "limited", info=replace(INFO, limits={"accuracy": {"min": 0.9}})))
    assert list(front.to_pandas()["id"]) == ["t1c1", "t1c0"]
    assert repr(front).endswith("2 of 4 candidates)")


def test_an_expression_filters_the_front(front: Front) -> None:
    assert set(front.where("accuracy >= 0.96")["id"]) == {"t1c0"}
    with pytest.raises(UnknownNameError, match="accuracy"):
        front.where("acuracy >= 0.9")


def test_a_pick_satisfies_its_limits(front: Front) -> None:
    assert front.pick(max={"effective_flops": 20_000}, prefer="accuracy").id == "t0c0"
    assert front.pick(min={"accuracy": 0.9}, prefer="effective_flops").id == "t1c1"
    assert front.pick(candidate="t1c0").id == "t1c0"
    with pytest.raises(NoCandidateError):
        front.pick(max={"effective_flops": 1})


def test_a_filter_limits_a_pick_and_excludes_an_id(front: Front) -> None:
    assert front.pick(where="student.cnn.width = 4", prefer="accuracy").row["student.cnn.width"] == 4
    with pytest.raises(UsageError, match="cannot be combined with a filter"):
        front.pick(where="accuracy > 0", candidate="t0c0")


def test_two_candidates_are_compared_by_what_differs(front: Front) -> None:
    table = front.compare("t0c0", "t1c0")
    assert list(table.columns) == ["t0c0", "t1c0", "difference"]
    assert table.loc["student.cnn.width"].tolist() == [4, 16, 12]
    # Equal values and values that both lack are left out.
    assert not {"quantize", "student", "quantize.post_training.weight_bits"} & set(table.index)
    assert pd.isna(front.compare("t0c0", "t0c1").loc["quantize", "difference"])
    with pytest.raises(UnknownNameError, match="t9c9"):
        front.compare("t0c0", "t9c9")


def test_a_plot_has_the_axes_that_are_named(front: Front) -> None:
    assert front.plot("accuracy", "effective_flops").layout.yaxis.title == front.figure().layout.yaxis.title
    # An axis that the search did not optimize has no bounds.
    front.info = replace(front.info, all_objectives=(ObjectiveSpec("loss", "minimize"), *OBJECTIVES))
    front.candidates["loss"] = 1 - front.candidates["accuracy"]
    assert "loss" in str(front.plot("loss").layout.yaxis.title.text)
    with pytest.raises(UnknownNameError, match="unknown cost 'effective_flop': did you mean 'effective_flops'"):
        front.plot(cost="effective_flop")
    # A score is no cost.
    with pytest.raises(UnknownNameError, match="unknown cost 'accuracy'"):
        front.plot(cost="accuracy")


def test_a_run_without_candidates_has_an_empty_front(tmp_path: Path) -> None:
    front = Front(write_run(tmp_path / "empty", widths=()))
    assert len(front) == 0
    with pytest.raises(NoCandidateError, match="holds no candidates yet"):
        front.pick()


def test_the_description_is_given_as_stored_json(front: Front) -> None:
    assert front.meta["pick"] == {"max_drop": 0.5}
    assert front.meta["objectives"][0]["box"] == [0.1, 1.0]
    assert RunInfo.from_json(front.meta) == front.info


def test_a_measured_latency_is_a_column_and_a_limit(tmp_path: Path) -> None:
    latency = LatencyInfo(rows={"t0c0": 0.5, "t1c0": 2.0})
    front = Front(write_run(tmp_path / "timed", info=replace(INFO, latency=latency)))
    assert front.candidates.set_index("id")["latency_ms"].dropna().to_dict() == {"t0c0": 0.5, "t1c0": 2.0}
    assert front.pick(max={"latency_ms": 1.0}).id == "t0c0"


def test_parquet_holds_every_candidate(front: Front, tmp_path: Path) -> None:
    path = front.to_parquet(tmp_path / "tables" / "candidates.parquet")
    stored = pd.read_parquet(path)
    assert list(stored["id"]) == list(front.candidates["id"])
    assert list(stored["accuracy"]) == list(front.candidates["accuracy"])


def test_a_run_that_was_not_repeated_has_no_confirmed_rows(front: Front, tmp_path: Path) -> None:
    assert front.confirmed().empty
    assert Front(write_run(tmp_path / "early", info=RunInfo(name="early"))).confirmed().empty


def test_tables_of_runs_have_distinct_names(tmp_path: Path) -> None:
    fronts = [Front(write_run(tmp_path / parent / "same")) for parent in ("a", "b")]
    tables = tables_of(fronts)
    assert len({table.name for table in tables}) == 2
    assert all(table.candidates is front.candidates for table, front in zip(tables, fronts, strict=True))


@pytest.mark.parametrize(("module", "is_refused"), [("__mp_main__", True), ("__main__", False), ("script", False)])
def test_only_a_script_imported_by_a_worker_is_refused(module: str, is_refused: bool) -> None:
    caller = SimpleNamespace(f_globals={"__name__": module})
    refusal = pytest.raises(UsageError, match="call search under `if __name__") if is_refused else nullcontext()
    with refusal:
        refuse_worker(cast(FrameType, caller), "search")
