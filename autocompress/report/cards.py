"""What the page shows of single candidates: the card of the pick, the cards of the front, the rows of the table."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from autocompress.analysis.pareto import Objective, axes, numbers
from autocompress.analysis.selection import Pick
from autocompress.core.formatting import compare, finite, label, show
from autocompress.report.recipe_view import order, tables
from autocompress.report.summary import pick_latency, split_scores
from autocompress.report.table_view import GROUPS, in_words, recipes, simulated

_TILES = ("bytes", "parameters", "flops")
_SECTIONS = {
    "student": "Student",
    "distill": "Distillation",
    "fit": "Training",
    "prune": "Pruning",
    "quantize": "Quantization",
}
_LISTED = ("student", "distill", "prune", "quantize")


def records(meta: Mapping[str, Any]) -> dict[str, Objective]:
    """Return every known objective by name; the declared ones win."""
    return {record["name"]: record for record in (*meta.get("all_objectives", []), *meta["objectives"])}


def pick_card(candidates: pd.DataFrame, trials: pd.DataFrame, meta: Mapping[str, Any], picked: Pick) -> dict[str, Any]:
    """Return what the recommended candidate's card shows."""
    cost, score = axes(meta["objectives"])
    known = records(meta)
    teacher = meta.get("teacher") or {}
    best = teacher.get("scores", {}).get("select_val", {}).get(score["name"])
    tiles = [(label(score["name"]), show(picked.row[score["name"]], score), f"teacher {show(best, score)}")]
    for name in dict.fromkeys([cost["name"], *_TILES]):
        theirs = teacher.get("costs", {}).get(name)
        if name in known and finite(picked.row.get(name)):
            saving = compare(picked.row[name], theirs, name).removesuffix(f" {label(name)}") if finite(theirs) else ""
            joint = "as" if saving.startswith("as ") else "than"
            tiles.append(
                (label(name), show(picked.row[name], known[name]), f"{saving} {joint} the teacher" if saving else "")
            )
    return {
        **cards(candidates[candidates["id"] == picked.id], candidates, trials, meta)[0],
        "reason": picked.reason,
        "tiles": tiles[:4],
        "latency": pick_latency(picked.row, meta),
        "binding": list(picked.binding),
        "neighbours": [{"kind": each.kind, "id": each.id, "text": each.text} for each in picked.neighbours],
    }


def cards(
    table: pd.DataFrame, candidates: pd.DataFrame, trials: pd.DataFrame, meta: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return each row's card: its configuration, scores per split and class, layers, training curve.

    Args:
        table: The candidates that get a card.
        candidates: Every candidate: a knob is told in the summary if it varies among them.
        trials: Every trial.
        meta: What the study says about the run.
    """
    recipe, notes, known = recipes(table, candidates), simulated(table), records(meta)
    rows = []
    for place, record in enumerate(table.to_dict("records")):
        row = {str(name): value for name, value in record.items()}
        told = row.get("details")
        details: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
        scores, change = split_scores(row, meta)
        pruned = str(row.get("prune", "none"))
        rows.append(
            {
                "id": str(row["id"]),
                "recipe": [(name, in_words(recipe[section][place])) for section, name in _SECTIONS.items()],
                "brief": " \u00b7 ".join(" ".join(filter(None, _brief(recipe[name][place])[:2])) for name in _LISTED),
                "measured": _measured(row, known),
                "scores": scores,
                "change": change,
                "simulated": notes[place],
                "sparse": pruned if pruned in ("unstructured", "n_m") else "",
                "yaml": as_yaml(row.get("config")),
                "order": order(details),
                "steps": tables(details),
                "classes": details.get("per_class") or {},
                "layers": details.get("layers") or [],
                "curve": _curve(trials, row.get("trial")),
            }
        )
    return rows


def table_rows(
    candidates: pd.DataFrame, groups: "pd.Series[str]", meta: Mapping[str, Any], marks: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the cells of every candidate's row, in the order of the candidates.

    Args:
        candidates: Every candidate that has a row.
        groups: What each one is.
        meta: What the study says about the run.
        marks: Words behind an id, for example ``{"t12c7": "pick"}``.
    """
    columns = [
        [show(value, record) for value in numbers(candidates, name)] for name, record in _numeric(candidates, meta)
    ]
    recipe, notes = recipes(candidates), simulated(candidates)
    rows = []
    for place, (identity, group) in enumerate(zip(candidates["id"], groups, strict=True)):
        rows.append(
            {
                "id": str(identity),
                "group": group,
                "is": GROUPS[group],
                "mark": marks.get(str(identity), ""),
                "cells": [column[place] for column in columns],
                "recipe": [_brief(recipe[section][place]) for section in _LISTED],
                "simulated": notes[place],
            }
        )
    return rows


def table_columns(candidates: pd.DataFrame, meta: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the table's columns: ``name`` is what they sort by, ``label`` what is read, ``kind`` the group."""
    numeric = [
        {"name": name, "label": label(name), "kind": record["kind"]} for name, record in _numeric(candidates, meta)
    ]
    texts = [("student", "student"), ("distill", "distillation"), ("prune", "pruning"), ("quantize", "quantization")]
    return [
        {"name": "id", "label": "candidate", "kind": "id"},
        *numeric,
        *({"name": name, "label": words, "kind": "recipe"} for name, words in texts),
    ]


def as_yaml(config: object) -> str:
    """Return a config's JSON text as YAML, which reads better.

    Example:
        >>> print(as_yaml('{"student": {"cnn": {"width": 8}}, "prune": null, "seed": 0}'))
        student:
          cnn:
            width: 8
        prune: none
        seed: 0
    """
    if not isinstance(config, str):
        return ""
    try:
        return "\n".join(_yaml(json.loads(config), ""))
    except ValueError:
        return config


def export_command(run: str, identity: str, plugins: Sequence[str] = ()) -> str:
    """Return the command that exports a candidate, with the plugins that the search had."""
    with_plugins = "".join(f" --plugin {shlex.quote(path)}" for path in plugins)
    return (
        f"autocompress export {shlex.quote(run)} --candidate {shlex.quote(identity)} --to onnx --verify{with_plugins}"
    )


def _measured(row: Mapping[str, Any], known: Mapping[str, Objective]) -> list[tuple[str, str, str]]:
    """Return (name, on select_val, on test) of every score, and (name, value, "") of every cost."""
    found = []
    for name, record in sorted(known.items(), key=lambda pair: pair[1]["kind"] != "score"):
        if finite(row.get(name)):
            test = show(row.get(f"{name}_test"), record) if record["kind"] == "score" else ""
            found.append((label(name), show(row[name], record), test))
    return found


def _yaml(value: Any, indent: str) -> list[str]:
    lines = []
    for key, each in value.items() if isinstance(value, dict) else ():
        if isinstance(each, dict) and each:
            lines += [f"{indent}{key}:", *_yaml(each, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {'none' if each is None else '{}' if each == {} else json.dumps(each)}")
    return lines


def _brief(methods: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, str, str]:
    """Return what a cell shows: the methods, the first three knobs of the first, and the full text as a tooltip."""
    names = " + ".join(method for method, _ in methods)
    return "\u2013" if names == "none" else names, ", ".join(methods[0][1][:3]), in_words(methods)


def _numeric(candidates: pd.DataFrame, meta: Mapping[str, Any]) -> list[tuple[str, Objective]]:
    """Return the table's numeric columns: scores first; the rest is in the cards and in the CSV."""
    known = records(meta)
    wanted = dict.fromkeys([*(record["name"] for record in meta["objectives"]), "bytes"])
    names = [name for name in wanted if name in known and name in candidates]
    return sorted(((name, known[name]) for name in names), key=lambda pair: pair[1]["kind"] != "score")


def _curve(trials: pd.DataFrame, number: object) -> list[tuple[float, float]]:
    if not {"number", "curve"} <= set(trials.columns):
        return []
    found = trials[trials["number"] == number]["curve"].tolist()
    rows = found[0] if found and isinstance(found[0], list) else []
    return [(row["epoch"], row["loss"]) for row in rows if finite(row.get("epoch")) and finite(row.get("loss"))]
