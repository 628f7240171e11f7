"""Maps of a grid become boxes, boxes cells, and overlapping boxes one."""

import math

import pytest
import torch

from autocompress.core.boxes import (
    NO_BOX,
    assign_boxes,
    compare_boxes,
    decode_boxes,
    measure_iou,
    pad_boxes,
    select_boxes,
)


def inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def draw_maps(boxes: list[tuple[int, float, int, int, float, float]], classes: int = 2, side: int = 4) -> torch.Tensor:
    """Return maps [1, C + 5, side, side] with an object in some cells: class, logit, row, column, width, height."""
    maps = torch.zeros(1, classes + 5, side, side)
    maps[:, :classes] = -9
    maps[:, classes] = 9
    for number, logit, row, column, width, height in boxes:
        maps[0, number, row, column] = logit
        maps[0, -2, row, column], maps[0, -1, row, column] = inverse_softplus(width), inverse_softplus(height)
    return maps


def test_a_cell_has_a_box_around_its_center_in_shares_of_the_image() -> None:
    maps = torch.zeros(1, 6, 2, 4)
    maps[0, -4:, 1, 2] = torch.tensor([0.5, -0.5, inverse_softplus(2), inverse_softplus(1)])
    # The center is at 3, 1 of 4 x 2 cells.
    expected = torch.tensor([2 / 4, 0.5 / 2, 4 / 4, 1.5 / 2])
    torch.testing.assert_close(decode_boxes(maps)[0, 6], expected)


def test_overlap_is_that_of_the_areas() -> None:
    first, second = torch.tensor([0.0, 0.0, 0.5, 0.5]), torch.tensor([0.25, 0.0, 0.75, 0.5])
    iou, generalized = measure_iou(first, second)
    assert float(iou) == pytest.approx(1 / 3)
    # The box around both is their union.
    assert float(generalized) == pytest.approx(1 / 3)
    apart = measure_iou(first, torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert (float(apart[0]), float(apart[1])) == (0.0, pytest.approx(-0.5))


def test_cells_near_the_center_learn_a_box_and_the_smallest_of_several() -> None:
    large, small = [0, 0.0, 0.0, 1.0, 1.0], [1, 0.5, 0.5, 0.75, 0.75]
    numbers = assign_boxes(torch.tensor([[large, small]]), 4, 4).reshape(4, 4)
    assert numbers.tolist() == [[-1, -1, -1, -1], [-1, 0, 0, -1], [-1, 0, 1, -1], [-1, -1, -1, -1]]


def test_a_box_smaller_than_a_cell_has_the_cell_of_its_center() -> None:
    tiny = torch.tensor([[[0, 0.98, 0.98, 1.0, 1.0], [NO_BOX, 0.0, 0.0, 1.0, 1.0]]])
    assert assign_boxes(tiny, 2, 2).tolist() == [[-1, -1, -1, 0]]
    assert assign_boxes(torch.zeros(1, 0, 5), 2, 2).tolist() == [[-1] * 4]


def test_of_overlapping_boxes_of_a_class_the_best_remains() -> None:
    rivals = [(0, 4.0, 1, 1, 3.5, 3.5), (0, 3.0, 1, 2, 3.5, 3.5), (1, 2.0, 2, 1, 3.5, 3.5), (0, 1.0, 3, 3, 0.5, 0.5)]
    objects = select_boxes(draw_maps(rivals), 0.3)[0]
    assert objects[:, 0].tolist() == [0, 1, 0]
    assert objects[:, 1].tolist() == sorted(objects[:, 1].tolist(), reverse=True)
    assert float(objects[0, 1]) == pytest.approx(math.sqrt(1 / (1 + math.exp(-4)) / (1 + math.exp(-9))))


def test_images_have_their_own_number_of_boxes() -> None:
    maps = torch.cat([draw_maps([(0, 4.0, 0, 0, 1.0, 1.0), (1, 4.0, 3, 3, 1.0, 1.0)]), draw_maps([])])
    objects = select_boxes(maps, 0.3)
    assert objects.shape == (2, 2, 6)
    assert objects[1].tolist() == [[NO_BOX, 0, 0, 0, 0, 0]] * 2
    assert select_boxes(maps, 0.3, most=1).shape == (2, 1, 6)
    assert select_boxes(maps[1:], 0.3).shape == (1, 1, 6)
    assert select_boxes(maps * torch.nan, 0.3)[..., 0].unique().tolist() == [NO_BOX]


def test_predictions_are_compared_box_by_box() -> None:
    box = [0.1, 0.1, 0.5, 0.5]
    ours = torch.tensor([[[0, 0.9, *box], [1, 0.5, *box]]])
    assert compare_boxes(ours, ours, 0.3) == 1
    assert compare_boxes(ours, ours[:, :1], 0.3) == pytest.approx(2 / 3)
    # A score near the smallest one may fall below it.
    faint = torch.tensor([[[0, 0.9, *box], [1, 0.25, *box]]])
    assert compare_boxes(ours, faint, 0.3) == 1
    assert compare_boxes(ours[:, :0], ours[:, :0], 0.3) == 1


def test_boxes_are_filled_up_with_rows_without_a_box() -> None:
    padded = pad_boxes([torch.tensor([[1.0, 0, 0, 1, 1]]), torch.zeros(0, 5)], 2)
    assert padded[:, :, 0].tolist() == [[1, NO_BOX], [NO_BOX, NO_BOX]]
