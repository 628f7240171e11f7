"""What a training will score, from what others scored: a Gaussian process over student, recipe, cost and epochs.

One kernel multiplies all of them, so that a training that was stopped tells of those that go on (Swersky, Snoek and
Adams 2014, arXiv:1406.3896). How far it reaches is fixed: on a table of trainings of the digits, guesses after 3 to 50
observations were no better with what the likelihood chose. How fast errors fall with the cost and with the epochs is
learned, from a belief (explicit basis functions: Rasmussen and Williams 2006, section 2.7), and so is how far trainings
lie from that trend: between tasks both differ tenfold. Who believes in a steep fall that is not there trains ever
larger students; who believes in luck that is not there tries ever more small ones.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
# Half of the coordinates of a student may differ before it tells little; so of a recipe.
ALONG_SETTINGS = 1.2
# In powers of ten.
ALONG_COSTS = 2.0
# In natural logarithms: a ninth of the epochs tells a third of what all of them will.
ALONG_EPOCHS = 1.5
# A training repeated with another seed, against how far trainings lie apart: a variance.
NOISE = 0.05
# What is believed before much is seen: errors fall with the cost, by so much of a logarithm for a power of ten, give or
# take so much,
SLOPE, SLOPE_SPREAD = -1.75, 1.0
# and with the epochs, by so much for each logarithm;
PROGRESS, PROGRESS_SPREAD = -0.4, 0.3
# how far a training lies from that, give or take so much of a logarithm.
SPREAD, DOUBT = 1.0, 0.3
# Scale and trend depend on each other; they change little after so many rounds.
ROUNDS = 4


@dataclass(frozen=True)
class Inputs:
    """Trainings, each at some epoch.

    Attributes:
        students: Coordinates of the students, ``[N, S]``, each from 0 to 1.
        recipes: Those of everything else, ``[N, R]``.
        costs: Decimal logarithms, ``[N]``.
        epochs: Natural logarithms of the share of their epochs, ``[N]``: 0 at the end.
    """

    students: Vector
    recipes: Vector
    costs: Vector
    epochs: Vector

    @property
    def scaled(self) -> Vector:
        """Points that tell much of each other where they lie less than 1 apart, ``[N, D]``."""
        settings = np.hstack([self.students, self.recipes]) / ALONG_SETTINGS
        return np.hstack([settings, self.costs[:, None] / ALONG_COSTS, self.epochs[:, None] / ALONG_EPOCHS])


class Gaussian:
    """A process that was shown some errors.

    Args:
        inputs: Of which trainings, ``N`` of them.
        values: The logarithms of their errors, ``[N]``.
    """

    def __init__(self, inputs: Inputs, values: Vector) -> None:
        self._points = inputs.scaled
        self._middle = float(inputs.costs.mean())
        self._covariance = _alike(self._points, self._points) + NOISE * np.eye(len(values))
        trend = self._trend(inputs)
        self._along_trend = np.linalg.solve(self._covariance, trend)
        solved = np.linalg.solve(self._covariance, values)
        believed = np.array([0.0, SLOPE, PROGRESS])
        weights = believed + np.array([float((values - trend @ believed).mean()), 0.0, 0.0])
        for _ in range(ROUNDS):
            apart = values - trend @ weights
            self._scale = _scale(float(apart @ np.linalg.solve(self._covariance, apart)), len(apart) - 1)
            # Of the level nothing is believed.
            sure = np.diag([1e-6, (self._scale / SLOPE_SPREAD) ** 2, (self._scale / PROGRESS_SPREAD) ** 2])
            self._sureness = sure + trend.T @ self._along_trend
            weights = np.linalg.solve(self._sureness, sure @ believed + trend.T @ solved)
        self._weights = weights
        self._apart = np.linalg.solve(self._covariance, values - trend @ weights)

    def predict(self, inputs: Inputs) -> tuple[Vector, Vector]:
        """Return means and standard deviations, ``[N]`` each, without the noise of a training."""
        alike = _alike(inputs.scaled, self._points)
        trend = self._trend(inputs)
        means: Vector = trend @ self._weights + alike @ self._apart
        unknown = 1.0 - (alike * np.linalg.solve(self._covariance, alike.T).T).sum(axis=1)
        beyond = trend - alike @ self._along_trend
        unknown += (beyond * np.linalg.solve(self._sureness, beyond.T).T).sum(axis=1)
        return means, self._scale * np.sqrt(np.maximum(unknown, 0.0))

    def _trend(self, inputs: Inputs) -> Vector:
        return np.column_stack([np.ones(len(inputs.costs)), inputs.costs - self._middle, inputs.epochs])


def _scale(misfit: float, count: int) -> float:
    """Return how far trainings lie from the trend: the likeliest, by what is seen and what was believed.

    Args:
        misfit: Sum of the squared distances, each against what its neighbours tell.
        count: How many are free.
    """
    believed = math.log(SPREAD)
    found = believed
    # Newton's method on a convex function; in short steps, as it is steep on one side.
    for _ in range(40):
        seen = misfit * math.exp(-2 * found)
        slope = count - seen + (found - believed) / DOUBT**2
        step = slope / (2 * seen + 1 / DOUBT**2)
        found -= min(max(step, -0.5), 0.5)
    return math.exp(found)


def _alike(left: Vector, right: Vector) -> Vector:
    """Return how much points tell of each other, ``[N, K]``."""
    found: Vector = np.exp(-0.5 * ((left[:, None] - right[None]) ** 2).sum(axis=2))
    return found
