"""The page: one HTML file that needs neither network nor server, and reads without JavaScript and on paper."""

import base64
import gzip
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from autocompress.analysis.confirmation import Confirmed, confirmed, front_on_test, on_test, without_repeats
from autocompress.analysis.pareto import axes, full_fidelity, knee, pareto_front
from autocompress.analysis.selection import Pick
from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import label
from autocompress.report.cards import (
    cards,
    export_command,
    pick_card,
    records,
    table_columns,
    table_rows,
)
from autocompress.report.figure_data import drawn, front_data, hypervolume_data
from autocompress.report.figures import draw_front, hypervolume_figure, plotly_source
from autocompress.report.hyperparameters import importance, parallel, split_words
from autocompress.report.reference import against
from autocompress.report.static_figure import front_picture, interval_picture, repeats_picture, sparkline
from autocompress.report.summary import convergence, honesty, lede, losses, verdict
from autocompress.report.table_view import GROUPS, SIMULATED, classify, rank, simulated, visible
from autocompress.report.uncertainty import confidence, repeats

#: The page's name in the run folder.
PAGE = "report.html"
#: Rows that the table holds at once; the rest comes in when one sorts or filters.
ROWS = 200
#: Cards of the front that are written out.
CARDS = 60
_FALLBACK = (
    {"name": "accuracy", "direction": "maximize", "unit": "", "kind": "score", "box": [0.0, 1.0]},
    {"name": "effective_flops", "direction": "minimize", "unit": "FLOPs", "kind": "cost", "box": [1e12, 1.0]},
)


def write_page(
    path: Path, candidates: pd.DataFrame, trials: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None = None
) -> Path:
    """Write the report of a run as one HTML file and return its path; a crash leaves the old file or the new one.

    Args:
        path: Where to write, usually ``report.html`` in the run folder.
        candidates: Every candidate; may be empty, as when every trial failed.
        trials: Every trial.
        meta: What the study says about the run.
        picked: The recommended candidate, if there is one.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    path = Path(path)
    page = render_page(path.parent, candidates, trials, meta, picked)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def render_page(
    folder: Path,
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    meta: Mapping[str, Any],
    picked: Pick | None = None,
    *,
    live: bool = False,
) -> str:
    """Return the report of a run as one HTML page.

    Args:
        folder: The run folder.
        candidates: Every candidate; may be empty, as when every trial failed.
        trials: Every trial.
        meta: What the study says about the run.
        picked: The recommended candidate, if there is one.
        live: Ask the server that sent the page for newer ones; a page on disk asks nobody.
    """
    # A run that broke before its teacher was trained has described little of itself.
    meta = {"objectives": list(_FALLBACK), "name": folder.name, **meta}
    repeated = confirmed(candidates, trials, meta)
    candidates, trials = without_repeats(candidates), without_repeats(trials)
    if len(candidates):
        candidates = candidates.assign(**{SIMULATED: simulated(candidates)})
    content = _content(candidates, trials, meta, picked, repeated, _typed(folder), live)
    content["exported"] = {place.parent.name for place in folder.glob("picks/*/manifest.json")}
    return templates().get_template("page.html.jinja").render(content)


def _content(
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    meta: Mapping[str, Any],
    picked: Pick | None,
    repeated: Sequence[Confirmed],
    run: str,
    live: bool,
) -> dict[str, Any]:
    script, style = asset("drawing.js") + (asset("live.js") if live else "") + asset("page.js"), asset("page.css")
    content: dict[str, Any] = {
        "meta": meta,
        "run": run,
        "live": live,
        "verdict": verdict(candidates, trials, meta, picked),
        "lede": lede(candidates, trials, meta, picked),
        "honesty": honesty(candidates, trials, meta),
        "losses": losses(trials)[:12],
        "convergence": " ".join(filter(None, (convergence(trials), against(trials, meta)))),
        "hypervolume": sparkline(hypervolume_data(trials)[["trial", "hypervolume"]].to_numpy().tolist(), 900.0, 160.0),
        "style": Markup(style),
        "script": Markup(script),
        "export": lambda identity: export_command(run, identity, meta.get("plugins") or ()),
        "label": label,
        "sparkline": sparkline,
    }
    plotly = plotly_source()
    content["hashes"] = [script_hash(script), script_hash(plotly)]
    payload = {"hypervolume": str(hypervolume_figure(trials, meta).to_json())}
    if len(candidates):
        payload |= _candidates_content(content, candidates, trials, meta, picked, repeated)
    content["plotly"] = packed(plotly)
    # Every value is JSON text already: the large ones are written once.
    content["payload"] = packed("{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in payload.items()) + "}")
    return content


def _candidates_content(
    content: dict[str, Any],
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    meta: Mapping[str, Any],
    picked: Pick | None,
    repeated: Sequence[Confirmed],
) -> dict[str, str]:
    """Fill in what the template shows of candidates; return, as JSON texts, what its script needs."""
    objectives = meta["objectives"]
    cost, score = axes(objectives)
    front = pareto_front(full_fidelity(candidates), objectives, meta.get("limits") or {})
    data = front_data(candidates, front, meta, picked, repeated)
    kept = drawn(candidates, front, meta, picked)
    shown = candidates.iloc[kept]
    groups = classify(candidates, front, meta).iloc[kept]
    order = rank(shown, groups, score, cost["name"])
    shown, groups = shown.iloc[order], groups.iloc[order]
    marks = {knee(front, objectives): "knee"} if len(front) else {}
    if picked is not None:
        marks[picked.id] = "pick"
    best = front.iloc[::-1].head(CARDS)
    listed = set(best["id"])
    line = templates().get_template("row.html.jinja").module.row  # type: ignore[attr-defined]
    tested = on_test(front, meta)
    mattering = importance(candidates, meta)
    content |= {
        "picked": None if picked is None else pick_card(candidates, trials, meta, picked),
        "cards": cards(best, candidates, trials, meta),
        "columns": table_columns(shown, meta),
        "rows": [Markup(line(row, row["id"] in listed)) for row in table_rows(shown, groups, meta, marks)],
        "limit": ROWS,
        "total": len(candidates),
        "groups": {name: int((groups == name).sum()) for name in GROUPS},
        "still": front_picture(data),
        "window": data.window,
        "confidence": interval_picture(confidence(front, meta, picked)),
        "repeats": repeats_picture(repeats(repeated, front, meta, picked)),
        "mattering": mattering,
        "parallel": parallel(front, meta, mattering, picked),
        "split_words": split_words,
        "on_test": "" if tested is None else front_on_test(tested),
        "typed": shlex.quote(content["run"]),
        "score": score,
        "cost": cost,
    }
    plain = shown.drop(columns=[name for name in ("config", "details", SIMULATED) if name in shown])
    return {
        "front": str(draw_front(data).to_json()),
        "columns": json.dumps([str(name) for name in plain.columns]),
        "data": str(plain.to_json(orient="values", double_precision=10)),
        "rows": json.dumps(content["rows"]),
        "limit": json.dumps(ROWS),
        "directions": json.dumps({name: record["direction"] for name, record in records(meta).items()}),
    }


@cache
def templates() -> Environment:
    """Return the templates of the pages."""
    # Every name is shown as text: tags escaped by autoescape, hidden characters spelled out by finalize.
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters["capital"] = lambda text: text[:1].upper() + text[1:] if text[1:2].islower() else text
    return found


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> str:
    """Return a file that lies beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def packed(text: str) -> Markup:
    """Return text as base64 of gzip: a third of the size, and nothing in it can end the script element."""
    return Markup(base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 6, mtime=0)).decode())


def script_hash(script: str) -> str:
    """Return the source expression by which the page's policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _typed(folder: Path) -> str:
    """Return the run folder as one types it beside the folder that holds runs: ``reports/digits``.

    That says nothing of where on the machine it lies, and is the same from wherever the page is written.
    """
    whole = folder.resolve()
    return f"{whole.parent.name}/{whole.name}" if whole.parent.name else whole.name
