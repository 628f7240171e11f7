"""Repeats of the best candidates with new seeds: means with intervals, and the front on the test split.

A repeat is a candidate made from scratch with another seed: trained, pruned, fine-tuned, quantized. It has the role
``confirm`` in the store and is never part of the front of the search.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import (
    full_fidelity,
    is_dominated,
    numeric_column,
    pareto_front,
    primary_objectives,
    sort_by_cost,
)
from autocompress.analysis.selection import Row, row_at
from autocompress.core.formatting import format_plural, is_finite
from autocompress.core.run_info import ObjectiveSpec, RunInfo

ROLE, BASELINE = "confirm", "baseline"
#: Method of the intervals, shown beside them.
METHOD = (
    "Intervals are 95% percentile intervals of 1,000 bootstrap draws of seeds and examples, each with replacement and "
    "independently (pigeonhole bootstrap, Owen 2007)"
)
_PERCENTILES = (2.5, 97.5)
# Any constant: it makes the intervals the same at every call.
_SEED = 72_089
# Longer lists of ids are shortened, so that the text stays one sentence.
_MAX_IDS = 6


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval.

    Attributes:
        mean: Mean over the seeds.
        low: Lower end of the interval; NaN if it is unknown.
        high: Upper end of the interval.
        values: Value for each seed.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class ConfirmedCandidate:
    """One repeated candidate.

    Attributes:
        id: Id of the candidate in the search.
        cost: Value of the first cost.
        searched: Score on select_val in the search, which has one seed.
        select_val: Score of the repeats on select_val.
        test: Score of the repeats on test.
        gap: Difference of the scores on test and on select_val.
        failed: Number of failed repeats.
    """

    id: str
    cost: float
    searched: float
    select_val: Estimate
    test: Estimate
    gap: Estimate
    failed: int


@dataclass(frozen=True)
class TestFront:
    """The frozen front on the test split, where some of its candidates dominate others.

    Scores on select_val are biased by the selection. On test, the optimistic front holds the non-dominated candidates
    and the pessimistic front those that dominate no other (Feurer et al. 2023, Mind the Gap: Measuring Generalization
    Performance Across Multiple Objectives).

    Attributes:
        optimistic: Ids of the non-dominated candidates on test, cheapest first.
        pessimistic: Ids of the candidates that dominate no other on test.
        count: Number of front candidates with a test score.
    """

    # pytest would collect a class with this name.
    __test__ = False

    optimistic: tuple[str, ...]
    pessimistic: tuple[str, ...]
    count: int


def select_for_confirmation(table: pd.DataFrame, info: RunInfo, picked: str, count: int) -> list[str]:
    """Return the ids to confirm: the pick, then its neighbours on the front, alternately cheaper and better ones.

    Args:
        table: Candidates, one per row.
        info: Description of the run.
        picked: Id of the recommended candidate, which may be dominated on select_val.
        count: Largest number of ids.

    Example:
        >>> objectives = (ObjectiveSpec("accuracy", "maximize"), ObjectiveSpec("bytes", "minimize", kind="cost"))
        >>> rows = {"id": ["a", "b", "c", "d"], "accuracy": [0.6, 0.7, 0.8, 0.9], "bytes": [1, 2, 3, 4]}
        >>> select_for_confirmation(pd.DataFrame(rows), RunInfo(objectives=objectives), "b", 3)
        ['b', 'a', 'c']
    """
    objectives = info.objectives
    front = pareto_front(full_fidelity(table), objectives, info.limits)
    # The pick is added where it is dominated, so that it has a position among its neighbours.
    both = pd.concat([front, table[(table["id"] == picked) & ~table["id"].isin(front["id"])]])
    ids = [str(name) for name in sort_by_cost(both, objectives)["id"]]
    position = ids.index(picked)
    cheaper, better = ids[:position][::-1], ids[position + 1 :]
    neighbours = [name for pair in zip_longest(cheaper, better) for name in pair if name is not None]
    return [picked, *neighbours][:count]


def config_without_seed(config: str) -> str:
    """Return the JSON text of a config without its seed, which a candidate and its repeats share."""
    # Sorted keys make the text independent of the order in which a config was written.
    return json.dumps({key: value for key, value in json.loads(config).items() if key != "seed"}, sort_keys=True)


def without_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates of the search, without repeats."""
    return table[table["role"] != ROLE] if "role" in table else table


def summarize_repeats(table: pd.DataFrame, trials: pd.DataFrame, info: RunInfo) -> list[ConfirmedCandidate]:
    """Return every repeated candidate, cheapest first; empty before ``autocompress confirm``.

    Args:
        table: Candidates, repeats included.
        trials: Trials, repeats included.
        info: Description of the run.
    """
    if "role" not in table or not (table["role"] == ROLE).any():
        return []
    cost, score = primary_objectives(info.objectives)
    repeats = table[table["role"] == ROLE]
    groups: dict[str, list[int]] = {}
    for position, config in enumerate(repeats["config"]):
        groups.setdefault(config_without_seed(config), []).append(position)
    # A repeat is matched by its config, because its id and its seed differ from the original. The recommended candidate
    # may be a baseline, which is repeated like any other.
    originals = pd.concat([full_fidelity(table), table[table["role"] == BASELINE]])
    candidates = []
    for position, config in enumerate(originals["config"]):
        rows = groups.pop(config_without_seed(config), None)
        if rows is None:
            continue
        row = row_at(originals, position)
        requested = info.confirmed.get(str(row["id"]), len(rows))
        failed = max(requested - len(rows), 0)
        candidates.append(_summarize_candidate(row, repeats.iloc[rows], cost.name, score.name, failed))
    return sorted(candidates, key=lambda candidate: candidate.cost)


def _summarize_candidate(row: Row, repeats: pd.DataFrame, cost: str, score: str, failed: int) -> ConfirmedCandidate:
    values = {"select_val": numeric_column(repeats, score), "test": numeric_column(repeats, f"{score}_test")}
    draws = {split: _bootstrap_scores(repeats, split) for split in values}
    estimates = {split: _estimate_mean(np.asarray(scores), draws[split]) for split, scores in values.items()}
    differences = None if draws["test"] is None or draws["select_val"] is None else draws["test"] - draws["select_val"]
    gap = _estimate_mean(np.asarray(values["test"] - values["select_val"]), differences)
    return ConfirmedCandidate(
        str(row["id"]),
        float(row[cost]),
        float(row[score]),
        estimates["select_val"],
        estimates["test"],
        gap,
        failed,
    )


def _bootstrap_scores(repeats: pd.DataFrame, split: str) -> NDArray[np.float64] | None:
    """Return the score of each seed on each bootstrap draw of the examples, ``[S, B]``; None if not all have it."""
    rows = [
        (details.get("replicates") or {}).get(split) if isinstance(details, Mapping) else None
        for details in repeats["details"]
    ]
    if not all(rows) or len({len(row or ()) for row in rows}) != 1:
        return None
    return np.asarray(rows, dtype=np.float64)


def _estimate_mean(values: NDArray[np.float64], draws: NDArray[np.float64] | None) -> Estimate:
    mean, by_seed = float(np.mean(values)), tuple(float(value) for value in values)
    if draws is None:
        return Estimate(mean, float("nan"), float("nan"), by_seed)
    seeds, count = draws.shape
    # Column b holds the same examples for every seed, so drawing seeds within a column crosses seeds and examples.
    chosen = np.random.default_rng([_SEED, seeds, count]).integers(0, seeds, (seeds, count))
    low, high = np.percentile(np.take_along_axis(draws, chosen, axis=0).mean(axis=0), _PERCENTILES)
    return Estimate(mean, float(low), float(high), by_seed)


def evaluate_test_front(
    front: pd.DataFrame, info: RunInfo, repeated: Sequence[ConfirmedCandidate] = ()
) -> TestFront | None:
    """Return the optimistic and pessimistic front on the test split; None if the test split was not read.

    Args:
        front: Candidates of the front on select_val, with test scores.
        info: Description of the run.
        repeated: Repeated candidates, whose mean over seeds replaces the single test score.
    """
    cost, score = primary_objectives(info.objectives)
    column = f"{score.name}_test"
    if column not in front:
        return None
    means = {candidate.id: candidate.test.mean for candidate in repeated}
    tested = front.assign(
        _tested=[means.get(str(name), own) for name, own in zip(front["id"], front[column], strict=True)]
    )
    tested = tested[[is_finite(value) for value in tested["_tested"]]]
    if not len(tested):
        return None
    points = np.column_stack([numeric_column(tested, "_tested"), numeric_column(tested, cost.name)])
    ids = [str(name) for name in tested["id"]]
    opposite = {"maximize": "minimize", "minimize": "maximize"}

    def select_non_dominated(directions: Sequence[str]) -> tuple[str, ...]:
        dominated = is_dominated(points, directions)
        return tuple(name for name, excluded in zip(ids, dominated, strict=True) if not excluded)

    directions = [score.direction, cost.direction]
    # A candidate dominates no other exactly if it is non-dominated with all directions reversed.
    pessimistic = select_non_dominated([opposite[direction] for direction in directions])
    return TestFront(select_non_dominated(directions), pessimistic, len(ids))


def oriented_interval(objective: ObjectiveSpec, estimate: Estimate) -> tuple[float, float] | None:
    """Return an interval as (worse end, better end) of an objective; None if it is unknown."""
    if not (is_finite(estimate.low) and is_finite(estimate.high)):
        return None
    ends = (estimate.low, estimate.high)
    return ends if objective.is_maximized else (ends[1], ends[0])


def describe_test_front(test_front: TestFront) -> str:
    """Return the optimistic and pessimistic front on the test split in a sentence.

    Example:
        >>> describe_test_front(TestFront(("a", "c"), ("b",), 3))
        'On the test split, 2 of 3 front candidates remain non-dominated (a, c), and 1 dominates no other (b).'
        >>> describe_test_front(TestFront(("a", "c"), ("a", "c"), 2))
        'On the test split, all front candidates remain non-dominated.'
    """

    def format_ids(ids: Sequence[str]) -> str:
        return f" ({', '.join(ids[:_MAX_IDS])}{', ...' if len(ids) > _MAX_IDS else ''})"

    best, worst = len(test_front.optimistic), len(test_front.pessimistic)
    if best == test_front.count > 1:
        return "On the test split, all front candidates remain non-dominated."
    return (
        f"On the test split, {best} of {format_plural(test_front.count, 'front candidate')} "
        f"{'remains' if best == 1 else 'remain'} non-dominated{format_ids(test_front.optimistic)}, and {worst} "
        f"{'dominates' if worst == 1 else 'dominate'} no other{format_ids(test_front.pessimistic)}."
    )


def tabulate_repeats(candidates: Sequence[ConfirmedCandidate]) -> pd.DataFrame:
    """Return one row per repeated candidate; see :meth:`autocompress.Front.confirmed` for the columns."""
    rows = []
    for candidate in candidates:
        row: dict[str, object] = {"id": candidate.id, "cost": candidate.cost, "searched": candidate.searched}
        row |= {"seeds": len(candidate.test.values), "failed": candidate.failed}
        for name in ("select_val", "test", "gap"):
            estimate: Estimate = getattr(candidate, name)
            row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows)
