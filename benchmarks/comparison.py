"""Tables of paired comparisons: mean, standard error over seeds, and gain of a variant over its plain counterpart."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autocompress.core.registry import OBJECTIVES
from benchmarks.variants import BenchmarkTask, Measurements, ResultKey, mean_and_error

COLUMNS = ("task", "score", "comparison", "ours", "plain", "gain")


@dataclass(frozen=True)
class Pairing:
    """Comparison of a candidate with its plain counterpart by the primary score of the task.

    Attributes:
        title: Title of the row.
        ours: Variant and candidate of the method.
        plain: Variant and candidate of the plain counterpart.
        costs: Names of the costs whose ratio is shown.
    """

    title: str
    ours: tuple[str, str]
    plain: tuple[str, str]
    costs: tuple[str, ...] = ()


def format_gain(ours: Sequence[float], plain: Sequence[float], is_maximized: bool = True) -> str:
    """Return the mean paired gain with its standard error, and a star if it is beyond two of them; positive is better.

    Example:
        >>> format_gain([2.0, 3.1], [1.0, 2.0])
        '+1.05 ± 0.05 *'
    """
    sign = 1 if is_maximized else -1
    mean, error = mean_and_error([sign * (a - b) for a, b in zip(ours, plain, strict=True)])
    return f"{mean:+.2f} ± {error:.2f}{' *' if abs(mean) > 2 * error else ''}"


def format_mean(values: Sequence[float]) -> str:
    """Return the mean with its standard error.

    Example:
        >>> format_mean([1.0, 2.0, 3.0])
        '2.00 ± 0.58'
    """
    return "{:.2f} ± {:.2f}".format(*mean_and_error(values))


def collect_scores(
    results: Mapping[ResultKey, Measurements], benchmark: BenchmarkTask, key: tuple[str, str], seeds: int
) -> list[float]:
    """Return the primary score of a candidate for each seed, in the unit of the tables."""
    variant, cut = key
    return [benchmark.unit * results[benchmark.name, variant, seed][cut][benchmark.metric] for seed in range(seeds)]


def format_pairings(
    results: Mapping[ResultKey, Measurements], benchmark: BenchmarkTask, pairings: Iterable[Pairing], seeds: int
) -> list[str]:
    """Return one row of Markdown for each comparison on a task.

    Raises:
        KeyError: A comparison names a candidate that was not measured.
    """
    is_maximized = OBJECTIVES.get(benchmark.metric).direction == "maximize"
    rows = []
    for pairing in pairings:
        ours, plain = (collect_scores(results, benchmark, key, seeds) for key in (pairing.ours, pairing.plain))
        ratios = [format_cost_ratio(results, benchmark, pairing, cost, seeds) for cost in pairing.costs]
        cells = (
            benchmark.name,
            benchmark.metric,
            pairing.title,
            format_mean(ours),
            format_mean(plain),
            format_gain(ours, plain, is_maximized),
            *ratios,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def format_cost_ratio(
    results: Mapping[ResultKey, Measurements], benchmark: BenchmarkTask, pairing: Pairing, cost: str, seeds: int
) -> str:
    """Return the mean ratio of a cost, ours to plain."""
    ratios = [
        results[benchmark.name, pairing.ours[0], seed][pairing.ours[1]][cost]
        / results[benchmark.name, pairing.plain[0], seed][pairing.plain[1]][cost]
        for seed in range(seeds)
    ]
    return f"{mean_and_error(ratios)[0]:.2f}"


def format_header(columns: Sequence[str]) -> list[str]:
    """Return the two header lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def wrap_paragraph(text: str) -> str:
    """Return a paragraph of Markdown with lines of at most 118 characters."""
    return textwrap.fill(" ".join(text.split()), 118)
