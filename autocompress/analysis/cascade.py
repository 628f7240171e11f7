"""Confidence cascades: a small model answers where it is confident, and a larger one answers the other examples.

Pure functions on arrays. The confidence is a probability of the small model, so the same rule serves the choice of the
threshold on a split and the prediction at run time.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from autocompress.core.formatting import format_count, label_column
from autocompress.core.untrusted import read_regular_file
from autocompress.errors import ArtifactError, UsageError

Array = NDArray[np.float64]
#: File in the run folder.
CASCADE = "cascade.json"
# Far above the size of the pairs of a dozen candidates.
LARGEST_FILE = 2**24
#: Kinds of heads whose outputs hold a confidence.
CONFIDENT_KINDS = ("classes", "levels", "binary", "multilabel")
# Shares of the examples that the larger model answers. With fewer or more, the cascade is one of its models.
SHARES = tuple(round(0.05 * step, 2) for step in range(1, 20))


def compute_confidence(outputs: Mapping[str, NDArray[np.floating]], kinds: Mapping[str, str]) -> Array:
    """Return the confidence of a model in each example, ``[N]``: the smallest over its heads.

    Of classes it is the largest probability (Hendrycks and Gimpel 2017, arXiv:1610.02136); of labels with a
    probability each, that of the least certain one.

    Args:
        outputs: Head to logits ``[N, C]``.
        kinds: Head to its kind.

    Raises:
        UsageError: A head has no probability of its prediction.

    Example:
        >>> logits = np.log(np.array([[0.75, 0.25], [0.5, 0.5]]))
        >>> compute_confidence({"label": logits}, {"label": "classes"}).round(6).tolist()
        [0.75, 0.5]
    """
    by_head = []
    for head, logits in outputs.items():
        kind = kinds[head]
        if kind not in CONFIDENT_KINDS:
            raise UsageError(f"the head '{head}' of the kind {kind} has no confidence: a cascade needs classes")
        values = np.asarray(logits, np.float64).reshape(len(logits), -1)
        if kind in ("binary", "multilabel"):
            # max(p, 1 - p) of a sigmoid is the sigmoid of |z|.
            by_head.append((0.5 * (1 + np.tanh(0.5 * np.abs(values)))).min(1))
        else:
            # The largest logit is 0 after the shift, so its exponential is 1.
            by_head.append(1 / np.exp(values - values.max(1, keepdims=True)).sum(1))
    return np.asarray(np.min(by_head, axis=0), np.float64)


@dataclass(frozen=True)
class CascadePoint:
    """A cascade of two models on one split.

    Attributes:
        small: Id of the model that sees every example.
        large: Id of the model that answers the examples of low confidence.
        threshold: Confidence below which the large model answers.
        share: Share of the examples that the large model answers.
        cost: Expected cost of an example, in the unit of the models' cost.
        score: Score of the cascade.
    """

    small: str
    large: str
    threshold: float
    share: float
    cost: float
    score: float

    @property
    def name(self) -> str:
        """Both ids."""
        return f"{self.small}+{self.large}"


@dataclass(frozen=True)
class SingleModel:
    """One model in the comparison: its id, its cost, and its score on select_val."""

    id: str
    cost: float
    score: float


@dataclass(frozen=True)
class CascadeTest:
    """The recommended cascade on the test split, beside the best single model of equal expected cost.

    Attributes:
        score: Score of the cascade.
        single_score: Score of the single model.
        difference: Score of the cascade minus that of the single model.
        standard_error: Standard error of the difference, paired by examples.
        share: Share of the examples that the larger model answered.
        cost: Mean cost of an example.
    """

    score: float
    single_score: float
    difference: float
    standard_error: float
    share: float
    cost: float


@dataclass(frozen=True)
class CascadeSearch:
    """The content of ``cascade.json`` in a run folder.

    Attributes:
        run: Name of the run.
        metric: Name of the score.
        direction: Whether larger or smaller scores are better.
        cost_name: Name of the cost.
        points: Cascades that neither a candidate nor another cascade dominates, the cheapest first. They were chosen on
            select_val.
        recommended: The cascade that gains most over the best candidate of equal cost; None if none gains.
        single: The candidate of equal cost; None without a recommendation.
        test: The recommended cascade on test; None without a recommendation.
        format: Version of this layout.
    """

    run: str
    metric: str
    direction: Literal["maximize", "minimize"]
    cost_name: str
    points: tuple[CascadePoint, ...]
    recommended: CascadePoint | None = None
    single: SingleModel | None = None
    test: CascadeTest | None = None
    format: Literal[1] = 1

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, run: Path) -> "CascadeSearch | None":
        """Return the cascades of a run folder; None if there is no file.

        Raises:
            ArtifactError: The file is damaged.
        """
        path = run / CASCADE
        try:
            return TypeAdapter(cls).validate_json(read_regular_file(path, LARGEST_FILE))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            raise ArtifactError(
                f"{path} cannot be read ({reason}); write it again: autocompress cascade RUN"
            ) from error


@dataclass(frozen=True)
class ScoredModel:
    """A model with its cost and its outputs on a split.

    Attributes:
        id: Id of the model.
        cost: Cost of an example.
        score: Score on the split.
        outputs: Head to logits ``[N, ...]``.
        confidence: Confidence in each example, ``[N]``.
    """

    id: str
    cost: float
    score: float
    outputs: Mapping[str, NDArray[np.floating]]
    confidence: Array


Score = Callable[[Mapping[str, NDArray[np.floating]]], float]


def combine_outputs(
    small: ScoredModel, large: ScoredModel, threshold: float
) -> tuple[dict[str, NDArray[np.floating]], float]:
    """Return the outputs of a cascade, and the share of the examples that the large model answers."""
    is_unsure = small.confidence < threshold
    outputs = {}
    for head, values in small.outputs.items():
        mask = is_unsure.reshape(-1, *[1] * (values.ndim - 1))
        outputs[head] = np.where(mask, large.outputs[head], values)
    return outputs, float(is_unsure.mean())


def list_cascades(models: Sequence[ScoredModel], score: Score, shares: Sequence[float] = SHARES) -> list[CascadePoint]:
    """Return the cascades of every pair of models at several thresholds.

    Args:
        models: Models with outputs on the same split.
        score: Function of outputs that returns the score.
        shares: Shares of the examples that the larger model answers; quantiles of the confidence are the thresholds.
    """
    points = []
    ordered = sorted(models, key=lambda model: model.cost)
    for small, large in combinations(ordered, 2):
        # A pair of equal costs has no small model.
        if large.cost == small.cost:
            continue
        # Equal confidences, such as 1.0, make one threshold of several shares.
        for threshold in np.unique(np.quantile(small.confidence, shares)):
            outputs, share = combine_outputs(small, large, float(threshold))
            # The small model runs on every example.
            cost = small.cost + share * large.cost
            points.append(CascadePoint(small.id, large.id, float(threshold), share, cost, score(outputs)))
    return points


def find_equal_cost(models: Sequence[SingleModel], cost: float, is_maximized: bool) -> SingleModel | None:
    """Return the model with the best score whose cost is at most ``cost``, the cheapest of equals; None if none is."""
    sign = 1 if is_maximized else -1
    affordable = [model for model in models if model.cost <= cost]
    return max(affordable, key=lambda model: (sign * model.score, -model.cost), default=None)


def select_cascade(
    points: Sequence[CascadePoint], models: Sequence[SingleModel], is_maximized: bool, least: float | None = None
) -> tuple[CascadePoint, SingleModel] | None:
    """Return the cascade that gains most over the best model of equal cost, and that model; None if none gains.

    Only cascades below the cost of the most expensive model count. Ties go to the cheaper one.

    Args:
        points: Cascades.
        models: Every single model to compare with.
        is_maximized: Whether larger scores are better.
        least: Score that the cascade must reach, such as that of the recommended candidate, if any that gains reaches
            it; a large gain among models that are too bad to be used is of no use.
    """
    sign, limit = (1 if is_maximized else -1), max(model.cost for model in models)
    gains = []
    for point in points:
        single = find_equal_cost(models, point.cost, is_maximized)
        if point.cost < limit and single is not None and sign * (point.score - single.score) > 0:
            is_good = least is not None and sign * (point.score - least) >= 0
            gains.append((is_good, sign * (point.score - single.score), -point.cost, point, single))
    best = max(gains, key=lambda entry: entry[:3], default=None)
    return None if best is None else best[3:]


def find_front(
    points: Sequence[CascadePoint], models: Sequence[SingleModel], is_maximized: bool
) -> tuple[CascadePoint, ...]:
    """Return the cascades that no model and no other cascade dominates, the cheapest first."""
    sign = 1 if is_maximized else -1
    # Sorted by cost, a point is on the front if its score exceeds every earlier one.
    ranked: list[SingleModel | CascadePoint] = sorted(
        (*models, *points), key=lambda entry: (entry.cost, -sign * entry.score)
    )
    front: list[CascadePoint] = []
    best = -np.inf
    for entry in ranked:
        if sign * entry.score > best:
            best = sign * entry.score
            front += [entry] if isinstance(entry, CascadePoint) else []
    return tuple(front)


def describe_cascade(search: CascadeSearch) -> str:
    """Return the recommended cascade as sentences, with its figures on select_val and on test."""
    point, test, single = search.recommended, search.test, search.single
    if point is None or test is None or single is None:
        return "No cascade is better than the best single candidate of equal expected cost."
    cost, metric = label_column(search.cost_name), label_column(search.metric)
    errors = abs(test.difference) / test.standard_error if test.standard_error > 0 else 0.0
    return (
        f"Cascade {point.name}: {point.small} answers, and {point.large} where the confidence is below "
        f"{point.threshold:.4f}. On select_val, {point.large} answers {point.share:.0%} of the examples: {metric} "
        f"{point.score:.4f} for an expected {format_count(point.cost)} {cost}; the best single candidate of at most "
        f"that cost is {single.id} with {single.score:.4f} for {format_count(single.cost)}. On test: {test.score:.4f} "
        f"against {test.single_score:.4f}, a difference of {test.difference:+.4f} with a standard error of "
        f"{test.standard_error:.4f} ({errors:.1f} standard errors), for {format_count(test.cost)} {cost}."
    )
