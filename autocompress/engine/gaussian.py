"""What a training will score, from what others scored: a Gaussian process over student, recipe, cost and epochs.

One kernel multiplies all of them, so that a training that was stopped tells of those that go on (Swersky, Snoek and
Adams 2014, arXiv:1406.3896). How far it reaches is fixed: on a table of trainings of the digits, guesses after 3 to 50
observations were no better with what the likelihood chose.
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
# What is believed before much is seen: errors fall with the cost, by so much of a logarithm for a power of ten,
SLOPE = -1.75
# and with the epochs, by so much for each logarithm;
PROGRESS = -0.4
# how far a training lies from that, and how many observations it takes to believe otherwise.
SPREAD = 1.2
BELIEF = 6


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
    def believed(self) -> Vector:
        """What their errors' logarithms are before anything is seen, but for a constant, ``[N]``."""
        found: Vector = SLOPE * self.costs + PROGRESS * self.epochs
        return found

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
        # It takes a second to import, and the first training takes longer.
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF

        apart = values - inputs.believed
        self._mean = float(apart.mean())
        spread = (len(apart) * float(apart.var()) + BELIEF * SPREAD**2) / (len(apart) + BELIEF)
        self._scale = math.sqrt(spread)
        self._process = GaussianProcessRegressor(RBF(1.0), alpha=NOISE, optimizer=None)
        self._process.fit(inputs.scaled, (apart - self._mean) / self._scale)

    def predict(self, inputs: Inputs) -> tuple[Vector, Vector]:
        """Return means and standard deviations, ``[N]`` each, without the noise of a training."""
        means, deviations = self._process.predict(inputs.scaled, return_std=True)
        return means * self._scale + self._mean + inputs.believed, deviations * self._scale
