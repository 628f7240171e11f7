"""Latencies of loaded models, timed in turns so that a change of the machine's load affects all of them alike."""

import time
from collections.abc import Mapping, Sequence

from autocompress.targets.base import Array, Model

WARM_UP = 10
MIN_ROUNDS = 15


def time_in_turns(
    models: Mapping[str, Model], inputs: Sequence[Array], seconds: float = 0.3, share: float = 0.5
) -> dict[str, float]:
    """Return the milliseconds of one run of each model: the median, or another quantile of its times.

    Args:
        models: Loaded models by name.
        inputs: The inputs of every model.
        seconds: Seconds to measure all of them; at least ``MIN_ROUNDS`` rounds are timed.
        share: Share of the runs that are faster than the returned time. Interruptions by other processes only ever
            add time, so a small share varies less than the median.
    """
    times = list_times(models, inputs, seconds)
    return {name: sorted(values)[int(share * (len(values) - 1))] for name, values in times.items()}


def list_times(models: Mapping[str, Model], inputs: Sequence[Array], seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of every run of each model, in turns; see :func:`time_in_turns`."""
    # The first runs allocate memory and are slower.
    for model in models.values():
        for _ in range(WARM_UP):
            model(inputs)
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, model in models.items():
            started = time.perf_counter()
            model(inputs)
            times[name].append((time.perf_counter() - started) * 1000)
        rounds += 1
    return times
