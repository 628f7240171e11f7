"""Terms on layers: hints through a learned regressor, attention maps, relations inside a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.distill.base import Activations, Needs, TaskLoss, Term
from autocompress.errors import TrialError
from autocompress.knobs import Choice, FloatRange, Settings, knob
from autocompress.registry import DISTILL

LAYERS = Choice(("first", "middle", "last"))


def tap_points(model: nn.Module) -> list[str]:
    """Return the layers of a model that feature terms may read, from the input to the output.

    A model with ``stages`` (every family here) offers each of them; any other offers the items of its largest
    sequence of layers, or its children with weights, the last linear layer left out.

    Raises:
        TrialError: The model has no such layers.
    """
    holders = [
        (name, child) for name, child in model.named_modules() if isinstance(child, nn.Sequential | nn.ModuleList)
    ]
    stages = [(name, child) for name, child in holders if name == "stages"]
    if not stages and holders:
        stages = [max(holders, key=lambda holder: len(holder[1]))]
    if stages:
        name, holder = stages[0]
        prefix = f"{name}." if name else ""
        found = [f"{prefix}{index}" for index, child in enumerate(holder) if not isinstance(child, nn.Linear)]
    else:
        found = [
            name
            for name, child in model.named_children()
            if not isinstance(child, nn.Linear) and any(True for _ in child.parameters())
        ]
    if not found:
        raise TrialError(f"{type(model).__name__} has no layers that a feature term could read; use terms on logits")
    return found


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

    layer: str = knob("last", LAYERS, "which of the layers that can be read")


def _only(activations: Activations) -> Tensor:
    values = [value for value in activations.taps.values() if isinstance(value, Tensor)]
    if len(values) != 1:
        raise TrialError(f"a feature term reads one layer that returns a tensor, got {sorted(activations.taps)}")
    return values[0].float()


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

    weight: float = knob(0.1, FloatRange(1e-3, 1e3, log=True), "weight of the term")


class Hint(_FeatureTerm):
    """Mean squared error to a teacher's layer through a learned 1x1 regressor (FitNets, arXiv:1412.6550)."""

    name = "hint"
    config = HintConfig

    def learned(self, config: HintConfig, student: Activations, teacher: Activations) -> nn.Module:
        """Return a linear map from the student's channels to the teacher's."""
        return nn.Linear(_only(student).shape[1], _only(teacher).shape[1])

    def loss(
        self,
        config: HintConfig,
        student: Activations,
        teacher: Activations,
        targets: Mapping[str, Tensor],
        task_loss: TaskLoss,
        learned: nn.Module,
    ) -> Tensor:
        """Return weight times the mean squared error, ``[]``."""
        ours, theirs = _same_size(_only(student), _only(teacher))
        guessed = learned(ours.movedim(1, -1)).movedim(-1, 1)
        return config.weight * F.mse_loss(guessed.float(), theirs)


def attention_map(features: Tensor) -> Tensor:
    """Return where a layer looks: squares summed over channels, flattened, of length 1: ``[B, C, ...] -> [B, P]``.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.

    Example:
        >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        tensor([[0.9138, 0.4061]])
    """
    return F.normalize(features.square().sum(1).flatten(1), dim=1)


@dataclass(frozen=True)
class AttentionConfig(_LayerConfig):
    """Knobs of :class:`Attention`."""

    label = "distill.attention"

    weight: float = knob(0.1, FloatRange(1e-3, 1e3, log=True), "weight of the term")


class Attention(_FeatureTerm):
    """Squared distance between normalised attention maps (Zagoruyko and Komodakis 2017, arXiv:1612.03928)."""

    name = "attention"
    config = AttentionConfig

    def loss(
        self,
        config: AttentionConfig,
        student: Activations,
        teacher: Activations,
        targets: Mapping[str, Tensor],
        task_loss: TaskLoss,
        learned: nn.Module,
    ) -> Tensor:
        """Return weight times the squared distance, mean over the batch, ``[]``."""
        ours, theirs = _same_size(_only(student), _only(teacher))
        distance = (attention_map(ours) - attention_map(theirs)).square().sum(1)
        return config.weight * distance.mean()


def distance_relation(features: Tensor) -> Tensor:
    """Return distances between the examples of a batch, as shares of their mean: ``[B, D] -> [B (B-1)]``."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances[~torch.eye(len(features), dtype=torch.bool)]
    return apart / apart.mean().clamp_min(1e-12)


def angle_relation(features: Tensor) -> Tensor:
    """Return the cosine of each angle between three examples: ``[B, D] -> [B, B, B]``, the middle one first."""
    edges = F.normalize(features[None] - features[:, None], dim=2)
    return edges @ edges.transpose(1, 2)


@dataclass(frozen=True)
class RelationalConfig(_LayerConfig):
    """Knobs of :class:`Relational`."""

    label = "distill.relational"

    distance_weight: float = knob(1.0, FloatRange(0.0, 100.0), "weight of the distances")
    angle_weight: float = knob(2.0, FloatRange(0.0, 100.0), "weight of the angles")


class Relational(_FeatureTerm):
    """Distances and angles inside a batch are those of the teacher (RKD, Park et al. 2019, arXiv:1904.05068)."""

    name = "relational"
    config = RelationalConfig

    def loss(
        self,
        config: RelationalConfig,
        student: Activations,
        teacher: Activations,
        targets: Mapping[str, Tensor],
        task_loss: TaskLoss,
        learned: nn.Module,
    ) -> Tensor:
        """Return the weighted Huber losses of distances and angles, ``[]``, on features averaged over positions."""
        ours, theirs = (
            value.flatten(2).mean(2) if value.dim() > 2 else value for value in (_only(student), _only(teacher))
        )
        total = ours.new_zeros(())
        if config.distance_weight:
            total = total + config.distance_weight * F.smooth_l1_loss(
                distance_relation(ours), distance_relation(theirs)
            )
        if config.angle_weight:
            total = total + config.angle_weight * F.smooth_l1_loss(angle_relation(ours), angle_relation(theirs))
        return total


DISTILL.add(Hint.name, Hint())
DISTILL.add(Attention.name, Attention())
DISTILL.add(Relational.name, Relational())
