"""Faults of the store: damage, a full disk, and the growth over many trials."""

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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


def run_many_trials(folder: Path, trials: int = 2000) -> FaultResult:
    """Row 23: memory and time of the driver over many random trials; `benchmarks.growth` measures the samplers."""
    # In a new process, because memory that earlier rows freed would hide the growth.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        trial_count, bytes_per_trial, last = pool.submit(_measure_growth, folder, trials).result()
    measured = (
        f"{trial_count} trials: {bytes_per_trial / 1024:.1f} KiB a trial, tell {last:.1f} ms at the end (median of 50)"
    )
    return FaultResult("below 5 KB a trial, tell below 50 ms", measured, bytes_per_trial < 5000 and last < 50)


def _measure_growth(folder: Path, trials: int) -> tuple[int, float, float]:
    """Return the number of started trials, bytes per trial, and milliseconds per result at the end."""
    import gc

    from autocompress.engine.driver import Driver
    from autocompress.engine.sampler.optuna import OptunaSampler
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.store.run_store import RunStore

    source = parse_spec(SPEC, "x", [f"search.trials={trials}", "search.sampler=random"])
    store = RunStore.create(folder, RunInfo(name="x"))
    proposer = OptunaSampler(store, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])
    driver = Driver(store, open_space(source), source.spec.search, proposer, OBJECTIVES, {})
    trial_count, first_bytes, last_bytes = 0, 0, 0
    tells: list[float] = []
    while (job := driver.ask()) is not None:
        trial_count += job.base is None and not job.rung
        if trial_count == trials // 4 and not first_bytes:
            gc.collect()
            first_bytes = _resident_bytes()
        if trial_count == trials and not last_bytes:
            # Measured before the search ends, because the final export imports another library.
            gc.collect()
            last_bytes = _resident_bytes()
        started = time.perf_counter()
        driver.tell(job, mock_result(job))
        tells.append(time.perf_counter() - started)
    bytes_per_trial = (last_bytes - first_bytes) / (trial_count - trials // 4)
    store.close()
    return trial_count, bytes_per_trial, sorted(tells[-50:])[25] * 1e3


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
