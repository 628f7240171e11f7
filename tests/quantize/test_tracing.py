from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.quantize.tracing import find_outputs_to_quantize, trace_graph

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


class Net(nn.Module):
    def __init__(self, run: Any, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, **options)
        self.next = nn.Conv2d(2, 2, 3, padding=1)
        self.relu, self.pool, self.identity, self.flat = nn.ReLU(), nn.MaxPool2d(2), nn.Identity(), nn.Flatten()
        self.head, self.run = nn.Linear(8, 3), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda s, x: s.next(s.conv(x)).sum(), {"next": False}),
        (lambda s, x: s.next(F.relu(s.conv(x))).relu().mean(), {"next": True}),
        (lambda s, x: s.next(s.pool(s.relu(s.identity(s.conv(x))))).sigmoid() + 1, {"next": False}),
        (lambda s, x: s.head(s.next(F.max_pool2d(torch.relu(s.conv(x)), 4)).flatten(1)), {}),
        (lambda s, x: s.head(s.flat(s.next(s.pool(s.pool(s.conv(x)))))), {}),
        (lambda s, x: s.next((h := s.conv(x)).relu()).sum() + h.sum(), {"conv": False, "next": False}),
        (lambda s, x: s.next(h := s.conv(x).relu()).sum() + h.sum(), {"conv": True, "next": False}),
        (lambda s, x: s.next(s.next(s.conv(x))).relu().sum(), {"next": False}),
        (lambda s, x: s.next(s.next(s.conv(x)).relu() * 2).relu().sum(), {"next": True}),
        (lambda s, x: s.next(s.conv(x)), {}),
        (lambda s, x: {"a": s.next(s.conv(x)).relu()}, {}),
        (lambda s, x: s.next(F.gelu(s.conv(x))).sum(), {"conv": False, "next": False}),
        (lambda s, x: s.conv(x).sum() if x.sum() > 0 else s.conv(x), {}),
    ],
)
def test_outputs_that_more_than_quantized_layers_read(run: Any, expected: dict[str, bool]) -> None:
    assert find_outputs_to_quantize(Net(run), EXAMPLE, ["conv", "next", "head"]) == expected


def test_a_layer_that_is_not_quantized_reads_in_floating_point() -> None:
    net = Net(lambda s, x: s.next(s.conv(x)).sum())
    assert find_outputs_to_quantize(net, EXAMPLE, ["conv"]) == {"conv": False}


def test_a_padding_that_is_an_operation_of_its_own_needs_no_integer_output() -> None:
    net = Net(lambda s, x: s.conv(x).sum(), padding_mode="circular")
    assert find_outputs_to_quantize(net, EXAMPLE, ["conv"]) == {}


def test_tracing_follows_the_arguments_that_are_given() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x + 1 if mask is None else x * mask

    for example, operator in (((torch.ones(1),), "add"), ((torch.ones(1), torch.ones(1)), "mul")):
        called = [node.target.__name__ for node in trace_graph(Optional(), example).nodes if node.op == "call_function"]
        assert operator in called
