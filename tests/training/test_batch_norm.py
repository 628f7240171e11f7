"""Synchronized batch norms in one process; several processes are those of test_distributed."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from autocompress.training import batch_norm
from autocompress.training.batch_norm import synchronize_batch_norms


@pytest.fixture
def lonely_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("lonely_group")
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_the_formula_is_that_of_torch(momentum: float | None, affine: bool) -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    ours = copy.deepcopy(plain)
    x = (torch.randn(4, 3, 5, 5) * 2 + 100).requires_grad_()
    other = x.detach().clone().requires_grad_()
    for norm, inputs in ((plain, x), (ours, other)):
        for _ in range(3):
            out = norm(inputs) if norm is plain else batch_norm._normalize(norm, 0, 1, inputs)
        (out * torch.arange(5)).square().sum().backward()
    torch.testing.assert_close(other.grad, x.grad, atol=1e-3, rtol=1e-3)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, msg=name)
    for one, parameter in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, one.grad, atol=1e-3, rtol=1e-3)


def test_one_process_and_the_evaluation_mode_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    with synchronize_batch_norms(model, 0, 1):
        assert "forward" not in vars(model[0])
    model.eval()
    x = torch.randn(3, 2)
    expected = model(x)
    # No process group exists, so a collective operation would fail.
    with synchronize_batch_norms(model, 0, 2):
        assert torch.equal(model(x), expected)
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])
