"""Distillation terms on layers: hints through a learned regressor, attention maps, relations within a batch."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.knobs import Choice, FloatRange, Settings, knob
from autocompress.core.registry import DISTILL
from autocompress.distill.activations import list_feature_layers
from autocompress.distill.base import Activations, Batch, Needs, Term
from autocompress.errors import TrialError

POSITIONS = ("first", "middle", "last")
# Keeps logarithms and divisions finite.
TINY = 1e-12
#: Examples that are related to each other. A larger batch is split into groups, as the number of angles is cubic in it.
GROUP = 64


@dataclass(frozen=True)
class _LayerConfig(Settings):
    """The hyperparameter that feature terms share."""

    layer: str = knob("last", Choice(POSITIONS), "position of the layer that is read")


L = TypeVar("L", bound=_LayerConfig)


class _FeatureTerm(Term[L]):
    """A term that reads one layer of each model, chosen by its position."""

    kind = "feature"

    def needs(self, config: L) -> Needs:
        """Return :attr:`Needs.MODEL`: the teacher runs live, because its layers are not cached."""
        return Needs.MODEL

    def select_layers(self, config: L, model: nn.Module) -> tuple[str, ...]:
        """Return the one layer at the chosen position."""
        layers = list_feature_layers(model)
        index = {"first": 0, "middle": len(layers) // 2, "last": len(layers) - 1}[config.layer]
        return (layers[index],)


def _single_output(activations: Activations, *, weights: bool = False) -> Tensor:
    """Return the output of the one layer that was read.

    Args:
        activations: Outputs of a pass, with one layer.
        weights: Whether to return the attention weights, the last tensor of a layer that returns several.
    """
    ((_, value),) = activations.layer_outputs.items() if len(activations.layer_outputs) == 1 else ((None, None),)
    # nn.MultiheadAttention returns a pair: its output and the attention weights.
    parts = [part for part in (value if isinstance(value, tuple | list) else (value,)) if isinstance(part, Tensor)]
    if not parts:
        raise TrialError(
            f"a feature term reads one layer that returns a tensor, got {sorted(activations.layer_outputs)}"
        )
    return parts[-1 if weights else 0].float()


def _channels_first(activations: Activations) -> Tensor:
    """Return features as ``[B, C, ...]``; those of tokens, ``[B, T, D]``, are transposed to ``[B, D, T]``."""
    features = _single_output(activations)
    return features.movedim(-1, 1) if activations.tokens and features.dim() == 3 else features


def match_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature maps, ``[B, C, ...]``, with the larger one averaged down to the size of the smaller."""
    sizes = [(min(a, b)) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    if not sizes:
        return student, teacher
    # Mode "area" is adaptive average pooling for any number of dimensions.
    return F.interpolate(student, sizes, mode="area"), F.interpolate(teacher, sizes, mode="area")


@dataclass(frozen=True)
class HintConfig(_LayerConfig):
    """Hyperparameters of :class:`Hint`."""

    label = "distill.hint"

    weight: float = knob(0.03, FloatRange(1e-3, 1e3, log=True), "weight of the term")


class Hint(_FeatureTerm[HintConfig]):
    """Mean squared error to a teacher's layer through a learned 1x1 regressor (FitNets, arXiv:1412.6550)."""

    name = "hint"
    config = HintConfig

    def build_adapter(self, config: HintConfig, student: Activations, teacher: Activations) -> nn.Module:
        """Return a linear map from the student's channels to the teacher's."""
        return nn.Linear(_channels_first(student).shape[1], _channels_first(teacher).shape[1])

    def loss(self, config: HintConfig, batch: Batch) -> Tensor:
        """Return weight times the mean squared error, ``[]``."""
        ours, theirs = match_sizes(_channels_first(batch.student), _channels_first(batch.teacher))
        predicted = batch.adapter(ours.movedim(1, -1)).movedim(-1, 1)
        return config.weight * F.mse_loss(predicted.float(), theirs)


def attention_map(features: Tensor) -> Tensor:
    """Return attention maps: squares summed over channels, flattened, of L2 norm 1: ``[B, C, ...] -> [B, P]``.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.

    Example:
        >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        tensor([[0.9138, 0.4061]])
    """
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


def token_relation(tokens: Tensor) -> Tensor:
    """Return the distribution of each token's similarity to all tokens: ``[B, T, D] -> [B, T, T]``.

    softmax(V V^T / sqrt(D)), whose shape does not depend on the width D.

    Source: MiniLM, Wang et al. 2020, arXiv:2002.10957, section 3.2.
    """
    return F.softmax(tokens @ tokens.transpose(1, 2) / tokens.shape[2] ** 0.5, dim=2)


@dataclass(frozen=True)
class AttentionConfig(_LayerConfig):
    """Hyperparameters of :class:`Attention`."""

    label = "distill.attention"

    weight: float = knob(0.01, FloatRange(1e-3, 1e3, log=True), "weight of the term")


class Attention(_FeatureTerm[AttentionConfig]):
    """Difference between the models' attention maps, attention probabilities or token relations.

    Maps ``[B, C, ...]``: the squared distance of normalized maps (Zagoruyko and Komodakis 2017, arXiv:1612.03928).
    Tokens ``[B, T, D]`` and attention probabilities ``[B, H, T, T]``: KL(teacher || student), mean over tokens and
    heads (MiniLM, Wang et al. 2020, arXiv:2002.10957). If the numbers of heads differ, the mean over heads is compared.
    """

    name = "attention"
    config = AttentionConfig

    def loss(self, config: AttentionConfig, batch: Batch) -> Tensor:
        """Return the weighted mean over the batch, ``[]``.

        Raises:
            TrialError: The layer has no positions, or the sequences of the two models differ in length.
        """
        ours, theirs = (_attention_distribution(activations) for activations in (batch.student, batch.teacher))
        if ours is not None and theirs is not None:
            return config.weight * _attention_divergence(ours, theirs)
        ours, theirs = match_sizes(_channels_first(batch.student), _channels_first(batch.teacher))
        if ours.dim() < 3:
            raise TrialError(
                f"attention compares positions, but {sorted(batch.student.layer_outputs)} returns one vector per "
                "example; choose another distill.attention.layer"
            )
        distance = (attention_map(ours) - attention_map(theirs)).square().sum(1)
        return config.weight * distance.mean()


def _attention_distribution(activations: Activations) -> Tensor | None:
    """Return the attention distribution of each token, ``[B, H, T, T]``; ``None`` for maps over positions."""
    features = _single_output(activations, weights=True)
    # Attention probabilities are recognized by their values: square, not negative, and with rows that sum to 1.
    square = features.dim() in (3, 4) and features.shape[-1] == features.shape[-2]
    if square and bool((features >= 0).all()) and bool((features.sum(-1) - 1).abs().max() < 1e-3):
        return features if features.dim() == 4 else features[:, None]
    features = _single_output(activations)
    return token_relation(features)[:, None] if activations.tokens and features.dim() == 3 else None


def _attention_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape[-1] != teacher.shape[-1]:
        raise TrialError(
            f"attention compares equally long sequences, got {student.shape[-1]} and {teacher.shape[-1]} tokens"
        )
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    # xlogy is 0 where the teacher's probability is 0: masked tokens.
    divergence = (torch.xlogy(teacher, teacher) - teacher * student.clamp_min(TINY).log()).sum(-1)
    return divergence.mean()


def distance_relation(features: Tensor) -> Tensor:
    """Return the distances between the examples of a batch, divided by their mean: ``[B, D] -> [B (B-1)]``."""
    # Exact differences: the matrix-product form of torch loses precision for close examples.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances[~torch.eye(len(features), dtype=torch.bool)]
    return apart / apart.mean().clamp_min(TINY)


def angle_relation(features: Tensor) -> Tensor:
    """Return the cosines of the angles of all triples of examples: ``[B, D] -> [B, B, B]``, the vertex first."""
    edges = F.normalize(features[None] - features[:, None], dim=2)
    return edges @ edges.transpose(1, 2)


@dataclass(frozen=True)
class RelationalConfig(_LayerConfig):
    """Hyperparameters of :class:`Relational`."""

    label = "distill.relational"

    layer: str = knob("last", Choice((*POSITIONS, "logits")), "position of the layer that is read, or logits")
    distance_weight: float = knob(1.0, FloatRange(0.0, 100.0), "weight of the distances")
    angle_weight: float = knob(2.0, FloatRange(0.0, 100.0), "weight of the angles")


class Relational(_FeatureTerm[RelationalConfig]):
    """Difference between the models' distances and angles within a batch (RKD, Park et al. 2019, arXiv:1904.05068).

    Features are averaged over positions. A batch of more than 64 examples is split into groups of about 64.
    """

    name = "relational"
    config = RelationalConfig

    def needs(self, config: RelationalConfig) -> Needs:
        """Return :attr:`Needs.LOGITS` for relations of logits and :attr:`Needs.MODEL` for those of a layer."""
        return Needs.LOGITS if config.layer == "logits" else Needs.MODEL

    def select_layers(self, config: RelationalConfig, model: nn.Module) -> tuple[str, ...]:
        """Return the one layer at the chosen position, or none for logits."""
        return () if config.layer == "logits" else super().select_layers(config, model)

    def loss(self, config: RelationalConfig, batch: Batch) -> Tensor:
        """Return the weighted Huber losses of distances and angles, ``[]``."""
        if config.layer == "logits":
            ours, theirs = (
                torch.cat([values.reshape(len(values), -1) for values in part.logits.values()], dim=1)
                for part in (batch.student, batch.teacher)
            )
        else:
            ours, theirs = (
                value.flatten(2).mean(2) if value.dim() > 2 else value
                for value in (_channels_first(batch.student), _channels_first(batch.teacher))
            )
        groups = max(1, round(len(ours) / GROUP))
        pairs = zip(ours.chunk(groups), theirs.chunk(groups), strict=True)
        return torch.stack([_relational_loss(config, *pair) for pair in pairs]).mean()


def _relational_loss(config: RelationalConfig, student: Tensor, teacher: Tensor) -> Tensor:
    # A zero with a gradient path, in case both weights are 0.
    total = student.sum() * 0
    if config.distance_weight and len(student) > 1:
        distances = F.smooth_l1_loss(distance_relation(student), distance_relation(teacher))
        total = total + config.distance_weight * distances
    if config.angle_weight:
        total = total + config.angle_weight * F.smooth_l1_loss(angle_relation(student), angle_relation(teacher))
    return total


DISTILL.add(Hint.name, Hint())
DISTILL.add(Attention.name, Attention())
DISTILL.add(Relational.name, Relational())
