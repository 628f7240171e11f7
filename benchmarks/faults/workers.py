"""What is done to workers and by trials."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.faults.harm import OBJECTIVES, TRAININGS, Figure, drive, rows
from benchmarks.pretend import Pretend, outcome


def killed_workers(place: Path, trials: int = 60, killed: int = 20) -> Figure:
    """Row 2: workers that are killed, and a configuration that kills its worker every time."""
    draw = random.Random(1)
    faults = dict.fromkeys(draw.sample(range(1, trials), killed), "kill once") | {0: "kill"}
    pretend = Pretend(place / "log", 0.0, faults)
    drive(place, trials, 2, pretend, "search.promotion=always")
    trainings = rows(place, "SELECT number, state, reason FROM ac_trials")
    failed = [number for number, state, _ in trainings if state == "failed"]
    executions = pretend.executions()
    most = max(executions.count(each) for each in executions)
    found = f"{len(trainings)} of {trials} accounted for, failed: {failed}, at most {most} executions each"
    return Figure(
        "all accounted for, at most 2 executions each", found, (len(trainings), failed, most) == (trials, [0], 2)
    )


def out_of_memory(place: Path, trials: int = 20) -> Figure:
    """Row 3: trials that want more memory than a worker may take."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    pretend = Pretend(place / "log", 0.0, {3: "hoard", 4: "hoard", 11: "hoard"})
    told = _run(Local(2, TrialLimits(memory=2 << 30)), pretend, trials)
    reasons = {number: result.reason for number, result in told.items() if result.state.value == "failed"}
    starts = sum(line.startswith("worker") for line in pretend.log.read_text().splitlines())
    found = f"{len(told)} of {trials} told; failed: {reasons}; {starts} workers were started"
    held = len(told) == trials and reasons == dict.fromkeys((3, 4, 11), "out of memory") and starts == 2
    return Figure('failed as "out of memory", the search goes on', found, held)


def hung_trials(place: Path, limit: float = 3.0) -> Figure:
    """Row 4: trials that hang, ignore SIGTERM, and have started a process."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    pretend = Pretend(place / "log", 0.0, {1: "hang", 2: "hang"})
    told = _run(Local(2, TrialLimits(seconds=limit)), pretend, 8)
    late = max(told[number].seconds for number in (1, 2)) - limit
    left = len(pretend.alive())
    found = f"{told[1].reason}; {late:.2f} s late, {left} processes left, {len(told)} of 8 told"
    return Figure("timed out within limit + 3 s, no orphan", found, 0 <= late <= 3 and not left and len(told) == 8)


def _run(backend: Any, pretend: Pretend, count: int) -> dict[int, Any]:
    from autocompress.core.config import CompressionConfig, Part
    from autocompress.core.records import Cut, Job

    part = Part("adamw")
    queue = [
        Job(n, CompressionConfig(Part.of("cnn", width=n + 1), (Part("none"),), part, seed=n), (Cut(),))
        for n in range(count)
    ]
    told: dict[int, Any] = {}
    backend.run(lambda: queue.pop(0) if queue else None, pretend, lambda job, result: told.update({job.number: result}))
    return told


def bad_results(place: Path, tables: int = 500) -> Figure:
    """Row 9: results that are no numbers, and the front against brute force."""
    import numpy as np

    from autocompress.analysis.pareto import dominated
    from autocompress.core.config import CompressionConfig, Part
    from autocompress.core.records import Cut, Job
    from autocompress.engine.result_validation import validate_result

    job = Job(0, CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw")), (Cut(),))
    result = outcome(job)
    (good,) = result.candidates
    bad: list[Any] = [float("nan"), float("inf"), float("-inf"), None, "0.9", [0.9]]
    harmed = []
    for value in bad:
        harmed.append(replace(good, scores={**good.scores, "search_val": {"accuracy": value}}))
        harmed.append(replace(good, scores={**good.scores, "select_val": {"accuracy": value}}))
        harmed.append(replace(good, costs={"effective_flops": value}))
        harmed.append(replace(good, costs={}, scores={"search_val": {"loss": value}}))
    names = [objective.name for objective in OBJECTIVES]
    failed = sum(
        found.state.value == "failed" and bool(found.reason)
        for each in harmed
        for found in [validate_result(replace(result, candidates=(each,)), names)]
    )
    draw = np.random.default_rng(0)
    equal = 0
    for _ in range(tables):
        # Few values, so that there are ties and duplicates.
        points = draw.integers(0, 6, size=(draw.integers(1, 40), 2)).astype(float)
        brute = [any((q <= p).all() and (q < p).any() for q in points) for p in points]
        equal += dominated(points, ["minimize", "minimize"]).tolist() == brute
    found = f"{failed} of {len(harmed)} failed with a reason; front equal on {equal} of {tables} tables"
    return Figure(
        "all failed with the reason; front equals brute force", found, (failed, equal) == (len(harmed), tables)
    )


def hopeless(place: Path) -> Figure:
    """Row 15: every trial fails."""
    pretend = Pretend(place / "log", 0.0, dict.fromkeys(range(100), "raise"))
    given_up = drive(place, 100, 2, pretend)
    reasons = rows(place, "SELECT DISTINCT reason FROM ac_trials WHERE state = 'failed'")
    trials = len(rows(place, TRAININGS))
    held = given_up and 10 <= trials <= 11 and reasons == [("RuntimeError: this trial is there to fail",)]
    return Figure("stop after 10 (and what was under way)", f"stopped after {trials}; reasons: {reasons}", held)


def run_again(place: Path, trials: int = 10) -> Figure:
    """Row 20: real trials run once more from their records."""
    import autocompress
    from autocompress.core.records import Role, State
    from autocompress.store.run_store import RunStore
    from autocompress.trial.pipeline import Setup
    from autocompress.trial.runner import TrialRunner

    small = [f"search.trials={trials}", "search.backend=serial", "search.promotion=always", "search.refine=0"]
    small += ["fit.adamw.epochs=3", "student.cnn.width=[6, 8, 12]", "teacher.fit={adamw: {epochs: 8}}"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}"]
    folder = autocompress.search("digits", runs=place, overrides=small).folder
    same = whole = 0
    with RunStore.read(folder) as study:
        runner = TrialRunner(Setup.from_json(study.run_info().setup))
        for stored in study.stored_trials():
            if stored.job.role is not Role.SEARCH or stored.state is not State.COMPLETE:
                continue
            whole += 1
            again = runner(stored.job)
            weights = {name: study.checkpoint_path(name).read_bytes() for name in again.checkpoints}
            same += weights == dict(again.checkpoints) and [
                (each.id, {name: each.scores[name] for name in ("search_val", "select_val")}, each.costs)
                for each in study.candidates_of(stored.job.number)
            ] == [(each.id, each.scores, each.costs) for each in again.candidates]
    found = f"{same} of {whole} identical, weights and metrics"
    return Figure("identical weights and metrics", found, same == whole == trials)
