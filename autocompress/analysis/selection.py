"""Selection of one candidate, with the ranking, the reason and the exchange rates to its neighbours on the front.

Scores are those on select_val. The default selection certifies the loss against the teacher on both validation splits
together; in a run without stored examples, the observed loss on both of them counts. The test split is read once,
after the selection.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from autocompress.analysis.certification import (
    VALIDATION,
    Certificate,
    PairedLoss,
    certify_loss,
    describe_loss,
    read_loss,
    select_certified,
    select_guaranteed,
)
from autocompress.analysis.latency import describe_simulation
from autocompress.analysis.pareto import (
    find_knee,
    full_fidelity,
    is_feasible,
    numeric_column,
    pareto_front,
    primary_objectives,
    sort_by_cost,
)
from autocompress.analysis.query import UnknownColumnError, filter_rows as filter_rows
from autocompress.analysis.significance import Ties, find_ties
from autocompress.core.formatting import (
    compare_costs,
    format_difference,
    format_plural,
    format_value,
    is_counted,
    is_finite,
    is_measurable,
    label_column,
    parse_quantity,
)
from autocompress.core.run_info import Limits, ObjectiveSpec, RunInfo
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError, did_you_mean

#: Column name to the value of one candidate; pandas does not know the types of columns.
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Neighbour:
    """The next candidate on the front in one direction, with the exchange rate.

    Attributes:
        kind: ``cheaper`` or ``better``.
        id: Id of the neighbour.
        cost_ratio: Cost of the neighbour divided by the cost of the pick.
        score_change: Score of the neighbour minus the score of the pick.
        text: Exchange rate in words: ``t3c2 has 2.1x fewer effective FLOPs and loses 0.4 points of accuracy``.
    """

    kind: Literal["cheaper", "better"]
    id: str
    cost_ratio: float
    score_change: float
    text: str


def find_neighbours(
    table: pd.DataFrame, info: RunInfo, row: Row, limits: Limits | None = None
) -> tuple[Neighbour, ...]:
    """Return the next cheaper and the next better candidate on the front, as exchange rates.

    The next cheaper candidate has the best score among the cheaper ones, the next better one the lowest cost among the
    better ones.

    Args:
        table: Candidates.
        info: Description of the run.
        row: Candidate to compare with.
        limits: Limits of the neighbours; those of the run by default.
    """
    objectives = info.objectives
    cost, score = primary_objectives(objectives)
    if not (is_finite(row[cost.name]) and is_finite(row[score.name])):
        return ()
    front = pareto_front(select_rankable(table, objectives), objectives, info.limits if limits is None else limits)
    # A positive gain is an improvement in either direction of the score.
    sign = 1.0 if score.direction == "maximize" else -1.0
    gain = (front[score.name] - row[score.name]) * sign
    cheaper = front[(front[cost.name] < row[cost.name]) & (gain <= 0)]
    better = front[gain > 0]
    exchanges = []
    if len(cheaper):
        exchanges.append(_describe_exchange("cheaper", best_of(cheaper, score, objectives), row, cost, score))
    if len(better):
        exchanges.append(_describe_exchange("better", best_of(better, cost, objectives), row, cost, score))
    return tuple(exchanges)


def select_rankable(table: pd.DataFrame, objectives: Sequence[ObjectiveSpec]) -> pd.DataFrame:
    """Return the rows that may be selected: completely trained, finite, and better than the reference score.

    Baselines may be selected too: where the student without distillation is as good, distillation is not needed.
    """
    if not len(table):
        raise NoCandidateError("the run has no candidate yet")
    mask = pd.Series(True, index=table.index)
    if "role" in table:
        mask &= table["role"].isin(["search", BASELINE])
    if "complete" in table:
        mask &= table["complete"].astype(bool)
    for objective in objectives:
        mask &= np.isfinite(numeric_column(table, objective.name))
    score = primary_objectives(objectives)[1]
    # Without a score among the objectives there is no reference score to be better than.
    if score.kind == "score" and score.bounds is not None:
        values, reference = numeric_column(table, score.name), score.bounds[0]
        mask &= values > reference if score.is_maximized else values < reference
    better: pd.DataFrame = table[mask]
    return better


def select_deployable(rows: pd.DataFrame, info: RunInfo) -> pd.DataFrame:
    """Return the rows whose operations all have kernels on the target of the run; all rows without a target.

    Raises:
        NoCandidateError: Every row is simulated.
    """
    precisions = info.target.precisions
    if not precisions.restricts or not len(rows):
        return rows
    # Marks of the rows themselves: a page may have computed them already.
    simulated = describe_simulation(rows, precisions)
    deployable: pd.DataFrame = rows[[not text for text in simulated]]
    if not len(deployable):
        raise NoCandidateError(
            f"no candidate has kernels on the target {info.target.name} (for example {rows['id'].iloc[0]}: "
            f"{simulated[0]}); search bits that it has, or allow simulated ones with --simulated (simulated=True)"
        )
    return deployable


def best_of(rows: pd.DataFrame, objective: ObjectiveSpec, objectives: Sequence[ObjectiveSpec]) -> Row:
    """Return the best row in one objective; ties go to the cheaper row, then to the first id.

    Raises:
        NoCandidateError: No row has a finite value.
    """
    values = numeric_column(rows, objective.name)
    best = values.max() if objective.direction == "maximize" else values.min()
    if not np.isfinite(best):
        raise NoCandidateError(f"no candidate has a finite {objective.name}")
    return row_at(sort_by_cost(rows[values == best], objectives), 0)


def row_at(table: pd.DataFrame, position: int) -> Row:
    """Return one row as plain Python values."""
    values = ((str(name), table.iat[position, column]) for column, name in enumerate(table.columns))
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values}


def _describe_exchange(
    kind: Literal["cheaper", "better"],
    other: Row,
    pick: Row,
    cost: ObjectiveSpec,
    score: ObjectiveSpec,
) -> Neighbour:
    change = other[score.name] - pick[score.name]
    saving = compare_costs(other[cost.name], pick[cost.name], cost.name)
    points = f"{format_difference(change, score)} of {label_column(score.name)}"
    if not is_measurable(change, pick[score.name], score):
        text = f"{other['id']} has {saving} at the same {label_column(score.name)}"
    elif kind == "cheaper":
        text = f"{other['id']} has {saving} and loses {points}"
    else:
        text = f"{other['id']} gains {points} and has {saving}"
    # A free pick would divide by zero.
    ratio = other[cost.name] / pick[cost.name] if pick[cost.name] else float("inf")
    return Neighbour(kind, str(other["id"]), float(ratio), float(change), text)


#: Role of the student that was trained again without distillation.
BASELINE = "baseline"
# Longer lists of alternatives would hide the first ones.
_MOST_ALTERNATIVES = 3
# Rounding: 0.98 - 0.01 is less than 0.97 in floating point, and must not exclude 0.97.
SLACK = 1e-9
# Limits by column, as numbers or as texts such as "30 KB" and "97%".
Quantities: TypeAlias = Mapping[str, float] | Mapping[str, str] | Mapping[str, float | str]
_NO_BOUNDS: Quantities = MappingProxyType({})
_CHEAPEST = "The cheapest candidate"
_KEEP_TEACHER = "Keep the teacher, unless what is saved is worth this loss."
_SPLITS = (("select_val", ""), ("search_val", "_search"))
_SPLIT_NAMES = {"select_val": "selection split", "search_val": "search split"}


@dataclass(frozen=True)
class Pick:
    """The selected candidate.

    Attributes:
        id: Id such as ``t12c7``.
        row: Row of the candidate in the table.
        reason: Reason of the selection in one sentence.
        neighbours: The next cheaper and the next better candidate on the front, if they exist.
        binding: Active constraints, one sentence each: limits without which another candidate would be selected.
        ties: Front candidates that are statistically tied with it; None if no test applies.
        simulated: Operations without a native kernel, such as ``4-bit weights``; empty if there are none.
        certificate: What the validation examples prove about its loss; None if their scores are not stored.
        rule: Rule that was applied in place of a certificate, and why; empty with a certificate.
        alternatives: The student without distillation, and candidates that are better and no more expensive on
            select_val: one sentence each, with the reason why they were not selected.
    """

    id: str
    row: Row = field(repr=False)
    reason: str
    neighbours: tuple[Neighbour, ...] = ()
    binding: tuple[str, ...] = ()
    ties: Ties | None = None
    simulated: str = ""
    certificate: Certificate | None = None
    rule: str = ""
    alternatives: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        lines = [
            *(f"{step.kind}: {step.text}" for step in self.neighbours),
            *(f"active constraint: {text}" for text in self.binding),
            *(f"alternative: {text}" for text in self.alternatives),
            *([f"simulated: {self.simulated}"] if self.simulated else []),
        ]
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        return f"<p><b>{html.escape(self.id)}</b>: {html.escape(self.reason)}</p><ul>{items}</ul>"


def select_candidate(
    table: pd.DataFrame,
    info: RunInfo,
    *,
    max: Quantities = _NO_BOUNDS,
    min: Quantities = _NO_BOUNDS,
    prefer: str | None = None,
    knee: bool = False,
    candidate: str | None = None,
    simulated: bool = False,
    guarantee: float | None = None,
) -> Pick:
    """Return the best candidate under the given limits, among completely trained candidates of the search.

    Without arguments it is the cheapest candidate that is certified to lose at most ``info.max_drop`` against the
    teacher at ``info.confidence``, on the examples of both validation splits; if there is none, the cheapest of the
    candidates with the smallest certified loss, to a tenth of ``info.max_drop``. In a run without a confidence or
    without stored examples, it is the cheapest whose observed loss is at most ``info.max_drop`` on each validation
    split; if there is none, the cheapest within ``info.max_drop`` of the smallest loss; without a teacher score, the
    knee of the front. Candidates that neither cost less than the teacher nor score better are left out as long as
    there are others. With limits it is the best in ``prefer``, by default the first score if a cost is limited, and
    the first cost if only scores are limited. Ties go to the cheaper candidate, then to the first id. The limits of
    the run hold too, unless the same bound is given here. A candidate that is not better than the reference score (a
    constant model) is selected only by its id. Of a run with a target, candidates without kernels on it are left out.

    Args:
        table: Candidates, as the run store returns them.
        info: Description of the run: objectives, limits, teacher.
        max: Upper bounds by column, for example ``{"effective_flops": 2e6}`` or ``{"bytes": "30 KB"}``.
        min: Lower bounds by column, for example ``{"accuracy": 0.95}`` or ``{"accuracy": "95%"}``.
        prefer: Name of the objective to optimize.
        knee: Whether to select the knee of the front.
        candidate: Id of the candidate to select.
        simulated: Whether candidates without kernels on the target may be selected.
        guarantee: Confidence of fixed-sequence testing along the front, for the cheapest candidate that is certified
            to lose at most ``info.max_drop``.

    Raises:
        NoCandidateError: Nothing satisfies the limits or can be guaranteed; the message names the nearest miss.
        UnknownNameError: A column, objective or id that does not exist.
        UsageError: The arguments contradict each other, or a column of the test split is named.
    """
    limits = _check_limits(max, min)
    _refuse_conflicts(limits, prefer, knee, candidate)
    _check_guarantee(guarantee, info, bool(prefer or knee or candidate))
    _refuse_reversed_limits(limits, info)
    objectives = info.objectives
    if candidate is not None:
        chosen = find_row(table, candidate)
        return _build_pick(table, info, chosen, "Selected by its id.", info.limits)
    cost, score = primary_objectives(objectives)
    rankable = select_rankable(table, objectives)
    rankable = rankable if simulated else select_deployable(rankable, info)
    bounds = _merge_limits(info.limits, limits)
    rows = rankable[is_feasible(rankable, bounds)]
    if not len(rows):
        raise NoCandidateError(_nearest_miss(rankable, bounds) if len(rankable) else describe_unusable(table, score))
    if guarantee is not None:
        return _guarantee_candidate(table, rows, info, guarantee, bounds)
    preferred = _find_objective(info, prefer) if prefer else None
    if knee or not (preferred or limits):
        chosen, reason = _select_default(rows, info, knee)

        def select_again(rows: pd.DataFrame) -> Row:
            return _select_default(rows, info, knee)[0]
    else:
        if preferred is None:
            kinds = {name: objective.kind for name, objective in info.measured.items()}
            # A limit on a cost asks for the best score within it, and limits on scores for the lowest cost.
            preferred = cost if all(kinds.get(name) == "score" for name in limits) else score
        best = preferred
        chosen = best_of(rows, best, objectives)
        reason = f"{_describe_best(best)} among {_describe_count(len(rows), bounds)}."

        def select_again(rows: pd.DataFrame) -> Row:
            return best_of(rows, best, objectives)

    binding = _describe_active_limits(rankable, bounds, chosen, select_again, objectives)
    if knee or preferred or limits:
        return _build_pick(table, info, chosen, reason, bounds, tuple(binding))
    binding += _describe_active_drops(rows, info, chosen)
    certificate, rule = _certify_default(chosen, info)
    picked = _build_pick(table, info, chosen, reason, bounds, tuple(binding))
    return replace(picked, certificate=certificate, rule=rule)


def select_where(table: pd.DataFrame, info: RunInfo, where: str, **rules: Any) -> Pick:
    """Return the candidate that :func:`select_candidate` selects from the candidates that satisfy a filter.

    Args:
        table: Candidates, as the run store returns them.
        info: Description of the run.
        where: Filter, as :func:`autocompress.analysis.query.filter_rows` reads it.
        rules: Further arguments of :func:`select_candidate`.

    Raises:
        NoCandidateError: No candidate satisfies the filter and the rules.
        UsageError: The filter cannot be read, or names a column of the test split.
    """
    tested = [name for name in table.columns if name.endswith("_test")]
    try:
        rows = filter_rows(table.drop(columns=tested), where)
    except UnknownColumnError as error:
        name = next((name for name in tested if where[error.start :].startswith(name)), "")
        if not name:
            raise
        raise _refuse_test_score(name) from None
    if rows.empty:
        raise NoCandidateError(f"none of {format_plural(len(table), 'candidate')} satisfies the filter: {where}")
    picked = select_candidate(table.loc[rows.index], info, **rules)
    return replace(picked, reason=f"{picked.reason} Only candidates with {where} were considered.")


def check_max_drop(value: float) -> float:
    """Return an allowed loss.

    Raises:
        UsageError: It is negative or not a finite number.
    """
    if not is_finite(value) or value < 0:
        raise UsageError(f"max_drop is {value!r}; give a loss of at least 0, for example 0.01 for a point of accuracy")
    return value


def _check_guarantee(guarantee: float | None, info: RunInfo, has_choice: bool) -> None:
    if guarantee is None:
        return
    if not (is_finite(guarantee) and 0.5 < guarantee < 1):
        raise UsageError(f"the guarantee {guarantee!r} is no confidence; give a number between 0.5 and 1, such as 0.9")
    if has_choice:
        raise UsageError("a guarantee cannot be combined with a candidate id, prefer or knee")
    if not is_finite(info.max_drop) or info.max_drop == 0:
        raise UsageError("a guarantee needs an allowed loss above 0; give one, for example max_drop=0.01")


def _guarantee_candidate(
    table: pd.DataFrame, rows: pd.DataFrame, info: RunInfo, confidence: float, bounds: Limits
) -> Pick:
    """Return the cheapest candidate certified by fixed-sequence testing.

    Raises:
        NoCandidateError: No candidate is certified, or the run stored no examples.
    """
    score, drop = primary_objectives(info.objectives)[1], info.max_drop or 0.0
    selected = select_guaranteed(rows, info, drop, confidence)
    if selected is None:
        raise NoCandidateError(f"nothing can be guaranteed: {_explain_missing_examples(info)}")
    splits = ("select_val",)
    certificate = certify_loss(selected.loss, drop, confidence, splits, is_guaranteed=True)
    if selected.row is None:
        raise NoCandidateError(
            f"no candidate is guaranteed to lose at most {format_difference(drop, score)} at {confidence:.0%} "
            f"confidence. {selected.first} has the best score on search_val. {certificate.describe(score)}"
        )
    reason = (
        f"The cheapest candidate of the front that is guaranteed to lose at most {format_difference(drop, score)} of "
        f"{label_column(score.name)} at {confidence:.0%} confidence {_compare_with_teacher(selected.row, info)}; "
        f"{format_plural(selected.tested, 'candidate')} tested in a fixed sequence."
    )
    return replace(_build_pick(table, info, selected.row, reason, bounds), certificate=certificate)


def _certify_default(chosen: Row, info: RunInfo) -> tuple[Certificate | None, str]:
    """Return the certificate of the default selection, or the rule that was applied instead."""
    if not is_finite(info.max_drop) or not is_finite(info.teacher.score(primary_objectives(info.objectives)[1].name)):
        return None, ""
    loss = read_loss(chosen, info) if info.confidence is not None else None
    if loss is not None:
        return certify_loss(loss, info.max_drop, info.confidence or 0.0), ""
    rule = "the observed loss on each validation split counts, and nothing is certified"
    reason = "pick.confidence is null" if _has_examples(info) else _explain_missing_examples(info)
    return None, f"{reason}: {rule}"


def _has_examples(info: RunInfo) -> bool:
    return all(info.teacher.examples.get(split) for split in VALIDATION)


def _explain_missing_examples(info: RunInfo) -> str:
    if not _has_examples(info):
        return "the run is of an earlier version, which stored no scores of single examples"
    return "no candidate has stored scores of single examples"


def _build_pick(
    table: pd.DataFrame,
    info: RunInfo,
    chosen: Row,
    reason: str,
    bounds: Limits,
    binding: tuple[str, ...] = (),
) -> Pick:
    objectives = info.objectives
    front = pareto_front(full_fidelity(table), objectives, bounds)
    own = table[table["id"] == chosen["id"]].head(1)
    neighbours = find_neighbours(table, info, chosen, bounds)
    explained = tuple(_with_objection(neighbour, table, info, reason) for neighbour in neighbours)
    ties = find_ties(front, chosen, info)
    (simulated,) = describe_simulation(own, info.target.precisions)
    loss = read_loss(chosen, info) if info.confidence is not None else None
    certificate = None if loss is None else certify_loss(loss, None, info.confidence or 0.0)
    alternatives = tuple(_describe_alternatives(table, info, chosen, bounds))
    return Pick(
        str(chosen["id"]), chosen, reason, explained, binding, ties, simulated, certificate, alternatives=alternatives
    )


def _describe_alternatives(table: pd.DataFrame, info: RunInfo, chosen: Row, bounds: Limits) -> Iterable[str]:
    """Yield a sentence for the baseline without distillation and for each candidate that dominates the selected one."""
    cost, score = primary_objectives(info.objectives)
    if not (is_finite(chosen[cost.name]) and is_finite(chosen[score.name])):
        return
    rows = select_rankable(table, info.objectives)
    rows = rows[is_feasible(rows, bounds) & (rows["id"] != chosen["id"])]
    gain = (numeric_column(rows, score.name) - chosen[score.name]) * (1.0 if score.is_maximized else -1.0)
    saved = chosen[cost.name] - numeric_column(rows, cost.name)
    dominating = rows[(gain >= 0) & (saved >= 0) & ((gain > 0) | (saved > 0))]
    baselines = rows[rows["role"] == BASELINE] if "role" in rows else rows.iloc[:0]
    for index in range(len(baselines)):
        row = row_at(baselines, index)
        label = info.baselines.get(str(row["id"]), "baseline")
        text = f"{label}: {_describe_row(row, info.objectives)}"
        if row["id"] in set(dominating["id"]):
            yield f"{text}; {_explain_rejection(row, info, chosen)}"
        else:
            yield f"{text}, which {_describe_change(row, chosen, score)}"
    others = sort_by_cost(dominating[~dominating["id"].isin(baselines["id"])], info.objectives)
    for index in range(min(len(others), _MOST_ALTERNATIVES)):
        row = row_at(others, index)
        yield (
            f"{_describe_row(row, info.objectives)} is no more expensive and at least as good on the selection split; "
            f"{_explain_rejection(row, info, chosen)}"
        )


def _describe_change(row: Row, chosen: Row, score: ObjectiveSpec) -> str:
    """Return what a candidate gains or loses in the first score against the selected one."""
    change = (row[score.name] - chosen[score.name]) * (1.0 if score.is_maximized else -1.0)
    if not is_measurable(change, chosen[score.name], score):
        return f"has the same {label_column(score.name)}"
    verb = "gains" if change > 0 else "loses"
    return f"{verb} {format_difference(change, score)} of {label_column(score.name)}"


def _explain_rejection(row: Row, info: RunInfo, chosen: Row) -> str:
    """Return why a candidate that dominates the selected one was not selected, and which other cost is higher."""
    reason, higher = _find_objection(row, info), _list_higher_costs(row, info, chosen)
    return f"{reason}; it has {' and '.join(higher)}" if higher else reason


def _list_higher_costs(row: Row, info: RunInfo, chosen: Row) -> list[str]:
    """Return the costs besides the first in which a candidate is worse than the selected one: objectives and bytes."""
    first = primary_objectives(info.objectives)[0]
    names = dict.fromkeys([*(record.name for record in info.objectives if record.kind == "cost"), "bytes"])
    costs = [info.measured[name] for name in names if name in info.measured and name != first.name]
    texts = []
    for cost in costs:
        theirs, ours = row.get(cost.name), chosen.get(cost.name)
        if is_finite(theirs) and is_finite(ours) and theirs > ours:
            name = label_column(cost.name)
            texts.append(f"{format_value(theirs, cost)} against {format_value(ours, cost)} ({name})")
    return texts


def _find_objection(row: Row, info: RunInfo) -> str:
    """Return the rule by which a candidate was not selected."""
    (simulated,) = describe_simulation(pd.DataFrame([row]), info.target.precisions)
    if simulated and info.target.precisions.restricts:
        return f"it has no kernel on the target {info.target.name} ({simulated})"
    score, drop = primary_objectives(info.objectives)[1], info.max_drop
    loss = read_loss(row, info) if info.confidence is not None else None
    if loss is not None and is_finite(drop):
        bound = loss.upper_bound(info.confidence or 0.0)
        if bound > drop + SLACK:
            return f"its loss is certified for {format_difference(bound, score, drop)} only, on both validation splits"
    elif violations := _drop_violations(row, info):
        return f"it loses {' and '.join(violations)}"
    return "it was not selected because another rule was asked for"


def _with_objection(neighbour: Neighbour, table: pd.DataFrame, info: RunInfo, reason: str) -> Neighbour:
    """Return the neighbour, with the reason why the default selection rejects it if it is cheaper."""
    # Only the default selection rejects cheaper candidates because of their loss.
    if neighbour.cost_ratio >= 1 or not reason.startswith(_CHEAPEST):
        return neighbour
    row = find_row(table, neighbour.id)
    allowed = format_difference(info.max_drop or 0.0, primary_objectives(info.objectives)[1])
    verb = "is" if allowed.endswith("point") else "are"
    loss = read_loss(row, info) if info.confidence is not None else None
    if loss is not None:
        score = primary_objectives(info.objectives)[1]
        bound = loss.upper_bound(info.confidence or 0.0)
        if bound <= (info.max_drop or 0.0) + SLACK:
            return neighbour
        limit = format_difference(bound, score, info.max_drop)
        text = f"{neighbour.text}, but is certified for {limit} of loss only; at most {allowed} {verb} allowed"
        return replace(neighbour, text=text)
    violations = _drop_violations(row, info)
    if not violations:
        return neighbour
    text = f"{neighbour.text}, but loses {' and '.join(violations)}; at most {allowed} {verb} allowed"
    return replace(neighbour, text=text)


def _drop_violations(row: Row, info: RunInfo) -> list[str]:
    """Return the losses of a row that exceed the allowed loss, one text per validation split."""
    score = primary_objectives(info.objectives)[1]
    drop = info.max_drop
    sentences = []
    for split, goal, column in _teacher_goals(info):
        loss = (goal - row[column]) * (1.0 if score.is_maximized else -1.0)
        if is_finite(drop) and loss > drop + SLACK:
            sentences.append(
                f"{format_difference(loss, score)} on the {_SPLIT_NAMES[split]} "
                f"({format_value(row[column], score)} against the teacher's {format_value(goal, score)})"
            )
    return sentences


def _teacher_goals(info: RunInfo) -> list[tuple[str, float, str]]:
    """Return (split, score of the teacher, column of the score of candidates) for each validation split."""
    name = primary_objectives(info.objectives)[1].name
    goals = [(split, info.teacher.score(name, split), f"{name}{end}") for split, end in _SPLITS]
    return [(split, goal, column) for split, goal, column in goals if is_finite(goal)]


def _describe_active_limits(
    rankable: pd.DataFrame,
    bounds: Limits,
    chosen: Row,
    select_again: Callable[[pd.DataFrame], Row],
    objectives: Sequence[ObjectiveSpec],
) -> list[str]:
    """Return the active limits: a sentence for each bound without which another candidate would be selected."""
    sentences = []
    for name, limit in bounds.items():
        for bound, value in limit.items():
            rest = {
                column: {end: number for end, number in ends.items() if (column, end) != (name, bound)}
                for column, ends in bounds.items()
            }
            alternative = select_again(rankable[is_feasible(rankable, rest)])
            if alternative["id"] != chosen["id"]:
                condition = next(iter(_format_limits({name: {bound: value}})))
                sentences.append(f"{condition}; without it, {_describe_row(alternative, objectives)} would be chosen")
    return sentences


def _describe_active_drops(rows: pd.DataFrame, info: RunInfo, chosen: Row) -> list[str]:
    """Return a sentence for each validation split without which the default would be a cheaper candidate."""
    goals = _teacher_goals(info)
    drop = info.max_drop
    if not goals or not is_finite(drop) or len(goals) < len(_SPLITS):
        return []
    if info.confidence is not None and read_loss(chosen, info) is not None:
        return _describe_active_confidence(rows, info, chosen)
    objectives = info.objectives
    cost, score = primary_objectives(objectives)
    sentences = []
    for split, _, column in goals:
        others = [goal for goal in goals if goal[0] != split]
        near = _rows_within_drop(rows, others, drop, score)
        if column not in rows or not len(near):
            continue
        alternative = best_of(near, cost, objectives)
        if alternative["id"] != chosen["id"] and alternative[cost.name] < chosen[cost.name]:
            sentences.append(
                f"at most {format_difference(drop, score)} lost on the {_SPLIT_NAMES[split]}; without it, "
                f"{_describe_row(alternative, objectives)} would be chosen "
                f"({format_value(alternative[column], score)} on that split)"
            )
    return sentences


def _describe_active_confidence(rows: pd.DataFrame, info: RunInfo, chosen: Row) -> list[str]:
    """Return a sentence if another candidate would be selected by the observed loss instead of its upper bound."""
    objectives, drop = info.objectives, info.max_drop or 0.0
    cost, score = primary_objectives(objectives)
    near = _rows_within_drop(rows, _teacher_goals(info), drop, score)
    if not len(near):
        return []
    alternative = best_of(near, cost, objectives)
    loss = read_loss(alternative, info)
    if loss is None or alternative[cost.name] >= chosen[cost.name]:
        return []
    confidence = info.confidence or 0.0
    return [
        f"{confidence:.0%} confidence; by the observed loss, {_describe_row(alternative, objectives)} would be chosen "
        f"(observed {describe_loss(loss.observed, score)}, certified "
        f"{format_difference(loss.upper_bound(confidence), score, drop)})"
    ]


def _rows_within_drop(
    rows: pd.DataFrame, goals: Iterable[tuple[str, float, str]], drop: float, score: ObjectiveSpec
) -> pd.DataFrame:
    """Return the rows that lose no more than ``drop`` on the splits of ``goals``."""
    return rows[_worst_losses(rows, goals, score) <= drop + SLACK]


def _worst_losses(
    rows: pd.DataFrame, goals: Iterable[tuple[str, float, str]], score: ObjectiveSpec
) -> "pd.Series[float]":
    """Return the loss of each row against the teacher, the larger one of the two validation splits."""
    sign = 1.0 if score.is_maximized else -1.0
    # Splits without a teacher score or a column do not count.
    worst = pd.Series(-np.inf, index=rows.index)
    for _, goal, column in goals:
        if column in rows:
            loss = sign * (goal - numeric_column(rows, column))
            worst = worst.where(worst > loss, loss)
    return worst


def _compare_with_teacher(chosen: Row, info: RunInfo) -> str:
    """Return the score of a candidate beside the teacher's, and the saving of cost."""
    cost, score = primary_objectives(info.objectives)
    goal = info.teacher.score(score.name)
    teacher_cost = info.teacher.costs.get(cost.name)
    saving = f", with {compare_costs(chosen[cost.name], teacher_cost, cost.name)}" if is_finite(teacher_cost) else ""
    return f"({format_value(chosen[score.name], score)} against {format_value(goal, score)}){saving}"


def _describe_row(row: Row, objectives: Sequence[ObjectiveSpec]) -> str:
    cost, score = primary_objectives(objectives)
    return f"{row['id']} ({format_value(row[score.name], score)}, {format_value(row[cost.name], cost)})"


def _check_limits(most: Quantities, least: Quantities) -> dict[str, dict[str, float]]:
    limits: dict[str, dict[str, float]] = {}
    for bound, values in (("max", most), ("min", least)):
        for name, given in values.items():
            value = _read_limit(f"{bound} {name}={given!r}", name, given)
            if name.endswith("_test"):
                raise _refuse_test_score(name)
            limits.setdefault(name, {})[bound] = float(value)
    for name, bounds in limits.items():
        if len(bounds) == 2 and bounds["min"] > bounds["max"]:
            raise UsageError(
                f"the limits on '{name}' exclude each other: at least {_format_number(bounds['min'])}, "
                f"at most {_format_number(bounds['max'])}"
            )
    return limits


def _refuse_test_score(name: str) -> UsageError:
    return UsageError(f"'{name}' is a test score: candidates cannot be chosen by their scores on the test split")


def _read_limit(title: str, name: str, given: float | str) -> float:
    """Return a limit as a number; ``30 KB`` and ``97%`` are two.

    Raises:
        UsageError: It is neither, or not finite.
    """
    try:
        value = parse_quantity(given, name) if isinstance(given, str) else given
    except ValueError as error:
        raise UsageError(f"the limit {title} cannot be read: {error}") from None
    if not is_finite(value):
        raise UsageError(f"the limit {title} is not a finite number")
    return value


def _refuse_reversed_limits(limits: Limits, info: RunInfo) -> None:
    """Check that no limit excludes the better values of an objective: the result would be the worst candidate.

    Raises:
        UsageError: A limit has the wrong direction; the message names the right one.
    """
    for name, bounds in limits.items():
        objective = info.measured.get(name)
        # Two bounds are a range, which is meant.
        if objective is None or len(bounds) != 1:
            continue
        ((bound, value),) = bounds.items()
        right = "min" if objective.is_maximized else "max"
        if bound != right:
            better, number = ("larger" if objective.is_maximized else "smaller"), _format_number(value)
            raise UsageError(
                f"{bound} {name}={number} excludes the best candidates, because a {better} {label_column(name)} is "
                f"better; did you mean {right} {name}={number} (--{right} {name}={number})? A range needs both bounds"
            )


def _merge_limits(declared: Limits, given: Limits) -> dict[str, dict[str, float]]:
    names = dict.fromkeys([*declared, *given])
    return {name: {**declared.get(name, {}), **given.get(name, {})} for name in names}


def _refuse_conflicts(limits: Limits, prefer: str | None, knee: bool, candidate: str | None) -> None:
    if candidate is not None and (limits or prefer or knee):
        raise UsageError("a candidate id cannot be combined with limits, prefer or knee")
    if knee and prefer:
        raise UsageError("use either knee or prefer, not both")


def _find_objective(info: RunInfo, name: str) -> ObjectiveSpec:
    if name in info.measured:
        return info.measured[name]
    if name.endswith("_test"):
        raise _refuse_test_score(name)
    names = dict.fromkeys(objective.name for objective in (*info.objectives, *info.all_objectives))
    raise UnknownNameError(f"unknown objective '{name}': {did_you_mean(name, names)}")


def find_row(table: pd.DataFrame, name: str) -> Row:
    """Return the row of a candidate.

    Raises:
        UnknownNameError: There is no such candidate; the message suggests the nearest.
    """
    ids = [str(value) for value in table["id"]] if "id" in table else []
    if name not in ids:
        hint = did_you_mean(name, ids)
        # Hundreds of ids would fill the screen.
        if len(hint) > 100:
            hint = f"the table has {len(ids):,}, the first is {ids[0]}"
        raise UnknownNameError(f"unknown candidate '{name}': {hint}")
    return row_at(table, ids.index(name))


def _select_default(rows: pd.DataFrame, info: RunInfo, knee: bool) -> tuple[Row, str]:
    objectives = info.objectives
    drop = info.max_drop
    if not knee and is_finite(info.teacher.score(primary_objectives(objectives)[1].name)) and is_finite(drop):
        useful = rows[~_is_teacher_at_least_as_good(rows, info)]
        if len(useful):
            return _select_within_drop(useful, info, drop)
        chosen, reason = _select_within_drop(rows, info, drop)
        return chosen, f"{reason} Keep the teacher: no candidate costs less or scores better."
    name = find_knee(pareto_front(rows, objectives), objectives)
    reason = "The knee of the front: the point farthest from the line between the front's two ends."
    return find_row(rows, name), reason


def _is_teacher_at_least_as_good(rows: pd.DataFrame, info: RunInfo) -> "pd.Series[bool]":
    """Return for each row whether the teacher scores no worse and costs no more, in objectives and bytes.

    A cost that is unknown of the teacher or of a row may be higher than the other's.
    """
    _, score = primary_objectives(info.objectives)
    names = dict.fromkeys([*(record.name for record in info.objectives if record.kind == "cost"), "bytes"])
    is_dominated = _worst_losses(rows, _teacher_goals(info), score) >= 0
    for name in names:
        if name in rows:
            is_dominated &= numeric_column(rows, name) >= info.teacher.costs.get(name, math.nan)
    return is_dominated


def _select_within_drop(rows: pd.DataFrame, info: RunInfo, drop: float) -> tuple[Row, str]:
    """Return the cheapest row that loses at most ``drop``, or the one nearest to it, and the reason."""
    cost, score = primary_objectives(info.objectives)
    certified = None if info.confidence is None else select_certified(rows, info, drop, info.confidence)
    if certified is not None:
        return certified[0], _describe_certified(*certified, info)
    near = _rows_within_drop(rows, _teacher_goals(info), drop, score)
    within = f"within {format_difference(drop, score)} of the teacher's {label_column(score.name)}"
    if len(_teacher_goals(info)) > 1 and f"{score.name}_search" in rows:
        within += " on both validation splits"
    if len(near):
        chosen = best_of(near, cost, info.objectives)
        return chosen, f"{_CHEAPEST} {within} {_compare_with_teacher(chosen, info)}."
    losses = _worst_losses(rows, _teacher_goals(info), score)
    chosen = best_of(rows[losses <= losses.min() + drop + SLACK], cost, info.objectives)
    return chosen, (
        f"No candidate is {within}: the best loses {format_difference(float(losses.min()), score)}, "
        f"and this is the cheapest within {format_difference(drop, score)} of it "
        f"{_compare_with_teacher(chosen, info)}. {_KEEP_TEACHER}"
    )


def _describe_certified(chosen: Row, loss: PairedLoss, info: RunInfo) -> str:
    """Return the reason of the default selection with a confidence."""
    score = primary_objectives(info.objectives)[1]
    drop, confidence = info.max_drop or 0.0, info.confidence or 0.0
    promise = (
        f"certified to lose at most {format_difference(drop, score)} of {label_column(score.name)} against the "
        f"teacher, at {confidence:.0%} confidence"
    )
    bound = loss.upper_bound(confidence)
    if bound <= drop + SLACK:
        return f"{_CHEAPEST} {promise} {_compare_with_teacher(chosen, info)}."
    return (
        f"No candidate is {promise}: this one has the smallest certified loss, {format_difference(bound, score)} "
        f"{_compare_with_teacher(chosen, info)}.{f' {_KEEP_TEACHER}' if loss.observed > drop + SLACK else ''}"
    )


def _describe_best(record: ObjectiveSpec) -> str:
    least = "fewest" if is_counted(record.name) else "lowest"
    return f"The {'highest' if record.is_maximized else least} {label_column(record.name)}"


def _describe_count(count: int, bounds: Limits) -> str:
    text = " and ".join(_format_limits(bounds))
    if count == 1:
        return f"one candidate with {text}" if text else "one candidate"
    return f"the {count:,} candidates with {text}" if text else f"all {format_plural(count, 'candidate')}"


def _format_limits(bounds: Limits) -> Iterable[str]:
    for name, limit in bounds.items():
        for bound, value in limit.items():
            yield f"{name} {'<=' if bound == 'max' else '>='} {_format_number(value)}"


def describe_unusable(table: pd.DataFrame, score: ObjectiveSpec) -> str:
    """Return why no candidate can be selected: the best score beside the reference point, by default that of chance."""
    text = "no fully trained candidate has finite scores better than the reference point: nothing can be recommended"
    values = numeric_column(full_fidelity(table), score.name)
    values = values[np.isfinite(values)]
    if not len(values) or score.bounds is None:
        return text
    best, reference = values.max() if score.is_maximized else values.min(), score.bounds[0]
    return (
        f"{text} (the best {label_column(score.name)} is {format_value(best, score)}, the reference point "
        f"{format_value(reference, score)}; train for more epochs, or check how inputs and labels are read)"
    )


def _nearest_miss(rows: pd.DataFrame, bounds: Limits) -> str:
    """Return the limits that no row satisfies, nearest first, with the best value of each."""
    misses, excesses = [], []
    for name, limit in bounds.items():
        values = numeric_column(rows, name)
        if not np.isfinite(values).any():
            return f"no candidate has a finite {name}"
        for bound, value in limit.items():
            # Relative to the limit, so that limits of different units are comparable; a limit of 0 is absolute.
            excess = (values - value if bound == "max" else value - values) / (abs(value) or 1.0)
            excesses.append(excess)
            if not (excess <= 0).any():
                nearest = row_at(rows, int(np.nanargmin(excess)))
                extreme = "smallest" if bound == "max" else "largest"
                condition = next(iter(_format_limits({name: {bound: value}})))
                text = f"{condition}; the {extreme} is {_format_number(nearest[name])} ({nearest['id']})"
                misses.append((float(excess.min()), text))
    if misses:
        return "no candidate has " + "; none has ".join(text for _, text in sorted(misses))
    worst = pd.concat(excesses, axis=1).max(axis=1, skipna=False)
    if not np.isfinite(worst).any():
        return f"no candidate has all of {', '.join(bounds)}"
    nearest = row_at(rows, int(np.nanargmin(worst)))
    example = f"{nearest['id']} ({', '.join(f'{name} {_format_number(nearest[name])}' for name in bounds)})"
    return f"no candidate has {' and '.join(_format_limits(bounds))} together; the nearest is {example}"


def _format_number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.6g}"
