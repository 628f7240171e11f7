import copy

import pytest
import torch
from torch import nn

from autocompress.core.heads import Tags
from autocompress.core.method import MethodState
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.errors import CompressionError
from autocompress.export.onnx import export_quantized
from autocompress.measure import layer_costs
from autocompress.models.transformer import Positions
from autocompress.prune import TokensConfig, expand_model
from tests.models.texts import (
    EXAMPLE,
    HEADS,
    LENGTH,
    accuracy,
    assert_graph_is,
    assert_padding_is_nothing,
    build,
    context,
    replayed,
    settled,
    tokens,
)

METHOD = PRUNE.get("tokens")
FIRST, SECOND = "encoder.stages.0.attention", "encoder.stages.1.attention"


def transformer(**knobs):
    return build("transformer", **{"layers": 2, "attention_heads": 4, "head_size": 6, **knobs})


def apply(model, **knobs):
    return METHOD.apply(model, TokensConfig(**knobs), context())


@pytest.fixture(scope="module")
def learned():
    return settled("transformer", steps=60, layers=2, attention_heads=2, head_size=8)


class TestSelection:
    def test_the_tokens_that_receive_the_most_attention_remain(self):
        positions = Positions(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
        # Rows: queries. The last query is padding, and what it attends to does not count.
        attention = torch.tensor([[[0.1, 0.5, 0.4, 0], [0.2, 0.5, 0.3, 0], [0, 0.6, 0.4, 0], [1.0, 0, 0, 0]]])
        positions.select(attention.unsqueeze(1), 2)
        chosen = positions.take(torch.arange(4.0).view(1, 4, 1))
        assert chosen.flatten().tolist() == [1, 2]
        assert positions.mask.tolist() == [[1, 1]]
        assert positions.compute_bias().shape == (1, 1, 1, 2)

    def test_padding_goes_first(self):
        positions = Positions(torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
        positions.select(torch.tensor([[0.5, 0.0, 0.5, 0.0]]).expand(1, 1, 4, 4), 2)
        assert sorted(positions.take(torch.arange(4.0).view(1, 4, 1)).flatten().tolist()) == [0, 2]

    def test_a_shorter_text_keeps_all(self):
        positions = Positions(torch.ones(1, 3))
        positions.select(torch.full((1, 1, 3, 3), 1 / 3), 5)
        assert positions.mask.shape == (1, 3)


@torch.no_grad()
def test_texts_that_fit_lose_nothing():
    model = transformer()
    pruned, state = apply(model, pruning_ratio=0.5)
    # 12 / sqrt(2), rounded up, and half.
    assert state.report["kept_tokens"] == {FIRST: 9, SECOND: 6}
    short = tokens(20, length=6)
    texts = nn.functional.pad(short, (0, LENGTH - 6))
    torch.testing.assert_close(pruned(texts), model(texts), atol=1e-5, rtol=1e-5)
    texts = EXAMPLE[0]
    assert not torch.allclose(pruned(texts), model(texts))
    assert_padding_is_nothing(pruned)


def test_operations_by_hand():
    model = transformer()
    pruned, state = apply(model, pruning_ratio=0.5)
    before, after = (layer_costs(each, EXAMPLE) for each in (model, pruned))
    assert sum(cost.macs for name, cost in before.items() if name.endswith("feed_forward.0")) == 2 * 12 * 24 * 48
    assert after["encoder.stages.0.feed_forward.0"].macs == 9 * 24 * 48
    assert after["encoder.stages.1.attention"].macs == 2 * 9 * 9 * 24
    assert after["encoder.stages.1.feed_forward.0"].macs == 6 * 24 * 48
    assert state.report["sparsity"] == 0.5


def test_the_answer_survives_where_the_tokens_that_count_are_attended_to(learned):
    pruned, _ = apply(learned, pruning_ratio=0.5)
    assert accuracy(pruned) > accuracy(learned) - 0.1
    assert accuracy(learned) > 0.5


def test_a_nothing_ratio_drops_nothing_and_the_given_model_stays(learned):
    before = copy.deepcopy(learned.state_dict())
    same, _ = apply(learned, pruning_ratio=0.0)
    pruned, _ = apply(learned, pruning_ratio=0.9)
    torch.testing.assert_close(same(tokens(8)), learned(tokens(8)))
    assert learned.encoder.stages[0].attention.kept_tokens == 0
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())


def test_a_saved_model_drops_the_same(learned):
    config = TokensConfig(pruning_ratio=0.7)
    pruned, state = METHOD.apply(learned, config, context())
    again = replayed(METHOD, config, state, learned, pruned)
    torch.testing.assert_close(again(tokens(16)), pruned(tokens(16)))
    # All weights are those of the original: nothing to map back.
    expanded = expand_model(pruned, learned, state.history, EXAMPLE)
    assert {name: v.shape for name, v in expanded.state_dict().items()} == {
        name: v.shape for name, v in learned.state_dict().items()
    }


@pytest.mark.slow
def test_the_graph_computes_the_same(learned):
    pruned, _ = apply(learned, pruning_ratio=0.6)
    quantize = QUANTIZE.get("post_training")
    quantized, state = quantize.apply(pruned, quantize.config(weight_bits=8, activation_bits=8), context())
    assert_graph_is(export_quantized(quantized, state, EXAMPLE, HEADS), quantized)


class TestErrors:
    def test_a_model_with_an_output_for_each_token(self):
        model = transformer(heads={"tags": Tags(3)})
        with pytest.raises(CompressionError, match="has an output for each token"):
            apply(model)

    def test_a_model_without_attention(self):
        with pytest.raises(CompressionError, match="no attention layer that can choose tokens"):
            apply(build("text_cnn"))

    @pytest.mark.parametrize(
        "history", [[["encoder.stages.7", 5]], [[FIRST, 0]], [[FIRST, 1.5]], [[FIRST]], [3], [[FIRST, 5]] * 9]
    )
    def test_a_history_of_another_model(self, history):
        with pytest.raises(CompressionError):
            METHOD.restore(transformer(), TokensConfig(), MethodState({"tokens": history}))
