"""Time to the hypervolume of a plain study: `python -m benchmarks.time_to_hypervolume [--spaces digits mnist1d]`.

A plain Optuna study (its multi-objective TPE, all hyperparameters sampled, one candidate per trial) gets a fixed number
of trials. Every other contender searches the same space with the same teacher and number of workers until its front
reaches the final hypervolume of the plain study, or until the time of that study is over. The table compares wall-clock
times: the time of the last gain of the plain study divided by the time of the contender. All contenders of a seed run
one after the other on one machine, in an order that rotates with the seed.

Runs are stored, so that more seeds can be added later. A contender that never reaches the hypervolume counts with its
whole time, which overstates its ratio; the table shows how often this happens. The contenders `qLogNEHVI` (Ament et al.
2023, arXiv:2310.20708) need `pip install optuna-integration botorch`, and those of `SMAC3` need `pip install smac`;
they run where `--contenders` names them.
"""

import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest import mock

from autocompress.errors import SearchFailedError
from benchmarks.common import append_row, build_parser, describe_benchmark, geometric_mean, load_rows, rotate_names

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from autocompress.engine.archive import Progress

PLAIN = "plain TPE"
OURS = "ours"
BOTORCH = "qLogNEHVI"
SMAC = "SMAC3"
#: Changes of a shipped space by contender.
CONTENDERS = {
    PLAIN: ("search.mode=sampled",),
    OURS: (),
    "our TPE, one cut a training": ("search.mode=sampled",),
    "ours, proposed by TPE": ("search.sampler=tpe",),
    "supernet": ("search.mode=supernet",),
    "random with all cuts": ("search.sampler=random", "search.promotion=always"),
    "NSGA-II": ("search.mode=sampled", "search.sampler=nsga2"),
    "Gaussian process of Optuna": ("search.mode=sampled", "search.sampler=gp"),
    "Gaussian process of Optuna with all cuts": ("search.sampler=gp",),
    BOTORCH: ("search.mode=sampled", "search.sampler=gp"),
    f"{BOTORCH} with all cuts": ("search.sampler=gp",),
    SMAC: ("search.mode=sampled", "search.sampler=gp"),
    f"{SMAC} with all cuts": ("search.sampler=gp",),
    "halving by accuracy": ("search.promotion=best_score",),
    "ours, no trial stopped": ("search.promotion=always",),
    "ours, no further cuts": ("search.refine=0",),
    "ours, weights from the teacher": ("fit.adamw.init=teacher",),
}
#: Trials of the plain study; on one idle core about two minutes on digits, four on mnist1d.
TRIALS = 40
MANY = 10_000


@dataclass(frozen=True)
class Run:
    """Result of one contender on one space with one seed.

    Attributes:
        space: Search space.
        contender: Name in ``CONTENDERS``.
        seed: Seed of the search.
        seconds: Time at which the target was reached; for the plain study, time of its last gain.
        reached: Whether the target was reached.
        hypervolume: Hypervolume at the end.
        whole: Seconds of the whole run.
        trainings: Number of started trials.
    """

    space: str
    contender: str
    seed: int
    seconds: float
    reached: bool
    hypervolume: float
    whole: float
    trainings: int


class TargetReached(KeyboardInterrupt):
    """Raised to end a search that has reached the target hypervolume."""


def make_proposer(contender: str, seed: int) -> "BaseSampler | None":
    """Return the sampler of a contender that differs from the one of its search, or ``None``.

    Raises:
        ImportError: A package that the contender needs is not installed.
    """
    # Imported here because workers import this module at their start and do not need these modules.
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    if contender == PLAIN:
        # Optuna's TPE with its defaults; the TPE of a search uses other settings (`engine/sampler/optuna.py`).
        return TPESampler(seed=seed % 2**32)
    if contender.startswith(SMAC):
        from benchmarks.smac_sampler import SMACSampler

        return SMACSampler(seed % 2**31)
    if not contender.startswith(BOTORCH):
        return None
    from optuna_integration import BoTorchSampler
    from optuna_integration.botorch.botorch import qnehvi_candidates_func

    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        # By its name qNEHVI; it uses qLogNEHVI where BoTorch has it.
        sampler: BaseSampler = BoTorchSampler(candidates_func=qnehvi_candidates_func, seed=seed % 2**32)
    return sampler


@contextmanager
def _replace_sampler(contender: str) -> Iterator[None]:
    if make_proposer(contender, 0) is None:
        yield
        return
    with mock.patch(
        "autocompress.engine.sampler.optuna.make_sampler", lambda name, seed: make_proposer(contender, seed)
    ):
        yield


def run(space: str, contender: str, seed: int, target: Run | None, overrides: list[str], workers: int) -> Run:
    """Search until the target is reached; without a target, run all trials of the plain study."""
    # Imported here because workers import this module at their start and do not need these modules.
    from autocompress.engine.runner import Events, make_plan, run_search
    from autocompress.engine.spec import load_spec
    from autocompress.store.run_store import RunStore

    budget = [f"search.trials={TRIALS}", "search.minutes=null"]
    if target is not None:
        budget = [f"search.trials={MANY}", f"search.minutes={target.whole / 60}"]
    common = [f"search.seed={seed}", f"search.workers={workers}"]
    source = load_spec(space, [*overrides, *CONTENDERS[contender], *budget, *common])

    def watch(progress: "Progress") -> None:
        if target is not None and progress.hypervolume >= target.hypervolume:
            raise TargetReached

    with TemporaryDirectory() as folder, _replace_sampler(contender):
        run_folder = Path(folder) / "run"
        with suppress(TargetReached, SearchFailedError):
            run_search(make_plan(source, warm=True), run_folder, events=Events(progress=watch)).close()
        with RunStore.read(run_folder) as store:
            trials = store.trial_table()
    results = trials[(trials["role"] == "search") & trials["hypervolume"].notna()].sort_values("elapsed")
    best = float(results["hypervolume"].max())
    goal = best if target is None else target.hypervolume
    reached_rows = results[results["hypervolume"] >= goal]
    total = float(results["elapsed"].max())
    return Run(
        space,
        contender,
        seed,
        float(reached_rows["elapsed"].min()) if len(reached_rows) else total,
        bool(len(reached_rows)),
        best,
        total,
        int((~trials["further"] & (trials["role"] == "search")).sum()),
    )


def table(runs: list[Run]) -> str:
    """Return the ratios as Markdown: geometric mean and range over the seeds."""
    by_key = {(row.space, row.contender, row.seed): row for row in runs}
    spaces = list(dict.fromkeys(row.space for row in runs))
    names = [name for name in CONTENDERS if name != PLAIN and any(row.contender == name for row in runs)]
    lines = [
        "# Time to the hypervolume of a plain study",
        "",
        describe_benchmark(__doc__),
        "",
        f"| contender | {' | '.join(spaces)} | all |",
        "|" + "---|" * (len(spaces) + 2),
    ]
    for name in names:
        cells, everything = [], []
        for space in spaces:
            pairs = [
                (by_key[space, PLAIN, seed], row)
                for (row_space, row_contender, seed), row in by_key.items()
                if (row_space, row_contender) == (space, name) and (space, PLAIN, seed) in by_key
            ]
            ratios = [plain.seconds / row.seconds for plain, row in pairs]
            everything += ratios
            missed = sum(not row.reached for _, row in pairs)
            cells.append(_format_cell(ratios, missed))
        lines.append(f"| {name} | {' | '.join(cells)} | {_format_cell(everything, 0)} |")
    lines += [
        "",
        "Geometric mean (smallest to largest, number of seeds) of plain seconds divided by the contender's.",
        "",
    ]
    for space in spaces:
        plain = [row for row in runs if (row.space, row.contender) == (space, PLAIN)]
        if plain:
            seconds = statistics.median(row.seconds for row in plain)
            total = statistics.median(row.whole for row in plain)
            lines.append(
                f"- {space}: the plain study had its last gain after {seconds:.0f} s of {total:.0f} s (median)."
            )
    return "\n".join([*lines, ""])


def _format_cell(ratios: list[float], missed: int) -> str:
    if not ratios:
        return "–"
    never = f", {missed} never" if missed else ""
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.1f}..{max(ratios):.1f}, {len(ratios)}{never})"


def main() -> None:
    """Run the missing searches and print the table."""
    parser = build_parser(__doc__, "reports/benchmarks/time_to_hypervolume.md", 10)
    default = [name for name in CONTENDERS if not name.startswith((BOTORCH, SMAC))]
    parser.add_argument("--contenders", nargs="+", default=default, choices=list(CONTENDERS))
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    for seed in range(arguments.seeds):
        for space in arguments.spaces:
            stored = {(row["space"], row["contender"], row["seed"]): Run(**row) for row in load_rows(file)}
            if (space, PLAIN, seed) not in stored:
                stored[space, PLAIN, seed] = run(space, PLAIN, seed, None, arguments.set, arguments.workers)
                append_row(file, asdict(stored[space, PLAIN, seed]))
            for name in rotate_names([name for name in arguments.contenders if name != PLAIN], seed):
                if (space, name, seed) not in stored:
                    target = stored[space, PLAIN, seed]
                    append_row(file, asdict(run(space, name, seed, target, arguments.set, arguments.workers)))
    text = table([Run(**row) for row in load_rows(file)])
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
