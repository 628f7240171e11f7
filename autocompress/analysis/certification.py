"""Certified losses: what the stored examples prove about the loss of a candidate against the teacher.

A candidate is certified for a loss if the one-sided upper confidence bound of its paired loss stays within it. The
default selection pools both validation splits. The guaranteed selection orders candidates on search_val and tests them
in that order on select_val, so that no wrong one is certified at all, up to the error probability.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.analysis.paired import (
    betting_p_value,
    bootstrap_p_value,
    find_upper_bound,
    mean_p_value,
    p_value_of_counts,
)
from autocompress.analysis.pareto import pareto_front, primary_objectives, sort_by_cost
from autocompress.analysis.significance import Z, wilson_interval
from autocompress.core.example_scores import ExampleScores, Kind
from autocompress.core.formatting import format_difference, is_finite, is_measurable, is_share, label_column
from autocompress.core.run_info import ObjectiveSpec, RunInfo

VALIDATION = ("search_val", "select_val")
#: Name of the out-of-fold examples of cross-fitting, which replace the validation splits where they are stored.
FOLDS = "folds"
#: Suffix of the score columns of each split.
SUFFIXES: Mapping[str, str] = {"search_val": "_search", "select_val": "", "test": "_test", FOLDS: "_folds"}
#: Confidence of the two-sided intervals on page and command line.
INTERVAL_CONFIDENCE = 0.95
# Rounding: 0.98 - 0.97 is more than 0.01 in floating point.
_SLACK = 1e-9
# Share of the allowed loss by which certified losses differ by chance.
BOUND_TIE = 0.1
# More examples than any data set has.
_MOST_EXAMPLES = 10**9
# Any constant: the order of bets must not depend on the losses.
_SEED = 60_251
_METHODS: Mapping[tuple[Kind, bool], str] = {
    ("bits", False): "exact paired test",
    ("bits", True): "exact paired test",
    ("shares", False): "paired t test",
    ("shares", True): "paired betting test",
    ("replicates", False): "paired bootstrap",
    ("replicates", True): "paired bootstrap",
}


@dataclass(frozen=True)
class PairedLoss:
    """Loss of a candidate against the teacher on the same examples; a positive loss is worse.

    Attributes:
        kind: Kind of the stored scores, which decides the test.
        observed: Loss on all examples.
        examples: Number of independent examples, or of groups of them.
        losses: Loss of each example ``[N]``, or of each bootstrap draw ``[B]`` where ``kind`` is ``replicates``.
        splits: Splits of the examples.
    """

    kind: Kind
    observed: float
    examples: int
    losses: NDArray[np.float64]
    splits: tuple[str, ...] = VALIDATION

    def p_value(self, margin: float, confidence: float, is_guaranteed: bool = False) -> float:
        """Return the p-value of a loss of at least ``margin``.

        Args:
            margin: Loss of the hypothesis.
            confidence: Confidence of the test.
            is_guaranteed: Whether it must hold at any number of examples; bootstrap replicates have no such test.
        """
        if self.kind == "bits":
            worse, better = self._count_differences()
            return p_value_of_counts(worse, better, self.examples, margin) if margin < 1 else 0.0
        if self.kind == "replicates":
            return bootstrap_p_value(self.losses, margin)
        if not is_guaranteed:
            return mean_p_value(self.losses, margin)
        order = np.random.default_rng(_SEED).permutation(len(self.losses))
        return betting_p_value(self.losses[order], margin, 1 - confidence)

    def upper_bound(self, confidence: float, is_guaranteed: bool = False) -> float:
        """Return the one-sided upper confidence bound of the loss."""
        if self.kind == "replicates":
            # The smallest margin whose p-value is at most the level, without bisection.
            rank = math.ceil((len(self.losses) + 1) * confidence)
            return float(np.sort(self.losses)[min(rank, len(self.losses)) - 1])
        level = 1 - confidence
        return find_upper_bound(
            lambda margin: self.p_value(margin, confidence, is_guaranteed), level, self.observed, 1.0
        )

    def interval(self, confidence: float = INTERVAL_CONFIDENCE) -> tuple[float, float]:
        """Return the two-sided confidence interval of the loss."""
        one_sided = (1 + confidence) / 2
        gain = replace(self, observed=-self.observed, losses=-self.losses)
        return -gain.upper_bound(one_sided), self.upper_bound(one_sided)

    def count_needed(self, margin: float, confidence: float) -> int | None:
        """Return about how many examples would certify ``margin`` at the observed rates; None if no number would.

        Example:
            >>> PairedLoss("bits", 0.0, 216, np.zeros(216)).count_needed(0.005, 0.9)
            460
        """
        if self.observed >= margin - _SLACK:
            return None
        if self.kind != "bits":
            deviation = ExampleScores(self.kind, self.examples, self.losses).deviation
            spread = deviation * NormalDist().inv_cdf(confidence)
            return max(math.ceil((spread / (margin - self.observed)) ** 2), 2)
        shares = [count / self.examples for count in self._count_differences()]

        def is_enough(examples: int) -> bool:
            worse, better = (round(share * examples) for share in shares)
            return p_value_of_counts(worse, better, examples, margin) <= 1 - confidence

        low, high = 1, 2
        while not is_enough(high) and high < _MOST_EXAMPLES:
            low, high = high, high * 2
        while high - low > max(1, high // 1000):
            middle = (low + high) // 2
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        return high

    def _count_differences(self) -> tuple[int, int]:
        return int((self.losses > 0).sum()), int((self.losses < 0).sum())


def read_loss(row: Mapping[str, Any], info: RunInfo, splits: Sequence[str] = VALIDATION) -> PairedLoss | None:
    """Return the loss of a candidate against the teacher on some splits together; None without stored examples.

    The out-of-fold examples of a finalist replace both validation splits.

    Args:
        row: Candidate with the columns ``details`` and the first score.
        info: Description of the run, with the teacher's examples.
        splits: Names of the splits.
    """
    details = row.get("details")
    stored = details.get("examples") if isinstance(details, Mapping) else None
    if not isinstance(stored, Mapping):
        return None
    if tuple(splits) == VALIDATION and stored.get(FOLDS) and info.teacher.examples.get(FOLDS):
        splits = (FOLDS,)
    score = primary_objectives(info.objectives)[1]
    parts = []
    for split in splits:
        own, teacher = _unpack(stored.get(split)), _unpack(info.teacher.examples.get(split))
        own_score, goal = row.get(f"{score.name}{SUFFIXES[split]}"), info.teacher.score(score.name, split)
        if own is None or teacher is None or not is_finite(own_score) or not is_finite(goal):
            return None
        part = _pair_scores(own, teacher, (goal - own_score) * _sign(score), _sign(score))
        if part is None:
            return None
        parts.append(part)
    return replace(_pool_losses(parts), splits=tuple(splits))


@lru_cache(maxsize=64)
def _unpack_text(text: str) -> ExampleScores | None:
    return ExampleScores.unpack(text)


def _unpack(text: object) -> ExampleScores | None:
    # The teacher's texts are read for every candidate.
    return _unpack_text(text) if isinstance(text, str) else None


def _sign(score: ObjectiveSpec) -> float:
    return 1.0 if score.is_maximized else -1.0


def _pair_scores(own: ExampleScores, teacher: ExampleScores, observed: float, sign: float) -> PairedLoss | None:
    if own.examples != teacher.examples or own.values.shape != teacher.values.shape:
        return None
    if "replicates" in (own.kind, teacher.kind) and own.kind != teacher.kind:
        return None
    kind: Kind = own.kind if own.kind == teacher.kind else "shares"
    losses = (teacher.values - own.values) * sign
    # A mean over stored examples equals the difference of the scores, up to rounding.
    return PairedLoss(kind, observed if kind == "replicates" else float(losses.mean()), own.examples, losses)


def _pool_losses(parts: Sequence[PairedLoss]) -> PairedLoss:
    if len(parts) == 1:
        return parts[0]
    total = sum(part.examples for part in parts)
    observed = math.fsum(part.observed * part.examples for part in parts) / total
    kinds = {part.kind for part in parts}
    if "replicates" not in kinds:
        losses = np.concatenate([part.losses for part in parts])
        return PairedLoss("bits" if kinds == {"bits"} else "shares", float(losses.mean()), total, losses)
    draws = min(len(part.losses) for part in parts if part.kind == "replicates")
    # Draws of different splits are independent, so any pairing of them will do.
    replicates = [_draw_means(part, draws) * part.examples / total for part in parts]
    return PairedLoss("replicates", observed, total, np.sum(replicates, axis=0))


def _draw_means(part: PairedLoss, draws: int) -> NDArray[np.float64]:
    """Return bootstrap replicates of a loss, ``[B]``."""
    if part.kind == "replicates":
        return part.losses[:draws]
    generator = np.random.default_rng(_SEED)
    size = len(part.losses)
    return np.array([part.losses[generator.integers(0, size, size)].mean() for _ in range(draws)])


def smallest_certifiable_loss(examples: int, confidence: float) -> float:
    """Return the upper bound of a loss that was never observed in so many examples: ``1 - (1 - confidence)^(1/n)``.

    Example:
        >>> round(smallest_certifiable_loss(216, 0.9), 4)
        0.0106
    """
    return 1 - math.exp(math.log(1 - confidence) / examples)


def count_needed_without_loss(margin: float, confidence: float) -> int:
    """Return the fewest examples without any difference that certify ``margin``.

    Example:
        >>> count_needed_without_loss(0.005, 0.9)
        460
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - margin) - _SLACK)


# A choice by fewer examples is mostly chance.
FEW_EXAMPLES = 30


def list_promise_notices(
    score: ObjectiveSpec, examples: int, max_drop: float, confidence: float | None, unit: str = "examples"
) -> tuple[str, ...]:
    """Return what the validation examples of a search cannot prove, whatever its candidates are.

    Args:
        score: First score of the objectives.
        examples: Number of examples on both validation splits, or of groups of them.
        max_drop: Allowed loss.
        confidence: Confidence of the certificate; None if the observed loss counts.
        unit: Plural of what is counted: ``examples``, or ``groups``.

    Example:
        >>> list_promise_notices(ObjectiveSpec("accuracy", "maximize"), 432, 0.005, 0.9)[0]
        'pick.max_drop: a loss of at most 0.5 points cannot be certified at 90% confidence on 432 validation examples;
        the smallest certifiable loss is 0.53 points, and at least 460 examples are needed for 0.5 points'
    """
    notices = []
    if examples < FEW_EXAMPLES:
        notices.append(
            f"candidates are compared on {examples} validation {unit}; with fewer than {FEW_EXAMPLES}, the "
            "recommendation is mostly chance"
        )
    # The loss of a score that is no share has no largest value, so nothing is known before the search.
    if confidence is None or not is_share(score):
        return tuple(notices)
    allowed = f"pick.max_drop: a loss of at most {format_difference(max_drop, score)}"
    if max_drop == 0:
        notices.append(f"{allowed} cannot be certified by any number of {unit}; allow a loss above 0")
    elif max_drop < (smallest := smallest_certifiable_loss(examples, confidence)):
        notices.append(
            f"{allowed} cannot be certified at {confidence:.0%} confidence on {examples:,} validation {unit}; the "
            f"smallest certifiable loss is {100 * smallest:.2f} points, and at least "
            f"{count_needed_without_loss(max_drop, confidence):,} {unit} are needed for "
            f"{format_difference(max_drop, score)}"
        )
    return tuple(notices)


@dataclass(frozen=True)
class Certificate:
    """What the validation examples prove about the loss of a candidate.

    Attributes:
        promised: Loss that the candidate was selected for; None if it was selected otherwise.
        certified: One-sided upper confidence bound of the loss.
        observed: Loss on the examples.
        confidence: Confidence of the bound.
        examples: Number of examples, or of groups of them.
        splits: Splits of the examples.
        method: Name of the test.
        needed: Number of examples that would certify the promised loss at the observed rates; None if no number would.
    """

    promised: float | None
    certified: float
    observed: float
    confidence: float
    examples: int
    splits: tuple[str, ...]
    method: str
    needed: int | None = None

    @property
    def is_promise_certified(self) -> bool:
        """Whether the promised loss is certified."""
        return self.promised is not None and self.certified <= self.promised + _SLACK

    def describe(self, score: ObjectiveSpec) -> str:
        """Return promise, certified loss, confidence and numbers of examples in sentences.

        Example:
            >>> certificate = Certificate(0.005, 0.0106, 0.0, 0.9, 216, ("select_val",), "exact paired test", 460)
            >>> certificate.describe(ObjectiveSpec("accuracy", "maximize"))
            'Certified: at most 1.1 points of accuracy lost, at 90% confidence on 216 select_val examples (observed: 0.0
            points; exact paired test). Not certified: at most 0.5 points. About 460 examples would be needed.'
        """
        name = label_column(score.name)
        splits = _describe_splits(self.splits)
        text = (
            f"Certified: at most {format_difference(max(self.certified, 0.0), score)} of {name} lost, at "
            f"{self.confidence:.0%} confidence on {self.examples:,} {splits} examples (observed: "
            f"{describe_loss(self.observed, score)}; {self.method})."
        )
        if self.promised is None:
            return text
        promised = format_difference(self.promised, score)
        if self.is_promise_certified:
            fewer = "" if self.needed is None else f"; about {self.needed:,} examples would do"
            return f"Promised: at most {promised} lost. {text.removesuffix('.')}{fewer}."
        if self.needed is None:
            return f"{text} Not certified: at most {promised}. No number of examples would certify it at this loss."
        return f"{text} Not certified: at most {promised}. About {self.needed:,} examples would be needed."


def _describe_splits(splits: Sequence[str]) -> str:
    return "out-of-fold" if tuple(splits) == (FOLDS,) else " and ".join(splits)


def describe_loss(loss: float, score: ObjectiveSpec) -> str:
    """Return a loss in words; a negative one is a gain.

    Example:
        >>> describe_loss(-0.012, ObjectiveSpec("accuracy", "maximize"))
        'a gain of 1.2 points'
    """
    size = format_difference(loss, score)
    return f"a gain of {size}" if loss < 0 and size != format_difference(0.0, score) else size


def certify_loss(
    loss: PairedLoss,
    promised: float | None,
    confidence: float,
    splits: Sequence[str] = (),
    is_guaranteed: bool = False,
) -> Certificate:
    """Return the certificate of a loss.

    Args:
        loss: The paired loss.
        promised: Loss that the candidate was selected for; None if it was selected otherwise.
        confidence: Confidence of the bound.
        splits: Splits to name instead of those of the loss.
        is_guaranteed: Whether the bound must hold at any number of examples.
    """
    needed = None if promised is None else loss.count_needed(promised, confidence)
    return Certificate(
        promised,
        loss.upper_bound(confidence, is_guaranteed),
        loss.observed,
        confidence,
        loss.examples,
        tuple(splits) or loss.splits,
        _METHODS[loss.kind, is_guaranteed],
        needed,
    )


def select_certified(
    rows: pd.DataFrame, info: RunInfo, max_drop: float, confidence: float
) -> tuple[Mapping[str, Any], PairedLoss] | None:
    """Return the cheapest candidate whose upper bound is within ``max_drop``.

    Without one, it is the cheapest of those with the smallest bound, to a tenth of ``max_drop``: a difference that
    small is chance, and may cost many times the operations.

    Args:
        rows: Candidates that may be selected.
        info: Description of the run.
        max_drop: Allowed loss.
        confidence: Confidence of the bounds.

    Returns:
        The row and its loss; None if no row has stored examples.
    """
    ordered = sort_by_cost(rows, info.objectives)
    losses = _read_losses(ordered, info)
    for position, loss in losses:
        if loss.observed <= max_drop and loss.p_value(max_drop, confidence) <= 1 - confidence:
            return _select_row(ordered, position), loss
    tie = max_drop * BOUND_TIE
    bounds: dict[int, tuple[float, PairedLoss]] = {}
    smallest = math.inf
    # The bound is never below the observed loss, so later rows cannot be better than the best bound.
    for position, loss in sorted(losses, key=lambda pair: pair[1].observed):
        if loss.observed >= smallest + tie:
            break
        bounds[position] = loss.upper_bound(confidence), loss
        smallest = min(smallest, bounds[position][0])
    near = [position for position, (bound, _) in bounds.items() if bound <= smallest + tie + _SLACK]
    # The rows are in the order of their costs.
    return (_select_row(ordered, min(near)), bounds[min(near)][1]) if near else None


def list_losses(rows: pd.DataFrame, info: RunInfo) -> list[PairedLoss]:
    """Return the losses of the candidates with stored examples, the cheapest first.

    After cross-fitting, these are the finalists alone: out-of-fold examples certify more than the validation splits,
    and losses on different examples are not comparable.
    """
    return [loss for _, loss in _read_losses(sort_by_cost(rows, info.objectives), info)]


def _read_losses(ordered: pd.DataFrame, info: RunInfo) -> list[tuple[int, PairedLoss]]:
    """Return the losses of :func:`list_losses` with the positions of their candidates."""
    score = primary_objectives(info.objectives)[1]
    needed = ["details", *(f"{score.name}{suffix}" for suffix in SUFFIXES.values())]
    # A table has a hundred columns more, and thousands of rows.
    rows = list_rows(ordered[[name for name in needed if name in ordered]])
    losses = [(position, loss) for position, row in enumerate(rows) if (loss := read_loss(row, info)) is not None]
    finalists = [pair for pair in losses if pair[1].splits == (FOLDS,)]
    return finalists or losses


def _select_row(table: pd.DataFrame, position: int) -> dict[str, Any]:
    return list_rows(table.iloc[[position]])[0]


def estimate_interval(row: Mapping[str, Any], split: str = "test") -> tuple[float, float] | None:
    """Return the 95% interval of a candidate's first score on one split; None if its examples are not stored.

    It is Wilson's interval for scores of 0 or 1, the normal one for other means, and that of the bootstrap otherwise.
    """
    details = row.get("details")
    stored = details.get("examples") if isinstance(details, Mapping) else None
    scores = _unpack(stored.get(split)) if isinstance(stored, Mapping) else None
    if scores is None:
        return None
    if scores.kind == "bits":
        return wilson_interval(float(scores.values.mean()), scores.examples)
    if scores.kind == "replicates":
        low, high = np.percentile(scores.values, (2.5, 97.5))
        return float(low), float(high)
    half = Z * float(scores.values.std(ddof=1)) / math.sqrt(scores.examples) if scores.examples > 1 else math.inf
    centre = float(scores.values.mean())
    return max(0.0, centre - half), min(1.0, centre + half)


def describe_test_loss(row: Mapping[str, Any], info: RunInfo) -> str:
    """Return the loss against the teacher on the test split, with its interval where examples are stored.

    For example ``loses 0.8 points of accuracy on test [-0.1, 1.9]``; empty if the test split was not read.
    """
    score = primary_objectives(info.objectives)[1]
    own, goal = row.get(f"{score.name}{SUFFIXES['test']}"), info.teacher.score(score.name, "test")
    if not (is_finite(own) and is_finite(goal)):
        return ""
    loss = (goal - own) * _sign(score)
    size, name = format_difference(loss, score), label_column(score.name)
    verb = f"{'loses' if loss > 0 else 'gains'} {size} of"
    if not is_measurable(loss, goal, score):
        verb = "loses no" if is_share(score) else "has no measurable change of"
    paired = read_loss(row, info, ["test"])
    if paired is None:
        return f"{verb} {name} on test"
    low, high = paired.interval()
    ends = (-high, -low) if verb.startswith("gains") else (low, high)
    return f"{verb} {name} on test [{', '.join(_format_end(end, score) for end in ends)}]"


def _format_end(loss: float, score: ObjectiveSpec) -> str:
    """Return an end of an interval: points without the word, or a value with its sign."""
    if is_share(score):
        return f"{100 * loss:.1f}".replace("-0.0", "0.0")
    return f"{'-' if loss < 0 else ''}{format_difference(loss, score)}"


@dataclass(frozen=True)
class GuaranteedSelection:
    """Result of fixed-sequence testing along the front.

    Attributes:
        row: The cheapest certified candidate; None if the first test failed.
        loss: Loss on select_val of that candidate, or of the first one of the sequence.
        first: Id of the first candidate of the sequence.
        tested: Number of tests.
    """

    row: Mapping[str, Any] | None
    loss: PairedLoss
    first: str
    tested: int


def select_guaranteed(
    rows: pd.DataFrame, info: RunInfo, max_drop: float, confidence: float
) -> GuaranteedSelection | None:
    """Return the cheapest candidate certified by fixed-sequence testing.

    The front on search_val is ordered from the best score to the cheapest candidate. Each is tested on select_val at
    the full level until the first test fails; all before it are certified. The probability that any of them loses more
    than ``max_drop`` is at most ``1 - confidence`` (Pareto Testing, Laufer-Goldshtein et al. 2023, arXiv:2210.07913;
    Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052).

    Args:
        rows: Candidates that may be selected.
        info: Description of the run.
        max_drop: Allowed loss.
        confidence: One minus the error probability of all tests together.

    Returns:
        The selection; None if no row has stored examples.
    """
    cost, score = primary_objectives(info.objectives)
    # Only search_val may decide the order: the tests on select_val are valid because it does not depend on them.
    searched = replace(score, name=f"{score.name}{SUFFIXES['search_val']}")
    if searched.name not in rows:
        return None
    # The front is sorted by cost, so the reversed order begins with the best score.
    sequence = list_rows(pareto_front(rows, [searched, cost]).iloc[::-1])
    certified: tuple[Mapping[str, Any], PairedLoss] | None = None
    first: tuple[Mapping[str, Any], PairedLoss] | None = None
    tested = 0
    for candidate in sequence:
        measured = read_loss(candidate, info, ["select_val"])
        if measured is None:
            continue
        first = first or (candidate, measured)
        tested += 1
        if measured.p_value(max_drop, confidence, is_guaranteed=True) > 1 - confidence:
            break
        certified = (candidate, measured)
    if first is None:
        return None
    chosen, loss = certified or first
    return GuaranteedSelection(chosen if certified else None, loss, str(first[0]["id"]), tested)


def list_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain Python values."""
    columns = {str(name): table[name].tolist() for name in table.columns}
    return [{name: values[index] for name, values in columns.items()} for index in range(len(table))]
