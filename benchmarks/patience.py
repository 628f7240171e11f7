"""What automatic stopping saves and loses: ``python -m benchmarks.patience RUN ... [--shares 0.25 0.33 0.4 0.5]``.

Finished searches of one space are replayed: for each share, when ``search.patience`` would have ended them, and how
much of their final hypervolume the front would have lacked. The last line has the earliest moment from which on at most
1% was lacking: no rule can end a search sooner without losing more.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from autocompress.engine.patience import Patience
from autocompress.report.figure_data import hypervolume_data
from autocompress.store.run_store import RunStore

#: Seconds and hypervolume after each result.
History = Sequence[tuple[float, float]]
#: Share of the final hypervolume that a front may lack.
ALLOWED = 0.01


def read_history(run: Path) -> History:
    """Return the hypervolume of a finished search over time."""
    with RunStore.read(run) as store:
        table = hypervolume_data(store.trial_table())
    return list(zip(table["seconds"].astype(float), table["hypervolume"].astype(float), strict=True))


def replay(history: History, share: float) -> tuple[float, float]:
    """Return the seconds after which the search would have ended, and the share of its hypervolume that it lacked."""
    patience = Patience(share)
    final = history[-1][1]
    for seconds, volume in history:
        patience.record(seconds, volume)
        if patience.has_converged(seconds):
            return seconds, 1 - volume / final
    return history[-1][0], 0.0


def find_earliest(history: History) -> float:
    """Return the seconds after which at most ``ALLOWED`` of the final hypervolume was lacking."""
    final = history[-1][1]
    return next(seconds for seconds, volume in history if volume >= (1 - ALLOWED) * final)


def main() -> None:
    """Print a row for each share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.33, 0.4, 0.5])
    parser.add_argument("--minutes", type=float, default=2.5, help="budget of each search")
    arguments = parser.parse_args()
    histories = [read_history(run) for run in arguments.runs]
    print("| share | ended after, share of the minutes | hypervolume left, mean | largest | at most 1% |")
    print("|---|---|---|---|---|")
    for share in arguments.shares:
        seconds, lacking = zip(*(replay(history, share) for history in histories), strict=True)
        used = statistics.fmean(seconds) / (60 * arguments.minutes)
        kept = f"{sum(left <= ALLOWED for left in lacking)} of {len(lacking)}"
        print(f"| {share:g} | {used:.0%} | {statistics.fmean(lacking):.2%} | {max(lacking):.2%} | {kept} |")
    earliest = ", ".join(f"{find_earliest(history) / (60 * arguments.minutes):.0%}" for history in histories)
    print(f"\nAt most 1% was lacking after {earliest} of the minutes.")


if __name__ == "__main__":
    main()
