"""Inputs in files: memory-mapped arrays, and data that are too large for the memory."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import autocompress
from autocompress.core.registry import TASKS
from autocompress.core.task import Split
from autocompress.errors import UsageError
from autocompress.tasks import mapped_arrays
from autocompress.tasks.folds import make_fold
from autocompress.tasks.mapped_arrays import FileSplit, locate_memmap, require_file_memory
from autocompress.tasks.tensors import Tensors

TARGETS = torch.arange(200) % 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    # A model that a test brings is no task of the next one.
    monkeypatch.setattr(TASKS, "_objects", {name: TASKS.get(name) for name in TASKS})
    return tmp_path / "cache" / "arrays"


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_arrays, "free_memory", lambda: 8000.0)


def make_map(tmp_path: Path, values: np.ndarray) -> np.memmap:
    np.save(tmp_path / "x.npy", values)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("form", ["whole", "part", "reversed", "columns", "big-endian", "double"])
def test_a_memory_map_is_read_in_place_like_an_array(tmp_path: Path, form: str) -> None:
    values = draw(230, 4, 3)
    stored = values.astype({"big-endian": ">f4", "double": np.float64}.get(form, np.float32))
    array = make_map(tmp_path, stored)
    view = {"part": np.s_[30:], "reversed": np.s_[::-1], "columns": np.s_[:, 1:3]}.get(form, np.s_[:])
    located = locate_memmap("x", array[view])
    assert located is not None
    expected = torch.from_numpy(values[view].copy())
    assert torch.equal(located[torch.tensor([5, 0, 199])], expected[[5, 0, 199]])
    assert torch.equal(located[:7], expected[:7])


def test_splits_of_a_memory_map_hold_rows_alone(tmp_path: Path) -> None:
    values = draw(200, 12)
    mapped = Tensors((make_map(tmp_path, values), TARGETS))
    plain = Tensors((values, TARGETS))
    splits = mapped.splits(0)
    assert all(isinstance(split, FileSplit) for _, split in splits.items())
    assert splits.fingerprint() == plain.splits(0).fingerprint()
    assert torch.equal(splits.train.inputs[0], plain.splits(0).train.inputs[0])
    fold, plain_fold = (make_fold(task, task.splits(0), 1, 4, 0) for task in (mapped, plain))
    assert isinstance(fold.train, FileSplit)
    assert fold.fingerprint() == plain_fold.fingerprint()
    for example, expected in zip(mapped.list_test_examples(0), plain.list_test_examples(0), strict=True):
        assert np.array_equal(example, expected)


def test_a_worker_gets_the_path_of_a_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A view of another view, and a path that is relative to the user's folder.
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", draw(50_000, 20))
    array = np.load("x.npy", mmap_mode="r")[10_000:][:20_000]
    task = autocompress.bring_model(nn.Linear(20, 2), (array, np.arange(20_000) % 2))
    sent = cloudpickle.dumps(task)
    # The array has 1.6 MB, and the targets 160 KB, in the forms before and after the reading of their kind.
    assert len(sent) < 500_000
    monkeypatch.chdir("/")
    received = cloudpickle.loads(sent)
    assert received.splits(0).fingerprint() == task.splits(0).fingerprint()
    (tmp_path / "x.npy").unlink()
    with pytest.raises(UsageError, match=r"x\.npy with the data cannot be read .* it must stay during the search"):
        received.splits(0).train.take(slice(0, 1))


def test_values_of_a_memory_map_are_checked(tmp_path: Path) -> None:
    values = draw(200, 12)
    values[170, 1] = np.inf
    with pytest.raises(UsageError, match="data 'train', input 0 is not finite in example 170"):
        Tensors((make_map(tmp_path, values), TARGETS))
    tokens = make_map(tmp_path, np.arange(600, dtype=np.uint16).reshape(200, 3))
    assert Tensors((tokens, TARGETS)).inputs[0].vocabulary == 600
    pixels = Tensors((make_map(tmp_path, np.full((200, 3, 2, 2), 255, np.uint8)), TARGETS))
    assert pixels.inputs[0].vocabulary == 0
    assert float(pixels.example()[0].max()) == 255


def test_changes_of_a_private_map_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", draw(200, 12))
    array = np.load(tmp_path / "x.npy", mmap_mode="c")
    array[0] = 7
    assert Tensors((array, TARGETS)).splits(0).train.inputs[0].max() == 7


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("form", ["array", "tensor", "sparse", "big-endian"])
def test_an_array_that_is_too_large_for_a_copy_goes_to_a_file(form: str, cache: Path) -> None:
    values = draw(200, 12)
    given = {
        "array": values,
        "tensor": torch.from_numpy(values),
        "sparse": sparse.coo_array(values),
        "big-endian": values.astype(">f8"),
    }
    # A list has no size, and is no reason to refuse the targets.
    train = Tensors((given[form], TARGETS.tolist())).splits(0).train
    assert isinstance(train, FileSplit)
    assert torch.equal(train.inputs[0], torch.from_numpy(values)[train.rows])
    (file,) = cache.iterdir()
    assert file.stat().st_size == values.nbytes


class Lazy(Dataset[tuple[Tensor, int]]):
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.values[index]), index % 2


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((torch.from_numpy(row), index % 2) for index, row in enumerate(self.values))


def make_arrow(values: np.ndarray) -> object:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": values.tolist(), "label": [index % 2 for index in range(len(values))]})


@pytest.mark.parametrize("form", [Lazy, Stream, lambda values: DataLoader(Stream(values)), make_arrow])
@pytest.mark.parametrize("memory", [8000.0, 1e12])
def test_a_large_data_set_goes_to_one_file(
    form: type, memory: float, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_arrays, "free_memory", lambda: memory)
    monkeypatch.setattr("autocompress.tasks.array_forms.CHECKED_ITEMS", 16)
    values = draw(200, 12)
    # Twice: equal content has one file.
    splits = [Tensors(form(values)).splits(0) for _ in range(2)][1]
    assert isinstance(splits.train, FileSplit) == (memory < 1e12)
    assert splits.fingerprint() == Tensors((values, TARGETS)).splits(0).fingerprint()
    files = list(cache.iterdir()) if cache.exists() else []
    assert [file.stat().st_size for file in files] == ([values.nbytes] if memory < 1e12 else [])


@pytest.mark.parametrize("form", [Lazy, Stream])
def test_small_items_count_with_their_tensors(form: type, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of 200 items fit into memory 15 times, and their tensors do not fit."""
    monkeypatch.setattr(mapped_arrays, "free_memory", lambda: 500 * 200.0)
    monkeypatch.setattr("autocompress.tasks.array_forms.CHECKED_ITEMS", 16)
    assert isinstance(Tensors(form(draw(200, 8))).splits(0).train, FileSplit)


@pytest.mark.usefixtures("little_memory")
def test_pixels_stay_bytes_in_a_file(cache: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), dtype=np.uint8)
    task = Tensors((images, TARGETS.tolist()))
    assert next(cache.iterdir()).stat().st_size == images.nbytes
    assert torch.equal(task.splits(0).test.inputs[0], torch.from_numpy(images).float()[task.splits(0).test.rows])


@pytest.mark.usefixtures("little_memory")
def test_what_fits_nowhere_is_refused_before_it_is_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = mapped_arrays.shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    for data in ((draw(200, 12), TARGETS.tolist()), Lazy(draw(200, 12))):
        with pytest.raises(
            UsageError, match=r"takes 9\.6 KB, more than 30% of the free memory \(8 KB\).*\(1 KB are free\)"
        ):
            Tensors(data)
    monkeypatch.setattr("autocompress.tasks.array_forms.CHECKED_ITEMS", 16)
    with pytest.raises(UsageError, match=r"takes .* after \d+ items, .*itertools\.islice"):
        Tensors(Stream(draw(200, 12)))
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("little_memory")
def test_targets_and_files_that_are_read_whole_must_fit_into_memory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"targets of 'label' takes 12 KB and 8 KB of memory are free; .* give a part"):
        Tensors((draw(1500, 1).tolist(), np.zeros(1500, np.int64)))
    path = tmp_path / "table.csv"
    path.write_text("a,target\n" + "1,0\n2,1\n" * 1100)
    with pytest.raises(UsageError, match=r"table\.csv takes 8\.81 KB and 8 KB of memory are free; give a part"):
        autocompress.Tabular(path)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(10_000))
    with pytest.raises(UsageError, match=r"x\.npz takes 80\.1 KB"):
        require_file_memory(tmp_path / "x.npz")


def test_a_long_pass_writes_lines_of_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mapped_arrays, "PROGRESS_SECONDS", 0.0)
    Tensors(Lazy(draw(200, 12)))
    assert caplog.messages[0] == "data 'train': read 1 of 200 examples"


def test_a_model_with_a_memory_map_is_searched(tmp_path: Path) -> None:
    values = draw(400, 6)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    front = autocompress.search(
        teacher=model,
        data=(make_map(tmp_path, values), (values.sum(1) > 0).astype(int)),
        trials=1,
        runs=tmp_path,
        overrides=["search.backend=serial", "search.timing_seconds=0", "fit.adamw.epochs=1", "search.minutes=null"],
    )
    assert (front.export(str(front.to_pandas()["id"].iloc[0])) / "model.onnx").is_file()


def test_a_split_in_files_survives_pickle(tmp_path: Path) -> None:
    split = Tensors((make_map(tmp_path, draw(200, 12)), TARGETS)).splits(0).test
    copy: Split = pickle.loads(pickle.dumps(split))
    assert torch.equal(copy.take(slice(3)).inputs[0], split.take(slice(3)).inputs[0])
