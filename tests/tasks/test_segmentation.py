"""Folders of images and masks: splits, views that move both, and folders that cannot be used."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.core.heads import IGNORED
from autocompress.core.task import Split
from autocompress.errors import UsageError
from autocompress.tasks.segmentation import Segmentation


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Segmentation.write_sample(tmp_path / "data")


def save_mask(path: Path, mask: np.ndarray, mode: str = "L") -> None:
    Image.fromarray(mask.astype(np.uint8)).convert(mode).save(path)


def test_masks_become_classes_of_pixels_in_five_splits(folder: Path) -> None:
    task = Segmentation(folder)
    splits = task.splits(0)
    assert (task.shape, task.heads["mask"], task.labels["mask"]) == ((1, 16, 16), 3, ["0", "1", "2"])
    assert sum(len(split) for _, split in splits.items()) == 60
    images, masks = splits.train.inputs[0], splits.train.targets["mask"]
    assert masks.shape == (len(images), 16, 16)
    assert masks.dtype == torch.int64
    # What has a class is bright.
    assert float(images[:, 0][masks > 0].mean()) > float(images[:, 0][masks == 0].mean()) + 1
    assert len(task.list_test_examples(0)) == len(splits.test)


def test_a_view_moves_image_and_mask_alike(folder: Path) -> None:
    task = Segmentation(folder, shift=0.25)
    train = task.splits(0).train
    for split in (train, Split(train.inputs, train.targets)):
        moved = task.view(split, 1)
        images, masks = moved.inputs[0], moved.targets["mask"]
        assert bool((masks == IGNORED).any())
        assert float(images[:, 0][masks > 0].mean()) > float(images[:, 0][masks == 0].mean()) + 1
        batch = moved.take(slice(3, 5))
        assert torch.equal(batch.targets["mask"], masks[3:5])
        assert torch.equal(batch.inputs[0], images[3:5])


def test_a_size_resizes_masks_by_their_nearest_pixel(folder: Path) -> None:
    task = Segmentation(folder, size=8)
    masks = task.splits(0).train.targets["mask"]
    assert masks.shape[1:] == (8, 8)
    assert set(masks.unique().tolist()) == {0, 1, 2}


def test_a_palette_is_only_a_colouring_and_255_has_no_class(folder: Path) -> None:
    mask = np.zeros((16, 16))
    mask[:8], mask[8:] = 2, 255
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 9, 9, 9, 255, 0, 0] + [7] * 759)
    for number in range(60):
        image.save(folder / "masks" / f"{number:02}.png")
    task = Segmentation(folder)
    assert task.splits(0).test.targets["mask"].unique().tolist() == [IGNORED, 2]
    assert task.notices == ("no pixel of train has the class 0, 1",)


def test_parts_of_their_own_are_used_as_they_are(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        Segmentation.write_sample(tmp_path / "parts" / part)
    sizes = {name: len(split) for name, split in Segmentation(tmp_path / "parts").splits(0).items()}
    assert sizes == {"train": 58, "calibration": 2, "search_val": 30, "select_val": 30, "test": 60}


def remove_mask(folder: Path) -> None:
    (folder / "masks" / "07.png").unlink()


def shrink_mask(folder: Path) -> None:
    save_mask(folder / "masks" / "07.png", np.zeros((16, 12)))


def colour_mask(folder: Path) -> None:
    save_mask(folder / "masks" / "07.png", np.zeros((16, 16)), "RGB")


def number_mask(folder: Path) -> None:
    save_mask(folder / "masks" / "07.png", np.full((16, 16), 9))


def empty_masks(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        save_mask(path, np.zeros((16, 16)))


def damage_mask(folder: Path) -> None:
    (folder / "masks" / "07.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_mask, r"images.07\.png has no file of the same name in .*masks; add it"),
        (shrink_mask, r"masks.07\.png is 12x16 and its image 16x16; a mask has the size of its image"),
        (colour_mask, r"masks.07\.png has pixels of the form RGB; a mask has one class number"),
        (number_mask, r"masks.07\.png has the class 9, but classes are numbered from 0 to 2; .* write 255"),
        (empty_masks, "no pixel of the masks has another class than 0"),
        (damage_mask, r"masks.07\.png or its image cannot be read"),
    ],
)
def test_masks_that_do_not_fit_are_named(folder: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    change(folder)
    with pytest.raises(UsageError, match=message):
        Segmentation(folder, classes=("ground", "stripe", "square"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path is not set"),
        ({"path": "missing"}, "there is no folder missing"),
        ({"path": "."}, "has no folder 'images'"),
        ({"path": ".", "size": 4}, r"size is 4; give a whole number of at least 8"),
        ({"path": ".", "shift": 2}, r"shift is 2; give a share"),
        ({"path": ".", "background": "no colour"}, "background is 'no colour'; give a colour"),
    ],
)
def test_options_out_of_bounds_are_named(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        Segmentation(**options)  # type: ignore[arg-type]


def test_a_mask_that_is_a_pipe_or_declares_too_many_pixels_is_not_decoded(folder: Path) -> None:
    mask = sorted((folder / "masks").iterdir())[0]
    mask.unlink()
    os.mkfifo(mask)
    with pytest.raises(UsageError, match=r"or its image cannot be read: .*not a regular file"):
        Segmentation(folder)
    mask.unlink()
    Image.new("1", (2**13 + 1, 2**13)).save(mask)
    with pytest.raises(UsageError, match="it has 8193x8192 pixels, more than"):
        Segmentation(folder)
