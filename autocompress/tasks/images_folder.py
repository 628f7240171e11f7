"""The task of a user's own images: class folders, MedMNIST's NPZ layout, or a torchvision-style data set."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.augment import move, random_moves
from autocompress.tasks.base import Supervised, imbalance
from autocompress.tasks.image_decoding import Decoded, decode, shape_of
from autocompress.tasks.image_sources import Album, Dataset, from_datasets, from_path
from autocompress.tasks.image_split import ImageSplit, Normal
from autocompress.tasks.splitting import FRACTIONS, stratified_rows


@TASKS.register("images")
class Images(Supervised):
    """Your own images: a folder of class folders, or an NPZ file in MedMNIST's layout.

    A ``test`` part that is given is the test split, and a ``val`` part is halved into both validation splits; what is
    missing is taken out of ``train``, each class in proportion. Images are decoded once, into the cache folder.

    Args:
        path: A folder of class folders; one whose ``train``, ``val`` and ``test`` are such; or an ``.npz`` file.
        train: Instead of ``path``, a torchvision-style data set: items are ``(image, class index)``.
        test: The data set of the test split, beside ``train``.
        size: Side in pixels that images are resized and cropped to; by default they all have one size already.
        channels: 1 for grey, 3 for RGB; by default as in the first image.
        limit: Largest number of images of each class in each part, for a quick look at much data.
        mean: Mean of each channel from 0 to 1, or one for all; by default measured on the training split.
        std: Deviation of each channel, likewise.
        views: Augmented views of the training split; 1 leaves it as it is.
        shift: Largest shift of an augmented view, as a share of the shorter side.
        flip: Whether half of an augmented view is mirrored; turn it off for writing, road signs and the like.

    Raises:
        UsageError: There are no such images, or an option is out of bounds.

    Example:
        A data set object goes into a task of one's own, which a search space then names::

            @TASKS.register("flowers")
            class Flowers(Images):
                def __init__(self) -> None:
                    super().__init__(train=Flowers102("data", "train"), test=Flowers102("data", "test"), size=64)
    """

    name = "images"

    def __init__(
        self,
        path: str | Path = "",
        *,
        train: Dataset | None = None,
        test: Dataset | None = None,
        size: int | None = None,
        channels: int | None = None,
        limit: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        views: int = 8,
        shift: float = 0.125,
        flip: bool = True,
    ) -> None:
        whole = {"size": size, "limit": limit, "views": views}
        for option, value in whole.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"task.images.{option} is {value!r}; give a whole number of at least 1")
        if channels not in (None, 1, 3):
            raise UsageError(f"task.images.channels is {channels!r}; give 1 for grey or 3 for RGB")
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 <= shift <= 0.5:
            raise UsageError(f"task.images.shift is {shift!r}; give a share from 0 to 0.5")
        if train is not None:
            self._album: Album = from_datasets(train, test, limit)
        elif path:
            self._album = from_path(Path(path).expanduser(), limit)
        else:
            raise UsageError(
                "task.images.path is not set; give a folder of class folders or an .npz file, "
                "for example --set task.images.path=data/flowers"
            )
        self.shape = shape_of(self._album.parts["train"], size, channels)
        self.inputs = (InputSpec(self.shape),)
        self.heads: Mapping[str, int] = {"label": len(self._album.classes)}
        self.labels: Mapping[str, list[str]] = {"label": list(self._album.classes)}
        self.views = views
        self._resize = size is not None
        self._padding = round(shift * min(self.shape[1:]))
        self._flip = bool(flip)
        self._normal: Normal | None = None
        self._mean = self._per_channel("mean", mean)
        self._std = self._per_channel("std", std)
        if self._std is not None and bool((self._std <= 0).any()):
            raise UsageError("task.images.std must be above 0")

    @staticmethod
    def sample(folder: Path) -> Path:
        """Write a tiny data set of three classes into a folder, and return what ``path`` is then."""
        random = np.random.default_rng(0)
        for label, name in enumerate(("blue", "green", "red")):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(16):
                pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 100
                Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
        return folder

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """What is worth knowing about the data: images that cannot be read, classes of very unequal size."""
        found = []
        for part, images in self._decoded.items():
            if images.unreadable:
                shown = "; ".join(images.unreadable[:3])
                count = f"{len(images.unreadable)} of {len(images.labels)} images in {part}"
                found.append(f"{count} cannot be read and were left out ({shown})")
        train = self._decoded["train"]
        counts = torch.bincount(train.labels[train.rows], minlength=len(self._album.classes)).tolist()
        found.append(imbalance(dict(zip(self._album.classes, counts, strict=True))))
        return tuple(filter(None, found))

    def splits(self, seed: int) -> Splits:
        """Return five splits, decoded and normalised by the training split, each class in proportion.

        Raises:
            UsageError: An image has another size than the first, too many cannot be read, or a class is too small.
            StorageError: The cache folder cannot be written.
        """
        parts = self._decoded
        rows = self._rows(parts, seed)
        normal = self._normal = self._normalisation(*rows["train"])
        return Splits(
            **{
                name: ImageSplit(images.pixels, index, {"label": images.labels[index]}, normal)
                for name, (images, index) in rows.items()
            }
        )

    def _normalisation(self, images: Decoded, rows: Tensor) -> Normal:
        if self._mean is not None and self._std is not None:
            return Normal(self._mean, self._std)
        measured = Normal.measured(images.pixels, rows)
        return Normal(
            measured.mean if self._mean is None else self._mean, measured.std if self._std is None else self._std
        )

    @property
    def preprocessing(self) -> str:
        """Size, channels and normalisation; the latter is known once the splits have been made."""
        if self._normal is None:
            return ""
        mean, std = (
            ", ".join(f"{value / 255:.4f}" for value in each.flatten().tolist())
            for each in (self._normal.mean, self._normal.std)
        )
        channels, height, width = self.shape
        colours = "RGB" if channels == 3 else "grey"
        return (
            f"{colours} images of {height} x {width} pixels from 0 to 1, channels first, minus the mean ({mean}), "
            f"divided by the deviation ({std})."
        )

    def view(self, split: Split, index: int) -> Split:
        """Return the images shifted by up to ``shift`` of their side, half of them mirrored; view 0 is the split."""
        if index == 0:
            return split
        moves = random_moves(len(split), index, padding=self._padding, flip=self._flip)
        if isinstance(split, ImageSplit):
            return split.moved(moves, self._padding)
        return Split((move(split.inputs[0], moves, self._padding),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 32, which halves large images at once, and how to train it."""
        large = min(self.shape[1:]) >= 64
        return (
            Part.of("cnn", width=32, depth=2, stages=4 if large else 3, stem_stride=2 if large else 1),
            Part.of("adamw", epochs=20, learning_rate=4e-3, batch_size=128, precision="auto"),
        )

    @cached_property
    def _decoded(self) -> dict[str, Decoded]:
        return {part: decode(source, self.shape, self._resize) for part, source in self._album.parts.items()}

    def _rows(self, parts: Mapping[str, Decoded], seed: int) -> dict[str, tuple[Decoded, Tensor]]:
        """Return each split's images and which of them it takes."""
        rows: dict[str, tuple[Decoded, Tensor]] = {}
        fractions = dict(FRACTIONS)
        if "test" in parts:
            del fractions["test"]
            rows["test"] = parts["test"], parts["test"].rows
        if "val" in parts:
            del fractions["search_val"], fractions["select_val"]
            halves = self._divided(parts["val"], seed, {"select_val": 0.5})
            rows["select_val"], rows["search_val"] = halves["select_val"], halves["train"]
        return rows | self._divided(parts["train"], seed, fractions)

    def _divided(self, images: Decoded, seed: int, fractions: Mapping[str, float]) -> dict[str, tuple[Decoded, Tensor]]:
        found = stratified_rows(images.labels[images.rows], seed, fractions, self._album.classes)
        return {name: (images, images.rows[torch.from_numpy(rows)]) for name, rows in found.items()}

    def _per_channel(self, option: str, given: float | Sequence[float] | None) -> Tensor | None:
        if given is None:
            return None
        values = [given] * self.shape[0] if isinstance(given, int | float) else list(given)
        if len(values) != self.shape[0] or not all(isinstance(value, int | float) for value in values):
            raise UsageError(f"task.images.{option} is {given!r}; give one number, or one for each channel")
        return torch.tensor(values, dtype=torch.float32).mul(255).view(-1, 1, 1)
