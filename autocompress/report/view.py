"""How one table is read by every part of the report: what each candidate is, in groups and in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from autocompress.front import feasible, full_fidelity, numbers
from autocompress.words import finite

SECTIONS = ("student", "distill", "fit", "prune", "quantize")
NATIVE_BITS = (8, 32)
#: Column that holds what :func:`simulated` says, so that a page works it out once.
SIMULATED = "_simulated"
_BITS = ("weight_bits", "activation_bits")
_BIT_WORDS = ("-bit weights", "-bit activations")
# These knobs stand first and are told even where they do not vary.
_ALWAYS = (*_BITS, "pruning_ratio", "temperature", "width", "depth")
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
    for column in sorted(map(str, candidates.columns), key=_weight):
        section, _, rest = column.partition(".")
        method, _, knob = rest.rpartition(".")
        if section not in knobs or not method:
            continue
        telling = _weight(column) < len(_ALWAYS) or told[column].nunique() > 1
        values = candidates[column].tolist()
        texts = {value: _knob(knob, value) for value in set(values) if value is not None and value == value}
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


def simulated(candidates: pd.DataFrame) -> list[str]:
    """Return, one text a row, what of a candidate has no native kernel: ``4-bit weights``; empty if all is native.

    Bit-widths other than 8 and 32 and quantizers that are not linear run as floating-point arithmetic that rounds the
    same way: their scores are exact, their speed is not that of a device with such a kernel.
    """
    if SIMULATED in candidates:
        return list(candidates[SIMULATED])
    found: list[dict[str, None]] = [{} for _ in range(len(candidates))]
    for column in sorted(map(str, candidates.columns), key=_weight):
        section, _, knob = column.partition(".")
        knob = knob.rpartition(".")[2]
        if section == "quantize" and knob in (*_BITS, "quantizer"):
            values = candidates[column].tolist()
            texts = {value: _no_kernel(knob, value) for value in set(values)}
            for row, value in zip(found, values, strict=True):
                row.update(dict.fromkeys(texts[value]))
    # What the layers have counts: mixed precision sets no width, and a progressive method may stop above the one set.
    for row, details in zip(found, candidates.get("details", [None] * len(found)), strict=True):
        layers = details.get("layers") or [] if isinstance(details, Mapping) else []
        if any(knob in layer for layer in layers for knob in _BITS):
            for text in [text for text in row if text.endswith(_BIT_WORDS)]:
                del row[text]
        for layer in layers:
            for knob in _BITS:
                row.update(dict.fromkeys(_no_kernel(knob, layer.get(knob))))
    return [", ".join(row) for row in found]


def rank(candidates: pd.DataFrame, groups: "pd.Series[str]", score: Mapping[str, Any], cost: str) -> list[int]:
    """Return the positions of the rows in the order of the table: by group as in ``GROUPS``, the best score first."""
    sign = -1.0 if score["direction"] == "maximize" else 1.0
    order = {name: place for place, name in enumerate(GROUPS)}
    place = groups.map(order).to_numpy(dtype=np.float64)
    costs = np.nan_to_num(numbers(candidates, cost), nan=np.inf)
    scores = np.nan_to_num(numbers(candidates, score["name"]) * sign, nan=np.inf)
    return [int(row) for row in np.lexsort((costs, scores, place))]


def _weight(column: str) -> int:
    """Return where a knob stands in its recipe: those that always matter first, the others as they come."""
    knob = column.rpartition(".")[2]
    return _ALWAYS.index(knob) if knob in _ALWAYS else len(_ALWAYS)


def _no_kernel(knob: str, value: object) -> list[str]:
    if knob in _BITS and isinstance(value, int | float) and finite(value) and value not in NATIVE_BITS:
        return [_knob(knob, value)]
    if knob == "quantizer" and isinstance(value, str) and not value.startswith("linear"):
        return [f"{value} quantizer"]
    return []


def _knob(name: str, value: object) -> str:
    if name in _BITS and finite(value):
        return f"{value:.0f}-bit {name.removesuffix('_bits')}s"
    if isinstance(value, float):
        return f"{name} {value:.3g}"
    return f"{name} {value}"
