"""What the driver itself costs as a search grows: `python -m benchmarks.growth`.

Trainings that take no time, twenty-five candidates each, rungs and further cuts as in a real search; milliseconds of
processor that the driver takes for an ask and a tell around 100, 1,000 and 10,000 candidates (medians of 40). Waiting
for the disk is not counted: others may work meanwhile. Nor is what the surrogate takes to price students that were
never built: some hundredths of a second for each of at most sixteen, once.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig
from autocompress.core.records import Candidate, Cut, Job, State, TrialResult
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.engine.driver import Driver
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import open_space
from autocompress.engine.spec import load_spec
from autocompress.store.run_store import RunStore
from autocompress.training.optimizers import fit_config
from benchmarks.keeping import about

OBJECTIVES = [
    ObjectiveSpec("accuracy", "maximize", "", "score", (0.1, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e7, 1e2)),
]
AROUND = (100, 1_000, 10_000)
WINDOW = 40


def made_up(job: Job) -> TrialResult:
    """Return candidates whose scores follow width and bits, with noise that the job seeds."""
    noise = np.random.default_rng(job.number)
    total = fit_config(job.training.fit).epochs
    epochs = job.until or total
    complete = epochs == total
    width = float(job.training.student.values["width"])
    found = []
    for number, cut in enumerate(job.cuts):
        bits = (
            [32, 32]
            if cut.quantize is None
            else [cut.quantize.values[f"{side}_bits"] for side in ("weight", "activation")]
        )
        ratio = 0.0 if cut.prune is None else float(cut.prune.values["pruning_ratio"])
        score = 1 - 0.8 / width - 0.3 / min(bits) - 0.1 * ratio - 0.2 * (1 - epochs / total) + noise.normal(0, 0.01)
        scores = {split: {"accuracy": float(score)} for split in ("search_val", "select_val")}
        costs = {"effective_flops": width**2 * (1 - ratio) ** 2 * 1e3 * bits[0] * bits[1] / 1024, "layers": 4.0}
        rung = "" if complete else f"r{job.rung}"
        config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
        checkpoint = "" if not complete else f"t{job.number}p0"
        found.append(
            Candidate(
                f"t{job.number}{rung}c{number}", job.number, config, epochs, scores, costs, {}, checkpoint, complete
            )
        )
    weights = {each.checkpoint: b"weights" for each in found if each.checkpoint}
    state = State.COMPLETE if complete else State.PAUSED
    return TrialResult(job.number, state, tuple(found), 1.0, checkpoints=weights, paused=b"" if complete else b"paused")


def price(training: CompressionConfig, cuts: Sequence[Cut]) -> list[Mapping[str, float]]:
    """Return what the uncut student costs."""
    return [made_up(Job(0, training, (Cut(),))).candidates[0].costs]


def measure(space: str, sampler: str) -> dict[int, tuple[float, float]]:
    """Return ``{candidates: (median ask, median tell)}``, in milliseconds."""
    source = load_spec(space, [f"search.trials={10**6}", "search.minutes=null", f"search.sampler={sampler}"])
    search = source.spec.search
    asks: list[tuple[int, float]] = []
    tells: list[tuple[int, float]] = []
    with TemporaryDirectory() as folder:
        study = RunStore.create(Path(folder), RunInfo(name="growth"))
        proposer = OptunaSampler(study, "growth", search.sampler, 0, ["maximize", "minimize"], ["accuracy", "cost"])
        driver = Driver(study, open_space(source), search, proposer, OBJECTIVES, {}, estimate_costs=price)
        count = 0
        while count < AROUND[-1]:
            started = time.process_time()
            job = driver.ask()
            asks.append((count, time.process_time() - started))
            assert job is not None
            result = made_up(job)
            started = time.process_time()
            driver.tell(job, result)
            tells.append((count, time.process_time() - started))
            count += len(result.candidates)
        study.close()
    found = {}
    for around in AROUND:
        near = [sorted(rows, key=lambda row: abs(row[0] - around))[:WINDOW] for rows in (asks, tells)]
        medians = [statistics.median(seconds for _, seconds in rows) * 1000 for rows in near]
        found[around] = (medians[0], medians[1])
    return found


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--samplers", nargs="+", default=["surrogate", "tpe", "random"])
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/growth.md"))
    asked = parser.parse_args()
    lines = ["# The driver as a search grows", "", "`python -m benchmarks.growth`", "", about(__doc__), ""]
    lines += ["| sampler | candidates | ask, ms | tell, ms |", "|---|---|---|---|"]
    for sampler in asked.samplers:
        for around, (ask, tell) in measure(asked.space, sampler).items():
            lines.append(f"| {sampler} | {around:,} | {ask:.1f} | {tell:.1f} |")
            print(lines[-1], flush=True)
    write_atomic(asked.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
