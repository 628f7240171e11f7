"""A split of images that are kept as bytes: batches are normalised, and moved, when they are taken."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.core.task import Split, Targets
from autocompress.tasks.augment import move

CHUNK = 1024


@dataclass(frozen=True)
class Normal:
    """Mean and deviation of each channel, ``[C, 1, 1]``, on the scale of bytes."""

    mean: Tensor
    std: Tensor

    @classmethod
    def measured(cls, pixels: Tensor, rows: Tensor) -> "Normal":
        """Return the normalisation by the mean and deviation of some images; a constant channel keeps its scale.

        Args:
            pixels: ``[N, C, H, W]``, bytes.
            rows: Numbers of the images to measure.
        """
        total = torch.zeros(pixels.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for chunk in rows.split(CHUNK):
            values = pixels[chunk].double()
            total += values.sum((0, 2, 3))
            squares += values.square().sum((0, 2, 3))
        count = len(rows) * pixels.shape[2] * pixels.shape[3]
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std < 1e-3, torch.full_like(std, 255), std)
        return cls(mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return bytes ``[N, C, H, W]`` as numbers of mean 0 and deviation 1."""
        return pixels.float().sub_(self.mean).div_(self.std)


class ImageSplit(Split):
    """A split whose images are bytes, mapped from a file; ``take`` gives real numbers.

    ``inputs`` holds the whole split as real numbers and so takes four times the memory; batches do not.

    Args:
        pixels: ``[N, C, H, W]``, bytes, shared by all splits.
        rows: Which of them are in this split.
        targets: Head name to class indices, in the order of ``rows``.
        normal: How to normalise.
        moves: How to crop and mirror each (:func:`~autocompress.tasks.augment.random_moves`); by default not at all.
        padding: What ``moves`` were drawn for.
    """

    pixels: Tensor
    rows: Tensor
    labels: Targets
    normal: Normal
    moves: Tensor | None
    padding: int

    def __init__(
        self,
        pixels: Tensor,
        rows: Tensor,
        targets: Targets,
        normal: Normal,
        moves: Tensor | None = None,
        padding: int = 0,
    ) -> None:
        # Split is frozen; its own fields are set past that.
        vars(self).update(pixels=pixels, rows=rows, labels=targets, normal=normal, moves=moves, padding=padding)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The whole split, normalised, ``([N, C, H, W],)``."""
        return self.take(slice(None)).inputs

    @property
    def targets(self) -> Targets:
        """Head name to class indices, ``{"label": [N]}``."""
        return self.labels

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"ImageSplit({len(self)} images of {list(self.pixels.shape[1:])})"

    def take(self, index: Any) -> Split:
        """Return the examples that ``index`` selects along axis 0, normalised and moved."""
        images = self.normal(self.pixels[self.rows[index]])
        if self.moves is not None:
            images = move(images, self.moves[index], self.padding)
        return Split((images,), {head: target[index] for head, target in self.targets.items()})

    def moved(self, moves: Tensor, padding: int) -> "ImageSplit":
        """Return the same images, each cropped and mirrored its own way."""
        return ImageSplit(self.pixels, self.rows, self.targets, self.normal, moves, padding)
