import math

import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from autocompress.core.heads import IGNORED, Levels, Regression
from autocompress.errors import TrialError
from autocompress.measure import Subject, measure

NAMES = ["rmse", "mae", "r2"]


def test_they_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, true = (torch.randn(40, 3, generator=generator) for _ in range(2))
    scores = measure(Subject({"y": predicted}, {"y": true}, heads={"y": Regression(3)}), NAMES)
    for name, expected in zip(NAMES, (root_mean_squared_error, mean_absolute_error, r2_score), strict=True):
        assert scores[name] == pytest.approx(expected(true.numpy(), predicted.numpy()), rel=1e-6)


def test_missing_values_do_not_count() -> None:
    true = torch.tensor([[1.0], [math.nan], [3.0]])
    subject = Subject({"y": torch.tensor([[1.0], [7.0], [5.0]])}, {"y": true}, heads={"y": Regression(1)})
    assert measure(subject, ["mae"]) == {"mae": 1.0}


class TestLevels:
    """Classes that are numbers."""

    def test_the_prediction_is_the_expected_value(self) -> None:
        """Expected ratings of 2.2 and 3 beside true ones of 1 and 5: errors 1.2 and 2."""
        logits = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 1.0]]).log()
        head = Levels(3, levels=(1.0, 3.0, 5.0))
        subject = Subject({"rating": logits}, {"rating": torch.tensor([0, 2])}, heads={"rating": head})
        assert measure(subject, ["rmse"])["rmse"] == pytest.approx(math.sqrt((1.2**2 + 2.0**2) / 2))

    def test_a_missing_rating_does_not_count(self) -> None:
        head = Levels(2, levels=(1.0, 5.0))
        subject = Subject({"r": torch.zeros(2, 2)}, {"r": torch.tensor([0, IGNORED])}, heads={"r": head})
        assert measure(subject, ["rmse"]) == {"rmse": 2.0}

    def test_levels_that_do_not_fit_are_an_error(self) -> None:
        with pytest.raises(TrialError, match="give one value for each class"):
            Levels(3, levels=(1.0, 2.0))


def test_classes_without_values_are_an_error() -> None:
    subject = Subject({"label": torch.zeros(1, 2)}, {"label": torch.tensor([0])})
    with pytest.raises(TrialError, match=r"no head predicts numbers: 'label' \(2 classes\)"):
        measure(subject, ["rmse"])


def test_outputs_that_are_not_finite_score_nan() -> None:
    subject = Subject({"y": torch.tensor([[math.nan]])}, {"y": torch.tensor([[1.0]])}, heads={"y": Regression(1)})
    assert math.isnan(measure(subject, ["rmse"])["rmse"])


def test_heads_of_other_kinds_are_left_out() -> None:
    outputs = {"y": torch.tensor([[1.0], [2.0]]), "label": torch.eye(2)}
    targets = {"y": torch.tensor([[1.0], [4.0]]), "label": torch.tensor([0, 0])}
    subject = Subject(outputs, targets, heads={"y": Regression(1), "label": 2})
    assert measure(subject, ["mae", "accuracy"]) == {"mae": 1.0, "accuracy": 0.5}


def test_retention_of_numbers_is_the_ratio_of_the_errors() -> None:
    """R2 of a poor teacher is negative, and a ratio of two of them means nothing."""
    true = torch.tensor([[1.0], [3.0]])
    teacher, student = torch.tensor([[5.0], [7.0]]), torch.tensor([[9.0], [11.0]])
    subject = Subject({"y": student}, {"y": true}, {"y": teacher}, heads={"y": Regression(1)})
    assert measure(subject, ["retention"])["retention"] == pytest.approx(0.5)
