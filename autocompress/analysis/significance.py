"""Statistical ties: tests of whether the scores of two candidates differ by more than chance.

If the correct examples of both candidates are stored, the test is paired: only examples where one is right and the
other is wrong count. All tests are at level 5% without correction for multiple testing: of twenty equally good
candidates, one is expected to look different.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import numeric_column, primary_objectives
from autocompress.core.formatting import is_finite
from autocompress.core.run_info import RunInfo

#: Scores that are shares of the examples, for which binomial intervals hold.
BINOMIAL = ("accuracy", "agreement")
#: The one of them whose correct examples are stored, so that its test is paired.
PAIRED = "accuracy"
LEVEL = 0.05
# 97.5% quantile of the standard normal distribution.
Z = 1.959964


@dataclass(frozen=True)
class Ties:
    """Candidates that are tied with one candidate.

    Attributes:
        method: Name of the test and its sample.
        p: Id to the p-value: the probability of such a difference, or a larger one, between equally good candidates.
    """

    method: str
    p: Mapping[str, float]

    @property
    def tied_ids(self) -> tuple[str, ...]:
        """Ids of the tied candidates, in the order of the table."""
        return tuple(name for name, value in self.p.items() if value > LEVEL)


def find_ties(rows: pd.DataFrame, row: Mapping[str, Any], info: RunInfo) -> Ties | None:
    """Return the candidates tied with ``row`` in the first score on select_val; None if no test applies.

    Args:
        rows: Candidates, usually the front; ``row`` itself is skipped.
        row: Candidate to compare with.
        info: Description of the run.
    """
    score = primary_objectives(info.objectives)[1].name
    # The score of one head is called like accuracy@language.
    base, _, head = score.partition("@")
    others = rows[rows["id"] != row["id"]]
    if base == PAIRED:
        own = unpack_correct(row.get("details"), head)
        rest = [unpack_correct(details, head) for details in others["details"]] if "details" in others else []
        if own is not None and rest and all(bits is not None and bits.shape == own.shape for bits in rest):
            values = [paired_p_value(own, bits) for bits in rest if bits is not None]
            return Ties(_describe_test(own), dict(zip(map(str, others["id"]), values, strict=True)))
    examples = info.splits.get("select_val")
    if base not in BINOMIAL or not is_finite(examples) or examples < 1:
        return None
    shares = numeric_column(others, score).tolist()
    p_values = {
        str(name): unpaired_p_value(float(row[score]), share, examples)
        for name, share in zip(others["id"], shares, strict=True)
    }
    return Ties(f"unpaired binomial test on {examples:,} select_val examples", p_values)


def unpack_correct(details: object, head: str = "") -> NDArray[np.bool_] | None:
    """Return the examples that a candidate classifies correctly, ``[N, heads]``; None if they are not stored.

    Args:
        details: Details of the candidate.
        head: Name of one head; all heads by default.

    Example:
        >>> unpack_correct({"right": {"label": "3:wA=="}}).ravel().tolist()
        [True, True, False]
    """
    packed = details.get("right") if isinstance(details, Mapping) else None
    if not isinstance(packed, Mapping) or not packed or (head and head not in packed):
        return None
    columns = []
    for text in [packed[head]] if head else packed.values():
        size, _, code = str(text).partition(":")
        # The count before the colon tells the padding of the last byte.
        bits = np.frombuffer(base64.b64decode(code), dtype=np.uint8)
        columns.append(np.unpackbits(bits, count=int(size)).astype(np.bool_))
    return np.column_stack(columns) if len({len(column) for column in columns}) == 1 else None


def paired_p_value(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the p-value of the difference between two candidates, given their correct examples ``[N, heads]``.

    With one head it is McNemar's exact test (1947), with several heads a z test on the mean difference per example.

    Example:
        >>> a, b = np.zeros((20, 1), dtype=bool), np.zeros((20, 1), dtype=bool)
        >>> b[:6] = True
        >>> paired_p_value(a, b)
        0.03125
    """
    if one.shape[1] == 1:
        better, worse = int((one & ~other).sum()), int((other & ~one).sum())
        return _binomial_p_value(min(better, worse), better + worse)
    change = one.mean(axis=1) - other.mean(axis=1)
    error = float(change.std(ddof=1)) / math.sqrt(len(change)) if len(change) > 1 else 0.0
    # No variance: the candidates differ by a constant, or not at all.
    if error == 0.0:
        return 1.0 if not change.any() else 0.0
    return math.erfc(abs(float(change.mean())) / error / math.sqrt(2))


def unpaired_p_value(one: float, other: float, examples: float) -> float:
    """Return the p-value of the difference between two shares, each measured on ``examples`` examples.

    Example:
        >>> round(unpaired_p_value(0.9, 0.85, 100), 3)
        0.284
    """
    spread = math.sqrt((one * (1 - one) + other * (1 - other)) / examples)
    # Both shares are 0 or 1.
    if spread == 0.0:
        return 1.0 if one == other else 0.0
    return math.erfc(abs(one - other) / spread / math.sqrt(2))


def _binomial_p_value(least: int, of: int) -> float:
    """Return the two-sided p-value of at most ``least`` successes in ``of`` tosses of a fair coin."""
    if of == 0:
        return 1.0
    term = total = 1
    # Binomial coefficients as integers are exact where floats would overflow.
    for count in range(least):
        term = term * (of - count) // (count + 1)
        total += term
    return min(1.0, float(2 * total / 2**of))


def _describe_test(right: NDArray[np.bool_]) -> str:
    examples, heads = right.shape
    test = "McNemar's exact test" if heads == 1 else f"a paired z test on the mean of {heads} heads"
    return f"{test} on the same {examples:,} select_val examples"


def wilson_interval(share: float, examples: float) -> tuple[float, float]:
    """Return the 95% confidence interval of a share measured on ``examples`` examples (Wilson 1927).

    Example:
        >>> low, high = wilson_interval(0.9, 100)
        >>> f"{low:.4f} {high:.4f}"
        '0.8256 0.9448'
    """
    weight = Z**2 / examples
    centre = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / examples + weight / (4 * examples)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def join_ids(ids: Sequence[str], most: int = 6) -> str:
    """Return ids as a text that names at most ``most`` of them.

    Example:
        >>> join_ids(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    rest = len(ids) - most
    return ", ".join(ids[:most]) + (f" and {rest} more" if rest > 0 else "")
