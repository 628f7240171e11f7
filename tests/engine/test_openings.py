from collections.abc import Mapping

from autocompress.engine.initial_design import Fixed
from autocompress.engine.openings import Openings, opened, whole_effort
from tests.engine.sampler.test_acquisition import price
from tests.engine.test_space import space

FIRST, LARGE = {"student.cnn.width": 4}, {"student.cnn.width": 64}


def effort(values: Mapping[str, object]) -> float:
    return float(values["student.cnn.width"])  # type: ignore[arg-type]


def test_each_begins_in_its_turn_when_its_effort_is_allowed() -> None:
    openings = Openings([FIRST, LARGE], effort)
    assert len(openings) == 2
    assert openings.next(lambda wanted: wanted < 10) == FIRST
    assert openings.next(lambda wanted: wanted < 10) is None
    assert len(openings) == 1
    assert openings.next(lambda wanted: wanted < 100) == LARGE
    assert openings.next(lambda wanted: True) is None


def test_what_a_training_takes_is_known_before_it_begins() -> None:
    found = space("student: {cnn: {width: {low: 4, high: 64}, depth: 1}}\nfit: {adamw: {epochs: 10}}")
    small, large = whole_effort(found, price, FIRST), whole_effort(found, price, LARGE)
    assert 0 < small < large
    assert whole_effort(found, None, FIRST) == 0
    assert opened(found, LARGE, cut=False).training == found.suggest(Fixed(LARGE), cut=False)[0]
