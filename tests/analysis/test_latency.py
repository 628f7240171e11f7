import math
from dataclasses import replace

import pandas as pd
import pytest

from autocompress.analysis.latency import (
    SIMULATED,
    add_latency_column,
    describe_simulation,
    knob_order,
    select_contenders,
    select_timed,
    with_latency,
)
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import LatencyInfo, ObjectiveSpec, RunInfo, TeacherInfo

META = RunInfo(
    teacher=TeacherInfo(costs={"flops": 5.0}), all_objectives=(ObjectiveSpec("flops", "minimize", "FLOPs", "cost"),)
)
LATENCY = LatencyInfo(rows={"teacher": 0.5, "t0c1": 0.25})
TARGET = Precisions(((8, 8), (32, 32)), (2, 4, 8, 32), decodes_tables=True)


@pytest.mark.parametrize(
    ("weight", "activation", "quantizer", "granularity", "expected"),
    [
        (4, 8, "linear", "per_channel", ""),
        (4, 32, "codebook", "per_channel", ""),
        (4, 32, "linear", "per_group", ""),
        (4, 8, "codebook", "per_channel", "codebook quantizer"),
        (4, 8, "linear", "per_group", "weights in groups with rounded activations"),
        (3, 6, "linear", "per_channel", "3-bit weights, 6-bit activations"),
        (None, None, None, None, ""),
    ],
)
def test_on_a_target_what_is_stored_and_computed_there_is_not_simulated(
    weight: object, activation: object, quantizer: object, granularity: object, expected: str
) -> None:
    columns = {
        "quantize.x.weight_bits": [weight],
        "quantize.x.activation_bits": [activation],
        "quantize.x.quantizer": [quantizer],
        "quantize.x.granularity": [granularity],
    }
    assert describe_simulation(pd.DataFrame(columns, dtype=object), TARGET) == [expected]


def test_on_a_target_the_bits_of_layers_decide() -> None:
    layers = [{"layers": [{"weight_bits": 8, "activation_bits": 8}, {"weight_bits": 3, "activation_bits": 8}]}]
    assert describe_simulation(pd.DataFrame({"details": layers}), TARGET) == ["3-bit weights"]


def test_what_was_timed_stands_where_costs_are_looked_for() -> None:
    found = with_latency(replace(META, latency=LATENCY))
    assert found.teacher.costs == {"flops": 5.0, "latency_ms": 0.5}
    assert [objective.name for objective in found.all_objectives] == ["flops", "latency_ms"]
    table = add_latency_column(pd.DataFrame({"id": ["t0c0", "t0c1"]}), found)
    assert list(table["latency_source"]) == ["", "measured"]
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


def table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({name.replace("__", "."): values for name, values in columns.items()})


def test_widths_and_quantizers_without_a_kernel_are_named() -> None:
    found = table(
        quantize__post_training__weight_bits=[8, 4, 32, None],
        quantize__post_training__activation_bits=[8, 3, 32, None],
        quantize__post_training__quantizer=["linear", "power_of_two", None, None],
        student__cnn__weight_bits=[3, 3, 3, 3],
    )
    assert describe_simulation(found) == ["", "4-bit weights, 3-bit activations, power_of_two quantizer", "", ""]


def test_what_the_layers_have_counts_before_what_was_asked_for() -> None:
    asked = {"quantize__mixed__weight_bits": [4, 4]}
    layers = [{"layers": [{"weight_bits": 8}, {"weight_bits": 2}]}, {"layers": [{"weight_bits": 8}]}]
    assert describe_simulation(table(**asked, details=layers)) == ["2-bit weights", ""]


def test_what_is_known_is_not_worked_out_again() -> None:
    assert describe_simulation(pd.DataFrame({SIMULATED: ["as before"], "quantize.x.weight_bits": [4]})) == ["as before"]
    assert describe_simulation(pd.DataFrame()) == []


def test_knobs_that_always_matter_stand_first() -> None:
    columns = ["student.cnn.kernel", "student.cnn.width", "quantize.lsq.weight_bits"]
    assert sorted(columns, key=knob_order) == [*columns[:0:-1], columns[0]]


ACCURACY = ObjectiveSpec("accuracy", "maximize", "", "score")
SEARCHED = ObjectiveSpec("latency_ms", "minimize", "ms", "cost")
# Predictions: the second and the third are dominated, the second by less than predictions may be wrong.
PREDICTED = pd.DataFrame(
    {"id": ["t0c0", "t0c1", "t0c2", "t0c3"], "accuracy": [0.9, 0.9, 0.9, 0.95], "latency_ms": [1.0, 1.1, 1.3, 2.0]}
)


def test_candidates_near_the_front_are_measured() -> None:
    info = RunInfo(objectives=(ACCURACY, SEARCHED))
    assert select_contenders(PREDICTED, info) == ["t0c0", "t0c3", "t0c1"]
    # As much above a limit.
    assert select_contenders(PREDICTED, replace(info, limits={"latency_ms": {"max": 0.9}})) == ["t0c0"]
    # A limit alone does not make it an objective, but slower ones are never better.
    flops = ObjectiveSpec("flops", "minimize", "", "cost")
    table = PREDICTED.assign(flops=[4.0, 3.0, 3.0, 4.0])
    limited = RunInfo(objectives=(ACCURACY, flops), limits={"latency_ms": {"max": 1.5}})
    assert select_contenders(table, limited) == ["t0c0", "t0c1"]


def test_only_measured_latencies_are_ranked_once_there_are_any() -> None:
    info = RunInfo(objectives=(ACCURACY, SEARCHED))
    assert select_timed(PREDICTED, info) is PREDICTED
    timed = replace(info, latency=LatencyInfo(rows={"teacher": 3.0, "t0c1": 0.8}, float_rows={"t0c1": 0.9}))
    table = select_timed(PREDICTED, timed, ["t0c3"])
    assert list(table["id"]) == ["t0c1", "t0c3"]
    assert list(table["latency_ms"]) == [0.8, 2.0]
    assert list(table["predicted_latency_ms"]) == [1.1, 2.0]
    assert list(table["latency_source"]) == ["measured", "predicted"]
    assert table["float_latency_ms"].iloc[0] == 0.9
    # A search for other costs ranks all of its candidates.
    assert len(select_timed(PREDICTED, replace(timed, objectives=(ACCURACY,)))) == 4
