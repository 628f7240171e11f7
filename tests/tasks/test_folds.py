"""Every example outside of the test split is held out once, and groups stay whole."""

import pytest
import torch

from autocompress.core.task import Split
from autocompress.errors import UsageError
from autocompress.tasks.folds import join_splits, make_fold
from autocompress.tasks.tensors import Tensors


def test_each_example_is_held_out_once_and_the_test_split_never() -> None:
    task = Tensors((torch.arange(300.0)[:, None], torch.arange(300) % 3))
    splits = task.splits(0)
    folds = [make_fold(task, splits, index, 4, 0) for index in range(4)]
    held_out = torch.cat([fold.select_val.inputs[0] for fold in folds]).flatten()
    outside = torch.cat([splits.test.inputs[0].flatten(), held_out])
    assert outside.sort().values.tolist() == list(range(300))
    for fold in folds:
        assert fold.test is splits.test
        parts = [part.inputs[0].flatten() for name, part in fold.items() if name != "test"]
        assert torch.equal(torch.cat(parts).sort().values, held_out.sort().values)
        assert (len(fold.calibration), len(fold.search_val)) == (len(splits.calibration), len(splits.search_val))
        assert torch.bincount(fold.select_val.targets["label"]).tolist() == pytest.approx([21.25] * 3, abs=1)
    assert torch.equal(make_fold(task, splits, 1, 4, 0).train.inputs[0], folds[1].train.inputs[0])
    assert not torch.equal(make_fold(task, splits, 1, 4, 1).select_val.inputs[0], folds[1].select_val.inputs[0])


def test_a_group_is_in_one_fold() -> None:
    groups = torch.arange(300) // 10
    task = Tensors((torch.randn(300, 2), torch.arange(300) % 2), groups=groups)
    splits = task.splits(0)
    owners = []
    for index in range(3):
        fold = make_fold(task, splits, index, 3, 0)
        own, rest = fold.select_val.keys.groups, fold.train.keys.groups
        assert own is not None
        assert rest is not None
        assert not set(own.tolist()) & set(rest.tolist())
        owners += own.unique().tolist()
    assert len(owners) == len(set(owners))
    with pytest.raises(UsageError, match=r"groups outside of the test split cannot be in 40 folds"):
        make_fold(task, splits, 0, 40, 0)


def test_numbers_and_rare_classes_have_folds() -> None:
    for targets in (torch.randn(60), torch.tensor([0, 1] * 25 + [2] * 10)):
        task = Tensors((torch.arange(60.0)[:, None], targets), kinds="auto")
        splits = task.splits(0)
        held_out = [make_fold(task, splits, index, 12, 0).select_val.inputs[0] for index in range(12)]
        assert len(torch.cat(held_out).unique()) == 60 - len(splits.test)


def test_splits_are_joined_in_order() -> None:
    one, other = (Split((torch.arange(count),), {"label": torch.arange(count)}) for count in (3, 2))
    assert join_splits([one, other]).targets["label"].tolist() == [0, 1, 2, 0, 1]
    assert join_splits([one, other]).keys.groups is None
