"""Inputs, splits and outputs of tasks."""

import pytest
import torch
from torch import Tensor

from autocompress.core.task import InputSpec, Split, Splits, hash_split, logits_by_head
from autocompress.errors import TrialError


def make_split(size: int = 10, start: int = 0) -> Split:
    rows = torch.arange(start, start + size)
    return Split((rows.float().unsqueeze(1), rows), {"label": rows % 3, "even": rows % 2})


def test_zeros_have_the_type_of_the_input() -> None:
    image, token = InputSpec((3, 4)).make_zeros(2), InputSpec((5,), vocabulary=9).make_zeros()
    assert (tuple(image.shape), image.dtype) == ((2, 3, 4), torch.float32)
    assert (tuple(token.shape), token.dtype) == ((1, 5), torch.int64)
    assert not image.any()
    assert InputSpec(()).make_zeros(4).shape == (4,)


def test_batches_hold_every_example_once_and_in_order() -> None:
    batches = list(make_split(10).batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.inputs[1] for batch in batches]).tolist() == list(range(10))
    assert batches[1].targets["label"].tolist() == [1, 2, 0, 1]


def test_an_index_selects_inputs_and_targets_alike() -> None:
    chosen = make_split().take(torch.tensor([7, 2]))
    assert chosen.inputs[0].tolist() == [[7.0], [2.0]]
    assert {head: target.tolist() for head, target in chosen.targets.items()} == {"label": [1, 2], "even": [1, 0]}
    assert chosen.to(torch.device("cpu")).inputs[1].tolist() == [7, 2]


def test_the_fingerprint_depends_on_the_contents_alone() -> None:
    parts = [make_split(4, start) for start in range(0, 20, 4)]
    splits = Splits(*parts)
    assert [name for name, _ in splits.items()] == ["train", "calibration", "search_val", "select_val", "test"]
    assert splits.fingerprint() == Splits(*(make_split(4, start) for start in range(0, 20, 4))).fingerprint()
    assert splits.fingerprint() != Splits(*reversed(parts)).fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        Split((torch.zeros(4, 2),), {"label": torch.ones(4, dtype=torch.int64)}),
        Split((torch.zeros(4, 2),), {"class": torch.zeros(4, dtype=torch.int64)}),
        Split((torch.zeros(4, 2, dtype=torch.float64),), {"label": torch.zeros(4, dtype=torch.int64)}),
        Split((torch.zeros(4, 1, 2),), {"label": torch.zeros(4, dtype=torch.int64)}),
        Split((torch.zeros(3, 2),), {"label": torch.zeros(3, dtype=torch.int64)}),
    ],
    ids=["value", "head", "dtype", "shape", "size"],
)
def test_the_hash_of_a_split_changes_with_any_part_of_it(other: Split) -> None:
    split = Split((torch.zeros(4, 2),), {"label": torch.zeros(4, dtype=torch.int64)})
    assert hash_split(split) == hash_split(split.take(slice(None)))
    assert hash_split(split) != hash_split(other)


def test_the_hash_does_not_depend_on_memory_layout() -> None:
    values = torch.arange(12.0).reshape(4, 3)
    strided = values.t().contiguous().t()
    assert not strided.is_contiguous()
    assert hash_split(Split((values,), {})) == hash_split(Split((strided,), {}))


def test_a_tensor_belongs_to_the_only_head() -> None:
    output = torch.zeros(2, 3)
    assert logits_by_head(output, {"label": 3})["label"] is output


def test_a_mapping_is_reduced_to_the_heads_in_their_order() -> None:
    output = {"extra": torch.zeros(1), "b": torch.ones(1), "a": torch.zeros(1)}
    assert list(logits_by_head(output, {"a": 2, "b": 2})) == ["a", "b"]


@pytest.mark.parametrize("output", [torch.zeros(2, 3), {"a": torch.zeros(1)}, (torch.zeros(1), torch.zeros(1))])
def test_an_output_that_does_not_fit_the_heads_is_refused(
    output: Tensor | dict[str, Tensor] | tuple[Tensor, ...],
) -> None:
    with pytest.raises(TrialError, match=r"the task has the heads \['a', 'b'\]"):
        logits_by_head(output, {"a": 2, "b": 2})
