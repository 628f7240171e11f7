"""Correction of the winner's loss: the loss of the selected candidate, without the bias of having been selected.

The best of many candidates is partly lucky on the examples that it was selected by. Bootstrap bias-corrected
cross-validation (BBC-CV, Tsamardinos et al. 2018) repeats the selection on bootstrap samples of the validation examples
and measures the winner of each sample on the examples outside of it. It needs no training.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.certification import PairedLoss, list_losses
from autocompress.analysis.paired import mean_p_value, p_value_of_counts
from autocompress.core.example_scores import Kind
from autocompress.core.run_info import RunInfo

DRAWS = 100
# Any constant: it makes the estimate the same at every call.
_SEED = 13_007
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class CorrectedLoss:
    """Loss of the winner of a selection, corrected for the selection.

    Attributes:
        loss: Mean loss of the winners on the examples that did not select them.
        low: Lower end of its 95% interval over the bootstrap samples.
        high: Upper end of the interval.
    """

    loss: float
    low: float
    high: float


def estimate_corrected_loss(rows: pd.DataFrame, info: RunInfo, draws: int = DRAWS) -> CorrectedLoss | None:
    """Return the corrected loss of the default selection; None without a confidence or scores of single examples.

    Args:
        rows: Candidates that may be selected.
        info: Description of the run.
        draws: Number of bootstrap samples.
    """
    if info.max_drop is None or info.confidence is None:
        return None
    losses = list_losses(rows, info)
    if not losses or any(loss.kind == "replicates" for loss in losses):
        return None
    matrix = np.stack([loss.losses for loss in losses])
    is_binary = all(loss.kind == "bits" for loss in losses)
    count = matrix.shape[1]
    generator = np.random.default_rng([_SEED, count])
    outside_losses = []
    for _ in range(draws):
        weights = np.bincount(generator.integers(0, count, count), minlength=count)
        winner = _select_winner(matrix, weights, info.max_drop, 1 - info.confidence, is_binary)
        outside = weights == 0
        if outside.any():
            outside_losses.append(float(matrix[winner, outside].mean()))
    low, high = np.percentile(outside_losses, _PERCENTILES)
    return CorrectedLoss(math.fsum(outside_losses) / len(outside_losses), float(low), float(high))


def _select_winner(
    matrix: NDArray[np.float64], weights: NDArray[np.int64], margin: float, level: float, is_binary: bool
) -> int:
    """Return the first candidate that a sample certifies, else the one with the smallest upper bound.

    Args:
        matrix: Losses of the candidates, the cheapest first, ``[K, N]``.
        weights: How often the sample contains each example, ``[N]``.
        margin: Allowed loss.
        level: Level of the test.
        is_binary: Whether all losses are -1, 0 or 1.
    """
    count = int(weights.sum())
    means = matrix @ weights / count
    worse, better = ((matrix > 0) @ weights, (matrix < 0) @ weights) if is_binary else (means, means)
    repeated = matrix if is_binary else matrix.repeat(weights, axis=1)
    for position in np.flatnonzero(means <= margin).tolist():
        if is_binary:
            p_value = p_value_of_counts(int(worse[position]), int(better[position]), count, margin)
        else:
            p_value = mean_p_value(repeated[position], margin)
        if p_value <= level:
            return int(position)
    return _find_smallest_bound(matrix, weights, means, 1 - level, is_binary)


def _find_smallest_bound(
    matrix: NDArray[np.float64],
    weights: NDArray[np.int64],
    means: NDArray[np.float64],
    confidence: float,
    is_binary: bool,
) -> int:
    best, smallest = 0, math.inf
    # The bound is never below the mean, so later candidates cannot have a smaller one.
    for position in np.argsort(means, kind="stable").tolist():
        if means[position] >= smallest:
            break
        losses = matrix[position].repeat(weights)
        kind: Kind = "bits" if is_binary else "shares"
        bound = PairedLoss(kind, float(means[position]), len(losses), losses).upper_bound(confidence)
        if bound < smallest:
            best, smallest = position, bound
    return best
