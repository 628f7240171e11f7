import math

import pandas as pd

from autocompress.analysis.latency import timed, with_latency

META = {
    "teacher": {"costs": {"flops": 5.0}, "scores": {}},
    "all_objectives": [{"name": "flops", "direction": "minimize", "unit": "FLOPs", "kind": "cost"}],
}
LATENCY = {"batch": 1, "threads": 1, "rows": {"teacher": 0.5, "t0c1": 0.25}}


def test_what_was_timed_stands_where_costs_are_looked_for() -> None:
    found = with_latency({**META, "latency": LATENCY})
    assert found["teacher"]["costs"] == {"flops": 5.0, "latency_ms": 0.5}
    assert [each["name"] for each in found["all_objectives"]] == ["flops", "latency_ms"]
    table = timed(pd.DataFrame({"id": ["t0c0", "t0c1"]}), found)
    assert math.isnan(table["latency_ms"][0])
    assert table["latency_ms"][1] == 0.25
    # What a search counted is left as it was.
    assert META["teacher"]["costs"] == {"flops": 5.0}  # type: ignore[index]


def test_where_nothing_was_timed_nothing_is_said() -> None:
    table = pd.DataFrame({"id": ["t0c0"]})
    for meta in (META, {**META, "latency": {"rows": {}}}, {}):
        assert "latency_ms" not in [each["name"] for each in with_latency(meta).get("all_objectives", [])]
        assert list(timed(table, meta).columns) == ["id"]
    assert timed(pd.DataFrame(), {"latency": LATENCY}).empty
    assert "teacher" not in with_latency({"latency": LATENCY})
