"""Hidden sizes: the channels of a residual stream, which layer normalizations read."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.export.onnx import export_float
from autocompress.measure.cost import layer_costs
from autocompress.prune import Adaptive, AdaptiveConfig, Structured, StructuredConfig
from autocompress.prune.channels import ChannelGraph, replay_history, verify_pruned_model
from autocompress.prune.expansion import expand_model, map_channels
from autocompress.quantize.conversion import SplitAttention, convert_layers
from autocompress.targets.onnx_session import create_session
from tests.prune.toys import cnn, labelled_context

METHOD = Structured()
HALF = StructuredConfig(pruning_ratio=0.0, hidden_ratio=0.5)
TOKENS = (torch.tensor([[1, 2, 3, 4, 5], [5, 9, 0, 0, 0], [7, 7, 8, 1, 0]]),)


class Encoder(nn.Module):
    """Torch's transformer encoder for tokens, which predicts them with the table that it reads them from."""

    def __init__(self, norm_first=False, tied=False):
        super().__init__()
        self.table = nn.Embedding(10, 16)
        self.positions = nn.Parameter(torch.randn(1, 5, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(16, 10)
        if tied:
            self.head.weight = self.table.weight
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)

    def forward(self, tokens):
        x = self.encoder(self.table(tokens) + self.positions, src_key_padding_mask=tokens == 0)
        return self.head(x[:, 0])


def build(**knobs):
    torch.manual_seed(0)
    return Encoder(**knobs).eval()


@pytest.mark.parametrize("knobs", [{}, {"norm_first": True}, {"tied": True}], ids=str)
class TestEncoder:
    def test_the_width_of_the_residual_stream_shrinks_everywhere(self, knobs):
        pruned, state = METHOD.apply(build(**knobs), HALF, Context(TOKENS))
        assert (pruned.table.embedding_dim, pruned.positions.shape[2], pruned.head.in_features) == (8, 8, 8)
        for layer in pruned.encoder.layers:
            assert (layer.norm1.normalized_shape, layer.norm2.normalized_shape) == ((8,), (8,))
            assert (layer.linear1.in_features, layer.linear2.out_features) == (8, 8)
            # Heads and their size stay: 3 x 16 outputs, 8 inputs.
            attention = layer.self_attn
            assert (attention.num_heads, attention.embed_dim, tuple(attention.in_proj_weight.shape)) == (4, 8, (48, 8))
            assert (attention.out_proj.in_features, attention.out_proj.out_features) == (16, 8)
        assert (pruned.head.weight is pruned.table.weight) == knobs.get("tied", False)
        assert state.report["channels"]["table"] == [16, 8]

    def test_it_rebuilds_from_its_history(self, knobs):
        pruned, state = METHOD.apply(build(**knobs), HALF, Context(TOKENS))
        rebuilt = METHOD.restore(Encoder(**knobs), HALF, state)
        rebuilt.load_state_dict(pruned.state_dict())
        with torch.inference_mode():
            assert torch.equal(rebuilt(*TOKENS), pruned(*TOKENS))

    def test_the_weights_that_remain_are_those_of_the_model(self, knobs):
        model = build(**knobs)
        pruned, state = METHOD.apply(model, HALF, Context(TOKENS))
        (removed,) = [indices for name, where, indices in state.history["layers"] if (name, where) == ("table", True)]
        remaining = [channel for channel in range(16) if channel not in removed]
        assert torch.equal(pruned.table.weight, model.table.weight[:, remaining])
        norm, pruned_norm = model.encoder.layers[1].norm2, pruned.encoder.layers[1].norm2
        assert torch.equal(pruned_norm.weight, norm.weight[remaining])
        assert torch.equal(pruned_norm.bias, norm.bias[remaining])


def test_without_a_ratio_the_hidden_size_stays_and_is_named():
    model = build()
    pruned, state = METHOD.apply(model, StructuredConfig(pruning_ratio=0.5), Context(TOKENS))
    assert pruned.table.embedding_dim == 16
    assert state.report["uncut"]["table"].endswith("hidden_ratio removes such channels")
    assert "it runs through layer_norm in 'encoder.layers.0.norm1'" in state.report["uncut"]["table"]


def test_heads_of_torchs_attention_are_removed():
    pruned, state = METHOD.apply(build(), StructuredConfig(pruning_ratio=0.5), Context(TOKENS))
    for layer in pruned.encoder.layers:
        assert (layer.self_attn.num_heads, layer.self_attn.embed_dim) == (2, 16)
        assert layer.self_attn.in_proj_weight.shape == (24, 16)
    assert state.report["channels"]["encoder.layers.0.self_attn.in_proj_weight"] == [48, 24]


def test_both_ratios_of_zero_change_nothing():
    model = build()
    config = StructuredConfig(pruning_ratio=0.0, hidden_ratio=0.0)
    assert METHOD.is_identity(config)
    pruned, state = METHOD.apply(model, config, Context(TOKENS))
    assert state.history == {"layers": []}
    assert torch.equal(pruned(*TOKENS), model(*TOKENS))


def test_several_steps_reach_the_ratio_of_the_first_width():
    config = StructuredConfig(
        pruning_ratio=0.5, hidden_ratio=0.75, schedule="linear", steps=3, step_epochs=0, recovery_epochs=0
    )
    pruned, state = METHOD.apply(build(), config, Context(TOKENS))
    assert (pruned.table.embedding_dim, pruned.encoder.layers[0].linear1.out_features) == (4, 12)
    rebuilt = METHOD.restore(Encoder(), config, state)
    rebuilt.load_state_dict(pruned.state_dict())


def test_the_hidden_size_is_a_multiple_of_round_to():
    config = StructuredConfig(pruning_ratio=0.0, hidden_ratio=0.4, round_to=8)
    assert METHOD.apply(build(), config, Context(TOKENS))[0].table.embedding_dim == 8


def test_a_global_ranking_leaves_the_hidden_size_to_its_own_ratio():
    config = StructuredConfig(pruning_ratio=0.5, hidden_ratio=0.25, scope="global")
    pruned, _ = METHOD.apply(build(), config, Context(TOKENS))
    assert pruned.table.embedding_dim == 12


def test_adaptive_pruning_takes_the_ratio_too():
    targets = ({"label": torch.tensor([1, 2, 3])},)
    context = Context(
        TOKENS, (TOKENS,), targets, lambda output, wanted: nn.functional.cross_entropy(output, wanted["label"])
    )
    settings = {"steps": 1, "recovery_epochs": 0, "hidden_ratio": 0.5}
    # Pre-norm: torch makes no nested tensors for it.
    model = build(norm_first=True)
    pruned, _ = Adaptive().apply(model, AdaptiveConfig(pruning_ratio=0.0, **settings), context)
    assert pruned.table.embedding_dim == 8
    pruned, state = Adaptive().apply(model, AdaptiveConfig(pruning_ratio=0.5, **settings), context)
    assert pruned.table.embedding_dim == 8
    assert state.report["removed"] > 0.4


def test_a_protected_layer_keeps_the_hidden_size():
    context = Context(TOKENS, ignore=("head",))
    pruned, state = METHOD.apply(build(), StructuredConfig(pruning_ratio=0.5, hidden_ratio=0.5), context)
    assert pruned.table.embedding_dim == 16
    assert state.report["uncut"]["table"] == "'head' is protected by ignore"


def test_a_model_without_layer_normalization_has_no_hidden_size():
    with pytest.raises(CompressionError, match="no channel can be removed"):
        METHOD.apply(cnn(), HALF, labelled_context())


def test_a_number_that_the_forward_pass_reads_shrinks_too():
    class Reshaping(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.head = nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 3)
            self.hidden_size, self.classes = 8, 8

        def forward(self, tokens):
            x = self.norm(self.table(tokens)).view(len(tokens), -1, self.hidden_size)
            return self.head(x.mean(1)) * self.classes

    pruned, state = METHOD.apply(Reshaping().eval(), HALF, Context(TOKENS))
    assert (pruned.hidden_size, pruned.classes) == (4, 8)
    assert ["", "hidden_size", 4] in state.history["layers"]


def test_a_wrong_removal_is_noticed():
    # The second normalization reads the channels as a permutation, so that position by position would be wrong.
    model = build()
    graph = ChannelGraph(model, TOKENS, hidden=True)
    group = next(group for group in graph.groups if group.is_hidden)
    history = graph.list_removals([(group, [0, 1])])
    wrong = [[name, where, [2, 3] if name.endswith("norm1") else indices] for name, where, indices in history]
    replay_history(pruned := copy.deepcopy(model), wrong)
    with pytest.raises(CompressionError, match="pruning changed more"):
        verify_pruned_model(model, pruned, wrong, TOKENS)


def test_costs_are_those_of_the_narrow_model():
    pruned, _ = METHOD.apply(build(), HALF, Context(TOKENS))
    costs = layer_costs(pruned, (TOKENS[0][:1],))
    # Five positions: 8 inputs to 24, and 24 to 8.
    assert costs["encoder.layers.0.linear1"].macs == 5 * 8 * 24
    assert costs["encoder.layers.0.linear2"].macs == 5 * 24 * 8
    # Projections 8 -> 48 and 16 -> 8, scores and mixtures of 4 heads of 4 numbers.
    attention = sum(cost.macs for name, cost in costs.items() if name.startswith("encoder.layers.0.self_attn"))
    assert attention == 5 * (8 * 48 + 16 * 8) + 2 * 4 * 5 * 5 * 4
    assert sum(cost.parameters for cost in costs.values()) == sum(p.numel() for p in pruned.parameters())


@pytest.mark.slow
def test_the_exported_graph_computes_the_same():
    pruned, _ = METHOD.apply(build(), StructuredConfig(pruning_ratio=0.5, hidden_ratio=0.5), Context(TOKENS))
    session = create_session(export_float(pruned, (TOKENS[0][:1],), {"label": 10}).SerializeToString(), 1)
    (output,) = session.run(None, {session.get_inputs()[0].name: TOKENS[0].numpy()})
    assert torch.allclose(torch.from_numpy(output), pruned(*TOKENS), atol=1e-5)


def test_pruned_attention_can_be_quantized():
    pruned, _ = METHOD.apply(build(), StructuredConfig(pruning_ratio=0.5, hidden_ratio=0.5), Context(TOKENS))
    expected = pruned(*TOKENS)
    converted = convert_layers(copy.deepcopy(pruned))
    attention = converted.encoder.layers[0].self_attn
    assert isinstance(attention, SplitAttention)
    assert (attention.q_proj.in_features, attention.q_proj.out_features) == (8, 8)
    assert torch.allclose(converted(*TOKENS), expected, atol=1e-5)


def test_channels_are_mapped_and_an_expansion_is_refused_by_name():
    model = build()
    pruned, state = METHOD.apply(model, HALF, Context(TOKENS))
    channels = map_channels(model, state.history)
    assert len(channels["encoder.layers.0.norm1"].outputs) == 8
    assert channels["table"].outputs == channels["head"].inputs == channels["encoder.layers.0.norm1"].outputs
    with pytest.raises(CompressionError, match=r"'encoder.layers.0.norm1' lost channels, and zeros would change"):
        expand_model(pruned, model, state.history, (TOKENS[0][:1],))


class Unmasked(Encoder):
    """Reads no padding, for which torch makes nested tensors."""

    def forward(self, tokens):
        return self.head(self.encoder(self.table(tokens) + self.positions)[:, 0])


def test_removed_heads_are_expanded():
    torch.manual_seed(0)
    model = Unmasked().eval()
    pruned, state = METHOD.apply(model, StructuredConfig(pruning_ratio=0.5), Context(TOKENS))
    expanded = expand_model(pruned, model, state.history, (TOKENS[0][:1],))
    assert torch.allclose(expanded(*TOKENS), pruned(*TOKENS), atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Roberta", "Electra", "Albert", "GPT2", "ViT", "DeiT"])
def test_models_of_transformers_lose_half_of_their_width(name):
    from autocompress.tasks.module import Module
    from benchmarks.zoo_models import list_models

    torch.manual_seed(0)
    module, data = next(model for model in list_models() if model.name == f"transformers {name}").build()
    task = Module(module, data)
    inputs = task.splits(0).calibration.take(slice(0, 4)).inputs
    pruned, state = METHOD.apply(task.model, HALF, Context(task.example(), (inputs,)))
    assert sum(map(torch.numel, pruned.parameters())) < 0.55 * sum(map(torch.numel, task.model.parameters()))
    rebuilt = METHOD.restore(copy.deepcopy(task.model), HALF, state)
    rebuilt.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(*inputs), pruned(*inputs), rtol=0, atol=0)
