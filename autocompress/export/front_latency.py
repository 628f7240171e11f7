"""Latency of the candidates of a run on this machine, each exported as it would be deployed.

FLOPs do not predict it: a small model spends its time in starting kernels, and int8 is slower than float on a
processor without the instructions for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from autocompress.analysis.latency import TEACHER, add_latency_column, with_latency
from autocompress.analysis.pareto import pareto_front
from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import LatencyInfo, read_processor_name
from autocompress.errors import ArtifactError, NoCandidateError
from autocompress.export.bench import bench_graph
from autocompress.export.bench_worker import Shape
from autocompress.export.candidate import export_candidate_graph, export_teacher_graph
from autocompress.store.run_store import RunStore


def time_run(
    run: Path,
    identities: Sequence[str],
    *,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 0.3,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Measure the latency of candidates, and once of the teacher, and store the medians in the run.

    Medians with another batch size, thread count, processor or onnxruntime version are not comparable and are dropped.

    Args:
        run: The run folder.
        identities: Ids of the candidates.
        batch: Number of examples per run.
        threads: Number of threads of onnxruntime.
        seconds: Seconds to measure each model.
        on_progress: Callback with the number of measured models and of all models.

    Returns:
        Reasons why models could not be measured, by id.

    Raises:
        UsageError: The run has no such candidate, or its training is not complete.
        VerificationError: A rebuilt candidate does not have its stored scores.
    """
    measured = LatencyInfo(batch, threads, read_processor_name(), version("onnxruntime"))
    with RunStore.read(run) as store:
        earlier = store.run_info().latency
    # Everything but the rows must agree: batch, threads, processor and onnxruntime.
    rows = {} if earlier is None or replace(earlier, rows={}) != measured else dict(earlier.rows)
    # Each id once, in order; the teacher only if it has no comparable median yet.
    wanted = list(dict.fromkeys([*([] if TEACHER in rows else [TEACHER]), *identities]))
    reasons: dict[str, str] = {}
    on_progress(0, len(wanted))
    try:
        for done, identity in enumerate(wanted, 1):
            try:
                content, inputs = _export_graph(run, identity)
                result = bench_graph(content, inputs, batch=batch, threads=threads, seconds=seconds)
                rows[identity] = result.median_ms
            # A model that cannot be measured does not keep the others from being measured.
            except ArtifactError as error:
                reasons[identity] = str(error)
            on_progress(done, len(wanted))
    finally:
        # Medians measured before an interruption are kept.
        with RunStore.open(run) as store:
            store.update_run_info(replace(store.run_info(), latency=replace(measured, rows=rows)))
    return reasons


def time_front(run: Path, *, seconds: float = 0.3) -> dict[str, str]:
    """Measure the latency of a finished front, and freeze the front and the recommendation again with these values.

    A search ranks candidates by predicted latency. Of the front that resulted, those remain that are not dominated by
    measured latency; a candidate that cannot be measured keeps its prediction.

    Args:
        run: The run folder.
        seconds: Seconds to measure each model.

    Returns:
        Reasons why models could not be measured, by id.
    """
    with RunStore.read(run) as store:
        info = store.run_info()
    front = list(info.front or ())
    reasons = time_run(run, [*front, *filter(None, [info.recommended])], seconds=seconds)
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
    return reasons


def _export_graph(run: Path, identity: str) -> tuple[bytes, list[Shape]]:
    return export_teacher_graph(run) if identity == TEACHER else export_candidate_graph(run, identity)
