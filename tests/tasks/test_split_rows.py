"""Sizes of the splits, division by groups and by time, and the columns that search spaces name for them."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.analysis.paired import p_value_of_counts
from autocompress.core.task import Split, Splits
from autocompress.engine.runner import make_plan
from autocompress.engine.spec import PickSection, parse_spec
from autocompress.errors import SpecError, UsageError
from autocompress.tasks.base import complete_splits
from autocompress.tasks.recommender import Ratings
from autocompress.tasks.signals import Signals
from autocompress.tasks.split_rows import (
    FRACTIONS,
    LEAST_TEST,
    TRAIN_RATIO,
    VALIDATION_AIM,
    KeyColumn,
    choose_shares,
    divide_by_groups,
    divide_by_time,
    parse_times,
)
from autocompress.tasks.tagging import Tagging
from autocompress.tasks.tensors import Tensors
from autocompress.tasks.text import Text


class TestSizes:
    def test_the_aim_certifies_the_default_promise_where_a_fiftieth_differs(self) -> None:
        pick = PickSection()
        assert pick.confidence is not None

        def certifies(examples: int) -> bool:
            differing = round(0.01 * examples)
            return p_value_of_counts(differing, differing, examples, pick.max_drop) <= 1 - (pick.confidence or 0)

        assert certifies(VALIDATION_AIM)
        assert not certifies(VALIDATION_AIM - 25)

    @given(count=st.integers(1, 200_000))
    def test_small_data_has_larger_validation_splits_within_the_limits(self, count: int) -> None:
        shares = choose_shares(count)
        assert shares["test"] >= LEAST_TEST - 1e-9
        train, validation = 1 - sum(shares.values()), shares["search_val"] + shares["select_val"]
        assert train >= TRAIN_RATIO * validation - 1e-9
        for name in ("search_val", "select_val"):
            assert FRACTIONS[name] <= shares[name] <= max(VALIDATION_AIM / count, FRACTIONS[name]) + 1e-9
        # What the aim leaves open, no split could give.
        if shares["select_val"] * count < VALIDATION_AIM - 1e-6:
            assert shares["test"] == pytest.approx(LEAST_TEST)
            assert train == pytest.approx(TRAIN_RATIO * validation)

    def test_a_given_test_split_leaves_more_to_choose_by(self) -> None:
        shares = choose_shares(1000, ["train", "test"])
        assert set(shares) == {"select_val", "search_val", "calibration"}
        assert 1 - sum(shares.values()) == pytest.approx(TRAIN_RATIO * 2 * shares["search_val"])
        assert shares["search_val"] > choose_shares(1000)["search_val"]
        assert choose_shares(1000, ["search_val", "select_val", "test"]) == {"calibration": FRACTIONS["calibration"]}


@given(
    sizes=st.lists(st.integers(1, 30), min_size=5, max_size=60),
    classes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_group_is_in_one_split_and_every_row_in_one(sizes: list[int], classes: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)) * 7, sizes)
    strata = np.random.default_rng(seed).integers(0, classes, len(groups))
    rows = divide_by_groups(groups, seed, FRACTIONS, strata)
    assert set(rows) == set(Splits.NAMES)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(groups)))
    assert all(len(part) for part in rows.values())
    owners = [set(groups[part].tolist()) for part in rows.values()]
    assert sum(map(len, owners)) == len(sizes)
    if len(sizes) >= 5 + classes:
        assert set(strata[rows["train"]]) == set(strata)


def test_groups_keep_sizes_and_classes_where_they_can() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), random.integers(2, 12, 200))
    strata = (random.random(200) < 0.3).astype(np.int64)[groups]
    rows = divide_by_groups(groups, 0, FRACTIONS, strata)
    for name, share in FRACTIONS.items():
        assert len(rows[name]) == pytest.approx(share * len(groups), rel=0.15)
        assert strata[rows[name]].mean() == pytest.approx(strata.mean(), abs=0.06)
    assert not np.array_equal(rows["test"], divide_by_groups(groups, 1, FRACTIONS, strata)["test"])


@pytest.mark.parametrize(("count", "message"), [(1, "one group only"), (4, "has 4 groups")])
def test_too_few_groups_are_refused(count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        divide_by_groups(np.arange(100) % count, 0, FRACTIONS, column="patient")


@given(times=st.lists(st.integers(0, 40), min_size=50, max_size=200))
@settings(max_examples=60, deadline=None)
def test_each_split_is_later_than_the_one_before(times: list[int]) -> None:
    if len(set(times)) < 5:
        with pytest.raises(UsageError, match="distinct times"):
            divide_by_time(np.array(times, np.float64), FRACTIONS)
        return
    values = np.array(times, np.float64)
    rows = divide_by_time(values, FRACTIONS)
    assert list(rows) == list(Splits.NAMES)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(times)))
    ordered = [values[rows[name]] for name in Splits.NAMES]
    assert all(one.max() < other.min() for one, other in pairwise(ordered))


def test_distinct_times_give_the_sizes_of_the_shares() -> None:
    rows = divide_by_time(np.random.default_rng(0).permutation(1000).astype(np.float64), FRACTIONS)
    assert {name: len(part) for name, part in rows.items()} == {
        "train": 520, "calibration": 40, "search_val": 120, "select_val": 120, "test": 200,
    }  # fmt: skip


class TestTimes:
    def test_dates_are_in_the_order_of_time(self) -> None:
        dates = ["2024-05-01", "2023-12-31T23:59", "2024-05-01T00:00:01"]
        places = ["a", "b", "c"]
        assert np.argsort(parse_times(dates, "day", places)).tolist() == [1, 0, 2]
        assert parse_times(["-3", "1e3"], "day", places[:2]) == [-3.0, 1000.0]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (["1", "yesterday"], "b: 'day' is 'yesterday', which has no place in time"),
            (["1", "nan"], "b: 'day' is 'nan'"),
            (["2024-01-01", "3"], "b: 'day' is a number, but a date without a time zone at a: they cannot be sorted"),
            (["2024-01-01", "2024-01-01T00:00+01:00"], "b: 'day' is a date with a time zone, but"),
        ],
    )
    def test_a_time_that_does_not_sort_is_refused_by_its_place(self, fields: list[str], message: str) -> None:
        with pytest.raises(UsageError, match=message.replace("+", r"\+")):
            parse_times(fields, "day", ["a", "b"])


def test_one_column_divides() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        KeyColumn.from_options("user", "day")


def write_texts(path: Path, count: int = 120, start: int = 0) -> Path:
    rows = [
        f"text {number} {('good', 'bad')[number % 2]},{('good', 'bad')[number % 2]},u{number % 12},{number}"
        for number in range(start, start + count)
    ]
    path.write_text("\n".join(["text,label,user,day", *rows]) + "\n")
    return path


class TestText:
    def test_a_user_is_in_one_split(self, tmp_path: Path) -> None:
        task = Text(write_texts(tmp_path / "a.csv"), split_groups="user")
        splits = task.splits(0)
        groups = [set(split.keys.groups.tolist()) for _, split in splits.items() if split.keys.groups is not None]
        assert len(groups) == 5
        assert sum(map(len, groups)) == 12
        assert task.resampling_groups(splits.select_val) is splits.select_val.keys.groups
        assert len(task.list_test_examples(0)) == len(splits.test)
        assert torch.equal(task.encode([str(text) for text in task.list_test_examples(0)]), splits.test.inputs[0])

    def test_days_are_in_order(self, tmp_path: Path) -> None:
        splits = Text(write_texts(tmp_path / "a.csv"), split_time="day").splits(0)
        times = [part.keys.times for _, part in splits.items() if part.keys.times is not None]
        assert len(times) == 5
        assert torch.cat(times).tolist() == list(range(120))

    def test_a_test_file_has_other_users_and_later_days(self, tmp_path: Path) -> None:
        train = write_texts(tmp_path / "a.csv")
        test = write_texts(tmp_path / "b.csv", 20, start=120)
        assert len(Text(train, test=test, split_time="day").splits(0).test) == 20
        with pytest.raises(UsageError, match="20 test examples are no later than the last training example by 'day'"):
            Text(test, test=write_texts(tmp_path / "c.csv", 20), split_time="day")
        with pytest.raises(UsageError, match="12 of the groups of 'user', such as 'u0', are in the training and in"):
            Text(train, test=test, split_groups="user")

    def test_a_column_that_is_missing_or_empty_is_named(self, tmp_path: Path) -> None:
        path = write_texts(tmp_path / "a.csv")
        with pytest.raises(UsageError, match=r"a\.csv:1: no column 'usr'; did you mean 'user'\?"):
            Text(path, split_groups="usr")
        path.write_text(path.read_text().replace("good,u4,4\n", "good,,4\n"))
        with pytest.raises(UsageError, match=r"a\.csv:6: 'user' is empty"):
            Text(path, split_groups="user")

    def test_a_single_user_is_refused(self, tmp_path: Path) -> None:
        path = write_texts(tmp_path / "a.csv")
        path.write_text(re.sub(r",u\d+,", ",u0,", path.read_text()))
        with pytest.raises(UsageError, match="'user' has one group only"):
            Text(path, split_groups="user").splits(0)

    def test_tagged_texts_have_columns_only_in_tables(self, tmp_path: Path) -> None:
        rows = [f"Ann {number} left,B-PER O O,d{number % 9}" for number in range(90)]
        path = tmp_path / "tags.csv"
        path.write_text("\n".join(["text,tags,document", *rows]) + "\n")
        task = Tagging(path, split_groups="document")
        splits = task.splits(0)
        assert sum(len(part.keys.groups.unique()) for _, part in splits.items() if part.keys.groups is not None) == 9
        assert len(task.list_test_examples(0)) == len(splits.test)
        with pytest.raises(UsageError, match="is a CoNLL file, which has no column 'document'"):
            Tagging(Tagging.write_sample(tmp_path), split_groups="document")


class TestSignals:
    def test_recordings_of_both_kinds_of_files(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        values, labels, patients = random.normal(size=(60, 8)), np.arange(60) % 2, np.arange(60) % 10
        lines = ["label,patient," + ",".join(f"t{step}" for step in range(8))]
        lines += [
            f"{label},p{patient}," + ",".join(f"{value:.4f}" for value in row)
            for label, patient, row in zip(labels, patients, values, strict=True)
        ]
        (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
        np.savez(tmp_path / "a.npz", x=values, y=labels, patient=patients)
        from_csv, from_npz = (Signals(tmp_path / name, split_groups="patient") for name in ("a.csv", "a.npz"))
        assert from_csv.shape == from_npz.shape == (1, 8)
        for one, other in zip(from_csv.splits(1).items(), from_npz.splits(1).items(), strict=True):
            assert one[1].keys.groups is not None
            assert other[1].keys.groups is not None
            assert one[1].keys.groups.tolist() == other[1].keys.groups.tolist()
        assert len(from_csv.list_test_examples(1)) == len(from_csv.splits(1).test)
        with pytest.raises(UsageError, match=r"a\.npz: no array 'patients'"):
            Signals(tmp_path / "a.npz", split_groups="patients")


class TestRatings:
    def test_users_items_or_time_divide_the_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "ratings.csv"
        rows = [f"u{row % 19},i{row % 23},{row % 3},{row}" for row in range(300)]
        path.write_text("\n".join(["user,item,rating,time", *rows]) + "\n")
        for column in ("user", "item"):
            splits = Ratings(path, split_groups=column).splits(0)
            groups = [part.keys.groups for _, part in splits.items() if part.keys.groups is not None]
            assert sum(len(part.unique()) for part in groups) == len(torch.cat(groups).unique())
            # Nothing is known of a new user or item.
            assert not splits.test.inputs[0 if column == "user" else 1].any()
        task = Ratings(path, split_time="time")
        splits = task.splits(0)
        times = [part.keys.times for _, part in splits.items() if part.keys.times is not None]
        assert all(one.max() < other.min() for one, other in pairwise(times))
        assert len(task.list_test_examples(0)) == len(splits.test)
        with pytest.raises(UsageError, match="grouped by 'user' or 'item', not by 'session'"):
            Ratings(path, split_groups="session")

    def test_a_time_that_the_data_lacks_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "ratings.csv"
        path.write_text("user,item,rating\n" + "\n".join(f"u{row % 9},i{row},{row % 3}" for row in range(60)) + "\n")
        with pytest.raises(UsageError, match="no column 'when'"):
            Ratings(path, split_time="when")


class TestTensors:
    def test_arrays_of_groups_or_times(self) -> None:
        inputs, targets = torch.randn(200, 3), torch.arange(200) % 2
        names = np.array([f"p{number % 20}" for number in range(200)])
        splits = Tensors((inputs, targets), groups=names).splits(0)
        assert sum(len(part.keys.groups.unique()) for _, part in splits.items() if part.keys.groups is not None) == 20
        days = np.datetime64("2024-01-01") + np.arange(200)
        for times in (days, days.astype(str), np.arange(200)):
            task = Tensors((inputs, targets), times=times)
            assert torch.equal(task.splits(0).test.inputs[0], inputs[-len(task.splits(0).test) :])
            assert len(task.list_test_examples(0)) == len(task.splits(0).test)

    def test_wrong_arrays_are_refused(self) -> None:
        data = torch.randn(100, 3), torch.arange(100) % 2
        with pytest.raises(UsageError, match=r"groups of 'train' have the shape \[99\]; give one for each of the 100"):
            Tensors(data, groups=np.arange(99))
        with pytest.raises(UsageError, match="give groups or times"):
            Tensors(data, groups=np.arange(100), times=np.arange(100))
        with pytest.raises(UsageError, match="example 3: it has no place in time"):
            Tensors(data, times=np.where(np.arange(100) == 3, np.nan, 1.0))
        with pytest.raises(UsageError, match="in the training and in the test data"):
            Tensors(data, data, groups={"train": np.arange(100), "test": np.arange(99, 199)})
        with pytest.raises(UsageError, match=r"the earliest examples by 'times'.* have a single class"):
            Tensors((data[0], torch.arange(100) // 90), times=np.arange(100)).splits(0)


class TestSpec:
    def test_the_section_becomes_options_of_the_task(self, tmp_path: Path) -> None:
        text = f"task: {{text: {{path: {write_texts(tmp_path / 'a.csv')}}}}}\nsplits: {{groups: user}}\n"
        text += "student: {text_cnn: {width: 8}}\nsearch: {backend: serial}\n"
        plan = make_plan(parse_spec(text, "a.yaml"))
        assert plan.setup.task.values["split_groups"] == "user"
        assert any("candidates are compared on" in notice for notice in plan.notices)

    @pytest.mark.parametrize(
        ("task", "splits", "message"),
        [
            (
                "digits",
                "{groups: user}",
                r"a\.yaml:2: splits\.groups: the task 'digits' has no column to split by groups",
            ),
            ("digits", "{time: user}", "these tasks have: .*ranking.*text"),
            ("ranking", "{groups: user}", "the task 'ranking' has no column to split by groups"),
            ("text", "{groups: user, time: day}", "give groups or time"),
            ("text", "{group: user}", "did you mean 'groups'"),
        ],
    )
    def test_a_task_without_columns_is_refused(self, task: str, splits: str, message: str) -> None:
        text = f"task: {task}\nsplits: {splits}\nstudent: {{cnn: {{width: 8}}}}\nsearch: {{backend: serial}}\n"
        with pytest.raises(SpecError, match=message):
            make_plan(parse_spec(text, "a.yaml"))

    def test_a_run_without_the_section_can_be_resumed(self) -> None:
        spec = parse_spec("task: digits\nstudent: {cnn: {width: 8}}\n", "a.yaml").spec
        assert "splits" not in spec.immutable_content()


def test_groups_survive_batches() -> None:
    whole = Split((torch.arange(100.0),), {"label": torch.arange(100) % 2})
    assert complete_splits({"train": whole}, 0).test.keys.groups is None
    assert next(whole.batches(10)).keys is whole.keys
