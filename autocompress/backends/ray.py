"""The backend on Ray: one machine or many, with the same driver.

Workers are Ray actors; results and paused trials travel through Ray's object store. Only the task's data and plugin
files must be readable on each node. A job whose worker or node dies runs once more on another worker; after a second
death the job fails. :mod:`autocompress.backends.ray_cluster` describes the ports that Ray opens.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.backends.base import (
    NO_LIMITS,
    Ask,
    Backend,
    Evaluate,
    IdleWork,
    Tell,
    TrialLimits,
    skip_idle_work,
)
from autocompress.backends.local import usable_cores
from autocompress.core.registry import BACKENDS

if TYPE_CHECKING:
    from autocompress.backends.ray_cluster import Cluster

ONE_CORE: Mapping[str, float] = {"cpu": 1.0}


@BACKENDS.register("ray")
class Ray(Backend):
    """Workers on a Ray cluster: the cluster at ``address``, or one that is started here and stopped with the search.

    Args:
        workers: Number of trials at once; 0 takes as many as fit on the nodes, as nodes come and go.
        limits: Time and memory of one job.
        resources: Resources of one trial, such as ``{"cpu": 1, "gpu": 0.25}``. Ray places workers by them and shows
            each worker its own GPU.
        address: ``HOST:PORT``, or ``auto`` for the cluster of this machine; ``None`` starts a cluster.
    """

    name = "ray"
    libraries = ("ray",)

    def __init__(
        self,
        workers: int = 0,
        limits: TrialLimits = NO_LIMITS,
        resources: Mapping[str, float] | None = None,
        address: str | None = None,
    ) -> None:
        self.workers = workers
        self.limits = limits
        self.address = address
        self._requested = workers
        self.resources = dict(resources or ONE_CORE)
        self._cluster: Cluster | None = None

    @property
    def is_remote(self) -> bool:
        """Whether workers may run on machines without this machine's files: on a cluster that was joined."""
        return self.address is not None

    @property
    def folder(self) -> Path | None:
        """The folder of temporary files while the backend is open."""
        return None if self._cluster is None else self._cluster.folder

    @contextmanager
    def open(self, folder: Path | None = None) -> Iterator[None]:
        """Join or start the cluster; leave or stop it at the end.

        Args:
            folder: The folder for temporary files.

        Raises:
            UsageError: No cluster answers at the address, versions differ, or no node has the resources of one trial.
        """
        if self.address is not None:
            # Ray reads it when it is imported: seconds for which it repeats a refused connection (a wrong token).
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
        from autocompress.backends.ray_cluster import join_cluster, start_cluster

        with (
            start_cluster(folder, self.resources, usable_cores())
            if self.address is None
            else join_cluster(self.address, self.resources)
        ) as cluster:
            self._cluster = cluster
            self.workers = self._count_slots()
            try:
                yield
            finally:
                self._cluster = None

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, idle_work: IdleWork = skip_idle_work) -> None:
        """Keep every worker busy until ``ask`` returns ``None``; opens the cluster if it is not.

        Raises:
            UsageError: The cluster cannot be used.
            WorkersError: No worker starts.
        """
        if self._cluster is None:
            with self.open():
                self.run(ask, evaluate, tell)
            return
        from autocompress.backends.ray_tune import run_jobs

        run_jobs(ask, evaluate, tell, self._count_slots, self.limits, self._cluster.bundle, str(self._cluster.folder))

    def _count_slots(self) -> int:
        assert self._cluster is not None
        # A cluster that was joined may grow: more workers may be requested than fit now.
        if self._requested and self.address is not None:
            return self._requested
        return min(self._requested or self._cluster.count_slots(), self._cluster.count_slots())
