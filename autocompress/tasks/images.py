"""Image classification: scikit-learn's handwritten digits."""

from collections.abc import Mapping

import torch
from sklearn.datasets import load_digits

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.tasks.augment import random_affine
from autocompress.tasks.base import Supervised, stratify_examples


@TASKS.register("digits")
class Digits(Supervised):
    """Scikit-learn's handwritten digits: 1,797 images of 8x8, ten classes.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
    """

    name = "digits"
    heads: Mapping[str, int] = {"label": 10}
    views = 16
    preprocessing = "Pixels from 0 to 16, [1, 8, 8], as (pixel / 16 - 0.3) / 0.38."
    inputs = (InputSpec((1, 8, 8)),)

    def splits(self, seed: int) -> Splits:
        """Return 933 training, 72 calibration, 216 + 216 validation and 360 test images."""
        data = load_digits()
        # Pixels range from 0 to 16; 0.3 and 0.38 are about their mean and standard deviation after the division.
        images = torch.tensor(data.images, dtype=torch.float32).div(16).sub(0.3).div(0.38).unsqueeze(1)
        return stratify_examples((images,), {"label": torch.tensor(data.target)}, seed)

    def view(self, split: Split, index: int) -> Split:
        """Return the images rotated by up to 10 degrees, shifted by up to a pixel and scaled by up to a tenth."""
        if index == 0:
            return split
        return Split((random_affine(split.inputs[0], seed=index),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 32 and its training config."""
        return (
            Part.of("cnn", width=32, depth=2, stages=2, block="residual"),
            Part.of("adamw", epochs=30, learning_rate=4e-3, batch_size=64),
        )
