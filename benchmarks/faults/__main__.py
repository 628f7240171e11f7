"""Inject the faults, print one line per row and write the table."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import benchmarks.faults
from benchmarks.faults.drivers import (
    compare_tables,
    exhaust_space,
    interrupt_search,
    kill_drivers,
    repeat_interruptions,
    start_second_driver,
)
from benchmarks.faults.injection import FaultResult
from benchmarks.faults.mutants import MUTANTS, format_mutants
from benchmarks.faults.power import lose_power
from benchmarks.faults.stores import count_checkpoints, damage_store, fill_disk, run_many_trials
from benchmarks.faults.workers import (
    check_bad_results,
    exhaust_memory,
    fail_all_trials,
    hang_trials,
    kill_workers,
    repeat_trials,
)

ROWS: dict[int, Callable[[Path], FaultResult]] = {
    1: kill_drivers,
    2: kill_workers,
    3: exhaust_memory,
    4: hang_trials,
    5: interrupt_search,
    6: start_second_driver,
    7: damage_store,
    8: fill_disk,
    9: check_bad_results,
    15: fail_all_trials,
    20: repeat_trials,
    21: compare_tables,
    23: run_many_trials,
    24: count_checkpoints,
    29: lose_power,
    30: repeat_interruptions,
    31: exhaust_space,
}


def main() -> None:
    """Run the rows, print one line each and write the table."""
    from benchmarks.common import describe_benchmark

    parser = argparse.ArgumentParser(description=benchmarks.faults.__doc__)
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--mutants", action="store_true", help="take each guard out in a copy: a row must fail")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/faults.md"))
    arguments = parser.parse_args()
    if arguments.mutants:
        with TemporaryDirectory() as name:
            table = format_mutants(MUTANTS, Path(name))
        lines = ["# Mutants of the fault benchmark", "", "`python -m benchmarks.faults --mutants`", "", *table, ""]
        arguments.out.with_name("mutants.md").write_text("\n".join(lines))
        return
    lines = ["# Fault injection", "", describe_benchmark(benchmarks.faults.__doc__), ""]
    lines += ["`python -m benchmarks.faults`", "", "| row | fault | requirement | measured | passed | seconds |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in arguments.rows:
        started = time.monotonic()
        with TemporaryDirectory() as name:
            folder = Path(name) / "run"
            folder.mkdir()
            result = ROWS[row](folder)
        fault = (ROWS[row].__doc__ or "").partition(": ")[2].rstrip(".")
        seconds = time.monotonic() - started
        passed = "yes" if result.passed else "**no**"
        lines.append(f"| {row} | {fault} | {result.expected} | {result.measured} | {passed} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
