import pytest
import torch

from autocompress.backends.base import TrialLimits
from autocompress.backends.ray import Ray
from autocompress.engine.backend_factory import make_backend
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
    assert (found.workers, found.address, found.is_remote) == (3, "host:1", True)
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
    here = source("backend: local").spec.immutable_content()
    assert source("backend: ray", "search.address=auto", "search.resources={gpu: 1}").spec.immutable_content() == here


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("backend: local", "cpu"),
        ("device: cuda", "cuda"),
        ("resources: {cpu: 2}", "cpu"),
        ("resources: {gpu: 0.25}", "cuda"),
        ("device: cpu", "cpu"),
    ],
)
def test_trainings_run_on_the_card_where_a_share_of_one_is_asked_for(line: str, expected: str) -> None:
    assert source(line).spec.search.training_device == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("line", ["device: cuda", "backend: ray", "backend: serial"])
def test_a_card_that_this_machine_does_not_have_is_refused_before_anything_starts(line: str) -> None:
    with pytest.raises(SpecError, match=r"search\.device: the trials need a graphics card"):
        make_backend(source(line, "search.device=cuda"))
    # The machines of a cluster are asked one by one.
    assert make_backend(source(line, "search.device=cuda", "search.backend=ray", "search.address=host:1")).is_remote
