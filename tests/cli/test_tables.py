import pandas as pd
import pytest

from autocompress.cli.tables import _format_bits, front_table, plain_table
from tests.fakes import OBJECTIVES


@pytest.mark.parametrize(
    ("layers", "settings", "text"),
    [
        ([], [None, None], "32/32"),
        ([], [8.0, 4.0], "8/4"),
        ([{"weight_bits": 4, "activation_bits": 8}] * 2, [3.0, 8.0], "4/8"),
        ([{"weight_bits": 2, "activation_bits": 8}, {"weight_bits": 8, "activation_bits": 8}], [None, None], "2–8/8"),
    ],
)
def test_the_bits_of_layers_are_shown_before_the_setting(
    layers: list[dict[str, int]], settings: list[float | None], text: str
) -> None:
    assert _format_bits(layers, settings) == text


def test_progressive_pruning_shows_the_last_accepted_ratio() -> None:
    path = [
        {"pruning_ratio": 0.0, "kept": True},
        {"pruning_ratio": 0.3, "kept": True},
        {"pruning_ratio": 0.6, "kept": False},
    ]
    row = {
        "id": "t0c0",
        "accuracy": 0.9,
        "effective_flops": 1000.0,
        "student": "cnn",
        "distill": "none",
        "prune": "progressive",
        "prune.progressive.pruning_ratio": 0.8,
        "quantize": "none",
        "details": {"prune": {"path": path}},
    }
    table = front_table(pd.DataFrame([row]), OBJECTIVES, "t0c0")
    cells = [list(column.cells) for column in table.columns]
    assert ["30%"] in cells
    assert ["32/32"] in cells


def test_a_plain_table_has_one_row_per_input_row() -> None:
    assert plain_table(["a", "b"], [["1", "2"]]).row_count == 1
