import numpy as np
import pytest

from autocompress.engine.sampler.gaussian_process import (
    COST_SLOPE_MEAN,
    MIN_COMPARED_OBSERVATIONS,
    MIN_FITTED_OBSERVATIONS,
    NOISE,
    SLOPE_MEANS,
    SLOPE_STDS,
    GaussianProcess,
    Inputs,
    fit_irreducible_error,
    fit_scale,
    fit_weights,
    interpolate_values,
    kernel,
)


def inputs(*rows: tuple[float, float, float, float]) -> Inputs:
    students, recipes, costs, epochs = np.array(rows).T
    return without_parameters(students[:, None], recipes[:, None], costs, epochs)


def without_parameters(students: np.ndarray, recipes: np.ndarray, costs: np.ndarray, epochs: np.ndarray) -> Inputs:
    """Return trials whose numbers of parameters are unknown."""
    return Inputs(students, recipes, costs, np.zeros(len(costs)), epochs)


def test_mean_follows_observations_and_deviation_grows_with_distance() -> None:
    seen = inputs((0.0, 0.0, 5.0, 0.0), (1.0, 0.0, 5.0, 0.0))
    model = GaussianProcess(seen, np.array([-3.0, -1.0]))
    means, deviations = model.predict(inputs((0.0, 0.0, 5.0, 0.0), (1.0, 0.0, 5.0, 0.0), (0.0, 9.0, 5.0, 0.0)))
    assert means[0] < -2.5
    assert means[1] > -1.5
    assert deviations[2] > 3 * deviations[0]
    assert means[2] == pytest.approx(-2.0, abs=0.1)


def test_prediction_equals_the_formulas_without_cholesky() -> None:
    """R&W (2.41) and (2.42), written with the inverse of K."""
    draw = np.random.default_rng(1)
    seen, new = (
        Inputs(*(draw.uniform(size=(n, k)) for k in (2, 3)), *(draw.uniform(low, low + 3, n) for low in (3, 2, -3)))
        for n in (12, 5)
    )
    targets = draw.normal(-2.0, 1.0, 12)
    model = GaussianProcess(seen, targets)
    inverse = np.linalg.inv(kernel(seen.kernel_inputs, seen.kernel_inputs) + NOISE * np.eye(12))
    scale, precision = model._scale, model._posterior_precision
    basis, new_basis = (
        np.column_stack(
            [
                np.ones(len(each.costs)),
                each.costs - seen.costs.mean(),
                each.epochs,
                each.densities - seen.densities.mean(),
            ]
        )
        for each in (seen, new)
    )
    prior_precision = precision - basis.T @ inverse @ basis
    assert np.diag(prior_precision) == pytest.approx([1e-6, *(scale / SLOPE_STDS) ** 2])
    prior_mean = np.append(0.0, SLOPE_MEANS)
    beta = np.linalg.inv(precision) @ (prior_precision @ prior_mean + basis.T @ inverse @ targets)
    cross = kernel(new.kernel_inputs, seen.kernel_inputs)
    rest = new_basis - cross @ inverse @ basis
    variances = 1 - np.diag(cross @ inverse @ cross.T) + np.diag(rest @ np.linalg.inv(precision) @ rest.T)
    means, deviations = model.predict(new)
    assert means == pytest.approx(new_basis @ beta + cross @ inverse @ (targets - basis @ beta))
    assert deviations == pytest.approx(scale * np.sqrt(variances))


@pytest.mark.parametrize(("squares", "degrees"), [(0.0, 0), (3.0, 5), (1e6, 5), (0.0, 200)])
def test_scale_is_the_mode_of_its_posterior(squares: float, degrees: int) -> None:
    scale = fit_scale(squares, degrees)
    gradient = degrees - squares / scale**2 + np.log(scale) / 0.3**2
    assert gradient == pytest.approx(0.0, abs=1e-6 * max(degrees, 1))


def test_prior_mean_falls_with_cost() -> None:
    model = GaussianProcess(inputs((0.0, 0.0, 4.0, 0.0)), np.array([-1.0]))
    means, deviations = model.predict(inputs((0.0, 0.0, 4.0, 0.0), (0.0, 0.0, 14.0, 0.0)))
    assert means[1] - means[0] == pytest.approx(10 * COST_SLOPE_MEAN, rel=0.05)
    assert deviations[1] > 0.5


def test_student_of_more_parameters_at_equal_cost_has_the_smaller_error() -> None:
    seen = inputs((0.0, 0.0, 4.0, 0.0))
    new = Inputs(np.zeros((2, 1)), np.zeros((2, 1)), np.full(2, 4.0), np.array([0.0, 1.0]), np.zeros(2))
    means, _ = GaussianProcess(seen, np.array([-1.0])).predict(new)
    assert means[1] - means[0] == pytest.approx(SLOPE_MEANS[2], rel=0.05)


def test_scores_at_a_rung_inform_the_prediction_of_the_complete_trial() -> None:
    """Of two students at a third of their epochs, the better one has the lower posterior mean at the end."""
    third = float(np.log(1 / 3))
    model = GaussianProcess(inputs((0.0, 0.0, 5.0, third), (1.0, 0.0, 5.0, third)), np.array([-2.0, -0.5]))
    means, deviations = model.predict(inputs((0.0, 0.0, 5.0, 0.0), (1.0, 0.0, 5.0, 0.0), (0.0, 0.0, 5.0, third)))
    assert means[0] < means[1]
    # The error falls until then, with a larger deviation than at the observed rung.
    assert means[0] < -2.0
    assert deviations[0] > deviations[2]


def test_space_without_hyperparameters_is_modelled_by_cost_and_epochs() -> None:
    empty = without_parameters(np.empty((2, 0)), np.empty((2, 0)), np.array([4.0, 5.0]), np.zeros(2))
    means, _ = GaussianProcess(empty, np.array([-1.0, -3.0])).predict(empty)
    assert means[1] < means[0]


def test_slope_is_fitted_to_observations() -> None:
    """Errors that hardly fall with cost, as in tasks with few images and many classes."""
    costs = np.array([3.0, 3.5, 4.0, 4.5, 5.0])
    flat = without_parameters(np.zeros((5, 1)), np.zeros((5, 1)), costs, np.zeros(5))
    larger = without_parameters(np.zeros((1, 1)), np.zeros((1, 1)), np.array([6.0]), np.zeros(1))
    means, deviations = GaussianProcess(flat, -1.0 - 0.1 * costs).predict(larger)
    # At the prior slope, the error would be less than half of this.
    assert means[0] == pytest.approx(-1.6, abs=0.4)
    assert deviations[0] > 0.05
    steep, _ = GaussianProcess(flat, -1.0 - 2.0 * costs).predict(larger)
    assert steep[0] == pytest.approx(-13.0, abs=0.4)


def test_two_observations_hardly_change_the_prior_slope() -> None:
    two = without_parameters(np.zeros((2, 1)), np.zeros((2, 1)), np.array([4.0, 4.1]), np.zeros(2))
    far = without_parameters(np.zeros((1, 1)), np.zeros((1, 1)), np.array([8.0]), np.zeros(1))
    means, _ = GaussianProcess(two, np.array([-1.0, -1.0])).predict(far)
    assert means[0] < -1.0 + 4 * COST_SLOPE_MEAN / 2


def test_scale_is_fitted_to_observations() -> None:
    draw = np.random.default_rng(0)
    costs = np.linspace(3, 6, 16)
    seen = without_parameters(draw.uniform(size=(16, 1)), draw.uniform(size=(16, 1)), costs, np.zeros(16))
    new = without_parameters(np.array([[0.5]]), np.array([[3.0]]), np.array([4.5]), np.zeros(1))
    near, far = (
        float(GaussianProcess(seen, -1.75 * costs + spread * draw.standard_normal(16)).predict(new)[1][0])
        for spread in (0.05, 2.0)
    )
    assert near < 0.4
    assert far > 1.0


@pytest.mark.parametrize("values", [[-2.0], [-2.0, -2.0, -2.0], [-9.0, 0.4, -9.0]])
def test_deviation_is_finite_for_equal_and_for_extreme_targets(values: list[float]) -> None:
    count = len(values)
    same = without_parameters(np.zeros((count, 1)), np.zeros((count, 1)), np.full(count, 4.0), np.zeros(count))
    means, deviations = GaussianProcess(same, np.array(values)).predict(same)
    assert np.isfinite(means).all()
    assert ((deviations > 0) & (deviations < 5)).all()


def draw_settings(count: int, seed: int) -> tuple[Inputs, np.ndarray]:
    """Return trials with three hyperparameters, of which the first one, a one-hot pair, decides nearly alone."""
    draw = np.random.default_rng(seed)
    first = draw.integers(0, 2, count)
    others = draw.uniform(size=(count, 2))
    students = np.hstack([np.sqrt(0.5) * np.eye(2)[first], others])
    inputs = without_parameters(students, np.empty((count, 0)), np.full(count, 4.0), np.zeros(count))
    return inputs, -2.0 + 1.5 * first + 0.2 * others[:, 0] + 0.02 * draw.standard_normal(count)


GROUPS = np.array([0, 0, 1, 2])


def test_weights_of_many_observations_tell_which_hyperparameters_matter() -> None:
    seen, targets = draw_settings(2 * MIN_FITTED_OBSERVATIONS, 0)
    basis = np.eye(1, 4).repeat(len(targets), axis=0)
    weights, noise = fit_weights(seen.kernel_inputs, np.array([0, 0, 1, 2, 3, 4]), basis, targets)
    assert weights[0] > 3 * weights[1]
    assert weights[1] > weights[2]
    assert noise < NOISE / 2
    # Neither cost nor epochs vary, so that their weights stay at the prior's mode.
    assert weights[3:] == pytest.approx([1.0, 1.0])
    new, truth = draw_settings(100, 1)
    errors = [
        float(np.abs(GaussianProcess(seen, targets, groups).predict(new)[0] - truth).mean())
        for groups in (GROUPS, None)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_length_scales_are_fixed_for_few_observations() -> None:
    seen, targets = draw_settings(MIN_FITTED_OBSERVATIONS - 1, 0)
    new, _ = draw_settings(5, 1)
    fitted, fixed = (GaussianProcess(seen, targets, groups).predict(new) for groups in (GROUPS, None))
    assert np.array_equal(fitted[0], fixed[0])


def test_interpolation_meets_known_values_and_continues_trends() -> None:
    seen = np.linspace(0.2, 0.8, 7)[:, None]
    values = np.hstack([2.0 * seen, np.cos(3.0 * seen)])
    assert interpolate_values(seen, values, seen) == pytest.approx(values, abs=0.03)
    between, beyond = interpolate_values(seen, values, np.array([[0.55], [1.0]]))
    assert between == pytest.approx([1.1, np.cos(1.65)], abs=0.03)
    assert beyond[0] == pytest.approx(2.0, abs=0.1)


def test_irreducible_error_is_fitted_to_the_spread_of_errors() -> None:
    draw = np.random.default_rng(0)
    seen = without_parameters(
        draw.uniform(size=(40, 2)), draw.uniform(size=(40, 2)), draw.uniform(3, 6, 40), np.zeros(40)
    )
    reducible = np.exp(-1.0 * (seen.costs - 3) + 0.2 * draw.standard_normal(40))
    # A power law that ends at 0, and one that ends at 0.7.
    assert fit_irreducible_error(seen, reducible, 0.01) <= 0.02
    limit = fit_irreducible_error(seen, 0.7 + 0.2 * reducible, 0.01)
    assert 0.6 < limit < 0.75
    few = MIN_COMPARED_OBSERVATIONS - 1
    first = without_parameters(seen.students[:few], seen.recipes[:few], seen.costs[:few], seen.epochs[:few])
    assert fit_irreducible_error(first, 0.7 + 0.2 * reducible[:few], 0.01) == 0.0
    # A perfect score leaves nothing below it.
    assert fit_irreducible_error(seen, np.append(reducible[1:], 0.0), 0.01) == 0.0


def test_deviations_follow_the_residuals_nearby() -> None:
    """Half of the space is flat, the other half is not: one scale would be wrong in both."""
    draw = np.random.default_rng(0)
    settings = draw.uniform(size=(40, 1)) + np.repeat([0.0, 6.0], 20)[:, None]
    seen = without_parameters(settings, np.zeros((40, 1)), np.full(40, 4.0), np.zeros(40))
    targets = -2.0 + np.repeat([0.01, 1.0], 20) * draw.standard_normal(40)
    new = without_parameters(np.array([[0.5], [6.5]]), np.zeros((2, 1)), np.full(2, 4.0), np.zeros(2))
    local, common = (GaussianProcess(seen, targets, groups).predict(new)[1] for groups in (np.array([0, 1]), None))
    assert common[1] < 1.5 * common[0]
    assert local[1] > 3 * local[0]
