"""Results of commands as text, and tables for the terminal."""

import json
import shlex
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import pandas as pd
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autocompress.analysis.certification import describe_test_loss, estimate_interval
from autocompress.analysis.confirmation import summarize_repeats
from autocompress.analysis.latency import NAME as LATENCY, describe_measured_savings
from autocompress.analysis.pareto import numeric_column, primary_objectives, sort_by_cost
from autocompress.analysis.selection import Pick
from autocompress.analysis.thresholds import describe_thresholds
from autocompress.analysis.trivial_baselines import list_warnings, summarize_baselines
from autocompress.api import Front, load
from autocompress.cli.options import TableFormat, print_rows
from autocompress.cli.terminal import make_console, print_prose, print_text, progress_console
from autocompress.core.formatting import format_count, format_plural, format_value, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo, read_processor_name
from autocompress.core.untrusted import escape_controls
from autocompress.errors import NoCandidateError
from autocompress.report.figure_data import format_with_interval
from autocompress.report.uncertainty import describe_ties, repeats_content
from autocompress.store.control import find_driver, is_pause_requested
from autocompress.store.run_store import RunStore

if TYPE_CHECKING:
    from autocompress.analysis.cascade import CascadeSearch
    from autocompress.cli.doctor import Check

# Full precision: what a layer has that was not quantized.
FLOAT_BITS = 32


@dataclass(frozen=True)
class _Column:
    """A column of the table of candidates.

    Attributes:
        heading: Heading of the column.
        cells: One text for each candidate.
        is_text: Whether the cells are words, aligned at the left.
        priority: Order in which columns are left out on a narrow terminal, the largest first; 0 is never left out.
    """

    heading: str
    cells: list[str]
    is_text: bool = False
    priority: int = 0

    @property
    def width(self) -> int:
        """Terminal cells of the widest text, with the blanks beside it."""
        return max(map(cell_len, [self.heading, *self.cells])) + 2


def front_table(
    candidates: pd.DataFrame, objectives: Sequence[ObjectiveSpec], marked: str = "", width: int | None = None
) -> Table:
    """Return candidates as a table: id, objectives and the main hyperparameters.

    Args:
        candidates: Rows of the table.
        objectives: Records of the objectives, one column each.
        marked: Id of the candidate that an arrow points at.
        width: Cells of the terminal; columns that do not fit are left out, and the caption names them. All are shown
            by default.
    """
    columns = _list_columns(candidates, objectives, marked)
    left_out = []
    # Cells on several lines would hide the front, and shortened ones say nothing.
    while width is not None and sum(column.width for column in columns) - 2 > width:
        least = max(columns, key=lambda column: column.priority)
        if not least.priority:
            break
        columns.remove(least)
        left_out.append(least.heading)
    caption = f"left out on {width} columns: {', '.join(reversed(left_out))}" if left_out else None
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column.heading, justify="left" if column.is_text else "right", no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(escape, cells))
    return table


def _list_columns(candidates: pd.DataFrame, objectives: Sequence[ObjectiveSpec], marked: str) -> list[_Column]:
    """Return all columns of the table of candidates."""
    rows = [row.to_dict() for _, row in candidates.iterrows()]
    columns = [
        _Column("", ["→" if row["id"] == marked else "" for row in rows], is_text=True),
        _Column("candidate", [str(row["id"]) for row in rows], is_text=True),
    ]
    for objective in objectives:
        cells = [format_value(row[objective.name], objective) for row in rows]
        columns.append(_Column(label_column(objective.name), cells))
    score = primary_objectives(objectives)[1]
    test_column = f"{score.name}_test"
    if test_column in candidates:
        intervals = [estimate_interval({"details": row.get("details")}) for row in rows]
        cells = [
            format_with_interval(row[test_column], interval, score)
            for row, interval in zip(rows, intervals, strict=True)
        ]
        columns.append(_Column("on test", cells, priority=1))
    settings = [_hyperparameter_cells(row) for row in rows]
    return [
        *columns,
        _Column("student", [student for student, _, _, _ in settings], is_text=True, priority=4),
        _Column("distilled", [distillation for _, distillation, _, _ in settings], is_text=True, priority=5),
        _Column("pruned", [ratio for _, _, ratio, _ in settings], priority=3),
        _Column("bits w/a", [bits for _, _, _, bits in settings], priority=2),
    ]


def print_front(candidates: pd.DataFrame, info: RunInfo, marked: str) -> None:
    """Print candidates as a table that fits the terminal."""
    console = make_console()
    console.print(front_table(candidates, info.objectives, marked, console.width))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return text cells as a table; every column but the first is right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        # Cells such as `autocompress[ncnn]` contain brackets, which rich would read as markup.
        table.add_row(*map(escape, row))
    return table


def _hyperparameter_cells(row: Mapping[Hashable, object]) -> tuple[str, str, str, str]:
    """Return the cells for student, distillation, pruning ratio and bit-widths."""

    def values(section: str, *names: str) -> list[object]:
        return [row.get(f"{section}.{row[section]}.{name}") for name in names]

    sizes = ("width", "depth", "block")
    shape = [
        f"{name}={value}" for name, value in zip(sizes, values("student", *sizes), strict=True) if _has_value(value)
    ]
    (temperature,) = values("distill", "temperature")
    (ratio,) = values("prune", "pruning_ratio")
    details = row.get("details")
    details = details if isinstance(details, Mapping) else {}
    steps = (details.get("prune") or {}).get("path")
    if steps:
        # Progressive pruning may stop before the ratio that was set: show the last one that was accepted.
        ratio = [step["pruning_ratio"] for step in steps if step["kept"]][-1]
    return (
        # pandas stores integers beside missing values as floats.
        " ".join([str(row["student"]), *(size.replace(".0", "") for size in shape)]),
        f"{row['distill']} T={temperature:.1f}" if _is_number(temperature) else str(row["distill"]),
        f"{ratio:.0%}" if _is_number(ratio) else "–",
        _format_bits(details.get("layers") or [], values("quantize", "weight_bits", "activation_bits")),
    )


def _format_bits(layers: Sequence[Mapping[str, int]], settings: Sequence[object]) -> str:
    """Return weight and activation bits: the range over the layers if they are stored, else the setting."""
    texts = []
    for side, setting in zip(("weight_bits", "activation_bits"), settings, strict=True):
        default = int(setting) if _is_number(setting) else FLOAT_BITS
        widths = sorted({int(layer[side]) for layer in layers if side in layer}) or [default]
        texts.append(str(widths[0]) if len(widths) == 1 else f"{widths[0]}–{widths[-1]}")
    return "/".join(texts)


def _has_value(value: object) -> bool:
    # NaN, the missing value of pandas, differs from itself.
    return value is not None and value == value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and _has_value(value)


# Seconds between two reads of a run under `status --watch`.
WATCH_INTERVAL = 2.0
_STATE_COLOURS = {"ok": "green", "warning": "yellow", "broken": "bold red"}


def print_pick(pick: Pick, front: Front) -> None:
    """Print a candidate with the reason, active constraints, neighbours, ties and simulated operations."""
    print_prose(f"{pick.id}: {pick.reason}")
    if pick.certificate is not None:
        print_prose(f"  {pick.certificate.describe(primary_objectives(front.info.objectives)[1])}")
    if pick.rule:
        print_prose(f"  not certified: {pick.rule}")
    if tested := describe_test_loss(pick.row, front.info):
        print_prose(f"  on the test split: {tested.replace(' on test', '')}")
    if measured := describe_measured_savings(pick.row, front.info):
        print_prose(f"  measured on {front.info.target.name}: {measured}")
    for sentence in describe_thresholds(pick.row.get("details"), front.info):
        print_prose(f"  {sentence}")
    if baselines := summarize_baselines(front.info, pick.row):
        print_prose(f"  beside trivial baselines: {baselines}")
    for warning in list_warnings(front.info, pick.row):
        print_prose(f"  warning: {warning}")
    for constraint in pick.binding:
        print_prose(f"  active constraint: {constraint}")
    for neighbour in pick.neighbours:
        print_prose(f"  {neighbour.kind}: {neighbour.text}")
    for alternative in pick.alternatives:
        print_prose(f"  alternative: {alternative}")
    if pick.ties is not None:
        text = describe_ties(pick, pick.ties, front.candidates, front.info).removesuffix(".")
        print_prose(f"  tied: {text} ({pick.ties.method})")
    if pick.simulated:
        print_prose(
            f"  simulated: {pick.simulated} (no kernel on this target: the score is exact, a speed-up is not shown)"
        )


def print_outcome(front: Front, plugins: list[Path]) -> None:
    """Print the front of a search, the recommended candidate, the page and the next command."""
    table, pick = front.to_pandas(), front.pick()
    if pick.id not in set(table["id"]):
        # The pick must hold on both validation splits, so it may lie slightly behind the front of the selection split.
        row = front.candidates[front.candidates["id"] == pick.id]
        table = sort_by_cost(pd.concat([table, row]), front.info.objectives)
    print_front(table, front.info, pick.id)
    print_text()
    print_failures(front)
    print_pick(pick, front)
    print_text(f"page: {front.folder / 'report.html'}")
    plugin_options = "".join(f" --plugin {shlex.quote(str(path))}" for path in plugins)
    folder = shlex.quote(str(front.folder))
    print_text(f"next: autocompress export {folder} --candidate {shlex.quote(pick.id)} --verify{plugin_options}")


def print_failures(front: Front) -> None:
    """Print how many trials failed for which reason, the most frequent reason first."""
    for reason, count in _count_failures(front):
        print_prose(f"  {count} failed: {reason}")


def _count_failures(front: Front) -> list[tuple[str, int]]:
    reasons = front.trials.loc[front.trials["state"] == "failed", "reason"].value_counts()
    # A reason is one line: a second one could pass for a line of ours.
    return [(escape_controls(str(reason), keeps_lines=False), int(count)) for reason, count in reasons.items()]


def print_status(front: Front) -> None:
    """Print the state of a run."""
    for part in _render_status(front):
        if isinstance(part, str):
            print_prose(part)
        else:
            make_console().print(part)


def watch_status(load: Callable[[], Front]) -> None:
    """Show the state of a run until it ends: in place on a terminal, elsewhere after each change.

    Args:
        load: Callback that reads the run.
    """
    console = make_console()
    if not console.is_terminal:
        # Without a terminal, an unchanged status is not repeated, so a log file stays short.
        previous: RenderableType = ""
        while True:
            front = load()
            counts = _render_status(front)[0]
            if counts != previous:
                print_status(front)
            if _has_ended(front):
                return
            previous = counts
            time.sleep(WATCH_INTERVAL)
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            front = load()
            live.update(Group(*_render_status(front)), refresh=True)
            if _has_ended(front):
                return
            time.sleep(WATCH_INTERVAL)


def status_rows(front: Front) -> list[dict[str, object]]:
    """Return the number of trials for each role, state and reason."""
    names = ["role", "state", "reason"]
    counts = front.trials.groupby(names, sort=False).size().reset_index(name="trials")
    return [{**{name: str(row[name]) for name in names}, "trials": int(row["trials"])} for _, row in counts.iterrows()]


def serve_live(folder: Path, port: int, open_page: Callable[[str], object]) -> None:
    """Serve the page of a run on this machine until Ctrl-C, then write it.

    Args:
        folder: The run folder.
        port: Port on the loopback interface; 0 takes a free one.
        open_page: Callback that gets the address of the page.
    """
    from autocompress.report.live import ENDED, LiveServer

    def read_version() -> str:
        with RunStore.read(folder) as study:
            version = study.content_version()
        return f"{ENDED if _has_ended(Front(folder)) else 'running'}: {version}"

    with LiveServer(lambda: Front(folder).page(live=True), read_version, port) as server:
        print_text(f"live page: {server.url} (only on this machine; press Ctrl-C to stop)", flush=True)
        open_page(server.url)
        # Ctrl-C is the regular end of the server, so the page is written after it.
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    print_text(Front(folder).report())


def print_checks(checks: "Iterable[Check]", console: Console, *, as_json: bool = False) -> bool:
    """Print checks as they complete, or all of them as JSON; return whether none is broken."""
    rows, is_ready = [], True
    for check in checks:
        is_ready = is_ready and check.state != "broken"
        rows.append(asdict(check))
        if as_json:
            continue
        state = Text(f"{check.state:<7}", _STATE_COLOURS[check.state])
        if console.is_terminal:
            # Further lines of a finding stand below its first one.
            row = Table.grid(padding=(0, 1, 0, 0))
            row.add_column(width=7)
            row.add_column(width=12)
            row.add_column(overflow="fold")
            row.add_row(state, check.name, Text(check.finding))
            console.print(row)
        else:
            console.print(Text.assemble(state, f" {check.name:<12} {check.finding}"), soft_wrap=True)
        if check.fix:
            console.print(f"{'':<20} fix: {check.fix}", soft_wrap=True, highlight=False, markup=False)
    ready = "ready to search" if is_ready else "something is broken: see the fixes above"
    print_text(json.dumps(rows, indent=1) if as_json else ready)
    return is_ready


def _render_status(front: Front) -> list[RenderableType]:
    counts = front.trials["state"].value_counts()
    parts: list[RenderableType] = [
        ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials yet",
        *(f"  {count} failed: {reason}" for reason, count in _count_failures(front)),
    ]
    if not front.info.is_finished and find_driver(front.folder) is None:
        parts.append("  the search is not running: continue it with `autocompress search ... --resume`")
    elif not front.info.is_finished and is_pause_requested(front.folder):
        parts.append(f"  paused: continue it with `autocompress resume {shlex.quote(str(front.folder))}`")
    table = front.to_pandas()
    if len(table) and front.info.objectives:
        width = make_console().width
        parts.append(front_table(table, front.info.objectives, front.info.recommended, width))
    return parts


def _has_ended(front: Front) -> bool:
    has_active_trials = front.trials["state"].isin(["running", "paused"]).any()
    # A killed driver leaves trials behind that stay "running" in the store.
    return (front.info.is_finished and not has_active_trials) or find_driver(front.folder) is None


def print_confirmed(front: Front) -> None:
    """Print repeats from scratch: scores with intervals for each candidate, and the front on the test split."""
    cost, score = primary_objectives(front.info.objectives)
    estimates = summarize_repeats(front.candidates, front.trials, front.info)
    summary = repeats_content(estimates, front.to_pandas(), front.info, _recommended_pick(front))
    if summary is None:
        return
    headings = [
        "candidate",
        label_column(cost.name),
        f"{label_column(score.name)} in the search",
        "repeated, select_val",
        "repeated, test",
        "gap",
        "seeds",
    ]
    rows = [
        [row["id"], row["cost"], row["searched"], row["select_val"], row["test"], row["gap"], row["seeds"]]
        for row in summary["rows"]
    ]
    make_console().print(plain_table(headings, rows))
    for text in (summary["text"], summary["test"], f"{summary['method']}."):
        print_prose(text)
    print_text(f"page: {front.folder / 'report.html'}")


def print_cascade(search: "CascadeSearch", folder: Path) -> None:
    """Print the cascades that no candidate dominates, and the recommended one beside the candidate of equal cost."""
    from autocompress.analysis.cascade import CASCADE, describe_cascade

    cost, metric = label_column(search.cost_name), label_column(search.metric)
    if search.points:
        headings = ["small", "large", "threshold", "share of large", f"expected {cost}", f"{metric} on select_val"]
        rows = [
            [
                point.small,
                point.large,
                f"{point.threshold:.4f}",
                f"{point.share:.0%}",
                format_count(point.cost),
                f"{point.score:.4f}",
            ]
            for point in search.points
        ]
        make_console().print(plain_table(headings, rows))
    print_prose(describe_cascade(search))
    print_text(f"wrote {folder / CASCADE}")


def bench_artifact(
    folder: Path, *, batch: int, threads: int, seconds: float | None, form: TableFormat = TableFormat.table
) -> None:
    """Measure the latency of an exported folder and print a row for each of its model files."""
    # Imported here, so that other commands start without the export layer.
    from autocompress.export.bench import bench

    results = (
        bench(folder, batch=batch, threads=threads)
        if seconds is None
        else bench(folder, batch=batch, threads=threads, seconds=seconds)
    )
    if form is not TableFormat.table:
        print_rows([asdict(result) for result in results], form)
        return
    rows = [
        [
            result.file,
            f"{result.median_ms:.3f} ms",
            f"{result.p95_ms:.3f} ms",
            f"{result.batch / result.median_ms * 1000:,.0f}/s",
            format_count(result.memory_bytes, "B") if result.memory_bytes else "–",
            format_count(result.file_bytes, "B"),
        ]
        for result in results
    ]
    make_console().print(plain_table(["file", "median", "95th percentile", "examples", "memory", "size"], rows))
    print_prose(_format_conditions(batch, threads))


def bench_run(
    run: str,
    runs: Path,
    candidates: Iterable[str],
    *,
    batch: int,
    threads: int,
    seconds: float | None,
    form: TableFormat = TableFormat.table,
) -> None:
    """Measure the latency of a run's front, or of some candidates, and print a row for each, the fastest first."""
    from autocompress.cli.progress import CountDisplay

    front = load(run, runs)
    # The argument is left out where it is not set, so that the default has a single place.
    duration = {} if seconds is None else {"seconds": seconds}
    with CountDisplay(progress_console(), "exporting and timing", "timed {} models") as display:
        errors = front.bench([*candidates], batch=batch, threads=threads, on_progress=display.update, **duration)
    cost, score = primary_objectives(front.info.objectives)
    # The column is NaN for every candidate that was not timed, in this call or an earlier one.
    timed = front.candidates[np.isfinite(numeric_column(front.candidates, LATENCY))].sort_values(LATENCY)
    teacher = front.info.teacher.costs.get(LATENCY)
    if form is not TableFormat.table:
        columns = ["id", score.name, cost.name, LATENCY]
        print_rows(json.loads(timed[columns].to_json(orient="records")), form)
        return
    rows = [
        [
            str(row["id"]),
            format_value(row[score.name], score),
            format_value(row[cost.name], cost),
            f"{row[LATENCY]:.3f} ms",
            "" if teacher is None else f"{teacher / row[LATENCY]:.2f}x",
        ]
        for _, row in timed.iterrows()
    ]
    headings = ["candidate", label_column(score.name), label_column(cost.name), "median", "faster than the teacher"]
    make_console().print(plain_table(headings, rows))
    if teacher is not None:
        print_text(f"teacher: {teacher:.3f} ms")
    for candidate, reason in errors.items():
        print_prose(f"  not timed: {candidate}: {reason}")
    print_prose(_format_conditions(batch, threads))
    print_text(f"page: {front.folder / 'report.html'}")


def _format_conditions(batch: int, threads: int) -> str:
    return f"batch {batch}, {format_plural(threads, 'thread')}, onnxruntime on this processor ({read_processor_name()})"


def _recommended_pick(front: Front) -> Pick | None:
    with suppress(NoCandidateError):
        return front.pick()
    return None
