"""What the engine itself takes: `python -m benchmarks.overhead [--spaces digits mnist1d]`.

A search with one worker is run for some trainings. Outside of the trials: what of the wall-clock, after the first job
was handed out, no trial accounts for (asking, storing, telling, sending), for each job. Inside: its trainings are run
once more under Python's profiler, which makes what is not a kernel look slower than it is; of their time, what is
neither a forward pass, a backward pass, an optimizer step nor the scoring of candidates.
"""

import argparse
import cProfile
import pstats
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.core.records import Cut, Job
from autocompress.engine.runner import make_plan, run_search
from autocompress.engine.spec import load_spec
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial
from benchmarks.keeping import about

#: What a training is there for, by the file and the name of the outermost function that does it.
USEFUL = (
    ("loop.py", "forward"),
    ("_tensor.py", "backward"),
    ("optimizer.py", "wrapper"),
    ("clip_grad.py", "clip_grad_norm_"),
    ("trial.py", "_measured"),
)


@dataclass(frozen=True)
class Overhead:
    """Of one space.

    Attributes:
        jobs: Handed out.
        wall: Seconds from the first job to the last result.
        outside: Of these, what no trial accounts for.
        profiled: Seconds of the trainings that were profiled.
        inside: Of these, what is none of ``USEFUL``.
        scoring: Of these, the scoring of candidates.
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
        place = Path(folder) / "run"
        run_search(make_plan(load_spec(space, [*overrides, *budget])), place).close()
        with RunStore.read(place) as study:
            table = study.trials()
            setup = Setup.from_json(study.run_info().setup)
            stored = [trial.job for trial in study.stored_trials() if trial.job.base is None]
    search = table[(table["role"] == "search") & table["elapsed"].notna()].sort_values("elapsed")
    first = search.iloc[0]
    wall = float(search["elapsed"].max() - first["elapsed"] + first["seconds"])
    profiled, useful, scoring = _profile([job for job in stored if job.role.value == "search"], setup)
    return Overhead(
        space, len(search), wall, wall - float(search["seconds"].sum()), profiled, profiled - useful, scoring
    )


def _profile(jobs: list[Job], setup: Setup) -> tuple[float, float, float]:
    """Return the seconds of whole trainings with their cuts, of what is useful in them, and of scoring."""
    profile = cProfile.Profile()
    with reproducible_torch():
        load_pipeline(setup)
        begun = time.perf_counter()
        profile.enable()
        for job in jobs:
            run_trial(Job(job.number, job.training, job.cuts or (Cut(),)), setup)
        profile.disable()
        whole = time.perf_counter() - begun
    seconds = dict.fromkeys(USEFUL, 0.0)
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = (Path(file).name, name)
        if place in seconds and ("torch" in file or "autocompress" in file):
            seconds[place] = max(seconds[place], cumulative)
    return whole, sum(seconds.values()), seconds["trial.py", "_measured"]


def main() -> None:
    """Print one line a space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/overhead.md"))
    asked = parser.parse_args()
    lines = [
        "# What the engine itself takes",
        "",
        about(__doc__),
        "",
        "| space | jobs | wall, s | outside a job, ms | outside | inside trainings | scoring of trainings |",
        "|---|---|---|---|---|---|---|",
    ]
    for space in asked.spaces:
        found = measure(space, asked.trials, asked.set)
        lines.append(
            f"| {found.space} | {found.jobs} | {found.wall:.1f} | {found.outside / found.jobs * 1e3:.0f}"
            f" | {found.outside / found.wall:.1%} | {found.inside / found.profiled:.1%}"
            f" | {found.scoring / found.profiled:.1%} |"
        )
    text = "\n".join([*lines, ""])
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
