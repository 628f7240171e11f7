"""Plotly figures for exploration: learning curves, slices and parallel coordinates."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from autocompress.analysis.importance import encode_column, is_numeric
from autocompress.core.formatting import format_value, is_share, label_column
from autocompress.core.run_info import ObjectiveSpec
from autocompress.report.figure_data import escape_text
from autocompress.report.figures import BARE, BLUE, GREEN, GREY, ORANGE, PURPLE, axis_settings
from autocompress.report.slices import LOG_RATIO, Slice
from autocompress.report.trial_data import REFINEMENT, STATES, LearningCurves, Timeline

# A dash and a mark at the end tell the states apart without colour.
_LINES: Mapping[str, Mapping[str, object]] = {
    "complete": {"color": BLUE, "width": 1.2},
    "stopped": {"color": GREY, "width": 1.2, "dash": "dot"},
    "failed": {"color": ORANGE, "width": 1.6, "dash": "dash"},
    "unfinished": {"color": GREEN, "width": 1.2, "dash": "dashdot"},
}
_ENDS = {"complete": "circle", "stopped": "x", "failed": "triangle-down", "unfinished": "circle-open"}
# A pattern over the colour tells the states apart without it.
_PATTERN = {"fgcolor": "#ffffff", "fillmode": "overlay", "size": 6}
_BARS: Mapping[str, Mapping[str, object]] = {
    "complete": {"color": BLUE},
    "stopped": {"color": GREY, "pattern": {**_PATTERN, "shape": "/"}},
    "failed": {"color": ORANGE, "pattern": {**_PATTERN, "shape": "x"}},
    "unfinished": {"color": GREEN, "pattern": {**_PATTERN, "shape": "."}},
    REFINEMENT: {"color": PURPLE, "pattern": {**_PATTERN, "shape": "|"}},
}
#: Rows of the timeline that make it higher.
MAX_WORKER_ROWS = 24
#: More rungs than these have no lines: each trial has its own, where the number of epochs varies.
MAX_RUNG_LINES = 4
#: Distinct values of an axis of parallel coordinates that all have a tick.
MAX_TICKS = 8
# Losses that span more than this ratio have a logarithmic axis.
_LOSS_RATIO = 10.0
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def draw_curves(curves: LearningCurves, score: ObjectiveSpec | None = None) -> go.Figure:
    """Return the learning curves, one group of lines for each state, with the rungs as vertical lines.

    Args:
        curves: Curves by state.
        score: Score that the curves show; None for the training loss.
    """
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": 360, "hovermode": "closest"})
    axis: dict[str, object] = {"title": {"text": "training loss"}} if score is None else {**axis_settings(score)}
    form = ".4g" if score is None else _value_format(score)
    for state, label in STATES.items():
        _add_state(figure, curves, state, label, f"trial %{{customdata}}, epoch %{{x}}: %{{y:{form}}}<extra></extra>")
    values = [value for group in curves.groups.values() for curve in group for value in curve.values]
    if score is None and values and min(values) > 0 and max(values) / min(values) > _LOSS_RATIO:
        # One tick at each power of ten; over few of them, also at 2 and 5.
        axis |= {"type": "log", "dtick": 1 if max(values) / min(values) > _LOSS_RATIO**2 else "D2"}
    rungs = curves.rungs if len(curves.rungs) <= MAX_RUNG_LINES else ()
    figure.update_layout(
        xaxis={"title": {"text": "epochs"}, "rangemode": "tozero", "zeroline": False},
        yaxis={**axis, "zeroline": False, "nticks": 7},
        legend=_LEGEND,
        shapes=[_rung_line(number, epochs) for number, epochs in enumerate(rungs, 1)],
    )
    return figure


def _add_state(figure: go.Figure, curves: LearningCurves, state: str, label: str, template: str) -> None:
    """Add one trace of all lines of a state, and one of their ends."""
    group = curves.groups[state]
    xs: list[float | None] = []
    ys: list[float | None] = []
    trials: list[int | None] = []
    for curve in group:
        # A gap separates the lines: one trace for each trial would be slow.
        xs += [*curve.epochs, None]
        ys += [*(float(f"{value:.5g}") for value in curve.values), None]
        trials += [*[curve.trial] * len(curve.epochs), None]
    figure.add_scatter(
        x=xs, y=ys, customdata=trials, mode="lines", name=label, legendgroup=state, line=dict(_LINES[state]),
        opacity=0.7, showlegend=False, hovertemplate=template, meta=state,
    )  # fmt: skip
    figure.add_scatter(
        x=[curve.epochs[-1] for curve in group], y=[curve.values[-1] for curve in group],
        customdata=[curve.trial for curve in group], mode="markers", name=label, legendgroup=state,
        marker={"symbol": _ENDS[state], "size": 7, "color": _LINES[state]["color"]},
        showlegend=bool(group), hovertemplate=template, meta=f"{state} end",
    )  # fmt: skip


def _value_format(score: ObjectiveSpec) -> str:
    """Return the format of a score's values in labels: a share has one digit more than on the axis."""
    return ".1%" if is_share(score) else ".4g"


def _rung_line(number: int, epochs: int) -> dict[str, object]:
    return {
        "type": "line",
        "x0": epochs,
        "x1": epochs,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": PURPLE, "width": 1, "dash": "dot"},
        "label": {"text": f"rung {number}", "textposition": "end", "textangle": 0, "yanchor": "top", "xanchor": "left"},
    }


def draw_timeline(timeline: Timeline) -> go.Figure:
    """Return what each worker did when: one row for each worker, and one bar for each part of a trial."""
    height = 120 + 24 * min(timeline.workers, MAX_WORKER_ROWS)
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": height, "hovermode": "closest"})
    for state, label in {**STATES, REFINEMENT: "refinement"}.items():
        times = "%{customdata[1]} to %{customdata[2]} s"
        bars = timeline.groups[state]
        figure.add_bar(
            orientation="h", name=label, meta=state, showlegend=bool(bars), marker=dict(_BARS[state]),
            base=[round(bar.start, 2) for bar in bars], x=[round(bar.end - bar.start, 2) for bar in bars],
            y=[str(bar.worker) for bar in bars],
            customdata=[[bar.trial, round(bar.start, 1), round(bar.end, 1)] for bar in bars],
            hovertemplate=f"trial %{{customdata[0]}}, {label}: {times}<extra></extra>",
        )  # fmt: skip
    names = [str(number) for number in range(1, timeline.workers + 1)]
    return figure.update_layout(
        barmode="overlay",
        bargap=0.25,
        xaxis={"title": {"text": "seconds of search"}, "rangemode": "tozero", "zeroline": False},
        yaxis={
            "title": {"text": "worker"},
            "type": "category",
            "categoryorder": "array",
            # The first worker is on top.
            "categoryarray": names[::-1],
        },
        legend=_LEGEND,
    )


def draw_slice(panel: Slice, label: str, score: ObjectiveSpec) -> go.Figure:
    """Return the score against one hyperparameter: candidates, and the partial dependence with its interval.

    Args:
        panel: Candidates and partial dependence.
        label: Label of the hyperparameter.
        score: First score of the search.
    """
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": 300, "hovermode": "closest"})
    styles: dict[str, dict[str, object]] = {
        "other": {"symbol": "circle", "size": 5, "color": GREY, "opacity": 0.4},
        "front": {"symbol": "circle", "size": 7, "color": BLUE},
        "pick": {"symbol": "diamond", "size": 13, "color": ORANGE},
    }
    names = {"other": "candidate", "front": "front", "pick": "pick"}
    form = _value_format(score)
    for name, points in panel.groups.items():
        figure.add_scatter(
            x=list(points.values), y=list(points.scores), customdata=[escape_text(one) for one in points.ids],
            mode="markers", marker=styles[name], name=names[name], meta=name, showlegend=False,
            hovertemplate=f"%{{customdata}}, %{{x:.4g}}: %{{y:{form}}}<extra></extra>"
            if not panel.is_category else f"%{{customdata}}: %{{y:{form}}}<extra></extra>",
        )  # fmt: skip
    _add_dependence(figure, panel, form)
    figure.update_layout(
        xaxis={
            "title": {"text": escape_text(label)},
            "type": "category" if panel.is_category else "log" if panel.is_log else "linear",
            "zeroline": False,
            "nticks": 6,
        },
        yaxis={**axis_settings(score), "zeroline": False, "nticks": 6},
        margin={"l": 56, "r": 12, "t": 8, "b": 48},
    )
    return figure


def _add_dependence(figure: go.Figure, panel: Slice, form: str) -> None:
    """Add the partial dependence: a line with a band over numbers, marks with error bars over texts."""
    dependence = panel.dependence
    if dependence is None:
        return
    mean, low, high = (
        [round(value, 6) for value in ends] for ends in (dependence.mean, dependence.low, dependence.high)
    )
    common = {"meta": "dependence", "name": "partial dependence", "showlegend": False}
    template = f"predicted %{{y:{form}}} [%{{customdata[0]:{form}}}, %{{customdata[1]:{form}}}]<extra></extra>"
    ends: Sequence[list[float]] = [list(pair) for pair in zip(low, high, strict=True)]
    if panel.is_category:
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [round(top - value, 6) for top, value in zip(high, mean, strict=True)],
            "arrayminus": [round(value - bottom, 6) for value, bottom in zip(mean, low, strict=True)],
            "color": PURPLE,
        }
        figure.add_scatter(
            x=list(dependence.values), y=mean, mode="markers", error_y=bars, customdata=ends, hovertemplate=template,
            marker={"symbol": "line-ew", "size": 16, "line": {"width": 3, "color": PURPLE}}, **common,
        )  # fmt: skip
        return
    values = list(dependence.values)
    figure.add_scatter(
        x=[*values, *values[::-1]], y=[*low, *high[::-1]], fill="toself", fillcolor="rgba(176,101,154,0.2)",
        line={"width": 0}, mode="lines", hoverinfo="skip", **common,
    )  # fmt: skip
    figure.add_scatter(
        x=values, y=mean, mode="lines+markers", line={"color": PURPLE, "width": 2}, marker={"size": 5},
        customdata=ends, hovertemplate=template, **common,
    )  # fmt: skip


def draw_parallel(
    candidates: pd.DataFrame, columns: Sequence[tuple[str, str]], objectives: Sequence[ObjectiveSpec]
) -> go.Figure:
    """Return parallel coordinates of candidates, coloured by the last objective.

    Args:
        candidates: Candidates, in the order of the table of the page, so that a script can filter it.
        columns: Column and label of each hyperparameter, the most important first.
        objectives: Objectives of the last axes.
    """
    axes = [{"label": escape_text(label), **_parallel_axis(candidates[name])} for name, label in columns]
    for record in objectives:
        axis = _parallel_axis(candidates[record.name], record)
        axes.append({"label": escape_text(label_column(record.name)), **axis})
    colours = [[0.0, GREY], [0.5, BLUE], [1.0, ORANGE]]
    line = {"color": axes[-1]["values"], "colorscale": colours, "showscale": False}
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": 420})
    figure.add_parcoords(dimensions=axes, line=line, unselected={"line": {"color": GREY, "opacity": 0.05}})
    return figure.update_layout(margin={"l": 72, "r": 72, "t": 72, "b": 32})


def _parallel_axis(column: pd.Series, record: ObjectiveSpec | None = None) -> dict[str, object]:
    """Return the values of one axis with its ticks; a value that is missing lies below all others."""
    codes = encode_column(column)
    present = codes[np.isfinite(codes)]
    if not len(present):
        return {"values": [0.0] * len(codes), "tickvals": [0.0], "ticktext": ["none"], "range": [-1.0, 1.0]}
    is_text = not is_numeric(column)
    is_log = not is_text and present.min() > 0 and present.max() / present.min() >= LOG_RATIO
    scaled = np.log10(codes) if is_log else codes
    distinct = np.unique(scaled[np.isfinite(scaled)])
    ends = (float(distinct[0]), float(distinct[-1]))
    span = ends[1] - ends[0] or 1.0
    ticks = distinct if is_text or len(distinct) <= MAX_TICKS else np.linspace(*ends, 4)
    names = [str(name) for name in pd.factorize(column.map(str, na_action="ignore"))[1]] if is_text else []
    texts = [
        escape_text(names[round(tick)]) if is_text else _format_tick(10.0**tick if is_log else float(tick), record)
        for tick in ticks.tolist()
    ]
    values, bottom = scaled, ends[0]
    if not np.isfinite(scaled).all():
        bottom = ends[0] - 0.15 * span
        values = np.where(np.isfinite(scaled), scaled, bottom)
        ticks, texts = np.array([bottom, *ticks]), ["none", *texts]
    return {
        "values": [float(f"{value:.5g}") for value in values.tolist()],
        "tickvals": [float(f"{tick:.5g}") for tick in ticks.tolist()],
        "ticktext": texts,
        "range": [bottom - 0.02 * span, ends[1] + 0.02 * span],
    }


def _format_tick(value: float, record: ObjectiveSpec | None) -> str:
    return f"{value:.3g}" if record is None else format_value(value, record)
