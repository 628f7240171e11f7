from collections.abc import Callable

import pytest
import torch
from torch import nn

from autocompress.core.heads import IGNORED, Detection, Head, Regression, as_head
from autocompress.errors import UsageError
from autocompress.tasks.module import Module
from autocompress.tasks.targets import check_head_names, make_strata, metrics_of, read_head, read_targets
from autocompress.tasks.tensors import Tensors

N = 240
X = torch.randn(N, 10, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 9, (N, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, outputs))


@pytest.mark.parametrize(
    ("model", "data", "described", "metric"),
    [
        (mlp(1), (X, X.sum(1)), "one number", "r2"),
        (mlp(1), (X, X.sum(1, keepdim=True)), "one number", "r2"),
        (nn.Sequential(mlp(1), nn.Flatten(0)), (X, X.sum(1)), "one number", "r2"),
        (mlp(10), (X, X), "10 numbers", "r2"),
        (mlp(1), (X, (X.sum(1) > 0).long()), "one logit of two classes", "accuracy"),
        (mlp(1), (X, (X.sum(1) > 0).float()), "one logit of two classes", "accuracy"),
        (mlp(4), (X, (X[:, :4] > 0).float()), "4 labels", "accuracy"),
        (mlp(3), (X, torch.eye(3)[torch.arange(N) % 3]), "3 classes", "accuracy"),
        (mlp(3), (X, (torch.arange(N) % 3).float()), "3 classes", "accuracy"),
        (nn.Embedding(9, 3), (TOKENS, TOKENS % 3), "3 tags for each token", "accuracy"),
        (nn.Conv2d(1, 3, 1), (IMAGES, (IMAGES[:, 0] > 0).long()), "3 classes at each position", "accuracy"),
        (nn.Conv2d(1, 1, 1), (IMAGES, (IMAGES > 0).float()), "36 labels", "accuracy"),
    ],
)
def test_outputs_and_targets_give_the_kind(
    model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], described: str, metric: str
) -> None:
    task = Module(model, data)
    head = as_head(task.heads["label"])
    assert (head.describe(), task.metrics[0]) == (described, metric)
    splits = task.splits(0)
    assert sum(len(split) for _, split in splits.items()) == N
    with torch.no_grad():
        outputs = {"label": task.model(*splits.train.inputs)}
    assert task.loss(outputs, splits.train.targets).isfinite()


@pytest.mark.parametrize(
    ("model", "targets", "kinds", "message"),
    [
        (lambda: mlp(3), X.sum(1), None, r"its output for 'label' is \[1, 3\] and does not fit targets \[1\]"),
        (lambda: mlp(2), torch.arange(N) % 3, None, "2 classes, but the data has 3"),
        (lambda: mlp(3), X[:, :2], None, r"\[1, 3\] and does not fit targets \[1, 2\]"),
        (lambda: mlp(1), X.sum(1), "classes", "class indices are whole numbers"),
        (lambda: mlp(1), X.sum(1), "regresion", "did you mean 'regression'"),
    ],
)
def test_outputs_that_do_not_fit_are_errors(
    model: Callable[[], nn.Module], targets: torch.Tensor, kinds: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Module(model, (X, targets), kinds=kinds)


def test_a_head_with_settings_is_used_as_it_is() -> None:
    head = Regression(1, loss_name="huber", scale=(2.0,))
    assert Module(mlp(1), (X, X.sum(1)), kinds=head).heads["label"] is head


def test_a_guess_is_a_notice() -> None:
    task = Module(mlp(3), (X, (torch.arange(N) % 3).float()))
    assert any("are real numbers that are all whole, and are read as classes" in notice for notice in task.notices)


def test_missing_labels_are_ignored_and_counted() -> None:
    masks = (IMAGES[:, 0] > 0).long()
    masks[0, 0] = 255
    task = Module(nn.Conv2d(1, 2, 1), Tensors((IMAGES, masks), kinds="auto", ignored=255))
    assert int(task.heads["label"]) == 2
    numbers = X.sum(1)
    numbers[:5] = torch.nan
    task = Module(mlp(1), (X, numbers))
    assert any("5 of 240 targets of 'label' are missing" in notice for notice in task.notices)
    labels = torch.arange(N) % 3
    labels[:7] = IGNORED
    assert Tensors((X, labels)).heads == {"label": 3}


def test_an_infinite_target_is_an_error() -> None:
    with pytest.raises(UsageError, match="example 1 is infinite"):
        read_targets("y", [1.0, float("inf")])


@pytest.mark.parametrize(
    ("name", "word"), [("star rating", "star_rating"), ("is-big", "is_big"), ("class", "class_label"), ("", "label")]
)
def test_a_name_that_no_expression_can_name_is_an_error(name: str, word: str) -> None:
    with pytest.raises(UsageError, match=f"give a word such as '{word}'"):
        check_head_names({name: name})


def test_a_head_whose_scores_are_those_of_another_split_is_an_error() -> None:
    with pytest.raises(UsageError, match="could be confused with those of a head 'x' on the split 'test'"):
        Tensors((X, {"x": torch.arange(N) % 2, "x_test": torch.arange(N) % 2}))


def test_numbers_are_stratified_by_their_size() -> None:
    targets = torch.arange(200.0)
    strata = make_strata(Regression(1), targets)
    assert strata is not None
    assert [int((strata == group).sum()) for group in strata.unique()] == [50, 50, 50, 50]
    assert bool((strata.diff() >= 0).all())


def test_several_kinds_are_summed_up_by_their_mean_score() -> None:
    assert metrics_of([Regression(1), as_head(3)])[:3] == ("mean_score", "r2", "accuracy")


@pytest.mark.parametrize("kind", ["detection", Detection(2)])
def test_boxes_are_targets_of_a_task_of_their_own(kind: str | Head) -> None:
    with pytest.raises(UsageError, match="the task of that name has; a detector of your own has a CustomHead"):
        read_head("boxes", {"train": torch.zeros(9, 1, 5)}, kind, None, None)
