"""Baselines of series that predict numbers: the mean of the series, and its value a season ago."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.baselines.base import MAX_EXAMPLES, Predictor
from autocompress.core.heads import as_head
from autocompress.core.registry import BASELINES
from autocompress.core.task import Split, Task

# Seasons that are tried; longer ones leave too little of a usual window to repeat.
_MAX_SEASON = 400


@BASELINES.register("series_mean")
def fit_series_mean(task: Task, train: Split) -> Predictor | None:
    """The mean of the series that is the input."""
    names = _list_forecast_heads(task)
    if not names:
        return None
    lines = {
        name: _fit_line(_average_series(train, int(task.heads[name])), _read_values(train, name)) for name in names
    }

    def predict(split: Split) -> dict[str, Tensor]:
        return {name: _apply_line(lines[name], _average_series(split, int(task.heads[name]))) for name in names}

    return predict


@BASELINES.register("seasonal_naive")
def fit_seasonal_naive(task: Task, train: Split) -> Predictor | None:
    """The value of the series a season before the predicted one; the season is chosen on the training split."""
    names = _list_forecast_heads(task)
    if not names:
        return None
    some = train.take(slice(0, MAX_EXAMPLES))
    chosen = {name: _choose_season(some, name, int(task.heads[name])) for name in names}

    def predict(split: Split) -> dict[str, Tensor]:
        return {
            name: _apply_line(line, _repeat_season(split, season, int(task.heads[name])))
            for name, (season, line) in chosen.items()
        }

    return predict


def _list_forecast_heads(task: Task) -> list[str]:
    """Return the heads of numbers of a task whose first input is a series of real numbers, ``[L]`` or ``[C, L]``."""
    first = task.inputs[0]
    if first.vocabulary or len(first.shape) not in (1, 2) or first.shape[-1] < 4:
        return []
    return [name for name, size in task.heads.items() if not as_head(size).has_classes]


def _read_values(split: Split, name: str) -> NDArray[np.float64]:
    targets = split.targets[name]
    return targets.reshape(len(targets), -1).numpy().astype(np.float64)


def _read_series(split: Split) -> NDArray[np.float64]:
    """Return the last channel of the series, ``[N, L]``."""
    series = split.inputs[0].numpy().astype(np.float64)
    return series if series.ndim == 2 else series[:, -1]


def _average_series(split: Split, size: int) -> NDArray[np.float64]:
    return np.repeat(_read_series(split).mean(1, keepdims=True), size, 1)


def _repeat_season(split: Split, season: int, size: int) -> NDArray[np.float64]:
    """Return the last season of each series, repeated to ``size`` values."""
    last = _read_series(split)[:, -season:]
    return last[:, np.arange(size) % season]


def _choose_season(split: Split, name: str, size: int) -> tuple[int, tuple[float, float]]:
    """Return the season with the smallest squared error on a split, and the line from its values to the targets."""
    values, length = _read_values(split, name), split.inputs[0].shape[-1]
    errors: Mapping[int, tuple[float, tuple[float, float]]] = {
        season: _measure_season(split, season, size, values) for season in range(1, min(length, _MAX_SEASON) + 1)
    }
    season = min(errors, key=lambda one: errors[one][0])
    return season, errors[season][1]


def _measure_season(
    split: Split, season: int, size: int, values: NDArray[np.float64]
) -> tuple[float, tuple[float, float]]:
    repeated = _repeat_season(split, season, size)
    line = _fit_line(repeated, values)
    return float(np.nanmean((line[0] + line[1] * repeated - values) ** 2)), line


def _fit_line(inputs: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return intercept and slope of least squares: the inputs may be normalized, the targets have their own units."""
    finite = np.isfinite(values)
    x, y = inputs[finite], values[finite]
    spread = x.var()
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 0.0
    return float(y.mean() - slope * x.mean()), slope


def _apply_line(line: tuple[float, float], inputs: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(line[0] + line[1] * inputs).float()
