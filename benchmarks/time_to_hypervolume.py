"""How soon we are as far as a plain study: `python -m benchmarks.time_to_hypervolume [--spaces digits mnist1d]`.

A plain Optuna study (its own TPE over several objectives, everything sampled, one candidate a training) gets a fixed
number of trainings. Every other contender searches the same space with the same teacher, on the same number of
workers, until its front dominates as much of the declared box as that of the plain study did in the end, or until that
study's time is over. What is compared is wall-clock: that at which the plain study had its last gain, over the
contender's own. All contenders of a seed run one after the other on one machine, in an order that turns with the seed.

Each run is kept, so that more seeds can be added later. A contender that never gets there counts with the time it had,
which flatters it; the table says how often.
"""

import statistics
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest import mock

from autocompress.errors import SearchFailedError
from benchmarks.keeping import about, geometric_mean, keep, kept, questions, turned

if TYPE_CHECKING:
    from autocompress.engine.progress import Progress

PLAIN = "plain TPE"
OURS = "ours"
#: Name to what it changes of a shipped space.
CONTENDERS = {
    PLAIN: ("search.mode=sampled",),
    OURS: (),
    "our TPE, one cut a training": ("search.mode=sampled",),
    "ours, proposed by TPE": ("search.sampler=tpe",),
    "supernet": ("search.mode=supernet",),
    "random with all cuts": ("search.sampler=random", "search.promotion=always"),
    "NSGA-II": ("search.mode=sampled", "search.sampler=nsga2"),
    "halving by accuracy": ("search.promotion=best_score",),
    "ours, nobody stopped": ("search.promotion=always",),
    "ours, no further cuts": ("search.refine=0",),
    "ours, weights from the teacher": ("fit.adamw.init=teacher",),
}
#: Trainings of the plain study; on one quiet core about two minutes on digits, four on mnist1d.
TRIALS = 40
MANY = 10_000


@dataclass(frozen=True)
class Run:
    """One contender on one space with one seed.

    Attributes:
        seconds: When the target was reached; for the plain study, when it had its last gain.
        reached: Whether it was.
        hypervolume: At the end.
        whole: Seconds of the whole run.
        trainings: Trainings begun.
    """

    space: str
    contender: str
    seed: int
    seconds: float
    reached: bool
    hypervolume: float
    whole: float
    trainings: int


class Reached(KeyboardInterrupt):
    """The target is reached: nothing more is to be learned from this run."""


def run(space: str, contender: str, seed: int, target: Run | None, overrides: list[str], workers: int) -> Run:
    """Search until the target is reached; without one, all trainings of the plain study."""
    # Workers import this module as they start, and need none of these.
    from optuna.samplers import TPESampler

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
            raise Reached

    # Optuna's TPE as it comes; that of a search weighs more points (`engine/sampler/optuna.py`).
    as_it_comes = mock.patch(
        "autocompress.engine.sampler.optuna.make_sampler", lambda name, seed: TPESampler(seed=seed % 2**32)
    )
    with TemporaryDirectory() as folder, as_it_comes if contender == PLAIN else nullcontext():
        place = Path(folder) / "run"
        with suppress(Reached, SearchFailedError):
            run_search(make_plan(source, warm=True), place, events=Events(progress=watch)).close()
        with RunStore.read(place) as study:
            trials = study.trials()
    told = trials[(trials["role"] == "search") & trials["hypervolume"].notna()].sort_values("elapsed")
    best = float(told["hypervolume"].max())
    goal = best if target is None else target.hypervolume
    there = told[told["hypervolume"] >= goal]
    whole = float(told["elapsed"].max())
    return Run(
        space,
        contender,
        seed,
        float(there["elapsed"].min()) if len(there) else whole,
        bool(len(there)),
        best,
        whole,
        int((~trials["further"] & (trials["role"] == "search")).sum()),
    )


def table(runs: list[Run]) -> str:
    """Return the ratios as Markdown: geometric mean over the seeds, and the range."""
    by_place = {(each.space, each.contender, each.seed): each for each in runs}
    spaces = list(dict.fromkeys(each.space for each in runs))
    names = [name for name in CONTENDERS if name != PLAIN and any(each.contender == name for each in runs)]
    lines = [
        "# Time to the hypervolume of a plain study",
        "",
        about(__doc__),
        "",
        f"| contender | {' | '.join(spaces)} | all |",
        "|" + "---|" * (len(spaces) + 2),
    ]
    for name in names:
        cells, everything = [], []
        for space in spaces:
            pairs = [
                (by_place[space, PLAIN, seed], each)
                for (where, who, seed), each in by_place.items()
                if (where, who) == (space, name) and (space, PLAIN, seed) in by_place
            ]
            ratios = [plain.seconds / each.seconds for plain, each in pairs]
            everything += ratios
            missed = sum(not each.reached for _, each in pairs)
            cells.append(_cell(ratios, missed))
        lines.append(f"| {name} | {' | '.join(cells)} | {_cell(everything, 0)} |")
    lines += ["", "Geometric mean (smallest to largest, number of seeds) of plain seconds over own seconds.", ""]
    for space in spaces:
        plain = [each for each in runs if (each.space, each.contender) == (space, PLAIN)]
        if plain:
            seconds = statistics.median(each.seconds for each in plain)
            whole = statistics.median(each.whole for each in plain)
            lines.append(
                f"- {space}: the plain study had its last gain after {seconds:.0f} s of {whole:.0f} s (median)."
            )
    return "\n".join([*lines, ""])


def _cell(ratios: list[float], missed: int) -> str:
    if not ratios:
        return "–"
    never = f", {missed} never" if missed else ""
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.1f}..{max(ratios):.1f}, {len(ratios)}{never})"


def main() -> None:
    """Run what is missing and print the table."""
    parser = questions(__doc__, "reports/benchmarks/time_to_hypervolume.md", 10)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    asked = parser.parse_args()
    file = asked.out.with_suffix(".jsonl")
    for seed in range(asked.seeds):
        for space in asked.spaces:
            done = {(each["space"], each["contender"], each["seed"]): Run(**each) for each in kept(file)}
            if (space, PLAIN, seed) not in done:
                done[space, PLAIN, seed] = run(space, PLAIN, seed, None, asked.set, asked.workers)
                keep(file, asdict(done[space, PLAIN, seed]))
            for name in turned([name for name in asked.contenders if name != PLAIN], seed):
                if (space, name, seed) not in done:
                    target = done[space, PLAIN, seed]
                    keep(file, asdict(run(space, name, seed, target, asked.set, asked.workers)))
    text = table([Run(**each) for each in kept(file)])
    asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
