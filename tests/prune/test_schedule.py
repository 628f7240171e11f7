from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.prune.schedule import SCHEDULES, GradualConfig
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
