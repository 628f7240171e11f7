"""Display of a run in a notebook."""

import html
import json
from dataclasses import dataclass, field

import pandas as pd

from autocompress.analysis.selection import Pick
from autocompress.core.formatting import format_value, label_column
from autocompress.core.run_info import RunInfo
from autocompress.errors import UnknownNameError


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


@dataclass(frozen=True)
class TrialView:
    """One trial of a run.

    Attributes:
        number: Number of the trial.
        state: State, such as ``complete`` or ``stopped``.
        reason: Reason why the trial did not complete; empty otherwise.
        seconds: Seconds of a worker; NaN before its first result.
        config: Configuration as nested JSON values.
        candidates: Candidates of the trial, one row each.
    """

    number: int
    state: str
    reason: str
    seconds: float
    config: dict[str, object] = field(repr=False)
    candidates: pd.DataFrame = field(repr=False)

    def _repr_html_(self) -> str:
        facts = {"state": f"{self.state}: {self.reason}" if self.reason else self.state}
        facts |= {"seconds": f"{self.seconds:.1f}", "candidates": f"{len(self.candidates):,}"}
        facts |= {name: json.dumps(value) for name, value in self.config.items() if value is not None}
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items()
        )
        return f"<p><b>trial {self.number}</b></p><table>{rows}</table>"


def view_trial(number: int, trials: pd.DataFrame, candidates: pd.DataFrame) -> TrialView:
    """Return a trial of a run.

    Raises:
        UnknownNameError: There is no such trial.
    """
    rows = trials[trials["number"] == number]
    if rows.empty:
        raise UnknownNameError(f"there is no trial {number}; the run has {len(trials)}, see front.trials")
    row = rows.iloc[0]
    own = candidates[candidates["trial"] == number] if len(candidates) else candidates
    state, reason, config = str(row["state"]), str(row["reason"]), json.loads(row["config"])
    return TrialView(number, state, reason, float(row["seconds"]), config, own)
