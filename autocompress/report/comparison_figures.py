"""Figures that compare runs."""

import plotly.graph_objects as go

from autocompress.report.comparison import Comparison
from autocompress.report.figure_data import escape_text
from autocompress.report.figures import BARE, COLOURS, TICKS, axis_settings


def fronts_figure(comparison: Comparison) -> go.Figure:
    """Return the fronts on common axes, and the median attainment of each mode."""
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": 520})
    for number, run in enumerate(comparison.runs):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=[cost for cost, _ in run.front],
            y=[score for _, score in run.front],
            name=escape_text(run.name),
            mode="lines+markers",
            line={"shape": "hv", "color": colour, "width": 2},
            # Symbols tell the runs apart where the colours repeat or cannot be seen.
            marker={"symbol": number % 8, "size": 7},
        )
    for kind, line in comparison.attained.items():
        figure.add_scatter(
            x=[cost for cost, _ in line],
            y=[score for _, score in line],
            name=f"median of {escape_text(kind)}",
            mode="lines",
            line={"shape": "hv", "dash": "dot", "width": 3},
        )
    upward = comparison.score.direction == "maximize"
    return figure.update_layout(
        xaxis={"type": "log", **axis_settings(comparison.cost), "nticks": TICKS, "zeroline": False},
        yaxis={**axis_settings(comparison.score), "autorange": True if upward else "reversed", "zeroline": False},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )


def volumes_figure(comparison: Comparison) -> go.Figure:
    """Return the hypervolume of each run over time."""
    figure = go.Figure(layout={"template": go.layout.Template(), **BARE, "height": 360})
    for number, run in enumerate(comparison.runs):
        figure.add_scatter(
            # The last volume holds until the run ends, so each line extends to that time.
            x=[*(seconds for seconds, _ in run.curve), run.seconds],
            y=[*(volume for _, volume in run.curve), run.curve[-1][1]],
            name=escape_text(run.name),
            mode="lines",
            line={"shape": "hv", "color": COLOURS[number % len(COLOURS)], "width": 2},
            hovertemplate="%{y:.4f} after %{x:.0f} s<extra></extra>",
        )
    return figure.update_layout(
        xaxis={"title": {"text": "seconds"}, "rangemode": "tozero", "zeroline": False},
        yaxis={"title": {"text": "hypervolume, select_val"}, "zeroline": False},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
