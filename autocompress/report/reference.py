"""Hypervolume of another run for reference, for example of a random search.

The run stores a copy of the other run's curve, so that its page needs no other folder.
"""

import pandas as pd

from autocompress.core.formatting import format_duration
from autocompress.core.run_info import ReferenceRun, RunInfo
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables, check_comparable
from autocompress.report.figure_data import hypervolume_data


def reference_of(run: RunTables, other: RunTables) -> ReferenceRun:
    """Return what is kept of another run.

    Raises:
        UsageError: The runs have another task, other data, objectives or reference points, or ``other`` has no results.
    """
    check_comparable(run, other)
    bounds = [{objective.name: objective.bounds for objective in one.info.objectives} for one in (run, other)]
    if bounds[0] != bounds[1]:
        raise UsageError(
            f"{run.name} and {other.name} have different reference points (objectives: in the spec), so their "
            "hypervolumes are not comparable; autocompress compare computes both with one reference point"
        )
    curve = hypervolume_data(other.trials)
    if curve.empty:
        raise UsageError(f"{other.name} has no hypervolume yet")
    rows = curve.round({"seconds": 3, "hypervolume": 6}).to_numpy().tolist()
    return ReferenceRun(other.name, tuple(map(tuple, rows)))


def reference_data(info: RunInfo) -> pd.DataFrame:
    """Return the columns ``trial``, ``seconds`` and ``hypervolume`` of the reference run; empty if there is none."""
    rows = [] if info.reference is None else info.reference.rows
    return pd.DataFrame(rows, columns=["trial", "seconds", "hypervolume"], dtype="float64")


def compare_with_reference(trials: pd.DataFrame, info: RunInfo) -> str:
    """Return in a sentence which run reached the smaller final hypervolume first; empty without a reference.

    For example ``The reference run random reached 0.931 after 48 s; this search reached that value after 6 s.``
    """
    curve, other = hypervolume_data(trials), reference_data(info)
    if info.reference is None or curve.empty or other.empty:
        return ""
    name, theirs, ours = info.reference.name, float(other["hypervolume"].max()), float(curve["hypervolume"].max())
    after = format_duration(float(other["seconds"].max()))
    first, goal = (curve, theirs) if ours >= theirs else (other, ours)
    there = format_duration(float(first[first["hypervolume"] >= goal]["seconds"].min()))
    lead = f"The reference run {name} reached {theirs:.3f} after {after}"
    if ours >= theirs:
        return f"{lead}; this search reached that value after {there}."
    return f"{lead}, and the value of this search after {there}."
