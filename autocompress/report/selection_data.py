"""What the page's scripts need to filter candidates, and to select one under limits as ``autocompress pick`` does.

``query.js`` and ``selection.js`` evaluate the rules of :mod:`autocompress.analysis.query` and
:mod:`autocompress.analysis.selection`; everything that does not depend on the reader's input is computed here.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from autocompress.analysis.certification import certify_loss, read_loss
from autocompress.analysis.latency import SIMULATED, describe_simulation
from autocompress.analysis.pareto import numeric_column, pareto_front, primary_objectives, sort_by_cost
from autocompress.analysis.query import NESTED, describe_kind, list_texts
from autocompress.analysis.selection import BASELINE, describe_unusable, select_rankable
from autocompress.analysis.significance import BINOMIAL, PAIRED, unpack_correct
from autocompress.core.formatting import (
    COST_UNITS,
    FACTORS,
    NUMBER,
    UNIT,
    is_counted,
    is_finite,
    is_share,
    label_column,
)
from autocompress.core.run_info import RunInfo
from autocompress.errors import NoCandidateError

#: Most candidates whose certified loss is computed.
MAX_CERTIFICATES = 60
#: Most characters of stored examples that a page holds, for the tests of statistical ties.
MAX_EXAMPLES = 400_000


def table_data(candidates: pd.DataFrame) -> dict[str, str]:
    """Return what the filter of the page reads, as JSON texts: columns, their kinds, and the values of each row.

    Args:
        candidates: Candidates in the order of the table.
    """
    plain = candidates.drop(columns=[name for name in (*NESTED, SIMULATED) if name in candidates])
    kinds = [describe_kind(plain[name]) for name in plain.columns]
    for name, kind in zip(plain.columns, kinds, strict=True):
        # Texts beside numbers in one column: a script would write numbers in another way.
        if kind == "text" and not pd.api.types.is_string_dtype(plain[name]):
            plain = plain.assign(**{str(name): pd.Series(list_texts(plain[name]), plain.index, dtype=object)})
    return {
        "columns": json.dumps([str(name) for name in plain.columns]),
        "kinds": json.dumps(kinds),
        "data": str(plain.to_json(orient="values", double_precision=10)),
        "grammar": json.dumps({"number": NUMBER, "unit": UNIT, "factors": FACTORS, "units": COST_UNITS}),
    }


def rule_data(candidates: pd.DataFrame, info: RunInfo, run: str, total: int | None = None) -> dict[str, Any]:
    """Return what the selection under limits needs of each candidate, as JSON values.

    Args:
        candidates: Candidates in the order of the table.
        info: Description of the run.
        run: The run folder as an argument of a command.
        total: Number of candidates of the run, if the table has only a part of them.
    """
    objectives = info.objectives
    cost, score = primary_objectives(objectives)
    try:
        rankable = select_rankable(candidates, objectives)
    except NoCandidateError:
        rankable = candidates.iloc[:0]
    is_rankable = candidates["id"].isin(rankable["id"])
    order = sort_by_cost(candidates.reset_index(drop=True), objectives).index
    ranks = np.empty(len(candidates), dtype=int)
    ranks[order.to_numpy()] = np.arange(len(candidates))
    simulated = describe_simulation(candidates, info.target.precisions)
    roles = list(candidates["role"]) if "role" in candidates else ["search"] * len(candidates)
    measured = {name: record for name, record in info.measured.items() if name in candidates}
    return {
        "cost": cost.name,
        "score": score.name,
        "colour": next((objective.name for objective in objectives if objective not in (cost, score)), None),
        "objectives": [objective.name for objective in objectives],
        # Six digits would make ties that there are not.
        "exact": {objective.name: _list_values(candidates, objective.name) for objective in objectives},
        "positions": candidates.index.tolist(),
        "ranks": ranks.tolist(),
        "rankable": [int(value) for value in is_rankable],
        "complete": [int(value) for value in candidates["complete"]] if "complete" in candidates else [1] * len(roles),
        "searched": [int(role == "search") for role in roles],
        "simulated": simulated,
        # Of a run without a target, simulated candidates may be selected.
        "hasTarget": info.target.precisions.restricts,
        "target": info.target.name,
        "ties": _list_examples(candidates, info),
        "baselines": {
            str(name): info.baselines.get(str(name), "baseline")
            for name, role in zip(candidates["id"], roles, strict=True)
            if role == BASELINE
        },
        "limits": {name: dict(bounds) for name, bounds in info.limits.items()},
        "unusable": describe_unusable(candidates, score),
        "certificates": _list_certificates(rankable, info),
        "scopeNotice": ""
        if total in (None, len(candidates))
        else f"Selected among the {len(candidates):,} candidates of this page; the command considers all {total:,}.",
        "command": f"autocompress pick {shlex.quote(run)}",
        "records": {
            name: {
                "kind": record.kind,
                "isMaximized": record.is_maximized,
                "isShare": is_share(record),
                "isCounted": is_counted(name),
                "unit": COST_UNITS.get(name, "") if is_counted(name) else record.unit,
                "label": label_column(name),
            }
            for name, record in measured.items()
        },
    }


def _list_values(candidates: pd.DataFrame, name: str) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in numeric_column(candidates, name).tolist()]


def _list_examples(candidates: pd.DataFrame, info: RunInfo) -> dict[str, object] | None:
    """Return what the test of ties reads: the correct examples of each row by head, or the number of examples.

    None if no test applies; ``isLeftOut`` if the examples would make the page large.
    """
    base, _, head = primary_objectives(info.objectives)[1].name.partition("@")
    if base not in BINOMIAL:
        return None
    column = list(candidates["details"]) if "details" in candidates and base == PAIRED else []
    rows = [_read_correct(details, head) for details in column]
    examples = info.splits.get("select_val")
    is_large = sum(len(text) for row in rows for text in row or ()) > MAX_EXAMPLES
    return {
        "isLeftOut": is_large,
        "correct": rows if any(rows) and not is_large else None,
        "examples": examples if is_finite(examples) and examples >= 1 else None,
    }


def _read_correct(details: object, head: str) -> list[str] | None:
    """Return the packed correct examples of one head, or of all heads; None if they are not stored."""
    if not isinstance(details, Mapping) or unpack_correct(details, head) is None:
        return None
    packed = details["right"]
    return [str(text) for text in ([packed[head]] if head else packed.values())]


def _list_certificates(rankable: pd.DataFrame, info: RunInfo) -> dict[str, str]:
    """Return the certified loss of the front's candidates as sentences, by id; empty without stored examples."""
    if info.confidence is None or "details" not in rankable:
        return {}
    score, texts = primary_objectives(info.objectives)[1], {}
    # A bound takes milliseconds, so that all candidates would take longer than the rest of the page.
    front = pareto_front(rankable, info.objectives, info.limits).iloc[::-1].head(MAX_CERTIFICATES)
    names = ["id", "details", *(f"{score.name}{end}" for end in ("", "_search", "_folds"))]
    for row in front[[name for name in names if name in front]].to_dict("records"):
        loss = read_loss({str(name): value for name, value in row.items()}, info)
        if loss is not None:
            texts[str(row["id"])] = certify_loss(loss, None, info.confidence).describe(score)
    return texts
