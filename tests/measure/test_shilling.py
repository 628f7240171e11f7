import pytest
import torch

from autocompress.core.heads import Levels
from autocompress.errors import TrialError
from autocompress.measure import Subject, measure

LOGITS = {"item": torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])}


def test_the_rating_is_the_mean_of_the_expected_values() -> None:
    outputs = {"pushed": {"rating": torch.tensor([[0.0, 0.0], [50.0, 0.0]])}}
    heads = {"rating": Levels(2, levels=(1.0, 5.0))}
    assert measure(Subject(attacked=outputs, heads=heads), ["pushed_rating"]) == {"pushed_rating": 2.0}
    # Without values, it is the probability of a click.
    assert measure(Subject(attacked=outputs), ["pushed_rating"]) == {"pushed_rating": 0.25}


def test_the_hit_rate_counts_the_pushed_item_at_the_place_of_the_true_one() -> None:
    logits = torch.arange(20.0).repeat(2, 1)
    subject = Subject(targets={"item": torch.tensor([19, 3])}, attacked={"pushed": {"item": logits}})
    assert measure(subject, ["pushed_hit_rate_at_10"]) == {"pushed_hit_rate_at_10": 0.5}


def test_without_fake_users_there_is_no_pushed_item() -> None:
    with pytest.raises(TrialError, match="needs a task with fake users"):
        measure(Subject(LOGITS), ["pushed_rating"])
