"""What every backend must do: each asked job is told exactly once, in the caller's thread, with its own result."""

import multiprocessing
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from autocompress.backends.base import Backend
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job, State, TrialResult
from autocompress.core.registry import BACKENDS
from tests.fakes import FakeTrials, fake_result

Make: TypeAlias = Callable[..., Backend]


@pytest.fixture
def make(name: str, request: pytest.FixtureRequest) -> Make:
    """The backend's class; a cluster, which takes long to start, is shared by all tests."""
    if name != "ray":
        return BACKENDS.get(name)  # type: ignore[no-any-return]
    return partial(BACKENDS.get(name), address=request.getfixturevalue("ray_cluster").address)


@pytest.mark.parametrize("name", BACKENDS.names())
class TestBackend:
    def jobs(self, count: int) -> list[Job]:
        return [
            Job(
                n,
                CompressionConfig(Part.of("cnn", width=n + 2), (Part("none"),), Part("adamw"), seed=n),
                (CompressionRecipe(),),
            )
            for n in range(count)
        ]

    @pytest.mark.slow
    def test_every_job_is_told_once_with_its_result(self, name: str, make: Make, tmp_path: Path) -> None:
        backend = make(workers=2)
        assert backend.name == name
        expected = {job.number: fake_result(job) for job in self.jobs(5)}
        queue, told, threads = self.jobs(5), [], set()

        def ask() -> Job | None:
            threads.add(threading.get_ident())
            return queue.pop(0) if queue else None

        def tell(job: Job, result: TrialResult) -> None:
            threads.add(threading.get_ident())
            told.append((job.number, result))

        backend.run(ask, FakeTrials(tmp_path / "log"), tell)
        assert sorted(number for number, _ in told) == list(range(5))
        assert dict(told) == expected
        assert threads == {threading.get_ident()}
        # Workers are readied once, and kept.
        assert 1 <= (tmp_path / "log").read_text().count("prepared") <= 2

    @pytest.mark.slow
    def test_what_was_warmed_and_readied_runs_and_what_was_cooled_leaves_nothing(
        self, make: Make, tmp_path: Path
    ) -> None:
        backend = make(workers=1)
        queue, told = self.jobs(2), []
        trials = FakeTrials(tmp_path / "log")
        backend.prewarm()
        backend.prewarm()
        with backend.open(tmp_path):
            backend.prepare(trials)
            backend.run(lambda: queue.pop(0) if queue else None, trials, lambda job, result: told.append(job.number))
        assert sorted(told) == [0, 1]
        backend.prewarm()
        backend.shutdown()
        backend.shutdown()
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    def test_what_it_needs_is_recorded(self, name: str, make: Make) -> None:
        from autocompress.engine.runner import _describe_environment, make_plan
        from autocompress.engine.spec import load_spec

        versions = _describe_environment(make_plan(load_spec("digits", [f"search.backend={name}"]))).versions
        assert {*make().libraries, "torch", "optuna"} <= set(versions)
        assert ("ray" in versions) == (name == "ray")

    @pytest.mark.slow
    def test_nothing_to_do_is_fine(self, make: Make, tmp_path: Path) -> None:
        def tell(job: Job, result: TrialResult) -> None:
            raise AssertionError

        make(workers=1).run(lambda: None, FakeTrials(tmp_path / "log"), tell)

    @pytest.mark.slow
    def test_one_that_had_nothing_to_ask_for_is_asked_again_after_a_result(self, make: Make, tmp_path: Path) -> None:
        first, second = self.jobs(2)
        asked: list[Job] = []
        told: list[int] = []

        def ask() -> Job | None:
            # The second is worth asking for when the first is back.
            if len(asked) == len(told) < 2:
                asked.append((first, second)[len(told)])
                return asked[-1]
            return None

        backend = make(workers=2)
        with backend.open(tmp_path):
            backend.run(ask, FakeTrials(tmp_path / "log"), lambda job, result: told.append(job.number))
        assert told == [0, 1]

    @pytest.mark.slow
    def test_what_can_be_done_ahead_is_done_in_the_callers_thread_until_nothing_is_left(
        self, make: Make, tmp_path: Path
    ) -> None:
        queue, told, threads = self.jobs(3), [], [threading.get_ident()]

        def ahead() -> bool:
            threads.append(threading.get_ident())
            # All may be called for, or nothing: whether there is time is the backend's to say.
            return len(threads) % 3 > 0

        make(workers=1).run(
            lambda: queue.pop(0) if queue else None,
            FakeTrials(tmp_path / "log"),
            lambda job, result: told.append(job.number),
            ahead,
        )
        assert sorted(told) == [0, 1, 2]
        assert set(threads) == {threading.get_ident()}

    @pytest.mark.slow
    def test_a_result_crosses_the_process_border_whole(self, make: Make, tmp_path: Path) -> None:
        queue, told = self.jobs(1), []
        expected = fake_result(queue[0])
        make(workers=1).run(
            lambda: queue.pop(0) if queue else None,
            FakeTrials(tmp_path / "log"),
            lambda job, result: told.append(result),
        )
        assert told == [expected]
        assert told[0].state is State.COMPLETE
