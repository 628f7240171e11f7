import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import autocompress
from autocompress.core.run_info import LatencyInfo
from autocompress.errors import ArtifactError, UnknownNameError, UsageError
from autocompress.export import front_latency as timing
from autocompress.export.candidate import TimedGraphs
from autocompress.export.front_latency import TimingOptions, time_front, time_run
from autocompress.store.run_store import RunStore


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_run, tmp_path / "mine")


def kept(run: Path) -> LatencyInfo:
    with RunStore.read(run) as study:
        latency = study.run_info().latency
    assert latency is not None
    return latency


def ids(run: Path, count: int) -> list[str]:
    with RunStore.read(run) as study:
        table = study.candidate_table()
    return list(table[table["complete"] & (table["role"] == "search")]["id"].head(count))


@pytest.mark.slow
def test_a_front_is_timed_and_is_an_axis_a_column_and_a_limit(run: Path) -> None:
    front = autocompress.load(run)
    told: list[tuple[int, int]] = []
    assert front.bench(seconds=0.02, on_progress=lambda *counts: told.append(counts)) == {}
    wanted = {*front.to_pandas()["id"], front.pick().id}
    assert told == [(done, len(wanted) + 1) for done in range(len(wanted) + 2)]
    table = front.to_pandas()
    assert (table["latency_ms"] > 0).all()
    teacher = front.info.teacher.costs["latency_ms"]
    assert teacher > 0
    # What was not asked for has none, and the fastest can be chosen.
    assert front.candidates["latency_ms"].isna().any()
    fastest = table["latency_ms"].min()
    # A candidate beside the front was timed, too, because it is recommended.
    assert front.pick(max={"latency_ms": fastest}).row["latency_ms"] <= fastest
    assert len(front.where(f"latency_ms <= {fastest}")) >= 1
    page = (run / "report.html").read_text()
    assert "onnxruntime" in page
    assert re.search(r">\s*latency\s*<", page)
    assert "latency_ms" in (run / "front.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_what_was_timed_stays_until_it_is_timed_otherwise(run: Path) -> None:
    first, second = ids(run, 2)
    time_run(run, [first], TimingOptions(seconds=0.01))
    before = kept(run).rows
    assert set(before) == {"teacher", first}
    time_run(run, [second], TimingOptions(seconds=0.01))
    rows = kept(run).rows
    assert set(rows) == {"teacher", first, second}
    # Up to rounding, because the rows are stored and read in between.
    assert rows["teacher"] == pytest.approx(before["teacher"])  # type: ignore[index]
    # A search that goes on measures only what is missing.
    time_run(run, [first], TimingOptions(seconds=0.01, keep=True))
    again = kept(run).rows
    assert set(again) == set(rows)
    assert [again[name] for name in again] == [pytest.approx(rows[name]) for name in again]  # type: ignore[index]
    time_run(run, [], TimingOptions(batch=4, seconds=0.01))
    assert kept(run).batch == 4
    assert set(kept(run).rows) == {"teacher"}


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_is_said_and_the_others_are_timed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Path) -> None:
        raise ArtifactError("the teacher has a layer that ONNX does not know")

    monkeypatch.setattr(timing, "export_teacher_graphs", refused)
    (first,) = ids(run, 1)
    assert time_run(run, [first], TimingOptions(seconds=0.01)) == {
        "teacher": "the teacher has a layer that ONNX does not know"
    }
    assert set(kept(run).rows) == {first}
    assert "latency_ms" not in autocompress.load(run).info.teacher.costs


@pytest.mark.slow
def test_what_was_timed_before_an_interruption_is_kept(run: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    first, second = ids(run, 2)
    with pytest.raises(KeyboardInterrupt):
        time_run(run, [first, second], TimingOptions(seconds=0.01), interrupted)
    latency = kept(run)
    assert set(latency.rows) == set(latency.float_rows) == {"teacher", first}


def test_ratios_to_the_teacher_have_one_scale(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = 1.0

    def rounds(models: Mapping[str, object], inputs: object, seconds: float, **_: object) -> dict[str, list[float]]:
        return {name: [load * (2.0 if name.startswith("teacher") else 0.5)] * 3 for name in models}

    monkeypatch.setattr(timing, "time_rounds", rounds)
    graphs = TimedGraphs(b"graph", b"graph", [])
    monkeypatch.setattr(timing, "export_teacher_graphs", lambda run: graphs)
    monkeypatch.setattr(timing, "export_candidate_graphs", lambda run, name, seconds: replace(graphs, content=b"int"))
    monkeypatch.setattr("autocompress.targets.onnxruntime.OnnxRuntime.load", lambda *_: None)
    names = ids(run, 3)
    time_run(run, names[:1])
    load = 3.0
    # The machine is three times slower now, and the teacher beside the others is, too.
    time_run(run, names[1:])
    assert kept(run).rows == {"teacher": 2.0, **dict.fromkeys(names, 0.5)}
    # One group only when the time is up, with the recommended candidate in it.
    monkeypatch.setattr(timing, "GROUP", 1)
    with RunStore.open(run) as store:
        info = store.run_info()
        store.update_run_info(replace(info, latency=None))
    assert len({*(info.front or ()), info.recommended}) > 1
    time_front(run, limit=-1.0)
    assert set(kept(run).rows) == {"teacher", info.recommended}


@pytest.mark.slow
def test_candidates_that_are_not_there_or_not_done_are_refused(run: Path) -> None:
    with pytest.raises((UsageError, UnknownNameError), match="t99c9"):
        time_run(run, ["t99c9"], TimingOptions(seconds=0.01))
    with RunStore.read(run) as study:
        table = study.candidate_table()
    partial = str(table[~table["complete"]]["id"].iloc[0])
    with pytest.raises(UsageError, match="incomplete training"):
        time_run(run, [partial], TimingOptions(seconds=0.01))
