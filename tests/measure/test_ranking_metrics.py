import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss, ndcg_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from autocompress.errors import TrialError
from autocompress.measure import Subject, measure
from autocompress.measure.ranking_metrics import area_under_curve, hit_rate, ndcg

NAMES = ["auc", "log_loss", "ndcg_at_10", "hit_rate_at_10"]


@pytest.fixture
def clicks() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Few distinct scores, so that many pairs tie.
    return torch.randint(4, (200, 2), generator=generator).float(), torch.randint(2, (200,), generator=generator)


class TestAreaUnderCurve:
    def test_by_hand(self) -> None:
        """Two clicks and two others: of four pairs, three are in order and one ties."""
        logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
        assert area_under_curve(logits, torch.tensor([1, 1, 0, 0])) == 3.5 / 4

    def test_equals_torchmetrics_with_ties(self, clicks) -> None:
        logits, targets = clicks
        expected = float(binary_auroc((logits[:, 1] - logits[:, 0]).sigmoid(), targets))
        assert area_under_curve(logits, targets) == pytest.approx(expected, abs=1e-6)

    def test_confident_logits_do_not_saturate(self) -> None:
        """As probabilities in single precision both would be 1."""
        logits = torch.tensor([[0.0, 200.0], [0.0, 100.0]])
        assert area_under_curve(logits, torch.tensor([1, 0])) == 1.0

    def test_more_classes_are_one_versus_rest(self) -> None:
        generator = torch.Generator().manual_seed(1)
        logits, targets = torch.randn(90, 3, generator=generator), torch.arange(90) % 3
        expected = roc_auc_score(targets.numpy(), logits.double().softmax(1).numpy(), multi_class="ovr")
        assert area_under_curve(logits, targets) == pytest.approx(expected)

    def test_single_class_scores_nan(self) -> None:
        assert math.isnan(area_under_curve(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64)))


class TestLogLoss:
    def test_by_hand_and_by_scikit_learn(self, clicks) -> None:
        even = Subject({"click": torch.zeros(3, 2)}, {"click": torch.tensor([0, 1, 1])})
        assert measure(even, ["log_loss"])["log_loss"] == pytest.approx(math.log(2))
        logits, targets = clicks
        result = measure(Subject({"click": logits}, {"click": targets}), ["log_loss"])["log_loss"]
        assert result == pytest.approx(sklearn_log_loss(targets.numpy(), logits.double().softmax(1).numpy()))


class TestLists:
    def test_by_hand(self) -> None:
        """Ranks 1, 3 and 12."""
        scores = torch.arange(20.0).flip(0).repeat(3, 1)
        targets = torch.tensor([0, 2, 11])
        assert ndcg(scores, targets) == pytest.approx((1 + 1 / 2 + 0) / 3)
        assert hit_rate(scores, targets) == pytest.approx(2 / 3)

    @pytest.mark.parametrize("distinct", [5, 10_000])
    def test_equals_scikit_learn_with_ties(self, distinct: int) -> None:
        generator = torch.Generator().manual_seed(distinct)
        scores = torch.randint(distinct, (100, 30), generator=generator).float()
        targets = torch.randint(30, (100,), generator=generator)
        truth = np.eye(30)[targets.numpy()]
        assert ndcg(scores, targets) == pytest.approx(ndcg_score(truth, scores.numpy(), k=10))

    def test_ties_count_as_the_mean_over_their_orders(self) -> None:
        """A model that scores all alike hits as chance does, and gains nothing by the order of the candidates."""
        scores = torch.zeros(2, 40)
        assert hit_rate(scores, torch.tensor([0, 39])) == pytest.approx(10 / 40)
        generator = torch.Generator().manual_seed(0)
        scores = torch.randint(3, (1, 30), generator=generator).float()
        places = [int(torch.randperm(30, generator=generator)[0]) for _ in range(1)]
        drawn = []
        for _ in range(4000):
            order = torch.argsort(scores[0] + 1e-3 * torch.rand(30, generator=generator), descending=True)
            drawn.append(float((order[:10] == places[0]).any()))
        assert hit_rate(scores, torch.tensor(places)) == pytest.approx(sum(drawn) / len(drawn), abs=0.03)

    def test_fewer_candidates_than_the_list_all_hit(self) -> None:
        assert hit_rate(torch.randn(4, 6), torch.tensor([0, 1, 2, 5])) == 1.0


@pytest.mark.parametrize("name", NAMES)
class TestFaults:
    def test_logits_that_are_not_finite_score_nan(self, name: str) -> None:
        logits = torch.zeros(4, 2)
        logits[1, 0] = math.nan
        assert math.isnan(measure(Subject({"a": logits}, {"a": torch.tensor([0, 1, 0, 1])}), [name])[name])

    def test_subject_without_logits_or_targets_is_an_error(self, name: str) -> None:
        with pytest.raises(TrialError, match="needs logits"):
            measure(Subject(), [name])
        with pytest.raises(TrialError, match="no targets"):
            measure(Subject({"a": torch.zeros(1, 2)}), [name])

    def test_several_heads_count_alike(self, name: str) -> None:
        generator = torch.Generator().manual_seed(3)
        logits = {head: torch.randn(50, 12, generator=generator) for head in "ab"}
        targets = {head: torch.randint(12, (50,), generator=generator) for head in "ab"}
        alone = [measure(Subject({head: logits[head]}, targets), [name])[name] for head in "ab"]
        assert measure(Subject(logits, targets), [name])[name] == pytest.approx(sum(alone) / 2)
