"""Records what promotion rules decide on: `python -m benchmarks.rungs --out tests/engine/rungs.json`.

Some tens of trainings of a shipped space, drawn at random, none stopped: every candidate at every rung and at the end,
as normalised objectives on search_val. Rules are replayed on the file in milliseconds (tests/engine/test_replay.py).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna

from autocompress.analysis.pareto import axes
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


def record(name: str, trainings: int) -> dict[str, object]:
    """Train and return the table: one entry a training, one list of points a rung."""
    plan = make_plan(load_spec(name))
    with reproducible_torch():
        load_pipeline(plan.setup)
        costs = teacher_record(plan.setup)["costs"]
    objectives = []
    for each in plan.objectives:
        whole = float(costs.get(each.name, 0.0))
        objectives.append(replace(each, bounds=(whole, whole * 1e-5) if each.kind == "cost" else (0.1, 1.0)))
    archive, runner = Archive(objectives), TrialRunner(plan.setup)
    table = []
    for number in range(trainings):
        whole_job = drawn(plan.space, number)
        rungs, paused = [], b""
        steps = rung_epochs(fit_config(whole_job.training.fit).epochs)
        for rung, until in enumerate([*steps, None]):
            cuts = whole_job.cuts if until is None else select_rung_recipes(whole_job.cuts)
            result = runner(replace(whole_job, cuts=cuts, rung=rung, until=until, paused=paused))
            if result.state is State.FAILED:
                break
            paused = result.paused
            points = np.clip([archive.normalize(candidate) for candidate in result.candidates], 0.0, 1.0)
            rungs.append({"epochs": len(result.curve), "points": points.round(4).tolist()})
        table.append({"trial": number, "rungs": rungs})
        print(number, [len(each["points"]) for each in rungs], flush=True)
    score = objectives.index(axes(objectives)[1])
    return {"space": name, "score": score, "trainings": table}


def drawn(space: Space, number: int) -> Job:
    """Return a training at random, with the cuts that train nothing."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    training, _ = space.suggest_config(study.ask(), with_compression=False)
    cheap, _ = split_recipes(space.compression_grid())
    return Job(number, replace(training, seed=number), tuple(cheap))


def main() -> None:
    """Record a space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--trainings", type=int, default=36)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = record(asked.space, asked.trainings)
    text = json.dumps(found, separators=(",", ":")).replace('{"trial"', '\n{"trial"')
    asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
