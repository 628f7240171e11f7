"""Repeats of the top candidates: trained anew, kept when interrupted, never done twice."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import autocompress
from autocompress.backends.base import Ask, Evaluate, Tell
from autocompress.backends.local import Serial
from autocompress.core.records import Role, State, TrialResult
from autocompress.engine import confirm as module
from autocompress.errors import SearchFailedError, UsageError
from autocompress.store.run_store import RunStore
from autocompress.trial.runner import TrialRunner


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def repeats(run: Path) -> pd.DataFrame:
    with RunStore.read(run) as study:
        table = study.trial_table()
    return table[table["role"] == Role.CONFIRM.value]


@pytest.mark.slow
def test_repeats_are_stored_once_and_leave_the_front_unchanged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = autocompress.load(run)
    reads = before.meta["test_reads"]
    tell = module.Repeats.tell

    def interrupted(self: module.Repeats, job: object, result: object) -> None:
        tell(self, job, result)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Repeats, "tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        before.confirm(top=2, seeds=2)
    monkeypatch.undo()
    first = repeats(run)
    assert set(first["state"]) == {"complete"}
    front = autocompress.load(run)
    table = front.confirm(top=2, seeds=2)
    assert set(table["seeds"]) == {2}
    assert set(table["failed"]) == {0}
    done = repeats(run)
    pd.testing.assert_frame_equal(done.head(len(first)), first)
    assert done["config"].is_unique
    assert front.confirm(top=2, seeds=2).equals(table)
    assert len(repeats(run)) == len(done)
    assert list(front.to_pandas()["id"]) == list(before.to_pandas()["id"])
    assert front.meta["test_reads"] == reads + 2
    assert front.pick().id == before.pick().id in set(table["id"])
    assert ((table["test_low"] <= table["test"]) & (table["test"] <= table["test_high"])).all()
    assert "repeated from scratch" in (run / "report.html").read_text()


@pytest.mark.slow
def test_repeat_has_the_whole_config_and_another_seed(run: Path) -> None:
    front = autocompress.load(run)
    table = front.candidates
    cut = table[table["prune.structured.recovery_epochs"].notna() & (table["role"] == "search") & table["complete"]]
    identity = str(cut["id"].iloc[0])
    found = front.confirm(seeds=1, candidates=[identity])
    assert list(found["id"]) == [identity]
    again = front.candidates[front.candidates["role"] == "confirm"].iloc[0]
    original = cut.iloc[0]
    for column in ("student.cnn.width", "prune.structured.pruning_ratio", "prune.structured.recovery_epochs", "epochs"):
        assert again[column] == original[column]
    assert again["seed"] != original["seed"]
    assert again["details"]["order"] == original["details"]["order"]
    assert not (run / "checkpoints" / f"{again['id']}.safetensors").exists()


def test_interrupted_repeat_is_retried_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: Serial, ask: object, evaluate: object, tell: object) -> None:
        ask()  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr(Serial, "run", dies)
    front = autocompress.load(run)
    for attempts in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            front.confirm(top=1, seeds=1)
        assert list(repeats(run)["attempts"]) == [attempts]
    monkeypatch.setattr(Serial, "run", lambda self, ask, evaluate, tell: ask())
    with pytest.raises(SearchFailedError, match="interrupted twice"):
        front.confirm(top=1, seeds=1)
    assert list(repeats(run)["state"]) == ["failed"]


def test_failed_repeats_are_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Serial, ask, evaluate, tell) -> None:  # type: ignore[no-untyped-def]
        while (job := ask()) is not None:
            tell(job, TrialResult(job.number, State.FAILED, reason="the loss is not finite"))

    monkeypatch.setattr(Serial, "run", fails)
    with pytest.raises(SearchFailedError, match="every repeat failed: the loss is not finite"):
        autocompress.load(run).confirm(top=1, seeds=2)


def test_invalid_requests_are_errors_before_any_training(run: Path) -> None:
    front = autocompress.load(run)
    early = front.candidates[~front.candidates["complete"]]
    with pytest.raises(UsageError, match="at least one candidate and one seed"):
        front.confirm(top=0)
    with pytest.raises(UsageError, match="no candidate 't99c9'"):
        front.confirm(candidates=["t99c9"])
    if len(early):
        with pytest.raises(UsageError, match="before its trial was complete"):
            front.confirm(candidates=[str(early["id"].iloc[0])])
    with RunStore.open(run) as study:
        study._connection.execute("DELETE FROM ac_meta WHERE key = 'front'")
    with pytest.raises(UsageError, match="has not ended: confirm reads the test split"):
        front.confirm()
    assert not len(repeats(run))


@pytest.mark.slow
def test_remote_workers_get_the_teacher(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class Remote(Serial):
        is_remote = True

        @contextmanager
        def open(self, folder: Path | None = None) -> Iterator[None]:
            seen.append(folder)
            yield
            seen.append("closed")

        def run(self, ask: Ask, evaluate: Evaluate, tell: Tell) -> None:
            assert isinstance(evaluate, TrialRunner)
            assert evaluate.serialized_teacher is not None
            seen.append(evaluate.serialized_teacher.name)
            super().run(ask, evaluate, tell)

    monkeypatch.setattr(module, "make_backend", lambda *_: Remote())
    autocompress.load(run).confirm(top=1, seeds=1)
    assert (seen[0], seen[2]) == (run, "closed")
    assert seen[1]
