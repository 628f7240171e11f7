"""Latencies that were measured of a run's candidates, beside what the search measured of them.

They are one machine's, and are measured on what is exported, so they are kept apart from the costs that a search
counts; :func:`with_latency` and :func:`timed` put them where every reader of a run looks for costs.
"""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

#: Key of what is kept in a run: ``batch``, ``threads``, ``processor``, ``runtime``, and ``rows``: id to milliseconds.
KEPT: Final = "latency"
NAME: Final = "latency_ms"
#: The row of the teacher.
TEACHER: Final = "teacher"
RECORD: Final[Mapping[str, str]] = {"name": NAME, "direction": "minimize", "unit": "ms", "kind": "cost"}


def with_latency(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run says of itself, with latency among what was measured, and that of the teacher."""
    found = dict(meta)
    rows = (meta.get(KEPT) or {}).get("rows") or {}
    if rows:
        found["all_objectives"] = [*meta.get("all_objectives", []), RECORD]
    if TEACHER in rows and meta.get("teacher"):
        teacher = meta["teacher"]
        found["teacher"] = {**teacher, "costs": {**teacher.get("costs", {}), NAME: rows[TEACHER]}}
    return found


def timed(candidates: pd.DataFrame, meta: Mapping[str, Any]) -> pd.DataFrame:
    """Return the candidates with a column ``latency_ms``, NaN where it was not measured; without it if none was."""
    rows = (meta.get(KEPT) or {}).get("rows") or {}
    if not rows or candidates.empty:
        return candidates
    return candidates.assign(**{NAME: candidates["id"].map(rows).astype(float)})
