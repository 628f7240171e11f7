"""What repeats of the top candidates say: means over seeds with their intervals, and the front as test sees it.

A repeat is the whole candidate from scratch with another seed: trained, cut, recovered, quantized. It has the role
``confirm`` in the store and never stands on the search's front.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import axes, by_cost, dominated, full_fidelity, numbers, pareto_front
from autocompress.core.formatting import format_plural, is_finite
from autocompress.core.run_info import ObjectiveSpec, RunInfo

ROLE = "confirm"
#: How the intervals are made, for whoever shows them.
METHOD = (
    "Intervals are 95% percentiles of 1,000 draws that take seeds and examples anew, each with replacement and "
    "independently (pigeonhole bootstrap, Owen 2007)"
)
_LEVELS = (2.5, 97.5)
_SEED = 72_089
_NAMED = 6


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with its 95% interval where there is one.

    Attributes:
        mean: Over the seeds.
        low: Lower end of the interval; NaN if it cannot be told.
        high: Upper end.
        values: Of each seed.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Confirmed:
    """One candidate that was repeated.

    Attributes:
        id: Of the candidate that the search found.
        cost: Its cost.
        searched: Its score on select_val as the search saw it, with the one seed that was chosen for it.
        select_val: The score of the repeats there.
        test: The score of the repeats on test.
        gap: Test minus select_val.
        failed: Repeats that gave nothing.
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
    """The frozen front on the test split, where some of its candidates beat others.

    The front of select_val promises more than it holds. On test the best that its user may get is the front of its
    candidates there (optimistic), and the worst are those that beat no other (pessimistic; Feurer et al. 2023, Mind
    the Gap: Measuring Generalization Performance Across Multiple Objectives).

    Attributes:
        optimistic: Ids that no other beats on test, the cheapest first.
        pessimistic: Ids that beat no other on test.
        count: Candidates of the front that were tested.
    """

    __test__ = False

    optimistic: tuple[str, ...]
    pessimistic: tuple[str, ...]
    count: int


def top(table: pd.DataFrame, info: RunInfo, picked: str, count: int) -> list[str]:
    """Return the ids to confirm: the pick, then those beside it on the front, by turns the next cheaper and better.

    Args:
        table: Candidates.
        info: Description of the run.
        picked: The pick's id; it may lie a little behind the front.
        count: How many at most.

    Example:
        >>> objectives = (ObjectiveSpec("accuracy", "maximize"), ObjectiveSpec("bytes", "minimize", kind="cost"))
        >>> rows = {"id": ["a", "b", "c", "d"], "accuracy": [0.6, 0.7, 0.8, 0.9], "bytes": [1, 2, 3, 4]}
        >>> top(pd.DataFrame(rows), RunInfo(objectives=objectives), "b", 3)
        ['b', 'a', 'c']
    """
    objectives = info.objectives
    front = pareto_front(full_fidelity(table), objectives, info.limits)
    both = pd.concat([front, table[(table["id"] == picked) & ~table["id"].isin(front["id"])]])
    ids = [str(name) for name in by_cost(both, objectives)["id"]]
    place = ids.index(picked)
    cheaper, better = ids[:place][::-1], ids[place + 1 :]
    turns = [name for pair in _by_turns(cheaper, better) for name in pair]
    return [picked, *turns][:count]


def _by_turns(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for place in range(max(len(one), len(other))):
        yield (*one[place : place + 1], *other[place : place + 1])


def unseeded(config: str) -> str:
    """Return a config's JSON text without its seed: equal for a candidate and its repeats."""
    return json.dumps({key: value for key, value in json.loads(config).items() if key != "seed"}, sort_keys=True)


def without_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are no repeats: what a search came to."""
    return table[table["role"] != ROLE] if "role" in table else table


def confirmed(table: pd.DataFrame, trials: pd.DataFrame, info: RunInfo) -> list[Confirmed]:
    """Return every candidate that was repeated, the cheapest first; none before ``autocompress confirm``.

    Args:
        table: Candidates, repeats included.
        trials: Trials, repeats included: those that failed are counted.
        info: Description of the run.
    """
    if "role" not in table or not (table["role"] == ROLE).any():
        return []
    cost, score = axes(info.objectives)
    repeats = table[table["role"] == ROLE]
    groups: dict[str, list[int]] = {}
    for place, config in enumerate(repeats["config"]):
        groups.setdefault(unseeded(config), []).append(place)
    wanted = info.confirmed
    originals = full_fidelity(table)
    found = []
    for place, config in enumerate(originals["config"]):
        rows = groups.pop(unseeded(config), None)
        if rows is None:
            continue
        row = originals.iloc[place]
        mine = repeats.iloc[rows]
        asked = wanted.get(str(row["id"]), len(rows))
        found.append(_confirmed(row, mine, cost.name, score.name, max(int(asked) - len(rows), 0)))
    return sorted(found, key=lambda each: each.cost)


def _confirmed(row: Any, repeats: pd.DataFrame, cost: str, score: str, failed: int) -> Confirmed:
    values = {"select_val": numbers(repeats, score), "test": numbers(repeats, f"{score}_test")}
    draws = {split: _draws(repeats, split) for split in values}
    estimates = {split: _estimate(np.asarray(found), draws[split]) for split, found in values.items()}
    both = None if draws["test"] is None or draws["select_val"] is None else draws["test"] - draws["select_val"]
    gap = _estimate(np.asarray(values["test"] - values["select_val"]), both)
    return Confirmed(
        str(row["id"]),
        float(row[cost]),
        float(row[score]),
        estimates["select_val"],
        estimates["test"],
        gap,
        failed,
    )


def _draws(repeats: pd.DataFrame, split: str) -> NDArray[np.float64] | None:
    """Return the score of every seed on every drawing of the examples, ``[S, B]``."""
    found = [
        (details.get("replicates") or {}).get(split) if isinstance(details, Mapping) else None
        for details in repeats["details"]
    ]
    if not all(found) or len({len(each or ()) for each in found}) != 1:
        return None
    return np.asarray(found, dtype=np.float64)


def _estimate(values: NDArray[np.float64], draws: NDArray[np.float64] | None) -> Estimate:
    mean, each = float(np.mean(values)), tuple(float(value) for value in values)
    if draws is None:
        return Estimate(mean, float("nan"), float("nan"), each)
    seeds, count = draws.shape
    # Column b holds the same examples for every seed, so that drawing seeds within it crosses both.
    chosen = np.random.default_rng([_SEED, seeds, count]).integers(0, seeds, (seeds, count))
    low, high = np.percentile(np.take_along_axis(draws, chosen, axis=0).mean(axis=0), _LEVELS)
    return Estimate(mean, float(low), float(high), each)


def on_test(front: pd.DataFrame, info: RunInfo, repeated: Sequence[Confirmed] = ()) -> TestFront | None:
    """Return what the front becomes on test; None where test was not read.

    Args:
        front: The front of select_val, with its test scores.
        info: Description of the run.
        repeated: Candidates whose test score is known as a mean over seeds, which is then taken.
    """
    cost, score = axes(info.objectives)
    column = f"{score.name}_test"
    if column not in front:
        return None
    means = {each.id: each.test.mean for each in repeated}
    tested = front.assign(
        _tested=[means.get(str(name), own) for name, own in zip(front["id"], front[column], strict=True)]
    )
    tested = tested[[is_finite(value) for value in tested["_tested"]]]
    if not len(tested):
        return None
    points = np.column_stack([numbers(tested, "_tested"), numbers(tested, cost.name)])
    ids = [str(name) for name in tested["id"]]
    opposite = {"maximize": "minimize", "minimize": "maximize"}

    def unbeaten(directions: Sequence[str]) -> tuple[str, ...]:
        beaten = dominated(points, directions)
        return tuple(name for name, out in zip(ids, beaten, strict=True) if not out)

    ways = [score.direction, cost.direction]
    return TestFront(unbeaten(ways), unbeaten([opposite[way] for way in ways]), len(ids))


def bounds(objective: ObjectiveSpec, estimate: Estimate) -> tuple[float, float] | None:
    """Return an interval as [worse end, better end] of an objective; None if it cannot be told."""
    if not (is_finite(estimate.low) and is_finite(estimate.high)):
        return None
    ends = (estimate.low, estimate.high)
    return ends if objective.direction == "maximize" else (ends[1], ends[0])


def front_on_test(found: TestFront) -> str:
    """Return what became of the front on test, in a sentence.

    Example:
        >>> front_on_test(TestFront(("a", "c"), ("b",), 3))
        'On the test split, 2 of 3 front candidates remain non-dominated (a, c), and 1 dominates no other (b).'
    """

    def named(ids: Sequence[str]) -> str:
        return f" ({', '.join(ids[:_NAMED])}{', ...' if len(ids) > _NAMED else ''})"

    still, worst = len(found.optimistic), len(found.pessimistic)
    return (
        f"On the test split, {still} of {format_plural(found.count, 'front candidate')} "
        f"{'remains' if still == 1 else 'remain'} non-dominated{named(found.optimistic)}, and {worst} "
        f"{'dominates' if worst == 1 else 'dominate'} no other{named(found.pessimistic)}."
    )


def as_table(found: Sequence[Confirmed]) -> pd.DataFrame:
    """Return a row for each candidate that was repeated; see :meth:`autocompress.Front.confirmed` for the columns."""
    rows = []
    for each in found:
        row = {"id": each.id, "cost": each.cost, "searched": each.searched}
        row |= {"seeds": len(each.test.values), "failed": each.failed}
        for name in ("select_val", "test", "gap"):
            told = getattr(each, name)
            row |= {name: told.mean, f"{name}_low": told.low, f"{name}_high": told.high}
        rows.append(row)
    return pd.DataFrame(rows)
