"""A driver of trials that cost nothing, for the tests of its decisions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from autocompress.core.config import CompressionConfig
from autocompress.core.records import CompressionRecipe, Job, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.engine.archive import CostEstimator, Progress
from autocompress.engine.driver import Driver
from autocompress.engine.initial_design import Values
from autocompress.engine.sampler.acquisition import EarlierTrial
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import RunStore
from tests.fakes import OBJECTIVES, fake_result

SPEC = """\
task: digits
search: {trials: 12, seed: 3, promotion: always}
student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}
distill: {none: {}, soft_target: {temperature: {low: 1, high: 10}}}
quantize: {none: {}, post_training: {weight_bits: [4, 8]}}
"""

#: Overrides of a search with early stopping.
EARLY_STOPPING = ("search.promotion=pareto_rank", "search.trials=18")

#: Overrides of a search with refinements.
REFINEMENTS = (
    "prune.none={}",
    "prune.structured={pruning_ratio: [0.25, 0.5], recovery_epochs: 3}",
    "quantize.lsq={weight_bits: [3], activation_bits: [3], epochs: 2}",
    "search.promotion=always",
    "search.trials=6",
)


def build_driver(
    folder: Path,
    *overrides: str,
    start: Sequence[Values] = (),
    seen: list[Progress] | None = None,
    price: CostEstimator | None = None,
    earlier: Sequence[EarlierTrial] = (),
) -> Driver:
    """Return the driver of a new or resumed search in a folder."""
    source = parse_spec(SPEC, "x", overrides)
    store = RunStore.open(folder) if (folder / "study.db").exists() else RunStore.create(folder, RunInfo(name="x"))
    search = source.spec.search
    metrics = ["accuracy", "log10 cost"]
    sampler = OptunaSampler(store, "x", search.sampler, search.seed, ["maximize", "minimize"], metrics)
    report = (lambda progress: None) if seen is None else seen.append
    return Driver(store, open_space(source), search, sampler, OBJECTIVES, {}, start, report, price, earlier=earlier)


def close_store(driver: Driver) -> None:
    """Close the store as if the process had been killed."""
    driver._store.close()


def run_search(driver: Driver, at_most: int = 1000, run: Callable[[Job], TrialResult] = fake_result) -> list[Job]:
    """Run jobs one by one with one worker, and return them."""
    jobs: list[Job] = []
    while len(jobs) < at_most and (job := driver.ask()) is not None:
        jobs.append(job)
        driver.tell(job, run(job))
    return jobs


def fake_costly_result(job: Job) -> TrialResult:
    """Return a result whose compute cost grows with the width of the student."""
    result = fake_result(job)
    flops = 1e5 * float(job.training.student.values["width"]) ** 2  # type: ignore[arg-type]
    candidates = [
        replace(candidate, costs={**candidate.costs, "flops": flops, "layers": 1.0}) for candidate in result.candidates
    ]
    return replace(result, candidates=tuple(candidates))


def estimate_costs(training: CompressionConfig, recipes: Sequence[CompressionRecipe]) -> list[dict[str, float]]:
    """Return the costs of the uncompressed student, equal to those of its result."""
    candidate = fake_costly_result(Job(0, training, (CompressionRecipe(),))).candidates[0]
    return [dict(candidate.costs)]


def fake_poor_result(job: Job) -> TrialResult:
    """Return a result in which the widest student is worse than all others."""
    result = fake_result(job)
    if job.training.student.values["width"] != 64:
        return result
    worse = tuple(
        replace(candidate, scores={name: {**split, "accuracy": 0.12} for name, split in candidate.scores.items()})
        for candidate in result.candidates
    )
    return replace(result, candidates=worse)


def read_candidates(folder: Path) -> pd.DataFrame:
    """Return the table of candidates."""
    with RunStore.read(folder) as store:
        return store.candidate_table().drop(columns=["details"])


def count_states(folder: Path) -> dict[str, int]:
    """Return the number of trials by state."""
    with RunStore.read(folder) as store:
        counts: dict[str, int] = store.trial_table()["state"].value_counts().to_dict()
    return counts


def check_killed_search(folder: Path, overrides: Sequence[str], killed_after: int) -> None:
    """Check that a search that is killed while a job runs repeats that job, and ends with the same table."""
    run_search(build_driver(folder / "whole", *overrides))
    first = build_driver(folder / "cut", *overrides)
    run_search(first, at_most=killed_after)
    lost = first.ask()
    close_store(first)
    second = build_driver(folder / "cut", *overrides)
    again = second.ask()
    assert again == lost
    if again is not None:
        assert lost is not None
        assert again.paused == lost.paused
        second.tell(again, fake_result(again))
    run_search(second)
    assert read_candidates(folder / "cut").equals(read_candidates(folder / "whole"))
