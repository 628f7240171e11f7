"""Quantized embedding tables in ONNX: stored as codes, and the rows of the torch module."""

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE
from autocompress.export.embedding_tables import Lookup
from autocompress.export.onnx import export_float, export_quantized
from autocompress.targets.onnx_session import create_session, is_weights_only

ROWS, COLUMNS = 300, 10
METHOD = QUANTIZE.get("post_training")


class Rows(nn.Module):
    """What a table gives, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, COLUMNS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def exported(model: nn.Module, ids: Tensor, **settings: object) -> tuple[nn.Module, onnx.ModelProto]:
    """Return the quantized module and its graph."""
    model = model.eval()
    quantized, state = METHOD.apply(model, METHOD.config.of(settings), Context((ids[:1],), (ids.unsqueeze(0),)))
    return quantized, export_quantized(quantized, state, (ids[:1],), {"row": COLUMNS})


def run(proto: onnx.ModelProto, ids: Tensor) -> Tensor:
    running = create_session(proto.SerializeToString())
    return torch.from_numpy(running.run(None, {running.get_inputs()[0].name: ids.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "settings"),
    [
        (8, {}),
        (8, {"weight_scheme": "asymmetric"}),
        (4, {}),
        (3, {"weight_scheme": "asymmetric"}),
        (2, {}),
        (4, {"quantizer": "codebook"}),
        (3, {"quantizer": "power_of_two"}),
    ],
)
def test_the_graph_returns_the_modules_rows_to_the_bit(bits: int, settings: dict[str, object]) -> None:
    torch.manual_seed(bits)
    ids = torch.randint(ROWS, (50,))
    quantized, proto = exported(Rows(), ids, weight_bits=bits, activation_bits=32, **settings)
    with torch.inference_mode():
        assert torch.equal(run(proto, ids), quantized(ids))
    shared = {2: 4, 3: 2, 4: 2, 8: 1}[bits]
    (codes,) = [tensor for tensor in proto.graph.initializer if tensor.name.endswith("table.codes")]
    assert list(codes.dims) == [ROWS, -(-COLUMNS // shared)]
    assert codes.data_type == onnx.TensorProto.UINT8
    floats = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(tensor.dims)) for tensor in floats) < 3 * ROWS


@pytest.mark.slow
def test_the_file_is_smaller_by_what_the_table_saves() -> None:
    torch.manual_seed(0)
    model, ids = nn.Embedding(4000, COLUMNS), torch.randint(4000, (8,))
    whole = len(export_float(model, (ids[:1],), {"row": COLUMNS}).SerializeToString())
    sizes = {
        bits: len(exported(model, ids, weight_bits=bits, activation_bits=32)[1].SerializeToString()) for bits in (8, 4)
    }
    for bits, size in sizes.items():
        codes = 4000 * -(-COLUMNS * bits // 8)
        assert abs(size - (codes + 4 * 4000)) < 4000
        assert whole - size > 4000 * COLUMNS * 4 - codes - 4 * 4000 - 4000
    assert sizes[4] < sizes[8] < whole / 2


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "padding"), [("sum", None), ("mean", 0), ("max", 0)])
def test_bags_are_looked_up_too(mode: str, padding: int | None) -> None:
    torch.manual_seed(0)
    model = nn.EmbeddingBag(ROWS, COLUMNS, mode=mode, padding_idx=padding)
    ids = torch.randint(3, (20, 4))
    ids[0] = 0
    quantized, proto = exported(model, ids, weight_bits=4, activation_bits=32)
    with torch.inference_mode():
        torch.testing.assert_close(run(proto, ids), quantized(ids))
    assert [list(tensor.dims) for tensor in proto.graph.initializer if tensor.name.endswith("codes")] == [[ROWS, 5]]


@pytest.mark.slow
def test_tables_beside_integer_layers_do_not_make_a_model_weights_only() -> None:
    torch.manual_seed(0)
    model, ids = nn.Sequential(nn.Embedding(ROWS, 6), nn.ReLU(), nn.Linear(6, COLUMNS)), torch.randint(ROWS, (32,))
    for bits, only in ((8, False), (32, True)):
        quantized, proto = exported(model, ids, weight_bits=4, activation_bits=bits)
        assert is_weights_only(proto.SerializeToString()) is only
        with torch.inference_mode():
            torch.testing.assert_close(run(proto, ids), quantized(ids), rtol=1e-4, atol=1e-5)
    _, proto = exported(model, ids, weight_bits=4, activation_bits=8, granularity="per_group")
    assert not is_weights_only(proto.SerializeToString())


def test_a_look_up_of_lists_keeps_their_shape() -> None:
    codes = torch.randint(-8, 8, (20, 7), dtype=torch.int8)
    scale, zero_point = torch.rand(20) + 0.5, torch.randint(-3, 4, (20,), dtype=torch.int32)
    found = Lookup(codes, scale, zero_point, None)(torch.tensor([[3, 4], [0, 19]]))
    whole = (codes.float() - zero_point[:, None]) * scale[:, None]
    assert torch.equal(found, whole[torch.tensor([[3, 4], [0, 19]])])


class Bags(nn.Module):
    """The reduced rows of bags of equal size."""

    def __init__(self, mode: str, padding: int | None) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, COLUMNS, mode=mode, padding_idx=padding)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


@pytest.mark.parametrize(("mode", "padding"), [("sum", 0), ("mean", 0), ("mean", None), ("max", 0)])
def test_bags_are_exported_without_a_loop(mode: str, padding: int | None) -> None:
    torch.manual_seed(0)
    model = Bags(mode, padding).eval()
    ids = torch.randint(ROWS, (6, 5))
    ids[0, 2:] = 0
    ids[1] = 0
    proto = export_float(model, (ids[:1],), {"row": COLUMNS})
    assert not {node.op_type for node in proto.graph.node} & {"Loop", "If", "Scan"}
    with torch.inference_mode():
        torch.testing.assert_close(run(proto, ids), model(ids))
