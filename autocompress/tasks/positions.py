"""Tasks of images whose targets are positions in them, such as masks and boxes: splits, views and preprocessing."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from autocompress.core.preprocessing import ImageInput, Preprocessing, RawExample
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised, check_positive
from autocompress.tasks.image_decoding import DecodedImages, ImageSource, Tones, survey_images
from autocompress.tasks.image_sources import SelectedImages
from autocompress.tasks.image_split import ImageSplit, Normalization, draw_view
from autocompress.tasks.images_folder import check_colour
from autocompress.tasks.split_rows import VALIDATION, choose_shares, draw_rows

Rows = Mapping[str, tuple[str, Tensor]]
"""Split name to the name of its part and the numbers of its images there."""


class PositionTask(Supervised):
    """Base class of tasks of images with one head whose targets are positions; a subclass reads images and targets.

    Args:
        path: Folder of the data.
        size: Side in pixels to which images are resized; ``None`` keeps their size.
        background: Colour behind transparent pixels.
        views: Number of augmented views of the training split.
        shift: Largest shift of an augmented view, as a share of the shorter side.
        flip: Whether half of an augmented view is mirrored.

    Raises:
        UsageError: An option is out of bounds, or the data cannot be read.
    """

    # Whether images of another aspect ratio are stretched instead of cropped.
    stretch = False

    def __init__(
        self,
        path: Path,
        *,
        size: int | None,
        background: str,
        views: int,
        shift: float,
        flip: bool,
    ) -> None:
        self.views = check_positive(f"{self.name}.views", views)
        if size is not None:
            check_positive(f"{self.name}.size", size, least=8)
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 <= shift <= 0.5:
            raise UsageError(f"task.{self.name}.shift is {shift!r}; give a share from 0 to 0.5")
        check_colour(f"task.{self.name}", background)
        self._sources = self._open_sources(path)
        self._survey = survey_images(self._sources["train"])
        self._tones = Tones(background, self._survey.peak)
        self._resize = size is not None
        height, width = self._survey.size if size is None else (size, size)
        self.shape = (self._survey.channels, height, width)
        self.inputs = (InputSpec(self.shape),)
        self._padding, self._flip = round(shift * min(height, width)), bool(flip)

    @abstractmethod
    def _open_sources(self, path: Path) -> Mapping[str, ImageSource]:
        """Return the images of each part of a folder."""

    @property
    @abstractmethod
    def _images(self) -> Mapping[str, DecodedImages]:
        """Decoded images of each part."""

    @property
    @abstractmethod
    def _targets(self) -> Mapping[str, Tensor]:
        """Targets of the images of each part, with the images on axis 0."""

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on images that cannot be read."""
        return tuple(
            f"{len(images.unreadable)} of {len(images.labels)} images in {part} cannot be read and were left out "
            f"({'; '.join(images.unreadable[:3])})"
            for part, images in self._images.items()
            if images.unreadable
        )

    def splits(self, seed: int) -> Splits:
        """Return five splits, normalized by the training split.

        Raises:
            UsageError: There are too few images, or too many are unreadable.
            StorageError: The cache folder cannot be written.
        """
        rows, head = self._split_rows(seed), next(iter(self.heads))
        normalization = self._measure(rows)
        return Splits(
            **{
                name: ImageSplit(self._images[part].pixels, index, {head: self._targets[part][index]}, normalization)
                for name, (part, index) in rows.items()
            }
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return size, channels and normalization of the images."""
        normalization = self._measure(self._split_rows(seed))
        mean, std = (tuple(values.flatten().tolist()) for values in (normalization.mean, normalization.std))
        tones, stretch = self._tones, self.stretch and self._resize
        return (
            ImageInput(
                self.shape, self._resize, mean, std, background=tones.background, peak=tones.peak, stretch=stretch
            ),
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the images of the test split, each opened when it is asked for."""
        part, rows = self._split_rows(seed)["test"]
        return SelectedImages(self._sources[part].load, rows.tolist())

    def view(self, split: Split, index: int) -> Split:
        """Return images and targets shifted by up to ``shift`` of their side, half of them mirrored."""
        return draw_view(split, index, padding=self._padding, flip=self._flip)

    def _measure(self, rows: Rows) -> Normalization:
        part, index = rows["train"]
        return Normalization.from_pixels(self._images[part].pixels, index)

    def _split_rows(self, seed: int) -> Rows:
        """Return the part and the rows of each split."""
        readable = {part: images.rows for part, images in self._images.items()}
        given = [*readable, *(VALIDATION if "val" in readable else ())]
        shares = choose_shares(len(readable["train"]), given)
        rows = {name: ("train", part) for name, part in _divide(readable["train"], seed, shares).items()}
        if "val" in readable:
            # draw_rows calls the remainder "train"; here it is the half for the search.
            halves = _divide(readable["val"], seed, {"select_val": 0.5})
            rows |= {"select_val": ("val", halves["select_val"]), "search_val": ("val", halves["train"])}
        if "test" in readable:
            rows["test"] = "test", readable["test"]
        return rows


def _divide(rows: Tensor, seed: int, shares: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: rows[torch.from_numpy(index)] for name, index in draw_rows(len(rows), seed, shares).items()}
