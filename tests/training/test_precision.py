"""The precision of a fit: autocast, memory layouts, and the choice by name or by a measurement."""

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.training.device import Precision, choose_precision, is_bfloat16_faster
from tests.training.test_fit import SMALL, SPLITS, TASK, accuracy, trained


@pytest.mark.slow
def test_bfloat16_learns_as_well_and_leaves_single_precision_weights() -> None:
    model = trained(Part.of("adamw", epochs=8, learning_rate=1e-2, precision="bfloat16"))
    assert accuracy(model) > 0.6
    assert all(p.dtype is torch.float32 and p.is_contiguous() for p in model.parameters())


def test_auto_takes_what_the_probe_finds_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = SPLITS.train.take(slice(0, 16))
    model = TASK.build(SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert is_bfloat16_faster(model, TASK, batch) in (True, False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for pays in (True, False):
        monkeypatch.setattr("autocompress.training.device.is_bfloat16_faster", lambda *args, pays=pays: pays)
        assert choose_precision("auto", model, TASK, batch).is_bfloat16 is pays
    assert not choose_precision("float32", model, TASK, batch).is_bfloat16


class Products(nn.Module):
    """A model with an operator that autocast does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.products, self.head = nn.Linear(64, 8), nn.Bilinear(8, 8, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x.flatten(1))
        return self.head(self.products(features, features))


def test_auto_keeps_single_precision_where_bfloat16_fails() -> None:
    assert not choose_precision("auto", Products(), TASK, SPLITS.train.take(slice(0, 16))).is_bfloat16


@pytest.mark.parametrize(("is_bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_matrix_products_have_the_precision_inside_the_context_alone(is_bfloat16: bool, dtype: torch.dtype) -> None:
    layer, values = nn.Linear(3, 2), torch.ones(1, 3)
    with Precision(is_bfloat16).autocast():
        assert layer(values).dtype is dtype
    assert layer(values).dtype is torch.float32


def test_bfloat16_puts_convolutions_into_channels_last_and_the_layout_is_restored() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = SPLITS.train.take(slice(0, 4))
    precision = choose_precision("bfloat16", model, TASK, batch)
    assert precision == Precision(is_bfloat16=True, device=torch.device("cpu"))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert model[0].weight.dtype is torch.float32
    precision.restore_layout(model)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_float32_leaves_the_layout_unchanged() -> None:
    model = nn.Conv2d(4, 6, 3)
    assert choose_precision("float32", model, TASK, SPLITS.train.take(slice(0, 4))) == Precision(is_bfloat16=False)
    assert model.weight.is_contiguous()
