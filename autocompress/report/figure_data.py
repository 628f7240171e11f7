"""The data step of the figures: the table as groups of points. The plot and the printed picture draw the same ones."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from autocompress.analysis.confirmation import Confirmed
from autocompress.analysis.pareto import Objective, axes, knee, normalise, numbers
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import compare, finite, label, show
from autocompress.report.table_view import GROUPS, classify, in_words, recipes, simulated, visible
from autocompress.report.uncertainty import told

#: More points make a browser slow: beyond this the front, the baselines and the candidates nearest to it are drawn.
DRAWN = 4000
_LINE_LENGTH = 110


@dataclass(frozen=True)
class Marks:
    """One group of points: ids, values by column, hover texts and labels, all of equal length.

    ``bounds`` are the ends of the interval of the first score, where there is one.
    """

    ids: Sequence[str] = ()
    values: Mapping[str, Sequence[float | None]] | None = None
    hover: Sequence[str] = ()
    labels: Sequence[str] = ()
    bounds: Sequence[tuple[float, float]] = ()

    def column(self, name: str) -> list[float | None]:
        """Return one column's values; a group without points has none."""
        return list((self.values or {}).get(name, ()))


@dataclass(frozen=True)
class FrontData:
    """What the front's plot shows.

    Attributes:
        marks: Groups of points by name, the last drawn on top.
        costs: What the horizontal axis may show, the declared cost first.
        scores: What the vertical axis may show, the declared score first.
        window: The part of the score's axis that is shown at first: [bottom, top], where top is the better end.
    """

    marks: Mapping[str, Marks]
    costs: Sequence[Objective]
    scores: Sequence[Objective]
    window: tuple[float, float]


def front_data(
    candidates: pd.DataFrame,
    front: pd.DataFrame,
    meta: Mapping[str, Any],
    picked: Pick | None = None,
    repeated: Sequence[Confirmed] = (),
) -> FrontData:
    """Return the points of the front's plot, grouped.

    Args:
        candidates: Every candidate of the run.
        front: Those on the front.
        meta: What the study says about the run.
        picked: The recommended candidate, if there is one.
        repeated: Those that were trained again with several seeds.
    """
    costs, scores = _choices(candidates, meta, "cost"), _choices(candidates, meta, "score")
    kept = drawn(candidates, front, meta, picked)
    groups = classify(candidates, front, meta).iloc[kept]
    candidates = candidates.iloc[kept]
    ids = [str(name) for name in candidates["id"]]
    names = [record["name"] for record in (*costs, *scores)]
    values = {name: [_round(value) for value in numbers(candidates, name)] for name in names}
    hover = _hovers(candidates, groups, meta)

    def take(rows: Sequence[int]) -> Marks:
        columns = {name: [column[row] for row in rows] for name, column in values.items()}
        return Marks([ids[row] for row in rows], columns, [hover[row] for row in rows])

    def named(name: str | None) -> Marks:
        return take([ids.index(name)] if name in ids else [])

    marks = {name: take(np.flatnonzero(groups == name).tolist()) for name in ("early", "infeasible", "dominated")}
    marks["front"] = take([ids.index(str(name)) for name in front["id"]])
    baselines = take(np.flatnonzero(groups == "baseline").tolist())
    labels = meta.get("baselines") or {}
    marks["baseline"] = replace(baselines, labels=[text(labels.get(name, "")) for name in baselines.ids])
    marks["teacher"] = _teacher(meta, names)
    marks["knee"] = named(knee(front, meta["objectives"]) if len(front) else None)
    marks["again"] = _again(repeated, candidates, names, scores[0])
    chosen = named(picked.id if picked else None)
    # Chosen by both validation splits, it may be dominated on the one that the plot shows.
    hover_of_pick = [line.replace(f"</b> {GROUPS['dominated']}", "</b> the pick", 1) for line in chosen.hover]
    labels_of_pick = [f"<b>pick</b> {text(name)}" for name in chosen.ids]
    marks["pick"] = replace(chosen, labels=labels_of_pick, hover=hover_of_pick)
    return FrontData(marks, costs, scores, _window(marks, scores[0]))


def stairs(data: FrontData) -> list[tuple[float, float]]:
    """Return the corners of the front's step line on the declared axes, cheapest first.

    With more than two objectives some of the front is dominated on these two axes; the line passes over it.
    """
    marks, cost, score = data.marks["front"], data.costs[0]["name"], data.scores[0]
    sign = 1.0 if score["direction"] == "maximize" else -1.0
    pairs = zip(marks.column(cost), marks.column(score["name"]), strict=True)
    line: list[tuple[float, float]] = []
    for x, y in sorted(
        ((x, y) for x, y in pairs if x is not None and y is not None), key=lambda p: (p[0], -sign * p[1])
    ):
        if not line or sign * (y - line[-1][1]) > 0:
            line.append((x, y))
    return line


def drawn(
    candidates: pd.DataFrame, front: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None = None
) -> list[int]:
    """Return the positions of the candidates that are drawn: all of them, or ``DRAWN`` if there are more.

    The front, the baselines and the pick always are; the rest by nearness to the ideal, both objectives scaled.
    """
    if len(candidates) <= DRAWN:
        return list(range(len(candidates)))
    distance = np.zeros(len(candidates))
    for objective in axes(meta["objectives"]):
        scaled = normalise(numbers(candidates, objective["name"]), objective["box"], objective["kind"] == "cost")
        distance += np.nan_to_num(scaled, nan=1.0)
    always = candidates["id"].isin([*front["id"], picked.id if picked else None]) | (candidates["role"] != "search")
    distance[always.to_numpy()] = -1.0
    return sorted(int(row) for row in np.argsort(distance, kind="stable")[:DRAWN])


def hypervolume_data(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the columns ``trial`` (how many were told so far), ``seconds`` and ``hypervolume`` of each new front.

    Trials of the search count in the order in which they were told; those that left no front only count.
    """
    if not {"hypervolume", "elapsed"} <= set(trials.columns):
        return pd.DataFrame({"trial": [], "seconds": [], "hypervolume": []}, dtype="float64")
    search = trials[trials["role"] == "search"] if "role" in trials else trials
    told = search[np.isfinite(numbers(search, "elapsed"))].sort_values("elapsed", kind="stable")
    curve = pd.DataFrame(
        {
            "trial": np.arange(1, len(told) + 1),
            "seconds": numbers(told, "elapsed").to_numpy(),
            "hypervolume": numbers(told, "hypervolume").to_numpy(),
        }
    )
    known: pd.DataFrame = curve[np.isfinite(curve["hypervolume"])].reset_index(drop=True)
    return known


def text(value: object) -> str:
    """Return a name as plotly shows it literally: its tags escaped, its hidden characters spelled out."""
    return html.escape(visible(str(value)), quote=False)


def _choices(candidates: pd.DataFrame, meta: Mapping[str, Any], kind: str) -> list[Objective]:
    """Return what an axis may show: the declared objective, then every measured column of its kind."""
    first = axes(meta["objectives"])[0 if kind == "cost" else 1]
    records = [record for record in (*meta.get("all_objectives", []), *meta["objectives"]) if record["kind"] == kind]
    # The declared records come last: only they have a box. The first of all keeps its place at the front.
    found = {record["name"]: record for record in (first, *records, first)}
    return [
        record
        for name, record in found.items()
        if record is first or (name in candidates and np.isfinite(numbers(candidates, name)).any())
    ]


def _teacher(meta: Mapping[str, Any], names: Sequence[str]) -> Marks:
    teacher = meta.get("teacher") or {}
    known = {**teacher.get("costs", {}), **teacher.get("scores", {}).get("select_val", {})}
    if not known:
        return Marks()
    records = [record for record in (*meta["objectives"], *meta.get("all_objectives", [])) if record["name"] in known]
    lines = {f"{label(record['name'])} {show(known[record['name']], record)}": None for record in records}
    hover = "<br>".join(["<b>teacher</b>", *list(lines)[:7]])
    values = {name: [_round(known.get(name))] for name in names}
    return Marks(["teacher"], values, [hover], ["teacher"])


def _again(repeated: Sequence[Confirmed], candidates: pd.DataFrame, names: Sequence[str], score: Objective) -> Marks:
    """Return the means of repeats: at the candidate's own costs, with the score's interval."""
    ids = [str(name) for name in candidates["id"]]
    shown = [each for each in repeated if each.id in ids and finite(each.select_val.low)]
    rows = candidates.iloc[[ids.index(each.id) for each in shown]]
    values = {name: [_round(value) for value in numbers(rows, name)] for name in names}
    values[score["name"]] = [_round(each.select_val.mean) for each in shown]
    hover = [
        "<br>".join(
            [
                f"<b>{text(each.id)}</b> trained again with {len(each.select_val.values)} seeds",
                f"{label(score['name'])} {told(each.select_val, score)} on select_val",
                f"{told(each.test, score)} on test",
                f"the search saw {show(each.searched, score)}",
            ]
        )
        for each in shown
    ]
    ends = [(each.select_val.low, each.select_val.high) for each in shown]
    return Marks([each.id for each in shown], values, hover, bounds=ends)


def _hovers(candidates: pd.DataFrame, groups: "pd.Series[str]", meta: Mapping[str, Any]) -> list[str]:
    """Return eight lines a candidate: what it is, its scores and costs, and its knobs."""
    cost, score = axes(meta["objectives"])
    known = recipes(candidates)
    records = {record["name"]: record for record in (*meta.get("all_objectives", []), *meta["objectives"])}
    small = [name for name in ("bytes", "parameters") if name in candidates and name in records]
    sizes = [(records[name], numbers(candidates, name).tolist()) for name in small]
    theirs = (meta.get("teacher") or {}).get("costs", {}).get(cost["name"])
    searched = candidates.get(f"{score['name']}_search", pd.Series(np.nan, index=candidates.index)).tolist()
    costs, scores = numbers(candidates, cost["name"]).tolist(), numbers(candidates, score["name"]).tolist()
    notes = simulated(candidates)
    hovers = []
    for row, (name, group) in enumerate(zip(candidates["id"], groups, strict=True)):
        against = f", {compare(costs[row], theirs, cost['name'])} than the teacher" if finite(theirs) else ""
        lines = [
            f"<b>{text(name)}</b> {GROUPS[group]}",
            f"{label(score['name'])} {show(scores[row], score)} (search_val {show(searched[row], score)})",
            f"{show(costs[row], cost)}{against}",
            ", ".join(f"{show(column[row], record)} {_noun(record)}".strip() for record, column in sizes),
            *(f"{section}: {_short(in_words(known[section][row]))}" for section in ("student", "distill", "prune")),
            f"quantize: {_short(in_words(known['quantize'][row]))}" + (" (simulated)" if notes[row] else ""),
        ]
        hovers.append("<br>".join(lines))
    return hovers


def _noun(record: Objective) -> str:
    return "" if record["name"] == "bytes" else label(record["name"])


def _short(value: str) -> str:
    return text(value if len(value) <= _LINE_LENGTH else value[: _LINE_LENGTH - 3] + "...")


def _window(marks: Mapping[str, Marks], score: Objective) -> tuple[float, float]:
    """Return [bottom, top] of the score's axis as worth looking at first: the best quarter of the box, at most.

    A front that reaches down to chance would squeeze the region where one chooses into a hair.
    """
    seen = [value for name in ("front", "baseline", "teacher", "pick") for value in marks[name].column(score["name"])]
    values = [value for value in seen if value is not None] or [float(bound) for bound in score["box"]]
    worst, best = float(score["box"][0]), max(values) if score["direction"] == "maximize" else min(values)
    quarter = best + (worst - best) / 4
    far = max(min(values), quarter) if score["direction"] == "maximize" else min(max(values), quarter)
    margin = (best - far) * 0.08 or (best - worst) * 0.01
    return far - margin, best + margin


def _round(value: object) -> float | None:
    """Return six significant digits, which no eye tells from more, or None for what cannot be drawn."""
    return float(f"{value:.6g}") if finite(value) else None
