from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.prune.schedule import SCHEDULES, GradualConfig, select_least_important
from tests.prune.toys import EXAMPLE, Tuner, cnn, labelled_context


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 50), st.floats(0, 0.95))
def test_ratios_grow_and_end_at_the_ratio(schedule, steps, ratio):
    ratios = GradualConfig(schedule=schedule, steps=steps).step_ratios(ratio)
    assert ratios[-1] == ratio
    assert all(before <= after for before, after in pairwise(ratios))
    assert len(ratios) == (1 if schedule == "one_shot" else steps)


def test_cubic_follows_zhu_and_gupta():
    # s_t = s_f + (s_0 - s_f) (1 - t / n)^3 with s_0 = 0
    expected = [0.9 - 0.9 * (1 - t / 5) ** 3 for t in range(1, 6)]
    assert GradualConfig(schedule="cubic", steps=5).step_ratios(0.9) == pytest.approx(expected)


def test_cubic_removes_much_at_first_and_little_at_the_end():
    ratios = [0.0, *GradualConfig(schedule="cubic", steps=6).step_ratios(0.9)]
    cuts = [after - before for before, after in pairwise(ratios)]
    assert cuts == sorted(cuts, reverse=True)


class TestBetween:
    def test_it_trains_for_its_epochs_at_the_recovery_s_rate(self):
        tuner = Tuner()
        config = GradualConfig(schedule="linear", step_epochs=3, recovery_learning_rate=0.01)
        model = cnn()
        before = model.stem[0].weight.clone()
        held = []
        config.train_between_steps(model, labelled_context(tune=tuner), lambda: held.append(1))
        assert tuner.calls == [(3, 0.01)]
        assert len(held) == 3
        assert not torch.equal(model.stem[0].weight, before)
        assert not model.training

    def test_without_epochs_only_batch_norms_are_measured(self):
        model = cnn()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        GradualConfig(schedule="linear", step_epochs=0).train_between_steps(model, labelled_context())
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed
        assert all("running" in name or "num_batches" in name for name in changed)

    def test_without_anything_to_measure_nothing_happens(self):
        model = cnn()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        GradualConfig(schedule="linear", step_epochs=0).train_between_steps(model, Context(EXAMPLE))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_training_that_is_not_there_is_missed(self):
        with pytest.raises(CompressionError, match=r"schedule 'cubic' trains between its steps, .* set step_epochs=0"):
            GradualConfig(schedule="cubic").train_between_steps(cnn(), labelled_context())


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
