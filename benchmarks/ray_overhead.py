"""Overhead of a trial on Ray: `python -m benchmarks.ray_overhead [--trials 300] [--seconds 0.1]`.

The same trials, which sleep and then return a checkpoint, run on a cluster of this machine with Tune's defaults, with
Tune as the backend configures it, and with plain Ray actors. Overhead is the time of the workers between the first and
the last result in which no trial runs, per trial. Driver is the processor time of the driver's process in between, per
trial. Early and late are the overhead over the first and the last third of the trials.
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
from benchmarks.common import describe_benchmark

Loop = Callable[[Ask, Evaluate, Tell, int, str], None]


@dataclass(frozen=True)
class SleepingEvaluator:
    """Evaluates a job by sleeping and returning a checkpoint.

    Attributes:
        seconds: Duration of the sleep.
        size: Bytes of the checkpoint.
    """

    seconds: float
    size: int

    def prepare(self) -> None:
        """Do nothing: the evaluator needs no preparation."""

    def __call__(self, job: Job) -> TrialResult:
        """Sleep and return a checkpoint."""
        started = time.perf_counter()
        time.sleep(self.seconds)
        seconds = time.perf_counter() - started
        return TrialResult(job.number, State.COMPLETE, seconds=seconds, checkpoints={"weights": bytes(self.size)})


def run_default_tune(ask: Ask, evaluate: Evaluate, tell: Tell, workers: int, folder: str) -> None:
    """Run the backend's searcher with Tune's defaults: a new actor per trial, loggers, snapshots."""
    import ray
    from ray import tune

    from autocompress.backends.ray_tune import JobSearcher, ResultCollector, SingleResultScheduler
    from autocompress.backends.ray_worker import JobPayload, RayWorker, WorkerSetup

    setup = ray.put(WorkerSetup(evaluate, NO_LIMITS))
    searcher = JobSearcher(ask, tell, lambda: workers, lambda job: JobPayload(job, setup, ".", {}))
    tune.run(
        RayWorker,
        search_alg=searcher,
        scheduler=SingleResultScheduler(searcher),
        callbacks=[ResultCollector(searcher)],
        resources_per_trial={"cpu": 1},
        num_samples=-1,
        storage_path=folder,
        trial_dirname_creator=lambda trial: str(trial.trial_id),
        verbose=0,
    )


def run_backend_tune(ask: Ask, evaluate: Evaluate, tell: Tell, workers: int, folder: str) -> None:
    """Run Tune as the Ray backend does in a search."""
    from autocompress.backends.ray_tune import run_jobs

    run_jobs(ask, evaluate, tell, lambda: workers, NO_LIMITS, {"CPU": 1.0}, folder)


def run_plain_actors(ask: Ask, evaluate: Evaluate, tell: Tell, workers: int, folder: str) -> None:
    """Run the same interface on actors only, without the features of Tune: retries, failed actors, placement groups."""
    import ray

    @ray.remote(num_cpus=1)
    class Worker:
        """An actor that prepares once and then runs one job after the other."""

        def __init__(self, evaluate: Evaluate) -> None:
            self._evaluate = evaluate
            evaluate.prepare()

        def run(self, job: Job) -> TrialResult:
            """Run one job."""
            return self._evaluate(job)

    idle = [Worker.remote(evaluate) for _ in range(workers)]  # type: ignore[attr-defined]
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
    "Tune defaults": run_default_tune,
    "Tune in the backend": run_backend_tune,
    "plain Ray actors": run_plain_actors,
}


@dataclass(frozen=True)
class LoopCost:
    """Costs of one loop, in seconds per trial."""

    overhead: float
    early: float
    late: float
    driver: float


def measure(loop: Loop, trials: int, evaluate: SleepingEvaluator, workers: int, folder: str) -> LoopCost:
    """Run the trials and return the costs of the loop."""
    training = CompressionConfig(Part.of("cnn"), (Part("none"),), Part("adamw"))
    queue = [Job(number, training, ()) for number in range(trials)]
    results: list[tuple[float, float, float]] = []

    def tell(job: Job, result: TrialResult) -> None:
        results.append((time.perf_counter(), time.process_time(), result.seconds))

    loop(lambda: queue.pop(0) if queue else None, evaluate, tell, workers, folder)
    # Without the first round, as many trials start as end in the measured interval.
    steady = results[workers:]

    def overhead(rows: list[tuple[float, float, float]]) -> float:
        wall = rows[-1][0] - rows[0][0]
        return (wall * workers - sum(seconds for _, _, seconds in rows[1:])) / (len(rows) - 1)

    third = len(steady) // 3
    driver = (steady[-1][1] - steady[0][1]) / (len(steady) - 1)
    return LoopCost(overhead(steady), overhead(steady[:third]), overhead(steady[-third:]), driver)


def main() -> None:
    """Print one line per loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--untuned", type=int, default=20, help="trials with Tune's defaults, which are slow")
    parser.add_argument("--seconds", type=float, default=0.1, help="seconds that a trial sleeps")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.1, 4.0], help="megabytes that a trial returns")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print a profile of the driver of the backend's loop")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/ray.md"))
    arguments = parser.parse_args()
    if min(arguments.trials, arguments.untuned) < 6 + arguments.workers:
        parser.error("--trials and --untuned: early and late need two trials each, beside one for each worker")
    lines = [
        "# Overhead of a trial on Ray, ms",
        "",
        describe_benchmark(__doc__),
        "",
        f"{arguments.workers} workers; trials of {arguments.seconds:g} s.",
        "",
        "| loop | result, MB | trials | overhead | early | late | driver |",
        "|---|---|---|---|---|---|---|",
    ]
    profile = cProfile.Profile()
    backend = Ray(arguments.workers)
    with backend.open():
        assert backend.workers == arguments.workers, "this machine has fewer cores"
        assert backend.folder is not None
        for megabytes in arguments.megabytes:
            for name, loop in LOOPS.items():
                trials = arguments.untuned if loop is run_default_tune else arguments.trials
                is_profiled = arguments.profile and loop is run_backend_tune
                if is_profiled:
                    profile.enable()
                evaluate = SleepingEvaluator(arguments.seconds, int(megabytes * 1e6))
                cost = measure(loop, trials, evaluate, arguments.workers, str(backend.folder))
                profile.disable()
                cells = (cost.overhead, cost.early, cost.late, cost.driver)
                lines.append(
                    f"| {name} | {megabytes:g} | {trials} | {' | '.join(f'{cell * 1e3:.1f}' for cell in cells)} |"
                )
                print(lines[-1], flush=True)
    lines += ["", f"Load average at the end: {os.getloadavg()[0]:.1f} on {usable_cores()} cores."]
    text = "\n".join([*lines, ""])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(text)
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
