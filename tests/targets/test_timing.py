from collections.abc import Callable, Sequence

import numpy as np
import pytest

from autocompress.targets import Model
from autocompress.targets.base import Array
from autocompress.targets.timing import (
    MIN_ROUNDS,
    WARM_UP,
    compare_rounds,
    is_order_certain,
    time_in_turns,
    time_rounds,
)


def test_models_run_in_turns_on_their_own_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def build(name: str) -> Model:
        def run(arrays: object) -> list[Array]:
            assert arrays == [name]
            order.append(name)
            return []

        return run

    names = ["first", "second"]
    rounds = time_rounds({name: build(name) for name in names}, {name: [name] for name in names}, 0)  # type: ignore[list-item]
    assert {name: len(values) for name, values in rounds.items()} == dict.fromkeys(names, MIN_ROUNDS)
    # After the warm-up, a few runs of each in every round.
    assert order[-6:] == ["first"] * 3 + ["second"] * 3


def test_inputs_are_handed_over_before_the_clock_starts() -> None:
    bound: list[Sequence[Array]] = []
    runs: list[int] = []

    class Model:
        def __call__(self, arrays: Sequence[Array]) -> list[Array]:
            raise AssertionError("the conversion of arguments would be timed")

        def bind(self, arrays: Sequence[Array]) -> Callable[[], None]:
            bound.append(arrays)
            return lambda: runs.append(1)

    inputs = [np.zeros(2)]
    times = time_rounds({"model": Model()}, inputs, 0, runs=1)
    assert bound == [inputs]
    assert len(runs) == WARM_UP + len(times["model"])


def test_load_of_a_round_cancels_out() -> None:
    # The third round was disturbed, and so was one model in the first.
    rounds = {"teacher": [1.0, 1.0, 5.0], "student": [9.0, 0.25, 1.25]}
    assert compare_rounds(rounds, "teacher") == {"teacher": 1.0, "student": 0.25}


def test_a_quantile_of_the_rounds_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.targets.timing.time_rounds", lambda *_: {"model": [5.0, 1.0, 2.0, 4.0, 3.0]})
    assert time_in_turns({}, [])["model"] == 3.0
    assert time_in_turns({}, [], share=0.0)["model"] == 1.0


def test_an_early_end_is_asked_for_at_each_doubling_of_the_rounds() -> None:
    asked: list[int] = []

    def is_enough(rounds: dict[str, list[float]]) -> bool:
        asked.append(len(rounds["model"]))
        return len(asked) == 3

    rounds = time_rounds({"model": lambda _: []}, [], 60, least=4, is_enough=is_enough)
    assert asked == [4, 8, 16]
    assert len(rounds["model"]) == 16


def test_an_order_is_certain_if_models_are_told_apart_or_known_well() -> None:
    steady, noisy = [1.0, 1.001] * 20, [0.8, 1.2] * 20
    assert is_order_certain({"teacher": [4.0] * 40, "a": steady, "b": [2.0] * 40}, "teacher")
    # Equally fast, to the resolution.
    assert is_order_certain({"teacher": [4.0] * 40, "a": steady, "b": steady}, "teacher")
    assert not is_order_certain({"teacher": [4.0] * 40, "a": noisy, "b": [1.02] * 40}, "teacher")
    # Far apart, whatever the noise.
    assert is_order_certain({"teacher": [4.0] * 40, "a": noisy, "b": [2.0] * 40}, "teacher")
    # Load of a whole round cancels out.
    load = [1.0, 3.0] * 20
    models = {name: [factor * value for value in load] for name, factor in (("teacher", 4.0), ("a", 1.0), ("b", 1.01))}
    assert is_order_certain(models, "teacher")
