"""The page of a run: one HTML file that needs no network, and is readable without JavaScript and in print."""

import base64
import gzip
import hashlib
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from autocompress.analysis.cascade import CascadeSearch, describe_cascade
from autocompress.analysis.confirmation import (
    ConfirmedCandidate,
    describe_test_front,
    evaluate_test_front,
    summarize_repeats,
    without_repeats,
)
from autocompress.analysis.importance import analyze_importance
from autocompress.analysis.pareto import find_knee, full_fidelity, numeric_column, pareto_front, primary_objectives
from autocompress.analysis.selection import Pick
from autocompress.analysis.trivial_baselines import list_warnings
from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import is_finite, is_share, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.errors import ArtifactError
from autocompress.report.cards import (
    build_cards,
    card_data,
    export_command,
    pick_card,
    records,
    table_baselines,
    table_columns,
    table_rows,
)
from autocompress.report.exploration import draw_coordinates, explore_hyperparameters, explore_trials
from autocompress.report.figure_data import (
    GROUPS,
    SIMULATED,
    classify_candidates,
    describe_simulation,
    escape_hidden,
    front_data,
    hypervolume_data,
    rank_rows,
    select_points,
)
from autocompress.report.figures import draw_front, hypervolume_figure, plotly_source
from autocompress.report.hyperparameters import parallel_coordinates, split_words, summarize_importance
from autocompress.report.selection_data import rule_data, table_data
from autocompress.report.static_figure import (
    NARROW,
    front_picture,
    interval_picture,
    repeats_picture,
    sparkline,
)
from autocompress.report.summary import (
    compare_with_reference,
    count_unfinished_trials,
    describe_convergence,
    list_conditions,
    summarize_result,
    summarize_search,
)
from autocompress.report.uncertainty import pick_confidence, repeats_content

_LOGGER = logging.getLogger(__name__)

#: File name of the page in the run folder.
PAGE = "report.html"
#: Scripts of the page, in the order in which they need each other.
SCRIPTS = ("formatting.js", "query.js", "selection.js", "drawing.js", "limits.js", "live.js", "page.js")
#: Rows that the table shows at once; a script shows others after sorting or filtering.
ROWS = 100
#: Maximum number of candidate cards.
CARDS = 60
_FALLBACK = (
    ObjectiveSpec("accuracy", "maximize", kind="score", bounds=(0.0, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", unit="FLOPs", kind="cost", bounds=(1e12, 1.0)),
)


def write_page(
    path: Path, candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo, picked: Pick | None = None
) -> Path:
    """Write the report of a run as one HTML file and return its path; a crash leaves the old file or the new one.

    Args:
        path: Path of the page, usually ``report.html`` in the run folder.
        candidates: Every candidate; may be empty, as when every trial failed.
        trials: Every trial.
        info: Description of the run.
        picked: The recommended candidate, if there is one.

    Raises:
        StorageError: No space is left, or the folder cannot be written.
    """
    path = Path(path)
    page = render_page(path.parent, candidates, trials, info, picked)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def render_page(
    folder: Path,
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    info: RunInfo,
    picked: Pick | None = None,
    *,
    live: bool = False,
) -> str:
    """Return the report of a run as one HTML page.

    Args:
        folder: The run folder.
        candidates: Every candidate; may be empty, as when every trial failed.
        trials: Every trial.
        info: Description of the run.
        picked: The recommended candidate, if there is one.
        live: Whether the page polls its server for new results.
    """
    # A run that failed before its teacher was trained has no objectives in its description.
    info = replace(info, objectives=info.objectives or _FALLBACK, name=info.name or folder.name)
    repeated = summarize_repeats(candidates, trials, info)
    candidates, trials = without_repeats(candidates), without_repeats(trials)
    if len(candidates):
        candidates = candidates.assign(**{SIMULATED: describe_simulation(candidates, info.target.precisions)})
    content = _page_content(candidates, trials, info, picked, repeated, _run_argument(folder), live)
    content["cascade"] = _describe_cascade(folder)
    content["exported"] = {path.parent.name for path in folder.glob("picks/*/manifest.json")}
    page = load_templates().get_template("page.html.jinja").render(content)
    _LOGGER.info("rendered the page of %s: %d candidates, %d KB", folder, len(candidates), len(page) // 1000)
    return page


def _describe_cascade(folder: Path) -> str:
    """Return the cascade of a run as sentences; empty without one."""
    try:
        search = CascadeSearch.read(folder)
    except ArtifactError as error:
        # The page shows the search; a damaged file of another command must not prevent it.
        _LOGGER.warning("%s", error)
        return ""
    return "" if search is None else describe_cascade(search)


def _page_content(
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    info: RunInfo,
    picked: Pick | None,
    repeated: Sequence[ConfirmedCandidate],
    run: str,
    live: bool,
) -> dict[str, Any]:
    scripts = [name for name in SCRIPTS if live or name != "live.js"]
    script, style = "".join(map(read_asset, scripts)), read_asset("page.css")
    content: dict[str, Any] = {
        "info": info,
        "run": run,
        "live": live,
        "verdict": summarize_result(candidates, trials, info, picked),
        "warnings": list_warnings(info, None if picked is None else picked.row),
        "baselines": table_baselines(info, picked),
        "baseline_score": primary_objectives(info.objectives)[1].name,
        "lede": summarize_search(candidates, trials, info, picked),
        "honesty": list_conditions(candidates, trials, info),
        "losses": count_unfinished_trials(trials)[:12],
        "convergence": " ".join(filter(None, (describe_convergence(trials), compare_with_reference(trials, info)))),
        "hypervolume": sparkline(hypervolume_data(trials)[["trial", "hypervolume"]].to_numpy().tolist(), 900.0, 160.0),
        "style": Markup(style),
        "script": Markup(script),
        "export": lambda identity: export_command(run, identity, info.plugins),
        "label": label_column,
        "sparkline": sparkline,
        "has_hyperparameters": False,
    }
    plotly = plotly_source()
    # The content security policy allows exactly these two scripts: injected code would not run.
    content["hashes"] = [script_hash(script), script_hash(plotly)]
    payload = {"key": json.dumps(_run_key(info)), "hypervolume": str(hypervolume_figure(trials, info).to_json())}
    payload |= explore_trials(content, candidates, trials, info)
    if len(candidates):
        payload |= _candidates_content(content, candidates, trials, info, picked, repeated)
    content["plotly"] = pack_text(plotly)
    # The values are JSON texts already: encoding the large ones again would take time.
    content["payload"] = pack_text("{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in payload.items()) + "}")
    return content


def _example_condition(score: ObjectiveSpec, candidates: pd.DataFrame) -> str:
    """Return a condition on a score, as the text boxes show one."""
    sign = ">=" if score.is_maximized else "<="
    if is_share(score):
        return f"{score.name} {sign} 95%"
    # The median is a value that some candidates have.
    middle = float(numeric_column(full_fidelity(candidates), score.name).median())
    return f"{score.name} {sign} {middle if is_finite(middle) else 1:.2g}"


def _candidates_content(
    content: dict[str, Any],
    candidates: pd.DataFrame,
    trials: pd.DataFrame,
    info: RunInfo,
    picked: Pick | None,
    repeated: Sequence[ConfirmedCandidate],
) -> dict[str, str]:
    """Add the candidates to the content of the template; return the data of its script as JSON texts."""
    objectives = info.objectives
    cost, score = primary_objectives(objectives)
    front = pareto_front(full_fidelity(candidates), objectives, info.limits)
    data = front_data(candidates, front, info, picked, repeated)
    positions = select_points(candidates, front, info, picked)
    shown = candidates.iloc[positions]
    groups = classify_candidates(candidates, front, info).iloc[positions]
    order = rank_rows(shown, groups, score, cost.name)
    shown, groups = shown.iloc[order], groups.iloc[order]
    marks = {find_knee(front, objectives): "knee"} if len(front) else {}
    if picked is not None:
        marks[picked.id] = "pick"
    # The front is sorted by cost: the reversed order begins with the best scores.
    best = front.iloc[::-1].head(CARDS)
    # The student without distillation may be the pick, and is no candidate of the front.
    if picked is not None and picked.id not in set(best["id"]):
        best = pd.concat([candidates[candidates["id"] == picked.id], best])
    listed = set(best["id"])
    line = load_templates().get_template("row.html.jinja").module.row  # type: ignore[attr-defined]
    tested = evaluate_test_front(front, info)
    analysis = analyze_importance(candidates, info)
    mattering = summarize_importance(analysis, info)
    confidence = pick_confidence(front, info, picked)
    again = repeats_content(repeated, front, info, picked)
    content |= {
        "picked": None if picked is None else pick_card(candidates, trials, info, picked),
        "cards": build_cards(best, candidates, trials, info),
        "columns": table_columns(shown, info),
        "rows": [Markup(line(row, row["id"] in listed)) for row in table_rows(shown, groups, info, marks)],
        "limit": ROWS,
        "total": len(candidates),
        "groups": {name: int((groups == name).sum()) for name in GROUPS},
        "still": front_picture(data),
        "window": data.window,
        "colour": data.colour,
        "confidence": interval_picture(confidence),
        "narrow_confidence": interval_picture(confidence, NARROW),
        "repeats": repeats_picture(again),
        "narrow_repeats": repeats_picture(again, NARROW),
        "mattering": mattering,
        "parallel": parallel_coordinates(front, info, mattering, picked),
        "split_words": split_words,
        "on_test": "" if tested is None else describe_test_front(tested),
        "typed": shlex.quote(content["run"]),
        "score": score,
        "cost": cost,
        "example": _example_condition(score, candidates),
    }
    return {
        "front": str(draw_front(data).to_json()),
        # The script filters and sorts by these columns; nested values are in the cards.
        **table_data(shown),
        "rule": json.dumps(rule_data(shown, info, content["run"], len(candidates))),
        "rows": json.dumps(content["rows"]),
        "limit": json.dumps(ROWS),
        "cards": json.dumps(card_data(shown, info, content["export"])),
        "directions": json.dumps({name: record.direction for name, record in records(info).items()}),
        **explore_hyperparameters(content, candidates, front, info, analysis, picked),
        **draw_coordinates(content, shown, info, analysis),
    }


@cache
def load_templates() -> Environment:
    """Return the environment with the templates of the pages."""
    # Names of users are shown as text: autoescape escapes tags, finalize escapes invisible characters.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_finalize_value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["capital"] = lambda text: text[:1].upper() + text[1:] if text[1:2].islower() else text
    return environment


def _finalize_value(value: object) -> object:
    return escape_hidden(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def read_asset(name: str) -> str:
    """Return the text of a file in the folder of this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def pack_text(text: str) -> Markup:
    """Return text as gzip in base64: a third of the size, and it cannot contain the end of the script element."""
    return Markup(base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 6, mtime=0)).decode())


def script_hash(script: str) -> str:
    """Return the hash by which the content security policy of the page allows this script only."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _run_key(info: RunInfo) -> str:
    """Return a key of the run: the address of a page holds the reader's settings, which belong to one run."""
    return hashlib.sha256(json.dumps([info.name, info.spec, info.environment.data]).encode()).hexdigest()[:8]


def _run_argument(folder: Path) -> str:
    """Return the run folder as an argument of a command: ``reports/digits``.

    It does not reveal where the folder is on the machine, and does not depend on the working directory.
    """
    whole = folder.resolve()
    return f"{whole.parent.name}/{whole.name}" if whole.parent.name else whole.name
