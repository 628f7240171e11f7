import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.errors import StorageError, UsageError
from autocompress.tasks.image_decoding import ImageSource, Tones, decode_images, image_pixels, survey_images


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

    def test_more_than_eight_bits_are_scaled_by_their_range(self) -> None:
        image = Image.fromarray(np.array([[0, 100, 257, 4095, 65535]], np.uint16))
        assert image_pixels(image, (1, 1, 5), False).tolist() == [[[0, 0, 1, 16, 255]]]
        assert image_pixels(image, (1, 1, 5), False, Tones(peak=4095)).tolist() == [[[0, 6, 16, 255, 255]]]
        shares = Image.fromarray(np.array([[-1, 0.5, 1, np.nan]], np.float32))
        assert image_pixels(shares, (1, 1, 4), False, Tones(peak=1)).tolist() == [[[0, 128, 255, 0]]]

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
    def test_transparent_pixels_show_the_background(self, mode: str) -> None:
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        image.putpixel((1, 0), (10, 10, 10, 255))
        if mode == "P":
            image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
            image.putpalette([0, 0, 0, 10, 10, 10])
            image.info["transparency"] = 0
        else:
            image = image.convert(mode)
        assert image_pixels(image, (3, 1, 2), False)[:, 0].tolist() == [[255, 10]] * 3
        green = image_pixels(image, (3, 1, 2), False, Tones("#00ff00"))[:, 0].tolist()
        assert green == [[0, 10], [255, 10], [0, 10]]

    def test_a_transparent_palette_raises_no_warning(self) -> None:
        image = picture().convert("P")
        image.info["transparency"] = bytes([0, 128, 255])
        assert image_pixels(image, (3, 4, 6), False).shape == (3, 4, 6)

    def test_a_photograph_is_turned_upright(self) -> None:
        image = picture()
        image.getexif()[0x0112] = 6
        assert image_pixels(image, (3, 6, 4), False).shape == (3, 6, 4)
        survey = survey_images(of([image]))
        assert (survey.size, survey.counts["rotated"]) == ((6, 4), 1)

    def test_a_resized_image_is_cropped_from_its_middle(self) -> None:
        bars = np.zeros((10, 30, 3), np.uint8)
        bars[:, 10:20] = 255
        assert image_pixels(Image.fromarray(bars), (3, 5, 5), True).min() > 200

    def test_a_stretched_image_keeps_its_borders(self) -> None:
        bars = np.zeros((10, 30, 3), np.uint8)
        bars[:, :10] = 255
        pixels = image_pixels(Image.fromarray(bars), (3, 6, 6), True, stretch=True)
        assert pixels[:, :, 0].min() > 200
        assert pixels[:, :, 4:].max() < 50

    def test_another_size_is_an_error_unless_resizing_is_asked_for(self) -> None:
        with pytest.raises(UsageError, match="is 6x4, but the first image is 8x8; give `size`"):
            image_pixels(picture(), (3, 8, 8), False)


class TestSurvey:
    def test_the_size_is_the_first_readable_images(self) -> None:
        assert survey_images(torn(3, {0, 1})).size == (4, 6)

    def test_one_image_in_colour_makes_all_colour(self) -> None:
        grey = [picture().convert("L"), picture().convert("1"), picture().convert("LA")]
        assert survey_images(of(grey)).channels == 1
        mixed = survey_images(of([*grey, picture()]))
        assert (mixed.channels, mixed.counts["grey"], mixed.counts["transparent"]) == (3, 3, 1)

    @pytest.mark.parametrize(
        ("values", "peak"),
        [
            (np.array([[0, 200]], np.uint16), 255),
            (np.array([[0, 4000]], np.uint16), 4095),
            (np.array([[0, 60000]], np.uint16), 65535),
            (np.array([[0, 70000]], np.int32), 65535),
            (np.array([[-0.5, 0.9]], np.float32), 1),
        ],
    )
    def test_the_range_of_deep_images_is_that_of_the_whole_set(self, values: np.ndarray, peak: float) -> None:
        darker = Image.fromarray(values // 2)
        assert survey_images(of([darker, Image.fromarray(values)])).peak == peak

    def test_it_is_kept_by_the_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = survey_images(of([picture()], cache_key=1))
        monkeypatch.setattr(
            "autocompress.tasks.image_decoding._survey_images", lambda source: pytest.fail("read again")
        )
        assert survey_images(of([picture()], cache_key=1)) == first

    def test_nothing_readable_is_an_error(self) -> None:
        with pytest.raises(UsageError, match="none of the 2 images can be read"):
            survey_images(torn(2, {0, 1}))


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
