"""The candidate table as all parts of the report show it: groups of candidates, and methods as texts."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from autocompress.analysis.latency import (
    FIRST_KNOBS,
    SIMULATED as SIMULATED,
    describe_simulation as describe_simulation,
    format_knob,
    knob_order,
)
from autocompress.analysis.pareto import full_fidelity, is_feasible, numeric_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo

SECTIONS = ("student", "distill", "fit", "prune", "quantize")
# Controls (C0, C1), bidirectional overrides, zero-width characters and lone surrogates: they change how a text looks.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

#: Groups of candidates in the order of the table, with their labels.
GROUPS = {
    "front": "on the front",
    "baseline": "baseline",
    "dominated": "dominated",
    "infeasible": "violates a limit",
    "early": "stopped early",
    "unmeasured": "not measured",
}


def escape_hidden(text: str) -> str:
    r"""Return text with escapes instead of invisible characters, so that two different names never look the same.

    Example:
        >>> escape_hidden("a\u202eb")
        'a\\u202eb'
    """
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def classify_candidates(candidates: pd.DataFrame, front: pd.DataFrame, info: RunInfo) -> "pd.Series[str]":
    """Return the group of each candidate, a key of ``GROUPS``.

    Candidates of trials that were stopped before the last rung are ``early``: their scores are not comparable with
    those of fully trained candidates, so they neither dominate nor are dominated.
    """
    full = candidates.index.isin(full_fidelity(candidates).index)
    measured = np.all(
        [np.isfinite(numeric_column(candidates, objective.name)) for objective in info.objectives], axis=0
    )
    conditions = [
        candidates["role"] != "search",
        ~full,
        ~measured,
        ~is_feasible(candidates, info.limits),
        candidates["id"].isin(front["id"]),
    ]
    names = ["baseline", "early", "unmeasured", "infeasible", "front"]
    groups = np.select([np.asarray(condition) for condition in conditions], names, "dominated")
    return pd.Series(groups, index=candidates.index, dtype="str")


def method_texts(
    candidates: pd.DataFrame, among: pd.DataFrame | None = None
) -> dict[str, list[list[tuple[str, list[str]]]]]:
    """Return the methods of each section with their hyperparameters as texts, one list of methods per row.

    Includes hyperparameters that vary, and a few that always matter; the full configuration has the others.

    For example ``{"student": [[("cnn", ["width 16", "depth 2"])], ...], "prune": [[("none", [])], ...], ...}``.

    Args:
        candidates: Rows to describe.
        among: Table in which a hyperparameter must vary to be included; by default ``candidates``.
    """
    reference = candidates if among is None else among
    knobs: dict[str, list[dict[str, list[str]]]] = {name: [{} for _ in range(len(candidates))] for name in SECTIONS}
    for column in sorted(map(str, candidates.columns), key=knob_order):
        section, _, rest = column.partition(".")
        method, _, knob = rest.rpartition(".")
        if section not in knobs or not method:
            continue
        is_included = knob_order(column) < len(FIRST_KNOBS) or reference[column].nunique() > 1
        values = candidates[column].tolist()
        texts = {value: format_knob(knob, value) for value in set(values) if value is not None and value == value}
        for methods, value in zip(knobs[section], values, strict=True):
            if value in texts:
                methods.setdefault(method, []).extend([texts[value]] if is_included else [])
    names = {
        section: [str(name) for name in candidates[section]] if section in candidates else ["none"] * len(rows)
        for section, rows in knobs.items()
    }
    return {
        section: [list(row.items()) or [(name, [])] for name, row in zip(names[section], rows, strict=True)]
        for section, rows in knobs.items()
    }


def join_methods(methods: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return methods with their hyperparameters as one text.

    Example:
        >>> join_methods([("cnn", ["width 16", "depth 2"]), ("plain", [])])
        'cnn (width 16, depth 2) + plain'
    """
    return " + ".join(f"{method} ({', '.join(knobs)})" if knobs else method for method, knobs in methods)


def rank_rows(candidates: pd.DataFrame, groups: "pd.Series[str]", score: ObjectiveSpec, cost: str) -> list[int]:
    """Return row positions in the order of the table: by group as in ``GROUPS``, then the best score first."""
    sign = -1.0 if score.direction == "maximize" else 1.0
    order = {name: index for index, name in enumerate(GROUPS)}
    group_ranks = groups.map(order).to_numpy(dtype=np.float64)
    costs = np.nan_to_num(numeric_column(candidates, cost), nan=np.inf)
    scores = np.nan_to_num(numeric_column(candidates, score.name) * sign, nan=np.inf)
    return [int(row) for row in np.lexsort((costs, scores, group_ranks))]
