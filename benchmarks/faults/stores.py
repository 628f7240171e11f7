"""What is done to stores, and what many trials leave there."""

import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from autocompress.core.run_info import RunInfo
from benchmarks.faults.harm import OBJECTIVES, SPEC, TRAININGS, Figure, drive, forked, rows
from benchmarks.pretend import Pretend, outcome


def damaged_store(place: Path, cuts: int = 20, flips: int = 200) -> Figure:
    """Row 7: a store whose tail is cut off, and one with flipped bytes."""
    from autocompress.errors import AutocompressError
    from autocompress.store.run_store import DATABASE, RunStore

    def content(folder: Path) -> list[Any]:
        with RunStore.read(folder) as study:
            return [study.candidates().to_csv(), study.trials().to_csv(), study.run_info(), list(study.notes())]

    drive(place, 20, 1, Pretend(place / "log", 0.0))
    intact = (place / DATABASE).read_bytes()
    expected = content(place)
    draw = random.Random(0)
    harmed = [intact[: draw.randrange(len(intact))] for _ in range(cuts)]
    for _ in range(flips):
        where = draw.randrange(len(intact))
        harmed.append(intact[:where] + bytes([intact[where] ^ (1 << draw.randrange(8))]) + intact[where + 1 :])
    counts = {"refused with what to do": 0, "read as it was": 0, "silently wrong": 0, "crashed": 0}
    for number, data in enumerate(harmed):
        folder = place / str(number)
        folder.mkdir()
        (folder / DATABASE).write_bytes(data)
        try:
            found = "read as it was" if content(folder) == expected else "silently wrong"
        except AutocompressError as refusal:
            says = any(word in str(refusal) for word in ("recover", "start anew", "point at"))
            found = "refused with what to do" if says else "crashed"
        except Exception:
            found = "crashed"
        counts[found] += 1
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    held = not counts["silently wrong"] and not counts["crashed"]
    return Figure("no silent wrong value", f"{cuts} cut, {flips} flipped: {told}", held)


def full_disk(place: Path) -> Figure:
    """Row 8: no space left, as a limit on the size of files shows it."""
    import resource

    from autocompress.errors import StorageError
    from autocompress.store.run_store import RunStore

    def harm() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    process = forked()
    if not process:
        code = 1
        try:
            harm()
            drive(place, 500, 1, Pretend(place / "log", 0.0), "search.sampler=random")
        except StorageError as fault:
            (place.parent / "said").write_text(str(fault))
            code = fault.exit_code
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with RunStore.read(place) as study:
        trials = len(study.trials())
    said = (place.parent / "said").read_text().replace(str(place), "FOLDER") if code == 3 else "nothing"
    found = f"exit {code}, {trials} trials readable, it said: {said}"
    return Figure("clean stop, exit 3, store readable", found, code == 3 and trials > 0 and "space" in said)


def many_trials(place: Path, trials: int = 2000) -> Figure:
    """Row 23: memory and time of the driver over many trials, proposed at random: TPE's own time is in growth."""
    # In a process of its own: one that has done other rows has memory to spare.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        begun, each, last = pool.submit(_grown, place, trials).result()
    found = f"{begun} trainings: {each / 1024:.1f} KiB a trial, tell {last:.1f} ms at the end (median of 50)"
    return Figure("below 5 KB a trial, tell below 50 ms", found, each < 5000 and last < 50)


def _grown(place: Path, trials: int) -> tuple[int, float, float]:
    """Return how many trainings were begun, the bytes that each took, and the milliseconds of the last results."""
    import gc

    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler.optuna import OptunaSampler
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.store.run_store import RunStore

    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.sampler=random"])
    study = RunStore.create(place, RunInfo(name="x"))
    proposer = OptunaSampler(study, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])
    driver = Driver(study, open_space(source), source.spec.search, proposer, OBJECTIVES, {})
    begun, tells, at_first, at_last = 0, [], 0, 0
    while (job := driver.ask()) is not None:
        begun += job.base is None and not job.rung
        if begun == trials // 4 and not at_first:
            gc.collect()
            at_first = _resident()
        if begun == trials and not at_last:
            # Before the search ends: what is written then, once, imports another library.
            gc.collect()
            at_last = _resident()
        started = time.perf_counter()
        driver.tell(job, outcome(job))
        tells.append(time.perf_counter() - started)
    each = (at_last - at_first) / (begun - trials // 4)
    study.close()
    return begun, each, sorted(tells[-50:])[25] * 1e3


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def checkpoints(place: Path, trials: int = 500) -> Figure:
    """Row 24: files after many trials."""
    pretend = Pretend(place / "log", 0.0)
    drive(place, trials, 2, pretend, "search.sampler=random")
    named = {name for (name,) in rows(place, "SELECT DISTINCT checkpoint FROM ac_candidates WHERE checkpoint != ''")}
    there = {path.stem for path in (place / "checkpoints").iterdir()}
    paused = len(list((place / "paused").iterdir()))
    ended = len([state for _, state, _ in rows(place, TRAININGS) if state == "complete"])
    found = f"{trials} trainings, {ended} to their end: {len(there)} files of weights, {paused} of paused trainings"
    return Figure("files of what is kept, and no others", found, there == named and not paused and len(there) == ended)
