"""Images that look the same are found, whatever their file format, quality and size; others are not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from autocompress.core.similar_images import ImageSketches


def load_photographs() -> list[Image.Image]:
    """Sections of two photographs, 96 pixels wide."""
    whole = [Image.fromarray(array) for array in load_sample_images().images]
    corners = [(left, top) for left in range(0, 540, 120) for top in range(0, 320, 80)]
    return [image.crop((left, top, left + 96, top + 96)) for image in whole for left, top in corners]


def as_tensor(images: list[Image.Image]) -> Tensor:
    arrays = [np.asarray(image.resize((64, 64)), np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def save_as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((60, 60))


@pytest.mark.parametrize("change", [save_as_jpeg, shrink])
def test_copies_look_the_same_and_other_sections_do_not(change: Callable[[Image.Image], Image.Image]) -> None:
    images = load_photographs()
    half = len(images) // 2
    known, other = ImageSketches(as_tensor(images[:half])), ImageSketches(as_tensor(images[half:]))
    copies = ImageSketches(as_tensor([change(image) for image in images[:half]]))
    # Noise decides the bits of sections of plain sky.
    assert copies.find_similar(known).mean() >= 0.75
    assert other.find_similar(known).mean() <= 0.05


def test_plain_images_look_like_none() -> None:
    plain = ImageSketches(torch.full((4, 1, 32, 32), 0.5))
    assert not plain.find_similar(plain).any()


def test_sketches_are_appended() -> None:
    images = as_tensor(load_photographs()[:6])
    sketches = ImageSketches(images[:3])
    assert ImageSketches(images).find_similar(sketches).tolist() == [True] * 3 + [False] * 3
    sketches.append(ImageSketches(images[3:]))
    assert ImageSketches(images).find_similar(sketches).all()
