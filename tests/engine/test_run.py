from autocompress.backends.base import TrialLimits
from autocompress.engine.run import make_plan
from autocompress.engine.spec import parse_spec

SOUND = "task: digits\nstudent: {cnn: {width: 8}}\n"


def test_limits_on_a_trial_reach_the_backend() -> None:
    plan = make_plan(parse_spec(SOUND, "x", ["search.memory=2 GiB", "search.trial_minutes=1.5"]))
    assert plan.backend.limits == TrialLimits(90.0, 2 << 30)  # type: ignore[attr-defined]
