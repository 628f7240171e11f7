"""A driver on made-up trials, for the tests of what it does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.core.config import CompressionConfig
from autocompress.core.records import Cut, Job, TrialResult
from autocompress.engine.driver import Driver
from autocompress.engine.limits import Price
from autocompress.engine.progress import Progress
from autocompress.engine.sampler.optuna import Proposer
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.store.run_store import Study
from tests.fakes import OBJECTIVES, fake_result

SPEC = """\
task: digits
search: {trials: 12, seed: 3, promotion: always}
student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}
distill: {none: {}, soft_target: {temperature: {low: 1, high: 10}}}
quantize: {none: {}, post_training: {weight_bits: [4, 8]}}
"""


CLIMB = ("search.promotion=pareto_rank", "search.trials=18")


def driver(
    folder: Path,
    *overrides: str,
    start: Sequence[dict[str, Any]] = (),
    seen: list[Progress] | None = None,
    price: Price | None = None,
) -> Driver:
    source = parse_spec(SPEC, "x", overrides)
    study = Study.open(folder) if (folder / "study.db").exists() else Study.create(folder, {"name": "x"})
    search = source.spec.search
    proposer = Proposer(study, "x", search.sampler, search.seed, ["maximize", "minimize"], ["accuracy", "log10 cost"])
    report = (lambda progress: None) if seen is None else seen.append
    return Driver(study, open_space(source), search, proposer, OBJECTIVES, {}, start, report, price)


def cheap(training: CompressionConfig, cuts: Sequence[Cut]) -> list[dict[str, float]]:
    """Return what the uncut student costs, as a real result would say."""
    candidate = heavy(Job(0, training, (Cut(),))).candidates[0]
    return [dict(candidate.costs)]


def finish(found: Driver, at_most: int = 1000, run: Callable[[Job], TrialResult] = fake_result) -> list[Job]:
    jobs = []
    while len(jobs) < at_most and (job := found.ask()) is not None:
        jobs.append(job)
        found.tell(job, run(job))
    return jobs


def heavy(job: Job) -> TrialResult:
    """Return a result whose students take time by their width."""
    result = fake_result(job)
    flops = 1e5 * float(job.training.student.values["width"]) ** 2  # type: ignore[arg-type]
    candidates = [replace(each, costs={**each.costs, "flops": flops, "layers": 1.0}) for each in result.candidates]
    return replace(result, candidates=tuple(candidates))


def close(found: Driver) -> None:
    found._study.close()


def table(folder: Path) -> Any:
    with Study.read(folder) as study:
        return study.candidates().drop(columns=["details"])


def poor(job: Job) -> TrialResult:
    """Return a result in which the widest student is worse than all others."""
    result = fake_result(job)
    if job.training.student.values["width"] != 64:
        return result
    worse = tuple(
        replace(each, scores={name: {**split, "accuracy": 0.12} for name, split in each.scores.items()})
        for each in result.candidates
    )
    return replace(result, candidates=worse)


def states(folder: Path) -> dict[str, int]:
    with Study.read(folder) as study:
        counted: dict[str, int] = study.trials()["state"].value_counts().to_dict()
    return counted


def whole_and_killed(folder: Path, overrides: Sequence[str], killed_after: int) -> None:
    """Search in one go, and killed with a job under way and resumed: the job comes again, and the table is the same."""
    finish(driver(folder / "whole", *overrides))
    first = driver(folder / "cut", *overrides)
    finish(first, at_most=killed_after)
    lost = first.ask()
    close(first)
    second = driver(folder / "cut", *overrides)
    again = second.ask()
    assert again == lost
    if again is not None:
        assert lost is not None
        assert again.paused == lost.paused
        second.tell(again, fake_result(again))
    finish(second)
    assert table(folder / "cut").equals(table(folder / "whole"))


FURTHER = (
    "prune.none={}",
    "prune.structured={pruning_ratio: [0.25, 0.5], recovery_epochs: 3}",
    "quantize.lsq={weight_bits: [3], activation_bits: [3], epochs: 2}",
    "search.promotion=always",
    "search.trials=6",
)
