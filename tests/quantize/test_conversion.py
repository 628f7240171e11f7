"""Layers in forms that can be quantized: equal outputs, original tensors, quantization, restoring and export."""

import copy
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context, LayerBits
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.export.onnx import trace_quantized
from autocompress.measure import layer_costs
from autocompress.quantize.conversion import (
    ConvertedLinear,
    SplitAttention,
    convert_layers,
    convert_named,
    find_converted,
    original_state,
    swap_kernel_axes,
)
from autocompress.quantize.layers import find_layers


class Conv1D(nn.Module):
    """The linear layer of GPT-2, as transformers defines it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class Recurrent(nn.Module):
    """Classifier of sequences by the last output of a recurrent layer, ``[B, T, 8] -> [B, 3]``."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(16 * (1 + layer.bidirectional), 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(inputs)[0][:, -1])
        return logits


class Encoder(nn.Module):
    """Classifier of sequences with torch's encoder and a padding mask, ``[B, T, 16]`` and ``[B, T] -> [B, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor, padding: Tensor) -> Tensor:
        encoded = self.encoder(inputs, src_key_padding_mask=padding > 0)
        logits: Tensor = self.head((encoded * (padding == 0).unsqueeze(-1)).mean(1))
        return logits


class Volume(nn.Sequential):
    """Classifier of volumes with a normalized and two transposed convolutions, ``[B, 2, 4, 4, 4] -> [B, 3]``."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(2, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2),
            nn.ConvTranspose3d(6, 4, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def make_sequences() -> tuple[Tensor, ...]:
    return (torch.randn(8, 6, 8),)


def make_padded() -> tuple[Tensor, ...]:
    return torch.randn(8, 6, 16), (torch.arange(6) >= torch.arange(1, 9)[:, None].clamp(max=6)).long()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM(8, 16, num_layers=2, batch_first=True, bidirectional=True)), make_sequences),
    "gru": (lambda: Recurrent(nn.GRU(8, 16, batch_first=True, bias=False)), make_sequences),
    "attention": (Encoder, make_padded),
    "gpt2": (lambda: nn.Sequential(Conv1D(16, 8), nn.GELU(), Conv1D(4, 16)), make_sequences),
    "volume": (Volume, lambda: (torch.randn(4, 2, 4, 4, 4),)),
}
# Names of the layers with a weight in codes, beside plain linear layers and convolutions.
HELD = {
    "lstm": [
        f"layer.weight_{side}_l{layer}{end}" for layer in (0, 1) for end in ("", "_reverse") for side in ("ih", "hh")
    ],
    "gru": ["layer.weight_ih_l0", "layer.weight_hh_l0"],
    "attention": [f"encoder.layers.0.self_attn.{side}_proj" for side in ("q", "k", "v", "out")],
    "gpt2": ["0", "2"],
    "volume": ["0", "3.kernel", "4.kernel"],
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, tuple[Tensor, ...]]:
    """Name, module in evaluation mode and a batch."""
    torch.manual_seed(0)
    build, make = CASES[request.param]
    return request.param, build().eval(), make()


@torch.no_grad()
def test_outputs_operations_and_tensors_stay(case: tuple[str, nn.Module, tuple[Tensor, ...]]) -> None:
    name, model, batch = case
    converted = convert_layers(copy.deepcopy(model))
    assert torch.allclose(converted(*batch), model(*batch), atol=1e-6)
    assert set(HELD[name]) <= set(find_layers(converted))
    example = tuple(tensor[:1] for tensor in batch)
    costs = [sum(layer.macs for layer in layer_costs(m, example).values()) for m in (model, converted)]
    assert costs[0] == costs[1]
    state = original_state(converted)
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"), [("lstm", {"weight_bits": 4, "quantizer": "codebook"}), ("attention", {}), ("volume", {})]
)
def test_the_restored_module_and_the_graph_compute_what_was_quantized(name: str, settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    build, make = CASES[name]
    model, batch = build().eval(), make()
    example = tuple(tensor[:1] for tensor in batch)
    method = QUANTIZE.get("post_training")
    config = method.config.of(settings)
    quantized, state = method.apply(model, config, Context(example, (batch,)))
    assert {f"{layer}.weight_codes" for layer in HELD[name]} <= set(state.tensors)
    expected = quantized(*batch)
    assert not torch.equal(expected, model(*batch))
    restored = method.restore(copy.deepcopy(model), config, state)
    restored.load_state_dict(quantized.state_dict())
    assert torch.equal(restored(*batch), expected)
    graph = trace_quantized(quantized, state, example, {"y": 3}).build()
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (outputs,) = session.run(None, dict(zip(names, (tensor.numpy() for tensor in batch), strict=True)))
    assert np.allclose(outputs, expected.numpy(), atol=2e-2)


@torch.no_grad()
def test_recurrent_weights_are_codes_and_their_inputs_stay_in_floating_point() -> None:
    model = Recurrent(nn.LSTM(8, 16, batch_first=True)).eval()
    (batch,) = make_sequences()
    method = QUANTIZE.get("post_training")
    config = method.config.of({"weight_bits": 4})
    _, state = method.apply(model, config, Context((batch[:1],), ((batch,),)))
    assert state.bits["layer"] == LayerBits(4, 32)
    assert state.history["converted"] == ["layer"]
    assert all(entry["input"] is None for entry in state.history["layers"] if entry["name"] != "head")


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [False, True])
def test_split_attention_takes_every_form_of_masks(batch_first: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=4, vdim=6).eval()
    split = convert_layers(copy.deepcopy(attention))
    assert isinstance(split, SplitAttention)
    query, key, value = torch.randn(3, 5, 8), torch.randn(3, 7, 4), torch.randn(3, 7, 6)
    layout = (query, key, value) if batch_first else tuple(t.transpose(0, 1) for t in (query, key, value))
    padding = torch.arange(7) >= torch.tensor([[7], [4], [2]])
    masks: list[dict[str, object]] = [
        {},
        {"key_padding_mask": padding, "attn_mask": torch.rand(5, 7) > 0.8},
        {"attn_mask": torch.randn(6, 5, 7), "average_attn_weights": False},
        {"attn_mask": torch.rand(5, 7) > 0.8, "need_weights": False},
    ]
    for options in masks:
        expected, weights = attention(*layout, **options)
        outputs, own = split(*layout, **options)
        assert torch.allclose(outputs, expected, atol=1e-6)
        assert (own is None) == (weights is None)
        assert own is None or torch.allclose(own, weights, atol=1e-6)
    alone = [tensor[0] for tensor in (query, key, value)]
    assert torch.allclose(split(*alone)[0], attention(*alone)[0], atol=1e-6)


def test_a_layer_that_may_compute_something_else_stays() -> None:
    class Own(nn.LSTM):
        pass

    model = nn.Sequential(Own(2, 2), nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.GRU(2, 2), nn.GRU(2, 2))
    model[2].register_forward_hook(lambda *_: None)
    assert find_converted(convert_layers(model, stay=["3"])) == []
    with pytest.raises(CompressionError, match="layer '0' has no form that can be quantized"):
        convert_named(model, ["0"])


def test_a_module_with_two_names_stays_one_module() -> None:
    layer = Conv1D(3, 3)
    model = convert_layers(nn.Sequential(layer, layer))
    assert model[0] is model[1]
    assert isinstance(model[0], ConvertedLinear)


@torch.no_grad()
def test_a_converted_layer_is_copied_moved_and_packed_like_a_recurrent_layer() -> None:
    layer = nn.LSTM(4, 3, batch_first=True).eval()
    held = copy.deepcopy(convert_layers(copy.deepcopy(layer))).double().float()
    inputs = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 5, 4), [5, 3, 1], batch_first=True)
    assert torch.equal(held(inputs)[0].data, layer(inputs)[0].data)


def test_the_axes_of_a_grouped_kernel_are_swapped_and_swapped_back() -> None:
    kernel = torch.randn(6, 2, 3)
    assert torch.equal(swap_kernel_axes(swap_kernel_axes(kernel, 3), 3), kernel)
    assert torch.equal(swap_kernel_axes(kernel, 1), kernel.transpose(0, 1))
