"""Layer-mapped distillation: which layers follow which, and what the three differences are."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.task import InputSpec
from autocompress.distill.activations import record_activations
from autocompress.distill.base import Activations, Batch
from autocompress.distill.layer_mapping import (
    LayerMapping,
    LayerMappingConfig,
    _log_relation,
    _relation_loss,
    find_attention_blocks,
    map_layers,
)
from autocompress.errors import TrialError
from autocompress.models.base import build_family_model

TERM = LayerMapping()
TEXTS = (InputSpec((6,), 20, 0),)


def build_text_model(layers: int, heads: int) -> nn.Module:
    torch.manual_seed(layers)
    part = Part.of("transformer", layers=layers, attention_heads=heads, head_size=4)
    return build_family_model(part, TEXTS, {"label": 3}).eval()


def run(model: nn.Module, config: LayerMappingConfig) -> Activations:
    names = TERM.select_layers(config, model)
    with record_activations(model, names) as outputs:
        logits = model(torch.arange(1, 13).view(2, 6))
    return Activations({"label": logits}, outputs, frozenset(names))


def compute_loss(config: LayerMappingConfig, student: nn.Module, teacher: nn.Module) -> Tensor:
    ours, theirs = run(student, config), run(teacher, config)
    adapter = TERM.build_adapter(config, ours, theirs)
    return TERM.loss(config, Batch(ours, theirs, {}, lambda *_: torch.zeros(()), adapter))


def test_blocks_with_queries_keys_and_values_are_found_in_each_library() -> None:
    own = find_attention_blocks(build_text_model(3, 2))
    assert [name.rpartition("stages.")[2] for name in own] == ["0", "1", "2"]
    assert {name.rpartition(".")[2] for names in own.values() for name in names} == {"query", "key", "value"}
    fused = nn.Sequential(nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 12)})}), nn.Linear(4, 3))
    assert find_attention_blocks(fused) == {"0": ["0.attn.qkv"]}
    assert find_attention_blocks(nn.Sequential(nn.Linear(2, 2))) == {}


@pytest.mark.parametrize(
    ("student", "teacher", "followed"),
    [(3, 6, [2, 4, 6]), (4, 6, [2, 3, 5, 6]), (6, 3, [1, 1, 2, 2, 3, 3]), (1, 5, [5])],
)
def test_the_layers_that_are_followed_are_spread_and_end_with_the_last(
    student: int, teacher: int, followed: list[int]
) -> None:
    pairs = map_layers(list(range(student)), list(range(1, teacher + 1)), "spread")
    assert [layer for _, layer in pairs] == followed


def test_a_relation_is_the_softmax_of_scaled_products_in_parts() -> None:
    queries, keys = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    relation = _log_relation(queries, keys, 2)
    expected = (queries[1, :, 4:] @ keys[1, :, 4:].T / 2).softmax(-1)
    assert torch.allclose(relation[1, 1].exp(), expected, atol=1e-6)


def test_relations_of_unequal_widths_are_compared_in_common_parts_and_equal_ones_have_no_difference() -> None:
    narrow, wide = torch.randn(2, 3, 12), torch.randn(2, 3, 8)
    assert float(_relation_loss({"value": narrow}, {"value": wide}, ("value", "value"), 8)) > 0
    assert float(_relation_loss({"value": wide}, {"value": wide}, ("value", "value"), 8)) == 0
    with pytest.raises(TrialError, match=r"relations of 3 and 2 tokens"):
        _relation_loss({"value": wide}, {"value": wide[:, :2]}, ("value", "value"), 8)
    with pytest.raises(TrialError, match=r"grouped-query attention"):
        _log_relation(narrow, wide, 1)


@pytest.mark.parametrize("weight", ["hidden_weight", "attention_weight", "relation_weight"])
def test_each_difference_has_a_gradient_in_the_layers_of_the_student(weight: str) -> None:
    config = LayerMappingConfig(**{"hidden_weight": 0.0, weight: 1.0})
    student, teacher = build_text_model(2, 1), build_text_model(4, 3)
    loss = compute_loss(config, student, teacher)
    loss.backward()
    (block, *_), *_ = find_attention_blocks(student).items()
    gradients = [p.grad for p in student.get_submodule(block).parameters() if p.grad is not None]
    assert float(loss.detach()) > 0
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_a_student_equal_to_its_teacher_has_equal_relations() -> None:
    config = LayerMappingConfig(hidden_weight=0.0, attention_weight=1.0, relation_weight=1.0)
    model = build_text_model(2, 2)
    assert float(compute_loss(config, model, model).detach()) == pytest.approx(0, abs=1e-7)


def test_a_model_without_attention_has_hidden_states_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert TERM.select_layers(LayerMappingConfig(), model) == ("0", "1")
    with pytest.raises(TrialError, match=r"Sequential has no layers for queries, keys and values"):
        TERM.select_layers(LayerMappingConfig(relation_weight=1.0), model)
    with pytest.raises(TrialError, match=r"all weights of distill.layer_mapping are 0"):
        compute_loss(LayerMappingConfig(hidden_weight=0.0), build_text_model(1, 1), build_text_model(1, 1))
