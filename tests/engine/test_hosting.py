import pytest

from autocompress.backends.base import TrialLimits
from autocompress.backends.ray import Ray
from autocompress.engine.hosting import make_backend
from autocompress.engine.spec import Source, parse_spec
from autocompress.errors import SpecError

SPEC = "task: digits\nsearch:\n  workers: 3\n  {}\nstudent: {{cnn: {{}}}}\n"


def source(line: str, *overrides: str) -> Source:
    return parse_spec(SPEC.format(line), "x", overrides)


def test_settings_reach_the_backend_that_takes_them() -> None:
    found = make_backend(
        source(
            "resources: {cpu: 2, gpu: 0.25}", "search.backend=ray", "search.address=host:1", "search.trial_minutes=2"
        )
    )
    assert isinstance(found, Ray)
    assert (found.workers, found.address, found.elsewhere) == (3, "host:1", True)
    assert found.resources == {"cpu": 2.0, "gpu": 0.25}
    assert found.limits == TrialLimits(seconds=120)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("address: auto", "x:4: search.address: the backend local does not take address; search.backend=ray does"),
        ("resources: {gpu: 1}", "x:4: search.resources: the backend local does not take resources; search.backend=ray"),
        ("backend: rya", "x:4: search.backend: unknown backend 'rya': did you mean 'ray'?"),
    ],
)
def test_what_a_backend_does_not_take_is_refused_with_its_line(line: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        make_backend(source(line))
    assert message in str(refused.value)


@pytest.mark.parametrize("resources", ["{gpu: 0}", "{gpu: -1}", "{gpu: much}", "{}", "2"])
def test_resources_are_amounts_above_nothing(resources: str) -> None:
    with pytest.raises(SpecError, match=r"x:4: search\.resources"):
        source(f"resources: {resources}")


def test_where_a_search_runs_may_change_when_it_is_resumed() -> None:
    here = source("backend: local").spec.content()
    assert source("backend: ray", "search.address=auto", "search.resources={gpu: 1}").spec.content() == here
