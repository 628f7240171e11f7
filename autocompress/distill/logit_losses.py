"""More distillation terms on logits: standardized, decoupled, and correlation-based."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core.knobs import FloatRange, knob
from autocompress.core.registry import DISTILL
from autocompress.distill.base import Batch, Term
from autocompress.distill.kernels import TEMPERATURES, TemperatureSettings, mean_over_heads, mix_losses, soft_target_kl

# Keeps divisions by standard deviations and norms finite for constant logits.
TINY = 1e-7


def standardize_logits(logits: Tensor) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 in each row, ``[B, C] -> [B, C]``.

    Example:
        >>> standardize_logits(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.0000,  1.0000]])
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True, correction=0) + TINY)


def dkd_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD), mean over the batch (Zhao et al. 2022, arXiv:2203.08679, equation 7).

    TCKD compares the probability of the target class with that of all other classes together, NCKD the distributions
    over those other classes.

    Args:
        student: Logits of the student, ``[B, C]``.
        teacher: Logits of the teacher, ``[B, C]``.
        targets: Class indices, ``[B]``.
        temperature: Temperature T, above 0.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
    """
    others = ~F.one_hot(targets, student.shape[1]).bool()

    def split_log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits / temperature
        # Indexing instead of masking with a large negative number: logits may be larger than any such number.
        rest = scaled[others].view(len(scaled), -1)
        total = scaled.logsumexp(1)
        target = scaled.gather(1, targets[:, None]).squeeze(1)
        return torch.stack([target - total, rest.logsumexp(1) - total], dim=1), F.log_softmax(rest, dim=1)

    binary_s, rest_s = split_log_probabilities(student)
    binary_t, rest_t = split_log_probabilities(teacher)
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

    The inter-class relation is the correlation across the classes of each example, the intra-class relation that across
    the examples of each class.

    Args:
        student: Logits of the student, ``[B, C]``.
        teacher: Logits of the teacher, ``[B, C]``.
        temperature: Temperature T, above 0.
        beta: Weight of the inter-class relation.
        gamma: Weight of the intra-class relation.
    """
    ours, theirs = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    # Rows are examples and columns classes, so the transpose relates the examples of each class.
    inter = correlation_distance(ours, theirs)
    intra = correlation_distance(ours.T, theirs.T)
    # Correlations are bounded, so at a high temperature this factor exceeds any task loss.
    return (beta * inter + gamma * intra) * temperature**2


@dataclass(frozen=True)
class LogitStandardizedConfig(TemperatureSettings):
    """Hyperparameters of :class:`LogitStandardized`."""

    label = "distill.logit_standardized"

    temperature: float = knob(1.0, TEMPERATURES, "base temperature, in standard deviations of the logits")
    alpha: float = knob(0.9, FloatRange(0.0, 1.0), "weight of the teacher against the targets; at 1 no label is read")


class LogitStandardized(Term[LogitStandardizedConfig]):
    """Soft targets on z-scored logits, which transfer only their shape (Sun et al. 2024, arXiv:2403.01427)."""

    name = "logit_standardized"
    kind = "logit"
    config = LogitStandardizedConfig

    def loss(self, config: LogitStandardizedConfig, batch: Batch) -> Tensor:
        """Return (1 - alpha) CE + alpha T^2 KL on standardized logits, ``[]``, averaged over heads."""
        soft = mean_over_heads(
            batch,
            lambda ours, theirs, labels: soft_target_kl(
                standardize_logits(ours), standardize_logits(theirs), config.temperature
            ),
        )
        return mix_losses(config.alpha, soft, batch.hard_loss)


@dataclass(frozen=True)
class _AdditiveConfig(TemperatureSettings):
    """Hyperparameters of a term that is added to the cross-entropy."""

    hard_weight: float = knob(1.0, FloatRange(0.0, 1.0), "weight of the cross-entropy; at 0 no label is read")

    def add_hard_loss(self, soft: Tensor, hard: Callable[[], Tensor]) -> Tensor:
        """Return the weighted cross-entropy plus the term."""
        # Without a weight the loss of the task is not computed: the data may have no labels.
        return self.hard_weight * hard() + soft if self.hard_weight else soft


@dataclass(frozen=True)
class DecoupledConfig(_AdditiveConfig):
    """Hyperparameters of :class:`Decoupled`."""

    label = "distill.dkd"

    temperature: float = knob(1.0, TEMPERATURES, "temperature that divides the logits of both models")
    alpha: float = knob(1.0, FloatRange(0.0, 10.0), "weight of the target-class term")
    beta: float = knob(0.5, FloatRange(0.0, 16.0), "weight of the term on the other classes")


class Decoupled(Term[DecoupledConfig]):
    """Cross-entropy plus decoupled distillation (Zhao et al. 2022, arXiv:2203.08679)."""

    name = "dkd"
    kind = "logit"
    config = DecoupledConfig

    def loss(self, config: DecoupledConfig, batch: Batch) -> Tensor:
        """Return hard_weight CE + T^2 (alpha TCKD + beta NCKD), ``[]``, averaged over heads.

        If no label is read, the teacher's most probable class replaces the target.
        """
        soft = mean_over_heads(
            batch,
            lambda ours, theirs, labels: dkd_loss(
                ours,
                theirs,
                labels if config.hard_weight else theirs.argmax(1),
                config.temperature,
                config.alpha,
                config.beta,
            ),
        )
        return config.add_hard_loss(soft, batch.hard_loss)


@dataclass(frozen=True)
class CorrelationConfig(_AdditiveConfig):
    """Hyperparameters of :class:`Correlation`."""

    label = "distill.dist"

    beta: float = knob(1.0, FloatRange(0.0, 10.0), "weight of the correlation across the classes of each example")
    gamma: float = knob(1.0, FloatRange(0.0, 10.0), "weight of the correlation across the examples of each class")


class Correlation(Term[CorrelationConfig]):
    """Cross-entropy plus correlations between and within classes (DIST, Huang et al. 2022, arXiv:2205.10536).

    Correlations do not depend on the scale of the probabilities, and their weight grows with T^2: at a high temperature
    the probabilities may become almost uniform, with their order intact. Scores that read the probabilities, such as
    the predicted rating, need a temperature of about 1.
    """

    name = "dist"
    kind = "logit"
    config = CorrelationConfig

    def loss(self, config: CorrelationConfig, batch: Batch) -> Tensor:
        """Return hard_weight CE + T^2 (beta inter + gamma intra), ``[]``, averaged over heads."""
        soft = mean_over_heads(
            batch,
            lambda ours, theirs, labels: correlation_loss(ours, theirs, config.temperature, config.beta, config.gamma),
        )
        return config.add_hard_loss(soft, batch.hard_loss)


DISTILL.add(LogitStandardized.name, LogitStandardized())
DISTILL.add(Decoupled.name, Decoupled())
DISTILL.add(Correlation.name, Correlation())
