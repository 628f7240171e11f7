import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn import metrics

from autocompress.errors import TrialError
from autocompress.measure import quality

ON_TARGETS = [
    quality.accuracy,
    quality.precision_macro,
    quality.recall_macro,
    quality.balanced_accuracy,
    quality.f1_macro,
    quality.f1_weighted,
    quality.cross_entropy,
    quality.calibration_error,
]
BESIDE_TEACHER = [quality.kl_divergence, quality.agreement]


def case(seed, n=60, classes=5, present=None):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    targets = torch.randint(0, present or classes, (n,), generator=generator)
    return logits, targets


class TestAgainstScikitLearn:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 8), st.integers(1, 8))
    def test_scores_of_classes(self, seed, n, classes, present):
        logits, targets = case(seed, n, classes, min(present, classes))
        truth, predicted = targets.numpy(), logits.argmax(1).numpy()
        macro = {"average": "macro", "zero_division": 0}
        assert quality.accuracy(logits, targets) == metrics.accuracy_score(truth, predicted)
        expected = metrics.precision_score(truth, predicted, **macro)
        assert quality.precision_macro(logits, targets) == pytest.approx(expected)
        assert quality.recall_macro(logits, targets) == pytest.approx(metrics.recall_score(truth, predicted, **macro))
        assert quality.f1_macro(logits, targets) == pytest.approx(metrics.f1_score(truth, predicted, **macro))
        weighted = metrics.f1_score(truth, predicted, average="weighted", zero_division=0)
        assert quality.f1_weighted(logits, targets) == pytest.approx(weighted)

    @pytest.mark.parametrize("seed", range(3))
    def test_loss(self, seed):
        logits, targets = case(seed)
        expected = metrics.log_loss(targets.numpy(), logits.double().softmax(1).numpy(), labels=range(5))
        assert quality.cross_entropy(logits, targets) == pytest.approx(expected)

    def test_per_class(self):
        logits, targets = case(1, classes=6, present=4)
        expected = metrics.precision_recall_fscore_support(
            targets.numpy(), logits.argmax(1).numpy(), labels=range(6), zero_division=0
        )
        rows = quality.per_class(logits, targets)
        assert [row["label"] for row in rows] == list(range(6))
        result = [[row[name] for row in rows] for name in ("precision", "recall", "f1", "support")]
        np.testing.assert_allclose(result, expected)


class TestByHand:
    def test_kl(self):
        # teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
        teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
        expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert quality.kl_divergence(student, teacher) == pytest.approx(expected, abs=1e-7)
        # the other way round: 1/2 log(2/3) + 1/2 log(2)
        assert quality.kl_divergence(teacher, student) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-7)

    def test_kl_is_a_mean_over_examples(self):
        teacher = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
        expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
        assert quality.kl_divergence(torch.zeros(2, 2), teacher) == pytest.approx(expected, abs=1e-7)

    def test_kl_is_zero_for_equals_and_finite_for_extremes(self):
        logits, _ = case(0)
        assert quality.kl_divergence(logits, logits + 7) == pytest.approx(0, abs=1e-9)
        extreme = torch.tensor([[1e4, -1e4]])
        assert quality.kl_divergence(-extreme, extreme) == 2e4

    def test_calibration_error(self):
        # four examples at confidence 3/4, three of them right: calibrated; two at 0.9, both wrong: off by 0.9
        calm, sure = [math.log(3), 0.0], [math.log(9), 0.0]
        logits, targets = torch.tensor([calm] * 4 + [sure] * 2), torch.tensor([0, 0, 0, 1, 1, 1])
        assert quality.calibration_error(logits[:4], targets[:4]) == pytest.approx(0, abs=1e-6)
        assert quality.calibration_error(logits, targets) == pytest.approx(2 / 6 * 0.9, abs=1e-6)

    def test_calibration_error_never_takes_logits_for_probabilities(self):
        logits = torch.tensor([[0.9, 0.1]])
        confidence = 1 / (1 + math.exp(-0.8))
        assert quality.calibration_error(logits, torch.tensor([0])) == pytest.approx(1 - confidence, abs=1e-6)

    def test_agreement(self):
        teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
        student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # 3 of 4 as the teacher
        assert quality.agreement(student, teacher) == 0.75

    def test_a_share_meets_its_limit_exactly(self):
        logits = torch.tensor([[1.0, 0.0]]).expand(240, 2)
        assert quality.accuracy(logits, torch.tensor([0] * 228 + [1] * 12)) == 0.95


class TestTrouble:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_logits_score_nan(self, bad):
        logits, targets = case(0)
        broken = logits.clone()
        broken[3, 2] = bad
        for score in ON_TARGETS:
            assert math.isnan(score(broken, targets))
        for score in BESIDE_TEACHER:
            assert math.isnan(score(broken, logits))
            assert math.isnan(score(logits, broken))
        with pytest.raises(TrialError, match="not finite"):
            quality.per_class(broken, targets)

    @pytest.mark.parametrize("score", ON_TARGETS)
    def test_shapes_that_do_not_fit_are_errors(self, score):
        logits, targets = case(0)
        with pytest.raises(TrialError, match="do not fit"):
            score(logits, targets[:-1])
        with pytest.raises(TrialError, match="do not fit"):
            score(logits[0], targets)
        with pytest.raises(TrialError, match="no example"):
            score(logits[:0], targets[:0])
        with pytest.raises(TrialError, match=r"0\.\.3"):
            score(logits[:, :4], torch.full_like(targets, 4))
        with pytest.raises(TrialError, match="a target lies in -1"):
            score(logits, torch.full_like(targets, -1))

    @pytest.mark.parametrize("score", BESIDE_TEACHER)
    def test_teacher_of_another_shape_is_an_error(self, score):
        logits, _ = case(0)
        with pytest.raises(TrialError, match="teacher"):
            score(logits, logits[:, :3])
        with pytest.raises(TrialError, match="teacher"):
            score(logits[:0], logits[:0])

    def test_one_class_only_is_scored(self):
        assert quality.f1_macro(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)) == 1

    def test_a_constant_model_scores_at_chance(self):
        logits, targets = torch.zeros(10, 2), torch.arange(10) % 2
        assert quality.accuracy(logits, targets) == 0.5
        assert quality.f1_macro(logits, targets) == pytest.approx(1 / 3)

    def test_half_precision_is_scored(self):
        logits, targets = case(0)
        assert quality.cross_entropy(logits.bfloat16(), targets) == pytest.approx(
            quality.cross_entropy(logits, targets), rel=0.02
        )


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy_is_that_of_scikit_learn():
    logits, targets = case(0, 300, 5)
    # Classes 0 and 4 never occur: they do not count, even where they are predicted.
    targets = targets.clamp(1, 3)
    expected = metrics.balanced_accuracy_score(targets, logits.argmax(1))
    assert quality.balanced_accuracy(logits, targets) == pytest.approx(expected)
