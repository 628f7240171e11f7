"""Latencies of loaded models, timed in turns so that a change of the machine's load affects all of them alike.

Inputs are handed over before the clock starts where the runtime allows that
(:class:`autocompress.targets.base.BindableModel`): what is timed is the model, and not the Python around it.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from autocompress.targets.base import Array, BindableModel, Model

WARM_UP = 10
MIN_ROUNDS = 15
#: Runs of one model in a row; the fastest counts, because the first one reloads the caches that another model used.
RUNS_PER_TURN = 3

# Relative error of a median below which two models that differ less count as equally fast.
RESOLUTION = 0.005
# Standard errors by which two medians must differ.
CERTAINTY = 3.0
# Of a normal distribution, the standard error of a median by the distance of the quartiles.
ERROR_OF_QUARTILES = 0.93

#: Times of each model in milliseconds, one of each round.
Rounds = dict[str, list[float]]


def time_in_turns(
    models: Mapping[str, Model],
    inputs: Sequence[Array] | Mapping[str, Sequence[Array]],
    seconds: float = 0.3,
    share: float = 0.5,
) -> dict[str, float]:
    """Return the milliseconds of one run of each model: the median, or another quantile of its times.

    Args:
        models: Loaded models by name.
        inputs: The inputs of every model, or those of each by name.
        seconds: Seconds to measure all of them; at least ``MIN_ROUNDS`` rounds are timed.
        share: Share of the rounds that are faster than the returned time. Interruptions by other processes only ever
            add time, so a small share varies less than the median.
    """
    rounds = time_rounds(models, inputs, seconds)
    return {name: sorted(values)[int(share * (len(values) - 1))] for name, values in rounds.items()}


def time_rounds(
    models: Mapping[str, Model],
    inputs: Sequence[Array] | Mapping[str, Sequence[Array]],
    seconds: float,
    runs: int = RUNS_PER_TURN,
    least: int = MIN_ROUNDS,
    is_enough: Callable[[Rounds], bool] | None = None,
) -> Rounds:
    """Return the milliseconds of each model in each round; every round runs each model in turn.

    Args:
        models: Loaded models by name.
        inputs: The inputs of every model, or those of each by name.
        seconds: Seconds to measure all of them.
        runs: Runs of a model in its turn, of which the fastest counts; with 1, every run is listed.
        least: Smallest number of rounds, however long they take.
        is_enough: Function that may end the rounds early; it is asked after ``least`` rounds and at each doubling.
    """
    arrays = inputs if isinstance(inputs, Mapping) else dict.fromkeys(models, inputs)
    calls = {name: bind_inputs(model, arrays[name]) for name, model in models.items()}
    # The first runs allocate memory and are slower.
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: Rounds = {name: [] for name in models}
    end = time.perf_counter() + seconds
    done, next_check = 0, least
    while done < least or time.perf_counter() < end:
        if done == next_check and is_enough is not None:
            if is_enough(times):
                break
            next_check *= 2
        for name, call in calls.items():
            times[name].append(min(_time_run(call) for _ in range(runs)))
        done += 1
    return times


def compare_rounds(rounds: Rounds, reference: str) -> dict[str, float]:
    """Return the time of each model divided by that of the reference in the same round, the median over the rounds.

    Load that slows a whole round cancels out, so ratios of different rounds, and of different hours, are comparable.
    """
    base = rounds[reference]
    return {
        name: statistics.median(value / other for value, other in zip(values, base, strict=True))
        for name, values in rounds.items()
    }


def is_order_certain(rounds: Rounds, reference: str) -> bool:
    """Return whether further rounds would hardly change the order of the models.

    Two models that follow each other are either told apart, by their times divided by the reference's, or known so well
    that they count as equally fast.
    """
    base = rounds[reference]
    rows = []
    for name, values in rounds.items():
        if name != reference:
            ratios = [value / other for value, other in zip(values, base, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows.append((middle, ERROR_OF_QUARTILES * (high - low) / math.sqrt(len(ratios))))
    # The reference itself is 1 without an error.
    rows = sorted([*rows, (1.0, 0.0)])
    return all(
        second - first > CERTAINTY * math.hypot(error, other) or max(error / first, other / second) < RESOLUTION
        for (first, error), (second, other) in pairwise(rows)
    )


def bind_inputs(model: Model, arrays: Sequence[Array]) -> Callable[[], object]:
    """Return a function that runs a model on these inputs."""
    return model.bind(arrays) if isinstance(model, BindableModel) else partial(model, arrays)


def _time_run(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
