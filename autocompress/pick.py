"""One candidate out of the table, with the reason for it and what its neighbours on the front would cost.

Scores are those on select_val; the default choice must hold on search_val too. The test split is read once, after the
choice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from autocompress.errors import NoCandidateError, UnknownNameError, UsageError, did_you_mean
from autocompress.front import (
    Limits,
    Objective,
    axes,
    by_cost,
    feasible,
    full_fidelity,
    knee as knee_of,
    numbers,
    pareto_front,
)
from autocompress.where import where as where
from autocompress.words import compare, finite, gap, is_counted, label, plural, show

_NO_BOUNDS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Neighbour:
    """The next candidate on the front in one direction: what going there gains and costs.

    Attributes:
        kind: ``cheaper`` or ``better``.
        id: The neighbour.
        cost_ratio: Its cost divided by the pick's.
        score_change: Its score minus the pick's.
        text: The exchange in words: ``t3c2 has 2.1x fewer effective FLOPs and loses 0.4 points of accuracy``.
    """

    kind: Literal["cheaper", "better"]
    id: str
    cost_ratio: float
    score_change: float
    text: str


@dataclass(frozen=True)
class Pick:
    """The chosen candidate.

    Attributes:
        id: For example ``t12c7``.
        row: Its row of the table.
        reason: One sentence.
        neighbours: The next cheaper and the next better candidate on the front, where there are any.
    """

    id: str
    row: Mapping[str, Any]
    reason: str
    neighbours: tuple[Neighbour, ...] = ()


def pick(
    table: pd.DataFrame,
    meta: Mapping[str, Any],
    *,
    max: Mapping[str, float] = _NO_BOUNDS,
    min: Mapping[str, float] = _NO_BOUNDS,
    prefer: str | None = None,
    knee: bool = False,
    candidate: str | None = None,
) -> Pick:
    """Return the best candidate for what is asked, among fully trained candidates of the search.

    Without arguments: the cheapest candidate whose score lies within ``meta["pick"]["max_drop"]`` of the teacher's on
    both validation splits (the cheapest of hundreds on one split is too often a lucky one), or the knee of the front
    if there is none. With limits: the best by ``prefer``, which is by default the first score if a cost is limited,
    and the first cost if only scores are. Ties go to the cheaper one, then to the first id. The limits of the run hold
    too, unless the same bound is given here. A candidate no better than the declared reference score (a dead or
    constant model) is never chosen, unless by its id.

    Args:
        table: Candidates, as the study returns them.
        meta: What the study says about the run: objectives, limits, teacher.
        max: Upper bounds by column, for example ``{"effective_flops": 2e6}``.
        min: Lower bounds by column, for example ``{"accuracy": 0.95}``.
        prefer: The objective to be best in.
        knee: Take the knee of the front.
        candidate: Take this id, whatever its scores.

    Raises:
        NoCandidateError: Nothing satisfies the limits; the message names the nearest miss.
        UnknownNameError: A column, objective or id that does not exist.
        UsageError: The arguments contradict each other, or a column of the test split is named.
    """
    limits = _limits(max, min)
    _refuse_conflicts(limits, prefer, knee, candidate)
    objectives = meta["objectives"]
    if candidate is not None:
        chosen = _named(table, candidate)
        return Pick(candidate, chosen, "It was asked for by its id.", neighbours(table, meta, chosen))
    cost, score = axes(objectives)
    everyone = _rankable(table, objectives)
    bounds = _merged(meta.get("limits") or {}, limits)
    rows = everyone[feasible(everyone, bounds)]
    if not len(rows):
        raise NoCandidateError(_nearest_miss(everyone, bounds))
    wanted = _objective(meta, prefer) if prefer else None
    if knee or not (wanted or limits):
        chosen, reason = _default(rows, meta, knee)
    else:
        if wanted is None:
            kinds = {record["name"]: record["kind"] for record in _records(meta)}
            wanted = cost if all(kinds.get(name) == "score" for name in limits) else score
        chosen = _best(rows, wanted, objectives)
        reason = f"{_superlative(wanted)} among {_crowd(len(rows), bounds)}."
    return Pick(str(chosen["id"]), chosen, reason, neighbours(table, meta, chosen, bounds))


def neighbours(
    table: pd.DataFrame, meta: Mapping[str, Any], row: Mapping[str, Any], limits: Limits | None = None
) -> tuple[Neighbour, ...]:
    """Return the next cheaper and the next better candidate on the front, as exchange rates.

    The next cheaper is the best-scored among the cheaper ones, the next better the cheapest among the better ones.

    Args:
        table: Candidates.
        meta: What the study says about the run.
        row: The candidate to compare with.
        limits: Limits that the neighbours keep; those of the run by default.
    """
    objectives = meta["objectives"]
    cost, score = axes(objectives)
    if not (finite(row[cost["name"]]) and finite(row[score["name"]])):
        return ()
    front = pareto_front(
        _rankable(table, objectives), objectives, (meta.get("limits") or {}) if limits is None else limits
    )
    sign = 1.0 if score["direction"] == "maximize" else -1.0
    gain = (front[score["name"]] - row[score["name"]]) * sign
    cheaper = front[(front[cost["name"]] < row[cost["name"]]) & (gain <= 0)]
    better = front[gain > 0]
    found = []
    if len(cheaper):
        found.append(_exchange("cheaper", _best(cheaper, score, objectives), row, cost, score))
    if len(better):
        found.append(_exchange("better", _best(better, cost, objectives), row, cost, score))
    return tuple(found)


def _limits(most: Mapping[str, float], least: Mapping[str, float]) -> dict[str, dict[str, float]]:
    limits: dict[str, dict[str, float]] = {}
    for bound, asked in (("max", most), ("min", least)):
        for name, value in asked.items():
            if not finite(value):
                raise UsageError(f"the limit {bound} {name}={value!r} is no finite number")
            if name.endswith("_test"):
                raise UsageError(f"'{name}' is a test score: the test split is read after the choice, never for it")
            limits.setdefault(name, {})[bound] = float(value)
    for name, bounds in limits.items():
        if len(bounds) == 2 and bounds["min"] > bounds["max"]:
            raise UsageError(
                f"the limits on '{name}' exclude each other: at least {_plain(bounds['min'])}, "
                f"at most {_plain(bounds['max'])}"
            )
    return limits


def _merged(declared: Limits, asked: Limits) -> dict[str, dict[str, float]]:
    names = dict.fromkeys([*declared, *asked])
    return {name: {**declared.get(name, {}), **asked.get(name, {})} for name in names}


def _refuse_conflicts(limits: Limits, prefer: str | None, knee: bool, candidate: str | None) -> None:
    if candidate is not None and (limits or prefer or knee):
        raise UsageError("a candidate named by its id leaves nothing to choose: drop the limits, prefer and knee")
    if knee and prefer:
        raise UsageError("knee and prefer are two ways to choose: use one of them")


def _records(meta: Mapping[str, Any]) -> list[Objective]:
    return [*meta["objectives"], *meta.get("all_objectives", [])]


def _objective(meta: Mapping[str, Any], name: str) -> Objective:
    for record in _records(meta):
        if record["name"] == name:
            return record
    if name.endswith("_test"):
        raise UsageError(f"'{name}' is a test score: the test split is read after the choice, never for it")
    known = [record["name"] for record in _records(meta)]
    raise UnknownNameError(f"unknown objective '{name}': {did_you_mean(name, dict.fromkeys(known))}")


def _named(table: pd.DataFrame, name: str) -> dict[str, Any]:
    ids = [str(value) for value in table["id"]] if "id" in table else []
    if name not in ids:
        hint = did_you_mean(name, ids)
        if len(hint) > 100:
            hint = f"the table has {len(ids):,}, the first is {ids[0]}"
        raise UnknownNameError(f"unknown candidate '{name}': {hint}")
    return _row(table, ids.index(name))


def _row(table: pd.DataFrame, position: int) -> dict[str, Any]:
    values = {str(name): table[name].iloc[position] for name in table.columns}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _rankable(table: pd.DataFrame, objectives: list[Objective]) -> pd.DataFrame:
    """Return the rows that may be chosen: fully trained, finite, and better than the reference score."""
    if not len(table):
        raise NoCandidateError("the run has no candidate yet")
    rows = full_fidelity(table)
    for objective in objectives:
        rows = rows[np.isfinite(numbers(rows, objective["name"]))]
    score = axes(objectives)[1]
    if score["kind"] != "score":
        return rows
    values, worst = numbers(rows, score["name"]), float(score["box"][0])
    alive: pd.DataFrame = rows[values > worst if score["direction"] == "maximize" else values < worst]
    return alive


def _best(rows: pd.DataFrame, objective: Objective, objectives: list[Objective]) -> dict[str, Any]:
    values = numbers(rows, objective["name"])
    best = values.max() if objective["direction"] == "maximize" else values.min()
    if not np.isfinite(best):
        raise NoCandidateError(f"no candidate has a finite {objective['name']}")
    return _row(by_cost(rows[values == best], objectives), 0)


def _default(rows: pd.DataFrame, meta: Mapping[str, Any], knee: bool) -> tuple[dict[str, Any], str]:
    objectives = meta["objectives"]
    cost, score = axes(objectives)
    teacher = meta.get("teacher") or {}
    goal = teacher.get("scores", {}).get("select_val", {}).get(score["name"])
    drop = (meta.get("pick") or {}).get("max_drop")
    opening = "The knee of the front"
    if not knee and finite(goal) and finite(drop):
        sign = 1.0 if score["direction"] == "maximize" else -1.0
        # A hair of slack: 0.98 - 0.01 must not refuse 0.97.
        near = rows[(numbers(rows, score["name"]) - goal) * sign >= -drop - 1e-9]
        within = f"within {gap(drop, score)} of the teacher's {label(score['name'])}"
        searched, column = teacher["scores"].get("search_val", {}).get(score["name"]), f"{score['name']}_search"
        if finite(searched) and column in near:
            near = near[(numbers(near, column) - searched) * sign >= -drop - 1e-9]
            within += " on both validation splits"
        if len(near):
            chosen = _best(near, cost, objectives)
            both = f"{show(chosen[score['name']], score)} against {show(goal, score)}"
            there = teacher.get("costs", {}).get(cost["name"])
            saving = f", with {compare(chosen[cost['name']], there, cost['name'])}" if finite(there) else ""
            return chosen, f"The cheapest candidate {within} ({both}){saving}."
        opening = f"No candidate is {within}, so this is the knee of the front"
    name = knee_of(pareto_front(rows, objectives), objectives)
    return _named(rows, name), f"{opening}: the point farthest from the line between the front's two ends."


def _superlative(record: Objective) -> str:
    least = "fewest" if is_counted(record["name"]) else "lowest"
    return f"The {'highest' if record['direction'] == 'maximize' else least} {label(record['name'])}"


def _crowd(count: int, bounds: Limits) -> str:
    text = " and ".join(_conditions(bounds))
    if count == 1:
        return f"one candidate with {text}" if text else "one candidate"
    return f"the {count:,} candidates with {text}" if text else f"all {plural(count, 'candidate')}"


def _conditions(bounds: Limits) -> Iterable[str]:
    for name, limit in bounds.items():
        for bound, value in limit.items():
            yield f"{name} {'<=' if bound == 'max' else '>='} {_plain(value)}"


def _nearest_miss(rows: pd.DataFrame, bounds: Limits) -> str:
    """Say which limit fails, nearest first, and what would have met it."""
    if not len(rows):
        return "no fully trained candidate is finite and better than the reference score: nothing can be recommended"
    misses, shortfalls = [], []
    for name, limit in bounds.items():
        values = numbers(rows, name)
        if not np.isfinite(values).any():
            return f"no candidate has a finite {name}"
        for bound, value in limit.items():
            over = (values - value if bound == "max" else value - values) / (abs(value) or 1.0)
            shortfalls.append(over)
            if not (over <= 0).any():
                nearest = _row(rows, int(np.nanargmin(over)))
                extreme = "smallest" if bound == "max" else "largest"
                condition = next(iter(_conditions({name: {bound: value}})))
                text = f"{condition}; the {extreme} is {_plain(nearest[name])} ({nearest['id']})"
                misses.append((float(over.min()), text))
    if misses:
        return "no candidate has " + "; none has ".join(text for _, text in sorted(misses))
    worst = pd.concat(shortfalls, axis=1).max(axis=1, skipna=False)
    if not np.isfinite(worst).any():
        return f"no candidate has all of {', '.join(bounds)}"
    nearest = _row(rows, int(np.nanargmin(worst)))
    there = f"{nearest['id']} ({', '.join(f'{name} {_plain(nearest[name])}' for name in bounds)})"
    return f"no candidate has {' and '.join(_conditions(bounds))} together; the nearest is {there}"


def _exchange(
    kind: Literal["cheaper", "better"],
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    cost: Objective,
    score: Objective,
) -> Neighbour:
    change = there[score["name"]] - here[score["name"]]
    saving = compare(there[cost["name"]], here[cost["name"]], cost["name"])
    points = f"{gap(change, score)} of {label(score['name'])}"
    if change == 0:
        text = f"{there['id']} has {saving} at the same {label(score['name'])}"
    elif kind == "cheaper":
        text = f"{there['id']} has {saving} and loses {points}"
    else:
        text = f"{there['id']} gains {points} and has {saving}"
    ratio = there[cost["name"]] / here[cost["name"]] if here[cost["name"]] else float("inf")
    return Neighbour(kind, str(there["id"]), float(ratio), float(change), text)


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.6g}"
