"""The page that compares runs: one offline HTML file, readable without JavaScript."""

import json
from pathlib import Path

from markupsafe import Markup

from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import format_duration, format_value, label_column
from autocompress.report.comparison import SHARES, Comparison
from autocompress.report.comparison_figures import fronts_figure, volumes_figure
from autocompress.report.figures import plotly_source
from autocompress.report.page import load_templates, pack_text, read_asset, script_hash


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
