"""What a warm start saves: ``python -m benchmarks.warm_start [--space digits] [--seeds 3] [--minutes 1.5]``.

For each seed, one search starts without earlier trials, and a second one, with another seed, from the trials of the
first. The table has the seconds until the second one reaches the final hypervolume of the first one's front, or 99% of
it, beside those that the first one took for the same.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import autocompress
from benchmarks.common import append_row, load_rows
from benchmarks.patience import History, read_history

# Shares of the final hypervolume of the first search.
SHARES = (0.99, 1.0)


def find_seconds(history: History, volume: float) -> float | None:
    """Return the seconds after which a search has a hypervolume; None if it never has.

    Example:
        >>> find_seconds([(1.0, 0.2), (3.0, 0.5)], 0.4)
        3.0
    """
    return next((seconds for seconds, reached in history if reached >= volume), None)


def measure(space: str, seed: int, minutes: float, workers: int) -> dict[str, Any]:
    """Return the seconds of a pair of searches until they have each share of the hypervolume."""
    with tempfile.TemporaryDirectory() as runs:
        limits: dict[str, Any] = {"trials": 1000, "minutes": minutes, "workers": workers, "runs": runs}
        # The comparison ends with the search.
        limits["overrides"] = ["search.timing_seconds=0"]
        first = autocompress.search(space, name="first", seed=seed, **limits)
        second = autocompress.search(space, name="second", seed=seed + 1000, warm_start="first", **limits)
        cold, warm = read_history(first.folder), read_history(second.folder)
    final = cold[-1][1]
    row: dict[str, Any] = {"space": space, "seed": seed, "minutes": minutes, "hypervolumes": [final, warm[-1][1]]}
    return row | {str(share): [find_seconds(run, share * final) for run in (cold, warm)] for share in SHARES}


def render(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = ["| space | seed | share of the hypervolume | without | warm start | ratio |", "|---|---|---|---|---|---|"]
    ratios: dict[str, list[float]] = {str(share): [] for share in SHARES}
    for row in rows:
        for share in ratios:
            cold, warm = row[share]
            ratio = "–" if warm is None else f"{warm / cold:.2f}"
            ratios[share] += [] if warm is None else [warm / cold]
            reached = "not reached" if warm is None else f"{warm:.0f} s"
            lines.append(
                f"| {row['space']} | {row['seed']} | {float(share):.0%} | {cold:.0f} s | {reached} | {ratio} |"
            )
    lines += [
        f"\nMedian ratio at {float(share):.0%}: {statistics.median(values):.2f} of {len(values)} pairs."
        for share, values in ratios.items()
        if values
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the searches whose rows are not stored yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.5, help="budget of each search")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=Path("reports/benchmarks/warm_start.jsonl"))
    arguments = parser.parse_args()
    stored = {(row["space"], row["seed"]) for row in load_rows(arguments.rows)}
    for seed in range(arguments.seeds):
        if (arguments.space, seed) not in stored:
            append_row(arguments.rows, measure(arguments.space, seed, arguments.minutes, arguments.workers))
    print(render(load_rows(arguments.rows)))


if __name__ == "__main__":
    main()
