"""The records of compression methods: bit-widths, shared computations, masks."""

import pytest
import torch
from torch import nn

from autocompress.core.method import Context, LayerBits, MethodState, Recovery, require_distinct
from autocompress.errors import CompressionError, KnobError


def test_recovery_costs_its_epochs() -> None:
    assert Recovery(recovery_epochs=7).estimate_epochs() == 7.0
    assert Recovery(recovery_epochs=0).estimate_epochs() == 0.0
    with pytest.raises(KnobError, match="recovery_learning_rate"):
        Recovery(recovery_learning_rate=2.0)


def test_a_layer_without_bits_is_floating_point() -> None:
    assert LayerBits() == LayerBits(weight=32, activation=32)


def test_a_shared_value_is_computed_once_per_key() -> None:
    calls: list[str] = []

    def compute(name: str) -> str:
        calls.append(name)
        return name

    context = Context((torch.zeros(1),), shared={})
    assert [context.compute_once(("scores", name), lambda name=name: compute(name)) for name in "aab"] == [
        "a",
        "a",
        "b",
    ]
    assert calls == ["a", "b"]


def test_without_a_shared_store_each_call_computes() -> None:
    values = iter([1, 2])
    context = Context((torch.zeros(1),))
    assert [context.compute_once("key", lambda: next(values)) for _ in range(2)] == [1, 2]


def test_contexts_compare_without_their_shared_store() -> None:
    assert Context((), shared={}) == Context((), shared={"key": 1})


def test_masks_zero_the_removed_weights_and_keep_the_others() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    bias = layer.bias.detach().clone()
    MethodState(masks={"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}).apply_masks(layer)
    assert layer.weight.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    assert torch.equal(layer.bias, bias)


def test_a_mask_of_a_parameter_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError, match="gamma"):
        MethodState(masks={"gamma": torch.zeros(1)}).apply_masks(nn.Linear(1, 1))


def test_a_name_that_occurs_twice_is_an_error() -> None:
    require_distinct(["stem", "head"])
    with pytest.raises(CompressionError, match="names 'stem' twice"):
        require_distinct(["stem", "head", "stem"])
