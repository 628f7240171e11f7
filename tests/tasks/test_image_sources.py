import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.errors import UsageError
from autocompress.tasks.image_sources import as_image, open_image_path, read_image_datasets


def folder(path: Path, classes: dict[str, int], suffix: str = ".png") -> Path:
    """Write so many images of each class; image ``i`` is all ``i``."""
    for name, count in classes.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path / name / f"{number:03}{suffix}")
    return path


def stack(count: int, *shape: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(count, *[1] * len(shape)) + np.zeros((count, *shape), np.uint8)


def values(source) -> list[int]:
    return [int(np.asarray(source.load(number)).flat[0]) for number in range(len(source))]


class TestFolder:
    def test_class_folders(self, tmp_path: Path) -> None:
        album = open_image_path(folder(tmp_path, {"b": 2, "a": 3}), None)
        assert album.classes == ("a", "b")
        assert list(album.parts) == ["train"]
        assert album.parts["train"].labels == [0, 0, 0, 1, 1]
        assert album.parts["train"].names[:2] == ["a/000.png", "a/001.png"]
        assert values(album.parts["train"]) == [0, 1, 2, 0, 1]

    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_parts(self, tmp_path: Path, val: str) -> None:
        for part, count in {"train": 5, val: 3, "test": 2}.items():
            folder(tmp_path / part, {"a": count, "b": count})
        album = open_image_path(tmp_path, None)
        assert {part: len(source) for part, source in album.parts.items()} == {"train": 10, "val": 6, "test": 4}

    def test_a_part_may_lack_a_class_but_not_add_one(self, tmp_path: Path) -> None:
        folder(tmp_path / "train", {"a": 2, "b": 2})
        folder(tmp_path / "test", {"b": 2})
        assert open_image_path(tmp_path, None).parts["test"].labels == [1, 1]
        folder(tmp_path / "test", {"c": 2})
        with pytest.raises(UsageError, match=r"test holds the class 'c', which .*train does not have"):
            open_image_path(tmp_path, None)

    def test_other_files_and_hidden_folders_are_passed_over(self, tmp_path: Path) -> None:
        folder(tmp_path, {"a": 1, "b": 1})
        folder(tmp_path / "b", {"deeper": 1}, ".JPG")
        for name in ("notes.txt", "a/Thumbs.db", "a/._000.png", "a/list.csv"):
            (tmp_path / name).write_bytes(b"no image")
        for name in ("__MACOSX", ".git"):
            (tmp_path / name).mkdir()
        assert open_image_path(tmp_path, None).parts["train"].names == ["a/000.png", "b/000.png", "b/deeper/000.JPG"]

    def test_a_limit_is_spread_evenly(self, tmp_path: Path) -> None:
        album = open_image_path(folder(tmp_path, {"a": 10, "b": 2}), 4)
        assert values(album.parts["train"]) == [0, 2, 5, 7, 0, 1]

    def test_a_changed_file_changes_the_identity(self, tmp_path: Path) -> None:
        folder(tmp_path, {"a": 1, "b": 1})
        before = open_image_path(tmp_path, None).parts["train"].cache_key
        assert open_image_path(tmp_path, None).parts["train"].cache_key == before
        Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a" / "000.png")
        assert open_image_path(tmp_path, None).parts["train"].cache_key != before

    def test_what_cannot_be_used_is_named_with_a_way_out(self, tmp_path: Path) -> None:
        archive = tmp_path / "flowers.zip"
        archive.write_bytes(b"PK")
        inner = folder(tmp_path / "outer" / "flowers", {"a": 1, "b": 1}).parent
        empty = folder(tmp_path / "empty", {"a": 1, "b": 0})
        (tmp_path / "bare").mkdir()
        for path, message in {
            tmp_path / "nowhere": r"task\.images\.path: there is no .*nowhere",
            archive: "unpack it",
            inner: r"holds 1 class folders, and a task needs at least two; did you mean .*outer/flowers",
            tmp_path / "bare": "holds 0 class folders, and a task needs at least two",
            empty: "class 'b' has no images in train",
        }.items():
            with pytest.raises(UsageError, match=message):
                open_image_path(path, None)


class TestNPZ:
    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_medmnist_layout(self, tmp_path: Path, shape: tuple[int, ...], save) -> None:
        parts = {"train": 9, "val": 4, "test": 6}
        arrays = {f"{part}_images": stack(count, *shape) for part, count in parts.items()}
        arrays |= {f"{part}_labels": (np.arange(count) % 2)[:, None] for part, count in parts.items()}
        save(tmp_path / "a.npz", **arrays)
        album = open_image_path(tmp_path / "a.npz", None)
        assert album.classes == ("0", "1")
        for part, count in parts.items():
            assert values(album.parts[part]) == list(range(count))
            assert album.parts[part].labels == [number % 2 for number in range(count)]
            assert album.parts[part].load(0).mode == ("L" if len(shape) == 2 else "RGB")

    def test_images_may_be_asked_for_in_any_order(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "a.npz", train_images=stack(9, 4, 4), train_labels=np.arange(9) % 2)
        source = open_image_path(tmp_path / "a.npz", None).parts["train"]
        assert [int(np.asarray(source.load(number)).flat[0]) for number in (8, 0, 5, 5, 2)] == [8, 0, 5, 5, 2]

    def test_a_limit(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", train_images=stack(12, 4, 4), train_labels=np.arange(12) % 2)
        source = open_image_path(tmp_path / "a.npz", 3).parts["train"]
        assert values(source) == [0, 1, 4, 5, 8, 9]
        assert source.names[2] == "train_images[4]"

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": stack(4, 4, 4)}, "holds no train_images"),
            ({"train_images": stack(4, 4, 4)}, "train_labels"),
            ({"train_images": stack(4, 4, 4), "train_labels": np.zeros((4, 14))}, "exactly one label"),
            ({"train_images": np.zeros((4, 4, 4)), "train_labels": np.arange(4) % 2}, "give bytes"),
            ({"train_images": stack(4, 4, 4, 4, 3), "train_labels": np.arange(4) % 2}, "give bytes"),
            ({"train_images": stack(4, 4, 4), "train_labels": np.arange(6) % 2}, "4 images but 6 labels"),
            ({"train_images": stack(4, 4, 4), "train_labels": np.array([0, 1, 2, 5])}, "class '3' has no images"),
            ({"train_images": stack(4, 4, 4), "train_labels": np.array([0, 1, -1, 0])}, "label -1"),
            ({"train_images": stack(4, 4, 4), "train_labels": np.array(["a", "b", "a", "b"])}, "MedMNIST"),
            ({"train_images": stack(0, 2**14, 2**13), "train_labels": np.arange(0)}, "it has 8192x16384 pixels, more"),
        ],
    )
    def test_another_layout_is_refused(self, tmp_path: Path, arrays, message: str) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UsageError, match=message):
            open_image_path(tmp_path / "a.npz", None)

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
    def test_another_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(UsageError, match="MedMNIST"):
            open_image_path(tmp_path / "a.npz", None)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", train_images=stack(2, 4, 4), train_labels=np.array([0, object()], dtype=object))
        with pytest.raises(UsageError, match="MedMNIST"):
            open_image_path(tmp_path / "a.npz", None)


class Items(list):
    """A data set as torchvision has them."""

    classes = ("cat", "dog")


class TestDatasets:
    def test_items_and_class_names(self) -> None:
        train = Items((Image.new("L", (4, 4), number), number % 2) for number in range(6))
        album = read_image_datasets(train, Items(train[:2]), None)
        assert album.classes == ("cat", "dog")
        assert values(album.parts["train"]) == list(range(6))
        assert album.parts["test"].labels == [0, 1]
        assert album.parts["train"].cache_key is None

    def test_a_limit_and_no_class_names(self) -> None:
        album = read_image_datasets([(stack(1, 4, 4)[0] + number, number % 3) for number in range(12)], None, 2)
        assert album.classes == ("0", "1", "2")
        assert values(album.parts["train"]) == [0, 1, 2, 6, 7, 8]

    def test_random_transforms_are_noticed(self) -> None:
        class Random(Items):
            def __getitem__(self, index):
                return Image.fromarray(np.random.default_rng().integers(0, 256, (4, 4), dtype=np.uint8)), index % 2

        with pytest.raises(UsageError, match="different images for the same index"):
            read_image_datasets(Random([0] * 4), None, None)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            (("a.png", 0), "it is a str"),
            ((np.zeros((4, 4)), 0), r"\[4, 4\] of float64"),
            ((torch.zeros(4, 4), 0), r"\[4, 4\] of torch.float32"),
            ((torch.randn(3, 4, 4), 0), "from 0 to 1"),
            (Image.new("L", (4, 4)), "item 0"),
            ((Image.new("L", (4, 4)), None), "item 0"),
        ],
    )
    def test_items_that_are_something_else_are_refused(self, item, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            read_image_datasets([item], None, None)

    def test_an_empty_one_is_refused(self) -> None:
        good = [(Image.new("L", (4, 4)), number % 2) for number in range(4)]
        with pytest.raises(UsageError, match="train holds no images"):
            read_image_datasets([], None, None)
        with pytest.raises(UsageError, match="test holds no images"):
            read_image_datasets(good, [], None)


def test_arrays_and_tensors_become_the_same_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for value in (pixels, tensor, tensor / 255, Image.fromarray(pixels)):
        assert np.array_equal(np.asarray(as_image(value)), pixels)
    grey = as_image(torch.from_numpy(pixels[None, :, :, 0].copy()))
    assert grey.mode == "L"
    assert np.array_equal(np.asarray(grey), pixels[:, :, 0])


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_another_process_gets_the_same_images(tmp_path: Path, form: str) -> None:
    path = folder(tmp_path, {"a": 3, "b": 2})
    if form == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, train_images=stack(6, 4, 4), train_labels=np.arange(6) % 2)
    source = open_image_path(path, None).parts["train"]
    again = pickle.loads(pickle.dumps(source))
    assert values(again) == values(source)
    assert len(set(values(again))) > 2
