"""What a trial costs on Ray beside its training: `python -m benchmarks.ray_overhead [--trials 300] [--seconds 0.1]`.

The same trials, which sleep and then return a checkpoint, are run on one cluster of this machine by Tune as it comes,
by Tune as the backend runs it, and by plain Ray actors. Overhead: what of the workers' time between the first and the
last result no trial accounts for, for each trial. Driver: processor time of the driver's process in between, for each
trial. Early and late: the same overhead over the first and the last third of the trials.
"""

import argparse
import cProfile
import os
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autocompress.backends.base import NO_LIMITS, Ask, Evaluate, Tell
from autocompress.backends.local import usable_cores
from autocompress.backends.ray import Ray
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Job, State, TrialResult
from benchmarks.keeping import about

Loop = Callable[[Ask, Evaluate, Tell, int, str], None]


@dataclass(frozen=True)
class Sleeping:
    """A trial that sleeps and returns a checkpoint."""

    seconds: float
    size: int

    def prepare(self) -> None:
        """Need nothing."""

    def __call__(self, job: Job) -> TrialResult:
        """Sleep."""
        begun = time.perf_counter()
        time.sleep(self.seconds)
        took = time.perf_counter() - begun
        return TrialResult(job.number, State.COMPLETE, seconds=took, checkpoints={"weights": bytes(self.size)})


def tune_as_it_comes(ask: Ask, evaluate: Evaluate, tell: Tell, workers: int, folder: str) -> None:
    """Run the backend's searcher under Tune's defaults: a fresh actor for each trial, loggers, snapshots."""
    import ray
    from ray import tune

    from autocompress.backends.ray_tune import JobSearcher, ResultCollector, SingleResultScheduler
    from autocompress.backends.ray_worker import JobPayload, RayWorker, WorkerSetup

    kit = ray.put(WorkerSetup(evaluate, NO_LIMITS))
    forwarder = JobSearcher(ask, tell, lambda: workers, lambda job: JobPayload(job, kit, "."))
    tune.run(
        RayWorker,
        search_alg=forwarder,
        scheduler=SingleResultScheduler(forwarder),
        callbacks=[ResultCollector(forwarder)],
        resources_per_trial={"cpu": 1},
        num_samples=-1,
        storage_path=folder,
        trial_dirname_creator=lambda trial: str(trial.trial_id),
        verbose=0,
    )


def tune_as_the_backend_runs_it(ask: Ask, evaluate: Evaluate, tell: Tell, workers: int, folder: str) -> None:
    """Run what a search runs."""
    from autocompress.backends.ray_tune import run_jobs

    run_jobs(ask, evaluate, tell, lambda: workers, NO_LIMITS, {"CPU": 1.0}, folder)


def plain_actors(ask: Ask, evaluate: Evaluate, tell: Tell, workers: int, folder: str) -> None:
    """Run the same seam on actors alone, without what Tune gives: no retry, no death, no placement groups."""
    import ray

    @ray.remote(num_cpus=1)
    class Worker:
        """Readied once, for one job after the other."""

        def __init__(self, evaluate: Evaluate) -> None:
            self._evaluate = evaluate
            evaluate.prepare()

        def run(self, job: Job) -> TrialResult:
            """Run one job."""
            return self._evaluate(job)

    idle = [Worker.remote(evaluate) for _ in range(workers)]
    running = {}
    while True:
        while idle and (job := ask()) is not None:
            worker = idle.pop()
            running[worker.run.remote(job)] = (worker, job)
        if not running:
            return
        (ready,), _ = ray.wait(list(running))
        worker, job = running.pop(ready)
        idle.append(worker)
        tell(job, ray.get(ready))


LOOPS: dict[str, Loop] = {
    "Tune as it comes": tune_as_it_comes,
    "Tune as the backend runs it": tune_as_the_backend_runs_it,
    "plain Ray actors": plain_actors,
}


@dataclass(frozen=True)
class Cost:
    """Of one loop, in seconds for each trial."""

    overhead: float
    early: float
    late: float
    driver: float


def measure(loop: Loop, trials: int, evaluate: Sleeping, workers: int, folder: str) -> Cost:
    """Run trials and account for the time."""
    training = CompressionConfig(Part.of("cnn"), (Part("none"),), Part("adamw"))
    queue = [Job(number, training, ()) for number in range(trials)]
    told: list[tuple[float, float, float]] = []

    def tell(job: Job, result: TrialResult) -> None:
        told.append((time.perf_counter(), time.process_time(), result.seconds))

    loop(lambda: queue.pop(0) if queue else None, evaluate, tell, workers, folder)
    # As many trials end in between as began in between, but for those of the first round.
    steady = told[workers:]

    def overhead(part: list[tuple[float, float, float]]) -> float:
        wall = part[-1][0] - part[0][0]
        return (wall * workers - sum(seconds for _, _, seconds in part[1:])) / (len(part) - 1)

    third = len(steady) // 3
    driver = (steady[-1][1] - steady[0][1]) / (len(steady) - 1)
    return Cost(overhead(steady), overhead(steady[:third]), overhead(steady[-third:]), driver)


def main() -> None:
    """Print one line a loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--untuned", type=int, default=20, help="trials for Tune as it comes, which is slow")
    parser.add_argument("--seconds", type=float, default=0.1, help="how long one trial sleeps")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.1, 4.0], help="what one trial returns")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print where the driver of the backend's loop is")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/ray.md"))
    asked = parser.parse_args()
    if min(asked.trials, asked.untuned) < 6 + asked.workers:
        parser.error("--trials and --untuned: early and late need two trials each, beside one for each worker")
    lines = [
        "# What a trial costs on Ray beside its training, ms",
        "",
        about(__doc__),
        "",
        f"{asked.workers} workers; trials of {asked.seconds:g} s.",
        "",
        "| loop | result, MB | trials | overhead | early | late | driver |",
        "|---|---|---|---|---|---|---|",
    ]
    profile = cProfile.Profile()
    backend = Ray(asked.workers)
    with backend.open():
        assert backend.workers == asked.workers, "this machine has fewer cores"
        assert backend.folder is not None
        for megabytes in asked.megabytes:
            for name, loop in LOOPS.items():
                trials = asked.untuned if loop is tune_as_it_comes else asked.trials
                looked_at = asked.profile and loop is tune_as_the_backend_runs_it
                if looked_at:
                    profile.enable()
                evaluate = Sleeping(asked.seconds, int(megabytes * 1e6))
                found = measure(loop, trials, evaluate, asked.workers, str(backend.folder))
                profile.disable()
                cells = (found.overhead, found.early, found.late, found.driver)
                lines.append(
                    f"| {name} | {megabytes:g} | {trials} | {' | '.join(f'{cell * 1e3:.1f}' for cell in cells)} |"
                )
                print(lines[-1], flush=True)
    lines += ["", f"Load average at the end: {os.getloadavg()[0]:.1f} on {usable_cores()} cores."]
    text = "\n".join([*lines, ""])
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(text)
    print(text)
    if asked.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
