"""Speedup by a second worker and overhead of the first: `python -m benchmarks.scaling [--seeds 3]`.

The same search (random trials without early stopping, so that the order of results has no effect) runs with one worker
and with two, and its trials run again in a bare loop without driver, store and worker. Times are from the first job to
the last result; they exclude the start of workers and include slow first calls in a new process. The variants run in
turn for each seed. The speedup that the machine allows is that of two independent bare loops in parallel.
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
from benchmarks.common import describe_benchmark, rotate_names

FIXED = ("search.minutes=null", "search.sampler=random", "search.promotion=always", "search.refine=0")


def time_search(space: str, trials: int, workers: int, seed: int, overrides: list[str]) -> float:
    """Return the seconds of a search from its first job to its last result."""
    return _search(space, trials, workers, seed, overrides)[0]


def time_search_and_loops(space: str, trials: int, seed: int, overrides: list[str]) -> tuple[float, float, float]:
    """Return the seconds of a search with one worker, of its trials in a bare loop, and of two such loops at once."""
    seconds, jobs, setup = _search(space, trials, 1, seed, overrides)
    return seconds, _time_loops(1, jobs, setup), _time_loops(2, jobs, setup)


def _time_loops(count: int, jobs: list[Job], setup: Setup) -> float:
    """Return the seconds of the slowest of several bare loops, each over all jobs in its own process."""
    with TemporaryDirectory() as folder:
        work_file = Path(folder) / "work"
        work_file.write_bytes(pickle.dumps((jobs, setup)))
        call = [sys.executable, "-m", "benchmarks.scaling", "--loop", str(work_file)]
        loops = [subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        for run_loop in loops:
            assert run_loop.stdout is not None
            if run_loop.stdout.readline() != "ready\n":
                raise RuntimeError("a bare loop did not start")
        for run_loop in loops:
            assert run_loop.stdin is not None
            run_loop.stdin.write("go\n")
            run_loop.stdin.flush()
        return max(float(run_loop.communicate()[0]) for run_loop in loops)


def run_loop(work_file: Path) -> None:
    """Run a bare loop: print ``ready``, wait for a line on standard input, run all jobs and print the seconds."""
    jobs, setup = pickle.loads(work_file.read_bytes())
    with reproducible_torch():
        load_pipeline(setup)
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        for job in jobs:
            run_trial(job, setup)
        print(time.perf_counter() - started, flush=True)


def _search(space: str, trials: int, workers: int, seed: int, overrides: list[str]) -> tuple[float, list[Job], Setup]:
    budget = [f"search.trials={trials}", f"search.workers={workers}", f"search.seed={seed}"]
    with TemporaryDirectory() as folder:
        run_folder = Path(folder) / "run"
        run_search(make_plan(load_spec(space, [*FIXED, *budget, *overrides])), run_folder).close()
        with RunStore.read(run_folder) as store:
            table = store.trial_table()
            jobs = [trial.job for trial in store.read_trials() if trial.job.role.value == "search"]
            setup = Setup.from_json(store.run_info().setup)
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
    arguments = parser.parse_args()
    if arguments.loop is not None:
        run_loop(arguments.loop)
        return
    lines = ["# Speedup by a second worker and overhead of the first", "", "`python -m benchmarks.scaling`", ""]
    lines += [
        describe_benchmark(__doc__),
        "",
        "| space | trials | seeds | two workers against one | limit of the machine | one worker against a bare loop |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for space in arguments.spaces:
        ratios, allowed, costs = [], [], []
        for seed in range(arguments.seeds):
            times: dict[str, float] = {}
            for name in rotate_names(["one", "two"], seed):
                if name == "two":
                    times["two"] = time_search(space, arguments.trials, 2, seed, arguments.set)
                else:
                    times["one"], times["bare"], times["a pair"] = time_search_and_loops(
                        space, arguments.trials, seed, arguments.set
                    )
            ratios.append(times["one"] / times["two"])
            allowed.append(2 * times["bare"] / times["a pair"])
            costs.append(times["one"] / times["bare"] - 1)
            print(
                f"{space} seed {seed}: " + ", ".join(f"{name} {took:.1f} s" for name, took in times.items()), flush=True
            )
        lines.append(
            f"| {space} | {arguments.trials} | {arguments.seeds}"
            f" | {statistics.mean(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {statistics.mean(allowed):.2f}x ({min(allowed):.2f} to {max(allowed):.2f})"
            f" | {statistics.mean(costs):+.1%} ({min(costs):+.1%} to {max(costs):+.1%}) |"
        )
        print(lines[-1], flush=True)
    write_atomic(arguments.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
