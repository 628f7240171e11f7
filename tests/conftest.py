"""Fixtures that several tests share: one settled torch, a private cache, a finished small search."""

import os
import tempfile
from pathlib import Path

import pytest

# Before anything imports torch: a worker of the test runner is one of several, and each takes one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def settled_torch() -> None:
    from autocompress.trial import settle_torch

    settle_torch()


@pytest.fixture(autouse=True, scope="session")
def private_cache() -> None:
    # Shared by the runner's workers, so that one of them trains the teacher and the others wait for it.
    user = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    os.environ["AUTOCOMPRESS_CACHE"] = str(Path(tempfile.gettempdir()) / f"autocompress-tests-{user}")
