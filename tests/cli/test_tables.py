import pandas as pd
import pytest

from autocompress.cli.tables import _bits, front_table, plain_table
from tests.fakes import OBJECTIVES


@pytest.mark.parametrize(
    ("layers", "settings", "shown"),
    [
        ([], [None, None], "32/32"),
        ([], [8.0, 4.0], "8/4"),
        ([{"weight_bits": 4, "activation_bits": 8}] * 2, [3.0, 8.0], "4/8"),
        ([{"weight_bits": 2, "activation_bits": 8}, {"weight_bits": 8, "activation_bits": 8}], [None, None], "2–8/8"),
    ],
)
def test_the_bits_that_layers_have_are_shown_before_those_that_were_set(
    layers: list[dict[str, int]], settings: list[float | None], shown: str
) -> None:
    assert _bits(layers, settings) == shown


def test_a_progressive_pruning_shows_where_it_stopped() -> None:
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


def test_a_plain_table_has_its_cells_as_they_are() -> None:
    assert plain_table(["a", "b"], [["1", "2"]]).row_count == 1
