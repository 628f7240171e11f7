"""Images of any kind to one tensor of bytes, decoded once and kept in the cache folder.

A cache entry is ``<key>.npy``, which is mapped into memory and so shared by every process that reads it, beside
``<key>.json`` with its checksum and the images that cannot be read.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from autocompress.core.atomic import cache_folder, file_sha256, storage_errors, write_atomic
from autocompress.core.config import fingerprint
from autocompress.errors import UsageError

FORMAT = 1
MOST_UNREADABLE = 0.05
# What Pillow raises on files that are no image, cut short, or so large that decoding them is an attack.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
MODES = {1: "L", 3: "RGB"}

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Source:
    """Images of one part of the data, not yet decoded.

    Attributes:
        names: What to call each image in a message.
        labels: The class of each.
        load: Opens one by its number, as a Pillow image.
        identity: JSON value that changes whenever an image does; ``None`` where nothing tells, and nothing is cached.
    """

    names: Sequence[str]
    labels: Sequence[int]
    load: Callable[[int], Image.Image]
    identity: Any = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Decoded:
    """Images of one part.

    Attributes:
        pixels: ``[N, C, H, W]``, bytes; rows of unreadable images hold nothing of use.
        labels: ``[N]``.
        rows: Numbers of the readable images.
        unreadable: Name and reason of each that is not.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    unreadable: tuple[str, ...] = ()


def shape_of(source: Source, size: int | None, channels: int | None) -> Shape:
    """Return ``(C, H, W)`` as asked for, or as the first readable image has it.

    Raises:
        UsageError: No image can be read.
    """
    if size is not None and channels is not None:
        return channels, size, size
    for number in range(len(source)):
        try:
            with source.load(number) as opened:
                image = ImageOps.exif_transpose(opened)
            side = (image.height, image.width) if size is None else (size, size)
        except UNREADABLE:
            continue
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        return channels or (1 if grey else 3), *side
    raise UsageError(f"none of the {len(source)} images can be read; the first is {source.names[0]}")


def decode(source: Source, shape: Shape, resize: bool) -> Decoded:
    """Return every image of a source as bytes, from the cache if it holds them.

    Processes that ask at the same time wait for one of them to decode.

    Args:
        source: What to decode.
        shape: ``(C, H, W)`` of the result.
        resize: Whether images of another size are resized and cropped to it; otherwise they are an error.

    Raises:
        UsageError: An image has another size, or more than one in twenty cannot be read.
        StorageError: The cache folder cannot be written.
    """
    unreadable: dict[int, str] = {}
    images = _images(source, shape, resize, unreadable)
    if source.identity is None:
        return _decoded(source, np.stack(list(images)), unreadable)
    folder = cache_folder() / "images"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    key = fingerprint([FORMAT, PIL.__version__, shape, resize, list(source.names), source.identity])
    path, note = folder / f"{key}.npy", folder / f"{key}.json"
    with FileLock(folder / f"{key}.lock"):
        found = _read(path, note)
        if found is None:
            _write(path, (len(source), *shape), images)
            write_atomic(note, json.dumps({"sha256": file_sha256(path), "unreadable": unreadable}))
            found = _mapped(path), unreadable
    return _decoded(source, *found)


def to_pixels(image: Image.Image, shape: Shape, resize: bool) -> Pixels:
    """Return one image as bytes ``[C, H, W]``: upright, in grey or RGB, cropped from its middle where it is resized.

    Raises:
        UsageError: It has another size and must not be resized.
        OSError: It cannot be decoded.
    """
    channels, height, width = shape
    mode = MODES[channels]
    if resize:
        # JPEG decodes at half, a quarter or an eighth of its size much faster than at full size.
        image.draft(mode, (width, height))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Sixteen bits: Pillow would clip them to the lowest eight.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert(mode)
    if resize:
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    elif (image.height, image.width) != (height, width):
        raise UsageError(
            f"is {image.width}x{image.height}, but the first image is {width}x{height}; give `size` to resize all"
        )
    pixels: Pixels = np.asarray(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    return pixels


def _images(source: Source, shape: Shape, resize: bool, unreadable: dict[int, str]) -> Iterator[Pixels]:
    """Yield every image, black where it cannot be read, and note the reason for each of those."""
    for number in range(len(source)):
        try:
            with source.load(number) as image:
                pixels = to_pixels(image, shape, resize)
        except UsageError as error:
            raise UsageError(f"{source.names[number]} {error}") from None
        except UNREADABLE as reason:
            unreadable[number] = " ".join(str(reason).split())
            pixels = np.zeros(shape, np.uint8)
        yield pixels
    if len(unreadable) > MOST_UNREADABLE * len(source):
        number, first = next(iter(unreadable.items()))
        raise UsageError(
            f"{len(unreadable)} of {len(source)} images cannot be read; the first is {source.names[number]}: {first}"
        )


def _decoded(source: Source, pixels: Pixels, unreadable: dict[int, str]) -> Decoded:
    rows = [number for number in range(len(source)) if number not in unreadable]
    return Decoded(
        torch.from_numpy(pixels),
        torch.tensor(source.labels),
        torch.tensor(rows),
        tuple(f"{source.names[number]}: {reason}" for number, reason in unreadable.items()),
    )


def _read(path: Path, note: Path) -> tuple[Pixels, dict[int, str]] | None:
    """Return what the cache holds, or ``None`` where it holds nothing whole."""
    try:
        record = json.loads(note.read_text())
        if file_sha256(path) != record["sha256"]:
            return None
        return _mapped(path), {int(number): reason for number, reason in record["unreadable"].items()}
    except (OSError, ValueError, KeyError):
        return None


def _mapped(path: Path) -> Pixels:
    # Copy-on-write: torch wants memory that it could write to, the file stays as it is.
    pixels: Pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    return pixels


def _write(path: Path, shape: tuple[int, ...], images: Iterator[Pixels]) -> None:
    """Write images beside ``path`` one by one, and give the file its name when it is whole."""
    # Not through a memory map: on a full disk that ends the process instead of raising.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with storage_errors(path):
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for image in images:
                    file.write(image.tobytes())
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
