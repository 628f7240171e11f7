"""Faults of the store: damage, a full disk, and the growth over many trials."""

import os
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from autocompress.core.run_info import RunInfo
from benchmarks.faults.injection import OBJECTIVES, SPEC, TRIALS_QUERY, FaultResult, drive, query_store
from benchmarks.mock_trials import MockEvaluator, mock_result


def damage_store(root: Path, cuts: int = 20, flips: int = 200) -> FaultResult:
    """Row 7: a truncated store, one with flipped bits, and one whose pages have lost a row."""
    from autocompress.errors import AutocompressError
    from autocompress.store.run_store import DATABASE, RunStore

    def read_content(folder: Path) -> list[Any]:
        with RunStore.read(folder) as store:
            return [
                store.candidate_table().to_csv(),
                store.trial_table().to_csv(),
                store.run_info(),
                list(store.read_notes()),
            ]

    drive(root, 20, 1, MockEvaluator(root / "log", 0.0))
    intact = (root / DATABASE).read_bytes()
    expected = read_content(root)
    draw = random.Random(0)
    damaged = [intact[: draw.randrange(len(intact))] for _ in range(cuts)]
    for _ in range(flips):
        position = draw.randrange(len(intact))
        damaged.append(
            intact[:position] + bytes([intact[position] ^ (1 << draw.randrange(8))]) + intact[position + 1 :]
        )
    dropped = list(_drop_rows(intact))
    damaged += dropped
    counts = {"refused with what to do": 0, "read as it was": 0, "silently wrong": 0, "crashed": 0}
    for number, data in enumerate(damaged):
        folder = root / str(number)
        folder.mkdir()
        (folder / DATABASE).write_bytes(data)
        try:
            measured = "read as it was" if read_content(folder) == expected else "silently wrong"
        except AutocompressError as refusal:
            has_advice = any(word in str(refusal) for word in ("recover", "start anew", "point at"))
            measured = "refused with what to do" if has_advice else "crashed"
        except Exception:
            measured = "crashed"
        counts[measured] += 1
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    held = not counts["silently wrong"] and not counts["crashed"]
    return FaultResult(
        "no silent wrong value", f"{cuts} cut, {flips} flipped, {len(dropped)} with a row less: {shown}", held
    )


def _drop_rows(content: bytes) -> Iterator[bytes]:
    """Yield copies of a database, each with one row less in the header of one page of a table.

    All other rows are whole, so only a check of the structure sees the loss.
    """
    size = int.from_bytes(content[16:18], "big")
    for start in range(0, len(content), size):
        # The first page begins with the header of the file; byte 13 marks a leaf of a table.
        at = start or 100
        count = int.from_bytes(content[at + 3 : at + 5], "big")
        if content[at] == 13 and count:
            yield content[: at + 3] + (count - 1).to_bytes(2, "big") + content[at + 5 :]


@dataclass(frozen=True)
class Growth:
    """What a search with random proposals takes.

    Attributes:
        trials: Number of started trials.
        memory: Bytes of the driver's memory for each trial after the first quarter.
        store: Bytes of the closed store for each trial.
        tells: Milliseconds of processor time to tell a result, after a tenth of the trials and at the end.
        seconds: Milliseconds until a result is on disk, at the end. All times are medians of 50.
    """

    trials: int
    memory: float
    store: float
    tells: tuple[float, float]
    seconds: float


def run_many_trials(folder: Path, trials: int = 3000) -> FaultResult:
    """Row 23: memory, store and time of the driver over many random trials; `benchmarks.growth` has all samplers."""
    # In a new process, because memory that earlier rows freed would hide the growth.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        growth = pool.submit(_measure_growth, folder, trials).result()
    first, last = growth.tells
    measured = (
        f"{growth.trials} trials: {growth.memory:,.0f} bytes of memory and {growth.store:,.0f} bytes of the store a "
        f"trial; tell: {first:.1f} ms of processor time after a tenth, {last:.1f} ms at the end, "
        f"{growth.seconds:.1f} ms with the disk"
    )
    held = max(growth.memory, growth.store) < 4000 and last < 2 * first and last < 50
    return FaultResult("memory and store below 4,000 bytes a trial, tell flat and below 50 ms", measured, held)


def _measure_growth(folder: Path, trials: int) -> Growth:
    import gc

    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler.optuna import OptunaSampler
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.store.run_store import DATABASE, RunStore

    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.sampler=random"])
    store = RunStore.create(folder, RunInfo(name="x"))
    proposer = OptunaSampler(store, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])
    driver = Driver(store, open_space(source), source.spec.search, proposer, OBJECTIVES, {})
    trial_count, memory = 0, dict[int, int]()
    tells: dict[int, list[tuple[float, float]]] = {}
    while (job := driver.ask()) is not None:
        trial_count += job.base is None and not job.rung
        if trial_count in (trials // 4, trials) and trial_count not in memory:
            # Measured before the search ends, because the final export imports another library.
            gc.collect()
            memory[trial_count] = _resident_bytes()
        started = time.process_time(), time.perf_counter()
        driver.tell(job, mock_result(job))
        row = (time.process_time() - started[0], time.perf_counter() - started[1])
        tells.setdefault(trial_count, []).append(row)
    driver.close()
    store.close()
    after_tenth = [row for number in range(trials // 10, trials) for row in tells.get(number, [])][:50]
    at_end = [row for number in range(trials) for row in tells.get(number + 1, [])][-50:]
    return Growth(
        trial_count,
        (memory[trials] - memory[trials // 4]) / (trials - trials // 4),
        (folder / DATABASE).stat().st_size / trials,
        (statistics.median(row[0] for row in after_tenth) * 1e3, statistics.median(row[0] for row in at_end) * 1e3),
        statistics.median(row[1] for row in at_end) * 1e3,
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_checkpoints(folder: Path, trials: int = 500) -> FaultResult:
    """Row 24: files after many trials."""
    evaluator = MockEvaluator(folder / "log", 0.0)
    drive(folder, trials, 2, evaluator, "search.sampler=random")
    referenced = {
        name for (name,) in query_store(folder, "SELECT DISTINCT checkpoint FROM ac_candidates WHERE checkpoint != ''")
    }
    stored = {path.stem for path in (folder / "checkpoints").iterdir()}
    paused = len(list((folder / "paused").iterdir()))
    ended = len([state for _, state, _ in query_store(folder, TRIALS_QUERY) if state == "complete"])
    measured = f"{trials} trials, {ended} complete: {len(stored)} files of weights, {paused} of paused trials"
    return FaultResult(
        "only files that the store refers to", measured, stored == referenced and not paused and len(stored) == ended
    )
