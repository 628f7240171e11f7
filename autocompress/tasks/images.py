"""Image classification: scikit-learn's handwritten digits."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.preprocessing import ImageInput, Preprocessing, RawExample
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.tasks.augment import random_affine
from autocompress.tasks.base import Supervised, stratify_examples, stratify_rows

# Largest pixel, and about the mean and standard deviation of the pixels after the division by it.
WHITE, MEAN, STD = 16, 0.3, 0.38


@lru_cache(maxsize=16)
def _augment(images: Tensor, seed: int) -> Tensor:
    """Return the augmented images of a view, ``[N, 1, 8, 8]``.

    Every fit of a process reads the same views, which are small. A tensor is compared by its identity.
    """
    return random_affine(images, seed=seed)


@TASKS.register("digits")
class Digits(Supervised):
    """Scikit-learn's handwritten digits: 1,797 images of 8x8, ten classes.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
    """

    name = "digits"
    heads: Mapping[str, int] = {"label": 10}
    views = 16
    inputs = (InputSpec((1, 8, 8)),)

    def splits(self, seed: int) -> Splits:
        """Return 895 training, 72 calibration, 280 + 280 validation and 270 test images."""
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).div(WHITE).sub(MEAN).div(STD).unsqueeze(1)
        return stratify_examples((images,), {"label": torch.tensor(data.target)}, seed)

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the normalization of grey images of 8 x 8 pixels, whose values are 0 to 16."""
        return (ImageInput((1, 8, 8), resize=False, mean=(MEAN,), std=(STD,), white=WHITE, scale=WHITE),)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the test images, ``[8, 8]`` with values from 0 to 16."""
        data = load_digits()
        return list(data.images[stratify_rows(torch.tensor(data.target), seed)["test"]])

    def view(self, split: Split, index: int) -> Split:
        """Return the images rotated by up to 10 degrees, shifted by up to a pixel and scaled by up to a tenth."""
        if index == 0:
            return split
        return Split((_augment(split.inputs[0], index),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 32 and its training config."""
        return (
            Part.of("cnn", width=32, depth=2, stages=2, block="residual"),
            Part.of("adamw", epochs=30, learning_rate=4e-3, batch_size=64),
        )
