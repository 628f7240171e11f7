"""The worker of the Ray backend, called in this process without a cluster."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from autocompress.backends import ray_worker as module
from autocompress.backends.base import NO_LIMITS, TrialLimits
from autocompress.backends.ray_cluster import read_versions
from autocompress.backends.ray_worker import (
    JOB,
    OUTCOME,
    JobPayload,
    MessageCollector,
    RayWorker,
    ResultPayload,
    WorkerSetup,
    WorkerStartError,
)
from autocompress.core.records import Job, State, TrialResult
from tests.backends.test_local import jobs
from tests.fakes import FakeTrials, fake_result


class WarningTrials(FakeTrials):
    """Trials that log a warning; one of them runs out of memory."""

    def __call__(self, job: Job) -> TrialResult:
        logging.getLogger("autocompress.trial").warning("trial %d is slow", job.number)
        if job.number == 2:
            raise MemoryError
        return super().__call__(job)


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Restore the folder and the log handlers that a worker changes."""
    folder, package = Path.cwd(), logging.getLogger("autocompress")
    handlers = list(package.handlers)
    yield
    os.chdir(folder)
    package.handlers[:] = handlers


def start_worker(
    monkeypatch: pytest.MonkeyPatch,
    evaluate: FakeTrials,
    folder: Path,
    limits: TrialLimits = NO_LIMITS,
    versions: Mapping[str, str] = {},
) -> RayWorker:
    """Return a worker that was set up with its first job, as Tune does it."""
    monkeypatch.setattr(module, "guard_group", lambda: None)
    monkeypatch.setattr(module.ray, "get", lambda reference: reference)
    monkeypatch.setattr(module.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    # Tune's own constructor reads the cluster.
    worker: RayWorker = object.__new__(RayWorker)
    worker.setup(make_config(jobs(1)[0], WorkerSetup(evaluate, limits), folder, versions))
    return worker


def make_config(job: Job, setup: Any, folder: Path, versions: Mapping[str, str] = {}) -> dict[str, Any]:
    return {JOB: JobPayload(job, setup, str(folder), versions)}


def test_a_copy_of_a_payload_is_the_payload_and_its_release_drops_the_job() -> None:
    payload = JobPayload(jobs(3)[2], None, ".", {})  # type: ignore[arg-type]
    assert copy.deepcopy({"config": payload})["config"] is payload
    assert repr(payload) == "job 2"
    payload.release()
    assert payload.job is None
    assert payload.setup is None
    assert payload.number == 2


def test_a_result_is_neither_copied_nor_printed() -> None:
    result = ResultPayload(fake_result(jobs(5)[4]))
    assert copy.deepcopy([result])[0] is result
    assert repr(result) == "result 4"
    assert result.messages == ()


def test_messages_from_warnings_on_are_returned_once() -> None:
    collector, logger = MessageCollector(), logging.Logger("autocompress.prune")
    logger.addHandler(collector)
    logger.info("not collected")
    logger.warning("layer %s has no channels", "conv")
    assert collector.pop_messages() == [("autocompress.prune", logging.WARNING, "layer conv has no channels")]
    assert collector.pop_messages() == []


def test_a_worker_is_prepared_once_and_runs_one_job_after_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluate = WarningTrials(tmp_path / "log", raising=(1,))
    worker = start_worker(monkeypatch, evaluate, tmp_path, TrialLimits(seconds=60))
    assert Path.cwd() == tmp_path
    outcomes = [worker.step()[OUTCOME]]
    for job in jobs(3)[1:]:
        assert worker.reset_config(make_config(job, None, tmp_path / "missing")) is True
        outcomes.append(worker.step()[OUTCOME])
    # A folder that this machine does not have is ignored.
    assert Path.cwd() == tmp_path
    # Tune would send the config back with every result.
    assert worker.config == {}
    first, raising, full = (outcome.result for outcome in outcomes)
    assert first == fake_result(jobs(1)[0])
    assert (raising.number, raising.state, raising.reason) == (1, State.FAILED, "RuntimeError: a fault of the trial")
    assert (full.number, full.state, full.reason) == (2, State.FAILED, "out of memory")
    assert [outcome.messages for outcome in outcomes] == [
        [("autocompress.trial", logging.WARNING, f"trial {number} is slow")] for number in range(3)
    ]
    assert evaluate.log.read_text().count("prepared") == 1


def test_a_worker_that_cannot_be_prepared_names_its_machine_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(WorkerStartError, match=r"on 10\.0\.0\.7: FileNotFoundError: "):
        start_worker(monkeypatch, FakeTrials(tmp_path / "missing" / "log"), tmp_path)
    with pytest.raises(WorkerStartError, match=r"on 10\.0\.0\.7: search\.memory of 1 MiB is too little"):
        start_worker(monkeypatch, FakeTrials(tmp_path / "log"), tmp_path, TrialLimits(memory=2**20))


def test_a_node_that_joined_later_with_another_version_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = read_versions()
    start_worker(monkeypatch, FakeTrials(tmp_path / "log"), tmp_path, versions=here)
    with pytest.raises(WorkerStartError, match=r"on 10\.0\.0\.7: this node has torch \S+, the driver 0\.1;"):
        start_worker(monkeypatch, FakeTrials(tmp_path / "log"), tmp_path, versions={**here, "torch": "0.1"})
