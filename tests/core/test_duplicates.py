"""Examples that a split shares with an earlier one are removed from it, counted and said."""

import pytest
import torch

from autocompress.core.duplicates import digest_texts, hash_examples, remove_duplicates
from autocompress.core.task import ExampleKeys, Split, Splits
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


def test_numbers_printed_with_other_digits_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 20, generator=generator)
    target = {"label": torch.zeros(50, dtype=torch.int64)}
    copies = Split((values * (1 + 1e-6),), target)
    splits = make_splits(
        train=Split((values,), target),
        test=Split((torch.cat([copies.inputs[0], values + 0.01]),), {"label": torch.zeros(100, dtype=torch.int64)}),
    )
    removed = remove_duplicates(
        Splits(splits.train, *(splits.train.take(slice(0, 0)) for _ in range(3)), splits.test)
    ).removed
    # Rounding separates a pair on both sides of an edge.
    assert 45 <= removed["test"] <= 50
    zeros = Split((torch.tensor([[0.0, 1.0], [-0.0, 1.0]]),), {"label": torch.zeros(2, dtype=torch.int64)})
    assert len(set(hash_examples(zeros))) == 1


def with_texts(split: Split, *texts: str) -> Split:
    return Split(split.inputs, split.targets, ExampleKeys(contents=digest_texts(texts)))


def test_texts_are_compared_after_normalization() -> None:
    train = with_texts(make_split((0, 0.0), (1, 0.0)), "The film", "caf\u00e9")
    test = with_texts(make_split((7, 0.0), (8, 0.0), (9, 0.0)), " the  FILM\n", "cafe\u0301", "a film")
    distinct = remove_duplicates(make_splits(train=train, test=test))
    assert distinct.removed == {"test": 2}
    assert distinct.splits.test.inputs[0].tolist() == [9]
    assert distinct.rows["test"].tolist() == [2]


def test_pairs_are_compared_where_inputs_are_not() -> None:
    train = with_texts(make_split((0, 0.0), (0, 0.0)), "ann apple", "bob apple")
    test = with_texts(make_split((0, 0.0), (0, 0.0)), "ann pear", "bob apple")
    distinct = remove_duplicates(make_splits(train=train, test=test), compares_inputs=False)
    assert distinct.removed == {"test": 1}


def test_images_that_look_the_same_are_counted_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(30, 3, 5, 5, generator=generator), (32, 32), mode="bilinear")
    copies = images[:3] * 0.9 + 0.02 * torch.randn(3, 3, 32, 32, generator=generator)
    label = torch.zeros(30, dtype=torch.int64)

    def make(part: torch.Tensor) -> Split:
        return Split((part,), {"label": label[: len(part)]})

    test = torch.cat([copies, images[3:4], images[20:24]])
    distinct = remove_duplicates(
        Splits(make(images[:10]), *(make(images[10 + at : 11 + at]) for at in range(3)), make(test))
    )
    assert (distinct.removed, distinct.similar) == ({"test": 4}, {"test": 3})
    assert distinct.notices == (
        "1 of 8 examples of test had the same input as an example of an earlier split, such as train, and were removed",
        "3 of 8 examples of test look the same as an image of an earlier split, such as train, and were removed",
    )
