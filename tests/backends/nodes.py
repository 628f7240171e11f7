"""A Ray cluster of several nodes on this machine, and trials that take a while or look around."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autocompress.core.records import Job, TrialResult
from tests.backends.test_local import until
from tests.fakes import FakeTrials

CORES = 2
# A lost node is noticed after three seconds, not after fifteen.
ATTENTIVE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class SlowTrials(FakeTrials):
    """Each takes a second, so that there is a middle to kill something in, and says where it runs."""

    def __call__(self, job: Job) -> TrialResult:
        import ray

        node = ray.get_runtime_context().get_node_id()
        with self.log.open("a") as file:
            file.write(f"begun {node}\n")
        result = super().__call__(job)
        time.sleep(1)
        with self.log.open("a") as file:
            file.write(f"ended {node}\n")
        return result

    def busy(self, node: str) -> bool:
        """Return whether something was ended on a node, and something else was begun there."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return 0 < lines.count(f"ended {node}") < lines.count(f"begun {node}")


@dataclass(frozen=True)
class LookingTrials(FakeTrials):
    """Each says which graphics processors it may use."""

    def __call__(self, job: Job) -> TrialResult:
        with self.log.open("a") as file:
            file.write(f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        return super().__call__(job)


@dataclass(frozen=True)
class UnreadyTrials(FakeTrials):
    """No worker is ever ready for them."""

    def prepare(self) -> None:
        super().prepare()
        raise FileNotFoundError("the data are not here")


@contextmanager
def head() -> Iterator[Any]:
    """Start a cluster of one node."""
    from ray.cluster_utils import Cluster

    offered = {"num_cpus": CORES, "include_dashboard": False, "_system_config": ATTENTIVE}
    cluster = Cluster(initialize_head=True, head_node_args=offered)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def another(cluster: Any, **offered: Any) -> Iterator[Any]:
    """Add a node for a while; what is in the way of that may kill it."""
    node = cluster.add_node(**{"num_cpus": CORES, **offered})
    try:
        yield node
    finally:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)
        # For a while the cluster believes in a node that is gone.
        until(lambda: sum(each["Alive"] for each in cluster.global_state.node_table()) == 1, 300)
