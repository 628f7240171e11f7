import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.distill.base import Activations, Batch, Needs
from autocompress.distill.feature_losses import (
    Attention,
    AttentionConfig,
    Hint,
    HintConfig,
    Relational,
    RelationalConfig,
    angle_relation,
    attention_map,
    distance_relation,
    token_relation,
)
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits


def hard(logits: object, targets: object) -> torch.Tensor:
    raise AssertionError("a feature term leaves the targets alone")


def both(ours: object, theirs: object, *, tokens: bool = False) -> tuple[Activations, Activations]:
    names = [frozenset(name) if tokens else frozenset() for name in "ab"]
    return Activations({}, {"a": ours}, names[0]), Activations({}, {"b": theirs}, names[1])


@pytest.mark.parametrize(("layer", "point"), [("first", "stages.0"), ("middle", "stages.1"), ("last", "stages.2")])
def test_the_layer_knob_chooses_the_place(layer: str, point: str) -> None:
    model = Digits().build(Part.of("cnn", width=4, stages=3))
    config = HintConfig(layer=layer)
    assert Hint().select_layers(config, model) == (point,)
    assert Hint().needs(config) is Needs.MODEL


def test_attention_map_by_hand() -> None:
    # Two channels, three positions: squares sum to 25, 0 and 144; the length of that is the square root of 21361.
    actual = attention_map(torch.tensor([[[3.0, 0.0, 0.0], [4.0, 0.0, 12.0]]]))
    assert torch.allclose(actual, torch.tensor([[25.0, 0.0, 144.0]]) / math.sqrt(21361))


def test_attention_is_the_squared_distance_of_the_maps_and_resizes_the_larger() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, 4, 4), torch.randn(5, 7, 4, 4)
    term, config = Attention(), AttentionConfig(weight=2.0)
    actual = term.loss(config, Batch(*both(student, teacher), {}, hard, nn.Identity()))
    slow = [
        float(
            (F.normalize(s.pow(2).sum(0).flatten(), dim=0) - F.normalize(t.pow(2).sum(0).flatten(), dim=0)).pow(2).sum()
        )
        for s, t in zip(student, teacher, strict=True)
    ]
    assert actual.item() == pytest.approx(2 * sum(slow) / 5, rel=1e-5)
    large = student.repeat_interleave(2, 2).repeat_interleave(2, 3)
    again = term.loss(config, Batch(*both(large, teacher), {}, hard, nn.Identity()))
    assert again.item() == pytest.approx(actual.item(), rel=1e-5)


def test_attention_needs_positions() -> None:
    with pytest.raises(TrialError, match="one vector per example"):
        Attention().loss(AttentionConfig(), Batch(*both(torch.ones(2, 3), torch.ones(2, 5)), {}, hard, nn.Identity()))


def test_token_relation_by_hand() -> None:
    # Two tokens of width 4: (2, 0, 0, 0) and (0, 1, 0, 0); products 4, 0, 0, 1, divided by the root of 4.
    actual = token_relation(torch.tensor([[[2.0, 0, 0, 0], [0, 1.0, 0, 0]]]))
    first, second = math.exp(2) / (math.exp(2) + 1), math.exp(0.5) / (math.exp(0.5) + 1)
    assert torch.allclose(actual, torch.tensor([[[first, 1 - first], [1 - second, second]]]))


def test_attention_over_tokens_is_the_divergence_of_relations_whatever_the_width() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 9)
    actual = (
        Attention()
        .loss(AttentionConfig(weight=2.0), Batch(*both(student, teacher, tokens=True), {}, hard, nn.Identity()))
        .item()
    )
    slow = 0.0
    for s, t in zip(student, teacher, strict=True):
        for i in range(5):
            p = torch.softmax(torch.stack([t[i] @ t[j] for j in range(5)]) / 3, 0)
            q = torch.softmax(torch.stack([s[i] @ s[j] for j in range(5)]) / 2, 0)
            slow += float((p * (p / q).log()).sum()) / 15
    assert actual == pytest.approx(2 * slow, rel=1e-4)
    with pytest.raises(TrialError, match="equally long"):
        Attention().loss(AttentionConfig(), Batch(*both(student[:, :4], teacher, tokens=True), {}, hard, nn.Identity()))


def test_attention_probabilities_are_compared_as_they_are_and_unequal_heads_are_averaged() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, 6).softmax(3), torch.randn(2, 4, 6, 6).softmax(3)

    def actual(ours: object, theirs: object) -> float:
        config = AttentionConfig(weight=1.0)
        return Attention().loss(config, Batch(*both(ours, theirs), {}, hard, nn.Identity())).item()

    expected = F.kl_div(student.log(), teacher, reduction="sum").item() / (2 * 4 * 6)
    assert actual(student, teacher) == pytest.approx(expected, rel=1e-4)
    assert actual(teacher, teacher) == pytest.approx(0.0, abs=1e-6)
    averaged = F.kl_div(student.mean(1).log(), teacher[:, :2].mean(1), reduction="sum").item() / (2 * 6)
    assert actual(student, teacher[:, :2]) == pytest.approx(averaged, rel=1e-4)


def test_a_layer_that_returns_its_attention_weights_is_read_by_them() -> None:
    torch.manual_seed(0)
    layers = [nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2)]
    x = torch.randn(3, 5, 8)
    student, teacher = (layer(x, x, x, average_attn_weights=False) for layer in layers)
    actual = (
        Attention().loss(AttentionConfig(weight=1.0), Batch(*both(student, teacher), {}, hard, nn.Identity())).item()
    )
    expected = F.kl_div(student[1].log(), teacher[1], reduction="sum").item() / (3 * 2 * 5)
    assert actual == pytest.approx(expected, rel=1e-4)


def test_sure_attention_gives_a_finite_gradient() -> None:
    scores = (torch.eye(4).repeat(2, 1, 1, 1) * 1e4).requires_grad_()
    other = torch.eye(4).flip(0).repeat(2, 1, 1, 1)
    loss = Attention().loss(AttentionConfig(), Batch(*both(scores.softmax(3), other), {}, hard, nn.Identity()))
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_a_hint_regresses_over_the_features_of_tokens() -> None:
    here, there = both(torch.randn(2, 5, 3), torch.randn(2, 5, 7), tokens=True)
    adapter = Hint().build_adapter(HintConfig(), here, there)
    assert isinstance(adapter, nn.Linear)
    assert adapter.weight.shape == (7, 3)
    with torch.no_grad():
        adapter.weight.zero_()
        adapter.bias.zero_()
    actual = Hint().loss(HintConfig(weight=1.0), Batch(here, there, {}, hard, adapter))
    assert actual.item() == pytest.approx(there.layer_outputs["b"].square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (6,), (4, 4)])
def test_a_hint_is_learned_to_zero_where_the_teacher_is_linear_in_the_student(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    term, config = Hint(), HintConfig()
    student = torch.randn(16, 3, *shape)
    teacher = torch.einsum("bc...,dc->bd...", student, torch.randn(5, 3))
    here, there = both(student, teacher)
    adapter = term.build_adapter(config, here, there)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.1)
    for _ in range(200):
        loss = term.loss(config, Batch(here, there, {}, hard, adapter))
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
    assert term.loss(config, Batch(*both(x, moved), {}, hard, nn.Identity())).item() == pytest.approx(0.0, abs=1e-5)
    assert term.loss(config, Batch(*both(x, torch.randn(8, 4)), {}, hard, nn.Identity())).item() > 0.01


def test_relations_of_outputs_read_no_layer_and_no_live_teacher() -> None:
    config = RelationalConfig(layer="logits", angle_weight=0.0, distance_weight=1.0)
    model = Digits().build(Part.of("cnn", width=4))
    assert Relational().select_layers(config, model) == ()
    assert Relational().needs(config) is Needs.LOGITS
    # Distances 3, 4, 5 (mean 4) against 1, 1, 1: each pair stands twice, and errors below 1 count half their square.
    ours = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    theirs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    actual = Relational().loss(
        config, Batch(Activations({"label": ours}), Activations({"label": theirs}), {}, hard, nn.Identity())
    )
    assert actual.item() == pytest.approx((0.5 * 0.25**2 + 0.0 + 0.5 * 0.25**2) / 3, rel=1e-5)


def test_a_large_batch_is_related_in_groups() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(128, 6), torch.randn(128, 4)
    term, config = Relational(), RelationalConfig()
    halves = [
        term.loss(config, Batch(*both(student[rows], teacher[rows]), {}, hard, nn.Identity())).item()
        for rows in (slice(0, 64), slice(64, 128))
    ]
    whole = term.loss(config, Batch(*both(student, teacher), {}, hard, nn.Identity())).item()
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_one_example_has_no_relations() -> None:
    student = torch.randn(1, 3, requires_grad=True)
    loss = Relational().loss(RelationalConfig(), Batch(*both(student, torch.randn(1, 3)), {}, hard, nn.Identity()))
    loss.backward()
    assert loss.item() == 0.0


def test_equal_features_give_finite_gradients() -> None:
    student = torch.ones(4, 3, requires_grad=True)
    loss = Relational().loss(RelationalConfig(), Batch(*both(student, torch.randn(4, 3)), {}, hard, nn.Identity()))
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_a_layer_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(TrialError, match="returns a tensor"):
        Hint().build_adapter(HintConfig(), Activations({}, {"a": (1, 2)}), Activations({}, {"b": torch.zeros(1, 2)}))
