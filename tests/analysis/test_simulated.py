import pandas as pd

from autocompress.analysis.simulated import SIMULATED, describe_simulation, knob_order


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
