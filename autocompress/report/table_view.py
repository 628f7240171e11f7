"""How one table is read by every part of the report: what each candidate is, in groups and in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import feasible, full_fidelity, numbers
from autocompress.analysis.simulated import (
    FIRST_KNOBS,
    SIMULATED as SIMULATED,
    knob_order,
    knob_words,
    simulated as simulated,
)

SECTIONS = ("student", "distill", "fit", "prune", "quantize")
# Controls (C0, C1), bidirectional overrides, zero-width characters and lone surrogates: they change how text looks.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

#: What a candidate is, in the order in which the table shows them.
GROUPS = {
    "front": "on the front",
    "baseline": "baseline",
    "dominated": "dominated",
    "infeasible": "breaks a limit",
    "early": "stopped early",
    "unmeasured": "not measured",
}


def visible(text: str) -> str:
    r"""Return text whose control and direction characters are spelled out, so that a name is what it looks like.

    Example:
        >>> visible("a\u202eb")
        'a\\u202eb'
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def classify(candidates: pd.DataFrame, front: pd.DataFrame, meta: Mapping[str, Any]) -> "pd.Series[str]":
    """Return each candidate's group, a key of ``GROUPS``.

    ``early`` are candidates of trials that were stopped before the last rung: their scores are not comparable with
    fully trained ones, so they neither dominate nor are dominated.
    """
    full = candidates.index.isin(full_fidelity(candidates).index)
    measured = np.all([np.isfinite(numbers(candidates, each["name"])) for each in meta["objectives"]], axis=0)
    conditions = [
        candidates["role"] != "search",
        ~full,
        ~measured,
        ~feasible(candidates, meta.get("limits") or {}),
        candidates["id"].isin(front["id"]),
    ]
    names = ["baseline", "early", "unmeasured", "infeasible", "front"]
    groups = np.select([np.asarray(condition) for condition in conditions], names, "dominated")
    return pd.Series(groups, index=candidates.index, dtype="str")


def recipes(
    candidates: pd.DataFrame, among: pd.DataFrame | None = None
) -> dict[str, list[list[tuple[str, list[str]]]]]:
    """Return each section's methods with their telling knobs in words, one list of methods a row.

    Telling are the knobs that vary, and a few that always matter; the others are in the full configuration.

    For example ``{"student": [[("cnn", ["width 16", "depth 2"])], ...], "prune": [[("none", [])], ...], ...}``.

    Args:
        candidates: The rows to tell about.
        among: The table in which a knob must vary to be told; by default the same.
    """
    told = candidates if among is None else among
    knobs: dict[str, list[dict[str, list[str]]]] = {name: [{} for _ in range(len(candidates))] for name in SECTIONS}
    for column in sorted(map(str, candidates.columns), key=knob_order):
        section, _, rest = column.partition(".")
        method, _, knob = rest.rpartition(".")
        if section not in knobs or not method:
            continue
        telling = knob_order(column) < len(FIRST_KNOBS) or told[column].nunique() > 1
        values = candidates[column].tolist()
        texts = {value: knob_words(knob, value) for value in set(values) if value is not None and value == value}
        for found, value in zip(knobs[section], values, strict=True):
            if value in texts:
                found.setdefault(method, []).extend([texts[value]] if telling else [])
    names = {
        section: [str(name) for name in candidates[section]] if section in candidates else ["none"] * len(rows)
        for section, rows in knobs.items()
    }
    return {
        section: [list(row.items()) or [(name, [])] for name, row in zip(names[section], rows, strict=True)]
        for section, rows in knobs.items()
    }


def in_words(methods: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return methods with their knobs as one text.

    Example:
        >>> in_words([("cnn", ["width 16", "depth 2"]), ("plain", [])])
        'cnn (width 16, depth 2) + plain'
    """
    return " + ".join(f"{method} ({', '.join(knobs)})" if knobs else method for method, knobs in methods)


def rank(candidates: pd.DataFrame, groups: "pd.Series[str]", score: Mapping[str, Any], cost: str) -> list[int]:
    """Return the positions of the rows in the order of the table: by group as in ``GROUPS``, the best score first."""
    sign = -1.0 if score["direction"] == "maximize" else 1.0
    order = {name: place for place, name in enumerate(GROUPS)}
    place = groups.map(order).to_numpy(dtype=np.float64)
    costs = np.nan_to_num(numbers(candidates, cost), nan=np.inf)
    scores = np.nan_to_num(numbers(candidates, score["name"]) * sign, nan=np.inf)
    return [int(row) for row in np.lexsort((costs, scores, place))]
