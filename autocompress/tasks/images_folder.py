"""Image classification on a user's data: class folders, MedMNIST's NPZ layout, or a torchvision-style data set."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.preprocessing import ImageInput, Preprocessing, RawExample
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised, describe_imbalance, stratify_rows
from autocompress.tasks.image_decoding import DecodedImages, Tones, decode_parts, survey_images
from autocompress.tasks.image_sources import Dataset, ImageParts, SelectedImages, open_image_path, read_image_datasets
from autocompress.tasks.image_split import ImageSplit, Normalization, draw_view
from autocompress.tasks.split_rows import choose_shares


@TASKS.register("images")
class Images(Supervised):
    """Your own images: a folder of class folders, or an NPZ file in MedMNIST's layout.

    A ``test`` part of the data becomes the test split, and a ``val`` part is halved into both validation splits;
    missing splits are taken out of ``train``, stratified by class. Images are decoded once, into the cache folder.

    Args:
        path: A folder of class folders; a folder with ``train``, ``val`` and ``test`` folders of that kind; or an
            ``.npz`` file.
        train: Torchvision-style data set with items ``(image, class index)``, instead of ``path``.
        test: Data set of the test split, in addition to ``train``.
        size: Side in pixels to which images are resized and cropped; by default all images must have one size.
        channels: Number of channels, 1 for grey and 3 for RGB; by default 3 if any image is in colour.
        background: Colour behind transparent pixels, such as ``white`` or ``#ffcc00``.
        limit: Largest number of images of each class in each part, for a quick trial on a part of the data.
        mean: Mean of each channel from 0 to 1, or one for all; by default measured on the training split.
        std: Standard deviation of each channel, or one for all; by default measured on the training split.
        views: Number of augmented views of the training split; 1 disables augmentation.
        shift: Largest shift of an augmented view, as a share of the shorter side.
        flip: Whether half of an augmented view is mirrored; turn it off for images such as writing or road signs.

    Raises:
        UsageError: The images cannot be found or used, or an option is out of bounds.

    Example:
        To use a data set object, register a task of your own and name it in the search space::

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
        background: str = "white",
        limit: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        views: int = 8,
        shift: float = 0.125,
        flip: bool = True,
    ) -> None:
        counts = {"size": size, "limit": limit, "views": views}
        for option, value in counts.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"task.images.{option} is {value!r}; give a whole number of at least 1")
        if channels not in (None, 1, 3):
            raise UsageError(f"task.images.channels is {channels!r}; give 1 for grey or 3 for RGB")
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 <= shift <= 0.5:
            raise UsageError(f"task.images.shift is {shift!r}; give a share from 0 to 0.5")
        check_colour("task.images", background)
        if train is not None:
            self._images: ImageParts = read_image_datasets(train, test, limit)
        elif path:
            self._images = open_image_path(Path(path).expanduser(), limit)
        else:
            raise UsageError(
                "task.images.path is not set; give a folder of class folders or an .npz file, "
                "for example --set task.images.path=data/flowers"
            )
        self._survey = survey_images(self._images.parts["train"])
        self._tones = Tones(background, self._survey.peak)
        height, width = self._survey.size if size is None else (size, size)
        self.shape = (channels or self._survey.channels, height, width)
        self.inputs = (InputSpec(self.shape),)
        self.heads: Mapping[str, int] = {"label": len(self._images.classes)}
        self.labels: Mapping[str, Sequence[str]] = {"label": list(self._images.classes)}
        self.views = views
        self._resize = size is not None
        # Relative to the shorter side, so that a shift means the same at every resolution.
        self._padding = round(shift * min(self.shape[1:]))
        self._flip = bool(flip)
        self._mean = self._channel_values("mean", mean)
        self._std = self._channel_values("std", std)
        if self._std is not None and bool((self._std <= 0).any()):
            raise UsageError("task.images.std must be above 0")

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write a tiny data set of three classes into a folder, and return the value for ``path``."""
        random = np.random.default_rng(0)
        for label, name in enumerate(("blue", "green", "red")):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(16):
                # Noise with one brighter channel for each class, which a model learns within seconds.
                pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 100
                Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
        return folder

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """Remarks on the data: how images are read, unreadable ones and imbalanced classes."""
        remarks = self._describe_survey()
        for part, images in self._decoded_parts.items():
            if images.unreadable:
                examples = "; ".join(images.unreadable[:3])
                count = f"{len(images.unreadable)} of {len(images.labels)} images in {part}"
                remarks.append(f"{count} cannot be read and were left out ({examples})")
        train = self._decoded_parts["train"]
        counts = torch.bincount(train.labels[train.rows], minlength=len(self._images.classes)).tolist()
        remarks.append(describe_imbalance(dict(zip(self._images.classes, counts, strict=True))))
        return tuple(filter(None, remarks))

    def _describe_survey(self) -> list[str]:
        """Return a remark on each way in which images of the training part are changed."""
        counts, total = self._survey.counts, len(self._images.parts["train"])
        remarks = []
        if counts["grey"] and counts["colour"]:
            form = "grey" if self.shape[0] == 1 else "RGB"
            remarks.append(f"{counts['grey']} of {total} images are grey, the others in colour; all are read in {form}")
        if counts["transparent"]:
            remarks.append(
                f"{counts['transparent']} of {total} images may have transparent pixels, which are shown on "
                f"{self._tones.background} (task.images.background)"
            )
        if counts["deep"]:
            white = f"{self._tones.peak:g}"
            remarks.append(f"{counts['deep']} of {total} images have more than 8 bits; {white} is read as white")
        if counts["rotated"]:
            remarks.append(f"{counts['rotated']} of {total} images are rotated as their EXIF data says")
        return remarks

    def splits(self, seed: int) -> Splits:
        """Return five splits, stratified by class and normalized by the training split.

        Raises:
            UsageError: Images differ in size, too many are unreadable, or a class is too small.
            StorageError: The cache folder cannot be written.
        """
        parts = self._decoded_parts
        rows = self._split_rows(parts, seed)
        normalization = self._build_normalization(*rows["train"])
        return Splits(
            **{
                name: ImageSplit(images.pixels, index, {"label": images.labels[index]}, normalization)
                for name, (images, index) in rows.items()
            }
        )

    def _build_normalization(self, images: DecodedImages, rows: Tensor) -> Normalization:
        """Return the normalization by the options; what they leave out is measured on the training split."""
        if self._mean is not None and self._std is not None:
            return Normalization(self._mean, self._std)
        measured = Normalization.from_pixels(images.pixels, rows)
        return Normalization(
            measured.mean if self._mean is None else self._mean, measured.std if self._std is None else self._std
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return size, channels and normalization of the images."""
        rows = self._split_rows(self._decoded_parts, seed)
        normalization = self._build_normalization(*rows["train"])
        mean, std = (tuple(values.flatten().tolist()) for values in (normalization.mean, normalization.std))
        return (
            ImageInput(self.shape, self._resize, mean, std, background=self._tones.background, peak=self._tones.peak),
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the images of the test split, each opened when it is asked for."""
        images, rows = self._split_rows(self._decoded_parts, seed)["test"]
        (part,) = (name for name, decoded in self._decoded_parts.items() if decoded is images)
        return SelectedImages(self._images.parts[part].load, rows.tolist())

    def view(self, split: Split, index: int) -> Split:
        """Return the images shifted by up to ``shift`` of their side, half of them mirrored; view 0 is the split."""
        return draw_view(split, index, padding=self._padding, flip=self._flip)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 32, with a strided stem for large images, and its training config."""
        # A strided stem and one more stage keep the cost of the teacher low for large images.
        large = min(self.shape[1:]) >= 64
        return (
            Part.of("cnn", width=32, depth=2, stages=4 if large else 3, stem_stride=2 if large else 1),
            Part.of("adamw", epochs=20, learning_rate=4e-3, batch_size=128, precision="auto"),
        )

    @cached_property
    def _decoded_parts(self) -> dict[str, DecodedImages]:
        return decode_parts(self._images.parts, self.shape, self._resize, self._tones)

    def _split_rows(self, parts: Mapping[str, DecodedImages], seed: int) -> dict[str, tuple[DecodedImages, Tensor]]:
        """Return the decoded images of each split and the numbers of those that belong to it."""
        rows: dict[str, tuple[DecodedImages, Tensor]] = {}
        fractions = choose_shares(len(parts["train"].rows), list(parts))
        if "test" in parts:
            rows["test"] = parts["test"], parts["test"].rows
        # stratify_rows calls the remainder "train"; here it is the half for the search.
        if "val" in parts:
            halves = self._divide_images(parts["val"], seed, {"select_val": 0.5})
            rows["select_val"], rows["search_val"] = halves["select_val"], halves["train"]
        return rows | self._divide_images(parts["train"], seed, fractions)

    def _divide_images(
        self, images: DecodedImages, seed: int, fractions: Mapping[str, float]
    ) -> dict[str, tuple[DecodedImages, Tensor]]:
        rows_of = stratify_rows(images.labels[images.rows], seed, fractions, self._images.classes)
        return {name: (images, images.rows[torch.from_numpy(rows)]) for name, rows in rows_of.items()}

    def _channel_values(self, option: str, value: float | Sequence[float] | None) -> Tensor | None:
        """Return an option as one number per channel on the scale of bytes, ``[C, 1, 1]``."""
        if value is None:
            return None
        values = [value] * self.shape[0] if isinstance(value, int | float) else list(value)
        if len(values) != self.shape[0] or not all(isinstance(number, int | float) for number in values):
            raise UsageError(f"task.images.{option} is {value!r}; give one number, or one for each channel")
        return torch.tensor(values, dtype=torch.float32).mul(255).view(-1, 1, 1)


def check_colour(task: str, name: str) -> None:
    """Check that Pillow knows a colour.

    Args:
        task: Key of the task in a search space, for messages.
        name: Name of the colour.

    Raises:
        UsageError: It does not.
    """
    try:
        ImageColor.getrgb(name)
    except (AttributeError, TypeError, ValueError):
        raise UsageError(f"{task}.background is {name!r}; give a colour such as white or #ffcc00") from None
