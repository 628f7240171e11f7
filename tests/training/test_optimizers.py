import pytest
import torch
from torch import nn

from autocompress.training.optimizers import SCHEDULES, AdamWConfig


def rates(name: str, steps: int = 100, **settings: float) -> list[float]:
    config = AdamWConfig(learning_rate=1.0, schedule=name, **settings)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = SCHEDULES[name](optimizer, config, steps)
    actual = []
    for step in range(steps):
        actual.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
        if step % 10 == 9:
            schedule.after_epoch(loss=1.0)
    return actual


def test_every_choice_of_the_knob_is_a_schedule() -> None:
    assert set(AdamWConfig.knobs()["schedule"].domain.options) == set(SCHEDULES)  # type: ignore[union-attr]


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    actual = rates("one_cycle", warmup=0.3)
    assert actual.index(max(actual)) == pytest.approx(29, abs=1)
    assert max(actual) == pytest.approx(1.0, abs=0.01)
    assert actual[-1] < 1e-3


def test_cosine_warms_up_and_falls_by_half_in_the_middle() -> None:
    actual = rates("cosine", warmup=0.2)
    assert actual[:20] == sorted(actual[:20])
    assert actual[60] == pytest.approx(0.5, abs=0.01)
    assert actual[-1] < 0.01


def test_step_falls_to_a_tenth_twice() -> None:
    actual = rates("step", warmup=0.0)
    assert [actual[10], actual[60], actual[90]] == pytest.approx([1.0, 0.1, 0.01])


def test_constant_stays() -> None:
    assert set(rates("constant", warmup=0.0)) == {1.0}


def test_plateau_falls_when_the_loss_does_not() -> None:
    actual = rates("plateau")
    assert actual[0] == 1.0
    assert actual[-1] < 0.5


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_fit_of_one_step_works(name: str) -> None:
    assert len(rates(name, steps=1)) == 1
