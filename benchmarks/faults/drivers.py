"""Faults of the driver: kills, signals, and a second driver on the same run."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from autocompress.core.records import Job, State, TrialResult
from benchmarks.faults.injection import (
    CANDIDATES_QUERY,
    CREATION,
    PARTIAL_QUERY,
    POINTS,
    SPEC,
    TRIALS_QUERY,
    FaultResult,
    build_kill,
    driver_process,
    inject_nothing,
    list_lasting_processes,
    query_store,
)
from benchmarks.mock_trials import MockEvaluator


def kill_drivers(root: Path, kills: int = 41, trials: int = 30, points: Sequence[str] = tuple(POINTS)) -> FaultResult:
    """Row 1: a driver that is killed at random times and at named points."""
    draw = random.Random(0)
    kill_count, searches = 0, 0
    lost = duplicated = running = processes = wrong = partial_count = 0
    stalls: list[tuple[float, float]] = []
    named = list(points)
    while kill_count < kills + len(points):
        folder, searches = root / str(searches), searches + 1
        folder.mkdir()
        evaluator = MockEvaluator(folder / "log", 0.03)
        stored_rows: set[tuple[Any, ...]] = set()
        while kill_count < kills + len(points):
            trials_so_far = query_store(folder, TRIALS_QUERY)
            finished = {number for number, state, _ in trials_so_far if state not in ("running", "paused")}
            if len(finished) == trials:
                break
            # A store is created once, by the first driver.
            count = 1 if named[:1] == [CREATION] else draw.randint(1, 3)
            fault = build_kill(named.pop(0), count) if named else inject_nothing
            with driver_process(fault, folder, trials, 2, evaluator) as process:
                if fault is inject_nothing:
                    time.sleep(draw.uniform(0.02, 0.9))
                    os.kill(process, signal.SIGKILL)
            kill_count += 1
            partial_count += len(query_store(folder, PARTIAL_QUERY))
            now = set(query_store(folder, CANDIDATES_QUERY))
            lost, stored_rows = lost + len(stored_rows - now), now
        with driver_process(inject_nothing, folder, trials, 2, evaluator):
            pass
        lost += len(stored_rows - set(query_store(folder, CANDIDATES_QUERY)))
        stored_trials = query_store(folder, TRIALS_QUERY)
        running += sum(state == "running" for _, state, _ in stored_trials)
        wrong += abs(len(stored_trials) - trials)
        keys = [_remove_seed(config) for _, _, config in stored_trials]
        duplicated += len(keys) - len(set(keys))
        # The first start creates the store and is not a restart.
        lines = (folder / "stalls").read_text().splitlines()[1:]
        stalls += [(float(seconds), float(waited)) for seconds, waited in map(str.split, lines)]
        time.sleep(0.5)
        processes += len(evaluator.living_processes())
    # What else runs on the machine delays a restart, but is no property of the driver. Without a second start, the
    # driver could not be resumed.
    slowest = max((seconds - waited for seconds, waited in stalls), default=math.inf)
    longest = max((seconds for seconds, _ in stalls), default=math.inf)
    measured = (
        f"{kill_count} kills in {searches} searches: {lost} lost, {duplicated} duplicated, "
        f"{partial_count} ended without all of their candidates, {running} left running, "
        f"{wrong} trials too many or too few, {processes} processes left; restart stall at most {slowest:.2f} s, "
        f"{longest:.2f} s with waiting for a processor"
    )
    held = not (lost or duplicated or partial_count or running or processes or wrong) and slowest <= 2
    expected = "0 lost, 0 duplicated, 0 left running, exactly N trials, stall <= 2 s on a free processor"
    return FaultResult(expected, measured, held)


def _remove_seed(config: str) -> str:
    """Return a config as JSON text without its seed, because a duplicate has another seed."""
    return json.dumps({key: value for key, value in json.loads(config).items() if key != "seed"}, sort_keys=True)


def interrupt_search(runs: Path) -> FaultResult:
    """Row 5: Ctrl-C once and twice, and SIGTERM, in the command line with real trials; then the run is resumed."""
    small = ["search.trials=6", "search.workers=2", "fit.adamw.epochs=12", "teacher.fit={adamw: {epochs: 12}}"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}"]
    words = [sys.executable, "-m", "autocompress.cli.app", "search", "digits", "--runs", str(runs), "--resume"]
    words += [word for setting in small for word in ("--set", setting)]
    messages, held, before = [], True, 0
    for signals in ([signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM], []):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while signals and process.poll() is None and len(query_store(runs / "digits", CANDIDATES_QUERY)) <= before:
            time.sleep(0.05)
        sent = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        process.communicate()
        seconds = time.monotonic() - sent
        before = len(query_store(runs / "digits", CANDIDATES_QUERY))
        page = (runs / "digits" / "report.html").exists()
        name = " + ".join(number.name for number in signals) or "resumed"
        messages.append(f"{name}: exit {process.returncode}" + (f" after {seconds:.1f} s" if signals else ""))
        held &= page and process.returncode == (128 + signals[0] if signals else 0)
    left = query_store(runs / "digits", "SELECT count(*) FROM ac_trials WHERE state IN ('running', 'failed')")[0][0]
    messages.append(f"{left} trials running or failed")
    return FaultResult("exit 130 / 143, page written, resumable", "; ".join(messages), held and not left)


def kill_searches(runs: Path, kills: int = 100, trials: int = 30, seed: int = 0) -> FaultResult:
    """Row 36: searches of digits with real trials, killed at random times and resumed from the command line."""
    small = [f"search.trials={trials}", "search.minutes=null", "search.workers=2", "fit.adamw.epochs=9"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}", "teacher.fit={adamw: {epochs: 9}}"]
    small += ["student={cnn: {width: {low: 4, high: 24}, depth: [1, 2]}}"]
    words = [sys.executable, "-m", "autocompress.cli.app", "search", "digits", "--runs", str(runs), "--resume"]
    words += [word for setting in small for word in ("--set", setting)]
    draw = random.Random(seed)
    kill_count = searches = ended = 0
    faults: Counter[str] = Counter(
        dict.fromkeys(("lost", "duplicated", "incomplete", "without weights", "wrong", "left"), 0)
    )
    left: list[str] = []
    while kill_count < kills:
        folder, is_ended, rows = runs / f"digits{searches}", False, set[tuple[Any, ...]]()
        searches += 1
        while not is_ended:
            # Counted in results, because the seconds of a start depend on what else the machine does.
            at = (draw.choice((0, 0, 1, 1, 2, 3)), draw.uniform(0, 1.5)) if kill_count < kills else None
            code = _search_and_kill([*words, "--name", folder.name], folder, at)
            kill_count += code == -signal.SIGKILL
            is_ended = code != -signal.SIGKILL
            now = set(query_store(folder, "SELECT id, config, costs, checkpoint FROM ac_candidates"))
            faults["lost"] += len(rows - now)
            faults["incomplete"] += len(query_store(folder, PARTIAL_QUERY))
            faults["without weights"] += sum(
                not (folder / "checkpoints" / f"{name}.safetensors").is_file() for *_, name in now if name
            )
            faults["wrong"] += code not in (0, -signal.SIGKILL)
            rows = now
            # The next driver starts at once, beside what is left of this one, or after it.
            if is_ended or draw.random() < 0.5:
                left += list_lasting_processes("environ", str(runs))
                faults["left"] = len(left)
            print(f"{kill_count} kills, {len(now)} candidates: {dict(faults)}", file=sys.stderr, flush=True)
        # Without the trial that measures what distillation brings, which repeats one.
        stored = query_store(folder, f"{TRIALS_QUERY} AND role = 'search'")
        keys = [_remove_seed(config) for _, _, config in stored]
        faults["duplicated"] += len(keys) - len(set(keys))
        faults["wrong"] += abs(len(stored) - trials) + sum(state == "running" for _, state, _ in stored)
        ended += sum(state in ("complete", "stopped") for _, state, _ in stored)
    counts = ", ".join(f"{count} {name}" for name, count in faults.items())
    measured = (
        f"{kill_count} kills in {searches} searches of {trials} trials, {ended} of them ended by themselves: {counts}"
    ) + "".join(f"; {command[:150]}" for command in left[:3])
    return FaultResult("0 lost, 0 duplicated, exactly N trials, no process left", measured, not any(faults.values()))


def _search_and_kill(words: list[str], folder: Path, at: tuple[int, float] | None) -> int:
    """Run a search, kill its driver so many results and seconds after it locks its folder; return the exit code."""
    # The variable marks the processes of the search, which have no other name in common.
    environment = {**os.environ, "RUNS": str(folder.parent)}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    owner, count = folder / ".driver", "SELECT count(*) FROM ac_candidates WHERE id LIKE '%c0'"
    before = query_store(folder, count)
    while at is not None and process.poll() is None:
        results, seconds = at
        is_searching = owner.is_file() and owner.read_text() == str(process.pid)
        if is_searching and sum(n for (n,) in query_store(folder, count)) >= sum(n for (n,) in before) + results:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            break
        time.sleep(0.05)
    return process.wait()


def start_second_driver(folder: Path) -> FaultResult:
    """Row 6: a second driver on the same run folder."""
    from autocompress.engine.preflight import check_run_folder
    from autocompress.engine.spec import parse_spec
    from autocompress.errors import RunFolderError

    message, seconds = "not refused", 0.0
    with driver_process(inject_nothing, folder, 1000, 1, MockEvaluator(folder / "log", 0.2)) as process:
        while not query_store(folder, TRIALS_QUERY):
            time.sleep(0.05)
        started = time.monotonic()
        try:
            check_run_folder(folder, parse_spec(SPEC, "x").spec, resume=True)
        except RunFolderError as refusal:
            message, seconds = str(refusal).replace(str(folder), "FOLDER"), time.monotonic() - started
        os.kill(process, signal.SIGKILL)
    held = f"in use by process {process}" in message and seconds <= 1
    return FaultResult(
        "refused in 1 s, naming the process", f"after {seconds:.3f} s: {message.replace(str(process), 'N')}", held
    )


def repeat_interruptions(folder: Path, trials: int = 6) -> FaultResult:
    """Row 30: a trial that kills its driver every time."""
    evaluator = MockEvaluator(folder / "log", 0.0)
    starts, deadly = 0, 2
    while starts < 8 and sum(state == "complete" for _, state, _ in query_store(folder, TRIALS_QUERY)) < trials - 1:
        starts += 1
        with driver_process(partial(kill_driver_at, deadly), folder, trials, 1, evaluator, "search.promotion=always"):
            pass
    ended = {number: state for number, state, _ in query_store(folder, TRIALS_QUERY)}
    reasons = query_store(folder, "SELECT number, reason, attempts FROM ac_trials WHERE state = 'failed'")
    measured = f"{starts} starts; {len(ended)} of {trials} trials ended; failed (trial, reason, attempts): {reasons}"
    held = len(ended) == trials and [(number, attempts) for number, _, attempts in reasons] == [(deadly, 2)]
    return FaultResult("failed as interrupted after 2 attempts, the search ends", measured, held and starts == 3)


def kill_driver_at(number: int) -> None:
    """Let this process kill itself when the result of a trial arrives."""
    from autocompress.engine.driver import Driver

    original = Driver.tell

    def tell(self: Driver, job: Job, result: TrialResult) -> None:
        if job.number == number and result.state is not State.FAILED:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, job, result)

    Driver.tell = tell  # type: ignore[method-assign]


def exhaust_space(folder: Path, trials: int = 40) -> FaultResult:
    """Row 31: more trials than the search space has configurations, in two sessions."""
    evaluator = MockEvaluator(folder / "log", 0.0)
    few = ("student.cnn={width: [4, 8, 16], depth: [1, 2]}", "distill=none", "search.sampler=random")
    for count in (4, trials):
        with driver_process(inject_nothing, folder, count, 1, evaluator, *few):
            pass
    keys = [_remove_seed(config) for _, _, config in query_store(folder, TRIALS_QUERY)]
    measured = f"{len(keys)} trials of {len(set(keys))} configurations, in a space of 6"
    return FaultResult("each configuration once, the search ends", measured, len(keys) == len(set(keys)) == 6)


def compare_tables(root: Path, trials: int = 30, kills: int = 5) -> FaultResult:
    """Row 21: an uninterrupted search and one that is killed and resumed, with one worker."""
    from autocompress.store.run_store import RunStore

    def read_table(folder: Path) -> str:
        with RunStore.read(folder) as store:
            return str(store.candidate_table().to_csv())

    for name in ("whole", "killed"):
        (root / name).mkdir()
    with driver_process(inject_nothing, root / "whole", trials, 1, MockEvaluator(root / "whole" / "log", 0.0)):
        pass
    points = [point for point in POINTS if "job" in point or "result" in point][:kills]
    for point in points:
        fault = build_kill(point, 12 if "rows of" in point else 6)
        with driver_process(fault, root / "killed", trials, 1, MockEvaluator(root / "killed" / "log", 0.0)):
            pass
    left = trials - len(query_store(root / "killed", TRIALS_QUERY))
    with driver_process(inject_nothing, root / "killed", trials, 1, MockEvaluator(root / "killed" / "log", 0.0)):
        pass
    same = read_table(root / "whole") == read_table(root / "killed")
    measured = f"killed {len(points)} times, {left} trials left after the last: " + ("equal" if same else "different")
    return FaultResult("the same table", measured, same)
