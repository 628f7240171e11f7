"""What a warm start saves: ``python -m benchmarks.warm_start [--space digits | --mock] [--seeds 3] [--trials 40]``.

For each seed, one search starts without earlier trials, and a second one, with another seed, from the trials of the
first. The table has what the second one needs until it reaches a share of the final hypervolume of the first one's
front, divided by what the first one needed for the same: compute cost, which is counted and does not depend on the load
of the machine, and seconds. Trials of the earlier front are copied with their weights, which costs neither; with
``--repeat`` they are trained again, as where data, teacher or software have changed. With ``--mock``, space and costs
are those of digits, the scores are computed from the configuration and the seed, and trials are repeated.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeAlias, cast
from unittest import mock

import autocompress
from autocompress.core.config import CompressionConfig, Part, fingerprint
from autocompress.core.records import Candidate, CompressionRecipe, Job, State, TrialResult
from autocompress.core.run_info import RunInfo, TeacherInfo
from autocompress.engine import runner
from autocompress.engine.scheduler.asha import rung_epochs
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost, count_fit_epochs, count_recipe_epochs
from autocompress.engine.spec import load_spec
from autocompress.engine.warm_start import read_warm_start
from autocompress.store.run_store import RunStore
from autocompress.trial.runner import estimate_costs
from benchmarks.common import append_row, load_rows

# Shares of the final hypervolume of the first search.
SHARES = (0.99, 0.995, 1.0)
#: Compute cost, seconds and hypervolume after each job.
History: TypeAlias = Sequence[tuple[float, float, float]]


def read_history(run: Path) -> History:
    """Return compute cost, seconds and hypervolume of a search after each of its jobs."""
    with RunStore.read(run) as store:
        table = store.trial_table().set_index("number")
        jobs = {trial.job.number: trial.job for trial in store.read_trials()}
        candidates = {number: store.read_trial_candidates(number) for number in jobs}
    events = []
    for number, row in table[table["role"] == "search"].iterrows():
        job = jobs[int(cast(int, number))]
        if not candidates[job.number]:
            continue
        if row["elapsed"] == 0:
            # A copy of a trial of the earlier front.
            events.append((0.0, 0.0, float(row["hypervolume"])))
            continue
        epoch_cost = candidate_epoch_cost(candidates[job.number][0])
        epochs = _list_epochs(job)
        for position, (segment, count) in enumerate(zip(row["segments"], epochs, strict=False), start=1):
            # The hypervolume of a trial is that after its latest segment; the others add nothing to the front.
            volume = float(row["hypervolume"]) if position == len(row["segments"]) else math.nan
            events.append((float(segment["end"]), count * epoch_cost, volume))
    history, spent, reached = [], 0.0, 0.0
    for seconds, cost, volume in sorted(events):
        spent, reached = spent + cost, max(reached, volume if math.isfinite(volume) else 0.0)
        history.append((spent, seconds, reached))
    return history


def _list_epochs(job: Job) -> list[float]:
    """Return the epochs of each segment of a trial, or those of a refinement."""
    if job.base is None:
        total = count_fit_epochs(job.training.fit)
        ends = [*rung_epochs(total), total]
        return [float(end - start) for start, end in zip([0, *ends], ends, strict=False)]
    prunings = {recipe.prune for recipe in job.recipes} - {job.base.prune}
    steps = [
        *(CompressionRecipe(part) for part in prunings),
        *(CompressionRecipe(None, r.quantize) for r in job.recipes),
    ]
    return [sum(map(count_recipe_epochs, steps))]


def find_costs(history: History, volume: float) -> tuple[float, float] | None:
    """Return compute cost and seconds after which a search has a hypervolume; None if it never has.

    Example:
        >>> find_costs([(5.0, 1.0, 0.2), (9.0, 3.0, 0.5)], 0.4)
        (9.0, 3.0)
    """
    return next(((cost, seconds) for cost, seconds, reached in history if reached >= volume), None)


def measure(space: str, seed: int, trials: int, workers: int, *, repeats: bool) -> tuple[History, History]:
    """Return the histories of a search without and of one with a warm start.

    Args:
        space: Name of the search space.
        seed: Seed of the first search.
        trials: Budget of each search.
        workers: Worker processes.
        repeats: Whether the trials of the earlier front are trained again instead of copied.
    """
    with ExitStack() as stack:
        if repeats:
            stack.enter_context(mock.patch.object(runner, "copy_front", return_value="copies are switched off"))
        runs = stack.enter_context(tempfile.TemporaryDirectory())
        limits: dict[str, Any] = {"trials": trials, "workers": workers, "runs": runs}
        # The comparison ends with the search.
        limits["overrides"] = ["search.timing_seconds=0", "search.minutes=null"]
        first = autocompress.search(space, name="first", seed=seed, **limits)
        second = autocompress.search(space, name="second", seed=seed + 1000, warm_start="first", **limits)
        return read_history(first.folder), read_history(second.folder)


class MockTrials:
    """Searches of the digits space whose scores are computed instead of measured.

    The error falls with the operations of the student, and depends on learning rate, block, distillation, bits and
    epochs; the seed changes it by 8%. It is rounded to 280 examples.
    """

    def __init__(self) -> None:
        self.plan = runner.make_plan(load_spec("digits", ["search.workers=1"]))
        self._costs: dict[str, dict[str, float]] = {}

    def estimate(self, training: CompressionConfig, recipes: Sequence[CompressionRecipe]) -> list[dict[str, float]]:
        """Return the costs of a training under recipes; those of compression are computed."""
        key = fingerprint(training.student.to_json())
        if key not in self._costs:
            self._costs[key] = dict(estimate_costs(self.plan.setup, training, [CompressionRecipe()])[0])
        return [self._compress(self._costs[key], recipe) for recipe in recipes]

    def run(self, job: Job) -> TrialResult:
        """Return the result of a job."""
        total = count_fit_epochs(job.training.fit)
        epochs = job.until or total
        complete, candidates = epochs == total, []
        costs = self.estimate(job.training, job.recipes)
        for number, (recipe, cost) in enumerate(zip(job.recipes, costs, strict=True)):
            score = 1 - round(self._compute_error(job.training, recipe, cost["flops"], epochs / total) * 280) / 280
            scores = {split: {"accuracy": score} for split in ("search_val", "select_val")}
            config = replace(job.training, prune=recipe.prune, quantize=recipe.quantize)
            is_pruned_again = job.base is None or recipe.prune != job.base.prune
            name = f"t{job.number}p{_ratio(recipe):g}" if is_pruned_again else job.base.checkpoint  # type: ignore[union-attr]
            checkpoint = name if complete else ""
            identity = f"t{job.number}{'' if complete else f'r{job.rung}'}c{number}"
            candidates.append(
                Candidate(identity, job.number, config, epochs, scores, cost, checkpoint=checkpoint, complete=complete)
            )
        weights = {candidate.checkpoint: b"weights" for candidate in candidates if candidate.checkpoint}
        state, paused = (State.COMPLETE, b"") if complete else (State.PAUSED, b"state")
        return TrialResult(job.number, state, tuple(candidates), 0.01, checkpoints=weights, paused=paused)

    def search(self, folder: Path, seed: int, trials: int, earlier: Path | None = None) -> History:
        """Run a search in a folder, from the trials of an earlier one if there is one; return its history."""
        plan = self.plan
        overrides = [f"search.seed={seed}", f"search.trials={trials}", "search.minutes=null", "search.workers=1"]
        plan = replace(plan, source=load_spec("digits", overrides))
        teacher = plan.setup.teacher
        config = CompressionConfig(teacher.student, (Part("none"),), teacher.fit)
        (costs,) = self.estimate(config, [CompressionRecipe()])
        largest = costs["effective_flops"]
        bounds = {"accuracy": (0.1, 1.0), "effective_flops": (largest, largest * 1e-5)}
        objectives = tuple(replace(objective, bounds=bounds[objective.name]) for objective in plan.objectives)
        scores = {split: {"accuracy": 0.985} for split in ("search_val", "select_val")}
        store = RunStore.create(folder, RunInfo(name="digits"))
        described = replace(store.run_info(), task=plan.task.name, heads=dict(plan.task.heads), objectives=objectives)
        store.update_run_info(replace(described, teacher=TeacherInfo(scores, costs)))
        if earlier is not None:
            plan = replace(plan, warm_start=read_warm_start(earlier, plan.space, plan.task, objectives))
        estimate = mock.patch.object(runner, "estimate_costs", lambda setup, *arguments: self.estimate(*arguments))
        with estimate:
            driver = runner._make_driver(plan, store, runner.Events())
        while (job := driver.ask()) is not None:
            driver.tell(job, self.run(job))
        driver.close()
        store.close()
        return read_history(folder)

    def _compress(self, costs: dict[str, float], recipe: CompressionRecipe) -> dict[str, float]:
        flops = costs["flops"] * (1 - _ratio(recipe)) ** 2
        weight, activation = _bits(recipe)
        return {**costs, "flops": flops, "effective_flops": flops * weight * activation / 32**2}

    def _compute_error(
        self, training: CompressionConfig, recipe: CompressionRecipe, flops: float, share: float
    ) -> float:
        rate = float(training.fit.values["learning_rate"])  # type: ignore[arg-type]
        factors = [
            1 + 2 * math.log10(rate / 8e-3) ** 2,
            {"plain": 1.0, "residual": 0.95, "separable": 0.85}[str(training.student.values["block"])],
            *({"none": 1.1, "dist": 0.95}.get(part.name, 1.0) for part in training.distill),
            math.exp(Random(training.seed).gauss(0.0, 0.08)),
        ]
        lost = {32: 0.0, 8: 0.0, 6: 0.003, 5: 0.01, 4: 0.03, 3: 0.1, 2: 0.35}
        capacity = 0.015 + 0.25 / math.sqrt(flops / 1e3)
        error = capacity * math.prod(factors) + 0.5 * math.exp(-4 * share)
        return min(error + sum(lost[bits] for bits in _bits(recipe)), 0.9)


def _ratio(recipe: CompressionRecipe) -> float:
    return 0.0 if recipe.prune is None else float(recipe.prune.values["pruning_ratio"])  # type: ignore[arg-type]


def _bits(recipe: CompressionRecipe) -> tuple[int, int]:
    if recipe.quantize is None:
        return 32, 32
    values = recipe.quantize.values
    return int(values["weight_bits"]), int(values["activation_bits"])  # type: ignore[arg-type]


def compare(space: str, seed: int, cold: History, warm: History) -> dict[str, Any]:
    """Return a row: compute cost and seconds of both searches for each share of the hypervolume."""
    final = cold[-1][2]
    row: dict[str, Any] = {"space": space, "seed": seed, "hypervolumes": [final, warm[-1][2]]}
    return row | {str(share): [find_costs(run, share * final) for run in (cold, warm)] for share in SHARES}


def render(rows: list[dict[str, Any]]) -> str:
    """Return the tables in Markdown: each pair of searches, and the medians."""
    lines = [
        "| space | seed | hypervolume without, with | share reached | compute cost | seconds |",
        "|---|---|---|---|---|---|",
    ]
    ratios: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        for share in map(str, SHARES):
            cold, warm = row[share]
            pair = (
                [math.inf, math.inf]
                if warm is None
                else [after / before for before, after in zip(cold, warm, strict=True)]
            )
            ratios.setdefault((row["space"], share), []).append(pair)
            cells = _format_ratios(row["space"], pair)
            volumes = ", ".join(f"{volume:.4f}" for volume in row["hypervolumes"])
            lines.append(f"| {row['space']} | {row['seed']} | {volumes} | {float(share):.1%} | {' | '.join(cells)} |")
    lines += [
        "",
        "| space | share reached | median of the compute cost | median of the seconds | pairs |",
        "|---|---|---|---|---|",
    ]
    for (space, share), pairs in ratios.items():
        medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
        cells = _format_ratios(space, medians)
        lines.append(f"| {space} | {float(share):.1%} | {' | '.join(cells)} | {len(pairs)} |")
    return "\n".join(lines)


def _format_ratios(space: str, ratios: Sequence[float]) -> list[str]:
    """Return the ratios of compute cost and seconds as texts; mock trials take no time."""
    cost, seconds = ("not reached" if ratio == math.inf else f"{ratio:.2f}" for ratio in ratios)
    return [cost, "–" if space.startswith("mock") else seconds]


def main() -> None:
    """Run the searches whose rows are not stored yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--mock", action="store_true", help="scores of mock trials in the digits space")
    parser.add_argument("--repeat", action="store_true", help="train the trials of the earlier front again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40, help="budget of each search")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=Path("reports/benchmarks/warm_start.jsonl"))
    arguments = parser.parse_args()
    kind = "mock, repeated: " if arguments.mock else "repeated: " if arguments.repeat else ""
    space = f"{kind}{arguments.space}"
    stored = {(row["space"], row["seed"]) for row in load_rows(arguments.rows)}
    world = MockTrials() if arguments.mock else None
    for seed in range(arguments.seeds):
        if (space, seed) in stored:
            continue
        if world is None:
            histories = measure(arguments.space, seed, arguments.trials, arguments.workers, repeats=arguments.repeat)
        else:
            with tempfile.TemporaryDirectory() as name:
                cold = world.search(Path(name) / "first", seed, arguments.trials)
                warm = world.search(Path(name) / "second", seed + 1000, arguments.trials, Path(name) / "first")
            histories = cold, warm
        append_row(arguments.rows, compare(space, seed, *histories))
    if world is not None:
        world.plan.backend.shutdown()
    print(render(load_rows(arguments.rows)))


if __name__ == "__main__":
    main()
