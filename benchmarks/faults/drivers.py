"""What is done to drivers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.harm import (
    CANDIDATES,
    POINTS,
    SPEC,
    TRAININGS,
    Figure,
    driver_process,
    killing,
    nothing,
    rows,
)
from benchmarks.pretend import Pretend


def killed_drivers(place: Path, kills: int = 41, trials: int = 30, points: Sequence[str] = tuple(POINTS)) -> Figure:
    """Row 1: a driver that is killed, at random instants and at named points."""
    draw = random.Random(0)
    done, searches = 0, 0
    lost = duplicated = running = processes = wrong = 0
    stalls: list[float] = []
    named = list(points)
    while done < kills + len(points):
        folder, searches = place / str(searches), searches + 1
        folder.mkdir()
        pretend = Pretend(folder / "log", 0.03)
        known: set[tuple[Any, ...]] = set()
        while done < kills + len(points):
            ended = {number for number, state, _ in rows(folder, TRAININGS) if state not in ("running", "paused")}
            if len(ended) == trials:
                break
            harm = killing(named.pop(0), draw.randint(1, 3)) if named else nothing
            with driver_process(harm, folder, trials, 2, pretend) as process:
                if harm is nothing:
                    time.sleep(draw.uniform(0.02, 0.9))
                    os.kill(process, signal.SIGKILL)
            done += 1
            now = set(rows(folder, CANDIDATES))
            lost, known = lost + len(known - now), now
        with driver_process(nothing, folder, trials, 2, pretend):
            pass
        lost += len(known - set(rows(folder, CANDIDATES)))
        trainings = rows(folder, TRAININGS)
        running += sum(state == "running" for _, state, _ in trainings)
        wrong += abs(len(trainings) - trials)
        keys = [_unseeded(config) for _, _, config in trainings]
        duplicated += len(keys) - len(set(keys))
        # The first is no restart: it makes the store.
        stalls += [float(line) for line in (folder / "stalls").read_text().split()][1:]
        time.sleep(0.5)
        processes += len(pretend.alive())
    found = (
        f"{done} kills in {searches} searches: {lost} lost, {duplicated} duplicated, {running} left running, "
        f"{wrong} trials too many or too few, {processes} processes left; restart stall at most {max(stalls):.2f} s"
    )
    held = not (lost or duplicated or running or processes or wrong) and max(stalls) <= 2
    return Figure("0 lost, 0 duplicated, 0 left running, exactly N trials, stall <= 2 s", found, held)


def _unseeded(config: str) -> str:

    return json.dumps({key: value for key, value in json.loads(config).items() if key != "seed"}, sort_keys=True)


def interrupted(place: Path) -> Figure:
    """Row 5: Ctrl-C once and twice, and SIGTERM, on the command line with real trainings; then the run goes on."""
    small = ["search.trials=6", "search.workers=2", "fit.adamw.epochs=12", "teacher.fit={adamw: {epochs: 12}}"]
    small += ["teacher.student={cnn: {width: 12, depth: 1}}"]
    words = [sys.executable, "-m", "autocompress.cli.app", "search", "digits", "--runs", str(place), "--resume"]
    words += [word for setting in small for word in ("--set", setting)]
    found, held, before = [], True, 0
    for signals in ([signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM], []):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while signals and process.poll() is None and len(rows(place / "digits", CANDIDATES)) <= before:
            time.sleep(0.05)
        sent = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        process.communicate()
        took = time.monotonic() - sent
        before = len(rows(place / "digits", CANDIDATES))
        page = (place / "digits" / "report.html").exists()
        name = " + ".join(number.name for number in signals) or "resumed"
        found.append(f"{name}: exit {process.returncode}" + (f" after {took:.1f} s" if signals else ""))
        held &= page and process.returncode == (128 + signals[0] if signals else 0)
    left = rows(place / "digits", "SELECT count(*) FROM ac_trials WHERE state IN ('running', 'failed')")[0][0]
    found.append(f"{left} trials running or failed")
    return Figure("exit 130 / 143, page written, resumable", "; ".join(found), held and not left)


def second_driver(place: Path) -> Figure:
    """Row 6: a second driver on the same folder."""
    from autocompress.engine.preflight import check_run_folder
    from autocompress.engine.spec import parse_spec
    from autocompress.errors import RunFolderError

    said, took = "not refused", 0.0
    with driver_process(nothing, place, 1000, 1, Pretend(place / "log", 0.2)) as process:
        while not rows(place, TRAININGS):
            time.sleep(0.05)
        begun = time.monotonic()
        try:
            check_run_folder(place, parse_spec(SPEC, "x").spec, resume=True)
        except RunFolderError as refusal:
            said, took = str(refusal).replace(str(place), "FOLDER"), time.monotonic() - begun
        os.kill(process, signal.SIGKILL)
    held = f"in use by process {process}" in said and took <= 1
    return Figure("refused in 1 s, naming the process", f"after {took:.3f} s: {said.replace(str(process), 'N')}", held)


def same_table(place: Path, trials: int = 30, kills: int = 5) -> Figure:
    """Row 21: a search in one go and one that is killed and resumed, with one worker."""
    from autocompress.store.run_store import RunStore

    def table(folder: Path) -> str:
        with RunStore.read(folder) as study:
            return str(study.candidates().to_csv())

    for name in ("whole", "killed"):
        (place / name).mkdir()
    with driver_process(nothing, place / "whole", trials, 1, Pretend(place / "whole" / "log", 0.0)):
        pass
    points = [point for point in POINTS if "job" in point or "result" in point][:kills]
    for point in points:
        harm = killing(point, 12 if "rows of" in point else 6)
        with driver_process(harm, place / "killed", trials, 1, Pretend(place / "killed" / "log", 0.0)):
            pass
    left = trials - len(rows(place / "killed", TRAININGS))
    with driver_process(nothing, place / "killed", trials, 1, Pretend(place / "killed" / "log", 0.0)):
        pass
    same = table(place / "whole") == table(place / "killed")
    found = f"killed {len(points)} times, {left} trainings to go after the last: " + ("equal" if same else "different")
    return Figure("the same table", found, same)
