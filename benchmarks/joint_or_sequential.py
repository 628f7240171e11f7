"""All at once, or one after the other: `python -m benchmarks.joint_or_sequential [--spaces digits mnist1d]`.

Three ways to spend the same wall-clock on the same space with the same teacher: `joint`, the search as it ships;
`sequential`, which chooses an architecture, then how much to prune it, then its bits; and `uniform int8`, which
searches architectures alone and rounds each of them to 8 bits. All ways of a seed run one after the other on one
machine, in an order that turns with the seed. Each front is chosen on select_val; its hypervolume and the scores under
three limits on the cost are then read on the test split.

Each run is kept, so that more seeds can be added later.
"""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from autocompress.analysis.pareto import axes, full_fidelity, hypervolume, pareto_front
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.errors import SearchFailedError
from autocompress.store.run_store import RunStore
from benchmarks.arena import mean_and_error
from benchmarks.keeping import about, keep, kept, questions, turned

WAYS = {"joint": "amortized", "sequential": "sequential", "uniform int8": "uniform_int8"}
#: Limits on the first cost, as shares of the teacher's.
LIMITS = (1 / 30, 1 / 100, 1 / 1000)


@dataclass(frozen=True)
class Run:
    """One way with one seed.

    Attributes:
        hypervolume: Of the front, by its scores on the test split.
        scores: Test score of what is best on select_val under each limit; NaN where nothing keeps it.
        seconds: Of the search.
        trainings: Trainings begun.
    """

    space: str
    way: str
    seed: int
    hypervolume: float
    scores: list[float]
    seconds: float
    trainings: int


def run(space: str, way: str, seed: int, minutes: float, overrides: list[str], workers: int) -> Run:
    """Search for some minutes, and read what came of it on the test split.

    Args:
        space: A search space that ships, or a file.
        way: One of ``WAYS``.
        seed: Of the search.
        minutes: Of wall-clock.
        overrides: Changes of the spec, ``key=value``.
        workers: Processes.
    """
    budget = ["search.trials=10000", f"search.minutes={minutes}"]
    common = [f"search.mode={WAYS[way]}", f"search.seed={seed}", f"search.workers={workers}"]
    with TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        with suppress(SearchFailedError):
            run_search(make_plan(load_spec(space, [*overrides, *budget, *common])), place).close()
        with RunStore.read(place) as study:
            table, trials, info = study.candidates(), study.trials(), study.run_info()
    objectives = info.objectives
    cost, score = axes(objectives)
    front = pareto_front(full_fidelity(table), objectives)
    on_test = front.assign(**{score.name: front[f"{score.name}_test"]})
    search = trials[trials["role"] == "search"]
    whole = float(info.teacher.costs[cost.name])
    return Run(
        space,
        way,
        seed,
        hypervolume(on_test, objectives),
        [best_under(front, cost.name, whole * share, score) for share in LIMITS],
        float(search["elapsed"].max()),
        int((~search["further"]).sum()),
    )


def best_under(front: pd.DataFrame, cost: str, limit: float, score: dict[str, str]) -> float:
    """Return the test score of the candidate that is best on select_val within a limit; NaN where there is none."""
    within = front[front[cost] <= limit]
    if within.empty:
        return math.nan
    values = within[score.name]
    best = values.idxmax() if score.is_maximized else values.idxmin()
    return float(within.loc[best, f"{score.name}_test"])


def table(runs: list[Run]) -> str:
    """Return means with standard errors as Markdown, and joint minus each other way by seed."""
    limits = " | ".join(f"at 1/{round(1 / share):,}" for share in LIMITS)
    lines = [
        "# All at once, or one after the other",
        "",
        about(__doc__),
        "",
        f"| space | way | seeds | hypervolume | {limits} | trainings |",
        "|" + "---|" * (6 + len(LIMITS)),
    ]
    by_place = {(each.space, each.way, each.seed): each for each in runs}
    for space in dict.fromkeys(each.space for each in runs):
        for way in WAYS:
            mine = [each for each in runs if (each.space, each.way) == (space, way)]
            if not mine:
                continue
            scores = [_cell([each.scores[at] for each in mine]) for at in range(len(LIMITS))]
            trainings = round(sum(each.trainings for each in mine) / len(mine))
            volume = _cell([each.hypervolume for each in mine])
            lines.append(f"| {space} | {way} | {len(mine)} | {volume} | {' | '.join(scores)} | {trainings} |")
    lines += [
        "",
        "Mean ± standard error over the seeds, on the test split; joint minus the other way, seed by seed:",
        "",
    ]
    for space in dict.fromkeys(each.space for each in runs):
        for way in list(WAYS)[1:]:
            pairs = [
                (by_place[space, "joint", seed], each)
                for (where, who, seed), each in by_place.items()
                if (where, who) == (space, way) and (space, "joint", seed) in by_place
            ]
            if pairs:
                volume = _cell([ours.hypervolume - theirs.hypervolume for ours, theirs in pairs])
                scores = [_cell([a.scores[at] - b.scores[at] for a, b in pairs]) for at in range(len(LIMITS))]
                lines.append(f"- {space}, against {way}: hypervolume {volume}; under the limits {', '.join(scores)}")
    return "\n".join([*lines, ""])


def _cell(values: list[float]) -> str:
    there = [value for value in values if not math.isnan(value)]
    if not there:
        return "–"
    mean, error = mean_and_error(there)
    missing = f" ({len(values) - len(there)} without)" if len(there) < len(values) else ""
    return f"{mean:.4f}{missing}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}{missing}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = questions(__doc__, "reports/benchmarks/joint_or_sequential.md", 5)
    parser.add_argument("--minutes", type=float, default=2.0)
    asked = parser.parse_args()
    file = asked.out.with_suffix(".jsonl")
    for seed in range(asked.seeds):
        for space in asked.spaces:
            done = {(each["space"], each["way"], each["seed"]) for each in kept(file)}
            for way in turned(list(WAYS), seed):
                if (space, way, seed) not in done:
                    keep(file, asdict(run(space, way, seed, asked.minutes, asked.set, asked.workers)))
    text = table([Run(**each) for each in kept(file)])
    asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
