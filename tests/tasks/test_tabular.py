import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from autocompress.core.heads import Regression, as_head
from autocompress.core.preprocessing import CategoriesInput, NumbersInput
from autocompress.errors import UsageError
from autocompress.export.pipeline import ENCODERS, PipelineError
from autocompress.tasks import mapped_arrays
from autocompress.tasks.tabular import Tabular

N = 120


def frame(**columns: Any) -> pd.DataFrame:
    """Return a table of a number, a category and a target of two classes, with other columns."""
    random = np.random.default_rng(0)
    size = random.uniform(0, 100, N)
    city = random.choice(["north", "south"], N)
    table = {"size": size, "city": city, "target": np.where(size + 40 * (city == "south") > 60, "dear", "cheap")}
    return pd.DataFrame({**table, **columns})


def write(folder: Path, table: pd.DataFrame, name: str = "table.csv") -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.csv.gz", "table.parquet"])
def test_each_file_gives_the_same_data(tmp_path: Path, name: str) -> None:
    expected = Tabular(write(tmp_path, frame(), "reference.csv")).splits(0)
    task = Tabular(write(tmp_path, frame(), name))
    assert task.splits(0).fingerprint() == expected.fingerprint()
    assert task.labels == {"target": ["cheap", "dear"]}
    assert [spec.shape for spec in task.inputs] == [(1,), (1,)]


def test_numbers_are_scaled_by_the_training_split_and_missing_ones_are_flagged(tmp_path: Path) -> None:
    table = frame(weight=np.random.default_rng(1).random(N))
    table.loc[:9, "size"] = np.nan
    task = Tabular(write(tmp_path, table))
    train = task.splits(0).train.inputs[0]
    is_missing = train[:, 2] == 1
    assert 0 < int(is_missing.sum()) <= 10
    assert bool((train[is_missing, 0] == 0).all())
    torch.testing.assert_close(train[~is_missing, 0].mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(train[~is_missing, 0].std(correction=0), torch.tensor(1.0), rtol=0, atol=1e-5)


def test_quantiles_spread_a_long_tail(tmp_path: Path) -> None:
    task = Tabular(write(tmp_path, frame(size=np.exp(np.linspace(0, 12, N)))), scaling="quantile")
    scaled = task.splits(0).train.inputs[0][:, 0]
    assert abs(float(scaled.mean())) < 0.05
    assert 0.8 < float(scaled.std()) < 1.1
    assert float(scaled.abs().max()) < 3


@pytest.mark.parametrize(
    ("column", "notice"),
    [
        ({"same": 7}, "column 'same' has a single value and is left out"),
        ({"row": np.arange(N)}, "column 'row' counts the rows and is left out"),
        ({"ID": np.random.default_rng(0).permutation(N) * 3}, "column 'ID' numbers the rows and is left out"),
        ({"Timestamp": np.arange(N) % 50}, "column 'Timestamp' is the time of the row and is left out"),
        ({"seen": pd.date_range("2024", periods=N)}, "column 'seen' has 120 different texts"),
        ({"name": [f"n{row}" for row in range(N)]}, "column 'name' has 120 different texts"),
    ],
)
def test_a_column_that_says_nothing_of_other_rows_is_left_out(
    tmp_path: Path, column: Mapping[str, Any], notice: str
) -> None:
    task = Tabular(write(tmp_path, frame(**column)))
    assert any(notice in remark for remark in task.notices)
    assert [spec.shape for spec in task.inputs] == [(1,), (1,)]


def test_a_parquet_file_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, frame(), "table.parquet")
    monkeypatch.setattr(mapped_arrays, "free_memory", lambda: 64)
    with pytest.raises(
        UsageError, match=r"table\.parquet takes .* and 64 B of memory are free; give a part of its rows"
    ):
        Tabular(path)


def test_a_date_of_a_parquet_file_is_time(tmp_path: Path) -> None:
    task = Tabular(write(tmp_path, frame(seen=pd.date_range("2024", periods=N)), "table.parquet"))
    assert any("column 'seen' is the time of the row" in remark for remark in task.notices)


def test_codes_are_categories_where_the_user_says_so(tmp_path: Path) -> None:
    task = Tabular(write(tmp_path, frame(code=np.arange(N) % 4)), categorical="code", exclude="city")
    assert task.inputs[1].vocabulary == 5
    numbers, categories = task.specify_preprocessing(0)
    assert isinstance(numbers, NumbersInput)
    assert isinstance(categories, CategoriesInput)
    assert categories.names == (("0", "1", "2", "3"),)


def test_rare_and_unknown_names_share_an_embedding(tmp_path: Path) -> None:
    city = ["north"] * (N // 2) + ["south"] * (N // 2 - 2) + ["west", "east"]
    task = Tabular(write(tmp_path, frame(city=city)))
    assert any("2 names with few rows are read as one unknown name" in remark for remark in task.notices)
    entry = task.specify_preprocessing(0)[1]
    encode = ENCODERS[entry.kind]({"columns": entry.columns, "names": entry.names})
    assert encode({"city": "atlantis"}) == encode({"city": "west"}) == encode({"city": None}) == 0
    assert encode({"city": " north "}) == 1


@pytest.mark.parametrize(
    ("values", "options", "kind"),
    [
        (np.linspace(0, 1, N), {}, "regression"),
        (np.arange(N) % 3, {}, "classes"),
        (np.arange(N) % 3, {"kind": "regression"}, "regression"),
        (np.arange(N) % 60, {}, "regression"),
        (np.arange(N) % 2 == 0, {}, "classes"),
    ],
)
def test_the_target_decides_the_kind(tmp_path: Path, values: Any, options: Mapping[str, str], kind: str) -> None:
    task = Tabular(write(tmp_path, frame(target=values)), **options)
    head = as_head(task.heads["target"])
    assert head.kind == kind
    assert task.metrics[0] == head.metric


def test_an_untrained_model_of_numbers_starts_at_their_mean(tmp_path: Path) -> None:
    task = Tabular(write(tmp_path, frame(target=np.linspace(1000, 1100, N))))
    head = task.heads["target"]
    assert isinstance(head, Regression)
    assert head.center == pytest.approx((1050.0,))
    split = task.splits(0).test
    outputs = task.build(task.teacher()[0]).eval()(*split.inputs).detach()
    assert float((outputs - 1050).abs().max()) < 100


def test_a_column_that_is_the_target_is_noticed(tmp_path: Path) -> None:
    table = frame()
    table["copy"] = table["target"].map({"dear": "a", "cheap": "b"})
    assert any("column 'copy' determines 'target'" in notice for notice in Tabular(write(tmp_path, table)).notices)


def test_rows_without_a_target_and_repeated_rows_are_left_out(tmp_path: Path) -> None:
    table = pd.concat([frame(), frame().head(3), frame(target=None).head(2)])
    notices = Tabular(write(tmp_path, table)).notices
    assert "table.csv: 2 rows without a value of 'target' are left out" in notices
    assert "table.csv: 3 rows that repeat an earlier one are left out" in notices


def test_equal_rows_of_a_table_of_few_values_stay(tmp_path: Path) -> None:
    task = Tabular(write(tmp_path, frame(size=np.arange(N) % 3)))
    assert any("they stay, and may be in two splits" in notice for notice in task.notices)
    assert len(task.splits(0).train) > N // 3
    assert not task.has_distinct_inputs
    assert Tabular(write(tmp_path, frame())).has_distinct_inputs


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    test = write(tmp_path, frame().head(20), "test.csv")
    task = Tabular(write(tmp_path, frame().tail(100), "train.csv"), test=test)
    assert len(task.splits(0).test) == len(task.list_test_examples(0)) == 20


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (frame(), {"target": "targe"}, "no column 'targe'; did you mean 'target'"),
        (frame(), {"exclude": "sise"}, "no column 'sise'.*task.tabular.exclude"),
        (frame(), {"exclude": ["size", "city"]}, "no column is left to predict 'target' from"),
        (frame(), {"kind": "regression"}, "column 'target' has texts such as"),
        (frame(), {"kind": "binary"}, "choose one of auto, classes, regression"),
        (frame(target="dear"), {}, "has the single class 'dear'"),
        (frame(target=5.5), {}, "has the single value 5.5"),
        (frame(target=[*["a"] * 118, "b", "b"]), {}, "class 'b' of column 'target' occurs in 2 of "),
        (
            frame(target=[*["a"] * 119, "b"]).iloc[[*range(N), N - 1, N - 1, N - 1]],
            {},
            r"'b' of column 'target' occurs in 1 of 120 usable rows \(.*: 3 rows that repeat an earlier one",
        ),
        (frame(size=[np.inf, *range(N - 1)]), {}, "column 'size' is infinite in row 0"),
        (frame().head(0), {}, "has no rows below its header"),
        (frame(target=None), {}, "has no row with a value of 'target'"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, table: pd.DataFrame, options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Tabular(write(tmp_path, table), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,a,target\n1,2,x\n", "has 'a' 2 times"),
        ("a,target\n1,x\n1,2,3,4\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Tabular(path)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,target\n1,x\n")[:-9])
    with pytest.raises(UsageError, match=r"cut\.csv\.gz"):
        Tabular(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"city": "south"}, "lacks 'size'; give null"),
        ({"size": "big", "city": "south"}, "'size' is 'big'; give a number"),
        ({"size": float("inf"), "city": "south"}, "'size' is infinite"),
        ([1.0], "give a row as a mapping"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: Any, message: str) -> None:
    entry = Tabular(write(tmp_path, frame())).specify_preprocessing(0)[0]
    assert isinstance(entry, NumbersInput)
    encode = ENCODERS["numbers"](vars(entry))
    with pytest.raises(PipelineError, match=message):
        encode(row)


def test_groups_are_in_one_split_each_and_the_model_does_not_see_them(tmp_path: Path) -> None:
    path = write(tmp_path, frame(patient=[f"p{row % 20}" for row in range(N)]))
    task = Tabular(path, split_groups="patient")
    assert [spec.shape for spec in task.inputs] == [(1,), (1,)]
    groups = [set(split.keys.groups.tolist()) for _, split in task.splits(0).items()]  # type: ignore[union-attr]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert len(task.list_test_examples(0)) == len(task.splits(0).test)


def test_training_rows_are_earlier_than_test_rows(tmp_path: Path) -> None:
    days = pd.date_range("2024-01-01", periods=N).strftime("%Y-%m-%d")
    splits = Tabular(write(tmp_path, frame(day=days[::-1])), split_time="day").splits(0)
    assert splits.train.keys.times.max() < splits.test.keys.times.min()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split_groups": "patent"},
            r"no column 'patent'; did you mean 'patient'\? \(set splits.groups",
        ),
        ({"split_time": "patient"}, "row 1 of those with a target: 'patient' is 'p0', which has no place in time"),
    ],
)
def test_a_column_that_cannot_divide_the_rows_is_named(
    tmp_path: Path, options: Mapping[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Tabular(write(tmp_path, frame(patient=[f"p{row % 20}" for row in range(N)])), **options)
