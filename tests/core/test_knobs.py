import pickle
from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given, strategies as st

from autocompress.core.knobs import Choice, FloatRange, IntRange, RegisteredChoice, Settings, knob
from autocompress.core.registry import Registry
from autocompress.errors import KnobError


@dataclass(frozen=True)
class Oven(Settings):
    label = "oven"

    heat: float = knob(180.0, FloatRange(50.0, 250.0), "degrees")
    minutes: int = knob(30, IntRange(1, 120), "how long")
    mode: str = knob("fan", Choice(("fan", "grill")), "where the heat comes from")


def test_defaults_and_declared_knobs() -> None:
    assert Oven().to_dict() == {"heat": 180.0, "minutes": 30, "mode": "fan"}
    assert list(Oven.knobs()) == ["heat", "minutes", "mode"]
    assert Oven.knobs()["heat"].doc == "degrees"


def test_a_whole_number_becomes_a_real_one_so_that_fingerprints_agree() -> None:
    assert isinstance(Oven(heat=200).heat, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 300.0}, r"oven.heat = 300.0 is outside 50..250"),
        ({"heat": float("nan")}, "oven.heat"),
        ({"heat": "hot"}, "oven.heat = 'hot'"),
        ({"heat": True}, "oven.heat = True"),
        ({"minutes": 1.5}, "oven.minutes"),
        ({"minutes": True}, "oven.minutes"),
        ({"mode": "steam"}, "outside fan, grill"),
        ({"minute": 3}, "did you mean 'minutes'"),
    ],
)
def test_wrong_values_name_the_knob(values: dict[str, object], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        Oven.of(values)  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Oven().heat = 60.0  # type: ignore[misc]


def test_a_default_outside_its_range_is_refused_at_declaration() -> None:
    with pytest.raises(KnobError, match="outside"):
        knob(5.0, FloatRange(0.0, 1.0))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_float_range_accepts_exactly_its_interval(value: float) -> None:
    assert FloatRange(-2.0, 3.0).accepts(value) == (-2.0 <= value <= 3.0)


@given(st.integers())
def test_an_int_range_accepts_exactly_its_interval(value: int) -> None:
    assert IntRange(-2, 3).accepts(value) == (-2 <= value <= 3)


def test_a_choice_tells_true_from_one() -> None:
    assert Choice((True, False)).accepts(True)
    assert not Choice((True, False)).accepts(1)
    assert not Choice((1, 2)).accepts(True)
    assert Choice((8, 32)).accepts(32)


def test_a_choice_of_registered_parts_grows_and_keeps_the_order_of_built_in_parts() -> None:
    registry: Registry[str] = Registry("colour")
    choice = RegisteredChoice(registry, first=("red", "blue"), exclude=("hidden",))
    for name in ("red", "blue", "hidden"):
        registry.add(name, name)
    assert choice.options == ("red", "blue")
    registry.add("amber", "amber")
    assert choice.options == ("red", "blue", "amber")
    assert choice.accepts("amber")
    assert not choice.accepts("hidden")
    assert not choice.accepts(["red"])
    assert pickle.loads(pickle.dumps(choice)) == Choice(("red", "blue", "amber"))
