"""Faults of workers and of trials: kills, memory, hangs, invalid results."""

import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.faults.injection import OBJECTIVES, TRIALS_QUERY, FaultResult, drive, query_store
from benchmarks.mock_trials import MockEvaluator, mock_result


def kill_workers(folder: Path, trials: int = 60, killed: int = 20) -> FaultResult:
    """Row 2: workers that are killed, and a configuration that kills its worker every time."""
    draw = random.Random(1)
    faults = dict.fromkeys(draw.sample(range(1, trials), killed), "kill once") | {0: "kill"}
    evaluator = MockEvaluator(folder / "log", 0.0, faults)
    drive(folder, trials, 2, evaluator, "search.promotion=always")
    trainings = query_store(folder, "SELECT number, state, reason FROM ac_trials")
    failed = [number for number, state, _ in trainings if state == "failed"]
    executions = evaluator.executions()
    most = max(executions.count(item) for item in executions)
    measured = f"{len(trainings)} of {trials} accounted for, failed: {failed}, at most {most} executions each"
    return FaultResult(
        "all accounted for, at most 2 executions each", measured, (len(trainings), failed, most) == (trials, [0], 2)
    )


def exhaust_memory(folder: Path, trials: int = 20) -> FaultResult:
    """Row 3: trials that need more memory than the limit of a worker."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    evaluator = MockEvaluator(folder / "log", 0.0, {3: "exhaust memory", 4: "exhaust memory", 11: "exhaust memory"})
    results = run_jobs(Local(2, TrialLimits(memory=2 << 30)), evaluator, trials)
    reasons = {number: result.reason for number, result in results.items() if result.state.value == "failed"}
    starts = sum(line.startswith("worker") for line in evaluator.log.read_text().splitlines())
    measured = f"{len(results)} of {trials} results received; failed: {reasons}; {starts} workers were started"
    held = len(results) == trials and reasons == dict.fromkeys((3, 4, 11), "out of memory") and starts == 2
    return FaultResult('failed as "out of memory", the search goes on', measured, held)


def hang_trials(folder: Path, limit: float = 3.0) -> FaultResult:
    """Row 4: trials that hang, ignore SIGTERM and have a child process."""
    from autocompress.backends.base import TrialLimits
    from autocompress.backends.local import Local

    evaluator = MockEvaluator(folder / "log", 0.0, {1: "hang", 2: "hang"})
    results = run_jobs(Local(2, TrialLimits(seconds=limit)), evaluator, 8)
    late = max(results[number].seconds for number in (1, 2)) - limit
    left = len(evaluator.living_processes())
    for process in evaluator.living_processes():
        os.kill(process, signal.SIGKILL)
    measured = f"{results[1].reason}; {late:.2f} s late, {left} processes left, {len(results)} of 8 results received"
    return FaultResult(
        "timed out within limit + 3 s, no orphan process", measured, 0 <= late <= 3 and not left and len(results) == 8
    )


def run_jobs(backend: Any, evaluator: MockEvaluator, count: int) -> dict[int, Any]:
    """Run jobs of mock trials on a backend, and return the result of each number."""
    from autocompress.core.config import CompressionConfig, Part
    from autocompress.core.records import CompressionRecipe, Job

    part = Part("adamw")
    queue = [
        Job(n, CompressionConfig(Part.of("cnn", width=n + 1), (Part("none"),), part, seed=n), (CompressionRecipe(),))
        for n in range(count)
    ]
    results: dict[int, Any] = {}
    backend.run(
        lambda: queue.pop(0) if queue else None, evaluator, lambda job, result: results.update({job.number: result})
    )
    return results


def check_bad_results(folder: Path, tables: int = 500) -> FaultResult:
    """Row 9: results that are not numbers, and the front compared with brute force."""
    import numpy as np

    from autocompress.analysis.pareto import is_dominated
    from autocompress.core.config import CompressionConfig, Part
    from autocompress.core.records import CompressionRecipe, Job
    from autocompress.engine.archive import validate_result

    job = Job(0, CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw")), (CompressionRecipe(),))
    result = mock_result(job)
    (good,) = result.candidates
    bad: list[Any] = [float("nan"), float("inf"), float("-inf"), None, "0.9", [0.9]]
    damaged = []
    for value in bad:
        damaged.append(replace(good, scores={**good.scores, "search_val": {"accuracy": value}}))
        damaged.append(replace(good, scores={**good.scores, "select_val": {"accuracy": value}}))
        damaged.append(replace(good, costs={"effective_flops": value}))
        damaged.append(replace(good, costs={}, scores={"search_val": {"loss": value}}))
    names = [objective.name for objective in OBJECTIVES]
    failed = sum(
        measured.state.value == "failed" and bool(measured.reason)
        for item in damaged
        for measured in [validate_result(replace(result, candidates=(item,)), names)]
    )
    draw = np.random.default_rng(0)
    equal = 0
    for _ in range(tables):
        # Few distinct values, so that there are ties and duplicates.
        points = draw.integers(0, 6, size=(draw.integers(1, 40), 2)).astype(float)
        brute = [any((q <= p).all() and (q < p).any() for q in points) for p in points]
        equal += is_dominated(points, ["minimize", "minimize"]).tolist() == brute
    measured = f"{failed} of {len(damaged)} failed with a reason; front equal on {equal} of {tables} tables"
    return FaultResult(
        "all failed with the reason; front equals brute force", measured, (failed, equal) == (len(damaged), tables)
    )


def fail_all_trials(folder: Path) -> FaultResult:
    """Row 15: every trial fails."""
    evaluator = MockEvaluator(folder / "log", 0.0, dict.fromkeys(range(100), "raise"))
    only_failures = drive(folder, 100, 2, evaluator)
    reasons = query_store(folder, "SELECT DISTINCT reason FROM ac_trials WHERE state = 'failed'")
    trials = len(query_store(folder, TRIALS_QUERY))
    held = only_failures and 10 <= trials <= 11 and reasons == [("RuntimeError: this mock trial fails",)]
    return FaultResult("stop after 10 (and what was under way)", f"stopped after {trials}; reasons: {reasons}", held)


def repeat_trials(runs: Path, trials: int = 10) -> FaultResult:
    """Row 20: real trials repeated from their records."""
    import autocompress
    from autocompress.core.records import Role, State
    from autocompress.store.run_store import RunStore
    from autocompress.trial.pipeline import Setup
    from autocompress.trial.runner import TrialRunner

    small = [f"search.trials={trials}", "search.backend=serial", "search.promotion=always", "search.refine=0"]
    small += ["fit.adamw.epochs=3", "student.cnn.width=[6, 8, 12]", "teacher.fit={adamw: {epochs: 8}}"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}"]
    folder = autocompress.search("digits", runs=runs, overrides=small).folder
    identical = completed = 0
    with RunStore.read(folder) as store:
        runner = TrialRunner(Setup.from_json(store.run_info().setup))
        for stored in store.read_trials():
            if stored.job.role is not Role.SEARCH or stored.state is not State.COMPLETE:
                continue
            completed += 1
            repeated = runner(stored.job)
            weights = {name: store.checkpoint_path(name).read_bytes() for name in repeated.checkpoints}
            identical += weights == dict(repeated.checkpoints) and [
                (item.id, {name: item.scores[name] for name in ("search_val", "select_val")}, item.costs)
                for item in store.read_trial_candidates(stored.job.number)
            ] == [(item.id, item.scores, item.costs) for item in repeated.candidates]
    measured = f"{identical} of {completed} identical, weights and metrics"
    return FaultResult("identical weights and metrics", measured, identical == completed == trials)
