import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ArtifactError
from autocompress.export.export_check import _name_layers
from autocompress.export.export_error import describe_export_error
from autocompress.export.onnx import export_float, list_layers_of_operators


class GuardOnDataDependentSymNodeError(Exception):
    """An error of the name that torch gives to reading a value."""


class Failing(nn.Module):
    """A model whose forward pass fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.body, self.error = nn.Sequential(nn.Identity(), nn.Linear(2, 2)), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def describe(model: nn.Module) -> str:
    """Return the description of an error that the exporter would raise for the error of a forward pass."""
    try:
        model(torch.ones(1, 2))
    except Exception as error:
        summary = RuntimeError("Failed to export the model. This is step 1/3\n- next steps")
        summary.__cause__ = error
        return describe_export_error(summary, model)
    raise AssertionError("the forward pass does not fail")


def test_the_cause_is_named_and_not_the_exporters_summary() -> None:
    model = nn.Sequential(nn.Identity(), Failing(ValueError("\nthe shape is wrong\nmore")))
    assert describe(model) == "layer '1' (Failing): the shape is wrong"


def test_reading_values_has_its_fix() -> None:
    assert "torch.where" in describe(Failing(GuardOnDataDependentSymNodeError("Could not guard")))


class Bessel(nn.Module):
    """An operator without a form in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.slow
def test_an_operator_without_a_form_in_onnx_is_named_with_its_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Bessel())).eval()
    with pytest.raises(ArtifactError, match=r"layer '1\.1' \(Bessel\): No ONNX function found for .*bessel_j0"):
        export_float(model, (torch.ones(1, 3),), {"y": 3})


@pytest.mark.slow
def test_operators_are_listed_with_their_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.GELU(), nn.Linear(3, 2))).eval()
    layers = list_layers_of_operators(model, (torch.ones(1, 3),), {"y": 2})
    assert layers["Gemm"] == ["0", "1.1"]
    assert _name_layers("it lacks Gemm_3 and Pad", layers) == " (Gemm of '0', '1.1')"
    assert _name_layers("out of memory", layers) == ""
