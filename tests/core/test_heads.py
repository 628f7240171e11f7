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
    Detection,
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
    Detection(4, least_score=0.5),
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


class TestDetection:
    # One cell for each quarter of an image: of two images, the first has a box in its first cell.
    TARGETS = torch.tensor([[[1.0, 0.0, 0.0, 0.5, 0.5]], [[-1.0, 0.0, 0.0, 0.0, 0.0]]])

    def draw_maps(self) -> torch.Tensor:
        """Return maps that are right: [2, 2 + 5, 2, 2]."""
        maps = torch.zeros(2, 7, 2, 2)
        maps[:, :2], maps[:, 2] = -20, -20
        maps[0, 1, 0, 0], maps[0, 2, 0, 0] = 20, 20
        maps[:, -2:] = math.log(math.expm1(1))
        return maps

    def test_right_maps_have_no_loss_and_any_change_of_an_object_has_one(self) -> None:
        head, right = Detection(2), self.draw_maps()
        assert float(head.loss(right, self.TARGETS)) == pytest.approx(0, abs=1e-5)
        for channel in range(7):
            wrong = right.clone()
            wrong[0, channel, 0, 0] += -25 if channel in (1, 2) else 25
            assert float(head.loss(wrong, self.TARGETS)) > 0.3, channel
        # The box and the overlap of the background are not learned, and its classes are.
        wrong = right.clone()
        wrong[1, 2:] += 3
        assert float(head.loss(wrong, self.TARGETS)) == pytest.approx(0, abs=1e-5)
        wrong[1, 0, 1, 1] = 5
        assert float(head.loss(wrong, self.TARGETS)) > 1

    def test_losses_of_examples_have_the_loss_as_mean(self) -> None:
        head, maps = Detection(2), noise(2, 7, 2, 2)
        losses = head.losses(maps, self.TARGETS)
        torch.testing.assert_close(losses.mean(), head.loss(maps, self.TARGETS))
        # Images without any box.
        assert float(head.loss(maps, self.TARGETS[1:].repeat(2, 1, 1))) > 0
        assert float(head.loss(maps, torch.zeros(2, 0, 5))) > 0

    def test_the_distance_is_that_of_classes_everywhere_and_of_boxes_where_the_teacher_sees_one(self) -> None:
        head, teacher = Detection(2), self.draw_maps()
        assert float(head.distance(teacher, teacher)) == pytest.approx(0, abs=1e-6)
        student = teacher.clone()
        student[1, 2:] += 3
        assert float(head.distance(student, teacher)) == pytest.approx(0, abs=1e-3)
        student[0, 3, 0, 0] += 2
        assert float(head.distance(student, teacher)) == pytest.approx(2, abs=1e-3)
        student[1, 0] = 0
        assert float(head.distance(student, teacher)) == pytest.approx(2 + 4 * math.log(2), abs=1e-3)

    def test_the_prediction_holds_boxes_of_low_scores_too(self) -> None:
        head, maps = Detection(2, least_score=0.5), self.draw_maps()
        maps[1, 0, 1, 1], maps[1, 2, 1, 1] = 0, math.log(0.3 / 0.7)
        boxes = head.predict(maps)
        torch.testing.assert_close(boxes[0, 0], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, 0.5]))
        assert boxes[1, 0, :2].tolist() == pytest.approx([0, math.sqrt(0.15)])
        assert head.compare_predictions(boxes, boxes) == 1
        assert head.compare_predictions(boxes, boxes * torch.tensor([0, 1, 1, 1, 1, 1])) == 0

    def test_maps_of_another_shape_or_grid_are_refused(self) -> None:
        head, maps = Detection(2), self.draw_maps()
        with pytest.raises(TrialError, match=r"\[2, 6, 2, 2\] do not fit .* of 2 classes: give \[B, 7, h, w\]"):
            head.loss(maps[:, :6], self.TARGETS)
        with pytest.raises(TrialError, match="both need one grid"):
            head.distance(maps[..., :1], maps)
        with pytest.raises(TrialError, match="has boxes; use mean_ap"):
            head.flatten(maps)
