"""The interface of backends: defaults that a backend inherits."""

from pathlib import Path

import pytest

from autocompress.backends.base import NO_LIMITS, Ask, Backend, Evaluate, IdleWork, Tell, TrialLimits, skip_idle_work
from tests.backends.test_local import jobs
from tests.fakes import FakeTrials, fake_result


class InProcess(Backend):
    """A backend with the one required method, which runs jobs in the caller's process."""

    name = "in_process"

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, idle_work: IdleWork = skip_idle_work) -> None:
        while (job := ask()) is not None:
            tell(job, evaluate(job))


def test_no_idle_work_is_left_by_default() -> None:
    assert skip_idle_work() is False


def test_a_trial_has_no_limits_by_default() -> None:
    assert TrialLimits() == NO_LIMITS
    assert (NO_LIMITS.seconds, NO_LIMITS.memory) == (None, None)
    assert TrialLimits(seconds=1.0) != NO_LIMITS


def test_a_backend_without_run_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Backend()  # type: ignore[abstract]


def test_a_backend_needs_only_run(tmp_path: Path) -> None:
    backend, queue, results = InProcess(), jobs(3), {}
    evaluate = FakeTrials(tmp_path / "log")
    backend.prewarm()
    backend.prepare(evaluate)
    # The inherited hooks start nothing: the worker's preparation has not run.
    assert not evaluate.log.exists()
    with backend.open(tmp_path):
        backend.run(
            lambda: queue.pop(0) if queue else None, evaluate, lambda job, result: results.update({job.number: result})
        )
    backend.shutdown()
    assert results == {job.number: fake_result(job) for job in jobs(3)}
    assert not backend.is_remote
    assert backend.libraries == ()
