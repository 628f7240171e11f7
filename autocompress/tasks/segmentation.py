"""Semantic segmentation of a user's images: a class for each pixel, from folders of images and of masks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.heads import Dense
from autocompress.core.registry import TASKS
from autocompress.errors import UsageError
from autocompress.tasks.image_decoding import (
    ORIENTATION,
    UNREADABLE,
    DecodedImages,
    ImageSource,
    decode_images,
    decode_parts,
    open_image,
)
from autocompress.tasks.image_sources import PARTS, find_image_files, list_image_files
from autocompress.tasks.image_split import NO_CLASS
from autocompress.tasks.positions import PositionTask

IMAGES, MASKS = "images", "masks"
HEAD = "mask"
# Pillow's modes whose values are class numbers; a palette only colours them.
MASK_MODES = ("1", "L", "P")


@dataclass(frozen=True)
class MaskFiles:
    """Masks of files, opened by number as images whose bytes are class numbers.

    Attributes:
        files: Path of each mask.
        size: Height and width to which each mask is resized by its nearest pixel and cropped; None keeps its size.
    """

    files: tuple[str, ...]
    size: tuple[int, int] | None

    def __call__(self, number: int) -> Image.Image:
        """Return a mask in the size of the model's images."""
        with open_image(self.files[number]) as image:
            mask = Image.fromarray(np.asarray(image, np.uint8))
        return mask if self.size is None else fit_mask(mask, self.size)


def fit_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a mask resized and center-cropped as its image is, each pixel the class of the nearest one."""
    return ImageOps.fit(mask, (size[1], size[0]), method=Image.Resampling.NEAREST)


@TASKS.register("segmentation")
class Segmentation(PositionTask):
    """A class for each pixel of your own images: a folder with images/ and masks/ of the same names.

    A mask is an image with one class number for each pixel, such as a PNG with a palette; 255 is a pixel without a
    class. ``train``, ``val`` and ``test`` folders of that kind are used as such; missing splits are taken out of
    ``train`` at random.

    Args:
        path: A folder with ``images`` and ``masks``, or with ``train``, ``val`` and ``test`` folders of that kind.
        size: Side in pixels to which images and masks are resized and cropped; by default all must have one size.
        classes: Names of the classes, in the order of their numbers; by default the numbers.
        background: Colour behind transparent pixels, such as ``white`` or ``#ffcc00``.
        views: Number of augmented views of the training split; 1 disables augmentation.
        shift: Largest shift of an augmented view, as a share of the shorter side.
        flip: Whether half of an augmented view is mirrored.

    Raises:
        UsageError: The folders cannot be used, an image has no mask or one of another size, or an option is out of
            bounds.
    """

    name = "segmentation"
    metrics = ("mean_iou", "accuracy", "f1_macro", "loss", "kl", "agreement", "retention")

    def __init__(
        self,
        path: str | Path = "",
        *,
        size: int | None = None,
        classes: Sequence[str] = (),
        background: str = "white",
        views: int = 8,
        shift: float = 0.125,
        flip: bool = True,
    ) -> None:
        if not path:
            raise UsageError(
                "task.segmentation.path is not set; give a folder with images/ and masks/, "
                "for example --set task.segmentation.path=data/roads"
            )
        super().__init__(Path(path).expanduser(), size=size, background=background, views=views, shift=shift, flip=flip)
        names = self._name_classes(classes)
        self.heads: Mapping[str, int] = {HEAD: Dense(len(names), "mean_iou")}
        self.labels: Mapping[str, Sequence[str]] = {HEAD: names}

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write tiny images of bright squares and stripes into a folder, and return the value for ``path``."""
        random = np.random.default_rng(0)
        for name in (IMAGES, MASKS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(60):
            pixels = random.integers(0, 90, (16, 16), dtype=np.uint8)
            mask = np.zeros((16, 16), np.uint8)
            row, column = random.integers(0, 10, 2)
            area = (
                (slice(row, row + 6), slice(column, column + 6)) if number % 2 else (slice(row, row + 4), slice(None))
            )
            mask[area] = 1 + number % 2
            pixels[mask > 0] += 120
            Image.fromarray(pixels).save(folder / IMAGES / f"{number:02}.png")
            Image.fromarray(mask).save(folder / MASKS / f"{number:02}.png")
        return folder

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """Remarks on classes that no mask of the training part has, and on unreadable images."""
        counts = _count_pixels(self._targets["train"]).sum(0)[: self.heads[HEAD]]
        absent = [name for name, count in zip(self.labels[HEAD], counts.tolist(), strict=True) if not count]
        remarks = [f"no pixel of train has the class {', '.join(absent)}"] if absent else []
        return (*remarks, *super().notices)

    def teacher(self) -> tuple[Part, Part]:
        """Return an encoder and decoder of width 16, with a strided stem for large images, and its training config."""
        is_large = min(self.shape[1:]) >= 128
        return (
            Part.of("unet", width=16, depth=2, stages=4 if is_large else 3, stem_stride=2 if is_large else 1),
            Part.of("adamw", epochs=30, learning_rate=4e-3, batch_size=16, precision="auto"),
        )

    def _open_sources(self, path: Path) -> dict[str, ImageSource]:
        self._pairs = open_pairs(path)
        return {part: pair.images for part, pair in self._pairs.items()}

    @cached_property
    def _images(self) -> dict[str, DecodedImages]:
        return decode_parts(self._sources, self.shape, self._resize, self._tones)

    @cached_property
    def _targets(self) -> dict[str, Tensor]:
        """Class numbers of the pixels of each part, bytes ``[N, H, W]``."""
        size = self.shape[1:]
        masks = {}
        for part, pair in self._pairs.items():
            source = pair.open_masks(size if self._resize else None)
            masks[part] = decode_images(source, (1, *size), resize=False).pixels[:, 0]
        return masks

    def _name_classes(self, classes: Sequence[str]) -> list[str]:
        """Return a name for each class, after a check of the numbers in all masks.

        Raises:
            UsageError: A mask has a number without a class, or there is one class.
        """
        counts = {part: _count_pixels(masks) for part, masks in self._targets.items()}
        used = {part: pixels[:, :NO_CLASS].sum(0).nonzero().flatten().tolist() for part, pixels in counts.items()}
        largest = {part: max(numbers, default=0) for part, numbers in used.items()}
        if not any(largest.values()):
            raise UsageError(
                f"no pixel of the masks has another class than 0, so that there is nothing to learn ({NO_CLASS} marks "
                "a pixel without a class)"
            )
        names = [str(name) for name in classes] or [str(number) for number in range(max(largest.values()) + 1)]
        for part, number in largest.items():
            if number >= len(names):
                row = int(counts[part][:, number].nonzero()[0])
                raise UsageError(
                    f"{self._pairs[part].masks[row]} has the class {number}, but classes are numbered from 0 to "
                    f"{len(names) - 1}; name {number + 1} classes in task.segmentation.classes, or write {NO_CLASS} "
                    "where a pixel has no class"
                )
        if len(names) < 2:
            raise UsageError(f"task.segmentation.classes has the single class {names[0]}; a task needs at least two")
        return names


def _count_pixels(masks: Tensor) -> Tensor:
    """Return the number of pixels of each class in each mask, ``[N, 256]``, one mask at a time in memory."""
    counts = [torch.bincount(mask.flatten(), minlength=NO_CLASS + 1) for mask in masks]
    return torch.stack(counts)


@dataclass(frozen=True)
class ImagePairs:
    """Images of one part with their masks.

    Attributes:
        images: The images.
        masks: Path of the mask of each image.
    """

    images: ImageSource
    masks: tuple[str, ...]

    def open_masks(self, size: tuple[int, int] | None) -> ImageSource:
        """Return the masks as images of class numbers, resized to a size if there is one."""
        stats = [os.stat(file) for file in self.masks]
        key = [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]
        return ImageSource(self.masks, [0] * len(self.masks), MaskFiles(self.masks, size), ["masks", size, key])


def open_pairs(path: Path) -> dict[str, ImagePairs]:
    """Return the images and masks of each part of a folder.

    Raises:
        UsageError: A folder is missing, an image has no mask, a mask has no image, or both differ in size.
    """
    if not path.is_dir():
        raise UsageError(f"task.segmentation.path: there is no folder {path}; give a folder with images/ and masks/")
    folders = {part: path / name for part, names in PARTS.items() for name in names if (path / name).is_dir()}
    if "train" not in folders:
        folders = {"train": path}
    return {part: _open_part(path, folder) for part, folder in folders.items()}


def _open_part(path: Path, folder: Path) -> ImagePairs:
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise UsageError(f"{folder} has no folder '{name}'; images and masks of the same names are needed")
    images, masks = (_index_stems(folder / name) for name in (IMAGES, MASKS))
    if alone := sorted(images.keys() ^ masks.keys()):
        present = images.get(alone[0]) or masks[alone[0]]
        lacking = MASKS if alone[0] in images else IMAGES
        raise UsageError(f"{present} has no file of the same name in {folder / lacking}; add it, or remove this one")
    files = [images[stem] for stem in images]
    pairs = ImagePairs(list_image_files(path, files, [0] * len(files)), tuple(masks[stem] for stem in images))
    for image, mask in zip(files, pairs.masks, strict=True):
        _check_mask(image, mask)
    return pairs


def _index_stems(folder: Path) -> dict[str, str]:
    """Return the file of each name without its suffix, below a folder."""
    stems: dict[str, str] = {}
    for file in find_image_files(folder):
        stem = os.path.splitext(os.path.relpath(file, folder))[0]
        if stem in stems:
            raise UsageError(f"{stems[stem]} and {file} have the same name; keep one of them")
        stems[stem] = file
    return stems


def _check_mask(image: str, mask: str) -> None:
    """Check by the headers that a mask has the size of its image and class numbers as pixels.

    Raises:
        UsageError: It has another size, colours, or cannot be read.
    """
    try:
        with open_image(image) as picture, open_image(mask) as classes:
            # A rotated image has a mask for what is seen.
            size = picture.size if picture.getexif().get(ORIENTATION, 1) < 5 else picture.size[::-1]
            mask_size, mode = classes.size, classes.mode
    except UNREADABLE as error:
        raise UsageError(f"{mask} or its image cannot be read: {' '.join(str(error).split())}") from None
    if mask_size != size:
        raise UsageError(
            f"{mask} is {mask_size[0]}x{mask_size[1]} and its image {size[0]}x{size[1]}; a mask has the size of its "
            "image"
        )
    if mode not in MASK_MODES:
        raise UsageError(
            f"{mask} has pixels of the form {mode}; a mask has one class number from 0 to {NO_CLASS} for each pixel, "
            "in grey or with a palette"
        )
