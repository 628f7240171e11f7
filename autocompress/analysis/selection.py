"""One candidate out of the table, with the reason for it and what its neighbours on the front would cost.

Scores are those on select_val; the default choice must hold on search_val too. The test split is read once, after the
choice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import (
    axes,
    feasible,
    full_fidelity,
    knee as knee_of,
    numbers,
    pareto_front,
)
from autocompress.analysis.query import where as where
from autocompress.analysis.ranking import (
    Neighbour as Neighbour,
    best_of,
    neighbours as neighbours,
    rankable,
    row_at,
)
from autocompress.analysis.significance import Ties, ties
from autocompress.analysis.simulated import simulated
from autocompress.core.formatting import (
    compare_costs,
    format_difference,
    format_plural,
    format_value,
    is_counted,
    is_finite,
    label_column,
)
from autocompress.core.run_info import Limits, ObjectiveSpec, RunInfo
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError, did_you_mean

# A hair of it: 0.98 - 0.01 must not refuse 0.97.
SLACK = 1e-9
_NO_BOUNDS: Mapping[str, float] = MappingProxyType({})
_CHEAPEST = "The cheapest candidate"
_SPLITS = (("select_val", ""), ("search_val", "_search"))
_SPLIT_NAMES = {"select_val": "selection split", "search_val": "search split"}


@dataclass(frozen=True)
class Pick:
    """The chosen candidate.

    Attributes:
        id: For example ``t12c7``.
        row: Its row of the table.
        reason: One sentence.
        neighbours: The next cheaper and the next better candidate on the front, where there are any.
        binding: A sentence for each limit without which another one would have been chosen.
        ties: Who on the front is statistically tied with it, by which test; None if there is no test.
        simulated: What of it has no native kernel, such as ``4-bit weights``; empty if all is native.
    """

    id: str
    row: Mapping[str, Any]
    reason: str
    neighbours: tuple[Neighbour, ...] = ()
    binding: tuple[str, ...] = ()
    ties: Ties | None = None
    simulated: str = ""


def pick(
    table: pd.DataFrame,
    info: RunInfo,
    *,
    max: Mapping[str, float] = _NO_BOUNDS,
    min: Mapping[str, float] = _NO_BOUNDS,
    prefer: str | None = None,
    knee: bool = False,
    candidate: str | None = None,
) -> Pick:
    """Return the best candidate for what is asked, among fully trained candidates of the search.

    Without arguments: the cheapest candidate whose score lies within ``info.max_drop`` of the teacher's on
    both validation splits (the cheapest of hundreds on one split is too often a lucky one); if there is none, the
    cheapest within as much of the one that comes nearest; without a teacher's score, the knee of the front. With
    limits: the best by ``prefer``, which is by default the first score if a cost is limited,
    and the first cost if only scores are. Ties go to the cheaper one, then to the first id. The limits of the run hold
    too, unless the same bound is given here. A candidate no better than the declared reference score (a dead or
    constant model) is never chosen, unless by its id.

    Args:
        table: Candidates, as the study returns them.
        info: Description of the run: objectives, limits, teacher.
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
    objectives = info.objectives
    if candidate is not None:
        chosen = _named(table, candidate)
        return _explained(table, info, chosen, "Selected by its id.", info.limits)
    cost, score = axes(objectives)
    everyone = rankable(table, objectives)
    bounds = _merged(info.limits, limits)
    rows = everyone[feasible(everyone, bounds)]
    if not len(rows):
        raise NoCandidateError(_nearest_miss(everyone, bounds))
    wanted = _objective(info, prefer) if prefer else None
    if knee or not (wanted or limits):
        chosen, reason = _default(rows, info, knee)

        def again(rows: pd.DataFrame) -> dict[str, Any]:
            return _default(rows, info, knee)[0]
    else:
        if wanted is None:
            kinds = {record.name: record.kind for record in _records(info)}
            wanted = cost if all(kinds.get(name) == "score" for name in limits) else score
        best = wanted
        chosen = best_of(rows, best, objectives)
        reason = f"{_superlative(best)} among {_crowd(len(rows), bounds)}."

        def again(rows: pd.DataFrame) -> dict[str, Any]:
            return best_of(rows, best, objectives)

    binding = _binding(everyone, bounds, chosen, again, objectives)
    if not (knee or wanted or limits):
        binding += _binding_drop(rows, info, chosen)
    return _explained(table, info, chosen, reason, bounds, tuple(binding))


def _explained(
    table: pd.DataFrame,
    info: RunInfo,
    chosen: Mapping[str, Any],
    reason: str,
    bounds: Limits,
    binding: tuple[str, ...] = (),
) -> Pick:
    objectives = info.objectives
    front = pareto_front(full_fidelity(table), objectives, bounds)
    own = table[table["id"] == chosen["id"]].head(1)
    near = tuple(_with_objection(each, table, info, reason) for each in neighbours(table, info, chosen, bounds))
    return Pick(str(chosen["id"]), chosen, reason, near, binding, ties(front, chosen, info), simulated(own)[0])


def _with_objection(neighbour: Neighbour, table: pd.DataFrame, info: RunInfo, reason: str) -> Neighbour:
    """Say of a cheaper neighbour why the default choice did not take it."""
    if neighbour.cost_ratio >= 1 or not reason.startswith(_CHEAPEST):
        return neighbour
    missed = _missed_drops(_named(table, neighbour.id), info)
    if not missed:
        return neighbour
    allowed = format_difference(info.max_drop or 0.0, axes(info.objectives)[1])
    text = f"{neighbour.text}, but loses {' and '.join(missed)}; at most {allowed} are allowed"
    return replace(neighbour, text=text)


def _missed_drops(row: Mapping[str, Any], info: RunInfo) -> list[str]:
    """Return the losses of a row that exceed the allowed loss, one text per validation split."""
    score = axes(info.objectives)[1]
    drop = info.max_drop
    found = []
    for split, goal, column in _goals(info):
        lost = (goal - row[column]) * (1.0 if score.direction == "maximize" else -1.0)
        if is_finite(drop) and lost > drop + SLACK:
            found.append(
                f"{format_difference(lost, score)} on the {_SPLIT_NAMES[split]} ({format_value(row[column], score)} against the teacher's "
                f"{format_value(goal, score)})"
            )
    return found


def _goals(info: RunInfo) -> list[tuple[str, float, str]]:
    """Return (split, the teacher's score there, the column of the candidates' score there)."""
    name = axes(info.objectives)[1].name
    scores = info.teacher.scores
    known = [(split, scores.get(split, {}).get(name), f"{name}{end}") for split, end in _SPLITS]
    return [(split, float(goal), column) for split, goal, column in known if is_finite(goal)]


def _binding(
    everyone: pd.DataFrame,
    bounds: Limits,
    chosen: Mapping[str, Any],
    again: Callable[[pd.DataFrame], Mapping[str, Any]],
    objectives: Sequence[ObjectiveSpec],
) -> list[str]:
    """Return a sentence for each bound without which another candidate would be chosen."""
    found = []
    for name, limit in bounds.items():
        for bound, value in limit.items():
            rest = {
                other: {b: v for b, v in both.items() if (other, b) != (name, bound)} for other, both in bounds.items()
            }
            instead = again(everyone[feasible(everyone, rest)])
            if instead["id"] != chosen["id"]:
                condition = next(iter(_conditions({name: {bound: value}})))
                found.append(f"{condition}; without it, {_figures(instead, objectives)} would be chosen")
    return found


def _binding_drop(rows: pd.DataFrame, info: RunInfo, chosen: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each validation split without which a cheaper candidate would be chosen by default."""
    goals = _goals(info)
    drop = info.max_drop
    if not goals or not is_finite(drop) or len(goals) < len(_SPLITS):
        return []
    objectives = info.objectives
    cost, score = axes(objectives)
    found = []
    for split, _, column in goals:
        others = [goal for goal in goals if goal[0] != split]
        near = _near(rows, others, drop, score)
        if column not in rows or not len(near):
            continue
        instead = best_of(near, cost, objectives)
        if instead["id"] != chosen["id"] and instead[cost.name] < chosen[cost.name]:
            found.append(
                f"at most {format_difference(drop, score)} lost on the {_SPLIT_NAMES[split]}; without it, "
                f"{_figures(instead, objectives)} would be chosen ({format_value(instead[column], score)} on that split)"
            )
    return found


def _near(
    rows: pd.DataFrame, goals: Iterable[tuple[str, float, str]], drop: float, score: ObjectiveSpec
) -> pd.DataFrame:
    """Return the rows that lose no more than ``drop`` on the splits of ``goals``."""
    return rows[_losses(rows, goals, score) <= drop + SLACK]


def _losses(rows: pd.DataFrame, goals: Iterable[tuple[str, float, str]], score: ObjectiveSpec) -> "pd.Series[float]":
    """Return what each row loses against the teacher on the split where it loses most."""
    sign = 1.0 if score.direction == "maximize" else -1.0
    worst = pd.Series(-np.inf, index=rows.index)
    for _, goal, column in goals:
        if column in rows:
            loss = sign * (goal - numbers(rows, column))
            worst = worst.where(worst > loss, loss)
    return worst


def _against(chosen: Mapping[str, Any], info: RunInfo) -> str:
    """Return a choice's score beside the teacher's, and what it saves."""
    cost, score = axes(info.objectives)
    goal = info.teacher.scores["select_val"][score.name]
    there = info.teacher.costs.get(cost.name)
    saving = f", with {compare_costs(chosen[cost.name], there, cost.name)}" if is_finite(there) else ""
    return f"({format_value(chosen[score.name], score)} against {format_value(goal, score)}){saving}"


def _figures(row: Mapping[str, Any], objectives: Sequence[ObjectiveSpec]) -> str:
    cost, score = axes(objectives)
    return f"{row['id']} ({format_value(row[score.name], score)}, {format_value(row[cost.name], cost)})"


def _limits(most: Mapping[str, float], least: Mapping[str, float]) -> dict[str, dict[str, float]]:
    limits: dict[str, dict[str, float]] = {}
    for bound, asked in (("max", most), ("min", least)):
        for name, value in asked.items():
            if not is_finite(value):
                raise UsageError(f"the limit {bound} {name}={value!r} is not a finite number")
            if name.endswith("_test"):
                raise UsageError(f"'{name}' is a test score: candidates cannot be chosen by their scores on the test split")
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
        raise UsageError("a candidate id cannot be combined with limits, prefer or knee")
    if knee and prefer:
        raise UsageError("use either knee or prefer, not both")


def _records(info: RunInfo) -> list[ObjectiveSpec]:
    return [*info.objectives, *info.all_objectives]


def _objective(info: RunInfo, name: str) -> ObjectiveSpec:
    for record in _records(info):
        if record.name == name:
            return record
    if name.endswith("_test"):
        raise UsageError(f"'{name}' is a test score: candidates cannot be chosen by their scores on the test split")
    known = [record.name for record in _records(info)]
    raise UnknownNameError(f"unknown objective '{name}': {did_you_mean(name, dict.fromkeys(known))}")


def _named(table: pd.DataFrame, name: str) -> dict[str, Any]:
    ids = [str(value) for value in table["id"]] if "id" in table else []
    if name not in ids:
        hint = did_you_mean(name, ids)
        if len(hint) > 100:
            hint = f"the table has {len(ids):,}, the first is {ids[0]}"
        raise UnknownNameError(f"unknown candidate '{name}': {hint}")
    return row_at(table, ids.index(name))


def _default(rows: pd.DataFrame, info: RunInfo, knee: bool) -> tuple[dict[str, Any], str]:
    objectives = info.objectives
    cost, score = axes(objectives)
    goal = info.teacher.score(score.name)
    drop = info.max_drop
    if not knee and is_finite(goal) and is_finite(drop):
        near = _near(rows, _goals(info), drop, score)
        within = f"within {format_difference(drop, score)} of the teacher's {label_column(score.name)}"
        if len(_goals(info)) > 1 and f"{score.name}_search" in rows:
            within += " on both validation splits"
        if len(near):
            chosen = best_of(near, cost, objectives)
            return chosen, f"{_CHEAPEST} {within} {_against(chosen, info)}."
        losses = _losses(rows, _goals(info), score)
        chosen = best_of(rows[losses <= losses.min() + drop + SLACK], cost, objectives)
        return chosen, (
            f"No candidate is {within}: the best loses {format_difference(float(losses.min()), score)}, and this is the cheapest "
            f"within {format_difference(drop, score)} of it {_against(chosen, info)}."
        )
    name = knee_of(pareto_front(rows, objectives), objectives)
    return _named(rows, name), "The knee of the front: the point farthest from the line between the front's two ends."


def _superlative(record: ObjectiveSpec) -> str:
    least = "fewest" if is_counted(record.name) else "lowest"
    return f"The {'highest' if record.is_maximized else least} {label_column(record.name)}"


def _crowd(count: int, bounds: Limits) -> str:
    text = " and ".join(_conditions(bounds))
    if count == 1:
        return f"one candidate with {text}" if text else "one candidate"
    return f"the {count:,} candidates with {text}" if text else f"all {format_plural(count, 'candidate')}"


def _conditions(bounds: Limits) -> Iterable[str]:
    for name, limit in bounds.items():
        for bound, value in limit.items():
            yield f"{name} {'<=' if bound == 'max' else '>='} {_plain(value)}"


def _nearest_miss(rows: pd.DataFrame, bounds: Limits) -> str:
    """Say which limit fails, nearest first, and what would have met it."""
    if not len(rows):
        return "no fully trained candidate has finite scores better than the reference point: nothing can be recommended"
    misses, shortfalls = [], []
    for name, limit in bounds.items():
        values = numbers(rows, name)
        if not np.isfinite(values).any():
            return f"no candidate has a finite {name}"
        for bound, value in limit.items():
            over = (values - value if bound == "max" else value - values) / (abs(value) or 1.0)
            shortfalls.append(over)
            if not (over <= 0).any():
                nearest = row_at(rows, int(np.nanargmin(over)))
                extreme = "smallest" if bound == "max" else "largest"
                condition = next(iter(_conditions({name: {bound: value}})))
                text = f"{condition}; the {extreme} is {_plain(nearest[name])} ({nearest['id']})"
                misses.append((float(over.min()), text))
    if misses:
        return "no candidate has " + "; none has ".join(text for _, text in sorted(misses))
    worst = pd.concat(shortfalls, axis=1).max(axis=1, skipna=False)
    if not np.isfinite(worst).any():
        return f"no candidate has all of {', '.join(bounds)}"
    nearest = row_at(rows, int(np.nanargmin(worst)))
    there = f"{nearest['id']} ({', '.join(f'{name} {_plain(nearest[name])}' for name in bounds)})"
    return f"no candidate has {' and '.join(_conditions(bounds))} together; the nearest is {there}"


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.6g}"
