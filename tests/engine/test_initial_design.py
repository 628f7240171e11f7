import math
from collections.abc import Mapping
from itertools import pairwise

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.engine.initial_design import Fixed, starts
from autocompress.engine.space import Space
from tests.engine.test_space import space

SPACE = (
    "student: {cnn: {width: {low: 4, high: 16}, depth: [1, 2, 3], block: [plain, separable], stem_stride: [1, 2]}}\n"
    "distill: {soft_target: {temperature: {low: 2, high: 10}}}"
)
TEACHER = Part.of("cnn", width=32, depth=2)


def cost(values: Mapping[str, Leaf]) -> float:
    """Return about what such a network takes: a stride makes it cheaper though its number is higher."""
    width, depth = float(values["student.cnn.width"]), float(values["student.cnn.depth"])
    separable = 0.2 if values["student.cnn.block"] == "separable" else 1.0
    return width**2 * depth * separable / float(values["student.cnn.stem_stride"]) ** 2


def spread(found: Space) -> list[dict[str, Leaf]]:
    return starts(found, found.defaults(TEACHER), cost)


def test_starts_lie_evenly_between_the_cheapest_student_and_the_teachers_shape() -> None:
    found = spread(space(SPACE))
    assert cost(found[0]) > cost(found[1])
    found = sorted(found, key=cost)
    shapes = [tuple(value for name, value in each.items() if name.startswith("student.")) for each in found]
    assert shapes[0] == (4, 1, "separable", 2)
    assert shapes[-1] == (16, 2, "plain", 1)
    costs = [math.log(cost(each)) for each in found]
    assert len(costs) == 4
    assert costs == sorted(costs)
    steps = [after - before for before, after in pairwise(costs)]
    assert max(steps) < 0.6 * (costs[-1] - costs[0])
    assert {each["distill.soft_target.temperature"] for each in found} == {4.0}


def test_thin_students_learn_faster_as_far_as_the_space_allows() -> None:
    """With Adam the rate goes with the inverse of the width; a square root of the cost tells the width."""
    text = SPACE + "\nfit: {adamw: {learning_rate: {low: 1e-3, high: 8e-2}}}"
    found = spread(space(text))
    first, *_, last = sorted(found, key=cost)
    rate = "fit.adamw.learning_rate"
    assert last[rate] == found[-1][rate] == 5e-3
    assert first[rate] == 8e-2
    for each in found:
        assert each[rate] == min(5e-3 * math.sqrt(cost(last) / cost(each)), 8e-2)
    assert len({each[rate] for each in found}) > 2
    # Plain descent needs no other rate, and a fixed one is not moved.
    plain = spread(space(SPACE + "\nfit: {sgd: {learning_rate: {low: 1e-3, high: 1.0}}}"))
    assert len({each["fit.sgd.learning_rate"] for each in plain}) == 1
    assert not any(rate in each for each in spread(space(SPACE + "\nfit: {adamw: {learning_rate: 1e-3}}")))


def test_a_space_with_one_student_has_one_start() -> None:
    found = space("student: {cnn: {width: 8}}")
    assert starts(found, found.defaults(TEACHER), lambda values: 1.0) == [found.defaults(TEACHER)]


def test_what_cannot_be_built_is_no_start() -> None:
    found = space(SPACE)
    first = found.defaults(TEACHER)

    def broken(values: Mapping[str, Leaf]) -> float:
        return math.nan if values["student.cnn.block"] == "separable" else cost(values)

    assert all(each["student.cnn.block"] == "plain" for each in starts(found, first, broken))
    assert starts(found, first, lambda values: math.nan) == [first]


def test_fixed_values_fill_a_space_and_what_is_missing_is_the_first_or_lowest() -> None:
    found = space(
        "student: {cnn: {width: {low: 4, high: 16}, block: [plain, separable]}}\ndistill: {none: {}, hint: {}}"
    )
    training, _ = found.suggest(Fixed({"student.cnn.width": 9}), cut=False)
    assert training.student.values["width"] == 9
    assert training.student.values["block"] == "plain"
    assert [part.name for part in training.distill] == ["none"]
