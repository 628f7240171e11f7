import torch
from hypothesis import given, strategies as st

from autocompress.prune.allocation import select_least_important

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
RATIOS = st.floats(0, 0.95)


def scores_of(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(size, generator=generator) for size in sizes]


@given(SIZES, RATIOS, RATIOS, st.booleans(), st.integers(0, 99))
def test_a_higher_ratio_removes_what_a_lower_one_does_and_more(sizes, one, other, pooled, seed):
    scores = scores_of(sizes, seed)
    less = select_least_important(scores, min(one, other), pooled)
    more = select_least_important(scores, max(one, other), pooled)
    assert all(set(few) <= set(many) for few, many in zip(less, more, strict=True))


@given(SIZES, RATIOS, st.booleans(), st.integers(0, 99))
def test_the_best_channel_of_every_group_is_kept(sizes, ratio, pooled, seed):
    scores = scores_of(sizes, seed)
    for group, removed in zip(scores, select_least_important(scores, ratio, pooled), strict=True):
        assert int(group.argmax()) not in removed
        assert removed == sorted(set(removed))


@given(SIZES, RATIOS)
def test_the_number_is_the_nearest_to_the_ratio(sizes, ratio):
    removed = select_least_important(scores_of(sizes), ratio, pooled=False)
    if sum(map(len, removed)) > 1:
        for size, indices in zip(sizes, removed, strict=True):
            assert abs(len(indices) - ratio * size) <= 0.5 or len(indices) == size - 1


@given(SIZES, RATIOS, st.booleans())
def test_something_goes_whenever_it_can(sizes, ratio, pooled):
    removed = sum(map(len, select_least_important(scores_of(sizes), ratio, pooled)))
    assert (removed > 0) == (ratio > 0 and max(sizes) > 1)


def test_a_small_ratio_takes_one_channel_of_the_widest_group():
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([6.0, 4.0, 5.0, 7.0])]
    assert select_least_important(scores, 0.01, pooled=False) == [[], [1]]


def test_pooled_ranks_all_groups_together():
    scores = [torch.tensor([10.0, 11.0, 12.0]), torch.tensor([1.0, 3.0, 2.0])]
    assert select_least_important(scores, 0.5, pooled=True) == [[0], [0, 2]]  # the best of the second group is safe
    assert select_least_important(scores, 0.3, pooled=True) == [[], [0, 2]]


def test_a_part_never_goes_as_a_whole():
    scores = [torch.tensor([1.0, 2.0, 3.0, 4.0])]
    assert select_least_important(scores, 0.5, False) == [[0, 1]]
    assert select_least_important(scores, 0.5, False, protected_sets=[[[0, 1], [2, 3]]]) == [[0, 2]]
    assert select_least_important(scores, 0.9, False, protected_sets=[[[0, 1], [2, 3]]]) == [[0, 2]]


def test_equal_scores_go_in_order():
    assert select_least_important([torch.ones(4)], 0.5, False) == [[0, 1]]


def test_no_group_gives_nothing():
    assert select_least_important([], 0.5, True) == []


@given(SIZES, st.lists(RATIOS, min_size=2, max_size=4), st.booleans(), st.integers(0, 99))
def test_growing_ratios_remove_as_many_in_steps_as_at_once(sizes, ratios, pooled, seed):
    scores = scores_of(sizes, seed)
    gone = [0] * len(sizes)
    for ratio in sorted(ratios):
        removed = select_least_important(scores, ratio, pooled, removed_before=gone)
        scores = [
            torch.tensor([float(score) for index, score in enumerate(group) if index not in indices])
            for group, indices in zip(scores, removed, strict=True)
        ]
        gone = [before + len(indices) for before, indices in zip(gone, removed, strict=True)]
    at_once = select_least_important(scores_of(sizes, seed), max(ratios), pooled)
    assert sum(gone) == sum(map(len, at_once))
    assert gone == [len(indices) for indices in at_once]
