"""What the command line prints of a run."""

import shlex
from contextlib import suppress
from pathlib import Path

import pandas as pd

from autocompress.api import Front
from autocompress.confirmation import confirmed
from autocompress.console import console, front_table, plain_table
from autocompress.errors import NoCandidateError
from autocompress.front import axes, by_cost
from autocompress.pick import Pick
from autocompress.report.confidence import repeats, told_ties
from autocompress.words import label


def print_pick(chosen: Pick, found: Front) -> None:
    """Print a choice, its reason, which limits bind, its neighbours, who is tied with it, and what is simulated."""
    print(f"{chosen.id}: {chosen.reason}")
    for limit in chosen.binding:
        print(f"  limit: {limit}")
    for neighbour in chosen.neighbours:
        print(f"  {neighbour.kind}: {neighbour.text}")
    if chosen.ties is not None:
        print(f"  tied: {told_ties(chosen, chosen.ties, found.to_pandas(), found.meta)} ({chosen.ties.method})")
    if chosen.simulated:
        print(f"  simulated: {chosen.simulated} (no kernel here; the score is exact, the speed is not)")


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
    print_pick(chosen, found)
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
    cost, score = axes(found.meta["objectives"])
    known = confirmed(found.candidates, found.trials, found.meta)
    told_of = repeats(known, found.to_pandas(), found.meta, _recommended(found))
    if told_of is None:
        return
    columns = ("id", "cost", "searched", "select_val", "test", "gap", "seeds")
    name = label(score["name"])
    heads = [
        "candidate",
        label(cost["name"]),
        f"{name} in the search",
        "again, select_val",
        "again, test",
        "gap",
        "seeds",
    ]
    console().print(plain_table(heads, [[row[column] for column in columns] for row in told_of["rows"]]))
    for text in (told_of["text"], told_of["test"], f"{told_of['method']}."):
        print(text)
    print(f"page: {found.folder / 'report.html'}")


def _recommended(found: Front) -> Pick | None:
    with suppress(NoCandidateError):
        return found.pick()
    return None
