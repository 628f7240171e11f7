import multiprocessing
import subprocess
import sys

import pytest

from autocompress.backends.base import TrialLimits
from autocompress.engine.runner import make_plan
from autocompress.engine.spec import parse_spec
from autocompress.errors import SpecError

SOUND = "task: digits\nstudent: {cnn: {width: 8}}\n"


def test_limits_on_a_trial_reach_the_backend() -> None:
    plan = make_plan(parse_spec(SOUND, "x", ["search.memory=2 GiB", "search.trial_minutes=1.5"]))
    assert plan.backend.limits == TrialLimits(90.0, 2 << 30)  # type: ignore[attr-defined]


def test_failed_plan_stops_its_workers() -> None:
    bad = parse_spec("task: digits\nstudent: {cnn: {width: 8}}\nobjectives: [accuracy, nonsense]\n", "x")
    with pytest.raises(SpecError, match="nonsense"):
        make_plan(bad, warm=True)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_process_with_an_unused_plan_exits() -> None:
    code = (
        "from autocompress.engine.runner import make_plan\n"
        "from autocompress.engine.spec import parse_spec\n"
        f"if __name__ == '__main__':\n    plan = make_plan(parse_spec({SOUND!r}, 'x'), warm=True)\n    print('made')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr
