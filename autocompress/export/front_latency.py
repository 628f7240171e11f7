"""How long a run's candidates take on this machine: each is exported as it would be deployed, and timed.

FLOPs do not say it: a small model's time goes into starting kernels, and int8 is slower than float where a processor
has no instructions for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from autocompress.analysis.latency import TEACHER
from autocompress.core.machine import read_processor_name
from autocompress.core.run_info import LatencyInfo
from autocompress.errors import ArtifactError
from autocompress.export.bench import bench_graph
from autocompress.export.bench_worker import Shape
from autocompress.export.candidate import candidate_as_deployed, teacher_as_deployed
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
    """Time candidates of a run, and its teacher once, by their ``model.onnx``; the medians are kept in the run.

    What was measured with another batch, other threads, on another processor or by another onnxruntime is dropped: it
    does not compare.

    Args:
        run: The run folder.
        identities: Ids of candidates.
        batch: Examples in each run.
        threads: Threads of onnxruntime.
        seconds: How long to measure each.
        on_progress: Told the models that are done, and all of them.

    Returns:
        Why some could not be timed, by their ids.

    Raises:
        UsageError: The run has no such candidate, or its training was not at its end.
        VerificationError: A candidate is not here what the search stored.
    """
    measured = LatencyInfo(batch, threads, read_processor_name(), version("onnxruntime"))
    with RunStore.read(run) as study:
        earlier = study.run_info().latency
    rows = {} if earlier is None or replace(earlier, rows={}) != measured else dict(earlier.rows)
    wanted = list(dict.fromkeys([*([] if TEACHER in rows else [TEACHER]), *identities]))
    reasons: dict[str, str] = {}
    on_progress(0, len(wanted))
    try:
        for done, identity in enumerate(wanted, 1):
            try:
                content, inputs = _as_deployed(run, identity)
                found = bench_graph(content, inputs, batch=batch, threads=threads, seconds=seconds)
                rows[identity] = found.median_ms
            except ArtifactError as error:
                reasons[identity] = str(error)
            on_progress(done, len(wanted))
    finally:
        # What was timed before an interruption stays.
        with RunStore.open(run) as study:
            study.update_run_info(replace(study.run_info(), latency=replace(measured, rows=rows)))
    return reasons


def _as_deployed(run: Path, identity: str) -> tuple[bytes, list[Shape]]:
    return teacher_as_deployed(run) if identity == TEACHER else candidate_as_deployed(run, identity)
