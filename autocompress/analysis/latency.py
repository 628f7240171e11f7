"""Latencies that were measured of a run's candidates, beside what the search measured of them.

They are one machine's, and are measured on what is exported, so they are kept apart from the costs that a search
counts; :func:`with_latency` and x them where every reader of a run looks for costs.
"""

from dataclasses import replace
from typing import Final

import pandas as pd

from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo

NAME: Final = "latency_ms"
#: The row of the teacher.
TEACHER: Final = "teacher"
RECORD: Final = ObjectiveSpec(NAME, "minimize", unit="ms", kind="cost")


def with_latency(info: RunInfo) -> RunInfo:
    """Return the description of a run with the latency among its costs, for the candidates and for the teacher."""
    if info.latency is None or not info.latency.rows:
        return info
    teacher, milliseconds = info.teacher, info.latency.rows.get(TEACHER)
    if milliseconds is not None and teacher != TeacherInfo():
        teacher = replace(teacher, costs={**teacher.costs, NAME: milliseconds})
    return replace(info, teacher=teacher, all_objectives=(*info.all_objectives, RECORD))


def add_latency_column(candidates: pd.DataFrame, info: RunInfo) -> pd.DataFrame:
    """Return the candidates with a column ``latency_ms``, NaN where it was not measured; without it if none was."""
    if info.latency is None or not info.latency.rows or candidates.empty:
        return candidates
    return candidates.assign(**{NAME: candidates["id"].map(info.latency.rows).astype(float)})
