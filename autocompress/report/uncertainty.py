"""Uncertainty of the choice: confidence intervals, statistical ties, and repeats from scratch."""

from collections.abc import Sequence
from typing import TypedDict

import pandas as pd

from autocompress.analysis.confirmation import (
    METHOD,
    ConfirmedCandidate,
    Estimate,
    describe_test_front,
    evaluate_test_front,
)
from autocompress.analysis.pareto import numeric_column, primary_objectives, sort_by_cost
from autocompress.analysis.selection import Pick
from autocompress.analysis.significance import BINOMIAL, Ties, wilson_interval
from autocompress.core.formatting import (
    compare_costs,
    format_difference,
    format_plural,
    format_value,
    is_finite,
    label_column,
)
from autocompress.core.run_info import ObjectiveSpec, RunInfo

_SHOWN_AROUND_PICK = 8


class IntervalRow(TypedDict):
    """Score of one front candidate with its confidence interval."""

    id: str
    share: float
    low: float
    high: float
    tied: bool
    cost: float


class Intervals(TypedDict):
    """Confidence intervals of the front candidates near the pick."""

    text: str
    rows: list[IntervalRow]
    pick: str
    count: int
    method: str


class RepeatPoints(TypedDict):
    """Score of a candidate in the search and in its repeats."""

    searched: float
    select_val: Estimate
    test: Estimate


class RepeatRow(TypedDict):
    """One repeated candidate as texts, and as values for the picture."""

    id: str
    mark: bool
    cost: str
    searched: str
    select_val: str
    test: str
    gap: str
    seeds: str
    points: RepeatPoints


class Repeats(TypedDict):
    """Repeats from scratch: sentences, rows, and the score that they measure."""

    text: str
    rows: list[RepeatRow]
    score: ObjectiveSpec
    test: str
    method: str


def pick_confidence(front: pd.DataFrame, info: RunInfo, picked: Pick | None) -> Intervals | None:
    """Return the intervals of front candidates near the pick, and its ties; None for a score without an interval."""
    cost, score = primary_objectives(info.objectives)
    examples = info.splits.get("select_val")
    # Wilson intervals hold for proportions of examples only, such as accuracy.
    if picked is None or picked.ties is None or score.name.partition("@")[0] not in BINOMIAL:
        return None
    if not is_finite(examples) or examples < 1:
        return None
    own, name = float(picked.row[score.name]), label_column(score.name)
    low, high = wilson_interval(own, examples)
    tied = {*picked.ties.tied_ids, picked.id}
    rows: list[IntervalRow] = []
    shares, prices = (numeric_column(front, axis.name).tolist() for axis in (score, cost))
    for identity, share, price in zip(front["id"], shares, prices, strict=True):
        ends = wilson_interval(share, examples)
        rows.append(
            {"id": identity, "share": share, "low": ends[0], "high": ends[1], "tied": identity in tied, "cost": price}
        )
    text = (
        f"On the {examples:,} examples of the selection split, the {name} of {picked.id} is "
        f"{format_value(own, score)}, with a 95% confidence interval of {format_value(low, score)} to "
        f"{format_value(high, score)}. "
        f"{describe_ties(picked, picked.ties, front, info)}"
    )
    if picked.id not in set(front["id"]):
        # The pick must hold on both validation splits, so it may lie slightly behind the front of the selection split.
        price = picked.row[cost.name]
        own_row: IntervalRow = {"id": picked.id, "share": own, "low": low, "high": high, "tied": True, "cost": price}
        rows.insert(sum(row["cost"] <= price for row in rows), own_row)
    position = next(index for index, row in enumerate(rows) if row["id"] == picked.id)
    start = max(0, position - _SHOWN_AROUND_PICK)
    # The front may have hundreds of candidates; the picture shows those that compete with the pick.
    shown = rows[start : position + _SHOWN_AROUND_PICK + 1]
    return {"text": text, "rows": shown, "pick": picked.id, "count": len(rows), "method": picked.ties.method}


def describe_ties(picked: Pick, ties: Ties, candidates: pd.DataFrame, info: RunInfo) -> str:
    """Return in a sentence the candidates tied with the pick, and the cost that the cheapest of them saves.

    Args:
        picked: The selected candidate.
        ties: Candidates tied with it, on the front under the limits of the selection.
        candidates: Table that has these candidates.
        info: Description of the run.
    """
    cost, score = primary_objectives(info.objectives)
    equals = sort_by_cost(candidates[candidates["id"].isin(ties.tied_ids)], info.objectives)
    if not len(equals):
        return "No other front candidate is statistically tied with it."
    verb = "is" if len(equals) == 1 else "are"
    text = f"{format_plural(len(equals), 'other front candidate')} {verb} statistically tied with it"
    least = equals.iloc[0]
    if least[cost.name] < picked.row[cost.name]:
        saving = compare_costs(least[cost.name], picked.row[cost.name], cost.name)
        text += f"; the cheapest, {least['id']} ({format_value(least[score.name], score)}), has {saving}"
    return f"{text}."


def repeats_content(
    repeated: Sequence[ConfirmedCandidate], front: pd.DataFrame, info: RunInfo, picked: Pick | None
) -> Repeats | None:
    """Return the rows and sentences about repeats from scratch; None if there are none."""
    if not repeated:
        return None
    cost, score = primary_objectives(info.objectives)
    tested = evaluate_test_front(front, info, repeated)
    rows: list[RepeatRow] = [
        {
            "id": candidate.id,
            "mark": picked is not None and candidate.id == picked.id,
            "cost": format_value(candidate.cost, cost),
            "searched": format_value(candidate.searched, score),
            "select_val": format_estimate(candidate.select_val, score),
            "test": format_estimate(candidate.test, score),
            "gap": format_signed(candidate.gap.mean, score),
            "seeds": f"{len(candidate.test.values)}" + (f" ({candidate.failed} failed)" if candidate.failed else ""),
            "points": {"searched": candidate.searched, "select_val": candidate.select_val, "test": candidate.test},
        }
        for candidate in repeated
    ]
    return {
        "text": _describe_repeats(repeated, score, picked),
        "rows": rows,
        "score": score,
        "test": "" if tested is None else describe_test_front(tested),
        "method": METHOD,
    }


def format_estimate(estimate: Estimate, score: ObjectiveSpec) -> str:
    """Return a mean with its interval, such as ``97.7% [95.5%, 99.2%]``."""
    ends = (
        f" [{format_value(estimate.low, score)}, {format_value(estimate.high, score)}]"
        if is_finite(estimate.low)
        else ""
    )
    return f"{format_value(estimate.mean, score)}{ends}"


def format_signed(change: float, score: ObjectiveSpec) -> str:
    """Return a difference with its sign; without a sign if it rounds to zero.

    Example:
        >>> score = ObjectiveSpec("accuracy", "maximize")
        >>> format_signed(-0.012, score), format_signed(0.0001, score)
        ('-1.2 points', '0.0 points')
    """
    size = format_difference(change, score)
    return size if size == format_difference(0.0, score) else f"{'+' if change > 0 else '-'}{size}"


def _describe_repeats(repeated: Sequence[ConfirmedCandidate], score: ObjectiveSpec, picked: Pick | None) -> str:
    name = label_column(score.name)
    seeds = max(len(candidate.test.values) for candidate in repeated)
    text = (
        f"{format_plural(len(repeated), 'candidate')} of the front repeated from scratch with "
        f"{format_plural(seeds, 'new seed')}. "
    )
    # Positive if the repeats are worse than the search, for scores to be minimized too.
    sign = 1.0 if score.direction == "maximize" else -1.0
    lost = sum((candidate.searched - candidate.select_val.mean) * sign for candidate in repeated) / len(repeated)
    mean = f"On average, their {name} on the selection split is"
    if format_difference(lost, score) == format_difference(0.0, score):
        text += f"{mean} the same as in the search. "
    elif lost > 0:
        worse = f"{mean} {format_difference(lost, score)} worse than in the search"
        text += f"{worse}: the best of many candidates is partly lucky. "
    else:
        text += f"{mean} {format_difference(lost, score)} better than in the search. "
    own = next((candidate for candidate in repeated if picked is not None and candidate.id == picked.id), None)
    if own is not None:
        text += f"The pick has {format_estimate(own.test, score)} on the test split."
    return text.strip()
