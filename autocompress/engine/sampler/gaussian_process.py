"""Gaussian process regression of a trial's log error on its architecture, recipe, cost and share of epochs.

The model is that of Rasmussen and Williams (2006, "R&W" below), section 2.7, explicit basis functions with a Gaussian
prior on their coefficients:

    y(x) = h(x)^T beta + f(x) + noise,    f ~ GP(0, scale^2 k),    beta ~ N(b, B),    noise ~ N(0, scale^2 NOISE)

``h(x) = (1, cost, log share of epochs)`` is the trend: errors fall with cost and with epochs. The rates and the scale
differ tenfold between tasks, so both are fitted online from a stated prior, the scale by maximum a posteriori. A slope
that is too steep makes a search train ever larger students; a scale that is too large makes it try ever more small
ones. Matrices hold one trial a row, so that ``H`` is the transpose of R&W's.

One product kernel covers architecture, recipe, cost and epochs, so that trials which were stopped early inform the
prediction of complete ones (Swersky, Snoek and Adams 2014, arXiv:1406.3896). Its length scales are fixed: on a table of
trials of the task ``digits``, predictions from 3 to 50 observations were no better with length scales that maximise the
likelihood.

scikit-learn's GaussianProcessRegressor has no basis functions with a prior. With the trend as a part of its kernel it
gives the same predictions, but a selection takes 3 to 5 times as long, and its import adds 60% to the start of a search
(``reports/benchmarks/surrogate.md``).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
# Length scale of the encoded hyperparameters, each in 0..1: where half of a student's coordinates differ, the
# correlation is small; likewise for a recipe.
LENGTH_SCALE_SETTINGS = 1.2
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
# Prior of the slope in epochs: mean and standard deviation of the change of the log error per unit of log share.
EPOCHS_SLOPE_MEAN, EPOCHS_SLOPE_STD = -0.4, 0.3
# Prior precision of the intercept, in units of 1 / scale^2: nearly flat, as nothing is assumed of the level of errors.
INTERCEPT_PRECISION = 1e-6
# Prior of ``scale``, the standard deviation of trials around the trend: log-normal with this median and deviation.
SCALE_MEDIAN, SCALE_LOG_STD = 1.0, 0.3
# ``scale`` and ``beta`` depend on each other and are fitted in turn; they change little after so many iterations.
MAP_ITERATIONS = 4


@dataclass(frozen=True)
class Inputs:
    """Encoded trials, each at some share of its epochs.

    Attributes:
        students: Encoded hyperparameters of the students, ``[N, S]``, each from 0 to 1.
        recipes: Encoded hyperparameters of distillation and fitting, ``[N, R]``, each from 0 to 1.
        costs: Decimal logarithms of the students' costs, ``[N]``.
        epochs: Natural logarithms of the share of the epochs, ``[N]``: 0 for a complete trial.
    """

    students: Vector
    recipes: Vector
    costs: Vector
    epochs: Vector

    @property
    def kernel_inputs(self) -> Vector:
        """Coordinates divided by their length scales, ``[N, D]``."""
        settings = np.hstack([self.students, self.recipes]) / LENGTH_SCALE_SETTINGS
        costs = self.costs[:, None] / LENGTH_SCALE_COST
        return np.hstack([settings, costs, self.epochs[:, None] / LENGTH_SCALE_EPOCHS])


class GaussianProcess:
    """Posterior of the log error given observed trials; see the module for the model and its symbols.

    All covariances are in units of ``scale^2``: ``K = k(X, X) + NOISE I`` and ``A = scale^2 B^-1 + H^T K^-1 H`` do not
    change with the scale, save for the prior's part of ``A``. With ``K = L L^T``, each product with ``K^-1`` becomes a
    plain product of whitened columns ``L^-1 H`` and ``L^-1 y``.

    Args:
        inputs: The observed trials, ``N`` of them.
        targets: Logarithms of their errors, ``[N]``.
    """

    def __init__(self, inputs: Inputs, targets: Vector) -> None:
        self._X = inputs.kernel_inputs
        self._mean_cost = float(inputs.costs.mean())
        K = kernel(self._X, self._X) + NOISE * np.eye(len(targets))
        self._L = np.linalg.cholesky(K)
        H = self._basis_functions(inputs)
        self._white_H = np.linalg.solve(self._L, H)
        white_y = np.linalg.solve(self._L, targets)
        b = np.array([0.0, COST_SLOPE_MEAN, EPOCHS_SLOPE_MEAN])
        # The iteration starts at the prior slopes, with the intercept that fits them to the observations.
        beta = b + np.array([float((targets - H @ b).mean()), 0.0, 0.0])
        for _ in range(MAP_ITERATIONS):
            white_residual = white_y - self._white_H @ beta
            # One degree of freedom goes to the intercept, which has no prior to speak of.
            self._scale = fit_scale(float(white_residual @ white_residual), len(targets) - 1)
            slopes_precision = (self._scale / COST_SLOPE_STD) ** 2, (self._scale / EPOCHS_SLOPE_STD) ** 2
            prior_precision = np.diag([INTERCEPT_PRECISION, *slopes_precision])
            self._posterior_precision = prior_precision + self._white_H.T @ self._white_H
            beta = np.linalg.solve(self._posterior_precision, prior_precision @ b + self._white_H.T @ white_y)
        self._beta = beta
        self._alpha = np.linalg.solve(self._L.T, white_y - self._white_H @ beta)

    def predict(self, inputs: Inputs) -> tuple[Vector, Vector]:
        """Return the posterior means and standard deviations of the noise-free log error, ``[M]`` each.

        These are equations (2.41) and (2.42) of R&W with the prior's mean ``b``.

        Args:
            inputs: The trials to predict, ``M`` of them.
        """
        k_star = kernel(inputs.kernel_inputs, self._X)
        H_star = self._basis_functions(inputs)
        mean: Vector = H_star @ self._beta + k_star @ self._alpha
        v = np.linalg.solve(self._L, k_star.T)
        R = H_star - v.T @ self._white_H
        variance = 1.0 - (v**2).sum(axis=0)
        variance += (R * np.linalg.solve(self._posterior_precision, R.T).T).sum(axis=1)
        # Rounding may leave a trace below zero.
        return mean, self._scale * np.sqrt(np.maximum(variance, 0.0))

    def _basis_functions(self, inputs: Inputs) -> Vector:
        """Return the basis functions ``h`` of each trial, ``[N, 3]``; costs are centred on the observed ones."""
        return np.column_stack([np.ones(len(inputs.costs)), inputs.costs - self._mean_cost, inputs.epochs])


def kernel(X: Vector, Y: Vector) -> Vector:
    """Return the squared exponential kernel ``exp(-|x - y|^2 / 2)`` of all pairs, ``[N, M]``.

    Args:
        X: Coordinates in units of their length scales, ``[N, D]``.
        Y: Coordinates in units of their length scales, ``[M, D]``.
    """
    distances: Vector = ((X[:, None] - Y[None]) ** 2).sum(axis=2)
    return np.exp(-0.5 * distances)


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
