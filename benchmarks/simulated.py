"""A simulated search on hundreds of workers: `python -m benchmarks.simulated [--seeds 1]`.

Driver, sampler, store and promotion are real; the clock is virtual. A worker is busy for a random time. The driver is a
single server: the processor time of each ask and tell advances the virtual clock, so a driver that is too slow leaves
workers idle, as in a real search.
"""

import argparse
import heapq
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np

from autocompress.core.atomic import write_atomic
from autocompress.core.records import Job
from autocompress.core.run_info import RunInfo
from autocompress.engine.driver import Driver
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import open_space
from autocompress.engine.spec import load_spec
from autocompress.store.run_store import RunStore
from autocompress.training.optimizers import fit_config
from benchmarks.common import describe_benchmark
from benchmarks.growth import OBJECTIVES, mock_result


@dataclass(frozen=True)
class Simulation:
    """Result of a simulated search.

    Attributes:
        workers: Number of workers.
        trainings: Number of started trials.
        results: Number of finished jobs: rungs, complete trials, refinements.
        seconds: Virtual seconds until the last new trial started.
        utilisation: Share of those seconds in which workers were busy.
        driver: Processor milliseconds of the driver per result (ask and tell), over the whole search.
        at_the_end: Processor milliseconds of the driver per result over the last tenth of the results.
        rate: Results per virtual second.
    """

    workers: int
    trainings: int
    results: int
    seconds: float
    utilisation: float
    driver: float
    at_the_end: float
    rate: float


def simulate(workers: int, trainings: int, job_seconds: float, sampler: str, seed: int) -> Simulation:
    """Search ``digits`` with mock results.

    Args:
        workers: Number of parallel workers.
        trainings: Budget of trials.
        job_seconds: Median duration of a job; a quarter of the jobs takes over twice as long.
        sampler: Sampler, as in a spec.
        seed: Seed of the search and of the durations.
    """
    overrides = [f"search.trials={trainings}", "search.minutes=null", f"search.sampler={sampler}"]
    source = load_spec("digits", [*overrides, f"search.seed={seed}"])
    draw = np.random.default_rng(seed)
    clock = 0.0
    with (
        TemporaryDirectory() as folder,
        patch("autocompress.engine.driver.monotonic_seconds", lambda: clock),
        # The export for other tools is written once after the search and is not part of the measurement.
        patch.object(OptunaSampler, "export_tables"),
    ):
        store = RunStore.create(Path(folder), RunInfo(name="simulated"))
        directions, names = ["maximize", "minimize"], ["accuracy", "cost"]
        proposer = OptunaSampler(store, "simulated", sampler, seed, directions, names)  # type: ignore[arg-type]
        driver = Driver(store, open_space(source), source.spec.search, proposer, OBJECTIVES, {})
        running: list[tuple[float, int, Job, float]] = []
        idle, count = workers, 0
        driver_seconds: list[float] = []
        busy: list[tuple[float, float]] = []
        completed: list[float] = []
        last_start = 0.0
        has_jobs = True
        while True:
            cost = 0.0
            while idle and has_jobs:
                started = time.process_time()
                job = driver.ask()
                elapsed = time.process_time() - started
                cost, clock = cost + elapsed, clock + elapsed
                if job is None:
                    has_jobs = False
                    break
                seconds = job_seconds * float(draw.lognormal(0.0, 1.0)) * epoch_share(job)
                heapq.heappush(running, (clock + seconds, count, job, seconds))
                busy.append((clock, clock + seconds))
                idle, count = idle - 1, count + 1
                if job.base is None and not job.rung:
                    last_start = clock
            if driver_seconds:
                driver_seconds[-1] += cost
            if not running:
                break
            end, _, job, seconds = heapq.heappop(running)
            clock = max(clock, end)
            result = replace(mock_result(job), seconds=seconds)
            started = time.process_time()
            driver.tell(job, result)
            elapsed = time.process_time() - started
            clock += elapsed
            driver_seconds.append(elapsed)
            completed.append(clock)
            idle, has_jobs = idle + 1, True
        store.close()
    busy_seconds = sum(max(0.0, min(end, last_start) - start) for start, end in busy)
    tail = driver_seconds[-max(1, len(driver_seconds) // 10) :]
    return Simulation(
        workers,
        trainings,
        len(driver_seconds),
        last_start,
        busy_seconds / (workers * last_start),
        1e3 * sum(driver_seconds) / len(driver_seconds),
        1e3 * sum(tail) / len(tail),
        sum(end <= last_start for end in completed) / last_start,
    )


def epoch_share(job: Job) -> float:
    """Return the epochs of a job as a share of those of a whole trial; a refinement takes a third."""
    if job.base is not None:
        return 1 / 3
    total = fit_config(job.training.fit).epochs
    return (job.until or total) / total


#: Workers, trials, median seconds of a whole trial, sampler.
CASES = (
    (256, 1024, 600.0, "tpe"),
    (256, 1024, 600.0, "random"),
    (1024, 2048, 600.0, "random"),
    (1024, 2048, 20.0, "random"),
)


def main() -> None:
    """Simulate, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/simulated.md"))
    arguments = parser.parse_args()
    lines = [
        "# A search on hundreds of workers, simulated",
        "",
        "`python -m benchmarks.simulated`",
        "",
        describe_benchmark(__doc__),
        "",
    ]
    lines.append(
        "| workers | trials | median trial, s | sampler | results | results per second | busy | driver, ms per result"
        " | in the last tenth | core at 100 results per second |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for workers, trainings, seconds, sampler in CASES:
        runs = [simulate(workers, trainings, seconds, sampler, seed) for seed in range(arguments.seeds)]
        results, rate, busy, driver, last = (
            statistics.mean(getattr(run, name) for run in runs)
            for name in ("results", "rate", "utilisation", "driver", "at_the_end")
        )
        lines.append(
            f"| {workers:,} | {trainings:,} | {seconds:g} | {sampler} | {results:,.0f} | {rate:.1f} | {busy:.1%}"
            f" | {driver:.1f} | {last:.1f} | {driver / 10:.0%} |"
        )
        print(lines[-1], flush=True)
    write_atomic(arguments.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
