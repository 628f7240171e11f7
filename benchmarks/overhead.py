"""Overhead of the engine: `python -m benchmarks.overhead [--spaces digits mnist1d]`.

A search with one worker runs some trials. Overhead outside trials is the wall-clock time after the first job started in
which no trial ran (ask, store, tell, send), per job. For the overhead inside trials, the same trials run again under
Python's profiler, which overstates the time of Python code; it is the time that is neither a forward pass, a backward
pass, an optimizer step nor the scoring of candidates.
"""

import argparse
import cProfile
import pstats
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.core.records import CompressionRecipe, Job
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial
from benchmarks.common import describe_benchmark

#: Useful work of a trial, by the file and the name of the outermost function that does it.
USEFUL = (
    ("trainer.py", "forward"),
    ("_tensor.py", "backward"),
    ("optimizer.py", "wrapper"),
    ("clip_grad.py", "clip_grad_norm_"),
    ("runner.py", "_measure_candidate"),
)


@dataclass(frozen=True)
class Overhead:
    """Overhead on one search space.

    Attributes:
        space: Search space.
        jobs: Number of jobs.
        wall: Seconds from the first job to the last result.
        outside: Seconds of ``wall`` in which no trial ran.
        profiled: Seconds of the profiled trials.
        inside: Seconds of ``profiled`` that are in none of ``USEFUL``.
        scoring: Seconds of ``profiled`` that score candidates.
    """

    space: str
    jobs: int
    wall: float
    outside: float
    profiled: float
    inside: float
    scoring: float


def measure(space: str, trials: int, overrides: list[str]) -> Overhead:
    """Search a space, and profile its trainings again."""
    budget = [f"search.trials={trials}", "search.minutes=null", "search.workers=1"]
    with TemporaryDirectory() as folder:
        run_folder = Path(folder) / "run"
        run_search(make_plan(load_spec(space, [*overrides, *budget])), run_folder).close()
        with RunStore.read(run_folder) as store:
            table = store.trial_table()
            setup = Setup.from_json(store.run_info().setup)
            stored = [trial.job for trial in store.read_trials() if trial.job.base is None]
    search = table[(table["role"] == "search") & table["elapsed"].notna()].sort_values("elapsed")
    first = search.iloc[0]
    wall = float(search["elapsed"].max() - first["elapsed"] + first["seconds"])
    profiled, useful, scoring = _profile([job for job in stored if job.role.value == "search"], setup)
    return Overhead(
        space, len(search), wall, wall - float(search["seconds"].sum()), profiled, profiled - useful, scoring
    )


def _profile(jobs: list[Job], setup: Setup) -> tuple[float, float, float]:
    """Return the seconds of whole trials, of the useful work in them, and of scoring."""
    profile = cProfile.Profile()
    with reproducible_torch():
        load_pipeline(setup)
        started = time.perf_counter()
        profile.enable()
        for job in jobs:
            run_trial(Job(job.number, job.training, job.recipes or (CompressionRecipe(),)), setup)
        profile.disable()
        total = time.perf_counter() - started
    seconds = dict.fromkeys(USEFUL, 0.0)
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        run_folder = (Path(file).name, name)
        if run_folder in seconds and ("torch" in file or "autocompress" in file):
            seconds[run_folder] = max(seconds[run_folder], cumulative)
    return total, sum(seconds.values()), seconds["runner.py", "_measure_candidate"]


def main() -> None:
    """Print one line per space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/overhead.md"))
    arguments = parser.parse_args()
    lines = [
        "# Overhead of the engine",
        "",
        describe_benchmark(__doc__),
        "",
        "| space | jobs | wall, s | outside a job, ms | outside | inside trials | scoring of trials |",
        "|---|---|---|---|---|---|---|",
    ]
    for space in arguments.spaces:
        overhead = measure(space, arguments.trials, arguments.set)
        lines.append(
            f"| {overhead.space} | {overhead.jobs} | {overhead.wall:.1f} | {overhead.outside / overhead.jobs * 1e3:.0f}"
            f" | {overhead.outside / overhead.wall:.1%} | {overhead.inside / overhead.profiled:.1%}"
            f" | {overhead.scoring / overhead.profiled:.1%} |"
        )
    text = "\n".join([*lines, ""])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
