"""torch's exporter decomposes a program only where an operation needs it, and is left as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.export import torch_exporter as module
from autocompress.export.onnx import export_float
from autocompress.targets.onnx_session import create_session


class Mixed(nn.Module):
    """Convolution, batch normalization, pooling and a conversion: each has its own lowering."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(self.first(images.to(torch.float32))).flatten(1)
        return self.head(self.norm(pooled))


class Divided(Mixed):
    """Pooling to four values, which is decomposed into windows."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 2)


class Masked(Mixed):
    """Python's operators on integers, a condition on a size, and the other layers."""

    def forward(self, images: Tensor) -> Tensor:
        codes = (images * 255).long()
        torch._check(images.shape[2] < 9)
        return super().forward(((codes & 127) | (codes & 1) ^ 2) / 255)


def build(kind: type[Mixed]) -> Mixed:
    torch.manual_seed(0)
    model = kind()
    # Statistics of its own, which no normalization may lose.
    model(torch.rand(32, 1, 8, 8))
    return model.eval()


def count_decompositions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each program that is decomposed."""
    counted: list[int] = []
    skip = module._skip_decomposition

    def count(decompose: Any) -> Any:
        def run(program: Any, registry: Any) -> Any:
            counted.append(1)
            return decompose(program, registry)

        return skip(run)

    monkeypatch.setattr(module, "_skip_decomposition", count)
    return counted


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "expected"), [(Mixed, 0), (Masked, 0), (Divided, 1)])
def test_a_program_is_decomposed_only_where_an_operation_needs_it(
    kind: type[Mixed], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed = count_decompositions(monkeypatch)
    model, images = build(kind), torch.rand(5, 1, 8, 8)
    proto = export_float(model, (images[:1],), {"label": 2})
    assert len(decomposed) == expected
    (actual,) = create_session(proto.SerializeToString(), 1).run(None, {"input": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), model(images).detach(), atol=1e-5, rtol=1e-5)


def test_a_program_without_private_functions_of_torch_is_exported_as_it_is() -> None:
    with module._replace_function("no_such_module", "anything", lambda function: function):
        pass
    with module._replace_function("_fx_passes", "no_such_function", lambda function: function):
        pass


def test_functions_of_torch_are_restored() -> None:
    from torch.onnx._internal.exporter import _fx_passes
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    before = (_fx_passes.decompose_with_registry, vars(ONNXRegistry)["from_torchlib"])
    with module.adjust_exporter():
        assert _fx_passes.decompose_with_registry is not before[0]
    assert (_fx_passes.decompose_with_registry, vars(ONNXRegistry)["from_torchlib"]) == before
