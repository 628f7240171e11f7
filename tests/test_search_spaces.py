"""Every shipped spec is sound, says what it lacks, and runs at a small size."""

from pathlib import Path

import pytest
import torch

from autocompress.engine.run import make_plan
from autocompress.engine.space import open_space
from autocompress.engine.spec import load_spec, shipped_spaces
from autocompress.errors import SpecError
from autocompress.registry import TASKS
from autocompress.tasks.module import bring_model

SPACES = sorted(shipped_spaces())
NEED_DATA = [name for name in SPACES if name in TASKS.names() and hasattr(TASKS.get(name), "sample")]


@pytest.fixture
def settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a user of this spec must say: where the data is, if it does not ship."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    if name == "module":
        monkeypatch.setattr(TASKS, "_objects", dict(TASKS._objects))
        bring_model(
            torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)),
            (torch.randn(90, 3), torch.arange(90) % 2),
        )
        return []
    if name not in NEED_DATA:
        return []
    path = TASKS.get(name).sample(tmp_path / "data")
    return [f"task.{name}.path={path}"]


def test_there_is_one() -> None:
    assert "digits" in SPACES


@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_is_sound_in_every_mode(name: str, settings: list[str]) -> None:
    for mode in ("amortized", "sampled"):
        plan = make_plan(load_spec(name, [f"search.mode={mode}", *settings]))
        assert plan.source.spec.name == name
        assert list(open_space(plan.source).dimensions())


@pytest.mark.parametrize("name", NEED_DATA)
def test_a_space_without_data_asks_for_it(name: str) -> None:
    with pytest.raises(SpecError, match=rf"task\.{name}\.path is not set"):
        make_plan(load_spec(name, []))
