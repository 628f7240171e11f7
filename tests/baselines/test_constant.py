import torch

from autocompress.baselines.constant import compute_constant
from autocompress.core.heads import IGNORED, Binary, Head, MultiLabel, Regression


def test_a_missing_label_does_not_count() -> None:
    shares = compute_constant(Head(2), torch.tensor([1, 1, 1, IGNORED, IGNORED, IGNORED, 0])).softmax(0)
    assert torch.allclose(shares, torch.tensor([2 / 6, 4 / 6]))


def test_a_binary_head_has_the_shares_of_both_classes() -> None:
    assert torch.allclose(compute_constant(Binary(), torch.tensor([0, 0, 0, 1])).exp(), torch.tensor([4 / 6, 2 / 6]))


def test_each_label_has_its_own_odds() -> None:
    odds = compute_constant(MultiLabel(2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [float("nan"), 1.0]]))
    assert torch.allclose(odds.exp(), torch.tensor([3.0, 2 / 3]))


def test_numbers_have_their_mean_without_the_missing_ones() -> None:
    means = compute_constant(Regression(2), torch.tensor([[1.0, 5.0], [3.0, float("nan")]]))
    assert means.tolist() == [2.0, 5.0]
