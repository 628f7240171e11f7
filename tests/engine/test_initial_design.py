import math
from collections.abc import Mapping
from itertools import pairwise

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.engine.initial_design import (
    FixedTrial,
    InitialDesign,
    RandomTrial,
    design_initial_trials,
    estimate_trial_cost,
    make_initial_job,
)
from autocompress.engine.space import Space
from tests.engine.sampler.test_acquisition import price
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


def spread_students(space: Space) -> list[dict[str, Leaf]]:
    return design_initial_trials(space, space.default_values(TEACHER), cost)


def test_initial_students_lie_evenly_between_the_cheapest_and_the_teachers_shape() -> None:
    students = spread_students(space(SPACE))
    assert cost(students[0]) > cost(students[1])
    students = sorted(students, key=cost)
    shapes = [tuple(value for name, value in values.items() if name.startswith("student.")) for values in students]
    assert shapes[0] == (4, 1, "separable", 2)
    assert shapes[-1] == (16, 2, "plain", 1)
    costs = [math.log(cost(values)) for values in students]
    assert len(costs) == 4
    assert costs == sorted(costs)
    steps = [after - before for before, after in pairwise(costs)]
    assert max(steps) < 0.6 * (costs[-1] - costs[0])
    assert {values["distill.soft_target.temperature"] for values in students} == {4.0}


def test_thin_students_learn_faster_as_far_as_the_space_allows() -> None:
    """With Adam the rate goes with the inverse of the width; a square root of the cost tells the width."""
    text = SPACE + "\nfit: {adamw: {learning_rate: {low: 1e-3, high: 8e-2}}}"
    students = spread_students(space(text))
    first, *_, last = sorted(students, key=cost)
    rate = "fit.adamw.learning_rate"
    assert last[rate] == students[-1][rate] == 5e-3
    assert first[rate] == 8e-2
    for values in students:
        assert values[rate] == min(5e-3 * math.sqrt(cost(last) / cost(values)), 8e-2)
    assert len({values[rate] for values in students}) > 2
    # Plain descent needs no other rate, and a fixed one is not moved.
    plain = spread_students(space(SPACE + "\nfit: {sgd: {learning_rate: {low: 1e-3, high: 1.0}}}"))
    assert len({values["fit.sgd.learning_rate"] for values in plain}) == 1
    assert not any(rate in values for values in spread_students(space(SPACE + "\nfit: {adamw: {learning_rate: 1e-3}}")))


def test_a_space_with_one_student_has_one_initial_trial() -> None:
    search_space = space("student: {cnn: {width: 8}}")
    assert design_initial_trials(search_space, search_space.default_values(TEACHER), lambda values: 1.0) == [
        search_space.default_values(TEACHER)
    ]


def test_students_that_cannot_be_built_are_no_initial_trials() -> None:
    search_space = space(SPACE)
    first = search_space.default_values(TEACHER)

    def broken(values: Mapping[str, Leaf]) -> float:
        return math.nan if values["student.cnn.block"] == "separable" else cost(values)

    assert all(values["student.cnn.block"] == "plain" for values in design_initial_trials(search_space, first, broken))
    assert design_initial_trials(search_space, first, lambda values: math.nan) == [first]


def test_fixed_values_fill_a_space_and_missing_ones_are_the_first_or_lowest() -> None:
    search_space = space(
        "student: {cnn: {width: {low: 4, high: 16}, block: [plain, separable]}}\ndistill: {none: {}, hint: {}}"
    )
    training, _ = search_space.suggest_config(FixedTrial({"student.cnn.width": 9}), with_compression=False)
    assert training.student.values["width"] == 9
    assert training.student.values["block"] == "plain"
    assert [part.name for part in training.distill] == ["none"]


def test_a_random_trial_stays_in_the_space_and_repeats_with_its_seed() -> None:
    search_space = space(SPACE)
    drawn = [search_space.suggest_config(RandomTrial(seed), with_compression=True)[0] for seed in range(12)]
    assert all(4 <= int(str(training.student.values["width"])) <= 16 for training in drawn)
    assert {training.student.values["block"] for training in drawn} == {"plain", "separable"}
    assert drawn[3] == search_space.suggest_config(RandomTrial(3), with_compression=True)[0]
    assert 1e-3 <= RandomTrial(0).suggest_float("rate", 1e-3, 1e-1, log=True) <= 1e-1


FIRST, LARGE = {"student.cnn.width": 4}, {"student.cnn.width": 64}


def estimate_by_width(values: Mapping[str, Leaf]) -> float:
    return float(values["student.cnn.width"])  # type: ignore[arg-type]


def test_each_initial_trial_starts_in_its_turn_when_its_compute_cost_is_allowed() -> None:
    design = InitialDesign([FIRST, LARGE], estimate_by_width)
    assert len(design) == 2
    assert design.pop_values(lambda cost: cost < 10) == FIRST
    assert design.pop_values(lambda cost: cost < 10) is None
    assert len(design) == 1
    assert design.pop_values(lambda cost: cost < 100) == LARGE
    assert design.pop_values(lambda cost: True) is None


def test_the_compute_cost_of_a_trial_is_known_before_it_starts() -> None:
    narrow = space("student: {cnn: {width: {low: 4, high: 64}, depth: 1}}\nfit: {adamw: {epochs: 10}}")
    small, large = estimate_trial_cost(narrow, price, FIRST), estimate_trial_cost(narrow, price, LARGE)
    assert 0 < small < large
    assert estimate_trial_cost(narrow, None, FIRST) == 0
    job = make_initial_job(narrow, LARGE, with_compression=False)
    assert job.training == narrow.suggest_config(FixedTrial(LARGE), with_compression=False)[0]
