import math
from dataclasses import replace

import pandas as pd

from autocompress.analysis.latency import add_latency_column, with_latency
from autocompress.core.run_info import LatencyInfo, ObjectiveSpec, RunInfo, TeacherInfo

META = RunInfo(
    teacher=TeacherInfo(costs={"flops": 5.0}), all_objectives=(ObjectiveSpec("flops", "minimize", "FLOPs", "cost"),)
)
LATENCY = LatencyInfo(rows={"teacher": 0.5, "t0c1": 0.25})


def test_what_was_timed_stands_where_costs_are_looked_for() -> None:
    found = with_latency(replace(META, latency=LATENCY))
    assert found.teacher.costs == {"flops": 5.0, "latency_ms": 0.5}
    assert [objective.name for objective in found.all_objectives] == ["flops", "latency_ms"]
    table = add_latency_column(pd.DataFrame({"id": ["t0c0", "t0c1"]}), found)
    assert math.isnan(table["latency_ms"][0])
    assert table["latency_ms"][1] == 0.25
    # What a search counted is left as it was.
    assert META.teacher.costs == {"flops": 5.0}


def test_where_nothing_was_timed_nothing_is_said() -> None:
    table = pd.DataFrame({"id": ["t0c0"]})
    for info in (META, replace(META, latency=LatencyInfo()), RunInfo()):
        assert "latency_ms" not in [objective.name for objective in with_latency(info).all_objectives]
        assert list(add_latency_column(table, info).columns) == ["id"]
    assert add_latency_column(pd.DataFrame(), RunInfo(latency=LATENCY)).empty
    assert with_latency(RunInfo(latency=LATENCY)).teacher == TeacherInfo()
