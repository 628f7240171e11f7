"""Mean average precision against values by hand, and against COCO's own evaluation where that is installed."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch

from autocompress.core.boxes import NO_BOX
from autocompress.core.heads import Detection
from autocompress.errors import TrialError
from autocompress.measure.box_metrics import THRESHOLDS, match_boxes, mean_precision
from autocompress.measure.example_scores import pack_examples
from autocompress.measure.heads import get_objective, measure
from autocompress.measure.objectives import Subject

ONCE = torch.ones(1, 1, dtype=torch.float64)
LEFT, RIGHT, LOW = [0.0, 0.0, 0.4, 0.4], [0.5, 0.0, 0.9, 0.4], [0.0, 0.5, 0.4, 0.9]


def average(objects: list[list[float]], targets: list[list[float]], *thresholds: float, classes: int = 1) -> float:
    precision = mean_precision(torch.tensor([objects]), torch.tensor([targets]), classes, thresholds or (0.5,), ONCE)
    return float(precision[0])


def test_a_false_box_before_a_hit_halves_the_precision_of_the_recalls_that_it_reaches() -> None:
    targets = [[0, *LEFT], [0, *RIGHT]]
    # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1: of 101 recalls, 51 have 1 and 50 have 2/3.
    objects = [[0, 0.9, *LEFT], [0, 0.8, *LOW], [0, 0.7, *RIGHT]]
    assert average(objects, targets) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # The second true box is never predicted.
    assert average(objects[:2], targets) == pytest.approx(51 / 101)
    assert average([[NO_BOX, 0.0, *LEFT]], targets) == 0


def test_a_true_box_is_matched_once() -> None:
    assert average([[0, 0.9, *LEFT], [0, 0.8, *LEFT]], [[0, *LEFT]]) == 1
    hits = match_boxes(torch.tensor([[[0, 0.9, *LEFT], [0, 0.8, *LEFT]]]), torch.tensor([[[0, *LEFT]]]), (0.5, 0.95))
    assert hits.tolist() == [[[True, False], [True, False]]]


def test_a_box_must_overlap_by_the_threshold_and_have_the_class() -> None:
    # Three quarters of the true box.
    smaller = [0.0, 0.0, 0.3, 0.4]
    assert average([[0, 0.9, *smaller]], [[0, *LEFT]], 0.7) == 1
    assert average([[0, 0.9, *smaller]], [[0, *LEFT]], 0.8) == 0
    assert average([[0, 0.9, *smaller]], [[0, *LEFT]], 0.7, 0.8) == 0.5
    assert average([[1, 0.9, *LEFT]], [[0, *LEFT]], classes=2) == 0


def test_a_class_without_a_true_box_is_left_out() -> None:
    assert average([[0, 0.9, *LEFT], [1, 0.9, *LOW]], [[0, *LEFT]], classes=3) == 1
    assert math.isnan(average([[0, 0.9, *LEFT]], [[NO_BOX, *LEFT]]))


def draw_boxes(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predictions [N, 9, 6] near the true boxes, and boxes [N, 5, 5], some of them without a class."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(images, 5, 2, generator=generator) * 0.6
    boxes = torch.cat([corners, corners + 0.1 + 0.3 * torch.rand(images, 5, 2, generator=generator)], -1)
    classes = torch.randint(-1, 3, (images, 5, 1), generator=generator).float()
    near = boxes.repeat(1, 2, 1)[:, :9] + 0.03 * torch.randn(images, 9, 4, generator=generator)
    guesses = torch.where(
        torch.rand(images, 9, 1, generator=generator) < 0.7, classes.repeat(1, 2, 1)[:, :9].clamp(min=0), 1.0
    )
    scores = torch.rand(images, 9, 1, generator=generator).sort(dim=1, descending=True).values
    return torch.cat([guesses, scores, near], -1), torch.cat([classes, boxes], -1)


def test_it_equals_the_evaluation_of_coco() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    objects, targets = draw_boxes(40, 3)
    annotations = [
        {"id": 100 * image + row + 1, "image_id": image, "category_id": int(box[0]), "iscrowd": 0}
        | dict(zip(("bbox", "area"), as_coco(box[1:]), strict=True))
        for image, boxes in enumerate(targets.double().tolist())
        for row, box in enumerate(boxes)
        if box[0] != NO_BOX
    ]
    results = [
        {"image_id": image, "category_id": int(box[0]), "score": box[1], "bbox": as_coco(box[2:])[0]}
        for image, boxes in enumerate(objects.double().tolist())
        for box in boxes
    ]
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(40)],
        "annotations": annotations,
        "categories": [{"id": number} for number in range(3)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = evaluation.COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    weights = torch.ones(1, 40, dtype=torch.float64)
    ours = [float(mean_precision(objects, targets, 3, limits, weights)[0]) for limits in (THRESHOLDS, (0.5,))]
    assert 0.1 < ours[0] < ours[1] < 1
    np.testing.assert_allclose(ours, run.stats[:2], atol=1e-6)


def as_coco(corners: list[float]) -> tuple[list[float], float]:
    """Return x, y, width and height of a box, and its area."""
    width, height = corners[2] - corners[0], corners[3] - corners[1]
    return [corners[0], corners[1], width, height], width * height


def test_weights_count_as_repeated_images_do() -> None:
    objects, targets = draw_boxes(12, 5)
    weights = torch.tensor([[1.0] * 12, [2.0, 0, 3] * 4], dtype=torch.float64)
    repeated = torch.arange(12).repeat_interleave(weights[1].long())
    expected = mean_precision(objects[repeated], targets[repeated], 3, THRESHOLDS, torch.ones(1, 20).double())
    precision = mean_precision(objects, targets, 3, THRESHOLDS, weights)
    assert float(precision[1]) == pytest.approx(float(expected[0]), abs=0.02)
    assert float(precision[0]) != pytest.approx(float(precision[1]), abs=1e-3)


def subject(maps: torch.Tensor) -> Subject:
    return Subject({"boxes": maps}, {"boxes": torch.tensor([[[0, *LEFT]]] * len(maps))}, heads={"boxes": Detection(1)})


def test_the_score_of_a_model_is_read_off_its_maps() -> None:
    maps = torch.zeros(2, 6, 5, 5)
    maps[:, 0], maps[:, 1] = -9, 9
    # The box of the first image is 2 x 2 cells around the center of cell 1, 1, shifted by half a cell.
    maps[0, 0, 1, 1] = 9
    maps[0, -4:, 1, 1] = torch.tensor([-0.5, -0.5, math.log(math.expm1(2)), math.log(math.expm1(2))])
    assert measure(subject(maps[:1]), ["mean_ap", "mean_ap_50"]) == {"mean_ap": 1.0, "mean_ap_50": 1.0}
    assert measure(subject(maps), ["mean_ap"])["mean_ap"] == pytest.approx(51 / 101)
    assert math.isnan(measure(subject(maps * math.nan), ["mean_ap"])["mean_ap"])
    with pytest.raises(TrialError, match=r"\[2, 5, 5, 5\] do not fit a head of boxes of 1 classes: give \[B, 6"):
        measure(subject(maps[:, :5]), ["mean_ap"])
    assert pack_examples(subject(maps.repeat(5, 1, 1, 1)), "mean_ap").startswith("replicates:10:")


def test_boxes_are_no_classes() -> None:
    with pytest.raises(TrialError, match="needs a head with boxes"):
        measure(Subject({"label": torch.eye(3)}, {"label": torch.arange(3)}), ["mean_ap"])
    assert not get_objective("accuracy").applies_to(Detection(3))
    assert not get_objective("mean_ap").applies_to(3)
