import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from autocompress.backends.base import Backend, TrialLimits
from autocompress.backends.local import Local, usable_cores
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job, State, TrialResult
from autocompress.errors import WorkersError
from tests.fakes import FakeTrials


def jobs(count: int) -> list[Job]:
    return [
        Job(
            n,
            CompressionConfig(Part.of("cnn", width=n + 1), (Part("none"),), Part("adamw"), seed=n),
            (CompressionRecipe(),),
        )
        for n in range(count)
    ]


def run(backend: Backend, trials: FakeTrials, count: int) -> dict[int, TrialResult]:
    queue, told = jobs(count), {}

    def tell(job: Job, result: TrialResult) -> None:
        assert job.number not in told, "told twice"
        told[job.number] = result

    backend.run(lambda: queue.pop(0) if queue else None, trials, tell)
    return told


@pytest.mark.slow
def test_a_dead_a_raising_and_a_hanging_trial_each_fail_alone(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log", raising=(1,), dying=(3,), hanging=(5,))
    told = run(Local(workers=2, limits=TrialLimits(seconds=10)), trials, 8)
    assert sorted(told) == list(range(8))
    assert {n for n, result in told.items() if result.state is State.FAILED} == {1, 3, 5}
    assert "a fault of the trial" in told[1].reason
    assert told[3].reason == "its worker died 2 times (killed by SIGKILL, as the system does when memory runs out)"
    assert told[5].reason == "timed out after 10 s"
    assert told[5].seconds >= 2
    assert sorted(trials.executed()) == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    # What a trial has started ends with it.
    assert not [child for child in trials.children() if alive(child)]


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "spare"), [(2, True), (1, False)])
def test_a_driver_works_ahead_only_where_a_processor_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, spare: bool
) -> None:
    monkeypatch.setattr("autocompress.backends.local.usable_cores", lambda: cores)
    queue, told, calls = jobs(2), [], []

    def ahead() -> bool:
        calls.append(len(told))
        return len(calls) < 5

    Local(workers=1).run(
        lambda: queue.pop(0) if queue else None,
        FakeTrials(tmp_path / "log"),
        lambda job, result: told.append(job.number),
        ahead,
    )
    assert told == [0, 1]
    # What is left is done before the backend waits; when nothing is, it is not asked in a hurry.
    assert len(calls) >= 5 if spare else not calls
    assert len(calls) < 50


@pytest.mark.slow
def test_workers_that_were_started_ahead_do_the_work_and_leave_with_the_search(tmp_path: Path) -> None:
    backend = Local(workers=2)
    with backend.open():
        until(lambda: len(multiprocessing.active_children()) == 2)
        started = {child.pid for child in multiprocessing.active_children()}
        told = run(backend, FakeTrials(tmp_path / "log"), 6)
    assert sorted(told) == list(range(6))
    prepared = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines() if "prepared" in line]
    assert set(prepared) <= started
    assert prepared
    with backend.open():
        # The teacher diverged, say: no job was ever asked for.
        until(lambda: len(multiprocessing.active_children()) == 2)
    assert multiprocessing.active_children() == []
    # They may still be about to start.
    with backend.open():
        pass
    assert multiprocessing.active_children() == []


@dataclass(frozen=True)
class Looking(FakeTrials):
    """Notes where it runs and what it finds there."""

    def prepare(self) -> None:
        self.log.write_text(f"{Path.cwd()} {os.environ.get('AUTOCOMPRESS_SEEN')} {sys.argv[1:]}\n")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["first", "second", None])
def test_workers_see_what_the_driver_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """What they are copied from is older than what was set since, and may have seen what is gone."""
    if value is None:
        monkeypatch.delenv("AUTOCOMPRESS_SEEN", raising=False)
    else:
        monkeypatch.setenv("AUTOCOMPRESS_SEEN", value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["autocompress", str(value)])
    run(Local(workers=1), Looking(tmp_path / "log"), 1)
    assert (tmp_path / "log").read_text().splitlines()[0] == f"{tmp_path} {value} ['{value}']"


@pytest.mark.slow
def test_where_nothing_can_be_copied_workers_start_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(arguments: object) -> None:
        raise ChildProcessError("a process that was itself forked has no such child")

    monkeypatch.setattr("autocompress.backends.workers._fork_worker", refused)
    assert sorted(run(Local(workers=1), FakeTrials(tmp_path / "log"), 2)) == [0, 1]


@pytest.mark.parametrize("fault", [BlockingIOError("no more processes"), EOFError()])
def test_a_system_that_starts_no_process_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def refused(worker: object) -> None:
        raise fault

    monkeypatch.setattr("autocompress.backends.workers.Worker._start", refused)
    with pytest.raises(WorkersError, match=f"the workers do not start: {type(fault).__name__}"):
        run(Local(workers=2), FakeTrials(tmp_path / "log"), 2)


def test_a_trial_whose_worker_was_killed_is_run_once_more(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log", dying_once=(0, 1, 4))
    told = run(Local(workers=2), trials, 6)
    assert {result.state for result in told.values()} == {State.COMPLETE}
    assert sorted(trials.executed()) == [0, 0, 1, 1, 2, 3, 4, 4, 5]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_sends_takes_nothing_else_along(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log", cut_off=(1,))
    told = run(Local(workers=2), trials, 5)
    assert {n for n, result in told.items() if result.state is State.FAILED} == {1}
    assert "died 2 times" in told[1].reason
    assert sorted(trials.executed()) == [0, 1, 1, 2, 3, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such limit")
def test_a_trial_that_wants_too_much_memory_fails_alone_and_its_worker_lives(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log", hoarding=(1, 3))
    told = run(Local(workers=1, limits=TrialLimits(memory=4 << 30)), trials, 5)
    assert {n: result.reason for n, result in told.items() if result.state is State.FAILED} == {
        1: "out of memory",
        3: "out of memory",
    }
    assert (tmp_path / "log").read_text().count("prepared") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such limit")
def test_too_little_memory_to_start_is_said_before_any_trial(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log")
    with pytest.raises(WorkersError, match=r"search\.memory of 1 MiB is too little: a worker has \d+ MiB in use"):
        run(Local(workers=1, limits=TrialLimits(memory=1 << 20)), trials, 2)
    assert trials.executed() == []


def test_workers_that_do_not_start_are_said_and_not_tried_for_ever(tmp_path: Path) -> None:
    with pytest.raises(WorkersError, match="the workers do not start: FileNotFoundError"):
        run(Local(workers=2), FakeTrials(tmp_path / "nowhere" / "log"), 2)
    assert not multiprocessing.active_children()


def test_workers_are_prepared_once_and_reused(tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log")
    run(Local(workers=2), trials, 12)
    assert 1 <= (tmp_path / "log").read_text().count("prepared") <= 2


def test_an_interruption_reaches_the_caller_and_leaves_no_process(tmp_path: Path) -> None:
    queue = jobs(4)

    def tell(job: Job, result: TrialResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Local(workers=1).run(lambda: queue.pop(0) if queue else None, FakeTrials(tmp_path / "log"), tell)
    assert not multiprocessing.active_children()


def test_zero_workers_takes_every_core() -> None:
    assert Local().workers == usable_cores() >= 1


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        "from pathlib import Path\n"
        "from autocompress.backends.local import Local\n"
        "from tests.backends.test_local import jobs\n"
        "from tests.fakes import FakeTrials\n"
        "if __name__ == '__main__':\n"
        f"    queue = jobs(1)\n"
        f"    trials = FakeTrials(Path({str(tmp_path / 'log')!r}), hanging=(0,))\n"
        "    Local(workers=1).run(lambda: queue.pop(0) if queue else None, trials, lambda job, result: None)\n"
    )
    root = Path(__file__).parents[2]
    driver = subprocess.Popen([sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    log = tmp_path / "log"
    until(lambda: log.exists() and "0" in log.read_text().split("\n"))
    worker = int(log.read_text().split()[1])
    driver.kill()
    driver.wait()
    until(lambda: not alive(worker))


@pytest.mark.slow
def test_a_process_that_does_not_use_its_workers_ends() -> None:
    code = "from autocompress.backends.local import Local\nif __name__ == '__main__':\n    Local(1).prewarm()\n"
    code += "    print('made')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr


UNGUARDED = """
from pathlib import Path
import autocompress
from autocompress.backends.local import Local
from tests.backends.test_local import jobs
from tests.fakes import FakeTrials

if __name__ != "__main__":
    # A worker imports the script of its driver.
    autocompress.search("digits")
queue = jobs(1)
Local(workers=1).run(lambda: queue.pop(0) if queue else None, FakeTrials(Path("log")), lambda job, result: None)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode != 0
    assert "a worker imports this script anew: call search under `if __name__" in done.stderr
    assert "a script must call search under `if __name__" in done.stderr


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has asked about yet is as good as gone.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
