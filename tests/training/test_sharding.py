import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from autocompress.core.config import Part
from autocompress.core.task import InputSpec
from autocompress.models.base import build_family_model
from autocompress.training.sharding import (
    ProcessMemory,
    distribute_state,
    list_blocks,
    map_tensors,
    measure_memory,
    read_peak,
    sum_magnitudes,
)


def linear(size: int) -> nn.Linear:
    return nn.Linear(size, size)


def test_blocks_are_the_layers_of_a_transformer() -> None:
    inputs = (InputSpec((12,), vocabulary=20, missing=0),)
    model = build_family_model(Part.of("transformer", layers=3), inputs, {"label": 3})
    stages = model.get_submodule("encoder.stages")
    assert list_blocks(model) == list(stages.children())


def test_small_blocks_and_those_with_shared_weights_stay_with_the_rest() -> None:
    model = nn.Sequential(linear(30), linear(30), nn.Sequential(linear(30), nn.ReLU()), linear(2))
    assert list_blocks(model) == [model[0], model[1], model[2][0]]
    model[1].weight = model[0].weight
    assert list_blocks(model) == [model[2][0]]
    twice = linear(4)
    assert list_blocks(nn.Sequential(twice, nn.ReLU(), twice)) == [twice]


def test_memory_counts_each_tensor_once() -> None:
    model = linear(4)
    optimizer = torch.optim.AdamW(model.parameters())
    assert measure_memory([*model.parameters(), model.weight], optimizer.state_dict()).total == 80
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    memory = measure_memory(model.parameters(), optimizer.state_dict())
    # Two moments of 20 numbers, and the step of two parameters.
    assert memory == ProcessMemory(80, 80, 168, memory.peak)
    assert 10_000_000 < memory.peak <= read_peak()


def test_states_keep_their_form_and_whole_tensors_stay_whole() -> None:
    state = {"a": torch.ones(2), "b": [torch.ones(1), 3], "c": (None, "x"), "d": {"e": 1.5}}
    doubled = map_tensors(state, lambda tensor: tensor * 2)
    assert doubled == {"a": doubled["a"], "b": [doubled["b"][0], 3], "c": (None, "x"), "d": {"e": 1.5}}
    assert doubled["a"].tolist() == [2, 2]
    versioned = linear(2).state_dict()
    assert map_tensors(versioned, torch.Tensor.cpu)._metadata == versioned._metadata
    assert distribute_state(state, {"a": torch.zeros(2)})["a"] is state["a"]


def test_magnitudes_are_summed() -> None:
    assert sum_magnitudes([torch.tensor([[-1.0, 2.0]]), torch.tensor([3.0])]) == 6


def test_a_parametrized_layer_is_a_block_of_its_own() -> None:
    layer = weight_norm(linear(8))
    assert list_blocks(nn.Sequential(layer)) == [layer]
