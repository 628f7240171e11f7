"""Inject the faults, print one line per row and write the table."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import benchmarks.faults
from benchmarks.faults.caches import damage_teacher_cache
from benchmarks.faults.cluster import fill_object_store, kill_ray_workers
from benchmarks.faults.drivers import (
    compare_tables,
    exhaust_space,
    interrupt_search,
    kill_drivers,
    kill_searches,
    repeat_interruptions,
    start_second_driver,
)
from benchmarks.faults.environment import (
    exhaust_system,
    fill_disk,
    jump_clock,
    lose_folder,
    refuse_locks,
    stop_worker,
)
from benchmarks.faults.hostile import (
    flip_artifact_bytes,
    load_declared_sizes,
    load_hostile_models,
    open_hostile_runs,
    read_hostile_specs,
    show_hostile_names,
)
from benchmarks.faults.injection import CREATION, FaultResult, use_light_workers
from benchmarks.faults.mutants import MUTANTS, format_mutants
from benchmarks.faults.numerics import (
    distill_extremes,
    prune_few_channels,
    prune_untraceable,
    quantize_extremes,
    recommend_dead_models,
)
from benchmarks.faults.power import lose_power
from benchmarks.faults.stores import count_checkpoints, damage_store, run_many_trials
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
    10: prune_few_channels,
    11: recommend_dead_models,
    12: quantize_extremes,
    13: distill_extremes,
    14: prune_untraceable,
    15: fail_all_trials,
    16: load_hostile_models,
    17: read_hostile_specs,
    18: show_hostile_names,
    19: flip_artifact_bytes,
    20: repeat_trials,
    21: compare_tables,
    22: kill_ray_workers,
    23: run_many_trials,
    24: count_checkpoints,
    25: open_hostile_runs,
    26: load_declared_sizes,
    27: damage_teacher_cache,
    28: lose_folder,
    29: lose_power,
    30: repeat_interruptions,
    31: exhaust_space,
    32: exhaust_system,
    33: jump_clock,
    34: stop_worker,
    35: refuse_locks,
    36: kill_searches,
    37: fill_object_store,
}
#: Rows in the smallest size that fails without the guard: the same functions, for the mutants and the test suite.
SMALL_ROWS: dict[int, Callable[[Path], FaultResult]] = {
    **ROWS,
    1: partial(kill_drivers, kills=0, trials=8, points=[CREATION, "among the rows of a result"]),
    2: partial(kill_workers, trials=6, killed=2),
    7: partial(damage_store, cuts=3, flips=40),
    9: partial(check_bad_results, tables=50),
    23: partial(run_many_trials, trials=400),
    24: partial(count_checkpoints, trials=20),
    29: partial(lose_power, points=25, trials=4),
    30: partial(repeat_interruptions, trials=4),
    36: partial(kill_searches, kills=1, trials=2),
}


def main() -> None:
    """Run the rows, print one line each and write the table."""
    from benchmarks.common import describe_benchmark

    parser = argparse.ArgumentParser(description=benchmarks.faults.__doc__)
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--small", action="store_true", help="the smallest size that can fail")
    parser.add_argument("--mutants", action="store_true", help="take each guard out in a copy: a row must fail")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/faults.md"))
    arguments = parser.parse_args()
    if arguments.mutants:
        with TemporaryDirectory() as name:
            table = format_mutants(MUTANTS, Path(name))
        lines = ["# Mutants of the fault benchmark", "", "`python -m benchmarks.faults --mutants`", "", *table, ""]
        arguments.out.with_name("mutants.md").write_text("\n".join(lines))
        return
    use_light_workers()
    lines = ["# Fault injection", "", describe_benchmark(benchmarks.faults.__doc__), ""]
    lines += ["`python -m benchmarks.faults`", "", "| row | fault | requirement | measured | passed | seconds |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in arguments.rows:
        started = time.monotonic()
        with TemporaryDirectory() as name:
            folder = Path(name) / "run"
            folder.mkdir()
            try:
                result = (SMALL_ROWS if arguments.small else ROWS)[row](folder)
            except Exception as error:
                # The other rows still have figures.
                result = FaultResult("", f"raised {type(error).__name__}: {str(error).splitlines()[:1]}", False)
        fault = (ROWS[row].__doc__ or "").partition(": ")[2].rstrip(".")
        seconds = time.monotonic() - started
        passed = "yes" if result.passed else "**no**"
        lines.append(f"| {row} | {fault} | {result.expected} | {result.measured} | {passed} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join([*lines, ""]))
