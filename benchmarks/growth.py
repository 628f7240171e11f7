"""Processor time of the driver as a search grows: `python -m benchmarks.growth`.

Mock trials take no time and return 25 candidates each, with rungs and refinement as in a real search. The table shows
the driver's processor time, in milliseconds, for an ask and a tell around 100, 1,000 and 10,000 candidates (medians of
40). Waiting for the disk is not counted, because other processes can run meanwhile. The cost estimate of new students
by the surrogate is not counted either: some hundredths of a second for at most 16 students, once.
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
from autocompress.core.knobs import Leaf
from autocompress.core.records import Candidate, CompressionRecipe, Job, State, TrialResult
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.engine.driver import Driver
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import open_space
from autocompress.engine.spec import load_spec
from autocompress.store.run_store import RunStore
from autocompress.training.optimizers import fit_config
from benchmarks.common import describe_benchmark

OBJECTIVES = [
    ObjectiveSpec("accuracy", "maximize", "", "score", (0.1, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e7, 1e2)),
]
SIZES = (100, 1_000, 10_000)
WINDOW = 40


def mock_result(job: Job) -> TrialResult:
    """Return candidates whose scores depend on width and bits, with noise seeded by the job."""
    noise = np.random.default_rng(job.number)
    total = fit_config(job.training.fit).epochs
    epochs = job.until or total
    complete = epochs == total
    width = _as_number(job.training.student.values["width"])
    candidates = []
    for number, cut in enumerate(job.recipes):
        bits = (
            [32, 32]
            if cut.quantize is None
            else [_as_number(cut.quantize.values[f"{side}_bits"]) for side in ("weight", "activation")]
        )
        ratio = 0.0 if cut.prune is None else _as_number(cut.prune.values["pruning_ratio"])
        score = 1 - 0.8 / width - 0.3 / min(bits) - 0.1 * ratio - 0.2 * (1 - epochs / total) + noise.normal(0, 0.01)
        scores = {split: {"accuracy": float(score)} for split in ("search_val", "select_val")}
        costs = {"effective_flops": width**2 * (1 - ratio) ** 2 * 1e3 * bits[0] * bits[1] / 1024, "layers": 4.0}
        rung = "" if complete else f"r{job.rung}"
        config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
        checkpoint = "" if not complete else f"t{job.number}p0"
        candidates.append(
            Candidate(
                f"t{job.number}{rung}c{number}", job.number, config, epochs, scores, costs, {}, checkpoint, complete
            )
        )
    weights = {candidate.checkpoint: b"weights" for candidate in candidates if candidate.checkpoint}
    state = State.COMPLETE if complete else State.PAUSED
    return TrialResult(
        job.number, state, tuple(candidates), 1.0, checkpoints=weights, paused=b"" if complete else b"paused"
    )


def _as_number(value: Leaf) -> float:
    assert isinstance(value, int | float)
    return value


def estimate_mock_costs(training: CompressionConfig, cuts: Sequence[CompressionRecipe]) -> list[Mapping[str, float]]:
    """Return the costs of the uncompressed student."""
    return [mock_result(Job(0, training, (CompressionRecipe(),))).candidates[0].costs]


def measure(space: str, sampler: str) -> dict[int, tuple[float, float]]:
    """Return ``{candidates: (median ask, median tell)}``, in milliseconds."""
    source = load_spec(space, [f"search.trials={10**6}", "search.minutes=null", f"search.sampler={sampler}"])
    search = source.spec.search
    asks: list[tuple[int, float]] = []
    tells: list[tuple[int, float]] = []
    with TemporaryDirectory() as folder:
        store = RunStore.create(Path(folder), RunInfo(name="growth"))
        proposer = OptunaSampler(store, "growth", search.sampler, 0, ["maximize", "minimize"], ["accuracy", "cost"])
        driver = Driver(store, open_space(source), search, proposer, OBJECTIVES, {}, estimate_costs=estimate_mock_costs)
        count = 0
        while count < SIZES[-1]:
            started = time.process_time()
            job = driver.ask()
            asks.append((count, time.process_time() - started))
            assert job is not None
            result = mock_result(job)
            started = time.process_time()
            driver.tell(job, result)
            tells.append((count, time.process_time() - started))
            count += len(result.candidates)
        store.close()
    candidates = {}
    for size in SIZES:
        windows = [sorted(rows, key=lambda row: abs(row[0] - size))[:WINDOW] for rows in (asks, tells)]
        medians = [statistics.median(seconds for _, seconds in rows) * 1000 for rows in windows]
        candidates[size] = (medians[0], medians[1])
    return candidates


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--samplers", nargs="+", default=["surrogate", "tpe", "random"])
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/growth.md"))
    arguments = parser.parse_args()
    lines = [
        "# Processor time of the driver as a search grows",
        "",
        "`python -m benchmarks.growth`",
        "",
        describe_benchmark(__doc__),
        "",
    ]
    lines += ["| sampler | candidates | ask, ms | tell, ms |", "|---|---|---|---|"]
    for sampler in arguments.samplers:
        for size, (ask, tell) in measure(arguments.space, sampler).items():
            lines.append(f"| {sampler} | {size:,} | {ask:.1f} | {tell:.1f} |")
            print(lines[-1], flush=True)
    write_atomic(arguments.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
