"""Decoding of images into one tensor of bytes, which the cache folder keeps.

A cache entry consists of ``<key>.npy``, which is memory-mapped and therefore shared by all processes that read it, and
``<key>.json`` with its checksum and the unreadable images.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from autocompress.core.atomic import (
    compute_file_sha256,
    create_temporary,
    make_lock,
    open_cache,
    storage_errors,
    write_atomic,
)
from autocompress.core.config import fingerprint
from autocompress.core.untrusted import check_data_file, require_regular
from autocompress.errors import RunFolderError, UsageError

# Version of the cache entries; a new one invalidates them.
FORMAT = 2
MAX_UNREADABLE_SHARE = 0.05
# Pixels of an image before it is decoded, 192 MB in RGB; as in pipeline.py.
LARGEST_IMAGE = 2**26
# Formats that Pillow decodes by itself; for others it starts programs, such as Ghostscript for PostScript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Exceptions of Pillow for files that are not images, are truncated, or are so large that decoding exhausts the memory.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# EXIF tag of the rotation that a camera recorded.
ORIENTATION = 0x0112
# What a survey counts.
KINDS = ("grey", "colour", "transparent", "deep", "rotated")
# Usual values of white: of floats, then of 8, 10, 12, 14 and 16 bits.
PEAKS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
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


def open_image(path: str) -> Image.Image:
    """Return the image of a file, which is opened and not decoded yet.

    Raises:
        OSError: The file cannot be read, is no regular file, or is no image.
        ValueError: Its header declares more pixels than :data:`LARGEST_IMAGE`.
    """
    check_data_file(path)
    image = Image.open(path, formats=FORMATS)
    try:
        check_size(image.width, image.height)
    except ValueError:
        image.close()
        raise
    return image


def check_size(width: int, height: int) -> None:
    """Check that memory can hold an image of a size.

    Raises:
        ValueError: It has more pixels than :data:`LARGEST_IMAGE`.
    """
    if width * height > LARGEST_IMAGE:
        raise ValueError(f"it has {width}x{height} pixels, more than {LARGEST_IMAGE:,}")


@dataclass(frozen=True)
class Tones:
    """How transparency and more than eight bits become bytes.

    Attributes:
        background: Colour behind transparent pixels, as Pillow names it: ``white`` or ``#ffcc00``.
        peak: Value of white in images of 16 or 32 bits.
    """

    background: str = "white"
    peak: float = 65535.0


@dataclass(frozen=True)
class ImageSurvey:
    """What the images of a source are, by their headers.

    Attributes:
        size: Height and width of the first readable image, upright.
        counts: Number of images by kind: ``grey``, ``colour``, ``transparent``, ``deep`` (16 or 32 bits), ``rotated``.
        largest: Largest value of the deep images; 0 if there are none.
    """

    size: tuple[int, int]
    counts: Mapping[str, int]
    largest: float

    @property
    def channels(self) -> int:
        """1 if all images are grey, else 3."""
        return 3 if self.counts["colour"] else 1

    @property
    def peak(self) -> float:
        """Value of white in deep images: the end of the narrowest usual range that contains them all."""
        return next((peak for peak in PEAKS if self.largest <= peak), PEAKS[-1]) if self.largest else Tones.peak


def survey_images(source: ImageSource) -> ImageSurvey:
    """Return what the images are; only those of more than eight bits are decoded. The cache folder keeps the result.

    Raises:
        UsageError: No image can be read.
        StorageError: The cache folder cannot be written.
    """
    if source.cache_key is None:
        return _survey_images(source)
    key = fingerprint([FORMAT, PIL.__version__, "survey", list(source.names), source.cache_key])
    path = open_cache("images") / f"{key}.survey.json"
    try:
        require_regular([path])
        record = json.loads(path.read_text())
        height, width = map(int, record["size"])
        counts = {kind: int(record["counts"][kind]) for kind in KINDS}
        return ImageSurvey((height, width), counts, float(record["largest"]))
    except (AttributeError, KeyError, OSError, RecursionError, RunFolderError, TypeError, ValueError):
        survey = _survey_images(source)
        write_atomic(path, json.dumps(asdict(survey)))
        return survey


def _survey_images(source: ImageSource) -> ImageSurvey:
    size: tuple[int, int] | None = None
    counts = dict.fromkeys(KINDS, 0)
    largest = 0.0
    for number in range(len(source)):
        try:
            with source.load(number) as image:
                is_rotated = image.getexif().get(ORIENTATION, 1) != 1
                if size is None:
                    upright = ImageOps.exif_transpose(image)
                    size = upright.height, upright.width
                if _is_deep(image):
                    counts["deep"] += 1
                    largest = max(largest, float(np.nanmax(np.asarray(image), initial=0.0)))
                counts["transparent"] += _is_transparent(image)
                # Modes of one channel: 1 bit, 8 bits, 8 bits with alpha; and those of more than 8 bits.
                counts["grey" if image.mode in ("1", "L", "LA", "La") or _is_deep(image) else "colour"] += 1
                counts["rotated"] += is_rotated
        except UNREADABLE:
            continue
    if size is None:
        raise UsageError(f"none of the {len(source)} images can be read; the first is {source.names[0]}")
    return ImageSurvey(size, counts, largest)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def decode_parts(
    sources: Mapping[str, ImageSource], shape: Shape, resize: bool, tones: Tones, stretch: bool = False
) -> dict[str, DecodedImages]:
    """Return the decoded images of each part of a data set; raises as :func:`decode_images`."""
    return {part: decode_images(source, shape, resize, tones, stretch) for part, source in sources.items()}


def decode_images(
    source: ImageSource, shape: Shape, resize: bool, tones: Tones = Tones(), stretch: bool = False
) -> DecodedImages:
    """Return all images of a source as bytes, from the cache if it has them.

    If several processes request the same images, one decodes them and the others wait.

    Args:
        source: Images to decode.
        shape: Shape ``(C, H, W)`` of each decoded image.
        resize: Whether images of another size are resized and cropped; otherwise they raise an error.
        tones: How transparency and more than eight bits become bytes.
        stretch: Whether resized images are stretched instead of cropped.

    Raises:
        UsageError: An image has another size, or more than one in twenty cannot be read.
        StorageError: The cache folder cannot be written.
    """
    unreadable: dict[int, str] = {}
    # A generator: on a cache hit no image is opened, and on a miss one image at a time is in memory.
    images = _iterate_images(source, shape, resize, tones, stretch, unreadable)
    if source.cache_key is None:
        return _build_images(source, np.stack(list(images)), unreadable)
    folder = open_cache("images")
    # Pillow's version is part of the key, because decoders may differ between versions.
    form = [shape, "stretch" if resize and stretch else resize, asdict(tones)]
    key = fingerprint([FORMAT, PIL.__version__, *form, list(source.names), source.cache_key])
    path, record_path = folder / f"{key}.npy", folder / f"{key}.json"
    # One process decodes the images, and the others wait for its file.
    with make_lock(folder / f"{key}.lock"):
        cached = _read_cache(path, record_path, (len(source), *shape))
        if cached is None:
            _write_cache(path, (len(source), *shape), images)
            write_atomic(record_path, json.dumps({"sha256": compute_file_sha256(path), "unreadable": unreadable}))
            cached = _map_pixels(path), unreadable
    return _build_images(source, *cached)


def image_pixels(
    image: Image.Image, shape: Shape, resize: bool, tones: Tones = Tones(), stretch: bool = False
) -> Pixels:
    """Return one image as bytes ``[C, H, W]``: upright, in grey or RGB; a resized one is center-cropped or stretched.

    Transparent pixels are shown on a background. Values of more than eight bits are scaled from 0 to ``tones.peak``.

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
    if _is_deep(image):
        # Pillow would clip the values to 255 instead of scaling them.
        values = np.nan_to_num(np.asarray(image, np.float64)).clip(0, tones.peak)
        image = Image.fromarray(np.rint(values * (255 / tones.peak)).astype(np.uint8))
    if _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, tones.background), image)
    image = image.convert(mode)
    if resize and stretch:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    elif resize:
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    elif (image.height, image.width) != (height, width):
        raise UsageError(
            f"is {image.width}x{image.height}, but the first image is {width}x{height}; give `size` to resize all"
        )
    pixels: Pixels = np.asarray(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    return pixels


def _iterate_images(
    source: ImageSource, shape: Shape, resize: bool, tones: Tones, stretch: bool, unreadable: dict[int, str]
) -> Iterator[Pixels]:
    """Yield every image; an unreadable one is black, and the reason is added to ``unreadable``."""
    for number in range(len(source)):
        try:
            with source.load(number) as image:
                pixels = image_pixels(image, shape, resize, tones, stretch)
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
