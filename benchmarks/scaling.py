"""What a second worker brings, and what the first one costs: `python -m benchmarks.scaling [--seeds 3]`.

The same search (trainings drawn at random and none stopped, so that the order of results changes nothing) is run with
one worker and with two, and its trials once more in a bare loop: no driver, no store, no worker. Times are from the
first job to the last result: starting workers is not in them, what a new process does slowly for the first time is. The
contestants take turns, seed by seed. What the machine allows: two bare loops that run side by side, with nothing
between them, do so many times the work of one.
"""

import argparse
import pickle
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.core.atomic import write_atomic
from autocompress.core.records import Job
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial
from benchmarks.keeping import about, turned

FIXED = ("search.minutes=null", "search.sampler=random", "search.promotion=always", "search.refine=0")


def searched(space: str, trials: int, workers: int, seed: int, overrides: list[str]) -> float:
    """Return the seconds of a search from its first job to its last result."""
    return _search(space, trials, workers, seed, overrides)[0]


def looped(space: str, trials: int, seed: int, overrides: list[str]) -> tuple[float, float, float]:
    """Return the seconds of a search with one worker, of its trials in a bare loop, and of two such loops at once."""
    seconds, jobs, setup = _search(space, trials, 1, seed, overrides)
    return seconds, _loops(1, jobs, setup), _loops(2, jobs, setup)


def _loops(count: int, jobs: list[Job], setup: Setup) -> float:
    """Return the seconds that the slowest of several bare loops takes, each over all jobs in a process of its own."""
    with TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.write_bytes(pickle.dumps((jobs, setup)))
        call = [sys.executable, "-m", "benchmarks.scaling", "--loop", str(work)]
        loops = [subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        for loop in loops:
            assert loop.stdout is not None
            if loop.stdout.readline() != "ready\n":
                raise RuntimeError("a bare loop did not start")
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write("go\n")
            loop.stdin.flush()
        return max(float(loop.communicate()[0]) for loop in loops)


def loop(work: Path) -> None:
    """Be one of the bare loops: say when it is ready, wait for a word, and say how long it took."""
    jobs, setup = pickle.loads(work.read_bytes())
    with reproducible_torch():
        load_pipeline(setup)
        print("ready", flush=True)
        sys.stdin.readline()
        begun = time.perf_counter()
        for job in jobs:
            run_trial(job, setup)
        print(time.perf_counter() - begun, flush=True)


def _search(space: str, trials: int, workers: int, seed: int, overrides: list[str]) -> tuple[float, list[Job], Setup]:
    budget = [f"search.trials={trials}", f"search.workers={workers}", f"search.seed={seed}"]
    with TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        run_search(make_plan(load_spec(space, [*FIXED, *budget, *overrides])), place).close()
        with RunStore.read(place) as study:
            table = study.trials()
            jobs = [each.job for each in study.stored_trials() if each.job.role.value == "search"]
            setup = Setup.from_json(study.run_info().setup)
    table = table[(table["role"] == "search") & table["elapsed"].notna()]
    return float(table["elapsed"].max() - (table["elapsed"] - table["seconds"]).min()), jobs, setup


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/scaling.md"))
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.loop is not None:
        loop(asked.loop)
        return
    lines = ["# What a second worker brings, and what the first one costs", "", "`python -m benchmarks.scaling`", ""]
    lines += [
        about(__doc__),
        "",
        "| space | trials | seeds | two workers against one | the machine allows | one worker against a bare loop |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for space in asked.spaces:
        ratios, allowed, costs = [], [], []
        for seed in range(asked.seeds):
            times: dict[str, float] = {}
            for name in turned(["one", "two"], seed):
                if name == "two":
                    times["two"] = searched(space, asked.trials, 2, seed, asked.set)
                else:
                    times["one"], times["bare"], times["a pair"] = looped(space, asked.trials, seed, asked.set)
            ratios.append(times["one"] / times["two"])
            allowed.append(2 * times["bare"] / times["a pair"])
            costs.append(times["one"] / times["bare"] - 1)
            print(
                f"{space} seed {seed}: " + ", ".join(f"{name} {took:.1f} s" for name, took in times.items()), flush=True
            )
        lines.append(
            f"| {space} | {asked.trials} | {asked.seeds}"
            f" | {statistics.mean(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {statistics.mean(allowed):.2f}x ({min(allowed):.2f} to {max(allowed):.2f})"
            f" | {statistics.mean(costs):+.1%} ({min(costs):+.1%} to {max(costs):+.1%}) |"
        )
        print(lines[-1], flush=True)
    write_atomic(asked.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
