"""A trained model and its data; modules that need others have fixtures of their own."""

import pytest
from torch import Tensor, nn

from autocompress.core.method import Context
from tests.quantize.nets import Plain, digits, train
from tests.quantize.rounding import context


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return digits()


@pytest.fixture(scope="module")
def trained(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> nn.Module:
    return train(Plain, data[0], data[1])


@pytest.fixture
def calibration(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> Context:
    return context(data[0][:64])
