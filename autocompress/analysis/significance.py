"""Which candidates are statistically tied: what chance explains of the difference between two scores.

Where it is known which examples each candidate gets right, the test is paired: what both get right, or both wrong,
says nothing. All tests are at 5%, uncorrected: of twenty that are truly equal one is expected to look apart.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.pareto import axes, numbers
from autocompress.core.formatting import is_finite
from autocompress.core.run_info import RunInfo

#: Scores that are a share of the examples, so that a binomial interval holds for them.
BINOMIAL = ("accuracy", "agreement")
LEVEL = 0.05
Z = 1.959964


@dataclass(frozen=True)
class Ties:
    """Who is tied with one candidate.

    Attributes:
        method: The test that was used, in words.
        p: Id to the probability of such a difference, or a larger one, between two that are equally good.
    """

    method: str
    p: Mapping[str, float]

    @property
    def tied(self) -> tuple[str, ...]:
        """The ids that are tied with it, in the order of the table."""
        return tuple(name for name, value in self.p.items() if value > LEVEL)


def ties(rows: pd.DataFrame, row: Mapping[str, Any], info: RunInfo) -> Ties | None:
    """Return who among ``rows`` is tied with ``row`` in the first score on select_val; None if no test is there.

    Args:
        rows: Candidates, usually the front; ``row`` itself is left out.
        row: The candidate to compare with.
        info: Description of the run.
    """
    score = axes(info.objectives)[1].name
    base, _, head = score.partition("@")
    others = rows[rows["id"] != row["id"]]
    if base == "accuracy":
        own = right(row.get("details"), head)
        theirs = [right(details, head) for details in others["details"]] if "details" in others else []
        if own is not None and all(each is not None and each.shape == own.shape for each in theirs) and theirs:
            found = [paired(own, each) for each in theirs if each is not None]
            return Ties(_words(own), dict(zip(map(str, others["id"]), found, strict=True)))
    examples = info.splits.get("select_val")
    if base not in BINOMIAL or not is_finite(examples) or examples < 1:
        return None
    shares = numbers(others, score).tolist()
    values = {
        str(name): unpaired(float(row[score]), share, examples)
        for name, share in zip(others["id"], shares, strict=True)
    }
    return Ties(f"unpaired binomial test on {examples:,} select_val examples", values)


def right(details: object, head: str = "") -> NDArray[np.bool_] | None:
    """Return which examples a candidate gets right, ``[N, heads]``; None where that is not known.

    Args:
        details: Of the candidate.
        head: One head alone; all of them by default.

    Example:
        >>> right({"right": {"label": "3:wA=="}}).ravel().tolist()
        [True, True, False]
    """
    packed = details.get("right") if isinstance(details, Mapping) else None
    if not isinstance(packed, Mapping) or not packed or (head and head not in packed):
        return None
    columns = []
    for text in [packed[head]] if head else packed.values():
        size, _, code = str(text).partition(":")
        bits = np.frombuffer(base64.b64decode(code), dtype=np.uint8)
        columns.append(np.unpackbits(bits, count=int(size)).astype(np.bool_))
    return np.column_stack(columns) if len({len(each) for each in columns}) == 1 else None


def paired(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return how probable such a difference is between two equally good candidates, ``[N, heads]`` each.

    With one head McNemar's test (1947), exact; with several a z test on the examples' mean differences.

    Example:
        >>> a, b = np.zeros((20, 1), dtype=bool), np.zeros((20, 1), dtype=bool)
        >>> b[:6] = True
        >>> paired(a, b)
        0.03125
    """
    if one.shape[1] == 1:
        better, worse = int((one & ~other).sum()), int((other & ~one).sum())
        return _binomial(min(better, worse), better + worse)
    change = one.mean(axis=1) - other.mean(axis=1)
    error = float(change.std(ddof=1)) / math.sqrt(len(change)) if len(change) > 1 else 0.0
    if error == 0.0:
        return 1.0 if not change.any() else 0.0
    return math.erfc(abs(float(change.mean())) / error / math.sqrt(2))


def unpaired(one: float, other: float, examples: float) -> float:
    """Return how probable such a difference is between two shares on as many examples each.

    Example:
        >>> round(unpaired(0.9, 0.85, 100), 3)
        0.284
    """
    spread = math.sqrt((one * (1 - one) + other * (1 - other)) / examples)
    if spread == 0.0:
        return 1.0 if one == other else 0.0
    return math.erfc(abs(one - other) / spread / math.sqrt(2))


def _binomial(least: int, of: int) -> float:
    """Return the two-sided probability of so few among ``of`` tosses of a fair coin."""
    if of == 0:
        return 1.0
    term = total = 1
    for place in range(least):
        term = term * (of - place) // (place + 1)
        total += term
    return min(1.0, float(2 * total / 2**of))


def _words(right: NDArray[np.bool_]) -> str:
    examples, heads = right.shape
    test = "McNemar's exact test" if heads == 1 else f"a paired z test on the mean of {heads} heads"
    return f"{test} on the same {examples:,} select_val examples"


def interval(share: float, examples: float) -> tuple[float, float]:
    """Return the 95% interval of a share measured on so many examples (Wilson 1927).

    Example:
        >>> low, high = interval(0.9, 100)
        >>> f"{low:.4f} {high:.4f}"
        '0.8256 0.9448'
    """
    weight = Z**2 / examples
    centre = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / examples + weight / (4 * examples)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def named(ids: Sequence[str], most: int = 6) -> str:
    """Return ids as a list that does not grow.

    Example:
        >>> named(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    rest = len(ids) - most
    return ", ".join(ids[:most]) + (f" and {rest} more" if rest > 0 else "")
