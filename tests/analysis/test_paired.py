"""Paired tests: against scipy, against independent implementations, and their error rates by enumeration."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, multinomial, ttest_1samp

from autocompress.analysis.paired import (
    _net_loss_cdf,
    betting_p_value,
    bootstrap_p_value,
    find_upper_bound,
    mean_p_value,
    p_value_of_counts,
)


@pytest.mark.parametrize("margin", [0.002, 0.01, 0.1])
@pytest.mark.parametrize("examples", [30, 216, 5000])
def test_without_a_difference_it_is_the_binomial_probability(examples: int, margin: float) -> None:
    # No loss among n examples, each lost with the probability of the margin.
    assert p_value_of_counts(0, 0, examples, margin) == pytest.approx(binom.pmf(0, examples, margin), rel=1e-9)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (2, 0), (3, 2), (1, 4)])
def test_it_is_the_trinomial_probability_of_so_small_a_net_loss(worse: int, better: int) -> None:
    examples, margin = 40, 0.1

    def likelihood(gain: float) -> float:
        # The likelihood under the hypothesis that the mean loss is the margin, to be maximized over the gains.
        terms = ((worse, gain + margin), (better, gain), (examples - worse - better, 1 - 2 * gain - margin))
        return sum(count * math.log(max(share, 1e-300)) for count, share in terms if count)

    gain = max(np.linspace(0, 0.45, 45_001), key=likelihood)
    shares = [gain + margin, gain, 1 - 2 * gain - margin]
    expected = sum(
        multinomial.pmf([losses, gains, examples - losses - gains], examples, shares)
        for gains in range(examples + 1)
        for losses in range(examples - gains + 1)
        if losses - gains <= worse - better
    )
    assert p_value_of_counts(worse, better, examples, margin) == pytest.approx(expected, abs=2e-4)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_probability_of_a_net_loss_is_that_of_binomial_distributions(data: st.DataObject) -> None:
    examples = data.draw(st.integers(1, 3000))
    worse = data.draw(st.integers(0, examples))
    better = data.draw(st.integers(0, examples - worse))
    margin = data.draw(st.sampled_from([-0.3, 0.0, 1e-4, 0.01, 0.3, 0.99]))
    share = min(1.0, max(abs(margin), data.draw(st.sampled_from([1e-12, 1e-3, 0.1, 0.7, 1.0]))))
    # Number of examples that differ, and among so many, of losses.
    differing = np.arange(examples + 1)
    rate = (share + margin) / (2 * share)
    tails = binom.cdf(np.floor((differing + worse - better) / 2), differing, rate)
    expected = float((binom.pmf(differing, examples, share) * tails).sum())
    assert _net_loss_cdf(worse - better, examples, margin, share) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("level", [0.05, 0.1])
@pytest.mark.parametrize(("examples", "margin"), [(30, 0.05), (80, 0.02), (216, 0.01)])
def test_the_true_error_rate_is_at_most_the_level(examples: int, margin: float, level: float) -> None:
    gains = np.arange(min(examples, 60) + 1)
    largest, threshold = [], -1
    for gain in gains:
        threshold = min(threshold, examples - gain)
        while threshold < examples - gain and p_value_of_counts(threshold + 1, int(gain), examples, margin) <= level:
            threshold += 1
        largest.append(threshold)
    rates = []
    for share in (margin, 1.2 * margin, 2 * margin, 5 * margin, 0.3):
        loss, gain = (share + margin) / 2, (share - margin) / 2
        tails = binom.cdf(largest, examples - gains, loss / (1 - gain))
        rates.append(float((binom.pmf(gains, examples, gain) * tails).sum()))
    assert max(rates) <= 1.01 * level
    # A test that rejects nothing would pass the line above.
    assert max(rates) > 0.5 * level


def test_the_bound_of_many_examples_is_the_normal_one() -> None:
    examples, worse, better = 20_000, 500, 400
    spread = math.sqrt((worse + better) / examples - ((worse - better) / examples) ** 2)
    expected = (worse - better) / examples + 1.2816 * spread / math.sqrt(examples)
    actual = find_upper_bound(lambda margin: p_value_of_counts(worse, better, examples, margin), 0.1, -1.0, 1.0)
    assert actual == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.03])
def test_the_mean_of_shares_is_tested_as_scipy_tests_it(margin: float) -> None:
    losses = np.random.default_rng(0).normal(0.0, 0.2, 300)
    expected = ttest_1samp(losses, margin, alternative="less").pvalue
    assert mean_p_value(losses, margin) == pytest.approx(expected, rel=1e-9)


def test_equal_shares_prove_no_more_than_their_number() -> None:
    assert mean_p_value(np.zeros(216), 0.01) == pytest.approx(0.99**216)
    assert mean_p_value(np.zeros(1), 0.01) == 1.0


def bet_one_by_one(losses: NDArray[np.float64], margin: float, level: float) -> float:
    """The predictable plug-in of Waudby-Smith and Ramdas (2024), section 3, written as a loop."""
    gains, mean, largest, capital = (1 - losses) / 2, (1 - margin) / 2, 1.0, 1.0
    total, squares = 0.5, 0.25
    for index, gain in enumerate(gains):
        bet = min(math.sqrt(2 * math.log(1 / level) / (len(gains) * squares / (index + 1))), 0.75 / mean)
        capital *= 1 + bet * (gain - mean)
        largest = max(largest, capital)
        total += gain
        squares += (gain - total / (index + 2)) ** 2
    return 1 / largest


def test_bets_are_those_of_the_paper() -> None:
    losses = np.random.default_rng(1).uniform(-0.4, 0.4, 200)
    for margin in (0.02, 0.1, 0.3):
        expected = bet_one_by_one(losses, margin, 0.1)
        assert betting_p_value(losses, margin, 0.1) == pytest.approx(expected, rel=1e-9)


def hoeffding_bentkus(risk: float, examples: int, level: float) -> float:
    """The p-value of MAPIE and of Learn then Test (Angelopoulos et al. 2021), for a risk between 0 and 1."""
    low = min(risk, level)
    entropy = low * math.log(low / level) + (1 - low) * math.log((1 - low) / (1 - level)) if low > 0 else 0.0
    entropy = entropy if low > 0 else -math.log(1 - level)
    return min(math.exp(-examples * entropy), math.e * float(binom.cdf(math.ceil(examples * risk), examples, level)))


def test_betting_needs_fewer_examples_than_hoeffding_and_bentkus() -> None:
    # The formula is for risks between 0 and 1, so paired losses have to be scaled, and their small variance is lost.
    losses = np.random.default_rng(2).normal(0.0, 0.1, 2000).clip(-1, 1)
    margin = 0.02
    scaled = hoeffding_bentkus(float((losses.mean() + 1) / 2), len(losses), (1 + margin) / 2)
    assert betting_p_value(losses, margin, 0.1) < 0.1 < scaled


@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_betting_is_wrong_at_most_at_its_level(spread: float) -> None:
    generator = np.random.default_rng(3)
    margin = 0.05
    # The true mean loss is the margin exactly: the hypothesis is true.
    draws = margin + spread * generator.choice([-1.0, 1.0], (400, 300))
    wrong = sum(betting_p_value(losses, margin, 0.1) <= 0.1 for losses in draws)
    assert 0 < wrong <= binom.ppf(0.999, 400, 0.1)


def test_replicates_count_the_sample_itself() -> None:
    replicates = np.arange(99) / 1000
    assert bootstrap_p_value(replicates, 0.09) == pytest.approx(0.1)
    assert bootstrap_p_value(replicates, 1.0) == pytest.approx(0.01)


def test_the_upper_bound_is_where_the_test_begins_to_reject() -> None:
    bound = find_upper_bound(lambda margin: p_value_of_counts(3, 2, 432, margin), 0.1, 1 / 432, 1.0)
    assert p_value_of_counts(3, 2, 432, bound) <= 0.1 < p_value_of_counts(3, 2, 432, bound - 1e-6)
    # A test that never rejects has no bound below the largest value.
    assert find_upper_bound(lambda margin: 1.0, 0.1, 0.0, 1.0) == 1.0
