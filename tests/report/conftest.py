"""One made-up run and its front for every test of the report."""

import shutil
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from autocompress.analysis.pareto import full_fidelity, pareto_front
from tests.report.factory import Run, make_run


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a finished run; not to be changed."""
    return make_run(trials=16, cuts=12)


@pytest.fixture(scope="session")
def front(run: Run) -> pd.DataFrame:
    """Return the run's front; not to be changed."""
    return pareto_front(full_fidelity(run.candidates), run.info.objectives, run.info.limits)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return a browser; tests that need it are skipped without Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as driver:
        result = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield result
        result.close()
