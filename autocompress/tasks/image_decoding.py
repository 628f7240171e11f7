"""Decoding of images into one tensor of bytes, which the cache folder keeps.

A cache entry consists of ``<key>.npy``, which is memory-mapped and therefore shared by all processes that read it, and
``<key>.json`` with its checksum and the unreadable images.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from autocompress.core.atomic import compute_file_sha256, create_temporary, open_cache, storage_errors, write_atomic
from autocompress.core.config import fingerprint
from autocompress.core.untrusted import require_regular
from autocompress.errors import RunFolderError, UsageError

# Version of the cache entries; a new one invalidates them.
FORMAT = 1
MAX_UNREADABLE_SHARE = 0.05
# Pixels of an image before it is decoded, 192 MB in RGB; as in pipeline.py.
LARGEST_IMAGE = 2**26
# Exceptions of Pillow for files that are not images, are truncated, or are so large that decoding exhausts the memory.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# Pillow's mode for each number of channels.
MODES = {1: "L", 3: "RGB"}

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImageSource:
    """Images of one part of the data that are not decoded yet.

    Attributes:
        names: Name of each image for messages.
        labels: Class index of each image.
        load: Function that opens an image by its number, as a Pillow image.
        cache_key: JSON value that changes whenever an image does; ``None`` disables the cache.
    """

    names: Sequence[str]
    labels: Sequence[int]
    load: Callable[[int], Image.Image]
    cache_key: object = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images of one part of the data.

    Attributes:
        pixels: Bytes ``[N, C, H, W]``; rows of unreadable images are black.
        labels: Class indices, ``[N]``.
        rows: Numbers of the readable images.
        unreadable: Name and reason of each unreadable image.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    unreadable: tuple[str, ...] = ()


def check_pixels(image: Image.Image) -> Image.Image:
    """Return an image that was opened and not decoded yet, if its header declares a size that memory can hold.

    Raises:
        ValueError: It declares more pixels.
    """
    if image.width * image.height > LARGEST_IMAGE:
        raise ValueError(f"it has {image.width}x{image.height} pixels, more than {LARGEST_IMAGE:,}")
    return image


def image_shape(source: ImageSource, size: int | None, channels: int | None) -> Shape:
    """Return ``(C, H, W)`` from the options, or from the first readable image where they are not set.

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
        # Modes of one channel: 1 bit, 8 bits, 8 bits with alpha, 32 bits and 16 bits.
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        return channels or (1 if grey else 3), *side
    raise UsageError(f"none of the {len(source)} images can be read; the first is {source.names[0]}")


def decode_images(source: ImageSource, shape: Shape, resize: bool) -> DecodedImages:
    """Return all images of a source as bytes, from the cache if it has them.

    If several processes request the same images, one decodes them and the others wait.

    Args:
        source: Images to decode.
        shape: Shape ``(C, H, W)`` of each decoded image.
        resize: Whether images of another size are resized and cropped; otherwise they raise an error.

    Raises:
        UsageError: An image has another size, or more than one in twenty cannot be read.
        StorageError: The cache folder cannot be written.
    """
    unreadable: dict[int, str] = {}
    # A generator: on a cache hit no image is opened, and on a miss one image at a time is in memory.
    images = _iterate_images(source, shape, resize, unreadable)
    if source.cache_key is None:
        return _build_images(source, np.stack(list(images)), unreadable)
    folder = open_cache("images")
    # Pillow's version is part of the key, because decoders may differ between versions.
    key = fingerprint([FORMAT, PIL.__version__, shape, resize, list(source.names), source.cache_key])
    path, record_path = folder / f"{key}.npy", folder / f"{key}.json"
    # One process decodes the images, and the others wait for its file.
    with FileLock(folder / f"{key}.lock"):
        cached = _read_cache(path, record_path, (len(source), *shape))
        if cached is None:
            _write_cache(path, (len(source), *shape), images)
            write_atomic(record_path, json.dumps({"sha256": compute_file_sha256(path), "unreadable": unreadable}))
            cached = _map_pixels(path), unreadable
    return _build_images(source, *cached)


def image_pixels(image: Image.Image, shape: Shape, resize: bool) -> Pixels:
    """Return one image as bytes ``[C, H, W]``: upright, in grey or RGB, and center-cropped if it is resized.

    Raises:
        UsageError: The image has another size and ``resize`` is off.
        OSError: The image cannot be decoded.
    """
    channels, height, width = shape
    mode = MODES[channels]
    if resize:
        # JPEG can decode at half, a quarter or an eighth of the size, which is much faster than at full size.
        image.draft(mode, (width, height))
    # Cameras record a rotation in the EXIF data instead of rotating the pixels.
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values to 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    # Pillow warns if a palette with transparency is not converted to RGBA first.
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


def _iterate_images(source: ImageSource, shape: Shape, resize: bool, unreadable: dict[int, str]) -> Iterator[Pixels]:
    """Yield every image; an unreadable one is black, and the reason is added to ``unreadable``."""
    for number in range(len(source)):
        try:
            with source.load(number) as image:
                pixels = image_pixels(image, shape, resize)
        except UsageError as error:
            raise UsageError(f"{source.names[number]} {error}") from None
        except UNREADABLE as reason:
            unreadable[number] = " ".join(str(reason).split())
            # A placeholder keeps the row numbers equal to those of the source.
            pixels = np.zeros(shape, np.uint8)
        yield pixels
    if len(unreadable) > MAX_UNREADABLE_SHARE * len(source):
        number, first = next(iter(unreadable.items()))
        raise UsageError(
            f"{len(unreadable)} of {len(source)} images cannot be read; the first is {source.names[number]}: {first}"
        )


def _build_images(source: ImageSource, pixels: Pixels, unreadable: dict[int, str]) -> DecodedImages:
    rows = [number for number in range(len(source)) if number not in unreadable]
    return DecodedImages(
        torch.from_numpy(pixels),
        torch.tensor(source.labels),
        torch.tensor(rows),
        tuple(f"{source.names[number]}: {reason}" for number, reason in unreadable.items()),
    )


def _read_cache(path: Path, record_path: Path, shape: tuple[int, ...]) -> tuple[Pixels, dict[int, str]] | None:
    """Return the cached pixels and unreadable images, or ``None`` if the entry is missing or damaged."""
    try:
        require_regular([path, record_path])
        record = json.loads(record_path.read_text())
        if compute_file_sha256(path) != record["sha256"]:
            return None
        pixels = _map_pixels(path)
        if pixels.shape != shape or pixels.dtype != np.uint8:
            return None
        return pixels, {int(number): str(reason) for number, reason in record["unreadable"].items()}
    except (AttributeError, KeyError, OSError, RecursionError, RunFolderError, TypeError, ValueError):
        return None


def _map_pixels(path: Path) -> Pixels:
    # Copy-on-write: torch requires writable memory, and the file must not change.
    pixels: Pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    return pixels


def _write_cache(path: Path, shape: tuple[int, ...], images: Iterator[Pixels]) -> None:
    """Write images one by one to a temporary file, and rename it to ``path`` once it is complete."""
    # Not through a memory map: on a full disk, writing to one kills the process instead of raising an error.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with storage_errors(path):
        handle, temporary = create_temporary(path)
        try:
            with os.fdopen(handle, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for image in images:
                    file.write(image.tobytes())
            os.replace(temporary, path)
        # Also on KeyboardInterrupt: no partial file may remain.
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
