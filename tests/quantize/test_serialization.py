"""The stored form of a quantization: grids and layers read back, and histories that do not fit."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.serialization import grid_to_json, list_restored_names, restore_quantization

GRID = {"bits": 4, "scale": 0.5, "zero_point": 3, "low": 0, "high": 15}
INPUT_ENTRY: dict[str, Any] = {"name": "0", "weight": None, "decoded": None, "input": GRID, "output": None}


def make_state(**changes: object) -> MethodState:
    """Return the state of one layer whose input is quantized, with changes to its grid."""
    return MethodState({"folded": [], "layers": [{**INPUT_ENTRY, "input": {**GRID, **changes}}]})


def test_a_grid_becomes_plain_numbers() -> None:
    entry = grid_to_json(Grid(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), 0, 15), 4)
    assert entry == GRID
    assert {type(value) for value in entry.values()} == {int, float}
    assert json.loads(json.dumps(entry)) == entry


def test_a_grid_of_an_input_reads_back_and_rounds() -> None:
    model = restore_quantization(nn.Sequential(nn.Linear(2, 2)), make_state())
    quantizer = model[0].input_quantizer
    assert grid_to_json(quantizer.grid, quantizer.bits) == GRID
    assert quantizer(torch.tensor([-9.0, 0.6, 99.0])).tolist() == [-1.5, 0.5, 6.0]
    assert not model.training


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.0},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"bits": 9, "high": 511},
        {"high": 14},
        {"zero_point": 16},
        {"zero_point": -1},
    ],
)
def test_a_grid_that_would_give_a_wrong_model_is_refused(changes: Mapping[str, float]) -> None:
    with pytest.raises(CompressionError, match="a tensor cannot be quantized to"):
        restore_quantization(nn.Sequential(nn.Linear(2, 2)), make_state(**changes))


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"folded": []},
        {"folded": [], "layers": [{"name": "0"}]},
        {"folded": [], "layers": [{**INPUT_ENTRY, "name": "missing"}]},
        {"folded": [], "layers": [{**INPUT_ENTRY, "input": {"bits": 4}}]},
        {"folded": [], "layers": 3},
    ],
)
def test_a_history_that_does_not_fit_is_one_kind_of_error(history: dict[str, Any]) -> None:
    with pytest.raises(CompressionError, match="the quantization history does not fit the model"):
        restore_quantization(nn.Sequential(nn.Linear(2, 2)), MethodState(history))


def test_restored_names_are_those_of_weights_and_grids() -> None:
    entries = [
        INPUT_ENTRY,
        {"name": "1", "weight": {}, "decoded": None, "input": None, "output": GRID},
        {"name": "2", "weight": None, "decoded": {}, "input": None, "output": None},
        {"name": "3", "weight": None, "decoded": None, "input": None, "output": None},
    ]
    assert list_restored_names(entries) == [
        "0.input_quantizer.scale",
        "0.input_quantizer.zero_point",
        "1.weight",
        "1.output_quantizer.scale",
        "1.output_quantizer.zero_point",
        "2.weight",
    ]


def test_a_quantized_model_is_restored_from_its_history_and_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    images = torch.rand(32, 1, 4, 4)
    labels = {"label": torch.zeros(32, dtype=torch.int64)}
    context = Context(
        (images[:1],), ((images,),), (labels,), lambda output, targets: nn.functional.cross_entropy(output, targets)
    )
    fresh = copy.deepcopy(model)
    settings = PostTrainingConfig(weight_bits=4, activation_bits=8)
    quantized, state = PostTraining().apply(model.eval(), settings, context)
    stored = MethodState(json.loads(json.dumps(dict(state.history))), state.tensors, state.bits)
    restored = restore_quantization(fresh, stored)
    names = set(list_restored_names(state.history["layers"]))
    assert names
    assert names <= set(quantized.state_dict())
    # These alone are set before the saved values are loaded.
    assert all(torch.equal(restored.state_dict()[name], quantized.state_dict()[name]) for name in names)
    restored.load_state_dict(quantized.state_dict())
    with torch.no_grad():
        assert torch.equal(restored(images), quantized(images))
