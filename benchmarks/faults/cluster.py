"""Faults on Ray: workers that are killed, processes that stay, and the token in files."""

import os
from pathlib import Path
from unittest import mock

from benchmarks.faults.injection import FaultResult, list_lasting_processes
from benchmarks.faults.workers import run_jobs
from benchmarks.mock_trials import MockEvaluator


def kill_ray_workers(folder: Path, jobs: int = 8) -> FaultResult:
    """Row 22: workers of a Ray cluster that are killed, once and every time; what the cluster leaves behind."""
    from autocompress.backends.ray import Ray

    evaluator = MockEvaluator(folder / "log", 0.1, {1: "kill once", 4: "kill once", 6: "kill"})
    backend = Ray(workers=2)
    with backend.open(folder):
        assert backend.folder is not None
        root = str(backend.folder)
        results = run_jobs(backend, evaluator, jobs)
        token = os.environ["RAY_AUTH_TOKEN"].encode()
        files = [path for path in Path(root).rglob("*") if path.is_file() and not path.is_symlink()]
        with_token = sum(token in path.read_bytes() for path in files)
    left = len(list_lasting_processes("cmdline", root))
    failed = sorted(number for number, result in results.items() if result.state.value == "failed")
    executions = evaluator.executions()
    most = max(executions.count(item) for item in executions)
    measured = (
        f"{len(results)} of {jobs} results received, failed: {failed}, at most {most} executions each; token in "
        f"{with_token} of {len(files)} files; {left} processes left after 10 s, folder left: {Path(root).exists()}"
    )
    held = (len(results), failed, with_token, left) == (jobs, [6], 0, 0) and most <= 2 and not Path(root).exists()
    return FaultResult("0 lost, at most 2 executions each, no process left, no token in a file", measured, held)


def fill_object_store(folder: Path, jobs: int = 6, megabytes: int = 40) -> FaultResult:
    """Row 37: results on Ray that together take three times its object store."""
    from autocompress.backends import ray_cluster
    from autocompress.backends.ray import Ray

    evaluator = MockEvaluator(folder / "log", 0.0, weights=megabytes * 2**20)
    backend = Ray(workers=2)
    with mock.patch.object(ray_cluster, "OBJECT_STORE", ray_cluster.LEAST_OBJECT_STORE), backend.open(folder):
        results = run_jobs(backend, evaluator, jobs)
    whole = sum(
        [len(content) for content in result.checkpoints.values()] == [megabytes * 2**20] for result in results.values()
    )
    capacity = ray_cluster.LEAST_OBJECT_STORE // 2**20
    measured = (
        f"{jobs} results of {megabytes} MiB in a store of {capacity} MiB: {whole} whole, "
        f"{len(evaluator.executions())} executions"
    )
    return FaultResult("all results, whole", measured, whole == jobs)
