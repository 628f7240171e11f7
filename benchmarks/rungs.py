"""Recorded trials for promotion rules: `python -m benchmarks.rungs --out tests/engine/rungs.json`.

Some tens of random trials of a shipped space run without early stopping. The file contains every candidate at every
rung and at the end, as normalized objectives on search_val. tests/engine/test_replay.py replays promotion rules on it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.records import Job, State
from autocompress.engine.archive import Archive
from autocompress.engine.refinement import split_recipes
from autocompress.engine.runner import make_plan
from autocompress.engine.scheduler.asha import rung_epochs, select_rung_recipes
from autocompress.engine.space import Space
from autocompress.engine.spec import load_spec
from autocompress.training.optimizers import fit_config
from autocompress.trial.pipeline import load_pipeline, reproducible_torch
from autocompress.trial.runner import TrialRunner, teacher_record


def record_trials(name: str, trainings: int) -> dict[str, object]:
    """Train and return the table: one entry per trial, one list of points per rung."""
    plan = make_plan(load_spec(name))
    with reproducible_torch():
        load_pipeline(plan.setup)
        costs = teacher_record(plan.setup)["costs"]
    objectives = []
    for objective in plan.objectives:
        teacher_cost = float(costs.get(objective.name, 0.0))
        objectives.append(
            replace(objective, bounds=(teacher_cost, teacher_cost * 1e-5) if objective.kind == "cost" else (0.1, 1.0))
        )
    archive, runner = Archive(objectives), TrialRunner(plan.setup)
    table = []
    for number in range(trainings):
        job = draw_job(plan.space, number)
        rungs, paused = [], b""
        steps = rung_epochs(fit_config(job.training.fit).epochs)
        for rung, until in enumerate([*steps, None]):
            cuts = job.recipes if until is None else select_rung_recipes(job.recipes)
            result = runner(replace(job, recipes=cuts, rung=rung, until=until, paused=paused))
            if result.state is State.FAILED:
                break
            paused = result.paused
            points = np.clip([archive.normalize(candidate) for candidate in result.candidates], 0.0, 1.0)
            rungs.append({"epochs": len(result.curve), "points": points.round(4).tolist()})
        table.append({"trial": number, "rungs": rungs})
        print(number, [len(rung["points"]) for rung in rungs], flush=True)
    score = objectives.index(primary_objectives(objectives)[1])
    return {"space": name, "score": score, "trainings": table}


def draw_job(space: Space, number: int) -> Job:
    """Return a random trial with the compression recipes that do not train."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    training, _ = space.suggest_config(study.ask(), with_compression=False)
    cheap, _ = split_recipes(space.compression_grid())
    return Job(number, replace(training, seed=number), tuple(cheap))


def main() -> None:
    """Record trials of a space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--trainings", type=int, default=36)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = record_trials(arguments.space, arguments.trainings)
    text = json.dumps(recorded, separators=(",", ":")).replace('{"trial"', '\n{"trial"')
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
