"""What the command line prints of a run."""

import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from autocompress.analysis.confirmation import confirmed
from autocompress.analysis.latency import NAME
from autocompress.analysis.pareto import axes, by_cost, numbers
from autocompress.analysis.selection import Pick
from autocompress.api import Front, load
from autocompress.cli.doctor import Check
from autocompress.cli.progress import CountDisplay
from autocompress.cli.tables import console, front_table, plain_table
from autocompress.core.formatting import human, label, plural, show
from autocompress.core.machine import processor
from autocompress.errors import NoCandidateError
from autocompress.report.live import ENDED, LiveServer
from autocompress.report.uncertainty import repeats, told_ties
from autocompress.store.run_store import Study

# Seconds between two looks at a run.
WATCHED = 2.0


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
    for reason, count in _failures(found):
        print(f"  {count} failed: {reason}")


def _failures(found: Front) -> list[tuple[str, int]]:
    reasons = found.trials.loc[found.trials["state"] == "failed", "reason"].value_counts()
    return [(str(reason), int(count)) for reason, count in reasons.items()]


def print_status(found: Front) -> None:
    """Print how a run stands."""
    for part in _status(found):
        console().print(part, soft_wrap=isinstance(part, str), highlight=False, markup=False)


def watch_status(load: Callable[[], Front]) -> None:
    """Show how a run stands until it ends: in place on a terminal, anew where something has changed elsewhere."""
    out = console()
    if not out.is_terminal:
        before: RenderableType = ""
        while True:
            found = load()
            said = _status(found)[0]
            if said != before:
                print_status(found)
            if _has_ended(found):
                return
            before = said
            time.sleep(WATCHED)
    with Live(console=out, auto_refresh=False) as live:
        while True:
            found = load()
            live.update(Group(*_status(found)), refresh=True)
            if _has_ended(found):
                return
            time.sleep(WATCHED)


def status_rows(found: Front) -> list[dict[str, Any]]:
    """Return how many trials are in which state and why, a row for each pair."""
    names = ["role", "state", "reason"]
    counts = found.trials.groupby(names, sort=False).size().reset_index(name="trials")
    return [{**{name: str(row[name]) for name in names}, "trials": int(row["trials"])} for _, row in counts.iterrows()]


def serve_live(folder: Path, port: int, opened: Callable[[str], object]) -> None:
    """Serve the page of a run on loopback until Ctrl-C; write it once the search has ended."""

    def version() -> str:
        with Study.read(folder) as study:
            told = study.version()
        return f"{ENDED if _has_ended(Front(folder)) else 'running'}: {told}"

    with LiveServer(lambda: Front(folder).page(live=True), version, port) as server:
        print(f"live page: {server.url} (only on this machine; Ctrl-C ends it)", flush=True)
        opened(server.url)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    print(Front(folder).report())


def print_checks(checks: Iterable[Check], out: Console) -> bool:
    """Print checks as they come in; return whether nothing is broken."""
    sound = True
    for check in checks:
        colour = {"ok": "green", "scant": "yellow", "broken": "bold red"}[check.state]
        line = Text.assemble((f"{check.state:<7}", colour), f" {check.name:<12} {check.found}")
        out.print(line, soft_wrap=True)
        if check.fix:
            out.print(f"{'':<20} fix: {check.fix}", soft_wrap=True, highlight=False, markup=False)
        sound = sound and check.state != "broken"
    print("ready to search" if sound else "something is broken: see the fixes above")
    return sound


def _status(found: Front) -> list[RenderableType]:
    counts = found.trials["state"].value_counts()
    parts: list[RenderableType] = [
        ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials yet",
        *(f"  {count} failed: {reason}" for reason, count in _failures(found)),
    ]
    if "front" not in found.meta and _driver_of(found) is None:
        parts.append("  nothing drives it at the moment: continue with `autocompress search ... --resume`")
    if len(found) and "objectives" in found.meta:
        parts.append(front_table(found.to_pandas(), found.meta["objectives"], found.meta.get("recommended", "")))
    return parts


def _has_ended(found: Front) -> bool:
    under_way = found.trials["state"].isin(["running", "paused"]).any()
    return ("front" in found.meta and not under_way) or _driver_of(found) is None


def _driver_of(found: Front) -> int | None:
    """Return the process that drives a run; None if it has gone."""
    try:
        number = int((found.folder / ".driver").read_text())
        os.kill(number, 0)
    except PermissionError:
        return number
    except (OSError, ValueError):
        return None
    return number


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


def bench_artifact(folder: Path, **how: Any) -> None:
    """Time an exported folder and print what each of its files takes."""
    from autocompress.export.bench import bench

    found = bench(folder, **how)
    rows = [
        [
            one.file,
            f"{one.median_ms:.3f} ms",
            f"{one.p95_ms:.3f} ms",
            f"{one.batch / one.median_ms * 1000:,.0f}/s",
            human(one.memory_bytes, "B"),
            human(one.file_bytes, "B"),
        ]
        for one in found
    ]
    console().print(plain_table(["file", "median", "95th percentile", "examples", "memory", "size"], rows))
    print(_how(how))


def bench_run(run: str, runs: Path, candidates: Iterable[str], **how: Any) -> None:
    """Time a run's front, or some of its candidates, and print a row for each, the fastest first."""
    found = load(run, runs)
    with CountDisplay(console(), "exporting and timing", "timed {} models") as display:
        reasons = found.bench([*candidates], on_progress=display.progress, **how)
    cost, score = axes(found.meta["objectives"])
    timed = found.candidates[np.isfinite(numbers(found.candidates, NAME))].sort_values(NAME)
    teacher = found.meta["teacher"]["costs"].get(NAME)
    rows = [
        [
            str(row["id"]),
            show(row[score["name"]], score),
            show(row[cost["name"]], cost),
            f"{row[NAME]:.3f} ms",
            "" if teacher is None else f"{teacher / row[NAME]:.2f}x",
        ]
        for _, row in timed.iterrows()
    ]
    heads = ["candidate", label(score["name"]), label(cost["name"]), "median", "faster than the teacher"]
    console().print(plain_table(heads, rows))
    if teacher is not None:
        print(f"teacher: {teacher:.3f} ms")
    for identity, reason in reasons.items():
        print(f"  not timed: {identity}: {reason}")
    print(_how(how))
    print(f"page: {found.folder / 'report.html'}")


def _how(how: Mapping[str, Any]) -> str:
    return f"batch {how['batch']}, {plural(how['threads'], 'thread')}, onnxruntime on this processor ({processor()})"


def _recommended(found: Front) -> Pick | None:
    with suppress(NoCandidateError):
        return found.pick()
    return None
