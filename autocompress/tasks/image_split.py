"""A split of images stored as bytes: batches are normalized and augmented when they are taken."""

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.core.heads import IGNORED
from autocompress.core.task import Split, Targets
from autocompress.tasks.augment import crop_and_flip

# Images converted to double precision at once, which bounds the memory.
CHUNK = 1024
# Byte of a pixel without a class in a mask.
NO_CLASS = 255


@dataclass(frozen=True)
class Normalization:
    """Normalization by mean and standard deviation of each channel, ``[C, 1, 1]``, on the scale of bytes."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_pixels(cls, pixels: Tensor, rows: Tensor) -> "Normalization":
        """Return the normalization by the mean and standard deviation of some images.

        Args:
            pixels: Bytes, ``[N, C, H, W]``.
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
        # A constant channel has no deviation to divide by; it is scaled from bytes to 0 to 1 instead.
        std = torch.where(std < 1e-3, torch.full_like(std, 255), std)
        return cls(mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return bytes ``[N, C, H, W]`` as floats of mean 0 and standard deviation 1."""
        return pixels.float().sub_(self.mean).div_(self.std)


class ImageSplit(Split):
    """A split of images stored as bytes, which may be memory-mapped; ``take`` returns floats.

    ``inputs`` holds the whole split as floats and takes four times the memory of the bytes; batches do not.

    Args:
        pixels: Bytes of all images, ``[N, C, H, W]``, shared by all splits.
        rows: Numbers of the images of this split.
        targets: Head name to class indices ``[N]``, or masks of bytes ``[N, H, W]``, in the order of ``rows``.
        normalization: Mean and standard deviation of each channel.
        crops: Crop and flip of each image (:func:`~autocompress.tasks.augment.draw_crops`); none by default.
        padding: Padding that ``crops`` refer to, in pixels.
    """

    pixels: Tensor
    rows: Tensor
    labels: Targets
    normalization: Normalization
    crops: Tensor | None
    padding: int

    def __init__(
        self,
        pixels: Tensor,
        rows: Tensor,
        targets: Targets,
        normalization: Normalization,
        crops: Tensor | None = None,
        padding: int = 0,
    ) -> None:
        # The base class is a frozen dataclass, whose fields can only be set through its dictionary.
        vars(self).update(
            pixels=pixels, rows=rows, labels=targets, normalization=normalization, crops=crops, padding=padding
        )

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The whole split as normalized floats, ``([N, C, H, W],)``."""
        return self.take(slice(None)).inputs

    @property
    def targets(self) -> Targets:
        """Head name to class indices: ``{"label": [N]}``, or masks ``[N, H, W]``, cropped as the images."""
        return self._read_masks(self.labels, self.crops)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"ImageSplit({len(self)} images of {list(self.pixels.shape[1:])})"

    def take(self, index: slice | Tensor) -> Split:
        """Return the examples that ``index`` selects along axis 0, normalized and cropped."""
        images = self.normalization(self.pixels[self.rows[index]])
        if self.crops is not None:
            images = crop_and_flip(images, self.crops[index], self.padding)
        targets = {head: target[index] for head, target in self.labels.items()}
        return Split((images,), self._read_masks(targets, None if self.crops is None else self.crops[index]))

    def _read_masks(self, targets: Targets, crops: Tensor | None) -> Targets:
        """Return targets whose masks are class indices, cropped and mirrored; pixels outside an image have no class."""
        if all(target.dim() == 1 for target in targets.values()):
            return targets
        return {head: self._read_mask(target, crops) for head, target in targets.items()}

    def _read_mask(self, masks: Tensor, crops: Tensor | None) -> Tensor:
        """Return class indices ``[N, H, W]`` of masks of bytes."""
        if crops is not None:
            masks = crop_and_flip(masks.unsqueeze(1), crops, self.padding, NO_CLASS).squeeze(1)
        return masks.long().masked_fill_(masks == NO_CLASS, IGNORED)

    def with_crops(self, crops: Tensor, padding: int) -> "ImageSplit":
        """Return the same images with another crop and flip for each."""
        return ImageSplit(self.pixels, self.rows, self.labels, self.normalization, crops, padding)
