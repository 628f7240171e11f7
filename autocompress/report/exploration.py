"""Content of the page for exploration: learning curves of the trials, and slices through the hyperparameters."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from autocompress.analysis.importance import ImportanceAnalysis, varying_columns
from autocompress.analysis.pareto import primary_objectives
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import format_plural, label_column
from autocompress.core.run_info import RunInfo
from autocompress.report.exploration_figures import (
    MAX_RUNG_LINES,
    draw_curves,
    draw_parallel,
    draw_slice,
    draw_timeline,
)
from autocompress.report.hyperparameters import label_hyperparameter
from autocompress.report.slices import Slice, build_slices, tabulate_dependence
from autocompress.report.trial_data import (
    STATES,
    LearningCurves,
    Timeline,
    read_loss_curves,
    read_score_curves,
    read_timeline,
    tabulate_rungs,
    tabulate_stopped,
)

#: Hyperparameters of the parallel coordinates, in addition to cost and score.
MAX_AXES = 8


def explore_trials(
    content: dict[str, Any], candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo
) -> dict[str, str]:
    """Add learning curves and timeline to the content of the template; return their figures as JSON texts.

    Args:
        content: Content of the template.
        candidates: All candidates.
        trials: All trials.
        info: Description of the run.
    """
    content |= {"has_curves": False, "curve_titles": {}, "rungs": [], "timeline": "", "stopped": []}
    if not len(trials) or "state" not in trials:
        return {}
    score = primary_objectives(info.objectives)[1]
    curves = {
        "score": read_score_curves(candidates, trials, info),
        "loss": read_loss_curves(candidates, trials),
    }
    titles = {
        "score": f"{_capitalize(label_column(score.name))} on search_val, without compression",
        "loss": "Training loss",
    }
    # A score at the end only is a point, and no curve.
    has_lines = {name: any(len(one.epochs) > 1 for one in _all_curves(group)) for name, group in curves.items()}
    shown = [name for name in curves if has_lines[name]]
    content |= {
        "has_curves": bool(shown),
        "curve_titles": {name: titles[name] for name in shown},
        "rungs": tabulate_rungs(candidates, trials, info),
        "curves_text": _describe_curves(curves["loss" if has_lines["loss"] else "score"], candidates),
    }
    figures = {name: draw_curves(curves[name], score if name == "score" else None).to_json() for name in shown}
    timeline = read_timeline(trials)
    content |= {
        "timeline": "" if timeline is None else _describe_timeline(timeline),
        "stopped": tabulate_stopped(candidates, trials, info),
    }
    payload = {"curves": _join_json(figures)}
    return payload if timeline is None else payload | {"timeline": str(draw_timeline(timeline).to_json())}


def explore_hyperparameters(
    content: dict[str, Any],
    candidates: pd.DataFrame,
    front: pd.DataFrame,
    info: RunInfo,
    importance: ImportanceAnalysis | None,
    picked: Pick | None,
) -> dict[str, str]:
    """Add the slices to the content of the template; return their figures and parallel coordinates as JSON texts.

    Args:
        content: Content of the template.
        candidates: All candidates.
        front: Candidates on the front.
        info: Description of the run.
        importance: Importance of the hyperparameters, if there are enough candidates.
        picked: The recommended candidate, if there is one.
    """
    score = primary_objectives(info.objectives)[1]
    columns = _rank_columns(candidates, importance)
    panels = build_slices(candidates, front, info, importance, columns, picked)
    content |= {
        "slices": [_describe_panel(panel, info) for panel in panels],
        "slices_text": _describe_slices(panels),
        "has_dependence": any(panel.dependence for panel in panels),
        "has_hyperparameters": bool(panels) or bool(content["mattering"]),
        "score_label": label_column(score.name),
    }
    figures = [str(draw_slice(panel, label_hyperparameter(panel.column), score).to_json()) for panel in panels]
    return {"slices": f"[{','.join(figures)}]"}


def draw_coordinates(
    content: dict[str, Any], shown: pd.DataFrame, info: RunInfo, importance: ImportanceAnalysis | None
) -> dict[str, str]:
    """Add to the content of the template whether there are parallel coordinates; return their figure as a JSON text.

    Args:
        content: Content of the template.
        shown: Candidates of the page, in the order of its table.
        info: Description of the run.
        importance: Importance of the hyperparameters, if there are enough candidates.
    """
    columns = _rank_columns(shown, importance)[:MAX_AXES]
    content["has_coordinates"] = bool(columns) and len(shown) > 1
    if not content["has_coordinates"]:
        return {}
    labels = [(name, label_hyperparameter(name)) for name in columns]
    return {"coordinates": str(draw_parallel(shown, labels, primary_objectives(info.objectives)).to_json())}


def _rank_columns(candidates: pd.DataFrame, importance: ImportanceAnalysis | None) -> list[str]:
    """Return the columns of hyperparameters that vary, the most important for the score first."""
    shares = {} if importance is None else importance.score
    return sorted(shares, key=lambda name: -shares[name].value) or varying_columns(candidates)


def _describe_panel(panel: Slice, info: RunInfo) -> dict[str, object]:
    score = primary_objectives(info.objectives)[1]
    note = f"{panel.shown:,} of {panel.total:,} candidates: the front and a sample" if panel.shown < panel.total else ""
    return {
        "label": label_hyperparameter(panel.column),
        "note": note,
        "rows": tabulate_dependence(panel.dependence, score) if panel.dependence else [],
    }


def _describe_slices(panels: list[Slice]) -> str:
    text = (
        "Each point is a fully trained candidate that has the hyperparameter; blue points are on the front, the "
        "diamond is the pick."
    )
    if any(panel.dependence for panel in panels):
        text += (
            " The purple line is the partial dependence with its 80% interval: the mean score that the forest of the "
            "table above predicts when every candidate gets this value. It shows an effect on average; where "
            "hyperparameters interact, or were never combined, it can mislead."
        )
    return text


def _describe_curves(curves: LearningCurves, candidates: pd.DataFrame) -> str:
    """Return the sentences above the learning curves: their number, the states, the rungs, and how to compare them."""
    counts = [f"{len(group):,} {STATES[state]}" for state, group in curves.groups.items() if group]
    text = f"One line for each trial that trains a student: {', '.join(counts)}."
    if curves.shown < curves.total:
        text = f"{curves.shown:,} of {format_plural(curves.total, 'trial')}, evenly spaced: {', '.join(counts)}."
    if curves.rungs:
        rungs = ", ".join(f"{epochs:,}" for epochs in curves.rungs[:MAX_RUNG_LINES])
        more = " and more" * (len(curves.rungs) > MAX_RUNG_LINES)
        text += f" After {rungs}{more} epochs (the rungs) trials pause and are compared; the best ones continue."
    if "distill" in candidates and candidates["distill"].nunique() > 1:
        text += " Training losses of different distillation methods have different scales: compare scores instead."
    return text


def _describe_timeline(timeline: Timeline) -> str:
    workers = format_plural(timeline.workers, "worker")
    return (
        f"Each bar is one part of a trial, up to a rung or to its end. The {workers} had work for "
        f"{timeline.busy:.0%} of the time between the first start and the last end."
    )


def _all_curves(curves: LearningCurves) -> list[Any]:
    return [curve for group in curves.groups.values() for curve in group]


def _join_json(figures: Mapping[str, str | None]) -> str:
    return "{" + ",".join(f'"{name}":{text}' for name, text in figures.items()) + "}"


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:] if text[1:2].islower() else text
