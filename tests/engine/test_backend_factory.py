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


def test_backend_gets_its_settings() -> None:
    result = make_backend(
        source(
            "resources: {cpu: 2, gpu: 0.25}", "search.backend=ray", "search.address=host:1", "search.trial_minutes=2"
        )
    )
    assert isinstance(result, Ray)
    assert (result.workers, result.address, result.is_remote) == (3, "host:1", True)
    assert result.resources == {"cpu": 2.0, "gpu": 0.25}
    assert result.limits == TrialLimits(seconds=120)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("address: auto", "x:4: search.address: the backend local does not take address; search.backend=ray does"),
        ("resources: {gpu: 1}", "x:4: search.resources: the backend local does not take resources; search.backend=ray"),
        ("backend: rya", "x:4: search.backend: unknown backend 'rya': did you mean 'ray'?"),
    ],
)
def test_unsupported_setting_is_an_error_with_its_line(line: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        make_backend(source(line))
    assert message in str(refused.value)


@pytest.mark.parametrize("resources", ["{gpu: 0}", "{gpu: -1}", "{gpu: much}", "{}", "2"])
def test_resources_must_be_positive(resources: str) -> None:
    with pytest.raises(SpecError, match=r"x:4: search\.resources"):
        source(f"resources: {resources}")


def test_backend_settings_are_no_immutable_content() -> None:
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
def test_training_device_follows_the_resources(line: str, expected: str) -> None:
    assert source(line).spec.search.training_device == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("line", ["device: cuda", "backend: ray", "backend: serial"])
def test_missing_graphics_card_is_an_error_with_its_line(line: str) -> None:
    with pytest.raises(SpecError, match=r"search\.device: the trials need a graphics card"):
        make_backend(source(line, "search.device=cuda"))
    # The machines of a cluster are asked one by one.
    assert make_backend(source(line, "search.device=cuda", "search.backend=ray", "search.address=host:1")).is_remote
