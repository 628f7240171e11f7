"""Layers that can be quantized: which are found, how their calls are hooked and their parameters replaced."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import CompressionError
from autocompress.quantize.fake_quantize import FakeQuantize, attach_input_quantizer
from autocompress.quantize.layers import (
    add_layer_to_errors,
    broadcast_channels,
    coding_for_layer,
    find_layers,
    flatten_positions,
    forward_hooks,
    is_embedding,
    layer_bias,
    set_bias,
    set_weight,
)
from autocompress.quantize.quantizers import Grid
from autocompress.quantize.weight_coding import WeightCoding, encode_weight


def test_convolutions_linear_layers_and_embeddings_are_found_by_name() -> None:
    model = nn.ModuleDict(
        {
            "convolution": nn.Conv2d(1, 2, 3),
            "signal": nn.Conv1d(1, 2, 3),
            "norm": nn.BatchNorm2d(2),
            "embedding": nn.Embedding(5, 4),
            "bag": nn.EmbeddingBag(5, 4),
            # Its rows are rescaled at each lookup.
            "bounded": nn.Embedding(5, 4, max_norm=1.0),
            "head": nn.Linear(4, 3),
            # Its output projection is read without a call of the layer.
            "attention": nn.MultiheadAttention(4, 2),
        }
    )
    assert list(find_layers(model)) == ["convolution", "signal", "embedding", "bag", "head"]


def test_a_parametrized_or_a_quantized_layer_is_refused_by_name() -> None:
    with pytest.raises(CompressionError, match="layer '0' computes its weight"):
        find_layers(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))))
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    grid = Grid(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), 0, 3)
    attach_input_quantizer(model[1], FakeQuantize(grid, 2))
    with pytest.raises(CompressionError, match="layer '1' is quantized already"):
        find_layers(model)


def test_an_error_names_the_layer_and_the_tensor_and_has_no_cause() -> None:
    with (
        pytest.raises(CompressionError, match=r"^layer 'head', weight: too small$") as error,
        add_layer_to_errors("head", "weight"),
    ):
        raise CompressionError("too small")
    assert error.value.__cause__ is None
    with pytest.raises(ZeroDivisionError, match=r"^as it is$"), add_layer_to_errors("head", "weight"):
        raise ZeroDivisionError("as it is")


def test_hooks_see_each_call_replace_outputs_and_are_removed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    inputs = torch.ones(3, 2)
    before = model(inputs)
    calls: list[str] = []

    def hook(name: str, args: tuple[Tensor, ...], kwargs: object, output: Tensor) -> Tensor | None:
        calls.append(name)
        assert kwargs == {}
        assert args[0].shape == (3, 2)
        return torch.zeros_like(output) if name == "2" else None

    with forward_hooks(find_layers(model), hook):
        assert model(inputs).tolist() == [[0.0]] * 3
    assert calls == ["0", "2"]
    assert torch.equal(model(inputs), before)
    with pytest.raises(ZeroDivisionError), forward_hooks(find_layers(model), hook):
        raise ZeroDivisionError
    assert torch.equal(model(inputs), before)
    assert calls == ["0", "2"]


def test_an_embedding_always_has_a_scale_per_row() -> None:
    coding = WeightCoding(4, granularity="per_tensor")
    assert is_embedding(nn.EmbeddingBag(3, 2))
    assert not is_embedding(nn.Linear(3, 2))
    assert coding_for_layer(nn.Embedding(3, 2), coding) == WeightCoding(4, granularity="per_channel")
    assert coding_for_layer(nn.Linear(3, 2), coding) is coding


def test_a_new_weight_leaves_a_layer_that_shares_the_old_one_unchanged() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(8, 4), nn.Linear(8, 4)
    other.weight = one.weight
    original = one.weight.detach().clone()
    one.weight.requires_grad_(False)
    quantized = encode_weight(original, WeightCoding(3))
    set_weight(one, quantized)
    assert torch.equal(one.weight, quantized.dequantize())
    assert not torch.equal(one.weight, original)
    assert torch.equal(other.weight, original)
    assert not one.weight.requires_grad


def test_a_new_bias_is_trainable_where_the_old_one_was() -> None:
    layer, without = nn.Linear(2, 3), nn.Linear(2, 3, bias=False)
    for one in (layer, without):
        set_bias(one, torch.arange(3.0))
        bias = layer_bias(one)
        assert bias is not None
        assert bias.tolist() == [0.0, 1.0, 2.0]
    assert layer.bias.requires_grad
    assert not without.bias.requires_grad
    assert layer_bias(nn.Embedding(3, 2)) is None
    assert layer_bias(nn.Linear(2, 3, bias=False)) is None


def test_outputs_have_a_row_per_position_and_channels_broadcast_to_them() -> None:
    convolution, linear = nn.Conv2d(1, 2, 1), nn.Linear(3, 2)
    image = torch.arange(24.0).view(3, 2, 2, 2)
    rows = flatten_positions(convolution, image)
    assert rows.shape == (12, 2)
    assert rows[:4, 0].tolist() == image[0, 0].flatten().tolist()
    tokens = torch.arange(20.0).view(2, 5, 2)
    assert torch.equal(flatten_positions(linear, tokens), tokens.view(10, 2))
    values = torch.tensor([1.0, 2.0])
    assert broadcast_channels(convolution, values, image).shape == (2, 1, 1)
    assert torch.equal((image + broadcast_channels(convolution, values, image))[:, 1], image[:, 1] + 2)
    assert broadcast_channels(linear, values, tokens) is values
