import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.core.config import Part
from autocompress.core.records import Cut
from autocompress.engine.scheduler.asha import CROWD, LARGE, QUANTIZED, WAITING, Ladder, at_a_rung, pauses
from autocompress.engine.scheduler.promotion import ParetoRank


def point(score: float, cost: float) -> NDArray[np.float64]:
    return np.array([[score, cost]])


def climbing(count: int) -> Ladder:
    """Trial 0 is the best in everything, each later one worse."""
    ladder = Ladder(ParetoRank(), 0)
    for trial in range(count):
        ladder.note(trial, 0, point(0.1 + trial / 100, 0.1 + trial / 100))
        ladder.pause(trial, 0)
    return ladder


def go_on(ladder: Ladder) -> tuple[int, int] | None:
    found = ladder.next(lambda trial, rung: -rung)
    if found is not None:
        ladder.take(found[0])
    return found


@pytest.mark.parametrize(
    ("epochs", "expected"), [(0, ()), (1, ()), (2, (1,)), (4, (1, 2)), (9, (1, 3)), (15, (2, 5)), (90, (10, 30))]
)
def test_a_training_pauses_at_a_ninth_and_a_third(epochs: int, expected: tuple[int, ...]) -> None:
    assert pauses(epochs) == expected


def test_the_first_to_arrive_goes_on_at_once() -> None:
    ladder = climbing(1)
    assert go_on(ladder) == (0, 0)
    assert go_on(ladder) is None
    assert ladder.paused == []


def test_a_third_goes_on_and_more_as_others_arrive() -> None:
    ladder = climbing(6)
    assert [go_on(ladder) for _ in range(3)] == [(0, 0), (1, 0), None]
    for trial in range(6, 9):
        ladder.note(trial, 0, point(0.9, 0.9))
    assert go_on(ladder) == (2, 0)


def test_the_one_with_the_least_left_to_do_goes_on_first() -> None:
    ladder = climbing(6)
    assert ladder.next(lambda trial, rung: -trial) == (1, 0)
    # Looking changes nothing.
    assert ladder.next(lambda trial, rung: trial) == (0, 0)


def test_a_trial_goes_on_from_rung_to_rung() -> None:
    ladder = climbing(6)
    assert go_on(ladder) == (0, 0)
    ladder.note(0, 1, point(0.05, 0.05))
    ladder.pause(0, 1)
    assert go_on(ladder) == (0, 1)
    assert go_on(ladder) == (1, 0)


def test_the_far_beaten_are_given_up_and_the_rest_waits() -> None:
    assert climbing(CROWD - 1).hopeless() == []
    # Three of nine go on, and the other six are few enough to wait.
    assert climbing(9).hopeless() == []
    ladder = climbing(24)
    # Eight go on; of the other sixteen, the best six wait.
    assert ladder.hopeless() == list(range(14, 24))
    assert ladder.paused == list(range(14))
    assert ladder.give_up() == list(range(14))
    assert go_on(ladder) is None


def test_who_is_kept_goes_on_whoever_is_better() -> None:
    ladder = climbing(9)
    ladder.keep(8)
    assert 8 not in ladder.hopeless()
    while (found := go_on(ladder)) is not None:
        last = found
    assert last == (8, 0)


def test_at_a_rung_the_whole_model_comes_first_and_few_quantizations_follow() -> None:
    bits = [Part.of("post_training", weight_bits=b) for b in range(2, 9)]
    pruned = Cut(Part.of("structured", pruning_ratio=0.5, recovery_epochs=0))
    cuts = (Cut(), *(Cut(quantize=part) for part in bits), pruned)
    found = at_a_rung(cuts)
    assert found[0] == Cut()
    assert len(found) == 1 + QUANTIZED
    assert {found[1].quantize, found[-1].quantize} == {bits[0], bits[-1]}
    assert all(cut.prune is None for cut in found)
    assert at_a_rung(cuts[:3]) == cuts[:3]


@pytest.mark.parametrize("count", [LARGE, LARGE + 1, 400])
def test_however_many_arrive_few_wait(count: int) -> None:
    ladder = climbing(count)
    while go_on(ladder) is not None:
        pass
    given_up = ladder.hopeless()
    assert len(ladder.paused) <= WAITING
    # Those that wait are the next in line.
    assert max(ladder.paused) < min(given_up)


def test_where_many_have_arrived_nobody_is_given_up_for_each_that_does() -> None:
    ladder = climbing(400)
    while go_on(ladder) is not None:
        pass
    ladder.hopeless()
    next_in_line = ladder.paused
    for trial in range(400, 400 + 2 * WAITING + 1 - len(next_in_line)):
        assert ladder.hopeless() == []
        ladder.note(trial, 0, point(5 + trial / 100, 5 + trial / 100))
        ladder.pause(trial, 0)
    assert len(ladder.hopeless()) > WAITING / 2
    assert set(ladder.paused) <= set(next_in_line)
