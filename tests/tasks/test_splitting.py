import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.errors import UsageError
from autocompress.tasks.splitting import FRACTIONS, stratify_examples, stratify_rows


def test_shares_are_kept_per_class() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    splits = stratify_examples((torch.arange(1000.0),), {"label": labels}, seed=3)
    assert [len(split) for _, split in splits.items()] == [520, 40, 120, 120, 200]
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
