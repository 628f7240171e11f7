"""Paired tests of the loss against the teacher: p-values of "the mean loss is at least a margin", and upper bounds.

The loss of an example is the teacher's score minus the candidate's, so that a positive loss is worse. All tests are
one-sided. :func:`p_value_of_counts` and :func:`betting_p_value` hold at any number of examples;
:func:`mean_p_value` and :func:`bootstrap_p_value` hold for many.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Bisections of an upper bound: its error is below 2 / 2**22.
_BISECTIONS = 22
# Beyond so many standard deviations, probabilities are below the precision of a p-value.
_TAIL = 9.0
# Largest bet as a share of what could be lost, as recommended by Waudby-Smith and Ramdas.
_LARGEST_BET = 0.75


@lru_cache(maxsize=65_536)
def p_value_of_counts(worse: int, better: int, examples: int, margin: float) -> float:
    """Return the p-value of a mean loss of at least ``margin``, where each loss is -1, 0 or 1.

    It is the exact probability of so small a net loss when the mean loss is ``margin``. The share of examples that
    differ is a nuisance parameter and takes its most likely value under that hypothesis (Tango 1998, Lloyd 2008). The
    true error rate for every value of that share, by enumeration for 10 to 300 examples and levels from 0.01 to 0.2, is
    at most 1.01 times the level.

    Args:
        worse: Number of examples that only the teacher gets right.
        better: Number of examples that only the candidate gets right.
        examples: Number of examples.
        margin: Mean loss of the hypothesis, between -1 and 1.

    Example:
        >>> round(p_value_of_counts(0, 0, 229, 0.01), 3)
        0.1
    """
    share = _likely_share(worse, better, examples, margin)
    return min(1.0, _net_loss_cdf(worse - better, examples, margin, share))


def _likely_share(worse: int, better: int, examples: int, margin: float) -> float:
    """Return the most likely share of examples that differ if the mean loss is ``margin`` (Tango 1998, eq. 4)."""
    a = 2.0 * examples
    b = -worse - better + (2.0 * examples - worse + better) * margin
    c = -better * margin * (1.0 - margin)
    # Probability that only the candidate is right.
    gain = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return min(1.0, 2.0 * max(gain, 0.0, -margin) + margin)


def _net_loss_cdf(net: int, examples: int, margin: float, share: float) -> float:
    """Return the probability that the number of losses minus gains is at most ``net``.

    Args:
        net: Number of losses minus number of gains.
        examples: Number of examples.
        margin: Mean loss.
        share: Probability that an example differs.
    """
    # A share of 0, where nothing ever differs, is the limit of small ones.
    share = max(share, 1e-12)
    # Number of examples that differ; larger ones have no probability.
    limit = math.ceil(examples * share + _TAIL * math.sqrt(examples * share) + _TAIL)
    differing = np.arange(min(examples, limit) + 1)
    odds = _log(share) - _log(1.0 - share)
    weights = np.concatenate([[0.0], np.cumsum(np.log((examples - differing[:-1]) / differing[1:]) + odds)])
    weights = np.exp(weights - weights.max())
    rate = min(max((share + margin) / (2 * share), 0.0), 1.0)
    return float((weights * _net_loss_tails(net, len(differing), rate)).sum() / weights.sum())


def _net_loss_tails(net: int, count: int, rate: float) -> NDArray[np.float64]:
    """Return the probability of a net loss of at most ``net`` among 0, 1, ..., ``count - 1`` differing examples.

    It is that of at most ``(k + net) / 2`` losses among k, and follows from that among k - 1. ``scipy.special.bdtr``
    computes the same, but importing it would take a tenth of the time of ``pick``.

    Args:
        net: Number of losses minus number of gains.
        count: Number of probabilities.
        rate: Probability that a differing example is a loss.
    """
    start = abs(net)
    tails = np.full(count, 1.0 if net >= 0 else 0.0)
    if start >= count:
        return tails
    # Among so many examples, only all of them being losses (or gains) reaches the net loss.
    first = start * (_log(rate) if net >= 0 else _log(1.0 - rate))
    tails[start] = 1.0 if net >= 0 else math.exp(first)
    examples = np.arange(start, count - 1)
    losses = (examples + net) // 2
    # One more example allows one more loss if it makes `examples + net` even.
    grows = (examples + net) % 2 == 1
    # Probability of exactly `losses` losses among `examples`, by the ratio of each to the one before.
    ratios = (examples + 1) / np.where(grows, losses + 1, examples + 1 - losses)
    steps = np.log(ratios) + np.where(grows, _log(rate), _log(1.0 - rate))
    exact = np.exp(first + np.concatenate([[0.0], np.cumsum(steps[:-1])])[: len(steps)])
    changes = rate * exact * np.where(grows, (examples - losses) / (losses + 1), -1.0)
    tails[start + 1 :] = tails[start] + np.cumsum(changes)
    return np.asarray(np.clip(tails, 0.0, 1.0), dtype=np.float64)


def _log(probability: float) -> float:
    """Return the logarithm of a probability; that of 0 is finite, so that 0 times it is 0."""
    return math.log(max(probability, 1e-300))


def mean_p_value(losses: NDArray[np.float64], margin: float) -> float:
    """Return the p-value of Student's one-sided test that the mean of ``losses`` is at least ``margin``.

    Example:
        >>> round(mean_p_value(np.array([0.0, 0.02, -0.01, 0.01]), 0.02), 3)
        0.051
    """
    # Imported here: most runs have scores of 0 or 1, and need no t distribution.
    from scipy.special import stdtr

    count = len(losses)
    error = float(losses.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    if error == 0.0:
        # Without any difference, a rare large loss is excluded as far as so many examples without one exclude it.
        return (1.0 - min(max(margin - float(losses[0]), 0.0), 1.0)) ** count
    return float(stdtr(count - 1, (float(losses.mean()) - margin) / error)) if math.isfinite(error) else 1.0


def betting_p_value(losses: NDArray[np.float64], margin: float, level: float) -> float:
    """Return a p-value of a mean loss of at least ``margin`` that holds at any number of examples.

    Bets on the losses being smaller cannot be expected to win if the hypothesis is true, so their largest capital
    bounds the p-value (Waudby-Smith and Ramdas 2024, arXiv:2010.09686). The losses must lie between -1 and 1.

    Args:
        losses: Loss of each example, ``[N]``, in an order that does not depend on them.
        margin: Mean loss of the hypothesis.
        level: Level of the test, which the size of the bets depends on.

    Example:
        >>> betting_p_value(np.zeros(1000), 0.01, 0.1) < 0.01
        True
    """
    # Scaled to 0..1, where a larger value is a smaller loss.
    gains, mean = (1.0 - losses) / 2, (1.0 - margin) / 2
    if mean <= 0.0:
        return 0.0
    counts = np.arange(1, len(gains) + 1)
    centre = (0.5 + gains.cumsum()) / (counts + 1)
    variance = (0.25 + ((gains - centre) ** 2).cumsum()) / (counts + 1)
    # A bet may depend on earlier examples only.
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / level) / (len(gains) * before)), _LARGEST_BET / mean)
    capital = np.log1p(bets * (gains - mean)).cumsum()
    return float(min(1.0, math.exp(-max(float(capital.max(initial=0.0)), 0.0))))


def bootstrap_p_value(replicates: NDArray[np.float64], margin: float) -> float:
    """Return the share of bootstrap replicates of the loss that are at least ``margin``, the sample itself included.

    Example:
        >>> bootstrap_p_value(np.array([0.0, 0.01, 0.02, 0.03]), 0.02)
        0.6
    """
    return float((1 + (replicates >= margin).sum()) / (1 + len(replicates)))


def find_upper_bound(p_value: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return the smallest margin between ``low`` and ``high`` that a test rejects at ``level``, by bisection.

    Args:
        p_value: p-value of "the mean loss is at least a margin"; it falls with the margin.
        level: Level of the test.
        low: Lower end, which the test does not reject.
        high: Upper end, returned if no smaller margin is rejected.

    Example:
        >>> round(find_upper_bound(lambda margin: p_value_of_counts(0, 0, 216, margin), 0.1, 0.0, 1.0), 4)
        0.0106
    """
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if p_value(middle) <= level:
            high = middle
        else:
            low = middle
    return high
