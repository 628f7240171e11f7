"""What a notebook shows of a run."""

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from autocompress.analysis.selection import Pick
from autocompress.core.formatting import label, show


def front_html(front: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None, title: str) -> str:
    """Return the front as a small table, the pick with its reason above; names are shown as text."""
    if "objectives" not in meta or front.empty:
        return f"<p>{html.escape(title)}</p>"
    shown = {"candidate": front["id"].tolist()}
    for objective in meta["objectives"]:
        shown[label(objective["name"])] = [show(value, objective) for value in front[objective["name"]]]
    shown |= {name: front[name].tolist() for name in ("student", "distill", "prune", "quantize") if name in front}
    told = "" if picked is None else f"<p><b>{html.escape(picked.id)}</b>: {html.escape(picked.reason)}</p>"
    return f"{told}{pd.DataFrame(shown).to_html(index=False, border=0)}"
