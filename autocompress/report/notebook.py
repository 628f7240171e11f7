"""Display of a run in a notebook."""

import html

import pandas as pd

from autocompress.analysis.selection import Pick
from autocompress.core.formatting import format_value, label_column
from autocompress.core.run_info import RunInfo


def front_html(front: pd.DataFrame, info: RunInfo, picked: Pick | None, title: str) -> str:
    """Return the front as a small table below the pick and its reason; all names are escaped."""
    if not info.objectives or front.empty:
        return f"<p>{html.escape(title)}</p>"
    columns = {"candidate": front["id"].tolist()}
    for objective in info.objectives:
        columns[label_column(objective.name)] = [format_value(value, objective) for value in front[objective.name]]
    columns |= {name: front[name].tolist() for name in ("student", "distill", "prune", "quantize") if name in front}
    reason = "" if picked is None else f"<p><b>{html.escape(picked.id)}</b>: {html.escape(picked.reason)}</p>"
    return f"{reason}{pd.DataFrame(columns).to_html(index=False, border=0)}"
