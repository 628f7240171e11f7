"""How sure a choice is: intervals, who is tied with it, and what repeats from scratch say."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from autocompress.analysis.confirmation import METHOD, Confirmed, Estimate, front_on_test, on_test
from autocompress.analysis.pareto import Objective, axes, numbers
from autocompress.analysis.selection import Pick
from autocompress.analysis.significance import BINOMIAL, Ties, interval
from autocompress.core.formatting import compare, finite, gap, label, plural, show

_SHOWN_AROUND_PICK = 8


def confidence(front: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None) -> dict[str, Any] | None:
    """Return the interval of every front candidate near the pick, and who is tied with it; None if none can be told."""
    cost, score = axes(meta["objectives"])
    examples = (meta.get("splits") or {}).get("select_val")
    if picked is None or picked.ties is None or score["name"].partition("@")[0] not in BINOMIAL:
        return None
    if not finite(examples) or examples < 1:
        return None
    own, name = float(picked.row[score["name"]]), label(score["name"])
    low, high = interval(own, examples)
    tied = {*picked.ties.tied, picked.id}
    rows = []
    shares, prices = (numbers(front, axis["name"]).tolist() for axis in (score, cost))
    for identity, share, price in zip(front["id"], shares, prices, strict=True):
        ends = interval(share, examples)
        rows.append(
            {"id": identity, "share": share, "low": ends[0], "high": ends[1], "tied": identity in tied, "cost": price}
        )
    text = (
        f"On {examples:,} select_val examples the {name} of {picked.id} is {show(own, score)}; "
        f"the 95% interval is {show(low, score)} to {show(high, score)}. {told_ties(picked, picked.ties, front, meta)}"
    )
    if picked.id not in set(front["id"]):
        # A choice that holds on both validation splits may lie a little behind the front of one.
        price = picked.row[cost["name"]]
        own_row = {"id": picked.id, "share": own, "low": low, "high": high, "tied": True, "cost": price}
        rows.insert(sum(row["cost"] <= price for row in rows), own_row)
    place = next(row for row, each in enumerate(rows) if each["id"] == picked.id)
    start = max(0, place - _SHOWN_AROUND_PICK)
    shown = rows[start : place + _SHOWN_AROUND_PICK + 1]
    return {"text": text, "rows": shown, "pick": picked.id, "count": len(rows), "method": picked.ties.method}


def told_ties(picked: Pick, found: Ties, front: pd.DataFrame, meta: Mapping[str, Any]) -> str:
    """Return in a sentence who on the front is tied with the pick, and what the cheapest of them would save."""
    cost, score = axes(meta["objectives"])
    equals = front[front["id"].isin(found.tied)]
    if not len(equals):
        return "No other candidate on the front is statistically tied with it."
    text = f"{plural(len(equals), 'other candidate')} on the front {'is' if len(equals) == 1 else 'are'} tied with it"
    least = equals.iloc[0]
    if least[cost["name"]] < picked.row[cost["name"]]:
        saving = compare(least[cost["name"]], picked.row[cost["name"]], cost["name"])
        text += f"; the cheapest of them, {least['id']} ({show(least[score['name']], score)}), has {saving}"
    return f"{text}."


def repeats(
    found: Sequence[Confirmed], front: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None
) -> dict[str, Any] | None:
    """Return what the page tells of repeats from scratch; None where there are none."""
    if not found:
        return None
    cost, score = axes(meta["objectives"])
    tested = on_test(front, meta, found)
    rows = [
        {
            "id": each.id,
            "mark": picked is not None and each.id == picked.id,
            "cost": show(each.cost, cost),
            "searched": show(each.searched, score),
            "select_val": told(each.select_val, score),
            "test": told(each.test, score),
            "gap": signed(each.gap.mean, score),
            "seeds": f"{len(each.test.values)}" + (f" ({each.failed} failed)" if each.failed else ""),
            "points": {"searched": each.searched, "select_val": each.select_val, "test": each.test},
        }
        for each in found
    ]
    return {
        "text": _summary(found, score, picked),
        "rows": rows,
        "score": score,
        "test": "" if tested is None else front_on_test(tested),
        "method": METHOD,
    }


def told(found: Estimate, score: Objective) -> str:
    """Return a mean with its interval, such as ``97.7% [95.5%, 99.2%]``."""
    ends = f" [{show(found.low, score)}, {show(found.high, score)}]" if finite(found.low) else ""
    return f"{show(found.mean, score)}{ends}"


def signed(change: float, score: Objective) -> str:
    """Return a difference with its sign; none where it rounds to nothing.

    Example:
        >>> score = {"name": "accuracy", "kind": "score", "direction": "maximize", "unit": ""}
        >>> signed(-0.012, score), signed(0.0001, score)
        ('-1.2 points', '0.0 points')
    """
    size = gap(change, score)
    return size if size == gap(0.0, score) else f"{'+' if change > 0 else '-'}{size}"


def _summary(found: Sequence[Confirmed], score: Objective, picked: Pick | None) -> str:
    name = label(score["name"])
    seeds = max(len(each.test.values) for each in found)
    text = (
        f"{plural(len(found), 'candidate')} of the front trained again from scratch with {plural(seeds, 'new seed')}. "
    )
    sign = 1.0 if score["direction"] == "maximize" else -1.0
    lost = sum((each.searched - each.select_val.mean) * sign for each in found) / len(found)
    saw = f"On average their {name} on select_val is"
    if gap(lost, score) == gap(0.0, score):
        text += f"{saw} what the search saw. "
    elif lost > 0:
        text += f"{saw} {gap(lost, score)} worse than the search saw: the best of many is a little lucky. "
    else:
        text += f"{saw} {gap(lost, score)} better than the search saw. "
    own = next((each for each in found if picked is not None and each.id == picked.id), None)
    if own is not None:
        text += f"The pick holds {told(own.test, score)} on test."
    return text.strip()
