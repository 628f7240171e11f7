"""What every backend must do: each asked job is told exactly once, in the caller's thread, with its own result."""

import threading
from pathlib import Path

import pytest

from autocompress.backends.base import Backend
from autocompress.config import CompressionConfig, Part
from autocompress.records import Cut, Job, State, TrialResult
from autocompress.registry import BACKENDS
from tests.fakes import FakeTrials, fake_result


@pytest.mark.parametrize("name", BACKENDS.names())
class TestBackend:
    def jobs(self, count: int) -> list[Job]:
        return [
            Job(n, CompressionConfig(Part.of("cnn", width=n + 2), (Part("none"),), Part("adamw"), seed=n), (Cut(),))
            for n in range(count)
        ]

    def test_every_job_is_told_once_with_its_result(self, name: str, tmp_path: Path) -> None:
        backend: Backend = BACKENDS.get(name)(workers=2)
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

    def test_nothing_to_do_is_fine(self, name: str, tmp_path: Path) -> None:
        def tell(job: Job, result: TrialResult) -> None:
            raise AssertionError

        BACKENDS.get(name)(workers=1).run(lambda: None, FakeTrials(tmp_path / "log"), tell)

    def test_a_result_crosses_the_process_border_whole(self, name: str, tmp_path: Path) -> None:
        queue, told = self.jobs(1), []
        expected = fake_result(queue[0])
        BACKENDS.get(name)(workers=1).run(
            lambda: queue.pop(0) if queue else None,
            FakeTrials(tmp_path / "log"),
            lambda job, result: told.append(result),
        )
        assert told == [expected]
        assert told[0].state is State.COMPLETE
