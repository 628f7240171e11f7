"""Where images come from: class folders, MedMNIST's NPZ layout, or any object with a length and items."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import UsageError
from autocompress.tasks.image_decoding import Source

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


class Dataset(Protocol):
    """A torchvision-style data set: items are ``(image, class index)``."""

    def __len__(self) -> int:
        """Return how many items there are."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return one item, the same each time."""
        ...


@dataclass(frozen=True)
class Album:
    """Images that are not decoded yet.

    Attributes:
        classes: Name of each class, in the order of the labels.
        parts: ``train``, and ``val`` and ``test`` where they are given.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, Source]


def from_path(path: Path, limit: int | None) -> Album:
    """Return the images of a folder or an ``.npz`` file.

    Args:
        path: A folder of class folders; a folder whose ``train``, ``val`` and ``test`` are such; or an NPZ file.
        limit: Largest number of images of each class in each part, spread evenly.

    Raises:
        UsageError: There is nothing of the kind, or a class is empty or stands in one part only.
    """
    if path.is_dir():
        return _from_folder(path, limit)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, limit)
    if path.is_file():
        raise UsageError(f"{path} is neither a folder nor an .npz file; unpack it, or give the folder of class folders")
    raise UsageError(f"task.images.path: there is no {path}; give a folder of class folders or an .npz file")


def from_datasets(train: Dataset, test: Dataset | None, limit: int | None) -> Album:
    """Return the images of torchvision-style data sets; every item is read once, here.

    Args:
        train: Its items are Pillow images, or arrays or tensors as :func:`as_image` takes them, each with its class.
        test: The same for the test split, if it is given.
        limit: Largest number of images of each class in each part, spread evenly.

    Raises:
        UsageError: An item is something else, or differs from one reading to the next.
    """
    parts = {"train": _from_dataset("train", train, limit)}
    if test is not None:
        parts["test"] = _from_dataset("test", test, limit)
    return _checked([str(name) for name in getattr(train, "classes", [])], parts)


def as_image(value: Any) -> Image.Image:
    """Return a Pillow image of a Pillow image, an array or a tensor.

    Args:
        value: An image; an array ``[H, W]`` or ``[H, W, C]`` of bytes; or a tensor ``[C, H, W]`` of bytes or of
            numbers from 0 to 1.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Tensor) and value.dim() == 3:
        if value.is_floating_point():
            low, high = value.aminmax()
            if not (low >= 0 and high <= 1):
                raise UsageError("its numbers are not from 0 to 1; leave the normalisation to the task")
            value = value.mul(255).round()
        value = value.to(torch.uint8).permute(1, 2, 0).numpy()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        if value.ndim == 3 and value.shape[2] == 1:
            value = value[:, :, 0]
        if value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(value))
    shape = f" {list(value.shape)} of {value.dtype}" if hasattr(value, "shape") else ""
    raise UsageError(
        f"it is a {type(value).__name__}{shape}; give a Pillow image, bytes [H, W, C] or a tensor [C, H, W]"
    )


def _from_folder(path: Path, limit: int | None) -> Album:
    found = {part: path / name for part, names in PARTS.items() for name in names if (path / name).is_dir()}
    if "train" not in found:
        found = {"train": path}
    classes = _folders(found["train"])
    if len(classes) < 2:
        inner = f", but {path / classes[0]} may be meant" if classes else ""
        raise UsageError(f"{found['train']} holds {len(classes)} class folders{inner}; a task needs at least two")
    parts = {}
    for part, folder in found.items():
        strange = sorted(set(_folders(folder)) - set(classes))
        if strange:
            raise UsageError(f"{folder} holds the class '{strange[0]}', which {found['train']} has not")
        parts[part] = _part(path, folder, classes, limit)
    return _checked(classes, parts)


def _part(path: Path, folder: Path, classes: Sequence[str], limit: int | None) -> Source:
    # Names, not Paths: with 55,000 files the difference is most of a second start.
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        chosen = _spread(_files(folder / name), limit)
        files += chosen
        labels += [label] * len(chosen)
    stats = [os.stat(file) for file in files]
    # The time of the last change of the inode cannot be set by an unpacker, as that of the content can.
    identity = [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]
    start = len(os.path.join(path, ""))
    names = [file[start:].replace(os.sep, "/") for file in files]
    return Source(names, labels, lambda number: Image.open(files[number]), identity)


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] not in "._")


def _files(folder: Path) -> list[str]:
    found = (
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )
    return sorted(found, key=lambda name: name.split(os.sep))


def _spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """Return at most ``limit`` items, evenly spaced."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


class _Member:
    """One array of an NPZ file, of which one row at a time is read: the whole may be larger than memory."""

    def __init__(self, path: Path, name: str) -> None:
        # Open as long as it is read from; it closes with its last user.
        self._file = zipfile.ZipFile(path).open(f"{name}.npy")  # noqa: SIM115
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self._type = read(self._file)
        self._start = self._file.tell()
        if self._type != np.uint8 or fortran or len(self.shape) not in (3, 4):
            raise UsageError(
                f"{path}: {name} is {list(self.shape)} of {self._type}; give bytes [N, H, W] or [N, H, W, 3]"
            )

    def __call__(self, number: int) -> Image.Image:
        size = int(np.prod(self.shape[1:]))
        self._file.seek(self._start + number * size)
        return as_image(np.frombuffer(self._file.read(size), np.uint8).reshape(self.shape[1:]))


def _from_npz(path: Path, limit: int | None) -> Album:
    stat = path.stat()
    parts = {}
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is no NPZ file; write it with numpy.savez, in MedMNIST's layout")
    try:
        with np.load(path, allow_pickle=False) as archive:
            for part in PARTS:
                name = f"{part}_images"
                if name not in archive.files:
                    continue
                labels = archive[f"{part}_labels"]
                if labels.ndim > 1 and labels.shape[1:] != (1,):
                    raise UsageError(f"{path}: {part}_labels is {list(labels.shape)}; an image needs exactly one label")
                flat = labels.reshape(-1).astype(np.int64)
                rows = _rows(flat, limit)
                member = _Member(path, name)
                if len(flat) != member.shape[0]:
                    raise UsageError(f"{path}: {part} has {member.shape[0]} images but {len(flat)} labels")
                identity = [part, rows, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
                names = [f"{name}[{row}]" for row in rows]
                parts[part] = Source(names, flat[rows].tolist(), _Picked(member, rows), identity)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as reason:
        raise UsageError(f"{path} cannot be read as MedMNIST's layout ({' '.join(str(reason).split())})") from None
    if "train" not in parts:
        raise UsageError(f"{path} holds no train_images; an .npz needs train_images and train_labels")
    return _checked([], parts)


@dataclass(frozen=True)
class _Picked:
    """Some of the images that something loads by number."""

    load: Any
    rows: Sequence[int]

    def __call__(self, number: int) -> Image.Image:
        image: Image.Image = self.load(self.rows[number])
        return image


def _from_dataset(name: str, dataset: Dataset, limit: int | None) -> Source:
    images: list[Image.Image] = []
    labels: list[int] = []
    for number in range(len(dataset)):
        try:
            value, label = dataset[number]
            images.append(as_image(value))
            labels.append(int(label))
        except (TypeError, ValueError, UsageError) as reason:
            raise UsageError(f"item {number} of the {name} data set cannot be used: {reason}") from None
    if images and as_image(dataset[0][0]).tobytes() != images[0].tobytes():
        raise UsageError(f"the {name} data set gives another image each time; leave random transforms to the task")
    rows = _rows(np.asarray(labels), limit)
    return Source(
        [f"item {row} of the {name} data set" for row in rows],
        [labels[row] for row in rows],
        _Picked(images.__getitem__, rows),
    )


def _rows(labels: Any, limit: int | None) -> list[int]:
    """Return the rows of at most ``limit`` examples of each class, in rising order."""
    chosen = [_spread(np.flatnonzero(labels == label).tolist(), limit) for label in np.unique(labels)]
    return sorted(row for rows in chosen for row in rows)


def _checked(classes: Sequence[str], parts: Mapping[str, Source]) -> Album:
    """Return the images with a name for each class, after a look at what each part holds of it."""
    for part, source in parts.items():
        if len(source) == 0:
            raise UsageError(f"{part} holds no images")
        if min(source.labels) < 0:
            raise UsageError(f"{part} holds the label {min(source.labels)}; classes count from 0")
    present = set(parts["train"].labels)
    names = tuple(classes) or tuple(str(label) for label in range(max(present) + 1))
    empty = [name for label, name in enumerate(names) if label not in present]
    if empty:
        raise UsageError(f"class '{empty[0]}' has no images in train")
    for part, source in parts.items():
        strange = sorted(set(source.labels) - set(range(len(names))))
        if strange:
            raise UsageError(f"{part} holds the class {strange[0]}, but there are {len(names)} classes")
    return Album(names, parts)
