import pytest
import torch

from autocompress.core.task import Split
from autocompress.tasks.augment import crop_and_flip, draw_crops
from autocompress.tasks.image_split import ImageSplit, Normalization

PIXELS = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([3, 1, 20, 39, 7])
NORMAL = Normalization.from_pixels(PIXELS, torch.arange(40))


def split() -> ImageSplit:
    return ImageSplit(PIXELS, ROWS, {"label": torch.arange(5)}, NORMAL)


def test_normal_images_have_mean_0_and_deviation_1_in_each_channel() -> None:
    found = NORMAL(PIXELS)
    assert found.dtype == torch.float32
    assert found.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert found.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_only_the_rows_asked_for_are_measured() -> None:
    pixels = torch.zeros(2000, 1, 2, 2, dtype=torch.uint8)
    pixels[:1500] = 100
    pixels[:1500, :, 0] = 50
    normal = Normalization.from_pixels(pixels, torch.arange(1500))
    assert float(normal.mean) == pytest.approx(75)
    assert float(normal.std) == pytest.approx(25)


def test_a_constant_channel_stays_finite() -> None:
    normal = Normalization.from_pixels(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), torch.arange(3))
    assert torch.equal(normal(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("index", [slice(1, 4), torch.tensor([4, 0]), [2], slice(None)])
def test_what_is_taken_is_in_memory_and_normalised(index) -> None:
    taken = split().take(index)
    assert type(taken) is Split
    assert torch.equal(taken.inputs[0], NORMAL(PIXELS[ROWS[index]]))
    assert torch.equal(taken.targets["label"], torch.arange(5)[index])


def test_it_looks_like_any_split() -> None:
    images = split()
    assert len(images) == 5
    assert torch.equal(images.inputs[0], NORMAL(PIXELS[ROWS]))
    assert [len(batch) for batch in images.batches(2)] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.inputs[0] for batch in images.batches(2)]), images.inputs[0])
    assert "5 images of [3, 8, 8]" in repr(images)


def test_moves_are_the_same_in_every_batch() -> None:
    moves = draw_crops(5, seed=1, padding=2)
    moved = split().with_crops(moves, 2)
    expected = crop_and_flip(split().inputs[0], moves, 2)
    assert torch.equal(moved.inputs[0], expected)
    assert torch.equal(moved.take(torch.tensor([3, 1])).inputs[0], expected[[3, 1]])
    assert torch.equal(moved.targets["label"], torch.arange(5))
