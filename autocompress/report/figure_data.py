"""The candidate table as all parts of the page show it, and its groups of points for the figures."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from autocompress.analysis.certification import estimate_interval
from autocompress.analysis.confirmation import ConfirmedCandidate
from autocompress.analysis.latency import (
    FIRST_KNOBS,
    SIMULATED as SIMULATED,
    describe_simulation as describe_simulation,
    format_knob,
    knob_order,
)
from autocompress.analysis.pareto import (
    find_knee,
    full_fidelity,
    is_feasible,
    normalize_values,
    numeric_column,
    primary_objectives,
)
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import compare_costs, format_value, is_finite, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.report.uncertainty import format_estimate

SECTIONS = ("student", "distill", "fit", "prune", "quantize")
# Controls (C0, C1), bidirectional overrides, zero-width characters and lone surrogates: they change how a text looks.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

#: Groups of candidates in the order of the table, with their labels.
GROUPS = {
    "front": "on the front",
    "baseline": "baseline",
    "dominated": "dominated",
    "infeasible": "violates a limit",
    "early": "stopped early",
    "unmeasured": "not measured",
}


def escape_hidden(text: str) -> str:
    r"""Return text with escapes instead of invisible characters, so that two different names never look the same.

    Example:
        >>> escape_hidden("a\u202eb")
        'a\\u202eb'
    """
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def classify_candidates(candidates: pd.DataFrame, front: pd.DataFrame, info: RunInfo) -> "pd.Series[str]":
    """Return the group of each candidate, a key of ``GROUPS``.

    Candidates of trials that were stopped before the last rung are ``early``: their scores are not comparable with
    those of fully trained candidates, so they neither dominate nor are dominated.
    """
    full = candidates.index.isin(full_fidelity(candidates).index)
    measured = np.all(
        [np.isfinite(numeric_column(candidates, objective.name)) for objective in info.objectives], axis=0
    )
    conditions = [
        candidates["role"] != "search",
        ~full,
        ~measured,
        ~is_feasible(candidates, info.limits),
        candidates["id"].isin(front["id"]),
    ]
    names = ["baseline", "early", "unmeasured", "infeasible", "front"]
    groups = np.select([np.asarray(condition) for condition in conditions], names, "dominated")
    return pd.Series(groups, index=candidates.index, dtype="str")


def method_texts(
    candidates: pd.DataFrame, among: pd.DataFrame | None = None
) -> dict[str, list[list[tuple[str, list[str]]]]]:
    """Return the methods of each section with their hyperparameters as texts, one list of methods per row.

    Includes hyperparameters that vary, and a few that always matter; the full configuration has the others.

    For example ``{"student": [[("cnn", ["width 16", "depth 2"])], ...], "prune": [[("none", [])], ...], ...}``.

    Args:
        candidates: Rows to describe.
        among: Table in which a hyperparameter must vary to be included; by default ``candidates``.
    """
    reference = candidates if among is None else among
    knobs: dict[str, list[dict[str, list[str]]]] = {name: [{} for _ in range(len(candidates))] for name in SECTIONS}
    for column in sorted(map(str, candidates.columns), key=knob_order):
        section, _, rest = column.partition(".")
        method, _, knob = rest.rpartition(".")
        if section not in knobs or not method:
            continue
        is_included = knob_order(column) < len(FIRST_KNOBS) or reference[column].nunique() > 1
        values = candidates[column].tolist()
        texts = {value: format_knob(knob, value) for value in set(values) if value is not None and value == value}
        for methods, value in zip(knobs[section], values, strict=True):
            if value in texts:
                methods.setdefault(method, []).extend([texts[value]] if is_included else [])
    names = {
        section: [str(name) for name in candidates[section]] if section in candidates else ["none"] * len(rows)
        for section, rows in knobs.items()
    }
    return {
        section: [list(row.items()) or [(name, [])] for name, row in zip(names[section], rows, strict=True)]
        for section, rows in knobs.items()
    }


def join_methods(methods: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return methods with their hyperparameters as one text.

    Example:
        >>> join_methods([("cnn", ["width 16", "depth 2"]), ("plain", [])])
        'cnn (width 16, depth 2) + plain'
    """
    return " + ".join(f"{method} ({', '.join(knobs)})" if knobs else method for method, knobs in methods)


def rank_rows(candidates: pd.DataFrame, groups: "pd.Series[str]", score: ObjectiveSpec, cost: str) -> list[int]:
    """Return row positions in the order of the table: by group as in ``GROUPS``, then the best score first."""
    sign = -1.0 if score.direction == "maximize" else 1.0
    order = {name: index for index, name in enumerate(GROUPS)}
    group_ranks = groups.map(order).to_numpy(dtype=np.float64)
    costs = np.nan_to_num(numeric_column(candidates, cost), nan=np.inf)
    scores = np.nan_to_num(numeric_column(candidates, score.name) * sign, nan=np.inf)
    return [int(row) for row in np.lexsort((costs, scores, group_ranks))]


#: More points make a browser slow: a larger run shows the front, the baselines and the candidates nearest to it.
MAX_POINTS = 4000
_LINE_LENGTH = 110


@dataclass(frozen=True)
class Marks:
    """One group of points: ids, values by column, tooltips and labels, all of equal length.

    ``hollow`` tells which points have no kernels on the target. ``bounds`` are the ends of the confidence interval of
    the first score, if there is one.
    """

    ids: Sequence[str] = ()
    values: Mapping[str, Sequence[float | None]] | None = None
    hover: Sequence[str] = ()
    labels: Sequence[str] = ()
    hollow: Sequence[bool] = ()
    bounds: Sequence[tuple[float, float]] = ()

    def column(self, name: str) -> list[float | None]:
        """Return the values of one column; empty for a group without points."""
        return list((self.values or {}).get(name, ()))


@dataclass(frozen=True)
class FrontData:
    """Content of the front's plot.

    Attributes:
        marks: Groups of points by name, the last one drawn on top.
        costs: Choices for the horizontal axis, the declared cost first.
        scores: Choices for the vertical axis, the declared score first.
        window: Initial range of the score's axis: [bottom, top], where top is the better end.
        colour: Third objective of the search, shown as the colour of a point; None with two objectives.
    """

    marks: Mapping[str, Marks]
    costs: Sequence[ObjectiveSpec]
    scores: Sequence[ObjectiveSpec]
    window: tuple[float, float]
    colour: ObjectiveSpec | None = None


def front_data(
    candidates: pd.DataFrame,
    front: pd.DataFrame,
    info: RunInfo,
    picked: Pick | None = None,
    repeated: Sequence[ConfirmedCandidate] = (),
) -> FrontData:
    """Return the points of the front's plot in groups.

    Args:
        candidates: All candidates of the run.
        front: Candidates on the front.
        info: Description of the run.
        picked: The recommended candidate, if there is one.
        repeated: Candidates that were repeated with several seeds.
    """
    costs, scores = _axis_choices(candidates, info, "cost"), _axis_choices(candidates, info, "score")
    positions = select_points(candidates, front, info, picked)
    groups = classify_candidates(candidates, front, info).iloc[positions]
    candidates = candidates.iloc[positions]
    ids = [str(name) for name in candidates["id"]]
    colour = _third_objective(info)
    names = [record.name for record in (*costs, *scores, *([] if colour is None else [colour]))]
    values = {name: [_round_value(value) for value in numeric_column(candidates, name)] for name in names}
    hover = _tooltips(candidates, groups, info)
    # Without a target, a page marks simulated candidates by text alone.
    restricts = info.target.precisions.restricts
    simulated = [restricts and bool(text) for text in describe_simulation(candidates, info.target.precisions)]

    def take_rows(rows: Sequence[int]) -> Marks:
        columns = {name: [column[row] for row in rows] for name, column in values.items()}
        hollow = [simulated[row] for row in rows]
        return Marks([ids[row] for row in rows], columns, [hover[row] for row in rows], hollow=hollow)

    def take_candidate(name: str | None) -> Marks:
        return take_rows([ids.index(name)] if name in ids else [])

    marks = {name: take_rows(np.flatnonzero(groups == name).tolist()) for name in ("early", "infeasible", "dominated")}
    marks["front"] = take_rows([ids.index(str(name)) for name in front["id"]])
    baselines = take_rows(np.flatnonzero(groups == "baseline").tolist())
    labels = info.baselines
    # The candidate that the baseline repeats is in its tooltip.
    shown = [labels.get(name, "").rpartition(" without ") for name in baselines.ids]
    texts = [escape_text(f"without {name}" if word else name) for _, word, name in shown]
    marks["baseline"] = replace(baselines, labels=texts)
    marks["teacher"] = _teacher_marks(info, names)
    marks["knee"] = take_candidate(find_knee(front, info.objectives) if len(front) else None)
    marks["again"] = _repeat_marks(repeated, candidates, names, scores[0])
    chosen = take_candidate(picked.id if picked else None)
    # The pick must hold on both validation splits, so it may be dominated on the split that the plot shows.
    # The student without distillation may be the pick, too.
    hover_of_pick = [
        line.replace(f"</b> {GROUPS['dominated']}", "</b> the pick", 1).replace(
            f"</b> {GROUPS['baseline']}", "</b> the pick", 1
        )
        for line in chosen.hover
    ]
    labels_of_pick = [f"<b>pick</b> {escape_text(name)}" for name in chosen.ids]
    marks["pick"] = replace(chosen, labels=labels_of_pick, hover=hover_of_pick)
    # A script marks the candidate within the reader's limits.
    marks["chosen"] = Marks()
    return FrontData(marks, costs, scores, _score_window(marks, scores[0]), colour)


def _third_objective(info: RunInfo) -> ObjectiveSpec | None:
    """Return the first objective that is on no axis at first; None with two objectives."""
    axes = primary_objectives(info.objectives)
    return next((objective for objective in info.objectives if objective not in axes), None)


def step_line(data: FrontData) -> list[tuple[float, float]]:
    """Return the corners of the front's step line on the declared axes, the cheapest first.

    With more than two objectives, some front candidates are dominated on these two axes; the line skips them.
    """
    marks, cost, score = data.marks["front"], data.costs[0].name, data.scores[0]
    sign = 1.0 if score.direction == "maximize" else -1.0
    pairs = zip(marks.column(cost), marks.column(score.name), strict=True)
    line: list[tuple[float, float]] = []
    for x, y in sorted(
        ((x, y) for x, y in pairs if x is not None and y is not None), key=lambda p: (p[0], -sign * p[1])
    ):
        # Points are sorted by cost, so a point on the line must improve the last score.
        if not line or sign * (y - line[-1][1]) > 0:
            line.append((x, y))
    return line


def select_points(
    candidates: pd.DataFrame, front: pd.DataFrame, info: RunInfo, picked: Pick | None = None
) -> list[int]:
    """Return the positions of the candidates that are drawn: all of them, or ``DRAWN`` if there are more.

    The front, the baselines and the pick always are; the rest by nearness to the ideal, both objectives scaled.
    """
    if len(candidates) <= MAX_POINTS:
        return list(range(len(candidates)))
    distance = np.zeros(len(candidates))
    for objective in primary_objectives(info.objectives):
        scaled = normalize_values(
            numeric_column(candidates, objective.name), objective.require_bounds(), objective.kind == "cost"
        )
        # A missing value counts as the reference point, so such a candidate is left out first.
        distance += np.nan_to_num(scaled, nan=1.0)
    always = candidates["id"].isin([*front["id"], picked.id if picked else None]) | (candidates["role"] != "search")
    # A negative distance puts them before all others.
    distance[always.to_numpy()] = -1.0
    return sorted(int(row) for row in np.argsort(distance, kind="stable")[:MAX_POINTS])


def hypervolume_data(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the columns ``trial`` (number of results so far), ``seconds`` and ``hypervolume``, one row per new front.

    Trials are counted in the order of their results, including those without a hypervolume.
    """
    if not {"hypervolume", "elapsed"} <= set(trials.columns):
        return pd.DataFrame({"trial": [], "seconds": [], "hypervolume": []}, dtype="float64")
    search = trials[trials["role"] == "search"] if "role" in trials else trials
    # A stable sort keeps the stored order of trials with equal times.
    finished = search[np.isfinite(numeric_column(search, "elapsed"))].sort_values("elapsed", kind="stable")
    curve = pd.DataFrame(
        {
            "trial": np.arange(1, len(finished) + 1),
            "seconds": numeric_column(finished, "elapsed").to_numpy(),
            "hypervolume": numeric_column(finished, "hypervolume").to_numpy(),
        }
    )
    fronts: pd.DataFrame = curve[np.isfinite(curve["hypervolume"])].reset_index(drop=True)
    return fronts


def escape_text(value: object) -> str:
    """Return a name that plotly shows literally: tags and invisible characters are escaped."""
    return html.escape(escape_hidden(str(value)), quote=False)


def _axis_choices(candidates: pd.DataFrame, info: RunInfo, kind: str) -> list[ObjectiveSpec]:
    """Return the choices for an axis: the declared objective, then every measured column of its kind."""
    first = primary_objectives(info.objectives)[0 if kind == "cost" else 1]
    records = [record for record in (*info.all_objectives, *info.objectives) if record.kind == kind]
    # The declared record is last, because only it has bounds; a dictionary keeps the position of the first.
    choices = {record.name: record for record in (first, *records, first)}
    return [
        record
        for name, record in choices.items()
        if record is first or (name in candidates and np.isfinite(numeric_column(candidates, name)).any())
    ]


def _teacher_marks(info: RunInfo, names: Sequence[str]) -> Marks:
    teacher = info.teacher
    measured = {**teacher.costs, **teacher.scores.get("select_val", {})}
    if not measured:
        return Marks()
    records = [record for record in (*info.objectives, *info.all_objectives) if record.name in measured]
    # A dictionary removes duplicate lines and keeps their order.
    lines = {f"{label_column(record.name)} {format_value(measured[record.name], record)}": None for record in records}
    hover = "<br>".join(["<b>teacher</b>", *list(lines)[:7]])
    values = {name: [_round_value(measured.get(name))] for name in names}
    return Marks(["teacher"], values, [hover], ["teacher"])


def _repeat_marks(
    repeated: Sequence[ConfirmedCandidate], candidates: pd.DataFrame, names: Sequence[str], score: ObjectiveSpec
) -> Marks:
    """Return the mean scores of repeated candidates with their intervals, at the costs of the original candidates."""
    ids = [str(name) for name in candidates["id"]]
    # A repeated candidate without an interval, or outside the points drawn, has no mark.
    shown = [candidate for candidate in repeated if candidate.id in ids and is_finite(candidate.select_val.low)]
    rows = candidates.iloc[[ids.index(candidate.id) for candidate in shown]]
    values = {name: [_round_value(value) for value in numeric_column(rows, name)] for name in names}
    values[score.name] = [_round_value(candidate.select_val.mean) for candidate in shown]
    hover = [
        "<br>".join(
            [
                f"<b>{escape_text(candidate.id)}</b> repeated with {len(candidate.select_val.values)} seeds",
                f"{label_column(score.name)} {format_estimate(candidate.select_val, score)} on select_val",
                f"{format_estimate(candidate.test, score)} on test",
                f"in the search {format_value(candidate.searched, score)}",
            ]
        )
        for candidate in shown
    ]
    ends = [(candidate.select_val.low, candidate.select_val.high) for candidate in shown]
    return Marks([candidate.id for candidate in shown], values, hover, bounds=ends)


def format_with_interval(value: object, ends: tuple[float, float] | None, score: ObjectiveSpec) -> str:
    """Return a score with its interval where there is one.

    Example:
        >>> format_with_interval(0.974, (0.96, 0.98), ObjectiveSpec("accuracy", "maximize"))
        '97.4% [96.0%, 98.0%]'
    """
    text = format_value(value, score)
    if ends is None or not is_finite(value):
        return text
    return f"{text} [{', '.join(format_value(end, score) for end in ends)}]"


def describe_test_scores(candidates: pd.DataFrame, info: RunInfo) -> list[str]:
    """Return the first score on the test split with its 95% interval for each row; empty where it was not read."""
    score = primary_objectives(info.objectives)[1]
    column = f"{score.name}_test"
    if column not in candidates:
        return [""] * len(candidates)
    details = candidates.get("details", pd.Series([None] * len(candidates)))
    texts = []
    for value, stored in zip(candidates[column], details, strict=True):
        text = format_value(value, score) if is_finite(value) else ""
        ends = estimate_interval({"details": stored}) if text else None
        texts.append(
            text if ends is None else f"{text} [{format_value(ends[0], score)}, {format_value(ends[1], score)}]"
        )
    return texts


def _tooltips(candidates: pd.DataFrame, groups: "pd.Series[str]", info: RunInfo) -> list[str]:
    """Return a tooltip of eight lines per candidate: group, scores, costs and hyperparameters."""
    cost, score = primary_objectives(info.objectives)
    recipes = method_texts(candidates)
    records = {record.name: record for record in (*info.all_objectives, *info.objectives)}
    small = [name for name in ("bytes", "parameters") if name in candidates and name in records]
    sizes = [(records[name], numeric_column(candidates, name).tolist()) for name in small]
    teacher_cost = info.teacher.costs.get(cost.name)
    searched = candidates.get(f"{score.name}_search", pd.Series(np.nan, index=candidates.index)).tolist()
    costs, scores = numeric_column(candidates, cost.name).tolist(), numeric_column(candidates, score.name).tolist()
    notes = describe_simulation(candidates, info.target.precisions)
    tests = describe_test_scores(candidates, info)
    hovers = []
    for row, (name, group) in enumerate(zip(candidates["id"], groups, strict=True)):
        against = (
            f", {compare_costs(costs[row], teacher_cost, cost.name)} than the teacher"
            if is_finite(teacher_cost)
            else ""
        )
        lines = [
            f"<b>{escape_text(name)}</b> {GROUPS[group]}",
            f"{label_column(score.name)} {format_value(scores[row], score)} "
            f"(search_val {format_value(searched[row], score)}{', test ' + tests[row] if tests[row] else ''})",
            f"{format_value(costs[row], cost)}{against}",
            ", ".join(f"{format_value(column[row], record)} {_unit_noun(record)}".strip() for record, column in sizes),
            *(
                f"{section}: {_shorten_line(join_methods(recipes[section][row]))}"
                for section in ("student", "distill", "prune")
            ),
            f"quantize: {_shorten_line(join_methods(recipes['quantize'][row]))}"
            + (" (simulated)" if notes[row] else ""),
        ]
        hovers.append("<br>".join(lines))
    return hovers


def _unit_noun(record: ObjectiveSpec) -> str:
    return "" if record.name == "bytes" else label_column(record.name)


def _shorten_line(value: str) -> str:
    return escape_text(value if len(value) <= _LINE_LENGTH else value[: _LINE_LENGTH - 3] + "...")


def _score_window(marks: Mapping[str, Marks], score: ObjectiveSpec) -> tuple[float, float]:
    """Return the initial [bottom, top] of the score's axis: at most the best quarter of its range.

    A front that reaches down to chance would otherwise squeeze the region of useful candidates.
    """
    seen = [value for name in ("front", "baseline", "teacher", "pick") for value in marks[name].column(score.name)]
    bounds = score.require_bounds()
    values = [value for value in seen if value is not None] or list(bounds)
    worst, best = bounds[0], max(values) if score.direction == "maximize" else min(values)
    quarter = best + (worst - best) / 4
    far = max(min(values), quarter) if score.direction == "maximize" else min(max(values), quarter)
    # The second term keeps a window of a single value from having no height.
    margin = (best - far) * 0.08 or (best - worst) * 0.01
    return far - margin, best + margin


def _round_value(value: object) -> float | None:
    """Return a value with six significant digits, which keeps the page small; None if it is not finite."""
    return float(f"{value:.6g}") if is_finite(value) else None
