import copy
import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from autocompress.core.heads import (
    IGNORED,
    Binary,
    Dense,
    Head,
    Levels,
    MultiLabel,
    Regression,
    Tags,
    as_head,
    head_from_json,
)
from autocompress.errors import TrialError

EVERY_KIND = [
    Head(3),
    Head(3, "auc"),
    Levels(2, levels=(1.0, 5.0)),
    Binary(),
    MultiLabel(4),
    Dense(3),
    Tags(5),
    Regression(2, scale=(1.0, 2.0), loss_name="huber"),
]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestHead:
    @pytest.mark.parametrize("head", EVERY_KIND, ids=lambda head: head.kind)
    def test_copies_and_json_keep_kind_and_settings(self, head: Head) -> None:
        for same in (pickle.loads(pickle.dumps(head)), copy.deepcopy(head), head_from_json(head.to_json())):
            assert type(same) is type(head)
            assert (int(same), vars(same)) == (int(head), vars(head))

    def test_a_number_is_a_head_of_classes(self) -> None:
        assert type(as_head(7)) is Head
        assert as_head(7).classes == 7
        assert Head(7).to_json() == 7

    def test_unreadable_json_is_an_error(self) -> None:
        for value in ({"kind": "tag", "size": 3}, {"kind": "tags"}, {"kind": "tags", "size": 3, "colour": 1}):
            with pytest.raises(ValueError, match=r"no head of this kind|cannot be read"):
                head_from_json(value)

    def test_loss_of_classes_is_cross_entropy_bit_for_bit(self) -> None:
        logits, targets = noise(20, 3), torch.arange(20) % 3
        assert torch.equal(Head(3).loss(logits, targets), F.cross_entropy(logits, targets))

    def test_missing_labels_do_not_count(self) -> None:
        logits, targets = noise(4, 3), torch.tensor([0, IGNORED, 2, IGNORED])
        assert torch.equal(Head(3).loss(logits, targets), F.cross_entropy(logits[[0, 2]], targets[[0, 2]]))

    @pytest.mark.parametrize("head", [Head(3), Dense(3), MultiLabel(3), Regression(3)], ids=lambda head: head.kind)
    def test_a_batch_without_labels_has_no_loss_and_a_zero_gradient(self, head: Head) -> None:
        outputs = noise(2, 3, 5).requires_grad_() if head.has_positions else noise(2, 3).requires_grad_()
        targets = {
            "classes": torch.full((2,), IGNORED),
            "dense": torch.full((2, 5), IGNORED),
            "multilabel": torch.full((2, 3), math.nan),
            "regression": torch.full((2, 3), math.nan),
        }[head.kind]
        loss = head.loss(outputs, targets)
        loss.backward()
        assert loss.item() == 0
        assert not outputs.grad.any()

    def test_outputs_that_do_not_fit_are_an_error(self) -> None:
        with pytest.raises(TrialError, match=r"do not fit a head of 3 classes"):
            Head(3).loss(noise(2, 3, 4), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(TrialError, match="do not fit targets"):
            Head(3).loss(noise(2, 3), torch.zeros(3, dtype=torch.int64))


class TestPairRows:
    def test_a_teacher_answers_where_a_label_is_missing(self) -> None:
        student, teacher = noise(3, 4), noise(3, 4, seed=1)
        ours, theirs, labels = Head(4).pair_rows(student, teacher, torch.tensor([2, IGNORED, 1]))
        assert torch.equal(ours, student)
        assert torch.equal(theirs, teacher)
        assert labels.tolist() == [2, int(teacher[1].argmax()), 1]

    def test_padding_is_not_distilled(self) -> None:
        student, teacher = noise(1, 3, 4), noise(1, 3, 4, seed=1)
        ours, theirs, labels = Tags(4).pair_rows(student, teacher, torch.tensor([[2, 0, IGNORED]]))
        assert torch.equal(ours, student[0, :2])
        assert torch.equal(theirs, teacher[0, :2])
        assert labels.tolist() == [2, 0]

    def test_every_position_counts_without_labels(self) -> None:
        student, teacher = noise(1, 3, 4), noise(1, 3, 4, seed=1)
        for targets in (None, torch.full((1, 3), IGNORED)):
            assert len(Tags(4).pair_rows(student, teacher, targets)[0]) == 3


class TestKinds:
    def test_binary_is_binary_cross_entropy(self) -> None:
        logits, targets = noise(50, 1), torch.arange(50) % 2
        expected = F.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
        torch.testing.assert_close(Binary().loss(logits, targets), expected)

    def test_multilabel_is_the_mean_over_all_labels(self) -> None:
        logits, targets = noise(50, 4), (noise(50, 4, seed=1) > 0).float()
        expected = F.binary_cross_entropy_with_logits(logits, targets)
        torch.testing.assert_close(MultiLabel(4).loss(logits, targets), expected)

    def test_dense_is_torchs_cross_entropy_with_ignored_positions(self) -> None:
        logits, targets = noise(2, 3, 4, 5), torch.arange(40).reshape(2, 4, 5) % 3
        targets[0, 1] = IGNORED
        torch.testing.assert_close(Dense(3).loss(logits, targets), F.cross_entropy(logits, targets))
        torch.testing.assert_close(Tags(3).loss(logits.movedim(1, -1), targets), F.cross_entropy(logits, targets))

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)],
    )
    def test_regression_losses_are_torchs(self, name: str, expected: object) -> None:
        ours, theirs = noise(9, 2), noise(9, 2, seed=1)
        torch.testing.assert_close(Regression(2, loss_name=name).loss(ours, theirs), expected(ours, theirs))

    def test_the_pinball_loss_is_least_at_the_quantile(self) -> None:
        targets = torch.arange(101.0)[:, None]
        losses = {
            value: float(Regression(loss_name="quantile", quantile=0.9).loss(torch.full_like(targets, value), targets))
            for value in (50.0, 90.0, 99.0)
        }
        assert min(losses, key=losses.__getitem__) == 90.0

    def test_regression_is_measured_in_standard_deviations(self) -> None:
        head = Regression(1, scale=(10.0,))
        assert head.loss(torch.tensor([[5.0]]), torch.tensor([[25.0]])).item() == 4.0
        assert head.distance(torch.tensor([[5.0]]), torch.tensor([[25.0]])).item() == 4.0
        assert head.compare_predictions(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.05], [9.0]])) == 0.5

    def test_an_unknown_loss_is_an_error(self) -> None:
        with pytest.raises(TrialError, match="mse, mae, huber, quantile, not 'l2'"):
            Regression(1, loss_name="l2")
