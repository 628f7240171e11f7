"""Splits by time, and candidate lists of a true item among sampled negatives."""

import numpy as np
import pytest
import torch

from autocompress.core.task import Split
from autocompress.errors import UsageError
from autocompress.tasks import negative_sampling
from autocompress.tasks.negative_sampling import LAST_SPLITS, CandidateLists, Rows, split_by_time

ITEMS = 30
CANDIDATES = 8


def interactions() -> tuple[Rows, Rows]:
    """Return users and items of 12 distinct interactions of each of five users."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(5), 12)
    return users, np.concatenate([random.permutation(ITEMS)[:12] for _ in range(5)])


def sampler(candidates: int = CANDIDATES) -> CandidateLists:
    return CandidateLists(*interactions(), ITEMS, candidates, "task.ranking.candidates")


def draw(seed: int = 0) -> Split:
    return sampler().draw_lists(np.arange(60), np.random.default_rng(seed))


def true_items(split: Split) -> list[int]:
    """Return the item at the target position of each list."""
    positions: torch.Tensor = split.targets["item"]
    items: list[int] = split.inputs[1].gather(1, positions[:, None]).flatten().tolist()
    return items


def test_each_row_is_in_one_split_and_the_last_interactions_are_for_evaluation() -> None:
    users = np.array([0, 1, 0, 2, 0, 0, 1, 0, 0])
    parts = {name: rows.tolist() for name, rows in split_by_time(users).items()}
    assert set(parts) == {*LAST_SPLITS, "train"}
    assert sorted(row for rows in parts.values() for row in rows) == list(range(9))
    # User 0 has the rows 0, 2, 4, 5, 7, 8, user 1 the rows 1 and 6, user 2 the row 3.
    assert parts == {"test": [6, 8], "select_val": [7], "search_val": [5], "calibration": [4], "train": [0, 1, 2, 3]}


def test_lists_have_the_true_item_at_the_target_and_distinct_negatives() -> None:
    users, items = interactions()
    split = draw()
    assert split.inputs[0].tolist() == users.tolist()
    assert split.inputs[1].shape == (60, CANDIDATES)
    assert true_items(split) == items.tolist()
    interacted = {(int(user), int(item)) for user, item in zip(users, items, strict=True)}
    for user, row, position in zip(users, split.inputs[1].tolist(), split.targets["item"].tolist(), strict=True):
        assert len(set(row)) == CANDIDATES
        negatives = row[:position] + row[position + 1 :]
        assert not interacted & {(int(user), item) for item in negatives}


def test_the_seed_decides_the_lists() -> None:
    one, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(one.inputs[1], again.inputs[1])
    assert torch.equal(one.targets["item"], again.targets["item"])
    assert not torch.equal(one.inputs[1], other.inputs[1])
    assert set(one.targets["item"].tolist()) == set(range(CANDIDATES))


def test_redrawn_negatives_leave_users_and_true_items_unchanged() -> None:
    split = draw()
    redrawn = sampler().redraw_negatives(split, np.random.default_rng(9))
    assert torch.equal(redrawn.inputs[0], split.inputs[0])
    assert true_items(redrawn) == true_items(split)
    assert not torch.equal(redrawn.inputs[1], split.inputs[1])


def test_without_a_table_the_lists_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    by_table = draw()
    monkeypatch.setattr(negative_sampling, "LARGEST_TABLE", 0)
    by_search = draw()
    assert torch.equal(by_table.inputs[1], by_search.inputs[1])
    assert torch.equal(by_table.targets["item"], by_search.targets["item"])


def test_more_candidates_than_a_user_has_negatives_are_refused_with_the_largest_number() -> None:
    # A user has interacted with 12 of 30 items: 18 negatives and the true item.
    lists = sampler(19).draw_lists(np.arange(60), np.random.default_rng(0)).inputs[1]
    assert lists.shape == (60, 19)
    with pytest.raises(
        UsageError, match=r"task\.ranking\.candidates is 20.*all but 18 of the 30 items; give at most 19"
    ):
        sampler(20)
