"""Ray with real nodes on this machine: the seam holds whatever dies."""

import threading
from pathlib import Path
from typing import Any

import pytest

from autocompress.backends.base import TrialLimits
from autocompress.backends.ray import Ray
from autocompress.core.records import Job, State, TrialResult
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.errors import WorkersError
from autocompress.store.run_store import RunStore
from tests.backends.nodes import LookingTrials, SlowTrials, UnreadyTrials, another
from tests.backends.test_local import alive, jobs, run, until
from tests.conftest import SMALL_SEARCH
from tests.engine.test_driver import build_driver, close_store, read_candidates
from tests.fakes import FakeTrials, fake_result

# A node or a worker takes seconds to start, and many times that on a machine that is busy.
pytestmark = pytest.mark.timeout(300)

# One trial takes a whole node of the tests' cluster.
WHOLE = {"cpu": 2.0}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_dead_a_raising_and_a_hanging_trial_each_fail_alone(ray_cluster: Any, tmp_path: Path) -> None:
    trials = FakeTrials(tmp_path / "log", raising=(1,), dying=(3,), dying_once=(4,), hanging=(5,))
    told = run(Ray(2, TrialLimits(seconds=10), address=ray_cluster.address), trials, 7)
    assert sorted(told) == list(range(7))
    assert {n for n, result in told.items() if result.state is State.FAILED} == {1, 3, 5}
    assert told[1].reason == "RuntimeError: a fault of the trial"
    assert told[3].reason.startswith("its worker died 2 times")
    assert told[5].reason == "timed out after 10 s"
    assert told[4] == fake_result(jobs(7)[4])
    assert sorted(trials.executed()) == [0, 1, 2, 3, 3, 4, 4, 5, 6]
    # What a trial has started ends with it.
    until(lambda: not [child for child in trials.children() if alive(child)], 120)
    assert trials.children()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_node_that_is_lost_takes_no_trial_along(ray_cluster: Any, tmp_path: Path) -> None:
    trials, supply = SlowTrials(tmp_path / "log"), jobs(200)
    told: dict[int, TrialResult] = {}
    asked: list[Job] = []

    def tell(job: Job, result: TrialResult) -> None:
        assert job.number not in told, "told twice"
        told[job.number] = result

    with another(ray_cluster) as node:

        def lose() -> None:
            until(lambda: trials.busy(node.node_id), 120)
            ray_cluster.remove_node(node, allow_graceful=False)
            # What is asked for from here on is enough for the one that is left to notice.
            del supply[len(asked) + 2 :]

        def ask() -> Job | None:
            if len(asked) == len(supply):
                return None
            asked.append(supply[len(asked)])
            return asked[-1]

        losing = threading.Thread(target=lose)
        losing.start()
        Ray(address=ray_cluster.address, resources=WHOLE).run(ask, trials, tell)
        losing.join()
    assert {number: result.state for number, result in told.items()} == {job.number: State.COMPLETE for job in asked}
    # One was under way on the node, and ran once more on the other.
    assert sorted(trials.executed().count(job.number) for job in asked) == [1] * (len(asked) - 1) + [2]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_one_and_two_nodes_finish_the_same_search(ray_cluster: Any, tmp_path: Path) -> None:
    def found(name: str) -> list[tuple[str, ...]]:
        # With a sampler that learns, what is proposed depends on what came first, here as on any backend.
        searching = build_driver(tmp_path / name, "search.sampler=random", "search.trials=8")
        backend = Ray(address=ray_cluster.address, resources=WHOLE)
        with backend.open():
            assert backend.workers == (2 if name == "two" else 1)
            backend.run(searching.ask, FakeTrials(tmp_path / f"{name}.log"), searching.tell)
        close_store(searching)
        rows = read_candidates(tmp_path / name)[["id", "config", "accuracy", "accuracy_search", "effective_flops"]]
        return sorted(map(tuple, rows.astype(str).to_numpy()))

    alone = found("one")
    with another(ray_cluster):
        assert found("two") == alone
    assert {row[0].partition("c")[0] for row in alone} == {f"t{number}" for number in range(8)}


@pytest.mark.slow
def test_a_search_on_a_cluster_has_the_teacher_and_keeps_its_checkpoints(ray_cluster: Any, tmp_path: Path) -> None:
    place = ["search.backend=ray", f"search.address={ray_cluster.address}", "search.workers=1", "search.trials=1"]
    run_search(make_plan(load_spec("digits", [*SMALL_SEARCH, *place])), tmp_path / "run").close()
    with RunStore.read(tmp_path / "run") as study:
        candidates = study.candidate_table()
        assert study.run_info().environment.workers == 1
    assert candidates["agreement"].notna().all()
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_trial_sees_the_share_of_a_graphics_processor_that_it_was_given(ray_cluster: Any, tmp_path: Path) -> None:
    trials = LookingTrials(tmp_path / "log")
    with another(ray_cluster, num_gpus=1):
        run(Ray(2, resources={"cpu": 0.5, "gpu": 0.25}, address=ray_cluster.address), trials, 3)
    assert trials.log.read_text().count("gpu 0\n") == 3


@pytest.mark.exhaustive
@pytest.mark.slow
def test_workers_that_are_never_ready_end_the_search_and_say_why(ray_cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkersError, match=r"do not start .*FileNotFoundError: the data are not here"):
        run(Ray(2, address=ray_cluster.address), UnreadyTrials(tmp_path / "log"), 2)


@pytest.mark.slow
def test_what_ask_and_tell_raise_reaches_the_caller_as_it_is(ray_cluster: Any, tmp_path: Path) -> None:
    class FullError(Exception):
        pass

    def tell(job: Job, result: TrialResult) -> None:
        raise FullError

    queue = jobs(3)
    with pytest.raises(FullError):
        Ray(1, address=ray_cluster.address).run(
            lambda: queue.pop(0) if queue else None, FakeTrials(tmp_path / "log"), tell
        )
