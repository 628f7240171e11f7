"""Linear layers that multiply by packed codes, and tables that one node looks up."""

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context, MethodState
from autocompress.core.precisions import Precisions
from autocompress.core.registry import QUANTIZE
from autocompress.export import graph_choice
from autocompress.export.block_weights import encode_blocks
from autocompress.export.graph_choice import BLOCKS, FLOAT, GraphRequest, choose_graph
from autocompress.targets import Model
from autocompress.targets.onnxruntime import OnnxRuntime
from tests.export.test_graph_choice import Clock

METHOD = QUANTIZE.get("post_training")
PRECISIONS = Precisions(((8, 8), (32, 32)), (2, 4, 8, 32), decodes_tables=True, weight_type="uint8")
HEADS = {"label": 60}


class Words(nn.Module):
    """A table, two large linear layers on sequences, one of them without a bias and used twice, and a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide = nn.Embedding(300, 10), nn.Linear(10, 144)
        self.mix, self.head, self.last = nn.Linear(144, 144, bias=False), nn.Linear(144, 60), nn.Linear(60, 60)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.wide(self.table(ids)))
        hidden = torch.relu(self.mix(torch.relu(self.mix(hidden)))).mean(1)
        return self.last(torch.relu(self.head(hidden)))


def quantize(**settings: object) -> tuple[nn.Module, MethodState, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(300, (64, 5))
    config = METHOD.config.of({"activation_bits": 32, **settings})
    model, state = METHOD.apply(Words().eval(), config, Context((ids[:1],), ((ids,),)))
    return model, state, ids


def make_request(model: nn.Module, state: MethodState, ids: Tensor) -> GraphRequest:
    return GraphRequest(model, state, (ids[:1],), HEADS, ((ids,),))


@pytest.mark.slow
def test_large_linear_layers_read_packed_codes_and_predict_as_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, object] = {"weight_bits": 4, "granularity": "per_group", "group_size": 48}
    monkeypatch.setattr(graph_choice, "time_rounds", Clock({FLOAT: 2.0, BLOCKS: 1.0}))
    model, state, ids = quantize(**settings)
    chosen = choose_graph(make_request(model, state, ids), OnnxRuntime(), PRECISIONS)
    nodes = [node.op_type for node in onnx.load_from_string(chosen.content).graph.node]
    assert chosen.form == BLOCKS
    assert (nodes.count("MatMulNBits"), nodes.count("GatherBlockQuantized")) == (3, 1)
    with torch.inference_mode():
        expected = model(ids).numpy()
    (outputs,) = OnnxRuntime().load(chosen.content)([ids.numpy()])
    # The kernel rounds its inputs to 8 bits.
    assert np.abs(outputs - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.slow
def test_the_exact_graph_is_chosen_where_packed_codes_are_not_faster_or_predict_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, state, ids = quantize(weight_bits=4)
    monkeypatch.setattr(graph_choice, "time_rounds", Clock({FLOAT: 1.0, BLOCKS: 0.99}))
    chosen = choose_graph(make_request(model, state, ids), OnnxRuntime(), PRECISIONS)
    (outputs,) = OnnxRuntime().load(chosen.content)([ids.numpy()])
    with torch.inference_mode():
        np.testing.assert_allclose(outputs, model(ids).numpy(), rtol=1e-4, atol=1e-5)
    assert (chosen.form, set(chosen.milliseconds)) == (FLOAT, {FLOAT, BLOCKS})


class Old(OnnxRuntime):
    """A runtime that lacks the operators it should have."""

    def load(self, model: bytes, threads: int = 1) -> Model:
        if b"GatherBlockQuantized" in model:
            return OnnxRuntime().load(b"")
        return super().load(model, threads)


@pytest.mark.slow
def test_a_runtime_without_the_operators_gets_a_graph_of_the_standard() -> None:
    model, state, ids = quantize(weight_bits=4)
    chosen = choose_graph(make_request(model, state, ids), Old(), PRECISIONS)
    assert {entry.domain for entry in onnx.load_from_string(chosen.content).opset_import} == {""}


def entry(group: int = 0) -> dict[str, object]:
    return {"name": "layer", "weight": None, "decoded": {"group": group}}


def tensors(codes: Tensor, scale: Tensor, zero_point: Tensor) -> dict[str, Tensor]:
    return {"layer.weight_codes": codes, "layer.weight_scale": scale, "layer.weight_zero_point": zero_point}


def test_codes_and_zero_points_are_packed_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (128, 80), generator=generator).to(torch.uint8)
    scale, zero = torch.rand(128, 2, generator=generator) + 0.5, torch.randint(0, 16, (128, 2), generator=generator)
    weight = encode_blocks(entry(48), tensors(codes, scale, zero))
    assert weight is not None
    # Groups of 48 are three blocks of 16.
    assert (weight.block, weight.bits, weight.codes.shape) == (16, 4, (128, 5, 8))
    groups = torch.arange(80) // 48
    expected = (codes.float() - zero[:, groups]) * scale[:, groups]
    np.testing.assert_array_equal(weight.values, expected.numpy())
    assert weight.codes[3, 1, 0] == codes[3, 16] + 16 * codes[3, 17]


def test_a_weight_that_the_operator_cannot_hold_stays_decoded() -> None:
    codes, scale = torch.ones(128, 80, dtype=torch.int8), torch.ones(128, 4)
    zero = torch.zeros(128, 4, dtype=torch.int32)
    # Groups of 20 have no block of 16, 32, ..., and the last two are too small, or no linear layer.
    assert encode_blocks(entry(20), tensors(codes, scale, zero)) is None
    assert encode_blocks(entry(), tensors(codes[:8], scale[:8, 0], zero[:8, 0])) is None
    assert encode_blocks(entry(), tensors(codes[:, :, None], scale[:, 0], zero[:, 0])) is None
    assert encode_blocks(entry(), tensors(codes, scale[:, 0], zero[:, 0])) is not None
