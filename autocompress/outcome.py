"""What the command line prints of a run."""

import shlex
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from autocompress.api import Front
from autocompress.confirmation import METHOD, confirmed, front_on_test, on_test
from autocompress.console import console, front_table, plain_table
from autocompress.front import axes, by_cost
from autocompress.pick import Pick
from autocompress.words import gap, label, show


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


def print_confirmed(found: Front) -> None:
    """Print what repeats say: a row a candidate, the intervals' source, and what became of the front on test."""
    table = found.confirmed()
    cost, score = axes(found.meta["objectives"])
    name = label(score["name"])
    rows = []
    for row in table.to_dict("records"):
        shown = [
            show(row["cost"], cost),
            show(row["searched"], score),
            *(_with_bounds(row, each, score) for each in ("select_val", "test")),
        ]
        rows.append(
            [
                str(row["id"]),
                *shown,
                _signed(row["gap"], score),
                f"{row['seeds']}" + (f", {row['failed']} failed" if row["failed"] else ""),
            ]
        )
    heads = [
        "candidate",
        label(cost["name"]),
        f"{name} in the search",
        "again, select_val",
        "again, test",
        "test - select_val",
        "seeds",
    ]
    console().print(plain_table(heads, rows))
    print(f"{METHOD}.")
    tested = on_test(found.to_pandas(), found.meta, confirmed(found.candidates, found.trials, found.meta))
    if tested is not None:
        print(front_on_test(tested))
    print(f"page: {found.folder / 'report.html'}")


def _with_bounds(row: Mapping[Hashable, Any], name: str, score: Mapping[str, Any]) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = f" [{show(low, score)}, {show(high, score)}]" if low == low else ""
    return f"{show(row[name], score)}{ends}"


def _signed(change: float, score: Mapping[str, Any]) -> str:
    size = gap(change, score)
    return size if size == gap(0.0, score) else f"{'+' if change > 0 else '-'}{size}"
