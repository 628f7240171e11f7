import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.config import Part
from autocompress.distill.base import Activations, Needs
from autocompress.distill.feature_terms import (
    Attention,
    AttentionConfig,
    Hint,
    HintConfig,
    Relational,
    RelationalConfig,
    angle_relation,
    attention_map,
    distance_relation,
    tap_points,
)
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits


def hard(logits: object, targets: object) -> torch.Tensor:
    raise AssertionError("a feature term leaves the targets alone")


def both(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[Activations, Activations]:
    return Activations({}, {"a": ours}), Activations({}, {"b": theirs})


def test_tap_points_are_the_stages_of_a_family_and_the_layers_of_any_other_net() -> None:
    model = Digits().build(Part.of("cnn", width=4, stages=3))
    assert tap_points(model) == ["stages.0", "stages.1", "stages.2"]
    assert tap_points(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))) == ["0", "1", "2"]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)

    assert tap_points(Plain()) == ["conv"]
    with pytest.raises(TrialError, match="no layers"):
        tap_points(nn.Linear(2, 2))


@pytest.mark.parametrize(("layer", "point"), [("first", "stages.0"), ("middle", "stages.1"), ("last", "stages.2")])
def test_the_layer_knob_chooses_the_place(layer: str, point: str) -> None:
    model = Digits().build(Part.of("cnn", width=4, stages=3))
    config = HintConfig(layer=layer)
    assert Hint().taps(config, model) == (point,)
    assert Hint().needs(config) is Needs.MODEL


def test_attention_map_by_hand() -> None:
    # Two channels, three positions: squares sum to 25, 0 and 144; the length of that is the square root of 21361.
    found = attention_map(torch.tensor([[[3.0, 0.0, 0.0], [4.0, 0.0, 12.0]]]))
    assert torch.allclose(found, torch.tensor([[25.0, 0.0, 144.0]]) / math.sqrt(21361))


def test_attention_is_the_squared_distance_of_the_maps_and_resizes_the_larger() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, 4, 4), torch.randn(5, 7, 4, 4)
    term, config = Attention(), AttentionConfig(weight=2.0)
    found = term.loss(config, *both(student, teacher), {}, hard, nn.Identity())
    slow = [
        float(
            (F.normalize(s.pow(2).sum(0).flatten(), dim=0) - F.normalize(t.pow(2).sum(0).flatten(), dim=0)).pow(2).sum()
        )
        for s, t in zip(student, teacher, strict=True)
    ]
    assert found.item() == pytest.approx(2 * sum(slow) / 5, rel=1e-5)
    large = student.repeat_interleave(2, 2).repeat_interleave(2, 3)
    again = term.loss(config, *both(large, teacher), {}, hard, nn.Identity())
    assert again.item() == pytest.approx(found.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (6,), (4, 4)])
def test_a_hint_is_learned_to_zero_where_the_teacher_is_linear_in_the_student(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    term, config = Hint(), HintConfig()
    student = torch.randn(16, 3, *shape)
    teacher = torch.einsum("bc...,dc->bd...", student, torch.randn(5, 3))
    here, there = both(student, teacher)
    learned = term.learned(config, here, there)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    for _ in range(200):
        loss = term.loss(config, here, there, {}, hard, learned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_relations_equal_a_slow_loop() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64)
    distances = torch.stack([(x[i] - x[j]).norm() for i in range(4) for j in range(4) if i != j])
    assert torch.allclose(distance_relation(x), distances / distances.mean())
    angles = angle_relation(x)
    for j in range(4):
        for i in range(4):
            for k in range(4):
                if j not in (i, k):
                    a, b = x[i] - x[j], x[k] - x[j]
                    assert angles[j, i, k].item() == pytest.approx((a @ b / a.norm() / b.norm()).item())


def test_relations_ignore_rotation_and_scale_and_see_everything_else() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 3, 3)
    pooled = x.flatten(2).mean(2)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    term, config = Relational(), RelationalConfig()
    moved = 3 * pooled @ rotation
    assert term.loss(config, *both(x, moved), {}, hard, nn.Identity()).item() == pytest.approx(0.0, abs=1e-5)
    assert term.loss(config, *both(x, torch.randn(8, 4)), {}, hard, nn.Identity()).item() > 0.01


def test_equal_features_give_finite_gradients() -> None:
    student = torch.ones(4, 3, requires_grad=True)
    loss = Relational().loss(RelationalConfig(), *both(student, torch.randn(4, 3)), {}, hard, nn.Identity())
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_a_layer_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(TrialError, match="returns a tensor"):
        Hint().learned(HintConfig(), Activations({}, {"a": (1, 2)}), Activations({}, {"b": torch.zeros(1, 2)}))
