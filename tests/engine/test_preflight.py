import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from autocompress.core.run_info import RunInfo
from autocompress.engine.preflight import check_run_folder
from autocompress.engine.spec import Spec, parse_spec
from autocompress.errors import RunFolderError, UnfinishedRunError
from autocompress.store.run_store import RunStore

SOUND = "task: digits\nstudent: {cnn: {}}\n"


def spec(*overrides: str) -> Spec:
    return parse_spec(SOUND, "x", overrides).spec


def begun(folder: Path, front: tuple[str, ...] | None = None) -> Path:
    RunStore.create(folder, RunInfo(content=spec().immutable_content(), front=front)).close()
    return folder


def test_new_folder_is_accepted(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "new", spec(), resume=False)
    check_run_folder(tmp_path / "new", spec(), resume=True)
    assert not list(tmp_path.iterdir())


def test_unfinished_search_suggests_resume(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(UnfinishedRunError, match="continue it with: autocompress search x --resume") as offer:
        check_run_folder(folder, spec("search.trials=3"), resume=False, command="autocompress search x")
    assert "--name" in str(offer.value)
    with pytest.raises(UnfinishedRunError, match="resume=True"):
        check_run_folder(folder, spec(), resume=False)
    check_run_folder(folder, spec(), resume=True)


def test_other_or_finished_search_is_an_error(tmp_path: Path) -> None:
    ended = begun(tmp_path / "ended", front=())
    for folder, requested in ((ended, spec()), (begun(tmp_path / "other"), spec("search.seed=5"))):
        with pytest.raises(RunFolderError, match="already holds a run; add --resume") as refusal:
            check_run_folder(folder, requested, resume=False)
        assert not isinstance(refusal.value, UnfinishedRunError)
    check_run_folder(ended, spec(), resume=True)
    with pytest.raises(RunFolderError, match=r"search\.seed \(0 then, 5 now\) differs"):
        check_run_folder(ended, spec("search.seed=5"), resume=True)


def _hold(folder: str, ready: Connection) -> None:
    with RunStore.open(Path(folder)):
        ready.send(True)
        ready.recv()


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_run_in_use_is_an_error_before_data_is_loaded(tmp_path: Path, resume: bool) -> None:
    begun(tmp_path / "run")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(str(tmp_path / "run"), theirs))
    other.start()
    assert ours.poll(60)
    with pytest.raises(RunFolderError, match=f"in use by process {other.pid}"):
        check_run_folder(tmp_path / "run", spec(), resume=resume)
    ours.send(None)
    other.join()
