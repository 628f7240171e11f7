"""What the command line prints of a run."""

import shlex
from pathlib import Path

import pandas as pd

from autocompress.api import Front
from autocompress.console import console, front_table
from autocompress.front import by_cost
from autocompress.pick import Pick


def print_pick(chosen: Pick) -> None:
    """Print a choice, its reason and its neighbours."""
    print(f"{chosen.id}: {chosen.reason}")
    for neighbour in chosen.neighbours:
        print(f"  {neighbour.kind}: {neighbour.text}")


def print_outcome(found: Front, plugins: list[Path]) -> None:
    """Print what a search came to, and the next command."""
    table, chosen = found.to_pandas(), found.pick()
    if chosen.id not in set(table["id"]):
        # A choice that holds on both validation splits may lie a little behind the front of one.
        picked = found.candidates[found.candidates["id"] == chosen.id]
        table = by_cost(pd.concat([table, picked]), found.meta["objectives"])
    console().print(front_table(table, found.meta["objectives"], chosen.id))
    print()
    print_failures(found)
    print_pick(chosen)
    print(f"page: {found.folder / 'report.html'}")
    with_plugins = "".join(f" --plugin {shlex.quote(str(path))}" for path in plugins)
    print(f"next: autocompress export {shlex.quote(str(found.folder))} --candidate {chosen.id} --verify{with_plugins}")


def print_failures(found: Front) -> None:
    """Print why trials failed, the most frequent reason first."""
    reasons = found.trials.loc[found.trials["state"] == "failed", "reason"].value_counts()
    for reason, count in reasons.items():
        print(f"  {count} failed: {reason}")


def print_status(found: Front) -> None:
    """Print how a run stands."""
    counts = found.trials["state"].value_counts()
    print(", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials yet")
    print_failures(found)
    if len(found) and "objectives" in found.meta:
        console().print(front_table(found.to_pandas(), found.meta["objectives"], found.meta.get("recommended", "")))
