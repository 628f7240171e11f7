import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.core.config import Part
from autocompress.core.preprocessing import describe_preprocessing
from autocompress.core.task import Split
from autocompress.errors import UsageError
from autocompress.tasks.image_split import ImageSplit
from autocompress.tasks.images_folder import Images
from autocompress.training.fit import FitRequest, fit, predict

SHARED = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CIFAR10 = SHARED / "cifar10_jpeg.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def npz(path: Path, train: int, **parts: int) -> Path:
    """Write so many images of each of two classes; class 1 is brighter."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": train, **parts}.items():
        labels = np.arange(2 * count) % 2
        noise = random.integers(0, 100, (2 * count, 8, 8))
        arrays[f"{part}_images"] = (noise + 100 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels[:, None]
    np.savez(path, **arrays)
    return path


def sizes(task: Images) -> dict[str, int]:
    return {name: len(split) for name, split in task.splits(0).items()}


def pixels(split: ImageSplit) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.pixels[split.rows]}


class TestSplits:
    def test_one_folder_gives_five_disjoint_stratified_splits(self, data: Path) -> None:
        task = Images(Images.write_sample(data))
        splits = task.splits(0)
        assert task.heads == {"label": 3}
        assert task.labels == {"label": ["blue", "green", "red"]}
        assert sum(sizes(task).values()) == 48
        assert len(set().union(*(pixels(split) for _, split in splits.items()))) == 48
        for _, split in splits.items():
            assert set(split.targets["label"].tolist()) == {0, 1, 2}

    def test_a_test_part_is_the_test_split(self, tmp_path: Path) -> None:
        task = Images(npz(tmp_path / "a.npz", train=50, test=8))
        assert sizes(task) == {"train": 60, "calibration": 4, "search_val": 18, "select_val": 18, "test": 16}
        assert pixels(task.splits(0).test) == pixels(task.splits(1).test)

    def test_a_val_part_is_halved(self, tmp_path: Path) -> None:
        task = Images(npz(tmp_path / "a.npz", train=50, val=10, test=8))
        assert sizes(task) == {"train": 96, "calibration": 4, "search_val": 10, "select_val": 10, "test": 16}
        assert not pixels(task.splits(0).search_val) & pixels(task.splits(0).select_val)

    def test_a_seed_names_its_splits(self, data: Path) -> None:
        task = Images(Images.write_sample(data))
        assert task.splits(0).fingerprint() == Images(data).splits(0).fingerprint()
        assert task.splits(0).fingerprint() != task.splits(1).fingerprint()

    def test_a_class_too_small_to_split_is_named(self, data: Path) -> None:
        Images(Images.write_sample(data))
        for number in range(3, 16):
            (data / "green" / f"{number:02}.png").unlink()
        with pytest.raises(UsageError, match="class 'green' has 3 examples"):
            Images(data).splits(0)

    def test_a_limit_is_for_each_class_of_each_part(self, tmp_path: Path) -> None:
        task = Images(npz(tmp_path / "a.npz", train=50, test=8), limit=6)
        assert sum(sizes(task).values()) == 24


class TestNormalisation:
    def test_the_training_split_sets_it(self, data: Path) -> None:
        splits = Images(Images.write_sample(data)).splits(0)
        train = splits.train.inputs[0]
        assert train.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
        assert train.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-5)
        assert float(splits.test.inputs[0].mean().abs()) > 1e-5

    def test_it_may_be_given(self, data: Path) -> None:
        Images(Images.write_sample(data))
        train = Images(data, mean=[0.1, 0.2, 0.3], std=0.5).splits(0).train
        raw = train.pixels[train.rows].float() / 255
        expected = (raw - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
        torch.testing.assert_close(train.inputs[0], expected)

    def test_one_of_both_may_be_given(self, data: Path) -> None:
        Images(Images.write_sample(data))
        train = Images(data, mean=0).splits(0).train
        assert float(train.inputs[0].min()) >= 0
        assert train.inputs[0].std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-5)


class TestViews:
    def test_they_are_repeatable_differ_and_leave_the_targets(self, data: Path) -> None:
        task = Images(Images.write_sample(data))
        train = task.splits(0).train
        assert task.view(train, 0) is train
        one, again, two = task.view(train, 1), task.view(train, 1), task.view(train, 2)
        assert torch.equal(one.inputs[0], again.inputs[0])
        assert not torch.equal(one.inputs[0], two.inputs[0])
        assert one.targets is train.targets

    def test_a_split_in_memory_is_moved_alike(self, data: Path) -> None:
        task = Images(Images.write_sample(data))
        train = task.splits(0).train
        plain = Split(train.inputs, train.targets)
        assert torch.equal(task.view(plain, 3).inputs[0], task.view(train, 3).inputs[0])

    def test_shift_and_flip_may_be_turned_off(self, data: Path) -> None:
        Images(Images.write_sample(data))
        train = Images(data).splits(0).train
        still = Images(data, shift=0, flip=False).view(train, 1).inputs[0]
        flipped = Images(data, shift=0).view(train, 1).inputs[0]
        assert torch.equal(still, train.inputs[0])
        mirrored = train.inputs[0].flip(3)
        alike = [torch.equal(a, b) or torch.equal(a, c) for a, b, c in zip(flipped, still, mirrored, strict=True)]
        assert all(alike)
        assert not torch.equal(flipped, still)


class TestNotices:
    def test_unreadable_images_are_counted_and_left_out(self, data: Path) -> None:
        Images(Images.write_sample(data))
        (data / "red" / "03.png").write_bytes(b"no image")
        (data / "blue" / "04.png").write_bytes((data / "blue" / "04.png").read_bytes()[:60])
        task = Images(data)
        assert sum(sizes(task).values()) == 46
        assert len(task.notices) == 1
        assert "2 of 48 images in train cannot be read and were left out" in task.notices[0]
        assert "red/03.png" in task.notices[0]

    def test_a_format_for_which_pillow_starts_a_program_is_unreadable(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Images(Images.write_sample(data))
        monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
        Image.new("RGB", (8, 8)).save(data / "red" / "03.png", "EPS")
        assert "1 of 48 images in train cannot be read" in Images(data).notices[0]

    def test_unequal_classes_are_named(self, tmp_path: Path) -> None:
        labels = np.array([0] * 200 + [1] * 20)
        images = np.zeros((220, 4, 4), np.uint8)
        np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
        (notice,) = Images(tmp_path / "a.npz").notices
        assert notice == "class '0' has 200 examples and '1' has 20; compare f1_macro with accuracy"

    def test_a_changed_reading_is_named(self, data: Path) -> None:
        Images.write_sample(data)
        Image.new("LA", (8, 8), (0, 0)).save(data / "red" / "00.png")
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(data / "red" / "01.png")
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.new("RGB", (8, 8)).save(data / "red" / "02.png", exif=turned)
        task = Images(data, background="lime")
        assert task.notices == (
            "2 of 48 images are grey, the others in colour; all are read in RGB",
            "1 of 48 images may have transparent pixels, which are shown on lime (task.images.background)",
            "1 of 48 images have more than 8 bits; 4095 is read as white",
            "1 of 48 images are rotated as their EXIF data says",
        )
        (record,) = task.specify_preprocessing(0)
        assert (record.background, record.peak) == ("lime", 4095)

    def test_good_data_needs_none(self, data: Path) -> None:
        assert Images(Images.write_sample(data)).notices == ()


class TestShape:
    def test_images_of_one_size_keep_it(self, data: Path) -> None:
        task = Images(Images.write_sample(data))
        assert task.example()[0].shape == (1, 3, 8, 8)
        assert task.build(Part.of("cnn", width=4, depth=1))(torch.zeros(2, 3, 8, 8)).shape == (2, 3)

    def test_images_of_many_sizes_need_one(self, data: Path) -> None:
        Images(Images.write_sample(data))
        Image.new("RGB", (30, 20)).save(data / "red" / "00.png")
        with pytest.raises(UsageError, match=r"red/00\.png is 30x20, but the first image is 8x8; give `size`"):
            Images(data).splits(0)
        assert Images(data, size=6).splits(0).train.inputs[0].shape[1:] == (3, 6, 6)

    def test_grey_may_be_asked_for(self, data: Path) -> None:
        Images(Images.write_sample(data))
        assert Images(data, channels=1).splits(0).train.inputs[0].shape[1:] == (1, 8, 8)

    def test_large_images_are_halved_at_once(self, data: Path) -> None:
        Images(Images.write_sample(data))
        assert Images(data).teacher()[0].values["stem_stride"] == 1
        assert Images(data, size=64).teacher()[0].values["stem_stride"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"task\.images\.path is not set.*--set task\.images\.path="),
        ({"path": "nowhere"}, "there is no nowhere"),
        ({"path": "x", "size": 0}, r"task\.images\.size is 0"),
        ({"path": "x", "limit": 1.5}, r"task\.images\.limit is 1\.5"),
        ({"path": "x", "views": True}, r"task\.images\.views is True"),
        ({"path": "x", "channels": 4}, r"task\.images\.channels is 4"),
        ({"path": "x", "shift": 0.9}, r"task\.images\.shift is 0\.9"),
        ({"path": "x", "background": "see-through"}, r"task\.images\.background is 'see-through'; give a colour"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Images(**options)


@pytest.mark.parametrize("options", [{"mean": [0.5]}, {"std": ["a", "b", "c"]}, {"std": 0}, {"mean": "0.5"}])
def test_a_normalisation_that_does_not_fit_is_named(data: Path, options) -> None:
    Images(Images.write_sample(data))
    with pytest.raises(UsageError, match=rf"task\.images\.{next(iter(options))}"):
        Images(data, **options)


def test_data_set_objects(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = [(random.integers(0, 256, (8, 8, 3), dtype=np.uint8), number % 2) for number in range(60)]
    task = Images(train=items, test=items[:10], views=2)
    splits = task.splits(0)
    assert len(splits.test) == 10
    assert splits.train.inputs[0].shape[1:] == (3, 8, 8)
    assert not (tmp_path / "cache" / "images").exists()


def test_its_own_task_is_learned(data: Path) -> None:
    task = Images(Images.write_sample(data))
    splits = task.splits(0)
    torch.manual_seed(0)
    model = task.build(Part.of("cnn", width=4, depth=1, stages=2))
    fit(model, FitRequest(task, splits.train, Part.of("adamw", epochs=12, batch_size=8, learning_rate=1e-2)))
    right = predict(model, task, splits.test)["label"].argmax(1) == splits.test.targets["label"]
    assert float(right.float().mean()) >= 0.9


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_file(), reason="CIFAR-10 is not here")
def test_cifar10(data: Path) -> None:
    with zipfile.ZipFile(CIFAR10) as archive:
        counts: dict[str, int] = {}
        for name in archive.namelist():
            place = os.path.dirname(name)
            counts[place] = counts.get(place, 0) + 1
            if counts[place] <= 50:
                archive.extract(name, data)
    task = Images(data / "cifar10", limit=40)
    splits = task.splits(0)
    assert task.labels["label"][:3] == ["airplane", "automobile", "bird"]
    assert sizes(task) == {"train": 236, "calibration": 16, "search_val": 74, "select_val": 74, "test": 400}
    # What is published for the whole training set, from 0 to 1.
    assert (splits.train.normalization.mean / 255).flatten().tolist() == pytest.approx([0.491, 0.482, 0.447], abs=0.03)
    assert (splits.train.normalization.std / 255).flatten().tolist() == pytest.approx([0.247, 0.244, 0.262], abs=0.03)
    torch.manual_seed(0)
    model = task.build(Part.of("cnn", width=8, depth=1, stem_stride=2))
    curve = fit(
        model, FitRequest(task, splits.train, Part.of("adamw", epochs=6, batch_size=32, learning_rate=1e-2))
    ).curve
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]


def test_whoever_deploys_a_model_is_told_of_the_normalisation(data: Path) -> None:
    task = Images(Images.write_sample(data), mean=(0.1, 0.2, 0.3), std=0.25)
    sentence = describe_preprocessing(task.specify_preprocessing(0))
    assert "RGB images of 8 x 8 pixels" in sentence
    assert "(0.1000, 0.2000, 0.3000)" in sentence
    assert "(0.2500, 0.2500, 0.2500)" in sentence
