"""Terms on layers: hints through a learned regressor, attention maps, relations inside a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.knobs import Choice, FloatRange, Settings, knob
from autocompress.core.registry import DISTILL
from autocompress.distill.activations import tap_points
from autocompress.distill.base import Activations, Batch, Needs, Term
from autocompress.errors import TrialError

PLACES = ("first", "middle", "last")
TINY = 1e-12
#: Examples that are related to each other; a larger batch is read in groups, as angles take the cube of it.
GROUP = 64


class _FeatureTerm(Term):
    """A term that reads one layer of both models, chosen by its place."""

    kind = "feature"

    def needs(self, config: Settings) -> Needs:
        """Return :attr:`Needs.MODEL`: the teacher runs live."""
        return Needs.MODEL

    def taps(self, config: "_LayerConfig", model: nn.Module) -> tuple[str, ...]:
        """Return the one layer at the chosen place."""
        points = tap_points(model)
        place = {"first": 0, "middle": len(points) // 2, "last": len(points) - 1}[config.layer]
        return (points[place],)


@dataclass(frozen=True)
class _LayerConfig(Settings):
    """The knob that feature terms share."""

    layer: str = knob("last", Choice(PLACES), "which of the layers that can be read")


def _only(activations: Activations, *, weights: bool = False) -> Tensor:
    """Return the output of the one layer that was read; of a layer with attention weights these, where asked for."""
    ((_, value),) = activations.taps.items() if len(activations.taps) == 1 else ((None, None),)
    parts = [part for part in (value if isinstance(value, tuple | list) else (value,)) if isinstance(part, Tensor)]
    if not parts:
        raise TrialError(f"a feature term reads one layer that returns a tensor, got {sorted(activations.taps)}")
    return parts[-1 if weights else 0].float()


def _channels_first(activations: Activations) -> Tensor:
    """Return features as ``[B, C, ...]``; those of tokens, ``[B, T, D]``, are turned."""
    features = _only(activations)
    return features.movedim(-1, 1) if activations.tokens and features.dim() == 3 else features


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two feature maps down to the size of the smaller: ``[B, C, ...]``."""
    sizes = [(min(a, b)) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    if not sizes:
        return student, teacher
    # The mode "area" averages, in any number of dimensions.
    return F.interpolate(student, sizes, mode="area"), F.interpolate(teacher, sizes, mode="area")


@dataclass(frozen=True)
class HintConfig(_LayerConfig):
    """Knobs of :class:`Hint`."""

    label = "distill.hint"

    weight: float = knob(0.03, FloatRange(1e-3, 1e3, log=True), "weight of the term")


class Hint(_FeatureTerm):
    """Mean squared error to a teacher's layer through a learned 1x1 regressor (FitNets, arXiv:1412.6550)."""

    name = "hint"
    config = HintConfig

    def learned(self, config: HintConfig, student: Activations, teacher: Activations) -> nn.Module:
        """Return a linear map from the student's channels to the teacher's."""
        return nn.Linear(_channels_first(student).shape[1], _channels_first(teacher).shape[1])

    def loss(self, config: HintConfig, batch: Batch) -> Tensor:
        """Return weight times the mean squared error, ``[]``."""
        ours, theirs = _same_size(_channels_first(batch.student), _channels_first(batch.teacher))
        guessed = batch.learned(ours.movedim(1, -1)).movedim(-1, 1)
        return config.weight * F.mse_loss(guessed.float(), theirs)


def attention_map(features: Tensor) -> Tensor:
    """Return where a layer looks: squares summed over channels, flattened, of length 1: ``[B, C, ...] -> [B, P]``.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.

    Example:
        >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        tensor([[0.9138, 0.4061]])
    """
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


def token_relation(tokens: Tensor) -> Tensor:
    """Return how much each token resembles each other, as a distribution: ``[B, T, D] -> [B, T, T]``.

    softmax(V V^T / sqrt(D)), which does not depend on the width. Source: MiniLM, Wang et al. 2020, arXiv:2002.10957,
    section 3.2.
    """
    return F.softmax(tokens @ tokens.transpose(1, 2) / tokens.shape[2] ** 0.5, dim=2)


@dataclass(frozen=True)
class AttentionConfig(_LayerConfig):
    """Knobs of :class:`Attention`."""

    label = "distill.attention"

    weight: float = knob(0.01, FloatRange(1e-3, 1e3, log=True), "weight of the term")


class Attention(_FeatureTerm):
    """Look where the teacher looks: attention maps, attention probabilities or relations between tokens.

    Maps ``[B, C, ...]``: the squared distance of normalised maps (Zagoruyko and Komodakis 2017, arXiv:1612.03928).
    Tokens ``[B, T, D]`` and attention probabilities ``[B, H, T, T]``: KL(teacher || student), mean over tokens and
    heads (MiniLM, Wang et al. 2020, arXiv:2002.10957); unequal numbers of heads are averaged first.
    """

    name = "attention"
    config = AttentionConfig

    def loss(self, config: AttentionConfig, batch: Batch) -> Tensor:
        """Return the weighted mean over the batch, ``[]``.

        Raises:
            TrialError: The layer has no positions, or the models see sequences of unequal length.
        """
        ours, theirs = (_distribution(activations) for activations in (batch.student, batch.teacher))
        if ours is not None and theirs is not None:
            return config.weight * _divergence(ours, theirs)
        ours, theirs = _same_size(_channels_first(batch.student), _channels_first(batch.teacher))
        if ours.dim() < 3:
            raise TrialError(
                f"attention reads where a layer looks, but {sorted(batch.student.taps)} returns one vector an example; "
                "choose another distill.attention.layer"
            )
        distance = (attention_map(ours) - attention_map(theirs)).square().sum(1)
        return config.weight * distance.mean()


def _distribution(activations: Activations) -> Tensor | None:
    """Return what each token attends to, ``[B, H, T, T]``, or ``None`` for maps over positions."""
    features = _only(activations, weights=True)
    square = features.dim() in (3, 4) and features.shape[-1] == features.shape[-2]
    if square and bool((features >= 0).all()) and bool((features.sum(-1) - 1).abs().max() < 1e-3):
        return features if features.dim() == 4 else features[:, None]
    features = _only(activations)
    return token_relation(features)[:, None] if activations.tokens and features.dim() == 3 else None


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape[-1] != teacher.shape[-1]:
        raise TrialError(
            f"attention compares equally long sequences, got {student.shape[-1]} and {teacher.shape[-1]} tokens"
        )
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    each = (torch.xlogy(teacher, teacher) - teacher * student.clamp_min(TINY).log()).sum(-1)
    return each.mean()


def distance_relation(features: Tensor) -> Tensor:
    """Return distances between the examples of a batch, as shares of their mean: ``[B, D] -> [B (B-1)]``."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances[~torch.eye(len(features), dtype=torch.bool)]
    return apart / apart.mean().clamp_min(TINY)


def angle_relation(features: Tensor) -> Tensor:
    """Return the cosine of each angle between three examples: ``[B, D] -> [B, B, B]``, the middle one first."""
    edges = F.normalize(features[None] - features[:, None], dim=2)
    return edges @ edges.transpose(1, 2)


@dataclass(frozen=True)
class RelationalConfig(_LayerConfig):
    """Knobs of :class:`Relational`."""

    label = "distill.relational"

    layer: str = knob("last", Choice((*PLACES, "logits")), "which of the layers that can be read, or the outputs")
    distance_weight: float = knob(1.0, FloatRange(0.0, 100.0), "weight of the distances")
    angle_weight: float = knob(2.0, FloatRange(0.0, 100.0), "weight of the angles")


class Relational(_FeatureTerm):
    """Distances and angles inside a batch are those of the teacher (RKD, Park et al. 2019, arXiv:1904.05068).

    Features are averaged over positions. A batch of more than 64 examples is read in groups of about 64.
    """

    name = "relational"
    config = RelationalConfig

    def needs(self, config: Settings) -> Needs:
        """Return :attr:`Needs.LOGITS` for relations of outputs; for those of a layer the teacher runs live."""
        return Needs.LOGITS if getattr(config, "layer", "") == "logits" else Needs.MODEL

    def taps(self, config: _LayerConfig, model: nn.Module) -> tuple[str, ...]:
        """Return the one layer at the chosen place, or none for outputs."""
        return () if config.layer == "logits" else super().taps(config, model)

    def loss(self, config: RelationalConfig, batch: Batch) -> Tensor:
        """Return the weighted Huber losses of distances and angles, ``[]``."""
        if config.layer == "logits":
            ours, theirs = (torch.cat(list(part.logits.values()), dim=1) for part in (batch.student, batch.teacher))
        else:
            ours, theirs = (
                value.flatten(2).mean(2) if value.dim() > 2 else value
                for value in (_channels_first(batch.student), _channels_first(batch.teacher))
            )
        groups = max(1, round(len(ours) / GROUP))
        pairs = zip(ours.chunk(groups), theirs.chunk(groups), strict=True)
        return torch.stack([_relations(config, *pair) for pair in pairs]).mean()


def _relations(config: RelationalConfig, student: Tensor, teacher: Tensor) -> Tensor:
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
