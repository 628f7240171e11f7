"""Examples that a split shares with an earlier one are removed from it, counted and said."""

import pytest
import torch

from autocompress.core.duplicates import hash_examples, remove_duplicates
from autocompress.core.task import Split, Splits
from autocompress.errors import UsageError


def make_split(*rows: tuple[int, float]) -> Split:
    """Examples of an integer input and an image of one pixel."""
    inputs = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]).reshape(-1, 1, 1, 1)
    return Split(inputs, {"label": torch.arange(len(rows))})


def make_splits(**parts: Split) -> Splits:
    defaults = {name: make_split((index, 0.5)) for index, name in enumerate(Splits.NAMES)}
    return Splits(**{**defaults, **parts})


def test_the_later_split_loses_the_example() -> None:
    train = make_split((0, 0.0), (1, 0.0), (1, 0.0))
    test = make_split((9, 0.0), (1, 0.0), (8, 0.0), (0, 0.0))
    distinct = remove_duplicates(make_splits(train=train, test=test))
    # Equal examples of one split are no leak.
    assert len(distinct.splits.train) == 3
    assert distinct.splits.test.targets["label"].tolist() == [0, 2]
    assert distinct.removed == {"test": 2}
    assert distinct.notices == (
        "2 of 4 examples of test had the same input as an example of an earlier split, such as train, and were removed",
    )


def test_all_inputs_of_an_example_count() -> None:
    splits = make_splits(train=make_split((0, 0.0), (1, 1.0)), test=make_split((0, 1.0), (1, 0.0)))
    distinct = remove_duplicates(splits)
    assert not distinct.removed
    assert not distinct.notices
    assert distinct.splits.fingerprint() == splits.fingerprint()


def test_validation_splits_are_compared_with_each_other() -> None:
    shared = make_split((7, 0.0), (6, 0.0))
    splits = make_splits(
        search_val=shared, select_val=make_split((7, 0.0), (5, 0.0)), test=make_split((5, 0.0), (4, 1.0))
    )
    assert remove_duplicates(splits).removed == {"select_val": 1, "test": 1}


def test_a_test_split_that_is_the_training_split_is_refused() -> None:
    train = make_split((0, 0.0), (1, 0.0))
    with pytest.raises(UsageError, match="all 2 examples of test have the same inputs"):
        remove_duplicates(make_splits(train=train, test=train))


def test_digests_do_not_depend_on_the_batches() -> None:
    values = torch.arange(9000.0)
    split = Split((values,), {"label": torch.zeros(9000, dtype=torch.int64)})
    digests = hash_examples(split)
    assert len(set(digests)) == 9000
    assert hash_examples(split.take(slice(4095, 4098))) == digests[4095:4098]
