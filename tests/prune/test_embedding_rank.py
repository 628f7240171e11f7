import copy

import pytest
import torch
from torch import nn

from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.export.onnx import export_float
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.prune import EmbeddingRank, EmbeddingRankConfig, Structured, StructuredConfig, expand_model
from autocompress.quantize import PostTraining, PostTrainingConfig
from autocompress.targets.onnx_session import create_session
from tests.prune.zoo import Net

METHOD = EmbeddingRank()
HALF = EmbeddingRankConfig(pruning_ratio=0.5)
TOKENS = (torch.tensor([[1, 2, 3, 0], [39, 5, 0, 0]]),)


class Texts(Net):
    """A table of 40 rows, one of 3 rows and one that the output layer shares."""

    def __init__(self):
        super().__init__(
            words=nn.Embedding(40, 8, padding_idx=0),
            kinds=nn.Embedding(3, 8),
            tied=nn.Embedding(40, 8),
            norm=nn.LayerNorm(8),
            out=nn.Linear(8, 40),
        )
        self.out.weight = self.tied.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.kinds(tokens % 3) + self.tied(tokens)
        return self.out(self.norm(x).mean(1))


def build():
    torch.manual_seed(0)
    return Texts().eval()


def test_the_factors_are_the_closest_of_their_rank():
    model = build()
    pruned, state = METHOD.apply(model, HALF, Context(TOKENS))
    left, values, right = torch.linalg.svd(model.words.weight.detach().double(), full_matrices=False)
    expected = left[:, :4] * values[:4] @ right[:4]
    assert torch.allclose(pruned.words.weight.double(), expected, atol=1e-5)
    directions = pruned.words.widen.weight
    assert torch.allclose(directions.T @ directions, torch.eye(4), atol=1e-5)
    error = float(values[4:].norm() / values.norm())
    assert state.report["tables"] == {"words": {"columns": [8, 4], "error": pytest.approx(error, rel=1e-4)}}
    assert state.report["sparsity"] == pytest.approx((40 * 8 - 4 * 48) / (83 * 8))


def test_a_table_of_low_rank_is_replaced_without_loss():
    model = build()
    with torch.no_grad():
        model.words.weight.copy_(torch.randn(40, 3) @ torch.randn(3, 8))
        model.words.weight[0] = 0
    pruned, state = METHOD.apply(model, HALF, Context(TOKENS))
    assert state.report["tables"]["words"]["error"] < 1e-5
    assert torch.allclose(pruned(*TOKENS), model(*TOKENS), atol=1e-4)
    # Padding stays zero, and training leaves it there.
    assert not pruned.words.weight[0].any()
    pruned(*TOKENS).sum().backward()
    assert not pruned.words.table.weight.grad[0].any()


def test_other_tables_are_left_alone_by_name():
    _, state = METHOD.apply(build(), HALF, Context(TOKENS))
    assert state.report["uncut"] == {
        "kinds": "fewer columns and a linear layer are no smaller",
        "tied": "'out' shares its weight",
    }
    model = build()
    del model.words, model.kinds
    with pytest.raises(CompressionError, match=r"no embedding table .*'tied': 'out' shares its weight"):
        METHOD.apply(model, HALF, Context(TOKENS))


def test_a_protected_table_and_one_with_a_largest_norm_stay():
    model = Net(
        words=nn.Embedding(40, 8), bound=nn.Embedding(40, 8, max_norm=1.0), most=nn.EmbeddingBag(40, 8, mode="max")
    )
    with pytest.raises(CompressionError) as error:
        METHOD.apply(model, HALF, Context(TOKENS, ignore=("words",)))
    assert "'words': it is protected by ignore" in str(error.value)
    assert str(error.value).count("max_norm or the mode max") == 2


def test_a_ratio_that_saves_nothing_returns_the_model():
    model = build()
    pruned, state = METHOD.apply(model, EmbeddingRankConfig(pruning_ratio=0.1), Context(TOKENS))
    assert state.history == {"factorized": []}
    assert torch.equal(pruned(*TOKENS), model(*TOKENS))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_embeddings_are_factorized_too(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(40, 8, mode=mode), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(40, 4) @ torch.randn(4, 8))
    pruned, _ = METHOD.apply(model, HALF, Context(TOKENS))
    assert pruned[0].table.embedding_dim == 4
    assert torch.allclose(pruned(*TOKENS), model(*TOKENS), atol=1e-4)


def test_it_rebuilds_from_its_history():
    pruned, state = METHOD.apply(build(), HALF, Context(TOKENS))
    rebuilt = METHOD.restore(Texts(), HALF, state)
    rebuilt.load_state_dict(pruned.state_dict())
    assert torch.equal(rebuilt(*TOKENS), pruned(*TOKENS))


@pytest.mark.parametrize("entry", [["out", 4], ["words", 8], ["words", 0], ["words"], 3], ids=str)
def test_a_history_of_another_model_is_refused(entry):
    with pytest.raises(CompressionError, match="the pruning history does not fit"):
        METHOD.restore(build(), HALF, MethodState(history={"factorized": [entry]}))


def test_a_history_that_repeats_itself_is_refused():
    with pytest.raises(CompressionError, match="names 9 embedding tables"):
        METHOD.restore(build(), HALF, MethodState(history={"factorized": [["words", 4]] * 9}))


def test_costs_count_the_table_and_the_layer():
    model = build()
    pruned, _ = METHOD.apply(model, HALF, Context(TOKENS))
    example = (TOKENS[0][:1],)
    before, after = layer_costs(model, example), layer_costs(pruned, example)
    assert after["words.widen"].macs == 4 * 4 * 8
    assert count_flops(after) - count_flops(before) == 2 * 4 * 4 * 8
    assert after["words.table"].weights + after["words.widen"].weights == 40 * 4 + 4 * 8
    assert sum(cost.parameters for cost in after.values()) == sum(p.numel() for p in pruned.parameters())


def test_both_factors_are_quantized():
    pruned, _ = METHOD.apply(build(), HALF, Context(TOKENS))
    context = Context(TOKENS, (TOKENS,))
    quantized, state = PostTraining().apply(pruned, PostTrainingConfig(weight_bits=8, activation_bits=8), context)
    assert {state.bits[name].weight for name in ("words.table", "words.widen")} == {8}
    assert torch.allclose(quantized(*TOKENS), pruned(*TOKENS), atol=0.2)


def test_channels_behind_it_can_be_removed():
    pruned, _ = METHOD.apply(build(), HALF, Context(TOKENS))
    config = StructuredConfig(pruning_ratio=0.5, hidden_ratio=0.5)
    narrow, _ = Structured().apply(pruned, config, Context(TOKENS))
    assert narrow.words.widen.out_features == narrow.tied.embedding_dim == 4
    assert narrow.words.table.embedding_dim == narrow.words.widen.in_features == 2


def test_an_expansion_is_refused_by_name():
    model = build()
    pruned, state = METHOD.apply(model, HALF, Context(TOKENS))
    with pytest.raises(CompressionError, match=r"adds the tensor 'words.table.weight'"):
        expand_model(pruned, copy.deepcopy(model), state.history, (TOKENS[0][:1],))


@pytest.mark.slow
def test_the_exported_graph_computes_the_same():
    pruned, _ = METHOD.apply(build(), HALF, Context(TOKENS))
    session = create_session(export_float(pruned, (TOKENS[0][:1],), {"label": 40}).SerializeToString(), 1)
    (output,) = session.run(None, {session.get_inputs()[0].name: TOKENS[0].numpy()})
    assert torch.allclose(torch.from_numpy(output), pruned(*TOKENS), atol=1e-5)
