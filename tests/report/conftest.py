"""One made-up run and its front for every test of the report."""

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
