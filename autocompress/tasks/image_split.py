"""A split of images stored as bytes: batches are normalized and augmented when they are taken."""

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.core.heads import IGNORED
from autocompress.core.task import Split, Targets
from autocompress.tasks.augment import crop_and_flip, crop_boxes, draw_crops

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
        targets: Head name to class indices ``[N]``, masks of bytes ``[N, H, W]``, or classes and boxes ``[N, M, 5]``,
            in the order of ``rows``.
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
        """Head name to class indices ``[N]``, masks ``[N, H, W]`` or boxes ``[N, M, 5]``, cropped as the images."""
        return self._read_targets(self.labels, self.crops)

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
        return Split((images,), self._read_targets(targets, None if self.crops is None else self.crops[index]))

    def _read_targets(self, targets: Targets, crops: Tensor | None) -> Targets:
        """Return targets that are moved with their images; masks of bytes become class indices."""
        if all(target.dim() == 1 for target in targets.values()):
            return targets
        height, width = self.pixels.shape[2:]
        if crops is not None:
            targets = {name: crop_target(part, crops, self.padding, (height, width)) for name, part in targets.items()}
        return {name: _index_pixels(part) if part.dtype == torch.uint8 else part for name, part in targets.items()}

    def select(self, rows: Tensor) -> "ImageSplit":
        """Return some of the images, which stay bytes."""
        labels = {head: target[rows] for head, target in self.labels.items()}
        crops = None if self.crops is None else self.crops[rows]
        return ImageSplit(self.pixels, self.rows[rows], labels, self.normalization, crops, self.padding)

    def with_crops(self, crops: Tensor, padding: int) -> "ImageSplit":
        """Return the same images with another crop and flip for each."""
        return ImageSplit(self.pixels, self.rows, self.labels, self.normalization, crops, padding)


def crop_target(target: Tensor, crops: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
    """Return a target that is cropped and mirrored as its images: masks and boxes are, class indices stay.

    Args:
        target: Class indices ``[N]``, masks ``[N, H, W]``, or classes and boxes ``[N, M, 5]`` as real numbers.
        crops: Crop and flip of each image, ``[N, 3]``.
        padding: Padding that ``crops`` refer to, in pixels.
        size: Height and width of the images.
    """
    if target.dim() == 1:
        return target
    if target.is_floating_point():
        return crop_boxes(target, crops, padding, size)
    # What lies outside an image has no class.
    fill = NO_CLASS if target.dtype == torch.uint8 else IGNORED
    return crop_and_flip(target.unsqueeze(1), crops, padding, fill).squeeze(1)


def draw_view(split: Split, index: int, *, padding: int, flip: bool) -> Split:
    """Return an augmented view of images, shifted and some of them mirrored with their targets; view 0 is the split.

    Args:
        split: Images ``[N, C, H, W]`` with targets that :func:`crop_target` takes.
        index: Number of the view.
        padding: Largest shift in pixels.
        flip: Whether half of the images are mirrored.
    """
    if index == 0:
        return split
    crops = draw_crops(len(split), index, padding=padding, flip=flip)
    if isinstance(split, ImageSplit):
        return split.with_crops(crops, padding)
    (images,) = split.inputs
    height, width = images.shape[2:]
    moved = {head: crop_target(target, crops, padding, (height, width)) for head, target in split.targets.items()}
    return Split((crop_and_flip(images, crops, padding),), moved)


def _index_pixels(masks: Tensor) -> Tensor:
    """Return class indices ``[N, H, W]`` of masks of bytes."""
    return masks.long().masked_fill_(masks == NO_CLASS, IGNORED)
