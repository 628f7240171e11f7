"""Gaussian process regression of a trial's log error on its architecture, recipe, cost and share of epochs.

The model is that of Rasmussen and Williams (2006, "R&W" below), section 2.7, explicit basis functions with a Gaussian
prior on their coefficients:

    y(x) = h(x)^T beta + f(x) + noise,    f ~ GP(0, scale^2 k),    beta ~ N(b, B),    noise ~ N(0, scale^2 NOISE)

``h(x) = (1, cost, log share of epochs, density)`` is the trend: errors fall with cost, with epochs and, at equal cost,
with the number of parameters, which is known before training as well. The rates and the scale
differ tenfold between tasks, so both are fitted online from a stated prior, the scale by maximum a posteriori. A slope
that is too steep makes a search train ever larger students; a scale that is too large makes it try ever more small
ones. Matrices hold one trial a row, so that ``H`` is the transpose of R&W's.

One product kernel covers architecture, recipe, cost and epochs, so that trials which were stopped early inform the
prediction of complete ones (Swersky, Snoek and Adams 2014, arXiv:1406.3896). With few observations its length scales
are fixed: on a table of trials of the task ``digits``, predictions from 3 to 50 observations were no better with length
scales that maximise the likelihood. With more, each hyperparameter gets a weight, which multiplies its squared
distances (automatic relevance determination, R&W section 5.1), by maximum a posteriori around the fixed length scales,
together with the noise. One scale for the whole space is too large where students hardly differ and too small where
they differ much, so variances are multiplied by the mean squared leave-one-out residual of the observations nearby.

scikit-learn's GaussianProcessRegressor has no basis functions with a prior, and no prior of the weights. With the trend
as a part of its kernel and fixed length scales it gives the same predictions, but takes 1.6 to 5 times as long
(``reports/benchmarks/surrogate.md``).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
# Length scales of the encoded hyperparameters, each in 0..1: where half of a student's coordinates differ, the
# correlation is small. Distillation and fitting matter less than the student: fitted to 152 random trials of
# ``digits``, most of their length scales are above 3, and with the students' scale a search tried the recipes of one
# student in turn.
LENGTH_SCALE_STUDENT = 1.2
LENGTH_SCALE_RECIPE = 3.0
# Length scale of the cost, in decimal logarithms (powers of ten).
LENGTH_SCALE_COST = 2.0
# Length scale of the share of epochs, in natural logarithms: the correlation between a ninth of the epochs and all of
# them is exp(-0.5 (ln 9 / 1.5)^2) = 0.34.
LENGTH_SCALE_EPOCHS = 1.5
# Variance between repeats of one trial with different seeds, as a share of the variance between trials, ``scale^2``. It
# also bounds the condition number of K by (N + NOISE) / NOISE, so that the Cholesky factorization needs no jitter.
NOISE = 0.05
# Prior of the slope in cost: mean and standard deviation of the change of the log error per power of ten.
COST_SLOPE_MEAN, COST_SLOPE_STD = -1.75, 1.0
# Prior of the slope in density, per power of ten of the number of parameters at equal cost. Least squares on random
# trials give -1.0 on ``digits``; on the trials of two searches of ``mnist1d``, 0.1 and 0.5 with nothing gained.
DENSITY_SLOPE_MEAN, DENSITY_SLOPE_STD = -0.5, 0.5
# Prior of the slope in epochs: mean and standard deviation of the change of the log error per unit of log share.
EPOCHS_SLOPE_MEAN, EPOCHS_SLOPE_STD = -0.4, 0.3
SLOPE_MEANS = np.array([COST_SLOPE_MEAN, EPOCHS_SLOPE_MEAN, DENSITY_SLOPE_MEAN])
SLOPE_STDS = np.array([COST_SLOPE_STD, EPOCHS_SLOPE_STD, DENSITY_SLOPE_STD])
# Prior precision of the intercept, in units of 1 / scale^2: nearly flat, as nothing is assumed of the level of errors.
INTERCEPT_PRECISION = 1e-6
# Prior of ``scale``, the standard deviation of trials around the trend: log-normal with this median and deviation.
SCALE_MEDIAN, SCALE_LOG_STD = 1.0, 0.3
# ``scale`` and ``beta`` depend on each other and are fitted in turn; they change little after so many iterations.
MAP_ITERATIONS = 4
# Irreducible errors that are compared, as shares of the least observed error, and the number of observations from which
# on they are.
IRREDUCIBLE_SHARES = (0.0, 0.5, 0.9)
MIN_COMPARED_OBSERVATIONS = 10
# Number of observations nearby that the uncorrected variance counts as.
LOCAL_PRIOR = 2.0
# Number of observations from which on the weights of hyperparameters and the noise are fitted, and the standard
# deviation of the normal prior of their logarithms.
MIN_FITTED_OBSERVATIONS = 60
WEIGHT_LOG_STD = 0.5
# Iterations of L-BFGS at most: later ones change the predictions little.
WEIGHT_ITERATIONS = 20
# Variance of the slopes of an interpolated function, as a multiple of that of its deviations from a linear one, and
# noise.
LINEAR_VARIANCE = 10.0
INTERPOLATION_NOISE = 1e-4
# Bound of the logarithms: the kernel stays far from singular.
MAX_LOG_WEIGHT = 4.0


@dataclass(frozen=True)
class Inputs:
    """Encoded trials, each at some share of its epochs.

    Attributes:
        students: Encoded hyperparameters of the students, ``[N, S]``, each from 0 to 1.
        recipes: Encoded hyperparameters of distillation and fitting, ``[N, R]``, each from 0 to 1.
        costs: Decimal logarithms of the students' costs, ``[N]``.
        densities: Decimal logarithms of their parameters per cost, ``[N]``; 0 where parameters are unknown.
        epochs: Natural logarithms of the share of the epochs, ``[N]``: 0 for a complete trial.
    """

    students: Vector
    recipes: Vector
    costs: Vector
    densities: Vector
    epochs: Vector

    @property
    def kernel_inputs(self) -> Vector:
        """Coordinates divided by their length scales, ``[N, D]``."""
        settings = [self.students / LENGTH_SCALE_STUDENT, self.recipes / LENGTH_SCALE_RECIPE]
        costs = self.costs[:, None] / LENGTH_SCALE_COST
        return np.hstack([*settings, costs, self.epochs[:, None] / LENGTH_SCALE_EPOCHS])


class GaussianProcess:
    """Posterior of the log error given observed trials; see the module for the model and its symbols.

    All covariances are in units of ``scale^2``: ``K = k(X, X) + NOISE I`` and ``A = scale^2 B^-1 + H^T K^-1 H`` do not
    change with the scale, save for the prior's part of ``A``. With ``K = L L^T``, each product with ``K^-1`` becomes a
    plain product of whitened columns ``L^-1 H`` and ``L^-1 y``.

    Args:
        inputs: The observed trials, ``N`` of them.
        targets: Logarithms of their errors, ``[N]``.
        groups: Number of the hyperparameter that each coordinate of the settings belongs to, ``[S + R]``, so that
            their weights are fitted to many observations; ``None`` for fixed length scales.
    """

    def __init__(self, inputs: Inputs, targets: Vector, groups: NDArray[np.int_] | None = None) -> None:
        self._observed = inputs
        H = basis_functions(inputs, inputs)
        X = inputs.kernel_inputs
        self._column_scales = np.ones(X.shape[1])
        noise = NOISE
        if groups is not None and len(targets) >= MIN_FITTED_OBSERVATIONS:
            # Cost and epochs are groups of their own.
            columns = np.append(groups, [-2, -1]) % (groups.max(initial=-1) + 3)
            weights, noise = fit_weights(X, columns, H, targets)
            self._column_scales = np.sqrt(weights)[columns]
        self._X = X * self._column_scales
        K = kernel(self._X, self._X) + noise * np.eye(len(targets))
        self._L = np.linalg.cholesky(K)
        self._white_H = np.linalg.solve(self._L, H)
        white_y = np.linalg.solve(self._L, targets)
        self._beta, self._scale, self._posterior_precision = fit_trend(H, targets, self._white_H, white_y)
        self._alpha = np.linalg.solve(self._L.T, white_y - self._white_H @ self._beta)
        self._squares: Vector | None = None
        if groups is not None and len(targets) >= MIN_COMPARED_OBSERVATIONS:
            # Squares of the standardized leave-one-out residuals, R&W (5.12).
            precisions = (np.linalg.inv(self._L) ** 2).sum(axis=0)
            self._squares = self._alpha**2 / precisions / self._scale**2

    def predict(self, inputs: Inputs) -> tuple[Vector, Vector]:
        """Return the posterior means and standard deviations of the noise-free log error, ``[M]`` each.

        These are equations (2.41) and (2.42) of R&W with the prior's mean ``b``.

        Args:
            inputs: The trials to predict, ``M`` of them.
        """
        k_star = kernel(inputs.kernel_inputs * self._column_scales, self._X)
        H_star = basis_functions(inputs, self._observed)
        mean: Vector = H_star @ self._beta + k_star @ self._alpha
        v = np.linalg.solve(self._L, k_star.T)
        R = H_star - v.T @ self._white_H
        variance = 1.0 - (v**2).sum(axis=0)
        variance += (R * np.linalg.solve(self._posterior_precision, R.T).T).sum(axis=1)
        if self._squares is not None:
            # Where the observations nearby were predicted better or worse than the deviations say, these are corrected.
            nearness = k_star**2
            variance *= (LOCAL_PRIOR + nearness @ self._squares) / (LOCAL_PRIOR + nearness.sum(axis=1))
        # Rounding may leave a trace below zero.
        return mean, self._scale * np.sqrt(np.maximum(variance, 0.0))


def basis_functions(inputs: Inputs, observed: Inputs) -> Vector:
    """Return the basis functions ``h`` of each trial, ``[N, 4]``; the mean of the observed trials is the origin."""
    costs, densities = inputs.costs - observed.costs.mean(), inputs.densities - observed.densities.mean()
    return np.column_stack([np.ones(len(costs)), costs, inputs.epochs, densities])


def kernel(X: Vector, Y: Vector) -> Vector:
    """Return the squared exponential kernel ``exp(-|x - y|^2 / 2)`` of all pairs, ``[N, M]``.

    Args:
        X: Coordinates in units of their length scales, ``[N, D]``.
        Y: Coordinates in units of their length scales, ``[M, D]``.
    """
    # A product of matrices takes a tenth of the time of the differences of all pairs.
    distances = (X**2).sum(axis=1)[:, None] + (Y**2).sum(axis=1) - 2 * X @ Y.T
    return np.asarray(np.exp(-0.5 * np.maximum(distances, 0.0)))


def fit_weights(X: Vector, columns: NDArray[np.int_], H: Vector, targets: Vector) -> tuple[Vector, float]:
    """Return the maximum a posteriori weights of the squared distances, ``[G]``, and noise.

    The logarithms of the weights, and of the noise as a multiple of ``NOISE``, have a normal prior around 0.

    Args:
        X: Coordinates of the observations in units of their fixed length scales, ``[N, D]``.
        columns: Number of the weight of each coordinate, ``[D]``.
        H: Basis functions of the observations, ``[N, 4]``.
        targets: Logarithms of their errors, ``[N]``.
    """
    from scipy.optimize import minimize  # Only long searches need it.

    distances = np.stack([_square_distances(X[:, columns == group]) for group in range(columns.max() + 1)])
    identity = np.eye(len(targets))

    def evaluate(logs: Vector) -> tuple[float, Vector]:
        """Return the negative log posterior at the best trend and scale, and its gradient."""
        weights, noise = np.exp(logs[:-1]), NOISE * math.exp(logs[-1])
        correlations = np.exp(-0.5 * np.tensordot(weights, distances, 1))
        L = np.linalg.cholesky(correlations + noise * identity)
        L_inverse = np.linalg.solve(L, identity)
        white_y = L_inverse @ targets
        white_H = L_inverse @ H
        beta, scale, _ = fit_trend(H, targets, white_H, white_y)
        residual = white_y - white_H @ beta
        alpha = L_inverse.T @ residual / scale
        value = float(np.log(np.diag(L)).sum()) + _trend_loss(residual, beta, scale)
        value += 0.5 * float(logs @ logs) / WEIGHT_LOG_STD**2
        # R&W (5.9): the derivative by an entry of K is half of this.
        D = L_inverse.T @ L_inverse - np.outer(alpha, alpha)
        by_weight = -0.25 * weights * np.tensordot(distances, D * correlations, 2)
        return value, np.append(by_weight, 0.5 * noise * np.trace(D)) + logs / WEIGHT_LOG_STD**2

    start = np.zeros(len(distances) + 1)
    bounds = [(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)] * len(start)
    options = {"maxiter": WEIGHT_ITERATIONS}
    logs = minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return np.exp(logs[:-1]), NOISE * math.exp(logs[-1])


def fit_irreducible_error(inputs: Inputs, errors: Vector, floor: float) -> float:
    """Return the irreducible error ``c``, the limit that errors fall towards, with the largest posterior density.

    The model of ``log(error - c + floor)`` is that of this module with fixed length scales. A few shares of the least
    observed error are compared; it is 0 with few observations.

    Args:
        inputs: The observed trials, ``N`` of them.
        errors: Their errors, ``[N]``.
        floor: Constant under the logarithm.
    """
    if len(errors) < MIN_COMPARED_OBSERVATIONS:
        return 0.0
    X = inputs.kernel_inputs
    L = np.linalg.cholesky(kernel(X, X) + NOISE * np.eye(len(errors)))
    H = basis_functions(inputs, inputs)
    shifts = float(errors.min()) * np.array(IRREDUCIBLE_SHARES)
    Y = np.log(errors[:, None] - shifts + floor)
    white = np.linalg.solve(L, np.hstack([H, Y]))
    white_H, losses = white[:, : H.shape[1]], []
    for targets, white_y in zip(Y.T, white[:, H.shape[1] :].T, strict=True):
        beta, scale, _ = fit_trend(H, targets, white_H, white_y)
        # The sum of the targets turns the density of logarithms into that of errors.
        losses.append(_trend_loss(white_y - white_H @ beta, beta, scale) + float(targets.sum()))
    return float(shifts[int(np.argmin(losses))])


def _trend_loss(residual: Vector, beta: Vector, scale: float) -> float:
    """Return the negative log posterior of trend and scale, save for the determinant of ``K``, up to a constant.

    Args:
        residual: Whitened residuals, ``[N]``.
        beta: Coefficients of the trend, ``[4]``.
        scale: Standard deviation of trials around the trend.
    """
    slopes = (beta[1:] - SLOPE_MEANS) / SLOPE_STDS
    squares = float(residual @ residual) / scale**2 + float(slopes @ slopes)
    squares += (math.log(scale / SCALE_MEDIAN) / SCALE_LOG_STD) ** 2
    return (len(residual) - 1) * math.log(scale) + 0.5 * squares


def _square_distances(X: Vector) -> Vector:
    return np.asarray(((X[:, None] - X[None]) ** 2).sum(axis=2))


def fit_trend(H: Vector, targets: Vector, white_H: Vector, white_y: Vector) -> tuple[Vector, float, Vector]:
    """Return ``beta``, ``scale`` and the posterior precision ``A``, ``[4, 4]``, by maximum a posteriori.

    Args:
        H: Basis functions of the observations, ``[N, 4]``.
        targets: Logarithms of their errors, ``[N]``.
        white_H: Whitened basis functions ``L^-1 H``, ``[N, 4]``.
        white_y: Whitened targets ``L^-1 y``, ``[N]``.
    """
    b = np.append(0.0, SLOPE_MEANS)
    # The iteration starts at the prior slopes, with the intercept that fits them to the observations.
    beta = b + np.append(float((targets - H @ b).mean()), np.zeros(len(SLOPE_MEANS)))
    for _ in range(MAP_ITERATIONS):
        white_residual = white_y - white_H @ beta
        # One degree of freedom goes to the intercept, which has no prior to speak of.
        scale = fit_scale(float(white_residual @ white_residual), len(targets) - 1)
        prior_precision = np.diag(np.append(INTERCEPT_PRECISION, (scale / SLOPE_STDS) ** 2))
        precision = prior_precision + white_H.T @ white_H
        beta = np.linalg.solve(precision, prior_precision @ b + white_H.T @ white_y)
    return beta, scale, precision


def interpolate_values(seen: Vector, values: Vector, new: Vector) -> Vector:
    """Return estimates of known functions at new students, ``[M, C]``: a linear trend and smooth deviations from it.

    Args:
        seen: Encoded hyperparameters of students, ``[N, S]``.
        values: Values of ``C`` functions at them, ``[N, C]``.
        new: Encoded hyperparameters of other students, ``[M, S]``.
    """

    def covariance(X: Vector, Y: Vector) -> Vector:
        return LINEAR_VARIANCE * (X - 0.5) @ (Y - 0.5).T + kernel(X / LENGTH_SCALE_STUDENT, Y / LENGTH_SCALE_STUDENT)

    mean = values.mean(axis=0)
    K = covariance(seen, seen) + INTERPOLATION_NOISE * np.eye(len(seen))
    return np.asarray(mean + covariance(new, seen) @ np.linalg.solve(K, values - mean))


def fit_scale(residual_squares: float, degrees: int) -> float:
    """Return the maximum a posteriori estimate of the scale.

    With ``s = log(scale)``, it minimises the convex function ``degrees s + residual_squares exp(-2 s) / 2 +
    (s - log SCALE_MEDIAN)^2 / (2 SCALE_LOG_STD^2)``.

    Args:
        residual_squares: Generalized sum of squares of the residuals, ``r^T K^-1 r``.
        degrees: Number of degrees of freedom.
    """
    prior_mean = math.log(SCALE_MEDIAN)
    log_scale = prior_mean
    # Newton's method. Steps are at most 0.5, as the exponential would make the first one far too long.
    for _ in range(40):
        squares = residual_squares * math.exp(-2 * log_scale)
        gradient = degrees - squares + (log_scale - prior_mean) / SCALE_LOG_STD**2
        step = gradient / (2 * squares + 1 / SCALE_LOG_STD**2)
        log_scale -= min(max(step, -0.5), 0.5)
    return math.exp(log_scale)
