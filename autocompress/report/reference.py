"""Another run's hypervolume beside a run's own: whether a random search would have come as far.

What is drawn of it is kept in the run, so that its page needs no other folder.
"""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from autocompress.core.formatting import duration
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables, refuse_unlike
from autocompress.report.figure_data import hypervolume_data

#: Key of what is kept in a run: ``name``, and ``rows`` of trial, seconds and hypervolume.
KEPT: Final = "reference"


def reference_of(run: RunTables, other: RunTables) -> dict[str, Any]:
    """Return what is kept of another run.

    Raises:
        UsageError: They searched for different things, or in different boxes, or nothing is known of the other one.
    """
    refuse_unlike(run, other)
    boxes = [{each["name"]: each.get("box") for each in one.meta["objectives"]} for one in (run, other)]
    if boxes[0] != boxes[1]:
        raise UsageError(
            f"{run.name} and {other.name} declare different boxes (objectives: in the spec), so that their "
            "hypervolumes do not compare; autocompress compare measures them in one"
        )
    curve = hypervolume_data(other.trials)
    if curve.empty:
        raise UsageError(f"{other.name} has no hypervolume yet: nothing can be drawn of it")
    return {"name": other.name, "rows": curve.round({"seconds": 3, "hypervolume": 6}).to_numpy().tolist()}


def reference_data(meta: Mapping[str, Any]) -> pd.DataFrame:
    """Return the columns ``trial``, ``seconds`` and ``hypervolume`` of the reference; empty where there is none."""
    rows = (meta.get(KEPT) or {}).get("rows") or []
    return pd.DataFrame(rows, columns=["trial", "seconds", "hypervolume"], dtype="float64")


def against(trials: pd.DataFrame, meta: Mapping[str, Any]) -> str:
    """Return in a sentence how far the reference came, and which was there sooner; empty without one.

    For example ``digits-random ended at 93.1% after 48 s; this search was there after 6 s.``
    """
    curve, other = hypervolume_data(trials), reference_data(meta)
    if curve.empty or other.empty:
        return ""
    name, theirs, ours = meta[KEPT]["name"], float(other["hypervolume"].max()), float(curve["hypervolume"].max())
    after = duration(float(other["seconds"].max()))
    first, goal = (curve, theirs) if ours >= theirs else (other, ours)
    there = duration(float(first[first["hypervolume"] >= goal]["seconds"].min()))
    if ours >= theirs:
        return f"For reference, {name} ended at {theirs:.1%} after {after}; this search was there after {there}."
    return f"For reference, {name} ended at {theirs:.1%} after {after}, and was as far as this search after {there}."
