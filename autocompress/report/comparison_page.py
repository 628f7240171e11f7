"""The page on which runs are compared: one HTML file, offline, readable without JavaScript."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import duration, label, show
from autocompress.report.comparison import SHARES, Comparison
from autocompress.report.comparison_figures import fronts_figure, volumes_figure
from autocompress.report.figures import plotly_source
from autocompress.report.page import asset, packed, script_hash, templates


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Write the page and return its path; a crash leaves the old file or the new one.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    script, plotly = asset("drawing.js") + asset("compare.js"), plotly_source()
    figures = {"fronts": fronts_figure(comparison), "volumes": volumes_figure(comparison)}
    payload = "{" + ",".join(f"{json.dumps(name)}:{figure.to_json()}" for name, figure in figures.items()) + "}"
    content: dict[str, Any] = {
        "title": " against ".join(dict.fromkeys(run.name for run in comparison.runs)),
        "verdict": verdict(comparison),
        "columns": columns(comparison),
        "rows": rows(comparison),
        "style": Markup(asset("page.css")),
        "script": Markup(script),
        "hashes": [script_hash(script), script_hash(plotly)],
        "plotly": packed(plotly),
        "payload": packed(payload),
    }
    page = templates().get_template("compare.html.jinja").render(content)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def verdict(comparison: Comparison) -> str:
    """Return in one sentence which run came farthest, and how soon."""
    ranked = sorted(comparison.runs, key=lambda run: -run.hypervolume)
    best, second = ranked[0], ranked[1]
    sooner = next((seconds for seconds, volume in best.curve if volume >= second.hypervolume), None)
    lead = f"{best.name} dominates the most ({best.hypervolume:.4f} of the box)"
    if sooner is None or best.hypervolume == second.hypervolume:
        return f"{lead}."
    return f"{lead}; it had passed {second.name}'s {second.hypervolume:.4f} after {duration(sooner)}."


def columns(comparison: Comparison) -> list[str]:
    """Return the heads of the table's columns."""
    limits = [f"{label(comparison.score['name'])} at {share:.4g}" for share in SHARES]
    return ["run", "mode", "volume", "front", *limits, "trained", "search"]


def rows(comparison: Comparison) -> list[list[str]]:
    """Return the table's cells, one row a run."""
    return [
        [
            run.name,
            run.kind,
            f"{run.hypervolume:.4f}",
            str(len(run.front)),
            *("–" if score is None else show(score, comparison.score) for score in run.at_shares),
            str(run.trainings),
            duration(run.seconds),
        ]
        for run in comparison.runs
    ]
