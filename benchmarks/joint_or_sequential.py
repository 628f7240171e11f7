"""Joint against sequential search: `python -m benchmarks.joint_or_sequential [--spaces digits mnist1d]`.

Three search modes get the same wall-clock time on the same space with the same teacher: `joint`, the default;
`sequential`, which chooses an architecture, then its pruning ratio, then its bits; and `uniform int8`, which searches
architectures only and quantizes each to 8 bits. All modes of a seed run one after the other on one machine, in an order
that rotates with the seed. The front is selected on the selection split (select_val); its hypervolume and the scores
under three cost limits are measured on the test split.

Runs are stored, so that more seeds can be added later.
"""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from autocompress.analysis.pareto import compute_hypervolume, full_fidelity, pareto_front, primary_objectives
from autocompress.core.run_info import ObjectiveSpec
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.errors import SearchFailedError
from autocompress.store.run_store import RunStore
from benchmarks.common import append_row, build_parser, describe_benchmark, load_rows, rotate_names
from benchmarks.variants import mean_and_error

WAYS = {"joint": "amortized", "sequential": "sequential", "uniform int8": "uniform_int8"}
#: Limits of the first cost, as shares of the teacher's cost.
LIMITS = (1 / 30, 1 / 100, 1 / 1000)


@dataclass(frozen=True)
class Run:
    """Result of one search mode with one seed.

    Attributes:
        space: Search space.
        way: Search mode, one of ``WAYS``.
        seed: Seed of the search.
        hypervolume: Hypervolume of the front by its scores on the test split.
        scores: Test score of the best candidate on select_val under each limit; NaN where there is none.
        seconds: Duration of the search.
        trainings: Number of started trials.
    """

    space: str
    way: str
    seed: int
    hypervolume: float
    scores: list[float]
    seconds: float
    trainings: int


def run(space: str, way: str, seed: int, minutes: float, overrides: list[str], workers: int) -> Run:
    """Search for some minutes and evaluate the front on the test split.

    Args:
        space: Name of a shipped search space, or a file.
        way: Search mode, one of ``WAYS``.
        seed: Seed of the search.
        minutes: Wall-clock time of the search.
        overrides: Changes of the spec, ``key=value``.
        workers: Number of worker processes.
    """
    budget = ["search.trials=10000", f"search.minutes={minutes}"]
    common = [f"search.mode={WAYS[way]}", f"search.seed={seed}", f"search.workers={workers}"]
    with TemporaryDirectory() as folder:
        run_folder = Path(folder) / "run"
        with suppress(SearchFailedError):
            run_search(make_plan(load_spec(space, [*overrides, *budget, *common])), run_folder).close()
        with RunStore.read(run_folder) as store:
            table, trials, info = store.candidate_table(), store.trial_table(), store.run_info()
    objectives = info.objectives
    cost, score = primary_objectives(objectives)
    front = pareto_front(full_fidelity(table), objectives)
    on_test = front.assign(**{score.name: front[f"{score.name}_test"]})
    search = trials[trials["role"] == "search"]
    teacher_cost = float(info.teacher.costs[cost.name])
    return Run(
        space,
        way,
        seed,
        compute_hypervolume(on_test, objectives),
        [find_best_score(front, cost.name, teacher_cost * share, score) for share in LIMITS],
        float(search["elapsed"].max()),
        int((~search["further"]).sum()),
    )


def find_best_score(front: pd.DataFrame, cost: str, limit: float, score: ObjectiveSpec) -> float:
    """Return the test score of the candidate with the best score on select_val within a limit; NaN without one."""
    within = front[front[cost] <= limit]
    if within.empty:
        return math.nan
    best = within.sort_values(score.name, ascending=not score.is_maximized, kind="stable").iloc[0]
    return float(best[f"{score.name}_test"])


def table(runs: list[Run]) -> str:
    """Return means with standard errors as Markdown, and the differences of `joint` to the other modes by seed."""
    limits = " | ".join(f"at 1/{round(1 / share):,}" for share in LIMITS)
    lines = [
        "# Joint against sequential search",
        "",
        describe_benchmark(__doc__),
        "",
        f"| space | mode | seeds | hypervolume | {limits} | trials |",
        "|" + "---|" * (5 + len(LIMITS)),
    ]
    by_key = {(row.space, row.way, row.seed): row for row in runs}
    for space in dict.fromkeys(row.space for row in runs):
        for way in WAYS:
            rows = [row for row in runs if (row.space, row.way) == (space, way)]
            if not rows:
                continue
            scores = [_format_cell([row.scores[at] for row in rows]) for at in range(len(LIMITS))]
            trainings = round(sum(row.trainings for row in rows) / len(rows))
            volume = _format_cell([row.hypervolume for row in rows])
            lines.append(f"| {space} | {way} | {len(rows)} | {volume} | {' | '.join(scores)} | {trainings} |")
    lines += [
        "",
        "Mean ± standard error over seeds on the test split; differences of joint to the other mode, paired by seed:",
        "",
    ]
    for space in dict.fromkeys(row.space for row in runs):
        for way in list(WAYS)[1:]:
            pairs = [
                (by_key[space, "joint", seed], row)
                for (row_space, row_way, seed), row in by_key.items()
                if (row_space, row_way) == (space, way) and (space, "joint", seed) in by_key
            ]
            if pairs:
                volume = _format_cell([ours.hypervolume - theirs.hypervolume for ours, theirs in pairs])
                scores = [_format_cell([a.scores[at] - b.scores[at] for a, b in pairs]) for at in range(len(LIMITS))]
                lines.append(f"- {space}, against {way}: hypervolume {volume}; under the limits {', '.join(scores)}")
    return "\n".join([*lines, ""])


def _format_cell(values: list[float]) -> str:
    present = [value for value in values if not math.isnan(value)]
    if not present:
        return "–"
    mean, error = mean_and_error(present)
    missing = f" ({len(values) - len(present)} without)" if len(present) < len(values) else ""
    return f"{mean:.4f}{missing}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}{missing}"


def main() -> None:
    """Run the missing searches and print the table."""
    parser = build_parser(__doc__, "reports/benchmarks/joint_or_sequential.md", 5)
    parser.add_argument("--minutes", type=float, default=2.0)
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    for seed in range(arguments.seeds):
        for space in arguments.spaces:
            stored_keys = {(row["space"], row["way"], row["seed"]) for row in load_rows(file)}
            for way in rotate_names(list(WAYS), seed):
                if (space, way, seed) not in stored_keys:
                    append_row(file, asdict(run(space, way, seed, arguments.minutes, arguments.set, arguments.workers)))
    text = table([Run(**row) for row in load_rows(file)])
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
