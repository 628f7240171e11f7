"""A search on hundreds of workers that exist on paper only: `python -m benchmarks.simulated [--seeds 1]`.

Driver, sampler, store and promotion are the real ones; the clock is not. A worker is busy for a time that is drawn; the
driver is one server, and what an ask or a tell takes of its processor is the time it takes on the clock. So a driver
that is too slow leaves workers without work here as it would there.
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
from benchmarks.growth import OBJECTIVES, made_up
from benchmarks.keeping import about


@dataclass(frozen=True)
class Simulation:
    """What one simulated search came to.

    Attributes:
        workers: How many there were.
        trainings: Begun.
        results: Jobs that came back: rungs, ends, further cuts.
        seconds: On the virtual clock, until the last new training was begun.
        utilisation: Share of those seconds that workers were busy.
        driver: Milliseconds of processor for one result, asking and telling, over the whole search.
        at_the_end: The same over the last tenth of the results.
        rate: Results in each of those seconds.
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
    """Search ``digits`` with made-up results.

    Args:
        workers: How many work side by side.
        trainings: Budget.
        job_seconds: Median of what a job takes; a quarter of the jobs takes over twice as long.
        sampler: As in a spec.
        seed: Of the search and of what is drawn.
    """
    overrides = [f"search.trials={trainings}", "search.minutes=null", f"search.sampler={sampler}"]
    source = load_spec("digits", [*overrides, f"search.seed={seed}"])
    draw = np.random.default_rng(seed)
    clock = 0.0
    with (
        TemporaryDirectory() as folder,
        patch("autocompress.engine.driver.now", lambda: clock),
        # What is written once, after the search, for others to read.
        patch.object(OptunaSampler, "publish"),
    ):
        study = RunStore.create(Path(folder), RunInfo(name="simulated"))
        directions, names = ["maximize", "minimize"], ["accuracy", "cost"]
        proposer = OptunaSampler(study, "simulated", sampler, seed, directions, names)  # type: ignore[arg-type]
        driver = Driver(study, open_space(source), source.spec.search, proposer, OBJECTIVES, {})
        under_way: list[tuple[float, int, Job, float]] = []
        idle, count, spent = workers, 0, []
        busy: list[tuple[float, float]] = []
        ended: list[float] = []
        last_begun = 0.0
        more = True
        while True:
            cost = 0.0
            while idle and more:
                begun = time.process_time()
                job = driver.ask()
                took = time.process_time() - begun
                cost, clock = cost + took, clock + took
                if job is None:
                    more = False
                    break
                seconds = job_seconds * float(draw.lognormal(0.0, 1.0)) * share(job)
                heapq.heappush(under_way, (clock + seconds, count, job, seconds))
                busy.append((clock, clock + seconds))
                idle, count = idle - 1, count + 1
                if job.base is None and not job.rung:
                    last_begun = clock
            if spent:
                spent[-1] += cost
            if not under_way:
                break
            end, _, job, seconds = heapq.heappop(under_way)
            clock = max(clock, end)
            result = replace(made_up(job), seconds=seconds)
            begun = time.process_time()
            driver.tell(job, result)
            took = time.process_time() - begun
            clock += took
            spent.append(took)
            ended.append(clock)
            idle, more = idle + 1, True
        study.close()
    worked = sum(max(0.0, min(end, last_begun) - start) for start, end in busy)
    tail = spent[-max(1, len(spent) // 10) :]
    return Simulation(
        workers,
        trainings,
        len(spent),
        last_begun,
        worked / (workers * last_begun),
        1e3 * sum(spent) / len(spent),
        1e3 * sum(tail) / len(tail),
        sum(end <= last_begun for end in ended) / last_begun,
    )


def share(job: Job) -> float:
    """Return a job's epochs as a share of those of a whole training; a further cut takes a third."""
    if job.base is not None:
        return 1 / 3
    total = fit_config(job.training.fit).epochs
    return (job.until or total) / total


#: Workers, trainings, median seconds of a whole training, sampler.
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
    asked = parser.parse_args()
    lines = [
        "# A search on hundreds of workers, simulated",
        "",
        "`python -m benchmarks.simulated`",
        "",
        about(__doc__),
        "",
    ]
    lines.append(
        "| workers | trainings | median training, s | sampler | results | results a second | busy | driver, ms a result"
        " | in the last tenth | core at 100 results a second |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for workers, trainings, seconds, sampler in CASES:
        found = [simulate(workers, trainings, seconds, sampler, seed) for seed in range(asked.seeds)]
        results, rate, busy, driver, last = (
            statistics.mean(getattr(each, name) for each in found)
            for name in ("results", "rate", "utilisation", "driver", "at_the_end")
        )
        lines.append(
            f"| {workers:,} | {trainings:,} | {seconds:g} | {sampler} | {results:,.0f} | {rate:.1f} | {busy:.1%}"
            f" | {driver:.1f} | {last:.1f} | {driver / 10:.0%} |"
        )
        print(lines[-1], flush=True)
    write_atomic(asked.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
