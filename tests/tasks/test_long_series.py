"""Series of different lengths: in long format, in memory and padded in an NPZ file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import autocompress
from autocompress.core.config import Part
from autocompress.core.preprocessing import dump_input
from autocompress.errors import UsageError
from autocompress.export.pipeline import ENCODERS, PipelineError, load
from autocompress.tasks.long_series import read_long_series
from autocompress.tasks.signals import Signals

N, LONGEST = 60, 30


def draw_series(channels: int = 1) -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    """Return series of 5 to 30 points, whose classes differ in their mean."""
    random = np.random.default_rng(0)
    labels = ["up" if row % 2 else "down" for row in range(N)]
    lengths = random.integers(5, LONGEST + 1, N)
    return [
        random.normal(2 if label == "up" else -2, 3, (channels, length))
        for length, label in zip(lengths, labels, strict=True)
    ], labels


def write_long(path: Path, series: Sequence[np.ndarray[Any, Any]], labels: Sequence[str]) -> Path:
    """Write one point in each row, in a random order, with the step as ``time``."""
    rows = [
        {"id": f"s{row}", "time": step, "label": labels[row], **{f"c{at}": value for at, value in enumerate(point)}}
        for row, values in enumerate(series)
        for step, point in enumerate(values.T)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


def encode(task: Signals, seed: int, value: Any) -> np.ndarray[Any, Any]:
    (record,) = task.specify_preprocessing(seed)
    encoder = ENCODERS["series"](json.loads(json.dumps(dump_input(record))))
    return encoder(value)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("channels", [1, 2])
def test_rows_of_a_table_become_the_series_that_were_written(tmp_path: Path, name: str, channels: int) -> None:
    series, labels = draw_series(channels)
    path = write_long(tmp_path / name, series, labels)
    read = read_long_series(path, "id", "label")
    assert len(read.values) == N
    by_place = {place.rpartition("'s")[2].rstrip("'"): row for row, place in enumerate(read.locations)}
    for row in range(N):
        at = by_place[str(row)]
        np.testing.assert_allclose(read.values[at, :, : read.lengths[at]], series[row], rtol=1e-5)
        assert read.labels[at] == labels[row]
        assert not read.values[at, :, read.lengths[at] :].any()


def test_statistics_leave_out_the_padding_and_the_last_channel_marks_it() -> None:
    series, labels = draw_series(2)
    task = Signals((series, labels), length=LONGEST)
    train = task.splits(0).train.inputs[0]
    assert train.shape[1:] == (3, LONGEST) == task.inputs[0].shape
    mask = train[:, 2] > 0
    assert {*train[:, 2].unique().tolist()} == {0.0, 1.0}
    values = train[:, :2].transpose(0, 1)
    torch.testing.assert_close(values[:, mask].mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values[:, mask].std(1, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert not bool(values[:, ~mask].any())


def test_the_pipeline_takes_a_raw_series_of_any_length() -> None:
    series, labels = draw_series()
    task = Signals((series, labels))
    assert task.shape[1] < LONGEST
    assert "of the series are longer than" in task.notices[0]
    examples, split = task.list_test_examples(4), task.splits(4).test
    assert len({len(example[0]) for example in examples}) > 1
    for example, tensor in zip(examples, split.inputs[0], strict=True):
        assert torch.equal(torch.from_numpy(encode(task, 4, example)), tensor)
    assert encode(task, 4, [1.5]).shape == task.shape
    assert encode(task, 4, np.zeros(500)).shape == task.shape
    with pytest.raises(PipelineError, match=r"the shape \[0\]; give \[1, any\] or \[any\]"):
        encode(task, 4, [])
    with pytest.raises(PipelineError, match="not finite"):
        encode(task, 4, [1.0, np.nan])


def test_an_npz_file_with_lengths(tmp_path: Path) -> None:
    series, labels = draw_series()
    x = np.full((N, LONGEST), np.nan)
    for row, values in enumerate(series):
        x[row, : values.shape[1]] = values[0]
    lengths = np.array([values.shape[1] for values in series])
    np.savez(tmp_path / "a.npz", x=x, y=labels, lengths=lengths)
    task = Signals(tmp_path / "a.npz", length=LONGEST)
    assert task.splits(0).fingerprint() == Signals((series, labels), length=LONGEST).splits(0).fingerprint()
    np.savez(tmp_path / "b.npz", x=x, y=labels, lengths=lengths + 20)
    with pytest.raises(UsageError, match=r"b\.npz: lengths are whole numbers from 1 to 30"):
        Signals(tmp_path / "b.npz")


def test_views_move_the_padding_along() -> None:
    task = Signals(draw_series(), views=2, length=LONGEST)
    train = task.splits(0).train
    moved = task.view(train, 1).inputs[0]
    assert {*moved[:, -1].unique().tolist()} == {0.0, 1.0}
    assert not torch.equal(moved[:, -1], train.inputs[0][:, -1])


def test_series_of_one_length_have_no_further_channel(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    series, labels = [random.normal(size=(1, 8)) for _ in range(N)], ["a", "b"] * (N // 2)
    path = write_long(tmp_path / "a.csv", series, labels)
    assert Signals(path, series="id").shape == (1, 8)
    assert Signals((series, labels), length=8).shape == (2, 8)


def test_all_students_of_the_family_take_it() -> None:
    task = Signals(draw_series())
    student, _ = task.teacher()
    logits = task.build(student)(*task.splits(0).test.inputs)
    assert logits.shape == (len(task.splits(0).test), 2)
    assert task.build(Part.of("cnn1d", width=4))(*task.example()).shape == (1, 2)


@pytest.mark.slow
def test_a_searched_model_takes_raw_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    path = write_long(tmp_path / "a.csv", *draw_series())
    overrides = ["search.workers=1", "search.backend=serial", "search.timing_seconds=0", "fit.adamw.epochs=2"]
    overrides += [f"task.signals.path={path}", "task.signals.series=id", "task.signals.views=2"]
    overrides += ["teacher.student={cnn1d: {width: 4, depth: 1}}", "teacher.fit={adamw: {epochs: 2}}", "prune={none: }"]
    front = autocompress.search("signals", trials=1, name="own", runs=tmp_path / "runs", overrides=overrides)
    folder = front.export("t0c0")
    pipeline = load(folder)
    for series in ([0.5], np.ones((1, 12)), list(range(90))):
        assert pipeline.predict(series)["label"]["class"] in ("up", "down")
    # Costs are those of the padded series: the exported model computes all of it.
    task = Signals(path, series="id")
    layer = task.build(Part.of("cnn1d", width=4, depth=1)).stem[0]
    stem = 2 * layer.weight.numel() * task.shape[1]
    assert front.info.teacher.costs["flops"] > stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label,x\na,up,1\na,down,2\n", r"series 'a' has 'up' and 'down' as 'label'; all rows of a series"),
        ("id,label,x\na,,1\n", "series 'a' has an empty 'label'"),
        ("id,label,x\na,up,1\na,up,\n", "series 'a' has a value that is missing or not finite"),
        ("id,label,x\na,up,1e60\n", "series 'a' has a value that is missing or not finite"),
        ("id,label,x\na,up,one\n", "column 'x' has texts; the values of a series are numbers"),
        ("id,label\na,up\n", "no column is left for the values"),
        ("ids,label,x\na,up,1\n", "no column 'id'; did you mean 'ids'"),
        ("id,label,time,x\na,up,soon,1\n", "'time' of row 0 is neither a number nor a time"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Signals(path, series="id")


@pytest.mark.parametrize(
    ("series", "labels", "message"),
    [
        ([[1, 2]], ["a", "b"], "there are 1 series and 2 labels"),
        ([[1, 2], []], ["a", "b"], "series 1 is empty; leave it out"),
        ([[1, 2], [[1, 2], [3, 4]]], ["a", "b"], "series 1 has 2 channels, and series 0 has 1"),
        ([[1, 2], ["x"]], ["a", "b"], "series 1 cannot be read as numbers"),
        ([[1, 2], [[[1]]]], ["a", "b"], r"series 1 has the shape \[1, 1, 1\]; give \[L\]"),
        ([[1, 2], [1]], ["a", None], "series 1 has no label"),
    ],
)
def test_lists_that_cannot_be_read(series: Any, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Signals((series, labels))


def test_options_out_of_bounds() -> None:
    with pytest.raises(UsageError, match=r"task\.signals\.length is 0"):
        Signals(draw_series(), length=0)
    with pytest.raises(UsageError, match="name a column of a file"):
        Signals(draw_series(), split_groups="patient")
