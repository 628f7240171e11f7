"""Overhead of the engine: `python -m benchmarks.overhead [--spaces digits mnist1d]`.

A search with one worker runs some trials. Overhead outside trials is the wall-clock time after the first job started in
which no trial ran (ask, store, tell, send), per job. For the overhead inside trials, the same trials run again under
Python's profiler, which overstates the time of Python code; it is the time that is neither a forward pass, a backward
pass, an optimizer step nor the scoring of candidates.

The second table divides the profiled time of those trials by step.
"""

import argparse
import cProfile
import pstats
import time
from collections.abc import Mapping
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


#: Steps of a trial, by the file and the name of the function that does it.
STEPS = {
    "fit": ("fit.py", "fit"),
    "folding of batch norms": ("runner.py", "_fold_model"),
    "quantization": ("pipeline.py", "quantize"),
    "scoring": ("runner.py", "_measure_candidate"),
}


@dataclass(frozen=True)
class Profile:
    """Times of the same trials, in seconds.

    Attributes:
        total: Time under Python's profiler.
        useful: Part of ``total`` that is in one of ``USEFUL``.
        steps: Part of ``total`` of each of ``STEPS``.
    """

    total: float
    useful: float
    steps: Mapping[str, float]


@dataclass(frozen=True)
class Overhead:
    """Overhead on one search space.

    Attributes:
        space: Search space.
        jobs: Number of jobs.
        wall: Seconds from the first job to the last result.
        outside: Seconds of ``wall`` in which no trial ran.
        profile: Times of the trials that ran again.
    """

    space: str
    jobs: int
    wall: float
    outside: float
    profile: Profile


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
    search = table[(table["role"] == "search") & table["elapsed"].notna()]
    # A trial that was paused has started before others that ended first.
    start = min(segment["start"] for segments in search["segments"] for segment in segments)
    wall = float(search["elapsed"].max() - start)
    outside = wall - float(search["seconds"].sum())
    profile = profile_trials([job for job in stored if job.role.value == "search"], setup)
    return Overhead(space, len(search), wall, outside, profile)


def profile_trials(jobs: list[Job], setup: Setup) -> Profile:
    """Return the times of trials under Python's profiler."""
    profile = cProfile.Profile()
    with reproducible_torch():
        load_pipeline(setup)
        started = time.perf_counter()
        profile.enable()
        for job in jobs:
            run_trial(Job(job.number, job.training, job.recipes or (CompressionRecipe(),)), setup)
        profile.disable()
        total = time.perf_counter() - started
    seconds = dict.fromkeys((*USEFUL, *STEPS.values()), 0.0)
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        run_folder = (Path(file).name, name)
        if run_folder in seconds and ("torch" in file or "autocompress" in file):
            seconds[run_folder] = max(seconds[run_folder], cumulative)
    steps = {name: seconds[function] for name, function in STEPS.items()}
    return Profile(total, sum(seconds[function] for function in USEFUL), steps)


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
    step_lines = ["", f"| space | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    for space in arguments.spaces:
        overhead = measure(space, arguments.trials, arguments.set)
        profile = overhead.profile
        lines.append(
            f"| {overhead.space} | {overhead.jobs} | {overhead.wall:.1f} | {overhead.outside / overhead.jobs * 1e3:.0f}"
            f" | {overhead.outside / overhead.wall:.1%} | {1 - profile.useful / profile.total:.1%}"
            f" | {profile.steps['scoring'] / profile.total:.1%} |"
        )
        shares = " | ".join(f"{seconds / profile.total:.1%}" for seconds in profile.steps.values())
        step_lines.append(f"| {space} | {shares} |")
    text = "\n".join([*lines, *step_lines, ""])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
