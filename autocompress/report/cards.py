"""Contents of candidate cards and of the candidate table on the page."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from autocompress.analysis.pareto import numeric_column, primary_objectives
from autocompress.analysis.selection import Pick
from autocompress.analysis.thresholds import describe_thresholds
from autocompress.analysis.trivial_baselines import list_score_rows
from autocompress.core.formatting import (
    COST_UNITS,
    DASH,
    compare_costs,
    format_value,
    is_counted,
    is_finite,
    is_share,
    label_column,
)
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.report.figure_data import (
    GROUPS,
    describe_simulation,
    describe_test_scores,
    join_methods,
    method_texts,
)
from autocompress.report.summary import pick_latency, split_scores

MAX_ROWS = 40
#: Stands for the id in the command of a card that a script fills in.
CANDIDATE = "CANDIDATE"
_TITLES = {
    "path": "Path, step by step",
    "sensitivity": "Sensitivity of each layer",
    "in_float": "Layers left in floating point, with their shares",
}
_STEP_TITLES = {"start": "pruning of the teacher", "prune": "pruning", "quantize": "quantization"}


def format_order(details: Mapping[str, object]) -> str:
    """Return the operations in order.

    Example:
        >>> format_order({"order": ["train 20 epochs", "prune (structured)"]})
        'train 20 epochs \u2192 prune (structured)'
    """
    steps = details.get("order")
    return " \u2192 ".join(str(step) for step in steps) if isinstance(steps, list) else ""


def report_tables(details: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the tables reported by methods: ``title``, ``columns``, ``rows`` of texts, number of ``hidden`` rows."""
    tables = []
    for section, report in _method_reports(details):
        for name, title in _TITLES.items():
            rows = report.get(name)
            if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
                # Nested values do not fit into a cell.
                columns = [
                    column
                    for column in dict.fromkeys(key for row in rows for key in row)
                    if not any(isinstance(row.get(column), Mapping | list) for row in rows)
                ]
                tables.append(
                    {
                        "title": f"{title} ({_STEP_TITLES[section]})",
                        "columns": [str(column).replace("_", " ") for column in columns],
                        "rows": [[_format_cell(row.get(column)) for column in columns] for row in rows[:MAX_ROWS]],
                        "hidden": max(len(rows) - MAX_ROWS, 0),
                    }
                )
    return tables


def _method_reports(details: Mapping[str, object]) -> Iterable[tuple[str, Mapping[str, object]]]:
    start = details.get("start")
    for report in start.values() if isinstance(start, Mapping) else ():
        if isinstance(report, Mapping):
            yield "start", report
    pruning = details.get("prune")
    if isinstance(pruning, Mapping):
        yield "prune", pruning
    yield "quantize", details


def _format_cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    return f"{value:.4g}" if is_finite(value) else str(value)


# Costs shown at the top of the card, if they were measured.
_TILES = ("bytes", "parameters", "flops")
_SECTIONS = {
    "student": "Student",
    "distill": "Distillation",
    "fit": "Training",
    "prune": "Pruning",
    "quantize": "Quantization",
}
_LISTED = ("student", "distill", "prune", "quantize")


def records(info: RunInfo) -> dict[str, ObjectiveSpec]:
    """Return every measured score and cost by name; objectives of the search with their bounds."""
    return {record.name: record for record in (*info.all_objectives, *info.objectives)}


def pick_card(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo, picked: Pick) -> dict[str, object]:
    """Return the content of the recommended candidate's card."""
    cost, score = primary_objectives(info.objectives)
    measured = records(info)
    teacher = info.teacher
    best = teacher.score(score.name)
    tested = is_finite(picked.row.get(f"{score.name}_test"))
    if tested:
        # The test score is not biased by the selection.
        shown, best = picked.row[f"{score.name}_test"], teacher.score(score.name, "test")
    else:
        shown = picked.row[score.name]
    name = f"{label_column(score.name)} on {'test' if tested else 'select_val'}"
    tiles = [(name, format_value(shown, score), f"teacher {format_value(best, score)}")]
    # The declared cost may be one of the standard tiles: show it once.
    for name in dict.fromkeys([cost.name, *_TILES]):
        teacher_cost = teacher.costs.get(name)
        if name in measured and is_finite(picked.row.get(name)):
            saving = (
                compare_costs(picked.row[name], teacher_cost, name).removesuffix(f" {label_column(name)}")
                if is_finite(teacher_cost)
                else ""
            )
            joint = "as" if saving.startswith("as ") else "than"
            tiles.append(
                (
                    label_column(name),
                    format_value(picked.row[name], measured[name]),
                    f"{saving} {joint} the teacher" if saving else "",
                )
            )
    return {
        **build_cards(candidates[candidates["id"] == picked.id], candidates, trials, info)[0],
        "reason": picked.reason,
        "certificate": describe_certificate(picked, score),
        "tiles": tiles[:4],
        "latency": pick_latency(picked.row, info),
        "binding": list(picked.binding),
        "alternatives": list(picked.alternatives),
        "neighbours": [{"kind": near.kind, "id": near.id, "text": near.text} for near in picked.neighbours],
    }


def describe_certificate(picked: Pick, score: ObjectiveSpec) -> str:
    """Return what is promised and certified of the recommended candidate, or why nothing is."""
    if picked.certificate is not None:
        return picked.certificate.describe(score)
    return f"Nothing is certified: {picked.rule}." if picked.rule else ""


def build_cards(
    table: pd.DataFrame, candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo
) -> list[dict[str, object]]:
    """Return the card of each candidate: configuration, scores per split and class, layers, training curve.

    Args:
        table: Candidates that get a card.
        candidates: All candidates; the summary of a card shows hyperparameters that vary among them.
        trials: All trials.
        info: Description of the run.
    """
    recipe, measured = method_texts(table, candidates), records(info)
    notes = describe_simulation(table, info.target.precisions)
    rows = []
    for index, record in enumerate(table.to_dict("records")):
        row = {str(name): value for name, value in record.items()}
        stored = row.get("details")
        details: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        scores, change = split_scores(row, info)
        pruned = str(row.get("prune", "none"))
        rows.append(
            {
                "id": str(row["id"]),
                "recipe": [(name, join_methods(recipe[section][index])) for section, name in _SECTIONS.items()],
                "brief": " \u00b7 ".join(
                    " ".join(filter(None, _summarize_methods(recipe[name][index])[:2])) for name in _LISTED
                ),
                "measured": _list_measurements(row, measured),
                "scores": scores,
                "change": change,
                "simulated": notes[index],
                "thresholds": describe_thresholds(details, info),
                # Only these two leave zeros in the weights; the others remove whole channels or blocks.
                "sparse": pruned if pruned in ("unstructured", "n_m") else "",
                "yaml": as_yaml(row.get("config")),
                "order": format_order(details),
                "steps": report_tables(details),
                "classes": {
                    head: [
                        {"support": None, **line, "name": _name_class(info, head, int(line["label"]))} for line in lines
                    ]
                    for head, lines in (details.get("per_class") or {}).items()
                },
                "confusion": {
                    head: _build_confusion(info, head, table)
                    for head, table in (details.get("confusion") or {}).items()
                },
                "layers": details.get("layers") or [],
                "curve": _loss_curve(trials, row.get("trial")),
            }
        )
    return rows


def card_data(candidates: pd.DataFrame, info: RunInfo, export: Callable[[str], str]) -> dict[str, object]:
    """Return what a script needs for the card of any candidate: columns, configurations, and the command.

    Args:
        candidates: Candidates in the order of the table.
        info: Description of the run.
        export: Function from an id to the command that exports it.
    """
    columns = [
        {
            "name": name,
            "label": label_column(name),
            "unit": COST_UNITS.get(name, "") if is_counted(name) else record.unit,
            "kind": record.kind,
            "isShare": is_share(record),
            "isCounted": is_counted(name),
        }
        for name, record in records(info).items()
        if name in candidates
    ]
    parts: dict[str, int] = {}
    cache: dict[tuple[str, str], str] = {}
    configs = candidates["config"] if "config" in candidates else [""] * len(candidates)
    numbers = [[parts.setdefault(text, len(parts)) for text in _split_config(config, cache)] for config in configs]
    return {
        "columns": columns,
        # Candidates share most parts of their configurations, which were half of the data of a page.
        "parts": list(parts),
        "configs": numbers,
        "command": export(CANDIDATE),
        "placeholder": CANDIDATE,
    }


def _name_class(info: RunInfo, head: str, number: int) -> str:
    names = info.labels.get(head, ())
    return names[number] if number < len(names) else str(number)


def _build_confusion(info: RunInfo, head: str, table: Sequence[Sequence[int]]) -> dict[str, object]:
    """Return a confusion matrix for the page: names of the classes, and for each cell count, share of its row and kind.

    A row is a true class, so that a cell's share is that of the examples of the class.
    """
    names = [_name_class(info, head, number) for number in range(len(table))]
    rows = [
        {
            "name": names[number],
            "cells": [
                {"count": count, "share": count / max(sum(row), 1), "is_hit": column == number}
                for column, count in enumerate(row)
            ],
        }
        for number, row in enumerate(table)
    ]
    return {"names": names, "rows": rows}


def table_rows(
    candidates: pd.DataFrame, groups: "pd.Series[str]", info: RunInfo, marks: Mapping[str, str]
) -> list[dict[str, object]]:
    """Return the table cells of each candidate, in the same order.

    Args:
        candidates: Candidates of the table.
        groups: Group of each candidate, a key of ``GROUPS``.
        info: Description of the run.
        marks: Label after an id, for example ``{"t12c7": "pick"}``.
    """
    columns = [
        [format_value(value, record) for value in numeric_column(candidates, name)]
        for name, record in _numeric_columns(candidates, info)
    ]
    if _has_test_scores(candidates, info):
        columns.insert(1, [text or DASH for text in describe_test_scores(candidates, info)])
    recipe, notes = method_texts(candidates), describe_simulation(candidates, info.target.precisions)
    rows: list[dict[str, object]] = []
    for index, (identity, group) in enumerate(zip(candidates["id"], groups, strict=True)):
        rows.append(
            {
                "id": str(identity),
                "group": group,
                "is": GROUPS[group],
                "mark": marks.get(str(identity), ""),
                "cells": [column[index] for column in columns],
                "recipe": [_summarize_methods(recipe[section][index]) for section in _LISTED],
                "simulated": notes[index],
            }
        )
    return rows


def table_columns(candidates: pd.DataFrame, info: RunInfo) -> list[dict[str, str]]:
    """Return the columns of the table: ``name`` in the data, ``label`` as heading, ``kind`` as CSS class."""
    numeric = [
        {"name": name, "label": label_column(name), "kind": record.kind}
        for name, record in _numeric_columns(candidates, info)
    ]
    if _has_test_scores(candidates, info):
        score = primary_objectives(info.objectives)[1].name
        numeric.insert(1, {"name": f"{score}_test", "label": "on test [95% interval]", "kind": "score"})
    texts = [("student", "student"), ("distill", "distillation"), ("prune", "pruning"), ("quantize", "quantization")]
    return [
        {"name": "id", "label": "candidate", "kind": "id"},
        *numeric,
        *({"name": name, "label": words, "kind": "recipe"} for name, words in texts),
    ]


def table_baselines(info: RunInfo, picked: Pick | None) -> list[dict[str, object]]:
    """Return the rows of the table of trivial baselines, with teacher and recommended candidate; empty without any."""
    score = primary_objectives(info.objectives)[1]
    return [
        {
            "name": row.name,
            "text": row.text,
            "scores": [format_value(value, score) for value in (row.validation, row.test)],
            "is_beaten": row.is_beaten,
        }
        for row in list_score_rows(info, None if picked is None else picked.row)
    ]


def _has_test_scores(candidates: pd.DataFrame, info: RunInfo) -> bool:
    return f"{primary_objectives(info.objectives)[1].name}_test" in candidates


def as_yaml(config: object) -> str:
    """Return the JSON text of a config as YAML, which is easier to read.

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
        return "\n".join(_format_yaml(json.loads(config), ""))
    except ValueError:
        return config


def _split_config(config: object, cache: dict[tuple[str, str], str]) -> list[str]:
    """Return the parts of :func:`as_yaml`, one for each entry of the config.

    Args:
        config: JSON text of a config.
        cache: Parts of earlier calls, by name and value of their entry.
    """
    try:
        entries = json.loads(config) if isinstance(config, str) else {}
    except ValueError:
        return [as_yaml(config)]
    texts = []
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        key = (name, repr(entry))
        if key not in cache:
            cache[key] = "\n".join(_format_yaml({name: entry}, ""))
        texts.append(cache[key])
    return texts


def export_command(run: str, identity: str, plugins: Sequence[str] = ()) -> str:
    """Return the command that exports a candidate, with the plugins of the search."""
    with_plugins = "".join(f" --plugin {shlex.quote(path)}" for path in plugins)
    return (
        f"autocompress export {shlex.quote(run)} --candidate {shlex.quote(identity)} --to onnx --verify{with_plugins}"
    )


def _list_measurements(row: Mapping[str, object], measured: Mapping[str, ObjectiveSpec]) -> list[tuple[str, str, str]]:
    """Return (name, value on select_val, value on test) of each score, and (name, value, "") of each cost."""
    measurements = []
    for name, record in sorted(measured.items(), key=lambda pair: pair[1].kind != "score"):
        if is_finite(row.get(name)):
            test = format_value(row.get(f"{name}_test"), record) if record.kind == "score" else ""
            measurements.append((label_column(name), format_value(row[name], record), test))
    return measurements


def _format_yaml(value: object, indent: str) -> list[str]:
    lines = []
    for key, entry in value.items() if isinstance(value, dict) else ():
        if isinstance(entry, dict) and entry:
            lines += [f"{indent}{key}:", *_format_yaml(entry, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {'none' if entry is None else '{}' if entry == {} else json.dumps(entry)}")
    return lines


def _summarize_methods(methods: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, str, str]:
    """Return the methods, the first three hyperparameters of the first one, and the full text for a tooltip."""
    names = " + ".join(method for method, _ in methods)
    return "\u2013" if names == "none" else names, ", ".join(methods[0][1][:3]), join_methods(methods)


def _numeric_columns(candidates: pd.DataFrame, info: RunInfo) -> list[tuple[str, ObjectiveSpec]]:
    """Return the numeric columns of the table, scores first; the cards and the CSV file have all others."""
    measured = records(info)
    wanted = dict.fromkeys([*(record.name for record in info.objectives), "bytes"])
    names = [name for name in wanted if name in measured and name in candidates]
    return sorted(((name, measured[name]) for name in names), key=lambda pair: pair[1].kind != "score")


def _loss_curve(trials: pd.DataFrame, number: object) -> list[tuple[float, float]]:
    if not {"number", "curve"} <= set(trials.columns):
        return []
    curves = trials[trials["number"] == number]["curve"].tolist()
    rows = curves[0] if curves and isinstance(curves[0], list) else []
    return [(row["epoch"], row["loss"]) for row in rows if is_finite(row.get("epoch")) and is_finite(row.get("loss"))]
