"""The benchmark of other tools: costs of an ONNX file, comparison at equal cost, rows of tools that fail."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.core.registry import QUANTIZE
from autocompress.export.onnx import export_float, export_quantized
from benchmarks.peers.graph_costs import count_effective_flops
from benchmarks.peers.table import WRITTEN, compare_at_cost, count_lines, format_page
from benchmarks.peers.tools import TOOLS, SmallNetwork, _fold_constants


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.conv(inputs).relu().flatten(2).mean(2)))


# A multiplication and an addition for each weight of each output: 4 channels of 5 x 5 from 2 of 3 x 3, and 3 from 4.
FLOPS = 2 * (4 * 25 * 2 * 9 + 3 * 4)


def test_operations_in_floating_point_count_whole() -> None:
    content = export_float(Network().eval(), (torch.zeros(1, 2, 5, 5),), {"y": 3}).SerializeToString()
    assert count_effective_flops(content) == FLOPS


def test_operations_of_two_8_bit_operands_count_a_sixteenth() -> None:
    example = torch.randn(1, 2, 5, 5)
    method = QUANTIZE.get("post_training")
    settings = method.config.of({"weight_bits": 8, "activation_bits": 8})
    model, state = method.apply(Network().eval(), settings, Context((example,), ((example,),)))
    content = bytes(export_quantized(model, state, (example,), {"y": 3}).SerializeToString())
    assert count_effective_flops(content) == pytest.approx(FLOPS / 16)


def make_model(val: float, test: float, size: int) -> dict[str, float]:
    return {"val": val, "test": test, "bytes": size, "effective_flops": size, "latency": size}


def write_something() -> int:
    """Return one.

    This is not counted.
    """
    values = [1]

    return values[0]


def test_the_best_file_by_validation_among_those_no_more_expensive_is_compared() -> None:
    ours = [make_model(0.8, 0.75, 10), make_model(0.9, 0.85, 20), make_model(0.99, 0.99, 40)]
    theirs = [make_model(0.9, 0.8, 30), make_model(0.7, 0.7, 10)]
    assert compare_at_cost(ours, theirs, "bytes") == pytest.approx([0.05, 0.05])
    assert compare_at_cost(ours, [make_model(0.9, 0.9, 5)], "bytes") == []


def test_files_that_no_file_of_ours_matches_in_cost_are_counted() -> None:
    common = {"space": "digits", "seed": 0, "budget": 60.0, "seconds": 50.0, "error": ""}
    rows = [
        {**common, "tool": "autocompress", "models": [make_model(0.9, 0.9, 10)]},
        {**common, "tool": "FastNAS", "models": [make_model(0.9, 0.8, 20), make_model(0.9, 0.9, 5)]},
    ]
    lines = format_page(rows, "Title.\n\nWhat is measured.").splitlines()
    (line,) = [line for line in lines if line.startswith("| FastNAS")]
    assert line.count("| +10.0, 1 of 2 not ") == 3


def test_lines_of_code_leave_out_docstrings_and_blank_lines() -> None:
    assert count_lines([write_something]) == 4


def test_a_tool_that_failed_is_a_row_with_its_reason() -> None:
    common = {"space": "digits", "seed": 0, "budget": 60.0}
    rows = [
        {**common, "tool": "autocompress", "seconds": 50.0, "error": "", "models": [make_model(0.9, 0.9, 10)]},
        {**common, "tool": "FastNAS", "seconds": 0.0, "error": "ImportError: no | modelopt", "models": []},
    ]
    lines = format_page(rows, "Title.\n\nWhat is measured.").splitlines()
    assert next(line for line in lines if line.startswith("| FastNAS")).endswith("| ImportError: no / modelopt |")
    assert "| - | - | - | - |" in next(line for line in lines if line.startswith("| FastNAS"))


def test_the_lines_of_every_tool_are_counted() -> None:
    assert set(WRITTEN) == set(TOOLS)


@pytest.mark.parametrize("inputs", [torch.randn(2, 1, 8, 8), torch.randn(2, 1, 40), torch.randint(0, 50, (2, 16))])
def test_the_network_of_the_script_takes_images_series_and_tokens(inputs: torch.Tensor) -> None:
    assert SmallNetwork(inputs, width=8, depth=3, stride=2, classes=5)(inputs).shape == (2, 5)


def test_a_file_with_folded_constants_stores_integers_and_computes_the_same() -> None:
    graph = onnx.parser.parse_graph(
        """peer (float[N, 64] x) => (float[N, 64] y)
        <float[64, 64] weight, float scale = {0.01}, int8 zero = {0}>
        {
            integers = QuantizeLinear(weight, scale, zero)
            decoded = DequantizeLinear(integers, scale, zero)
            y = MatMul(x, decoded)
        }"""
    )
    random = np.random.default_rng(0)
    graph.initializer.append(onnx.numpy_helper.from_array(random.normal(0, 0.1, (64, 64)).astype(np.float32), "weight"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    content = model.SerializeToString()
    folded = _fold_constants(content)
    assert len(folded) < len(content) / 3
    inputs = {"x": random.normal(size=(3, 64)).astype(np.float32)}
    first, second = (
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for file in (content, folded)
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)
