"""The surrogate against scikit-learn's Gaussian process: `python -m benchmarks.surrogate`.

Both fit the same model to the same synthetic trials and predict 300 others, as one selection of the search does for one
score; the predictions agree. scikit-learn has no basis functions with a prior, so the trend becomes part of the kernel
and the model is fitted again for each of the four values of the scale. The first table has milliseconds of processor
time, medians of 15 runs in turn. The second has the seconds of processor time that a fresh process needs to import the
engine, and the engine with `sklearn.gaussian_process`, medians of 3 in turn. One thread (`OMP_NUM_THREADS=1`).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel

from autocompress.core.atomic import write_atomic
from autocompress.engine.sampler.gaussian_process import (
    INTERCEPT_PRECISION,
    MAP_ITERATIONS,
    NOISE,
    SLOPE_MEANS,
    SLOPE_STDS,
    GaussianProcess,
    Inputs,
    basis_functions,
    fit_scale,
    kernel,
)
from benchmarks.common import describe_benchmark

Vector = NDArray[np.float64]
OBSERVATIONS = (10, 60, 240)
QUERIES = 300
#: Number of basis functions.
TREND = 1 + len(SLOPE_MEANS)
IMPORTS = {"the engine": "autocompress.engine.runner"}
IMPORTS["with sklearn.gaussian_process"] = f"{IMPORTS['the engine']}, sklearn.gaussian_process"


class TrendKernel(Kernel):  # type: ignore[misc]
    """The surrogate's kernel plus ``h(x)^T B h(y) / scale^2``; the last ``TREND`` columns of an input are ``h``."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def variances(self) -> Vector:
        """Return the prior variances of the trend's coefficients, in units of the scale's square, ``[4]``."""
        return np.append(1 / INTERCEPT_PRECISION, (SLOPE_STDS / self.scale) ** 2)

    def __call__(self, X: Vector, Y: Vector | None = None, eval_gradient: bool = False) -> Vector:
        """Return the covariances of all pairs, ``[N, M]``."""
        Y = X if Y is None else Y
        return kernel(X[:, :-TREND], Y[:, :-TREND]) + (X[:, -TREND:] * self.variances()) @ Y[:, -TREND:].T

    def diag(self, X: Vector) -> Vector:
        """Return the variance of each input, ``[N]``."""
        return 1.0 + (X[:, -TREND:] ** 2) @ self.variances()

    def is_stationary(self) -> bool:
        """Return that it is not: the trend grows with the cost."""
        return False


def make_trials(count: int, random: np.random.Generator) -> Inputs:
    """Return trials with five hyperparameters of the student and eight of the recipe."""
    shares = random.choice([1 / 9, 1 / 3, 1.0], count)
    settings = random.uniform(size=(count, 5)), random.uniform(size=(count, 8))
    return Inputs(*settings, random.uniform(3, 8, count), random.uniform(-2, 1, count), np.log(shares))


def predict_ours(seen: Inputs, targets: Vector, new: Inputs) -> tuple[Vector, Vector]:
    """Return means and deviations of the surrogate, ``[M]`` each."""
    return GaussianProcess(seen, targets).predict(new)


def predict_sklearn(seen: Inputs, targets: Vector, new: Inputs) -> tuple[Vector, Vector]:
    """Return means and deviations of the same model by scikit-learn, ``[M]`` each."""

    def join(inputs: Inputs) -> Vector:
        return np.hstack([inputs.kernel_inputs, basis_functions(inputs, seen)])

    X, X_new = join(seen), join(new)
    H = X[:, -TREND:]
    b = np.append(0.0, SLOPE_MEANS)
    centred = targets - H @ b
    # The first residual is that of the prior slopes, as in the surrogate.
    residual = centred - centred.mean()
    scale = fit_scale(
        float(residual @ np.linalg.solve(kernel(X[:, :-TREND], X[:, :-TREND]) + NOISE * np.eye(len(X)), residual)),
        len(X) - 1,
    )
    for iteration in range(MAP_ITERATIONS):
        trend = TrendKernel(scale)
        model = GaussianProcessRegressor(trend, alpha=NOISE, optimizer=None).fit(X, centred)
        if iteration < MAP_ITERATIONS - 1:
            residual = centred - H @ (trend.variances() * (H.T @ model.alpha_))
            scale = fit_scale(float(residual @ model.alpha_), len(X) - 1)
    mean, deviation = model.predict(X_new, return_std=True)
    return X_new[:, -TREND:] @ b + mean, scale * deviation


def time_predictions(count: int, repeats: int) -> tuple[float, float, float]:
    """Return the medians of both in milliseconds, and the largest difference of their predictions."""
    random = np.random.default_rng(count)
    seen, new = make_trials(count, random), make_trials(QUERIES, random)
    targets = random.normal(-2.0, 1.0, count)
    contenders: list[Callable[[Inputs, Vector, Inputs], tuple[Vector, Vector]]] = [predict_ours, predict_sklearn]
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        predictions = []
        for times, contender in zip(seconds, contenders, strict=True):
            start = time.process_time()
            predictions.append(contender(seen, targets, new))
            times.append(time.process_time() - start)
    difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(*predictions, strict=True))
    ours, theirs = (1000 * statistics.median(times) for times in seconds)
    return ours, theirs, difference


def time_imports(repeats: int) -> dict[str, float]:
    """Return the median seconds of each import in a fresh process."""
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, modules in IMPORTS.items():
            command = [sys.executable, "-c", code.format(modules)]
            seconds[name].append(float(subprocess.run(command, check=True, capture_output=True).stdout))
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/surrogate.md"))
    options = parser.parse_args()
    lines = ["# The surrogate and scikit-learn's Gaussian process", "", "`python -m benchmarks.surrogate`", ""]
    lines += [
        describe_benchmark(__doc__),
        "",
        "| observations | surrogate, ms | scikit-learn, ms | largest difference |",
        "|---|---|---|---|",
    ]
    for count in OBSERVATIONS:
        ours, theirs, difference = time_predictions(count, 15)
        lines.append(f"| {count} | {ours:.1f} | {theirs:.1f} | {difference:.0e} |")
    lines += ["", "| import | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in time_imports(3).items()]
    print("\n".join(lines))
    write_atomic(options.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
