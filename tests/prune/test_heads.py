import copy
import json

import pytest
import torch
from torch import nn

from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.export.onnx import export_float
from autocompress.measure import layer_costs
from autocompress.prune import HeadsConfig, expand_model, map_channels
from autocompress.prune.heads import find_attention, remove_heads, score_by_confidence, score_by_gradient
from tests.models.texts import (
    EXAMPLE,
    HEADS,
    accuracy,
    assert_graph_is,
    assert_padding_is_nothing,
    build,
    context,
    replayed,
    settled,
    tokens,
)

METHOD = PRUNE.get("heads")
SHAPE = {"layers": 2, "attention_heads": 4, "head_size": 6}
FIRST, SECOND = "encoder.stages.0.attention", "encoder.stages.1.attention"


def transformer(**knobs):
    return build("transformer", **{**SHAPE, **knobs})


def apply(model, given=None, **knobs):
    return METHOD.apply(model, HeadsConfig(**knobs), given or context())


def silence(model, name, head):
    """Let a head return zeros, and return the model."""
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.out.weight[:, head * layer.head_size : (head + 1) * layer.head_size] = 0
    return model


def test_a_removed_head_is_a_head_that_returns_nothing() -> None:
    model = transformer()
    pruned = copy.deepcopy(model)
    remove_heads(pruned.get_submodule(FIRST), [0, 2])
    expected = silence(silence(model, FIRST, 0), FIRST, 2)
    texts = tokens(16)
    torch.testing.assert_close(pruned(texts), expected(texts), atol=1e-5, rtol=1e-5)
    layer = pruned.get_submodule(FIRST)
    assert (layer.heads, layer.query.weight.shape, layer.out.weight.shape) == (2, (12, 24), (24, 12))
    assert_padding_is_nothing(pruned)


def test_half_of_the_heads_take_half_of_the_operations_of_attention() -> None:
    model = transformer()
    pruned, state = apply(model, pruning_ratio=0.5, scope="uniform")
    before, after = (layer_costs(each, EXAMPLE) for each in (model, pruned))
    for name in (FIRST, SECOND):
        parts = [part for part in before if part.startswith(name)]
        assert sum(after[part].macs for part in parts) * 2 == sum(before[part].macs for part in parts)
    assert state.report["heads"] == {FIRST: [4, 2], SECOND: [4, 2]}
    assert state.report["sparsity"] == 0.5


def test_each_layer_keeps_its_most_important_head() -> None:
    _, state = apply(transformer(), pruning_ratio=0.9, scope="uniform")
    assert state.report["heads"] == {FIRST: [4, 1], SECOND: [4, 1]}
    first = next(row["scores"] for row in state.report["importance"] if row["layer"] == FIRST)
    best = first.index(max(first))
    assert sorted([best, *dict(state.history["heads"])[FIRST]]) == [0, 1, 2, 3]


def test_a_head_without_effect_has_no_gradient_and_goes_first() -> None:
    model = silence(transformer(), SECOND, 2)
    scores = score_by_gradient(model, find_attention(model), context(), torch.Generator())
    assert scores[SECOND][2] == 0
    assert (scores[SECOND] > 0).sum() == 3
    _, state = apply(model, pruning_ratio=0.125)
    assert state.history["heads"] == [[SECOND, [2]]]


def test_a_gradient_is_that_of_the_factor_of_a_head() -> None:
    """The definition of the importance: switch one head by a factor and differentiate the loss."""
    model, given = transformer(), context()
    texts, targets = given.calibration[0][0][:8], {"label": given.targets[0]["label"][:8]}
    small = Context(given.example, ((texts,),), (targets,), given.loss)
    scores = score_by_gradient(model, find_attention(model), small, torch.Generator())
    layer = model.get_submodule(FIRST)
    factor = torch.ones(4, requires_grad=True)
    handle = layer.out.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].unflatten(2, (4, 6)) * factor[:, None]).flatten(2)
    )
    expected = torch.zeros(4)
    for row in range(8):
        loss = given.loss(model(texts[row : row + 1]), {"label": targets["label"][row : row + 1]})
        expected += torch.autograd.grad(loss, factor)[0].abs()
    handle.remove()
    torch.testing.assert_close(scores[FIRST].float(), expected / expected.norm(), atol=1e-4, rtol=1e-4)


def test_confidence_is_the_largest_attention_of_each_token_without_padding() -> None:
    model = transformer()
    layer = model.get_submodule(FIRST)
    with torch.no_grad():
        # Queries of zero attend to all tokens alike.
        layer.query.weight[:6], layer.query.bias[:6] = 0, 0
    text = torch.tensor([[5, 7, 9, 11, 0, 0, 0, 0, 0, 0, 0, 0]])
    scores = score_by_confidence(model, {FIRST: layer}, Context(EXAMPLE, ((text,),)), torch.Generator())
    assert scores[FIRST][0].item() == pytest.approx(1 / 4)
    assert (scores[FIRST][1:] > 1 / 4).all()
    _, state = apply(model, pruning_ratio=0.1, criterion="confidence")
    assert state.history["heads"] == [[FIRST, [0]]]


def test_steps_end_at_the_ratio_and_the_history_repeats_them() -> None:
    model = transformer()
    knobs = {"pruning_ratio": 0.5, "schedule": "linear", "steps": 2, "step_epochs": 0}
    pruned, state = apply(model, **knobs)
    assert sum(layer.heads for layer in find_attention(pruned).values()) == 4
    assert {row["step"] for row in state.report["importance"]} == {1, 2}
    saved = MethodState(json.loads(json.dumps(dict(state.history))))
    again = replayed(METHOD, HeadsConfig(**knobs), saved, transformer(), pruned)
    assert torch.equal(again(tokens(8)), pruned(tokens(8)))


def test_it_is_exported_and_expanded() -> None:
    model = transformer()
    pruned, state = apply(model, pruning_ratio=0.5)
    assert_graph_is(export_float(pruned, EXAMPLE, HEADS), pruned)
    expanded = expand_model(pruned, model, state.history, EXAMPLE)
    torch.testing.assert_close(expanded(tokens(8)), pruned(tokens(8)), atol=1e-5, rtol=1e-5)
    assert find_attention(expanded)[FIRST].heads == 4
    (name, heads), *_ = state.history["heads"]
    kept = map_channels(model, state.history)[f"{name}.query"].outputs
    assert kept == [number for number in range(24) if number // 6 not in heads]


@pytest.mark.slow
def test_important_heads_keep_more_accuracy_than_unimportant_ones() -> None:
    model = settled("transformer", steps=80, layers=1, attention_heads=4, head_size=6)
    start, given = accuracy(model), context()
    scores = score_by_gradient(model, find_attention(model), given, torch.Generator())[FIRST]
    order = scores.argsort().tolist()
    results = []
    for heads in (order[:2], order[2:]):
        pruned = copy.deepcopy(model)
        remove_heads(pruned.get_submodule(FIRST), heads)
        results.append(accuracy(pruned))
    assert start > 0.5
    assert results[0] > results[1]


class TestRefusals:
    def test_models_without_heads_to_remove(self) -> None:
        with pytest.raises(CompressionError, match="no attention layer of a known form"):
            apply(nn.Sequential(nn.Embedding(40, 4), nn.Flatten(), nn.Linear(48, 5)))
        with pytest.raises(CompressionError, match="each attention layer has one"):
            apply(transformer(attention_heads=1))

    def test_criteria_without_data(self) -> None:
        for criterion, message in (("gradient", "loss"), ("confidence", "calibration batches")):
            with pytest.raises(CompressionError, match=message):
                apply(transformer(), Context(EXAMPLE), criterion=criterion)

    def test_histories_of_other_models(self) -> None:
        for history in ([[FIRST, [0, 1, 2, 3]]], [[FIRST, [4]]], [["encoder.stages.7.attention", [0]]], [[FIRST, []]]):
            with pytest.raises(CompressionError, match="does not fit"):
                METHOD.restore(transformer(), HeadsConfig(), MethodState({"heads": history}))
