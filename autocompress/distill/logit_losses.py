"""More terms on logits: standardised, decoupled, and correlation-based distillation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.knobs import FloatRange, knob
from autocompress.core.registry import DISTILL
from autocompress.distill.base import Batch, Term
from autocompress.distill.kernels import TEMPERATURES, Softened, mean_over_heads, mixed, softened_kl

TINY = 1e-7


def standardized(logits: Tensor) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 in each row, ``[B, C] -> [B, C]``.

    Example:
        >>> standardized(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.0000,  1.0000]])
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True, correction=0) + TINY)


def decoupled_kl(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD), mean over the batch (Zhao et al. 2022, arXiv:2203.08679, equation 7).

    TCKD compares the probability of the target class against all others together, NCKD the others among themselves.

    Args:
        student: ``[B, C]``.
        teacher: ``[B, C]``.
        targets: ``[B]``.
        temperature: Above 0.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
    """
    others = ~F.one_hot(targets, student.shape[1]).bool()

    def binary_and_rest(logits: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits / temperature
        # The rest is taken out, not masked by a large number: logits may be larger than any such number.
        rest = scaled[others].view(len(scaled), -1)
        total = scaled.logsumexp(1)
        target = scaled.gather(1, targets[:, None]).squeeze(1)
        return torch.stack([target - total, rest.logsumexp(1) - total], dim=1), F.log_softmax(rest, dim=1)

    (binary_s, rest_s), (binary_t, rest_t) = binary_and_rest(student), binary_and_rest(teacher)
    target_class = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    non_target = F.kl_div(rest_s, rest_t, reduction="batchmean", log_target=True)
    return (alpha * target_class + beta * non_target) * temperature**2


def correlation_distance(left: Tensor, right: Tensor) -> Tensor:
    """Return one minus Pearson's correlation, mean over rows, ``[N, M], [N, M] -> []``."""
    left = left - left.mean(1, keepdim=True)
    right = right - right.mean(1, keepdim=True)
    return 1 - F.cosine_similarity(left, right, dim=1, eps=TINY).mean()


def correlation_loss(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """Return T^2 (beta inter + gamma intra) (Huang et al. 2022, arXiv:2205.10536, equation 10).

    The inter-class relation correlates the classes of each example, the intra-class one the examples of each class.

    Args:
        student: ``[B, C]``.
        teacher: ``[B, C]``.
        temperature: Above 0.
        beta: Weight of the inter-class relation.
        gamma: Weight of the intra-class relation.
    """
    ours, theirs = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    inter = correlation_distance(ours, theirs)
    intra = correlation_distance(ours.T, theirs.T)
    return (beta * inter + gamma * intra) * temperature**2


@dataclass(frozen=True)
class LogitStandardizedConfig(Softened):
    """Knobs of :class:`LogitStandardized`."""

    label = "distill.logit_standardized"

    temperature: float = knob(1.0, TEMPERATURES, "base temperature, in standard deviations")
    alpha: float = knob(0.9, FloatRange(0.0, 1.0), "weight of the teacher against the targets; at 1 no label is read")


class LogitStandardized(Term):
    """Softened targets on z-scored logits, so that only their shape is copied (Sun et al. 2024, arXiv:2403.01427)."""

    name = "logit_standardized"
    kind = "logit"
    config = LogitStandardizedConfig

    def loss(self, config: LogitStandardizedConfig, batch: Batch) -> Tensor:
        """Return (1 - alpha) CE + alpha T^2 KL on standardised logits, ``[]``; several heads are averaged."""
        soft = mean_over_heads(
            batch,
            lambda ours, theirs, head: softened_kl(standardized(ours), standardized(theirs), config.temperature),
        )
        return mixed(config.alpha, soft, batch.hard)


@dataclass(frozen=True)
class _Added(Softened):
    """Knobs of a term that is added to the cross-entropy."""

    hard_weight: float = knob(1.0, FloatRange(0.0, 1.0), "weight of the cross-entropy; at 0 no label is read")

    def with_hard(self, soft: Tensor, hard: Callable[[], Tensor]) -> Tensor:
        """Return the weighted cross-entropy plus the term."""
        return self.hard_weight * hard() + soft if self.hard_weight else soft


@dataclass(frozen=True)
class DecoupledConfig(_Added):
    """Knobs of :class:`Decoupled`."""

    label = "distill.dkd"

    temperature: float = knob(1.0, TEMPERATURES, "softens both outputs before they are compared")
    alpha: float = knob(1.0, FloatRange(0.0, 10.0), "weight of the target class against all others")
    beta: float = knob(0.5, FloatRange(0.0, 16.0), "weight of the other classes among themselves")


class Decoupled(Term):
    """Cross-entropy plus decoupled distillation (Zhao et al. 2022, arXiv:2203.08679)."""

    name = "dkd"
    kind = "logit"
    config = DecoupledConfig

    def loss(self, config: DecoupledConfig, batch: Batch) -> Tensor:
        """Return hard_weight CE + T^2 (alpha TCKD + beta NCKD), ``[]``; several heads are averaged.

        Where no label is read, the class that the teacher prefers stands for the target.
        """
        soft = mean_over_heads(
            batch,
            lambda ours, theirs, head: decoupled_kl(
                ours,
                theirs,
                batch.targets[head] if config.hard_weight else theirs.argmax(1),
                config.temperature,
                config.alpha,
                config.beta,
            ),
        )
        return config.with_hard(soft, batch.hard)


@dataclass(frozen=True)
class CorrelationConfig(_Added):
    """Knobs of :class:`Correlation`."""

    label = "distill.dist"

    beta: float = knob(1.0, FloatRange(0.0, 10.0), "weight of the relation between the classes of an example")
    gamma: float = knob(1.0, FloatRange(0.0, 10.0), "weight of the relation between the examples of a class")


class Correlation(Term):
    """Cross-entropy plus correlations between and within classes (DIST, Huang et al. 2022, arXiv:2205.10536)."""

    name = "dist"
    kind = "logit"
    config = CorrelationConfig

    def loss(self, config: CorrelationConfig, batch: Batch) -> Tensor:
        """Return hard_weight CE + T^2 (beta inter + gamma intra), ``[]``; several heads are averaged."""
        soft = mean_over_heads(
            batch,
            lambda ours, theirs, head: correlation_loss(ours, theirs, config.temperature, config.beta, config.gamma),
        )
        return config.with_hard(soft, batch.hard)


DISTILL.add(LogitStandardized.name, LogitStandardized())
DISTILL.add(Decoupled.name, Decoupled())
DISTILL.add(Correlation.name, Correlation())
