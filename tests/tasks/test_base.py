"""The base class of supervised tasks, and the functions that tasks share for options, classes and notices."""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Split
from autocompress.errors import UsageError
from autocompress.tasks.base import (
    FRACTIONS,
    METRICS,
    Supervised,
    check_positive,
    complete_splits,
    describe_imbalance,
    locate_test_rows,
    sort_classes,
    stratify_examples,
    stratify_rows,
)


class TwoHeads(Supervised):
    """Images with two heads."""

    name = "two_heads"
    inputs = (InputSpec((1, 8, 8)), InputSpec((4,), vocabulary=10))
    heads: Mapping[str, int] = {"shape": 3, "colour": 2}


def test_the_example_is_a_batch_of_one_with_the_type_of_each_input() -> None:
    image, tokens = TwoHeads().example()
    assert (image.shape, image.dtype) == ((1, 1, 8, 8), torch.float32)
    assert (tokens.shape, tokens.dtype) == ((1, 4), torch.int64)
    assert not image.any()
    assert not tokens.any()


def test_a_task_has_no_specification_by_default() -> None:
    assert (TwoHeads().specify_preprocessing(0), TwoHeads().list_test_examples(0)) == ((), ())


def test_the_rows_of_the_test_split_are_located() -> None:
    whole = Split((torch.arange(100.0),), {"label": torch.arange(100) % 2})
    other = Split((torch.arange(7.0),), {"label": torch.arange(7) % 2})
    for parts, expected in (({"train": whole}, "train"), ({"train": whole, "test": other}, "test")):
        for seed in range(3):
            part, rows = locate_test_rows(parts, seed)
            assert part == expected
            test = complete_splits(parts, seed).test
            assert torch.equal(parts[part].inputs[0][torch.from_numpy(rows)], test.inputs[0])


def test_the_loss_is_the_mean_over_heads_of_equal_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {"shape": torch.randn(6, 3, generator=generator), "colour": torch.randn(6, 2, generator=generator)}
    targets = {"shape": torch.tensor([0, 1, 2, 0, 1, 2]), "colour": torch.tensor([0, 1, 0, 1, 0, 1])}
    expected = (
        F.cross_entropy(logits["shape"], targets["shape"]) + F.cross_entropy(logits["colour"], targets["colour"])
    ) / 2
    loss = TwoHeads().loss(logits, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.item())


def test_a_task_has_one_view_and_no_remarks_by_default() -> None:
    task, split = TwoHeads(), Split((torch.zeros(2, 1, 8, 8),), {"shape": torch.zeros(2)})
    assert task.views == 1
    assert task.view(split, 0) is split
    assert (task.identity_options, task.preprocessing, task.notices) == ({}, "", ())
    assert task.metrics == METRICS
    assert task.metrics[0] == "accuracy"


def test_a_model_of_a_registered_family_takes_the_inputs_and_has_the_heads() -> None:
    class Images(TwoHeads):
        inputs = TwoHeads.inputs[:1]

    model = Images().build(Part.of("cnn", width=8, depth=1))
    assert isinstance(model, nn.Module)
    with torch.no_grad():
        output = model.eval()(*Images().example())
    assert {head: tuple(logits.shape) for head, logits in output.items()} == {"shape": (1, 3), "colour": (1, 2)}


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_an_option_that_counts_nothing_is_refused_by_name(value: object) -> None:
    with pytest.raises(UsageError, match=r"task\.views is .*; give a whole number of at least 1"):
        check_positive("views", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1, 2, 10**9])
def test_an_option_that_counts_something_is_returned(value: int) -> None:
    assert check_positive("views", value) == value


@pytest.mark.parametrize("build", [list, reversed, set], ids=["listed", "reversed", "set"])
@pytest.mark.parametrize(
    "ordered",
    [["-1", "2", "10"], ["1", "1.0", "2"], ["10", "9", "x"], ["cat", "dog"], []],
    ids=["numbers", "equal numbers", "mixed", "words", "none"],
)
def test_the_order_of_classes_depends_on_their_names_alone(
    ordered: list[str], build: Callable[[list[str]], list[str]]
) -> None:
    assert sort_classes(build(ordered)) == ordered


def test_a_notice_appears_from_ten_times_the_examples_on() -> None:
    assert describe_imbalance({"cat": 39, "dog": 4}) == ""
    assert describe_imbalance({"cat": 40, "dog": 4}).startswith("class 'cat' has 40 examples and 'dog' has 4;")
    assert describe_imbalance({"a": 5, "b": 12_000, "c": 1}, "rating") == (
        "rating 'b' has 12,000 examples and 'c' has 1; compare f1_macro with accuracy"
    )


def test_shares_are_kept_per_class() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    splits = stratify_examples((torch.arange(1000.0),), {"label": labels}, seed=3)
    assert [len(split) for _, split in splits.items()] == [498, 40, 156, 156, 150]
    for _, split in splits.items():
        assert float(split.targets["label"].float().mean()) == pytest.approx(0.1, abs=0.01)
    rows = torch.cat([split.inputs[0] for _, split in splits.items()])
    assert torch.equal(rows.sort().values, torch.arange(1000.0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.zeros(50, dtype=torch.long), "single class"), (torch.tensor([0] * 50 + [1] * 2), "class 1 has 2 examples")],
)
def test_targets_that_cannot_be_split_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stratify_examples((torch.zeros(len(labels)),), {"label": labels}, seed=0)


def test_rows_of_chosen_parts() -> None:
    labels = torch.arange(100) % 4
    parts = stratify_rows(labels, seed=0, fractions={"calibration": 0.12})
    assert {name: len(rows) for name, rows in parts.items()} == {"calibration": 12, "train": 88}
    assert sorted(row for rows in parts.values() for row in rows.tolist()) == list(range(100))
    assert parts["calibration"].tolist() == sorted(parts["calibration"])


def test_a_rare_class_is_named_where_it_has_a_name() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2)
    with pytest.raises(UsageError, match="class 'rare' has 2 examples; 5 disjoint splits"):
        stratify_rows(labels, seed=0, fractions=FRACTIONS, names=["usual", "rare"])


@given(counts=st.lists(st.integers(5, 60), min_size=2, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_classes_of_five_or_more_can_be_split(counts: list[int], seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    parts = stratify_rows(labels, seed)
    assert sorted(row for rows in parts.values() for row in rows.tolist()) == list(range(sum(counts)))
    assert set(labels[torch.from_numpy(parts["train"])].tolist()) == set(range(len(counts)))
