"""The backend on Ray: one machine or many, the same driver.

Workers are Ray's actors, results and paused trainings travel through Ray's object store, and nothing but the task's
own data and plugin files must lie where each node finds it. A job whose worker or node dies runs once more elsewhere;
a second death is the job's fault. See :mod:`autocompress.backends.ray_cluster` for what Ray listens on.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.backends.base import NO_LIMITS, Ahead, Ask, Evaluate, Tell, TrialLimits, nothing_ahead
from autocompress.backends.local import usable_cores
from autocompress.core.registry import BACKENDS

if TYPE_CHECKING:
    from autocompress.backends.ray_cluster import Cluster

ONE_CORE: Mapping[str, float] = {"cpu": 1.0}


@BACKENDS.register("ray")
class Ray:
    """Workers on a Ray cluster: the one at ``address``, or one that is started here and ended with the search.

    Args:
        workers: Trials at once; 0 takes what the nodes have room for, and follows them as they come and go.
        limits: What one job may take.
        resources: What one trial takes, such as ``{"cpu": 1, "gpu": 0.25}``. Ray places workers by it and shows each
            the GPU it was given.
        address: ``HOST:PORT``, or ``auto`` for the cluster of this machine; ``None`` starts one.
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
        self._asked = workers
        self.resources = dict(resources or ONE_CORE)
        self._cluster: Cluster | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether workers may run on machines without this one's files."""
        return self.address is not None

    @property
    def folder(self) -> Path | None:
        """Where temporary files go while it is open."""
        return None if self._cluster is None else self._cluster.folder

    @contextmanager
    def opened(self, folder: Path | None = None) -> Iterator[None]:
        """Join or start the cluster, and leave or end it.

        Args:
            folder: Where temporary files may go.

        Raises:
            UsageError: Nothing answers at the address, versions differ, or one trial fits on no node.
        """
        if self.address is not None:
            # Read when ray is imported: seconds for which it repeats what was refused, such as a wrong token.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
        from autocompress.backends.ray_cluster import joined, started

        with (
            started(folder, self.resources, usable_cores())
            if self.address is None
            else joined(self.address, self.resources)
        ) as cluster:
            self._cluster = cluster
            self.workers = self._seats()
            try:
                yield
            finally:
                self._cluster = None

    def warm(self) -> None:
        """Start nothing: a cluster needs the run's folder."""

    def cool(self) -> None:
        """End nothing."""

    def ready(self, evaluate: Evaluate) -> None:
        """Ready nothing: actors come when the first job does."""

    def run(self, ask: Ask, evaluate: Evaluate, tell: Tell, ahead: Ahead = nothing_ahead) -> None:
        """Keep every worker busy until ``ask`` returns ``None``; opens the cluster if it is not.

        Raises:
            UsageError: The cluster cannot be used.
            WorkersError: No worker starts.
        """
        if self._cluster is None:
            with self.opened():
                self.run(ask, evaluate, tell)
            return
        from autocompress.backends.ray_tune import run_jobs

        run_jobs(ask, evaluate, tell, self._seats, self.limits, self._cluster.bundle, str(self._cluster.folder))

    def _seats(self) -> int:
        assert self._cluster is not None
        # On a cluster of others, more may be asked for than there is: it may grow.
        if self._asked and self.address is not None:
            return self._asked
        return min(self._asked or self._cluster.room(), self._cluster.room())
