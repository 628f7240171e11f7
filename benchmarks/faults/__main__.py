"""Do the harm, print one line a row, and write the table."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import benchmarks.faults
from benchmarks.faults.drivers import interrupted, killed_drivers, same_table, second_driver
from benchmarks.faults.harm import Figure
from benchmarks.faults.stores import checkpoints, damaged_store, full_disk, many_trials
from benchmarks.faults.workers import bad_results, hopeless, hung_trials, killed_workers, out_of_memory, run_again

ROWS: dict[int, Callable[[Path], Figure]] = {
    1: killed_drivers,
    2: killed_workers,
    3: out_of_memory,
    4: hung_trials,
    5: interrupted,
    6: second_driver,
    7: damaged_store,
    8: full_disk,
    9: bad_results,
    15: hopeless,
    20: run_again,
    21: same_table,
    23: many_trials,
    24: checkpoints,
}


def main() -> None:
    """Print one line a row, and write the table."""
    from benchmarks.keeping import about

    parser = argparse.ArgumentParser(description=benchmarks.faults.__doc__)
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/faults.md"))
    asked = parser.parse_args()
    lines = ["# What must hold whatever goes wrong", "", about(benchmarks.faults.__doc__), ""]
    lines += ["`python -m benchmarks.faults`", "", "| row | harm | what must hold | measured | held | seconds |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in asked.rows:
        begun = time.monotonic()
        with TemporaryDirectory() as folder:
            place = Path(folder) / "run"
            place.mkdir()
            figure = ROWS[row](place)
        harm = (ROWS[row].__doc__ or "").partition(": ")[2].rstrip(".")
        took = time.monotonic() - begun
        held = "yes" if figure.held else "**no**"
        lines.append(f"| {row} | {harm} | {figure.wanted} | {figure.found} | {held} | {took:.0f} |")
        print(lines[-1], flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
