"""What is handed out, told and handed out again, without a cluster."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from autocompress.backends.ray_tune import FAILED_STARTS, DriverFault, JobSearcher, ResultCollector
from autocompress.backends.ray_worker import JOB, OUTCOME, JobPayload, ResultPayload
from autocompress.core.records import Job, State, TrialResult
from autocompress.errors import WorkersError
from tests.backends.test_local import jobs
from tests.fakes import fake_result

FINISHED = "FINISHED"


class Play:
    """A forwarder with a queue of jobs, moved by hand as Tune would."""

    def __init__(self, count: int, seats: int = 2, seconds: float | None = None) -> None:
        self.queue = jobs(count)
        self.told: list[tuple[int, TrialResult]] = []
        self.forwarder = JobSearcher(
            lambda: self.queue.pop(0) if self.queue else None,
            lambda job, result: self.told.append((job.number, result)),
            lambda: seats,
            lambda job: JobPayload(job, None, ".", {}),
            seconds,
        )
        self.trials = 0

    def suggest(self) -> Any:
        self.trials += 1
        return self.forwarder.suggest(f"trial{self.trials}")

    def start(self) -> str:
        """Let Tune ask and begin; return the trial's id."""
        assert isinstance(self.suggest(), dict)
        self.forwarder.start_job(f"trial{self.trials}")
        return f"trial{self.trials}"

    def end(self, trial: str) -> None:
        result = {OUTCOME: ResultPayload(fake_result(self.forwarder.running[trial].job))}
        ResultCollector(self.forwarder).on_trial_result(1, [], SimpleNamespace(trial_id=trial), result)
        assert result == {}, "Tune keeps the result"
        self.forwarder.on_trial_complete(trial)

    def die(self, trial: str, fault: Exception | None = None) -> None:
        self.forwarder.running[trial].fault = fault or RayActorError()
        self.forwarder.on_trial_complete(trial, error=True)

    @property
    def states(self) -> dict[int, State]:
        assert len({number for number, _ in self.told}) == len(self.told), "told twice"
        return {number: result.state for number, result in self.told}


def test_no_more_than_there_are_seats_and_the_end_when_nothing_is_under_way() -> None:
    play = Play(3)
    first, second = play.start(), play.start()
    assert play.suggest() is None
    assert len(play.queue) == 1, "asked for what has no seat"
    play.end(second)
    third = play.start()
    play.end(first)
    assert play.suggest() is None
    play.end(third)
    assert play.suggest() == FINISHED
    assert play.states == dict.fromkeys(range(3), State.COMPLETE)


def test_the_driver_is_asked_once_for_each_result_and_not_at_each_of_tunes_steps() -> None:
    play, asked = Play(2, seats=4), []
    play.forwarder._ask = lambda: asked.append(None) or (play.queue.pop(0) if play.queue else None)  # type: ignore[func-returns-value]
    first, second = play.start(), play.start()
    assert [play.suggest() for _ in range(5)] == [None] * 5
    assert len(asked) == 3
    play.end(first)
    assert [play.suggest() for _ in range(5)] == [None] * 5
    assert len(asked) == 4
    play.end(second)


def test_the_job_of_a_dead_worker_goes_first_and_fails_when_the_next_one_dies_too() -> None:
    play = Play(3, seats=1)
    play.die(play.start())
    again = play.start()
    assert play.forwarder.running[again].job.number == 0
    play.die(again)
    assert play.states == {0: State.FAILED}
    assert play.told[0][1].reason.startswith("its worker died 2 times")
    play.end(play.start())
    assert play.states[1] is State.COMPLETE


def test_a_worker_that_never_had_the_job_costs_it_no_execution() -> None:
    play = Play(1, seats=1)
    play.die(play.start())
    for _ in range(FAILED_STARTS - 1):
        assert isinstance(play.suggest(), dict)
        play.die(f"trial{play.trials}")
    play.end(play.start())
    assert play.states == {0: State.COMPLETE}


def test_workers_that_never_come_up_end_the_search_unless_others_are_at_work() -> None:
    play = Play(5, seats=8)
    unready = RayActorError(error_msg="creation failed\nWorkerStartError: on 10.0.0.1: no data")
    working = play.start()
    while play.suggest() is not None:
        play.die(f"trial{play.trials}", unready)
    # Each took a seat with it, down to the one that works.
    assert play.trials == 1 + 7 + 1
    play.end(working)

    def try_again() -> None:
        assert isinstance(play.suggest(), dict)
        play.die(f"trial{play.trials}", unready)

    with pytest.raises(DriverFault) as through:
        try_again()
    assert isinstance(through.value.fault, WorkersError)
    assert "no data" in str(through.value.fault)


def test_a_late_job_and_one_whose_result_cannot_be_sent_fail_at_once() -> None:
    play = Play(2, seats=1, seconds=0.0)
    play.die(play.start())
    assert play.told[0][1].reason == "timed out after 0 s"
    play.die(play.start(), RayTaskError("train", "cannot pickle '_thread.lock' object", TypeError()))
    assert "its result cannot be sent" in play.told[1][1].reason


def test_when_tune_gives_up_as_a_whole_nothing_is_lost() -> None:
    play = Play(3)
    play.start()
    assert isinstance(play.suggest(), dict)
    play.forwarder.recover_jobs(RuntimeError("a result was lost"))
    assert not play.forwarder.running
    while (found := play.suggest()) != FINISHED:
        assert isinstance(found, dict)
        play.forwarder.start_job(f"trial{play.trials}")
        play.end(f"trial{play.trials}")
    assert play.states == dict.fromkeys(range(3), State.COMPLETE)


def test_a_worker_that_took_too_much_memory_takes_no_execution_from_the_others() -> None:
    # What Ray 2.60 says, and Tune has no answer to.
    said = (
        "Caught unexpected exception: 1 worker(s) were killed due to the node running low on memory.\n"
        "Considered workers: [\nSelected to kill: (Actor(a1): job ID=01, pid=1)\n(Actor(b2): job ID=01, pid=2)\n]"
    )
    play = Play(2)
    for _ in range(2):
        for actor in ("a1", "b2"):
            assert isinstance(play.suggest(), dict)
            play.forwarder.start_job(f"trial{play.trials}", actor)
        play.forwarder.recover_jobs(RuntimeError(said))
    assert play.states == {0: State.FAILED}
    assert play.told[0][1].reason == (
        "its worker died 2 times (1 worker(s) were killed due to the node running low on memory.)"
    )
    play.end(play.start())
    assert play.states[1] is State.COMPLETE


def test_a_parcel_is_emptied_wherever_tune_has_copied_it() -> None:
    parcel = JobPayload(jobs(1)[0], "kit", ".", {})
    copied = copy.deepcopy({JOB: parcel})
    parcel.release()
    assert copied[JOB].job is None
    assert repr(parcel) == "job 0"


def test_what_ask_raises_passes_through_tune() -> None:
    def ask() -> Job | None:
        raise OSError("no space")

    found = JobSearcher(ask, lambda job, result: None, lambda: 1, lambda job: JobPayload(job, None, ".", {}))
    with pytest.raises(DriverFault) as through:
        found.suggest("a")
    assert isinstance(through.value.fault, OSError)
    assert not isinstance(through.value, Exception)
