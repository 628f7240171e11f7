"""What a second worker brings, and what the first one costs: `python -m benchmarks.scaling [--seeds 3]`.

The same search (trainings drawn at random and none stopped, so that the order of results changes nothing) is run with
one worker and with two, and its trials once more in a bare loop: no driver, no store, no worker. Times are from the
first job to the last result: starting workers is not in them, what a new process does slowly for the first time is. The
contestants take turns, seed by seed.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.engine.run import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.lab import Setup, lab, settled
from autocompress.records import Job
from autocompress.storage import write_atomic
from autocompress.study import Study
from autocompress.trial import run_trial
from benchmarks.keeping import about, turned

FIXED = ("search.minutes=null", "search.sampler=random", "search.promotion=always", "search.refine=0")


def searched(space: str, trials: int, workers: int, seed: int, overrides: list[str]) -> float:
    """Return the seconds of a search from its first job to its last result."""
    return _search(space, trials, workers, seed, overrides)[0]


def looped(space: str, trials: int, seed: int, overrides: list[str]) -> tuple[float, float]:
    """Return the seconds of a search with one worker, and those of its trials in a bare loop."""
    seconds, jobs, setup = _search(space, trials, 1, seed, overrides)
    with settled():
        lab(setup)
        begun = time.perf_counter()
        for job in jobs:
            run_trial(job, setup)
        return seconds, time.perf_counter() - begun


def _search(space: str, trials: int, workers: int, seed: int, overrides: list[str]) -> tuple[float, list[Job], Setup]:
    budget = [f"search.trials={trials}", f"search.workers={workers}", f"search.seed={seed}"]
    with TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        run_search(make_plan(load_spec(space, [*FIXED, *budget, *overrides])), place).close()
        with Study.read(place) as study:
            table = study.trials()
            jobs = [each.job for each in study.stored_trials() if each.job.role.value == "search"]
            setup = Setup.from_json(study.meta("setup"))
    table = table[(table["role"] == "search") & table["elapsed"].notna()]
    return float(table["elapsed"].max() - (table["elapsed"] - table["seconds"]).min()), jobs, setup


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/scaling.md"))
    asked = parser.parse_args()
    lines = ["# What a second worker brings, and what the first one costs", "", "`python -m benchmarks.scaling`", ""]
    lines += [
        about(__doc__),
        "",
        "| space | trials | seeds | two workers against one | one worker against a bare loop |",
    ]
    lines.append("|---|---|---|---|---|")
    for space in asked.spaces:
        ratios, costs = [], []
        for seed in range(asked.seeds):
            times: dict[str, float] = {}
            for name in turned(["one", "two"], seed):
                if name == "two":
                    times["two"] = searched(space, asked.trials, 2, seed, asked.set)
                else:
                    times["one"], times["bare"] = looped(space, asked.trials, seed, asked.set)
            ratios.append(times["one"] / times["two"])
            costs.append(times["one"] / times["bare"] - 1)
            print(
                f"{space} seed {seed}: " + ", ".join(f"{name} {took:.1f} s" for name, took in times.items()), flush=True
            )
        lines.append(
            f"| {space} | {asked.trials} | {asked.seeds}"
            f" | {statistics.mean(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {statistics.mean(costs):+.1%} ({min(costs):+.1%} to {max(costs):+.1%}) |"
        )
        print(lines[-1], flush=True)
    write_atomic(asked.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
