"""MNIST-1D: ten digits drawn as curves of 40 points, generated from a seed by the published recipe.

Greydanus and Kobak (2020), Scaling down deep learning with MNIST-1D, arXiv:2011.14439. A template of 12 points is
padded, stretched, scaled, shifted circularly, given noise (correlated in the padding, white everywhere), sheared and
sampled at 40 points. Random numbers are drawn in the published order, so the published seed gives the published data.
"""

import numpy as np
from numpy.typing import NDArray

PUBLISHED_SEED = 42
CLASSES = 10
POINTS = 40

# Constants of the published generator.
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_PADDING = (36, 60)
_LONGEST = 12 + _PADDING[1]
_SHIFT = 48
_SCALE = 0.4
_CORRELATED_NOISE = 0.25
_WHITE_NOISE = 0.02
_SHEAR = 0.75
# Added to the template so that its zeros differ from the padding, which alone receives the correlated noise.
_ABOVE_ZERO = 1e-8

Array = NDArray[np.float64]


def generate_mnist1d(count: int = 5000, seed: int = PUBLISHED_SEED) -> tuple[Array, NDArray[np.int64]]:
    """Return curves ``[count, 40]`` with mean 0 and deviation 1, and their digits ``[count]``, in random order.

    The published split takes the first 4,000 for training and the last 1,000 for testing.

    Args:
        count: Number of curves, a multiple of ten.
        seed: Seed of the generator; 42 gives the published curves.

    Example:
        >>> curves, digits = generate_mnist1d(20, seed=1)
        >>> curves.shape, sorted(set(digits.tolist()))
        ((20, 40), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    # The legacy generator: the published data depends on its stream.
    random = np.random.RandomState(seed)
    digits = np.repeat(np.arange(CLASSES), count // CLASSES)
    templates = _scale_templates()
    curves = np.stack([_draw_curve(templates[digit], random) for digit in digits])
    order = random.permutation(len(digits))
    curves = curves[order]
    return (curves - curves.mean()) / curves.std(), digits[order]


def _scale_templates() -> Array:
    """Return the templates as curves that begin at 0, ``[10, 12]``."""
    templates = np.asarray(_TEMPLATES)
    templates = templates - templates.mean(axis=1, keepdims=True)
    templates = templates / templates.std(axis=1, keepdims=True)
    curves: Array = (templates - templates[:, :1]) / 6
    return curves


def _draw_curve(template: Array, random: np.random.RandomState) -> Array:
    shortest, longest = _PADDING
    padding = shortest + int(random.rand() * (longest - shortest + 1))
    curve = _resample_curve(np.pad(template + _ABOVE_ZERO, (0, padding)), _LONGEST)
    curve = curve * (1 + _SCALE * (random.rand() - 0.5))
    curve = np.roll(curve, random.randint(_SHIFT))
    smooth = _smooth_noise(_CORRELATED_NOISE * random.randn(_LONGEST))
    curve = np.where(curve != 0, curve, smooth) + _WHITE_NOISE * random.randn(_LONGEST)
    curve = curve - _SHEAR * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, _LONGEST)
    return _resample_curve(curve, POINTS)


def _smooth_noise(noise: Array) -> Array:
    """Return noise filtered by a Gaussian window of deviation 2, truncated at four deviations, mirrored at the ends."""
    window = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    return np.convolve(np.pad(noise, 8, mode="symmetric"), window / window.sum(), mode="valid")


def _resample_curve(curve: Array, points: int) -> Array:
    """Return a curve at evenly spaced points, including both ends, by linear interpolation."""
    return np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(curve)), curve)
