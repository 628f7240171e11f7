"""Importance of hyperparameters: permutation importance of a forest, on trials that it was not fitted to.

The forest predicts score or cost from the hyperparameters. Permuting a hyperparameter raises its squared error on the
trials outside of its bootstrap sample (Breiman 2001). The increase divided by twice the variance estimates the total
Sobol index (Jansen 1999): the share of the variance that is due to the hyperparameter, alone and in interactions. It is
0 on average for one that does not matter.

Costs are explained only by what can change them: student, pruning and quantization. The settings of a training vary
between trials, not between the candidates of one, so they are permuted as such, and every trial has the same weight.

The partial dependence of the score on a hyperparameter (Friedman 2001) is the mean prediction of the same forests when
all candidates that have the hyperparameter get one value of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import full_fidelity, numeric_column, primary_objectives
from autocompress.core.run_info import ObjectiveSpec, RunInfo

#: Sections of a configuration: the column of the method, and ``section.method.hyperparameter``.
SECTIONS = ("student", "distill", "fit", "prune", "quantize")
#: Sections that change the cost of a model.
COST_SECTIONS = ("student", "prune", "quantize")
#: Sections that every candidate of a trial shares.
TRAINING_SECTIONS = ("student", "distill", "fit")
# Fewer say nothing about importance.
_MIN_CANDIDATES, _MIN_TRIALS = 12, 8
# More rows take time and change little.
_MAX_ROWS = 800
_SAMPLES, _TREES = 10, 8
_LOW, _HIGH = 10.0, 90.0
# Values of a hyperparameter and candidates over which partial dependence is averaged.
MAX_GRID, _DEPENDENCE_ROWS = 12, 100
# Share of the variance from which an interaction is named.
_NAMED_INTERACTION = 0.05
_MAX_PARTNERS = 4

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """Share of a variance that a hyperparameter explains, with its 80% interval over bootstrap samples of trials."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Dependence:
    """Partial dependence of the score on one hyperparameter, with 80% intervals over bootstrap samples of trials.

    Attributes:
        values: Values of the hyperparameter, at most ``MAX_GRID``: numbers in ascending order, or texts.
        mean: Predicted score at each value, averaged over candidates and forests.
        low: Lower end of the interval at each value.
        high: Upper end of the interval at each value.
    """

    values: Sequence[float | str]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class ImportanceAnalysis:
    """Importance of the hyperparameters of a run.

    Attributes:
        score: Column to the share of the variance of the score.
        cost: Column to the share of the variance of the logarithm of the cost; columns that cannot change it are left
            out.
        interactions: Pairs of columns with the share of the variance of the score that only both together explain.
        trials: Number of trials.
        candidates: Number of candidates.
        dependence: Column to the partial dependence of the score on it.
    """

    score: Mapping[str, Share]
    cost: Mapping[str, Share]
    interactions: Sequence[tuple[str, str, Share]] = field(default_factory=tuple)
    trials: int = 0
    candidates: int = 0
    dependence: Mapping[str, Dependence] = field(default_factory=dict)


@dataclass(frozen=True)
class _Data:
    """Encoded hyperparameters and what they explain.

    Attributes:
        features: Encoded hyperparameters, ``[N, F]``; NaN where the method of a candidate has none.
        columns: Name of each hyperparameter.
        values: Score, or logarithm of a cost, ``[N]``.
        units: Number of the trial of each candidate, ``[N]``; of the candidate itself where there are few trials.
    """

    features: Array
    columns: Sequence[str]
    values: Array
    units: NDArray[np.int64]

    def keep_columns(self, sections: Sequence[str]) -> "_Data":
        """Return the data with the hyperparameters of some sections only."""
        positions = [position for position, name in enumerate(self.columns) if name.partition(".")[0] in sections]
        return _Data(
            self.features[:, positions], [self.columns[position] for position in positions], self.values, self.units
        )


@dataclass(frozen=True)
class _Forest:
    """Trees that were fitted to a bootstrap sample of trials.

    Attributes:
        trees: Fitted trees.
        outside: Whether each row belongs to a trial outside of the sample, ``[N]``.
        seed: Seed of the permutations.
    """

    trees: Sequence[Any]
    outside: NDArray[np.bool_]
    seed: int

    def predict(self, rows: Array) -> Array:
        """Return the mean prediction of the trees, ``[N]``."""
        # The type of a tree's thresholds: with it, no tree has to check and convert the rows again.
        converted = np.ascontiguousarray(rows, dtype=np.float32)
        return np.asarray(np.mean([tree.predict(converted, check_input=False) for tree in self.trees], axis=0))


def varying_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of hyperparameters, and of the choice between methods, with more than one value."""
    columns = [str(name) for name in table.columns if str(name).partition(".")[0] in SECTIONS]
    return [name for name in columns if table[name].map(str).nunique() > 1]


def analyze_importance(candidates: pd.DataFrame, info: RunInfo) -> ImportanceAnalysis | None:
    """Return the importance of hyperparameters for first score and first cost; None if there are too few candidates.

    With fewer than eight trials, the settings of trainings are left out.

    Args:
        candidates: All candidates; those that are fully trained and finite count.
        info: Description of the run.
    """
    table = full_fidelity(candidates)
    if not len(table):
        return None
    cost, score = primary_objectives(info.objectives)
    costs, scores = _read_values(table, cost), _read_values(table, score)
    table = table[np.isfinite(costs) & np.isfinite(scores)]
    if len(table) < _MIN_CANDIDATES:
        return None
    trials = _number_trials(table)
    sizes = (int(trials.max()) + 1, len(table))
    # The last rows would be those of the best trials: every trial keeps a share.
    rows = np.random.default_rng(0).permutation(len(table))[:_MAX_ROWS]
    table, trials = table.iloc[rows], trials[rows]
    columns = varying_columns(table)
    has_trials = sizes[0] >= _MIN_TRIALS
    if not has_trials:
        columns = [name for name in columns if name.partition(".")[0] not in TRAINING_SECTIONS]
    empty = np.zeros((len(rows), 0))
    features = np.column_stack([empty, *(encode_column(table[name]) for name in columns)])
    units = trials if has_trials else np.arange(len(rows))
    data = _Data(features, columns, _read_values(table, score), units)
    costs_data = _Data(features, columns, _read_values(table, cost), units).keep_columns(COST_SECTIONS)
    forests, cost_forests = _fit_forests(data), _fit_forests(costs_data)
    shares, interactions = _measure_shares(data, forests, has_interactions=True)
    cost_shares, _ = _measure_shares(costs_data, cost_forests)
    dependence = {
        name: _measure_dependence(data, forests, position, list_values(table[name]))
        for position, name in enumerate(columns)
        if forests and table[name].notna().any()
    }
    return ImportanceAnalysis(shares, cost_shares, interactions, *sizes, dependence)


def _read_values(table: pd.DataFrame, objective: ObjectiveSpec) -> Array:
    """Return the values of an objective; of a cost, their logarithm."""
    values = np.asarray(numeric_column(table, objective.name), dtype=np.float64)
    # A cost of zero has no logarithm; such rows are left out.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values) if objective.kind == "cost" else values


def _number_trials(table: pd.DataFrame) -> NDArray[np.int64]:
    """Return the number of the trial of each candidate, from 0 up."""
    names = table["trial"] if "trial" in table else table["id"].map(lambda name: str(name).partition("c")[0])
    return np.asarray(pd.factorize(names)[0], dtype=np.int64)


def encode_column(column: "pd.Series") -> Array:
    """Return a hyperparameter as numbers: texts by the order of their first occurrence, NaN for a missing value.

    Example:
        >>> encode_column(pd.Series(["cnn", None, "mlp", "cnn"])).tolist()
        [0.0, nan, 1.0, 0.0]
    """
    if is_numeric(column):
        return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    codes = np.asarray(pd.factorize(column.map(str, na_action="ignore"))[0], dtype=np.float64)
    return np.where(codes < 0, np.nan, codes)


def is_numeric(column: "pd.Series") -> bool:
    """Return whether every present value of a hyperparameter is a number."""
    return bool(pd.to_numeric(column, errors="coerce").notna().sum() == column.notna().sum())


def list_values(column: "pd.Series") -> list[tuple[float, float | str]]:
    """Return the values of a hyperparameter for a plot, at most ``MAX_GRID``, as (code, value) pairs.

    The code is that of :func:`encode_column`. Of more numbers, evenly spaced quantiles of the distinct ones are taken.

    Example:
        >>> list_values(pd.Series(["cnn", None, "mlp"])), list_values(pd.Series([3, 1, 3]))
        ([(0.0, 'cnn'), (1.0, 'mlp')], [(1.0, 1.0), (3.0, 3.0)])
    """
    if not is_numeric(column):
        names = pd.factorize(column.map(str, na_action="ignore"))[1]
        return [(float(code), str(name)) for code, name in enumerate(names[:MAX_GRID])]
    numbers = np.unique(np.asarray(pd.to_numeric(column.dropna()), dtype=np.float64))
    if len(numbers) > MAX_GRID:
        numbers = np.quantile(numbers, np.linspace(0, 1, MAX_GRID))
    return [(float(number), float(number)) for number in numbers]


def _measure_dependence(
    data: _Data, forests: Sequence[_Forest], position: int, values: Sequence[tuple[float, float | str]]
) -> Dependence:
    """Return the partial dependence of the score on a hyperparameter at some values, given as (code, value) pairs."""
    present = np.flatnonzero(~np.isnan(data.features[:, position]))
    # The rows are in random order already, so the first ones are a sample.
    rows = present[:_DEPENDENCE_ROWS]
    stacked = np.tile(_fill_missing(data)[rows], (len(values), 1))
    stacked[:, position] = np.repeat([code for code, _ in values], len(rows))
    # As elsewhere, all trials have the same weight.
    weights = _weigh_rows(data)[rows]
    curves = np.array(
        [forest.predict(stacked).reshape(len(values), -1) @ (weights / weights.sum()) for forest in forests]
    )
    low, high = np.percentile(curves, [_LOW, _HIGH], axis=0)
    return Dependence([value for _, value in values], curves.mean(0).tolist(), low.tolist(), high.tolist())


def _measure_shares(
    data: _Data, forests: Sequence[_Forest], has_interactions: bool = False
) -> tuple[dict[str, Share], tuple[tuple[str, str, Share], ...]]:
    """Return the share of each hyperparameter, and the interactions of the most important ones."""
    if not forests:
        return dict.fromkeys(data.columns, Share()), ()
    samples = _measure_groups(data, forests, [(position,) for position in range(len(data.columns))])
    shares = {name: _summarize(samples[:, position]) for position, name in enumerate(data.columns)}
    top = sorted(np.argsort(-samples.mean(0))[:_MAX_PARTNERS].tolist())
    pairs = list(combinations(top, 2)) if has_interactions else []
    if not pairs:
        return shares, ()
    both = _measure_groups(data, forests, pairs)
    interactions = []
    for position, (one, other) in enumerate(pairs):
        # What is due to either of them: the terms that have both are counted twice.
        share = _summarize(samples[:, one] + samples[:, other] - both[:, position])
        if share.value >= _NAMED_INTERACTION and share.low > 0:
            interactions.append((data.columns[one], data.columns[other], share))
    return shares, tuple(sorted(interactions, key=lambda entry: -entry[2].value))


def _summarize(samples: Array) -> Share:
    low, high = np.percentile(samples, [_LOW, _HIGH])
    return Share(*(float(np.clip(value, 0.0, 1.0)) for value in (samples.mean(), low, high)))


def _weigh_rows(data: _Data) -> Array:
    """Return the weight of each candidate: all trials have the same sum."""
    return np.asarray(1.0 / np.bincount(data.units)[data.units])


def _fill_missing(data: _Data) -> Array:
    """Return the features with a number for missing values: below all others, so that a threshold separates it."""
    return np.where(np.isnan(data.features), np.nanmin(data.features, axis=0) - 1.0, data.features)


def _fit_forests(data: _Data) -> list[_Forest]:
    """Return a forest for each bootstrap sample of trials that leaves some out; none without anything to explain."""
    if not data.columns or not np.ptp(data.values) > 0:
        return []
    # Imported here: it takes a second, and a page of few candidates does without.
    from sklearn.tree import DecisionTreeRegressor

    filled, weights = _fill_missing(data).astype(np.float32), _weigh_rows(data)
    units = int(data.units.max()) + 1
    forests = []
    for seed in range(_SAMPLES):
        random = np.random.default_rng(seed)
        drawn = random.multinomial(units, np.full(units, 1 / units))
        inside = drawn[data.units] > 0
        if inside.all():
            continue
        trees = []
        for number in range(_TREES):
            # Each tree has its own sample of the trials in the sample of the forest.
            again = random.multinomial(units, drawn / units)[data.units]
            tree = DecisionTreeRegressor(min_samples_leaf=2, max_features=0.7, random_state=number)
            rows = again > 0
            trees.append(tree.fit(filled[rows], data.values[rows], (weights * again)[rows], check_input=False))
        forests.append(_Forest(trees, ~inside, seed))
    return forests


def _measure_groups(data: _Data, forests: Sequence[_Forest], groups: Sequence[tuple[int, ...]]) -> Array:
    """Return the share of the variance of each group of hyperparameters for each forest, ``[B, G]``."""
    filled, weights = _fill_missing(data), _weigh_rows(data)
    mean = np.average(data.values, weights=weights)
    spread = float(np.average((data.values - mean) ** 2, weights=weights))
    shares = []
    for forest in forests:
        random = np.random.default_rng([forest.seed, 1])
        rows, target, weight = filled[forest.outside], data.values[forest.outside], weights[forest.outside]
        # All at once: a call of a tree takes longer than its work.
        stacked = np.concatenate([rows, *(_permute(data, rows, forest.outside, group, random) for group in groups)])
        errors = (forest.predict(stacked).reshape(len(groups) + 1, -1) - target) ** 2 @ (weight / weight.sum())
        shares.append((errors[1:] - errors[0]) / (2 * spread))
    return np.array(shares)


def _permute(
    data: _Data, rows: Array, outside: NDArray[np.bool_], group: tuple[int, ...], random: np.random.Generator
) -> Array:
    """Return the rows outside of a sample with other values of some hyperparameters, drawn from all rows that have one.

    A hyperparameter of a training has one new value for all candidates of a trial.
    """
    permuted, units = rows.copy(), data.units[outside]
    for position in group:
        present = ~np.isnan(data.features[:, position])
        donors = np.flatnonzero(present)
        if data.columns[position].partition(".")[0] in TRAINING_SECTIONS:
            drawn = random.choice(donors, int(units.max()) + 1)[units]
        else:
            drawn = random.choice(donors, len(rows))
        permuted[:, position] = np.where(present[outside], data.features[drawn, position], rows[:, position])
    return permuted
