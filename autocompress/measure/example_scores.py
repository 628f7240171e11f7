"""Scores of single examples, or bootstrap replicates of a score, for paired comparisons of two models.

A score that is a mean over examples is stored as these examples' scores. Any other score, and any score of examples
that belong together (the ratings of one user), is stored as bootstrap replicates. All models of a run are measured on
the same draws, so differences of replicates are paired.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.example_scores import ExampleScores
from autocompress.core.heads import IGNORED
from autocompress.measure import ranking_metrics
from autocompress.measure.box_metrics import OVERLAPS, resample_precision
from autocompress.measure.custom_scores import score_custom_examples
from autocompress.measure.heads import AT, get_objective, select_examples, select_head
from autocompress.measure.objectives import Subject
from autocompress.measure.value_metrics import squared_errors

DRAWS = 200
# A score without a formula for all draws at once is measured once for each draw, which takes longer.
FEW_DRAWS = 100
# A metric of the user's may take seconds for each draw.
CUSTOM_DRAWS = 25
# Scores of single examples of a larger split would make the run folder large; replicates have a constant size.
MAX_BITS = 20_000
MAX_SHARES = 5_000
# Number of weights in memory at a time.
_BLOCK = 4_000_000
# Arbitrary, but fixed: replicates of different models pair up.
_SEED = 41_077


def pack_examples(subject: Subject, name: str) -> str:
    """Return the scores of a split's examples, or bootstrap replicates of the score, as text.

    Args:
        subject: Outputs of a model on the split.
        name: Name of the score, such as ``accuracy`` or ``accuracy@language``.

    Raises:
        TrialError: The subject lacks the outputs or targets that the score needs.

    Example:
        >>> subject = Subject({"label": torch.eye(3)}, {"label": torch.tensor([0, 1, 1])})
        >>> pack_examples(subject, "accuracy")
        'bits:3:wA=='
    """
    base, at, head = name.partition(AT)
    own = select_head(subject, head) if at else subject
    if own.groups is None and base in BOUNDED_SCORES and _has_plain_heads(own):
        values = _score_examples(own, base)
        is_binary = bool(((values == 0) | (values == 1)).all())
        if len(values) <= (MAX_BITS if is_binary else MAX_SHARES):
            return ExampleScores("bits" if is_binary else "shares", len(values), values.numpy()).pack()
    return _resample_score(own, base).pack()


def _has_plain_heads(subject: Subject) -> bool:
    """Return whether every head has logits ``[N, C]`` and one class for each example, which is known."""
    return bool(subject.logits) and all(
        subject.head(head).kind in ("classes", "levels", "candidates")
        and logits.dim() == 2
        and head in subject.targets
        and subject.targets[head].shape == logits.shape[:1]
        and bool((subject.targets[head] != IGNORED).all())
        for head, logits in subject.logits.items()
    )


def _score_examples(subject: Subject, name: str) -> Tensor:
    """Return the score of each example, the mean over heads, ``[N]``."""
    return torch.stack([EXAMPLE_FUNCTIONS[name](subject, head) for head in subject.logits]).mean(0)


def _resample_score(subject: Subject, name: str) -> ExampleScores:
    """Return the bootstrap replicates of a score, over groups of examples where the subject has them."""
    (size,) = {len(values) for values in subject.logits.values()}
    groups = torch.arange(size) if subject.groups is None else subject.groups.unique(return_inverse=True)[1]
    units = int(groups.max()) + 1
    plain = _has_plain_heads(subject)
    replicates: list[Tensor] = []
    custom = score_custom_examples(name, subject)
    if custom is not None and len(custom) == size:
        replicates = [(weights @ custom) / weights.sum(1) for weights in _draw_weights(groups, units, DRAWS)]
    elif plain and name in EXAMPLE_FUNCTIONS:
        values = _score_examples(subject, name)
        replicates = [(weights @ values) / weights.sum(1) for weights in _draw_weights(groups, units, DRAWS)]
    elif name in OVERLAPS:
        replicates = [
            torch.stack([resample_precision(subject, head, name, weights) for head in subject.logits]).mean(0)
            for weights in _draw_weights(groups, units, DRAWS)
        ]
    elif plain and name in RESAMPLE_FUNCTIONS:
        score = RESAMPLE_FUNCTIONS[name]
        replicates = [
            torch.stack([score(subject, head, weights) for head in subject.logits]).mean(0)
            for weights in _draw_weights(groups, units, DRAWS)
        ]
    else:
        measure, rows = get_objective(name).measure, torch.arange(size)
        for weights in _draw_weights(groups, units, FEW_DRAWS if custom is None else CUSTOM_DRAWS):
            draws = (select_examples(subject, rows.repeat_interleave(counts.long())) for counts in weights)
            replicates.append(torch.tensor([measure(draw) for draw in draws], dtype=torch.float64))
    return ExampleScores("replicates", units, _as_array(torch.cat(replicates)))


def _as_array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.numpy()
    return array


def _draw_weights(groups: Tensor, units: int, draws: int) -> Iterator[Tensor]:
    """Yield how often each bootstrap draw contains each example, in blocks ``[b, N]`` of double precision.

    Args:
        groups: Number of the unit of each example, ``[N]``.
        units: Number of units.
        draws: Number of draws.
    """
    generator = np.random.default_rng([_SEED, units])
    block = max(1, _BLOCK // len(groups))
    for start in range(0, draws, block):
        counts = [
            np.bincount(generator.integers(0, units, units), minlength=units) for _ in range(min(block, draws - start))
        ]
        yield torch.from_numpy(np.stack(counts)).double()[:, groups]


def _score_hits(subject: Subject, head: str) -> Tensor:
    return (_predict(subject, head) == subject.targets[head]).double()


def _predict(subject: Subject, head: str) -> Tensor:
    """Return the predicted class of each example, ``[N]``, by the threshold of the head."""
    return subject.head(head).shift_rows(subject.logits[head]).argmax(1)


def _score_ndcg(subject: Subject, head: str) -> Tensor:
    gains = 1 / torch.arange(2, ranking_metrics.LIST_LENGTH + 2, dtype=torch.float64).log2()
    return ranking_metrics.gain_of_examples(subject.logits[head], subject.targets[head], gains)


def _score_list_hits(subject: Subject, head: str) -> Tensor:
    gains = torch.ones(ranking_metrics.LIST_LENGTH, dtype=torch.float64)
    return ranking_metrics.gain_of_examples(subject.logits[head], subject.targets[head], gains)


def _score_cross_entropy(subject: Subject, head: str) -> Tensor:
    return F.cross_entropy(subject.logits[head].double(), subject.targets[head], reduction="none")


def _resample_rmse(subject: Subject, head: str, weights: Tensor) -> Tensor:
    errors = squared_errors(subject, head)
    return ((weights @ errors) / weights.sum(1)).sqrt()


def _resample_f1_macro(subject: Subject, head: str, weights: Tensor) -> Tensor:
    logits, targets = subject.logits[head], subject.targets[head]
    predicted = F.one_hot(_predict(subject, head), logits.shape[1]).double()
    actual = F.one_hot(targets, logits.shape[1]).double()
    hits, sizes = weights @ (predicted * actual), weights @ (predicted + actual)
    # As in the plain score, a class that neither occurs nor is predicted is left out of the mean.
    return (2 * hits / sizes.clamp(min=1)).sum(1) / (sizes > 0).sum(1)


def _resample_balanced_accuracy(subject: Subject, head: str, weights: Tensor) -> Tensor:
    logits, targets = subject.logits[head], subject.targets[head]
    actual = F.one_hot(targets, logits.shape[1]).double()
    hits, sizes = weights @ (actual * (_predict(subject, head) == targets)[:, None]), weights @ actual
    # As in the plain score, a class that does not occur in a draw is left out of the mean.
    return (hits / sizes.clamp(min=1)).sum(1) / (sizes > 0).sum(1)


def _resample_auc(subject: Subject, head: str, weights: Tensor) -> Tensor:
    logits, targets = subject.logits[head].double(), subject.targets[head]
    if logits.shape[1] == 2:
        return _weighted_auc(logits[:, 1] - logits[:, 0], targets == 1, weights)
    shares = logits.softmax(1)
    areas = [_weighted_auc(shares[:, number], targets == number, weights) for number in targets.unique().tolist()]
    return torch.stack(areas).nanmean(0)


def _weighted_auc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted share of pairs in the right order, a tie as half a pair, for each row of weights."""
    levels, position = scores.unique(return_inverse=True)
    shape = (len(weights), len(levels))
    wins = torch.zeros(shape, dtype=torch.float64).index_add_(1, position, weights * positive)
    losses = torch.zeros(shape, dtype=torch.float64).index_add_(1, position, weights * ~positive)
    below = losses.cumsum(1) - losses / 2
    pairs = wins.sum(1) * losses.sum(1)
    return torch.where(pairs > 0, (wins * below).sum(1) / pairs, math.nan)


#: Score name to a function of a subject and a head: the score of each example, ``[N]``, whose mean is the score.
EXAMPLE_FUNCTIONS: dict[str, Callable[[Subject, str], Tensor]] = {
    "accuracy": _score_hits,
    "hit_rate_at_10": _score_list_hits,
    "ndcg_at_10": _score_ndcg,
    "log_loss": _score_cross_entropy,
    "loss": _score_cross_entropy,
}
#: Scores whose examples score between 0 and 1.
BOUNDED_SCORES = ("accuracy", "hit_rate_at_10", "ndcg_at_10")
#: Score name to a function of a subject, a head and weights ``[B, N]``: the score for each row of weights, ``[B]``.
RESAMPLE_FUNCTIONS: dict[str, Callable[[Subject, str, Tensor], Tensor]] = {
    "auc": _resample_auc,
    "balanced_accuracy": _resample_balanced_accuracy,
    "f1_macro": _resample_f1_macro,
    "rmse": _resample_rmse,
}
