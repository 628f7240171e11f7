import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.errors import StorageError, UsageError
from autocompress.tasks.image_decoding import ImageSource, decode_images, image_pixels, image_shape


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def picture(width: int = 6, height: int = 4, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def of(images: list[Image.Image], cache_key: object = None) -> ImageSource:
    names = [f"{number}.png" for number in range(len(images))]
    return ImageSource(names, [number % 2 for number in range(len(images))], images.__getitem__, cache_key)


def torn(count: int, broken: set[int], cache_key: object = None) -> ImageSource:
    def load(number: int) -> Image.Image:
        if number in broken:
            raise OSError("cannot identify image file")
        return picture(seed=number)

    return ImageSource([f"{number}.png" for number in range(count)], [0] * count, load, cache_key)


class TestPixels:
    def test_they_are_the_images_own(self) -> None:
        image = picture()
        assert np.array_equal(image_pixels(image, (3, 4, 6), False), np.asarray(image).transpose(2, 0, 1))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_mode_becomes_grey_or_rgb(self, mode: str, channels: int) -> None:
        image = picture().convert("L").convert(mode) if mode == "F" else picture().convert(mode)
        assert image_pixels(image, (channels, 4, 6), False).shape == (channels, 4, 6)

    def test_sixteen_bits_keep_their_high_half(self) -> None:
        image = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
        assert image_pixels(image, (1, 1, 4), False).tolist() == [[[0, 0, 1, 255]]]

    def test_a_transparent_palette_raises_no_warning(self) -> None:
        image = picture().convert("P")
        image.info["transparency"] = bytes([0, 128, 255])
        assert image_pixels(image, (3, 4, 6), False).shape == (3, 4, 6)

    def test_a_photograph_is_turned_upright(self) -> None:
        image = picture()
        image.getexif()[0x0112] = 6
        assert image_pixels(image, (3, 6, 4), False).shape == (3, 6, 4)
        assert image_shape(of([image]), None, None) == (3, 6, 4)

    def test_a_resized_image_is_cropped_from_its_middle(self) -> None:
        bars = np.zeros((10, 30, 3), np.uint8)
        bars[:, 10:20] = 255
        assert image_pixels(Image.fromarray(bars), (3, 5, 5), True).min() > 200

    def test_another_size_is_an_error_unless_resizing_is_asked_for(self) -> None:
        with pytest.raises(UsageError, match="is 6x4, but the first image is 8x8; give `size`"):
            image_pixels(picture(), (3, 8, 8), False)


class TestShape:
    def test_it_is_the_first_readable_images(self) -> None:
        assert image_shape(torn(3, {0, 1}), None, None) == (3, 4, 6)
        assert image_shape(of([picture().convert("L")]), None, None) == (1, 4, 6)
        assert image_shape(of([picture().convert("L")]), 9, None) == (1, 9, 9)
        assert image_shape(of([picture()]), None, 1) == (1, 4, 6)

    def test_it_needs_no_image_where_all_is_said(self) -> None:
        assert image_shape(torn(1, {0}), 5, 3) == (3, 5, 5)

    def test_nothing_readable_is_an_error(self) -> None:
        with pytest.raises(UsageError, match="none of the 2 images can be read"):
            image_shape(torn(2, {0, 1}), None, None)


class TestDecode:
    def test_every_image_in_order_with_its_label(self) -> None:
        images = [picture(seed=seed) for seed in range(3)]
        found = decode_images(of(images), (3, 4, 6), False)
        expected = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
        assert np.array_equal(found.pixels.numpy(), expected)
        assert found.labels.tolist() == [0, 1, 0]
        assert found.rows.tolist() == [0, 1, 2]

    def test_what_cannot_be_read_is_counted_and_left_out(self) -> None:
        found = decode_images(torn(40, {3, 17}), (3, 4, 6), False)
        assert found.rows.tolist() == [number for number in range(40) if number not in (3, 17)]
        assert found.unreadable == ("3.png: cannot identify image file", "17.png: cannot identify image file")

    def test_too_much_that_cannot_be_read_is_an_error(self) -> None:
        with pytest.raises(UsageError, match=r"3 of 40 images cannot be read; the first is 3\.png"):
            decode_images(torn(40, {3, 17, 20}), (3, 4, 6), False)

    def test_an_image_of_another_size_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"1\.png is 5x5"):
            decode_images(of([picture(), picture(5, 5)]), (3, 4, 6), False)


class TestCache:
    def test_it_is_decoded_once(self, cache: Path) -> None:
        calls: list[int] = []

        def load(number: int) -> Image.Image:
            calls.append(number)
            return picture(seed=number)

        source = ImageSource(["a", "b"], [0, 1], load, cache_key=[1])
        first = decode_images(source, (3, 4, 6), False)
        second = decode_images(source, (3, 4, 6), False)
        assert calls == [0, 1]
        assert torch.equal(first.pixels, second.pixels)
        assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".npy"]

    def test_unreadable_images_are_remembered(self) -> None:
        first = decode_images(torn(40, {3}, cache_key=1), (3, 4, 6), False)
        second = decode_images(torn(40, set(), cache_key=1), (3, 4, 6), False)
        assert second.unreadable == first.unreadable
        assert torch.equal(second.rows, first.rows)

    @pytest.mark.parametrize(
        ("cache_key", "shape", "resize"), [([2], (3, 4, 6), False), ([1], (1, 4, 6), False), ([1], (3, 4, 6), True)]
    )
    def test_whatever_changes_the_pixels_changes_the_entry(self, cache: Path, cache_key, shape, resize) -> None:
        decode_images(of([picture()], cache_key=[1]), (3, 4, 6), False)
        decode_images(of([picture()], cache_key=cache_key), shape, resize)
        assert len(list(cache.glob("*.npy"))) == 2

    @pytest.mark.parametrize(
        "damage",
        [
            lambda npy, note: npy.write_bytes(npy.read_bytes()[:-1]),
            lambda npy, note: npy.write_bytes(npy.read_bytes()[:-1] + bytes([npy.read_bytes()[-1] ^ 1])),
            lambda npy, note: npy.unlink(),
            lambda npy, note: note.unlink(),
            lambda npy, note: note.write_text("{"),
            lambda npy, note: note.write_text(json.dumps({"sha256": "0"})),
        ],
    )
    def test_a_damaged_entry_is_decoded_again(self, cache: Path, damage: Callable[[Path, Path], object]) -> None:
        source = of([picture()], cache_key=1)
        first = decode_images(source, (3, 4, 6), False).pixels.clone()
        damage(next(cache.glob("*.npy")), next(cache.glob("*.json")))
        assert torch.equal(decode_images(source, (3, 4, 6), False).pixels, first)

    def test_writing_to_the_pixels_leaves_the_entry(self) -> None:
        source = of([picture()], cache_key=1)
        decode_images(source, (3, 4, 6), False).pixels.zero_()
        assert int(decode_images(source, (3, 4, 6), False).pixels.max()) > 0

    def test_an_error_leaves_nothing_half_done(self, cache: Path) -> None:
        with pytest.raises(UsageError):
            decode_images(torn(4, {1, 2}, cache_key=1), (3, 4, 6), False)
        assert [path.suffix for path in cache.iterdir()] == [".lock"]

    def test_a_full_disk_is_named(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="no space left"):
            decode_images(of([picture()], cache_key=1), (3, 4, 6), False)
        assert [path.suffix for path in cache.iterdir()] == [".lock"]
