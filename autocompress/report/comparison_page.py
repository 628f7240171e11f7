"""The page that compares runs: one offline HTML file, readable without JavaScript."""

import json
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup

from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import format_duration, format_value, label_column
from autocompress.report.comparison import SHARES, Comparison
from autocompress.report.figure_data import escape_text
from autocompress.report.figures import BARE, COLOURS, TICKS, axis_settings, plotly_source
from autocompress.report.page import load_templates, pack_text, read_asset, script_hash


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


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Write the page atomically and return its path.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    script, plotly = read_asset("drawing.js") + read_asset("compare.js"), plotly_source()
    figures = {"fronts": fronts_figure(comparison), "volumes": volumes_figure(comparison)}
    # Plotly encodes its own figures, so their JSON texts are joined and not encoded again.
    payload = "{" + ",".join(f"{json.dumps(name)}:{figure.to_json()}" for name, figure in figures.items()) + "}"
    content: dict[str, object] = {
        "title": " against ".join(dict.fromkeys(run.name for run in comparison.runs)),
        "verdict": summarize_comparison(comparison),
        "columns": column_headings(comparison),
        "rows": table_cells(comparison),
        "style": Markup(read_asset("page.css")),
        "script": Markup(script),
        # The page runs only scripts with these hashes.
        "hashes": [script_hash(script), script_hash(plotly)],
        "plotly": pack_text(plotly),
        "payload": pack_text(payload),
    }
    page = load_templates().get_template("compare.html.jinja").render(content)
    # Lone surrogates in names have no UTF-8 form; they are written as escapes.
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def summarize_comparison(comparison: Comparison) -> str:
    """Return in one sentence which run has the largest hypervolume, and when it passed the second."""
    ranked = sorted(comparison.runs, key=lambda run: -run.hypervolume)
    best, second = ranked[0], ranked[1]
    sooner = next((seconds for seconds, volume in best.curve if volume >= second.hypervolume), None)
    lead = f"{best.name} has the largest hypervolume ({best.hypervolume:.4f})"
    if sooner is None or best.hypervolume == second.hypervolume:
        return f"{lead}."
    return f"{lead}; it reached that of {second.name} ({second.hypervolume:.4f}) after {format_duration(sooner)}."


def column_headings(comparison: Comparison) -> list[str]:
    """Return the headings of the table's columns."""
    limits = [f"{label_column(comparison.score.name)} at {share:.4g}" for share in SHARES]
    return ["run", "mode", "hypervolume", "front", *limits, "trials", "time"]


def table_cells(comparison: Comparison) -> list[list[str]]:
    """Return the table's cells, one row per run."""
    return [
        [
            run.name,
            run.kind,
            f"{run.hypervolume:.4f}",
            str(len(run.front)),
            *("–" if score is None else format_value(score, comparison.score) for score in run.at_shares),
            str(run.trials),
            format_duration(run.seconds),
        ]
        for run in comparison.runs
    ]


def comparison_rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return the table for programs: numbers instead of texts, one row per run, and None for a score not reached."""
    names = [f"{comparison.score.name}_at_{share:.4g}" for share in SHARES]
    return [
        {
            "run": run.name,
            "mode": run.kind,
            "hypervolume": run.hypervolume,
            "front": len(run.front),
            **dict(zip(names, run.at_shares, strict=True)),
            "trials": run.trials,
            "seconds": run.seconds,
        }
        for run in comparison.runs
    ]
