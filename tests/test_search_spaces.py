"""Every shipped spec is sound, and runs at a small size."""

import pytest

from autocompress.engine.run import make_plan
from autocompress.engine.space import open_space
from autocompress.engine.spec import load_spec, shipped_spaces

SPACES = sorted(shipped_spaces())


def test_there_is_one() -> None:
    assert "digits" in SPACES


@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_is_sound_in_every_mode(name: str) -> None:
    for mode in ("amortized", "sampled"):
        plan = make_plan(load_spec(name, [f"search.mode={mode}"]))
        assert plan.source.spec.name == name
        assert list(open_space(plan.source).dimensions())
