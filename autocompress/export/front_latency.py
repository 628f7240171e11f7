"""Latency of the candidates of a run on its target, each exported as it would be deployed.

FLOPs do not predict it: a small model spends its time in starting kernels, and int8 is slower than float on a
processor without the instructions for it. Candidates, their graphs in floating point and the teacher are timed in
turns. What counts is the time divided by that of the teacher in the same round: it hardly depends on the load of the
machine, so a measurement that was interrupted is continued later without a difference.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from autocompress.analysis.latency import TEACHER, add_latency_column, counts_latency, select_contenders, with_latency
from autocompress.analysis.pareto import full_fidelity, pareto_front
from autocompress.analysis.selection import select_candidate
from autocompress.core.atomic import require_writable
from autocompress.core.run_info import LatencyInfo, RunInfo, read_processor_name
from autocompress.errors import ArtifactError, NoCandidateError
from autocompress.export.candidate import TimedGraphs, export_candidate_graphs, export_teacher_graphs
from autocompress.export.graph_choice import CHOICE_SECONDS
from autocompress.store.run_store import RunStore
from autocompress.targets import Target, make_target, open_stored_target
from autocompress.targets.timing import compare_rounds, is_order_certain, time_rounds

# Candidates that are timed in turns and stored together: a killed measurement loses those of one group.
GROUP = 6
SECONDS_PER_MODEL = 0.04
# The target of runs that name none, and of those that leave the bits free.
DEFAULT_TARGET = "onnxruntime"
#: Suffix of the graph in floating point.
IN_FLOAT = " in floating point"


@dataclass(frozen=True)
class TimingOptions:
    """Conditions of a measurement.

    Attributes:
        batch: Number of examples per run.
        threads: Number of threads of the runtime.
        seconds: Seconds to measure each graph.
        limit: Seconds after the export of the teacher in which groups of candidates are begun; None for no limit.
        keep: Whether candidates that were measured under the same conditions are not measured again.
    """

    batch: int = 1
    threads: int = 1
    seconds: float = 0.3
    limit: float | None = None
    keep: bool = False


def time_run(
    run: Path,
    identities: Sequence[str],
    options: TimingOptions = TimingOptions(),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Measure the latency of candidates in turns with the teacher, and store it in the run after each group.

    Values with another batch size, thread count, processor, target or version are not comparable and are dropped.

    Args:
        run: The run folder.
        identities: Ids of the candidates.
        options: Conditions of the measurement.
        on_progress: Callback with the number of measured models and of all models, the teacher among them.

    Returns:
        Reasons why models could not be measured, by id.

    Raises:
        UsageError: The run has no such candidate, or its training is not complete.
        VerificationError: A rebuilt candidate does not have its stored scores.
        StorageError: The run folder cannot be written.
    """
    require_writable(run)
    with RunStore.read(run) as store:
        info = store.run_info()
    target = _open_target(info)
    latency = _start_latency(info, target, options)
    wanted = [name for name in dict.fromkeys(identities) if not (options.keep and name in latency.rows)]
    if options.keep and not wanted and TEACHER in latency.rows:
        return {}
    done, total, reasons = 1, len(wanted) + 1, dict[str, str]()
    on_progress(0, total)
    teacher = _export_teacher(run, reasons)
    # The first export of a process loads the exporter, which takes seconds and is not repeated.
    started = time.monotonic()
    on_progress(done, total)
    # Without candidates the teacher is timed alone.
    for start in range(0, max(len(wanted), 1), GROUP):
        # The first group is timed in any case: the recommended candidate is in it.
        if start and options.limit is not None and time.monotonic() - started > options.limit:
            break
        group = dict(teacher)
        try:
            for name in wanted[start : start + GROUP]:
                _export_candidate(run, name, options, group, reasons)
                done += 1
                on_progress(done, total)
        finally:
            # Candidates exported before an interruption are measured and kept.
            latency = _time_group(target, group, latency, options, reasons)
            _store_latency(run, latency)
    return reasons


def time_front(
    run: Path, limit: float | None = None, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, str]:
    """Measure the latency of a finished front, of the recommended candidate and of the teacher.

    If latency is an objective or a limit of the search, the front and the recommendation are frozen again with the
    measured values: of the front that the predictions gave, those candidates remain that are not dominated.

    Args:
        run: The run folder.
        limit: Seconds after the export of the teacher in which groups of six candidates are begun; None for no limit.
        on_progress: Callback as in :func:`time_run`.

    Returns:
        Reasons why models could not be measured, by id.
    """
    with RunStore.read(run) as store:
        info = store.run_info()
    front = list(info.front or ())
    # In case the time does not suffice: the recommended candidate, then the best scores before the lowest costs.
    wanted = list(dict.fromkeys([*filter(None, [info.recommended]), *reversed(front)]))
    options = TimingOptions(seconds=SECONDS_PER_MODEL, limit=limit, keep=True)
    reasons = time_run(run, wanted, options, on_progress)
    if counts_latency(info):
        _freeze_front(run, front)
    return reasons


def time_contenders(run: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, str]:
    """Measure the latency of the candidates that may stand on the front of a search for latency, and of the teacher.

    Args:
        run: The run folder, whose search has ended and whose front is not frozen yet.
        on_progress: Callback as in :func:`time_run`.

    Returns:
        Reasons why models could not be measured, by id.
    """
    with RunStore.read(run) as store:
        contenders = select_contenders(full_fidelity(store.candidate_table()), store.run_info())
    return time_run(run, contenders, TimingOptions(seconds=SECONDS_PER_MODEL, keep=True), on_progress)


def _freeze_front(run: Path, front: Sequence[str]) -> None:
    with RunStore.open(run) as store:
        info = with_latency(store.run_info())
        table = add_latency_column(store.candidate_table(), info)
        timed = table[table["id"].isin([*front, info.recommended])]
        # Others have predictions only, which are not comparable with measured values.
        frozen = tuple(pareto_front(timed[timed["id"].isin(front)], info.objectives, info.limits)["id"])
        try:
            recommended = select_candidate(timed, info).id
        except NoCandidateError:
            recommended = ""
        store.update_run_info(replace(store.run_info(), front=frozen, recommended=recommended))


def _open_target(info: RunInfo) -> Target:
    if not info.target.precisions.restricts:
        return make_target(DEFAULT_TARGET, {})
    return open_stored_target(info.target)


def _start_latency(info: RunInfo, target: Target, options: TimingOptions) -> LatencyInfo:
    """Return the stored latencies if they were measured under the same conditions, else an empty table."""
    conditions = LatencyInfo(
        options.batch, options.threads, read_processor_name(), target.check_installed(), target=target.name
    )
    earlier = info.latency
    if earlier is None or replace(earlier, rows={}, float_rows={}) != conditions:
        return conditions
    return earlier


def _export_teacher(run: Path, reasons: dict[str, str]) -> dict[str, TimedGraphs]:
    try:
        return {TEACHER: export_teacher_graphs(run)}
    # A model that cannot be measured does not keep the others from being measured.
    except ArtifactError as error:
        reasons[TEACHER] = str(error)
        return {}


def _export_candidate(
    run: Path, name: str, options: TimingOptions, group: dict[str, TimedGraphs], reasons: dict[str, str]
) -> None:
    # The choice among graphs takes no longer than the measurement of the chosen one.
    seconds = min(CHOICE_SECONDS, 2 * options.seconds)
    try:
        group[name] = export_candidate_graphs(run, name, seconds)
    except ArtifactError as error:
        reasons[name] = str(error)


def _time_group(
    target: Target,
    group: Mapping[str, TimedGraphs],
    latency: LatencyInfo,
    options: TimingOptions,
    reasons: dict[str, str],
) -> LatencyInfo:
    """Return the latencies with those of a group of models, which are timed in turns."""
    try:
        times = _measure_graphs(target, dict(_list_graphs(group)), options)
    except ArtifactError as error:
        reasons.update({name: str(error) for name in group})
        return latency
    # The teacher keeps its first value, so that the values of all groups have one scale.
    scale = latency.rows.get(TEACHER, times.get(TEACHER, 0.0)) / times[TEACHER] if TEACHER in times else 1.0
    rows = {name: times[name] * scale for name in group}
    in_float = {name: times.get(name + IN_FLOAT, times[name]) * scale for name in group}
    return replace(latency, rows={**latency.rows, **rows}, float_rows={**latency.float_rows, **in_float})


def _list_graphs(group: Mapping[str, TimedGraphs]) -> Iterator[tuple[str, tuple[bytes, TimedGraphs]]]:
    for name, graphs in group.items():
        yield name, (graphs.content, graphs)
        if graphs.float_content != graphs.content:
            yield name + IN_FLOAT, (graphs.float_content, graphs)


def _measure_graphs(
    target: Target, graphs: Mapping[str, tuple[bytes, TimedGraphs]], options: TimingOptions
) -> dict[str, float]:
    """Return the milliseconds of each graph; those of one round each are divided by the teacher's, if it is there."""
    measured = {name: target.measure(content, options.seconds) for name, (content, _) in graphs.items()}
    remote = {name: value for name, value in measured.items() if value is not None}
    if len(remote) == len(graphs):
        return remote
    models = {name: target.load(content, options.threads) for name, (content, _) in graphs.items()}
    inputs = {
        name: [np.zeros([options.batch, *shape[1:]], dtype) for shape, dtype in timed.inputs]
        for name, (_, timed) in graphs.items()
    }
    is_enough = partial(is_order_certain, reference=TEACHER) if TEACHER in models else None
    rounds = time_rounds(models, inputs, options.seconds * len(models), is_enough=is_enough)
    if TEACHER not in rounds:
        return {name: median(values) for name, values in rounds.items()}
    teacher = median(rounds[TEACHER])
    return {name: ratio * teacher for name, ratio in compare_rounds(rounds, TEACHER).items()}


def _store_latency(run: Path, latency: LatencyInfo) -> None:
    with RunStore.open(run) as store:
        store.update_run_info(replace(store.run_info(), latency=latency))
