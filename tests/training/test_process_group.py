"""The share of one process in a group, and the collective operations of a group of one."""

import pytest
import torch
from torch import nn

from autocompress.training.device import SINGLE_PROCESS, ProcessGroup


def test_shares_cover_a_batch_once_and_their_weighted_means_are_its_mean() -> None:
    rows = torch.randperm(50)
    groups = [ProcessGroup(rank, 3) for rank in range(3)]
    shares = [group.local_rows(rows) for group in groups]
    assert sorted(torch.cat(shares).tolist()) == list(range(50))
    values = torch.randn(50)
    weighted = [
        group.loss_scale(share, rows) * values[share].mean() for group, share in zip(groups, shares, strict=True)
    ]
    assert torch.stack(weighted).mean().item() == pytest.approx(values.mean().item(), abs=1e-6)


def test_alone_nothing_is_wrapped_or_averaged() -> None:
    module, value = nn.Linear(1, 1), torch.tensor(3.0)
    assert ProcessGroup().wrap_module(module) is module
    assert ProcessGroup().all_reduce_mean(value) is value


def test_the_default_is_a_group_of_one_that_has_every_row() -> None:
    rows = torch.arange(7)
    assert ProcessGroup() == SINGLE_PROCESS
    assert torch.equal(SINGLE_PROCESS.local_rows(rows), rows)
    assert SINGLE_PROCESS.loss_scale(rows, rows) == 1.0


@pytest.mark.parametrize(("size", "scales"), [(2, [8 / 7, 6 / 7]), (3, [9 / 7, 6 / 7, 6 / 7]), (7, [1.0] * 7)])
def test_the_factors_of_a_group_have_mean_one(size: int, scales: list[float]) -> None:
    rows = torch.arange(7)
    groups = [ProcessGroup(rank, size) for rank in range(size)]
    actual = [group.loss_scale(group.local_rows(rows), rows) for group in groups]
    assert actual == pytest.approx(scales)
    assert sum(actual) / size == pytest.approx(1.0)


def test_a_module_without_trainable_parameters_is_not_wrapped() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    # A group that torch has not initialized: wrapping would fail.
    assert ProcessGroup(0, 2).wrap_module(frozen) is frozen
