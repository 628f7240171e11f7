import numpy as np
import pytest

from autocompress.engine.sampler.gaussian_process import SLOPE, Gaussian, Inputs


def inputs(*rows: tuple[float, float, float, float]) -> Inputs:
    students, recipes, costs, epochs = np.array(rows).T
    return Inputs(students[:, None], recipes[:, None], costs, epochs)


def test_what_was_seen_is_expected_again_and_what_lies_far_is_not_known() -> None:
    seen = inputs((0.0, 0.0, 5.0, 0.0), (1.0, 0.0, 5.0, 0.0))
    model = Gaussian(seen, np.array([-3.0, -1.0]))
    means, deviations = model.predict(inputs((0.0, 0.0, 5.0, 0.0), (1.0, 0.0, 5.0, 0.0), (0.0, 9.0, 5.0, 0.0)))
    assert means[0] < -2.5
    assert means[1] > -1.5
    assert deviations[2] > 3 * deviations[0]
    assert means[2] == pytest.approx(-2.0, abs=0.1)


def test_errors_are_believed_to_fall_with_the_cost() -> None:
    model = Gaussian(inputs((0.0, 0.0, 4.0, 0.0)), np.array([-1.0]))
    means, deviations = model.predict(inputs((0.0, 0.0, 4.0, 0.0), (0.0, 0.0, 14.0, 0.0)))
    assert means[1] - means[0] == pytest.approx(10 * SLOPE, rel=0.05)
    assert deviations[1] > 0.5


def test_a_training_that_was_stopped_tells_of_its_end() -> None:
    """Two recipes at a third of their epochs: the better there is expected to be the better at the end."""
    third = float(np.log(1 / 3))
    model = Gaussian(inputs((0.0, 0.0, 5.0, third), (0.0, 1.0, 5.0, third)), np.array([-2.0, -0.5]))
    means, deviations = model.predict(inputs((0.0, 0.0, 5.0, 0.0), (0.0, 1.0, 5.0, 0.0), (0.0, 0.0, 5.0, third)))
    assert means[0] < means[1]
    # And it is expected to become better by then, which is not as sure as what was seen.
    assert means[0] < -2.0
    assert deviations[0] > deviations[2]


def test_a_space_with_nothing_to_choose_still_has_costs_and_epochs() -> None:
    empty = Inputs(np.empty((2, 0)), np.empty((2, 0)), np.array([4.0, 5.0]), np.zeros(2))
    means, _ = Gaussian(empty, np.array([-1.0, -3.0])).predict(empty)
    assert means[1] < means[0]


def test_how_fast_errors_fall_is_learned() -> None:
    """Trainings whose errors hardly fall with the cost, as on few images of many kinds."""
    costs = np.array([3.0, 3.5, 4.0, 4.5, 5.0])
    flat = Inputs(np.zeros((5, 1)), np.zeros((5, 1)), costs, np.zeros(5))
    larger = Inputs(np.zeros((1, 1)), np.zeros((1, 1)), np.array([6.0]), np.zeros(1))
    means, deviations = Gaussian(flat, -1.0 - 0.1 * costs).predict(larger)
    # Believing in the slope that was expected, it would be less than half of what it is.
    assert means[0] == pytest.approx(-1.6, abs=0.4)
    assert deviations[0] > 0.05
    steep, _ = Gaussian(flat, -1.0 - 2.0 * costs).predict(larger)
    assert steep[0] == pytest.approx(-13.0, abs=0.4)


def test_two_trainings_do_not_overturn_what_is_believed() -> None:
    two = Inputs(np.zeros((2, 1)), np.zeros((2, 1)), np.array([4.0, 4.1]), np.zeros(2))
    far = Inputs(np.zeros((1, 1)), np.zeros((1, 1)), np.array([8.0]), np.zeros(1))
    means, _ = Gaussian(two, np.array([-1.0, -1.0])).predict(far)
    assert means[0] < -1.0 + 4 * SLOPE / 2


def test_how_far_trainings_lie_apart_is_learned() -> None:
    draw = np.random.default_rng(0)
    costs = np.linspace(3, 6, 16)
    seen = Inputs(draw.uniform(size=(16, 1)), draw.uniform(size=(16, 1)), costs, np.zeros(16))
    new = Inputs(np.array([[0.5]]), np.array([[3.0]]), np.array([4.5]), np.zeros(1))
    near, far = (
        float(Gaussian(seen, -1.75 * costs + spread * draw.standard_normal(16)).predict(new)[1][0])
        for spread in (0.05, 2.0)
    )
    assert near < 0.4
    assert far > 1.0


@pytest.mark.parametrize("values", [[-2.0], [-2.0, -2.0, -2.0], [-9.0, 0.4, -9.0]])
def test_what_hardly_differs_and_what_differs_wildly_has_a_finite_spread(values: list[float]) -> None:
    count = len(values)
    same = Inputs(np.zeros((count, 1)), np.zeros((count, 1)), np.full(count, 4.0), np.zeros(count))
    means, deviations = Gaussian(same, np.array(values)).predict(same)
    assert np.isfinite(means).all()
    assert ((deviations > 0) & (deviations < 5)).all()
