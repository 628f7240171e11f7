"""Plotly figures, each in two steps: the data, and the drawing.

Notebooks show the same figures as the page; on the page, a script updates the step line when an axis changes.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypedDict

import pandas as pd
import plotly.graph_objects as go

from autocompress.analysis.confirmation import ConfirmedCandidate
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import format_value, is_share, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.report.figure_data import (
    GROUPS,
    FrontData,
    Marks,
    escape_text,
    front_data,
    hypervolume_data,
    step_line,
)
from autocompress.report.static_figure import Frame, label_positions
from autocompress.report.summary import reference_data

# Okabe and Ito's palette in mid tones, visible on white and on black; shapes distinguish the groups without colour.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f86c8", "#dd5c10", "#109a72", "#b0659a", "#8b93a1"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_STYLES: dict[str, dict[str, object]] = {
    "early": {"symbol": "x-thin", "size": 6, "opacity": 0.5, "line": {"width": 1, "color": GREY}},
    "infeasible": {"symbol": "circle-open", "size": 7, "color": GREY, "opacity": 0.7},
    "dominated": {"symbol": "circle", "size": 6, "color": GREY, "opacity": 0.35},
    "front": {"symbol": "circle", "size": 9, "color": BLUE},
    "baseline": {"symbol": "triangle-up", "size": 12, "color": PURPLE},
    "teacher": {"symbol": "square", "size": 12, "color": GREEN},
    "again": {"symbol": "line-ew", "size": 12, "line": {"width": 2, "color": BLUE}},
    "knee": {"symbol": "circle-open", "size": 20, "color": BLUE, "line": {"width": 2}},
    "pick": {"symbol": "diamond", "size": 15, "color": ORANGE},
    "chosen": {"symbol": "diamond-open", "size": 20, "color": ORANGE, "line": {"width": 3}},
}
# Groups whose marks are filled, so that a hollow one means something.
_HOLLOW = ("dominated", "front", "pick")
_NAMES = {
    **GROUPS,
    "front": "front",
    "teacher": "teacher",
    "again": "repeated, 95%",
    "knee": "knee",
    "pick": "pick",
    "chosen": "pick within the limits",
}
BARE: dict[str, object] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 24, "t": 24, "b": 56},
    "hoverlabel": {"align": "left", "namelength": -1},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE, "orientation": "v"},
}
# With seven ticks, a logarithmic axis has one at each power of ten, and more between them on a short axis.
TICKS = 7
_LEGEND = ("pick", "chosen", "front", "again", "knee", "teacher", "baseline", "dominated", "infeasible", "early")

_NO_INFO = RunInfo()


def draw_front(data: FrontData) -> go.Figure:
    """Return the plot of score against cost (logarithmic), with menus that change the axes."""
    cost, score = data.costs[0], data.scores[0]
    figure = go.Figure(layout={"template": go.layout.Template(), **_front_layout(data)})
    line = step_line(data)
    steps = {"shape": "hv", "color": BLUE, "width": 2}
    figure.add_scatter(
        x=[x for x, _ in line],
        y=[y for _, y in line],
        name="front line",
        mode="lines",
        line=steps,
        meta="line",
        hoverinfo="skip",
        showlegend=False,
    )
    positions = label_positions(data, Frame.for_data(data, (1040.0, 540.0), (64.0, 24.0, 24.0, 56.0)))
    for name, marks in data.marks.items():
        figure.add_scatter(
            x=marks.column(cost.name),
            y=marks.column(score.name),
            mode="markers+text" if marks.labels else "markers",
            marker=_style_marks(name, marks, data.colour),
            name=_NAMES[name],
            legendrank=_LEGEND.index(name) + 1,
            meta=name,
            customdata=marks.ids,
            text=marks.labels or None,
            textposition=[positions[name, row] for row in range(len(marks.labels))] or None,
            hovertext=marks.hover,
            hovertemplate="%{hovertext}<extra></extra>",
            hoverinfo="skip" if name == "knee" else None,
            error_y=_error_bars(marks, score.name),
            visible="legendonly" if name == "early" else True,
            showlegend=bool(marks.ids),
            # The label of a point at the edge stays whole.
            cliponaxis=False if marks.labels else None,
        )
    figure.layout.updatemenus = _axis_menus(data)
    return figure


def _style_marks(name: str, marks: Marks, colour: ObjectiveSpec | None) -> dict[str, object]:
    """Return the style of a group of points; those without kernels on the target are hollow.

    Args:
        name: Name of the group.
        marks: Points of the group.
        colour: Objective that colours the candidates of the front and those that are dominated.
    """
    style = _STYLES[name]
    if colour is not None and name in ("front", "dominated"):
        # The edge is what the legend shows of a group with many colours.
        edge = {"width": 1, "color": style["color"]}
        style = {**style, "color": _colour_values(marks, colour), "coloraxis": "coloraxis", "line": edge}
    if name not in _HOLLOW or not any(marks.hollow):
        return style
    symbol = str(style["symbol"])
    return {**style, "symbol": [f"{symbol}-open" if hollow else symbol for hollow in marks.hollow]}


def _error_bars(marks: Marks, score: str) -> dict[str, object] | None:
    if not marks.bounds:
        return None
    means = [value or 0.0 for value in marks.column(score)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [round(high - mean, 6) for mean, (_, high) in zip(means, marks.bounds, strict=True)],
        "arrayminus": [round(mean - low, 6) for mean, (low, _) in zip(means, marks.bounds, strict=True)],
        "color": BLUE,
        "thickness": 1.5,
        "width": 4,
    }


def front_figure(
    candidates: pd.DataFrame,
    front: pd.DataFrame,
    info: RunInfo,
    picked: Pick | None = None,
    repeated: Sequence[ConfirmedCandidate] = (),
) -> go.Figure:
    """Return the plot of all candidates, with marks for front, pick, knee, teacher, baselines and repeats."""
    return draw_front(front_data(candidates, front, info, picked, repeated))


def hypervolume_figure(trials: pd.DataFrame, info: RunInfo = _NO_INFO) -> go.Figure:
    """Return the hypervolume of the front, and of the reference run, over trials (left) and over time (right)."""
    curve, other = hypervolume_data(trials), reference_data(info)
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": 300, "showlegend": not other.empty})
    lines = [(curve, "this search", {"color": BLUE, "width": 2})]
    if info.reference is not None:
        lines.append((other, escape_text(info.reference.name), {"color": GREY, "width": 2, "dash": "dash"}))
    for rows, name, line in lines:
        for column, axis, unit in (("trial", "x", "trials"), ("seconds", "x2", "s")):
            figure.add_scatter(
                x=rows[column].tolist(),
                y=rows["hypervolume"].round(6).tolist(),
                name=name,
                legendgroup=name,
                showlegend=axis == "x",
                xaxis=axis,
                mode="lines+markers" if rows is curve else "lines",
                line={"shape": "hv", **line},
                marker={"size": 4},
                hovertemplate=f"%{{y:.4f}} after %{{x:.4g}} {unit}<extra></extra>",
            )
    return figure.update_layout(
        xaxis={"domain": [0, 0.47], "title": {"text": "trials"}, "rangemode": "tozero", "zeroline": False},
        xaxis2={"domain": [0.53, 1], "title": {"text": "seconds"}, "rangemode": "tozero", "zeroline": False},
        yaxis={"title": {"text": "hypervolume"}, "zeroline": False},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )


@cache
def plotly_source() -> str:
    """Return the JavaScript of plotly that is part of each page: points, lines, bars and parallel coordinates.

    The complete bundle of plotly's Python package is four times as large: it would add 2 MB to each page, and dominate
    the time to open it. It also compiles code, which the content security policy of the page forbids.
    ``scripts/plotly_bundle`` builds the file.
    """
    return (Path(__file__).parent / "vendor" / "plotly-custom.min.js").read_text(encoding="utf-8")


def _front_layout(data: FrontData) -> dict[str, object]:
    cost, score = data.costs[0], data.scores[0]
    return {
        **BARE,
        "height": 540,
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {"type": "log", **axis_settings(cost), "nticks": TICKS, "zeroline": False},
        "yaxis": {**axis_settings(score), "range": list(data.window), "zeroline": False},
        **({} if data.colour is None else {"coloraxis": _colour_axis(data, data.colour)}),
    }


def _colour_values(marks: Marks, record: ObjectiveSpec) -> list[float | None]:
    """Return the numbers behind the colours of points: logarithms of costs, which differ by orders of magnitude."""
    if record.kind == "score":
        return marks.column(record.name)
    return [None if value is None or value <= 0 else math.log10(value) for value in marks.column(record.name)]


def _colour_axis(data: FrontData, record: ObjectiveSpec) -> dict[str, object]:
    """Return the scale of a colour; its two ends are visible on white and on black."""
    values = [
        value
        for name in ("front", "dominated")
        for value in _colour_values(data.marks[name], record)
        if value is not None
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    positions = [low + (high - low) * step / 4 for step in range(5)]
    texts = [format_value(position if record.kind == "score" else 10.0**position, record) for position in positions]
    bar = {"title": {"text": label_column(record.name), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    return {
        "colorscale": [[0, BLUE], [1, ORANGE]],
        "cmin": low,
        "cmax": high,
        "colorbar": {**bar, "tickvals": positions, "ticktext": texts},
    }


class AxisTitle(TypedDict):
    """Text of an axis title."""

    text: str


class AxisSettings(TypedDict):
    """Title and tick format of an axis, in plotly's names."""

    title: AxisTitle
    tickformat: str


def axis_settings(record: ObjectiveSpec) -> AxisSettings:
    """Return the title and the ticks of an objective's axis."""
    unit = record.unit or ""
    name = label_column(record.name) + (
        f" ({unit})" if unit and unit.lower() not in label_column(record.name).lower() else ""
    )
    # Up is better on every plot, which turns the axis of an error around.
    title = f"{name} (less is better)" if _autorange(record) == "reversed" else name
    return {"title": {"text": title}, "tickformat": _tick_format(record)}


def _autorange(record: ObjectiveSpec) -> bool | str:
    """Return plotly's autorange: up is always better, so the axis of a score to be minimized is reversed."""
    return "reversed" if record.kind == "score" and record.direction == "minimize" else True


def _tick_format(record: ObjectiveSpec) -> str:
    if record.kind == "cost":
        # The SI format would show 0.5 ms as "500m".
        return "~g" if record.unit == "ms" else "~s"
    return ".0%" if is_share(record) else ""


def _axis_menus(data: FrontData) -> list[dict[str, object]]:
    """Return the menus for cost, score and scale.

    A plotly menu cannot combine two choices, and the step line is valid for the declared axes only: for other axes, the
    menu removes the line, and the script of the page computes it again.
    """
    menus = []
    for side, records in (("x", data.costs), ("y", data.scores)):
        buttons = []
        for row, record in enumerate(records):
            line = [] if row else [point[side == "y"] for point in step_line(data)]
            columns = [line, *(marks.column(record.name) for marks in data.marks.values())]
            settings = {
                f"{side}axis.title.text": axis_settings(record)["title"]["text"],
                f"{side}axis.autorange": _autorange(record),
            }
            settings[f"{side}axis.tickformat"] = axis_settings(record)["tickformat"]
            name = record.name
            traces: dict[str, object] = {side: columns}
            if side == "y" and data.marks["again"].bounds:
                # Confidence intervals exist for the declared score only.
                traces["error_y.visible"] = row == 0
            buttons.append({"label": label_column(name), "name": name, "method": "update", "args": [traces, settings]})
        menus.append({"name": "cost" if side == "x" else "score", "buttons": buttons})
    menus.append(
        {
            "name": "scale",
            "buttons": [
                {"label": "logarithmic cost", "method": "relayout", "args": [{"xaxis.type": "log"}]},
                {"label": "linear cost", "method": "relayout", "args": [{"xaxis.type": "linear"}]},
            ],
        }
    )
    return [{**menu, "x": 0.6 + 0.2 * row, "y": 1.22, "xanchor": "left"} for row, menu in enumerate(menus)]
