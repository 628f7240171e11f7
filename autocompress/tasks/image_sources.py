"""Sources of images: class folders, MedMNIST's NPZ layout, or any object with a length and items."""

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from autocompress.core.array_files import list_arrays, open_array, read_arrays
from autocompress.errors import UsageError
from autocompress.tasks.image_decoding import ImageSource, check_size, open_image
from autocompress.tasks.mapped_arrays import CHECKED_ITEMS, MEMORY_SHARE, exceeds_memory

Item = TypeVar("Item")

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Names of the folders of each part.
PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


class Dataset(Protocol):
    """Torchvision-style data set with items ``(image, class index)``."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return one item, the same one on every call."""
        ...


@dataclass(frozen=True)
class ImageParts:
    """Parts of an image data set that are not decoded yet.

    Attributes:
        classes: Name of each class, in the order of the labels.
        parts: Part name to its images: ``train``, and ``val`` and ``test`` if the data has them.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, ImageSource]


def open_image_path(path: Path, limit: int | None) -> ImageParts:
    """Return the images of a folder or an ``.npz`` file.

    Args:
        path: A folder of class folders; a folder with ``train``, ``val`` and ``test`` folders of that kind; or an NPZ
            file.
        limit: Largest number of images of each class in each part, spread evenly.

    Raises:
        UsageError: The path has none of these forms, or a class is empty or missing in ``train``.
    """
    if path.is_dir():
        return _open_folder(path, limit)
    if path.suffix == ".npz" and path.is_file():
        return _open_npz(path, limit)
    if path.is_file():
        raise UsageError(f"{path} is neither a folder nor an .npz file; unpack it, or give the folder of class folders")
    raise UsageError(f"task.images.path: there is no {path}; give a folder of class folders or an .npz file")


def read_image_datasets(train: Dataset, test: Dataset | None, limit: int | None) -> ImageParts:
    """Return the images of torchvision-style data sets; every item is read once, by this function.

    Args:
        train: Data set of Pillow images, or of arrays or tensors that :func:`as_image` accepts, each with its class.
        test: Data set of the test split, in the same form.
        limit: Largest number of images of each class in each part, spread evenly.

    Raises:
        UsageError: An item has another form, or differs from one access to the next.
    """
    parts = {"train": _read_dataset("train", train, limit)}
    if test is not None:
        parts["test"] = _read_dataset("test", test, limit)
    return _build_parts([str(name) for name in getattr(train, "classes", [])], parts)


def as_image(value: object) -> Image.Image:
    """Return a Pillow image from a Pillow image, an array or a tensor.

    Args:
        value: An image; an array ``[H, W]`` or ``[H, W, C]`` of bytes; or a tensor ``[C, H, W]`` of bytes or of
            numbers from 0 to 1.

    Raises:
        UsageError: The value has none of these forms.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Tensor) and value.dim() == 3:
        if value.is_floating_point():
            # torchvision's ToTensor gives values from 0 to 1; normalized values cannot be converted back to bytes.
            low, high = value.aminmax()
            if not (low >= 0 and high <= 1):
                raise UsageError("its values are not from 0 to 1; leave the normalization to the task")
            value = value.mul(255).round()
        value = value.to(torch.uint8).permute(1, 2, 0).numpy()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        # Pillow expects grey images without a channel axis.
        if value.ndim == 3 and value.shape[2] == 1:
            value = value[:, :, 0]
        if value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(value))
    array_shape = getattr(value, "shape", None)
    shape = "" if array_shape is None else f" {list(array_shape)} of {getattr(value, 'dtype', 'unknown type')}"
    raise UsageError(
        f"it is a {type(value).__name__}{shape}; give a Pillow image, bytes [H, W, C] or a tensor [C, H, W]"
    )


def _open_folder(path: Path, limit: int | None) -> ImageParts:
    folders = {part: path / name for part, names in PARTS.items() for name in names if (path / name).is_dir()}
    if "train" not in folders:
        folders = {"train": path}
    classes = _class_folders(folders["train"])
    if len(classes) < 2:
        hint = f"; did you mean {path / classes[0]}?" if classes else ""
        raise UsageError(f"{folders['train']} holds {len(classes)} class folders, and a task needs at least two{hint}")
    parts = {}
    for part, folder in folders.items():
        unknown = sorted(set(_class_folders(folder)) - set(classes))
        if unknown:
            raise UsageError(f"{folder} holds the class '{unknown[0]}', which {folders['train']} does not have")
        parts[part] = _list_folder(path, folder, classes, limit)
    return _build_parts(classes, parts)


def _list_folder(path: Path, folder: Path, classes: Sequence[str], limit: int | None) -> ImageSource:
    # Names instead of Path objects: with 55,000 files, creating Paths takes most of the time of a cached start.
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        selected = _select_evenly(find_image_files(folder / name), limit)
        files += selected
        labels += [label] * len(selected)
    return list_image_files(path, files, labels)


def list_image_files(path: Path, files: Sequence[str], labels: Sequence[int]) -> ImageSource:
    """Return files below a folder as images, with a cache key that changes whenever a file does.

    Args:
        path: The folder.
        files: Paths of the images.
        labels: Class index of each image.
    """
    stats = [os.stat(file) for file in files]
    # An unpacking tool can set the modification time (mtime), but not the change time of the inode (ctime).
    cache_key = [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]
    start = len(os.path.join(path, ""))
    # Relative names are part of the cache key, so that a moved folder finds its entry.
    names = [file[start:].replace(os.sep, "/") for file in files]
    return ImageSource(names, labels, FileImages(tuple(files)), cache_key)


@dataclass(frozen=True)
class FileImages:
    """Images of files, opened by number. A class, because a fit in several processes pickles the task."""

    files: tuple[str, ...]

    def __call__(self, number: int) -> Image.Image:
        """Return an image that is opened and not decoded yet."""
        return open_image(self.files[number])


def _class_folders(path: Path) -> list[str]:
    # Folders such as .ipynb_checkpoints and __MACOSX are not classes.
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] not in "._")


def find_image_files(folder: Path) -> list[str]:
    """Return the paths of the images below a folder, in order."""
    files = (
        os.path.join(directory, name)
        for directory, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )
    # Sorted by path components: the separator would sort differently on other platforms.
    return sorted(files, key=lambda name: name.split(os.sep))


def _select_evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return at most ``limit`` evenly spaced items."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


class _NpzImages:
    """Images of one array of an NPZ file, read one at a time because the array may be larger than memory."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        # The file stays open while the object exists, and is closed with it.
        self._file, self.shape, dtype = open_array(path, name)
        self._start = self._file.tell()
        if dtype != np.uint8 or len(self.shape) not in (3, 4):
            raise UsageError(f"{path}: {name} is {list(self.shape)} of {dtype}; give bytes [N, H, W] or [N, H, W, 3]")
        check_size(self.shape[2], self.shape[1])

    def __reduce__(self) -> tuple[Callable[[Path, str], "_NpzImages"], tuple[Path, str]]:
        # Another process opens the file anew.
        return _NpzImages, (self._path, self._name)

    def __call__(self, number: int) -> Image.Image:
        size = int(np.prod(self.shape[1:]))
        self._file.seek(self._start + number * size)
        return as_image(np.frombuffer(self._file.read(size), np.uint8).reshape(self.shape[1:]))


def _open_npz(path: Path, limit: int | None) -> ImageParts:
    stat = path.stat()
    parts = {}
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not an NPZ file; write it with numpy.savez, in MedMNIST's layout")
    try:
        # The images themselves are read one at a time.
        stored = read_arrays(path, [f"{part}_labels" for part in PARTS])
        names_of_arrays = list_arrays(path)
        for part in PARTS:
            name = f"{part}_images"
            if name not in names_of_arrays:
                continue
            labels = stored[f"{part}_labels"]
            # MedMNIST stores labels as [N, 1]; a wider axis means several labels per image.
            if labels.ndim > 1 and labels.shape[1:] != (1,):
                raise UsageError(f"{path}: {part}_labels is {list(labels.shape)}; an image needs exactly one label")
            flat = labels.reshape(-1).astype(np.int64)
            rows = _select_rows(flat, limit)
            images = _NpzImages(path, name)
            if len(flat) != images.shape[0]:
                raise UsageError(f"{path}: {part} has {images.shape[0]} images but {len(flat)} labels")
            cache_key = [part, rows, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            names = [f"{name}[{row}]" for row in rows]
            parts[part] = ImageSource(names, flat[rows].tolist(), SelectedImages(images, rows), cache_key)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read as MedMNIST's layout ({' '.join(str(error).split())})") from None
    if "train" not in parts:
        raise UsageError(f"{path} holds no train_images; an .npz needs train_images and train_labels")
    return _build_parts([], parts)


@dataclass(frozen=True)
class SelectedImages(Sequence[Image.Image]):
    """Some of the images that a function loads by number, as a function and as a sequence.

    Attributes:
        load: Function that opens an image by its number.
        rows: Number of each selected image.
    """

    load: Callable[[int], Image.Image]
    rows: Sequence[int]

    def __call__(self, number: int) -> Image.Image:
        """Return the image at a position of the selection."""
        return self.load(self.rows[number])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> "SelectedImages": ...

    def __getitem__(self, index: int | slice) -> "Image.Image | SelectedImages":
        return SelectedImages(self.load, self.rows[index]) if isinstance(index, slice) else self(index)


def _read_dataset(name: str, dataset: Dataset, limit: int | None) -> ImageSource:
    images: list[Image.Image] = []
    labels: list[int] = []
    size = 0
    for number in range(len(dataset)):
        if number % CHECKED_ITEMS == 0 and exceeds_memory(size):
            raise UsageError(
                f"the {name} data set takes more than {MEMORY_SHARE:.0%} of the free memory after {number:,} images; "
                "save them in class folders, which are decoded into the cache folder (path=)"
            )
        try:
            value, label = dataset[number]
            images.append(as_image(value))
            size += len(images[-1].getbands()) * images[-1].width * images[-1].height
            labels.append(int(label))
        except (TypeError, ValueError, UsageError) as error:
            raise UsageError(f"item {number} of the {name} data set cannot be used: {error}") from None
    # Every item is read once, so a random transform would be applied once and never change.
    if images and as_image(dataset[0][0]).tobytes() != images[0].tobytes():
        raise UsageError(
            f"the {name} data set returns different images for the same index; leave random transforms to the task"
        )
    rows = _select_rows(np.asarray(labels), limit)
    return ImageSource(
        [f"item {row} of the {name} data set" for row in rows],
        [labels[row] for row in rows],
        SelectedImages(images.__getitem__, rows),
    )


def _select_rows(labels: NDArray[np.int64], limit: int | None) -> list[int]:
    """Return the rows of at most ``limit`` examples of each class, in ascending order."""
    selected = [_select_evenly(np.flatnonzero(labels == label).tolist(), limit) for label in np.unique(labels)]
    return sorted(row for rows in selected for row in rows)


def _build_parts(classes: Sequence[str], parts: Mapping[str, ImageSource]) -> ImageParts:
    """Return the parts with a name for each class, after a check of the labels.

    Raises:
        UsageError: A part is empty, a label is negative or unknown, or a class has no training images.
    """
    for part, source in parts.items():
        if len(source) == 0:
            raise UsageError(f"{part} holds no images")
        if min(source.labels) < 0:
            raise UsageError(f"{part} holds the label {min(source.labels)}; classes count from 0")
    present = set(parts["train"].labels)
    # Sources without class names, such as NPZ files, name the classes by their numbers.
    names = tuple(classes) or tuple(str(label) for label in range(max(present) + 1))
    empty = [name for label, name in enumerate(names) if label not in present]
    if empty:
        raise UsageError(f"class '{empty[0]}' has no images in train")
    for part, source in parts.items():
        unknown = sorted(set(source.labels) - set(range(len(names))))
        if unknown:
            raise UsageError(f"{part} holds the class {unknown[0]}, but there are {len(names)} classes")
    return ImageParts(names, parts)
