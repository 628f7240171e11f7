import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.heads import IGNORED, Binary, Candidates, Dense, Head, MultiLabel, Regression, Tags
from autocompress.core.task import InputSpec, Split
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised
from autocompress.training.class_weights import WeightedTaskLoss, check_class_weights, compute_class_weights
from autocompress.training.fit import FitRequest, fit, predict


class Some(Supervised):
    name = "some"
    inputs = (InputSpec((4,)),)

    def __init__(self, heads):
        self.heads = heads


class OwnLoss(Some):
    def loss(self, logits, targets):
        return logits["label"].sum()


def make_split(targets):
    return Split((torch.zeros(len(next(iter(targets.values()))), 4),), targets)


LABELS = torch.tensor([0, 0, 0, 0, 1, 2])


class TestWeights:
    def test_they_are_scikit_learns(self):
        expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
        assert compute_class_weights(Head(3), LABELS).tolist() == pytest.approx(expected.tolist())

    def test_missing_labels_do_not_count(self):
        labels = torch.cat([LABELS, torch.full((9,), IGNORED)])
        assert torch.equal(compute_class_weights(Head(3), labels), compute_class_weights(Head(3), LABELS))

    def test_a_class_without_examples_has_none(self):
        assert compute_class_weights(Head(3), torch.tensor([0, 0, 2, 2])).tolist() == [1.0, 0.0, 1.0]

    def test_each_label_has_its_own(self):
        labels = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])
        weights = compute_class_weights(MultiLabel(2), labels)
        assert weights.flatten().tolist() == pytest.approx([2.0, 2 / 3, 2 / 3, 2.0])


class TestLoss:
    def test_it_is_torchs_but_for_the_divisor(self):
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        weights = compute_class_weights(Head(3), LABELS)
        loss = WeightedTaskLoss(Some({"label": 3}), make_split({"label": LABELS}))
        expected = F.cross_entropy(logits, LABELS, weight=weights, reduction="sum") / len(LABELS)
        assert loss({"label": logits}, {"label": LABELS}).item() == pytest.approx(expected.item())

    @pytest.mark.parametrize(
        ("head", "outputs", "targets"),
        [
            (Binary(), (4, 1), torch.tensor([0.0, 0.0, 0.0, 1.0])),
            (MultiLabel(2), (4, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])),
            (Dense(2), (2, 2, 3), torch.tensor([[0, 0, 0], [0, 1, IGNORED]])),
            (Tags(2), (2, 3, 2), torch.tensor([[0, 0, 0], [0, 1, IGNORED]])),
        ],
    )
    def test_every_class_weighs_alike_in_each_kind_of_head(self, head, outputs, targets):
        """At equal logits every decision has the same loss, so the gradient of the bias is balanced."""
        logits = torch.zeros(outputs, requires_grad=True)
        loss = WeightedTaskLoss(Some({"label": head}), make_split({"label": targets}))
        value = loss({"label": logits}, {"label": targets})
        assert value.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
        value.backward()
        assert logits.grad.sum().item() == pytest.approx(0.0, abs=1e-6)

    def test_other_heads_keep_their_loss(self):
        heads = {"label": Head(3), "number": Regression(1)}
        targets = {"label": LABELS, "number": torch.ones(6, 1)}
        outputs = {"label": torch.zeros(6, 3), "number": torch.zeros(6, 1)}
        loss = WeightedTaskLoss(Some(heads), make_split(targets))
        assert loss(outputs, targets).item() == pytest.approx((torch.tensor(3.0).log().item() + 1) / 2, rel=1e-5)

    def test_a_batch_without_a_label_has_no_loss(self):
        loss = WeightedTaskLoss(Some({"label": 3}), make_split({"label": LABELS}))
        assert loss({"label": torch.ones(2, 3)}, {"label": torch.full((2,), IGNORED)}).item() == 0


class TestRefusal:
    def test_a_loss_of_the_task_itself(self):
        with pytest.raises(UsageError, match="'some' has a loss of its own"):
            check_class_weights(OwnLoss({"label": 3}), "balanced")

    @pytest.mark.parametrize("head", [Regression(1), Candidates(5)])
    def test_heads_without_classes(self, head):
        with pytest.raises(UsageError, match="no head has classes to weight: 'label'"):
            check_class_weights(Some({"label": head}), "balanced")

    def test_nothing_is_checked_without_weights(self):
        check_class_weights(OwnLoss({"label": Regression(1)}), "none")


def test_a_fit_with_weights_finds_the_rare_class():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(600, generator=generator) < 0.05).long()
    inputs = torch.randn(600, 4, generator=generator) + 0.8 * labels[:, None]
    split, task = Split((inputs,), {"label": labels}), Some({"label": 2})
    recall = {}
    for weights in ("none", "balanced"):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        settings = {"epochs": 10, "learning_rate": 0.05, "class_weights": weights}
        fit(model, FitRequest(task, split, Part.of("adamw", **settings)))
        found = predict(model, task, split)["label"].argmax(1)
        recall[weights] = float((found[labels == 1] == 1).double().mean())
    assert recall["balanced"] > 0.7
    assert recall["none"] < 0.5
