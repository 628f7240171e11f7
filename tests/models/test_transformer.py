import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from autocompress.core.registry import DISTILL, PRUNE, QUANTIZE
from autocompress.core.task import InputSpec
from autocompress.distill.activations import has_token_output, head_layers, list_feature_layers, record_activations
from autocompress.distill.base import Activations, Batch
from autocompress.errors import KnobError, UsageError
from autocompress.export.onnx import export_float, export_quantized
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.models.transformer import Attention, Positions, TransformerConfig
from tests.models.texts import (
    EXAMPLE,
    HEADS,
    INPUTS,
    LENGTH,
    VOCABULARY,
    accuracy,
    assert_feature_terms_run,
    assert_graph_is,
    assert_padding_is_nothing,
    build as build_family,
    context,
    linear_and_convolutions,
    replayed,
    settled as settle,
    tokens,
)

SMALL = {"layers": 2, "attention_heads": 2, "head_size": 6}
WIDTH = 12
PROBABILITIES = "encoder.stages.1.attention.probabilities"


def build(**knobs):
    return build_family("transformer", **{**SMALL, **knobs})


def settled(**knobs):
    return settle("transformer", steps=80, **{**SMALL, **knobs})


@pytest.fixture(scope="module")
def trained():
    return settled()


@pytest.fixture(scope="module")
def other():
    return settled(attention_heads=3, head_size=4, embedding=5, pooling="max")


class TestShapes:
    @settings(max_examples=20, deadline=None)
    @given(
        layers=st.integers(1, 3),
        attention_heads=st.integers(1, 5),
        head_size=st.integers(2, 7),
        feed_forward=st.integers(1, 4),
        embedding=st.integers(0, 9),
        pooling=st.sampled_from(["max", "mean"]),
        length=st.integers(1, 20),
    )
    def test_any_knobs_fit_any_text(self, length, **knobs):
        inputs = (InputSpec((length,), vocabulary=VOCABULARY, missing=0),)
        model = build(inputs=inputs, **knobs).eval()
        assert model(tokens(3, length=length)).isfinite().all()

    def test_several_heads_return_a_mapping_in_the_given_order(self):
        out = build(heads={"language": 30, "kind": 4})(tokens(4))
        assert {head: tuple(t.shape) for head, t in out.items()} == {"language": (4, 30), "kind": (4, 4)}
        assert list(out) == ["language", "kind"]

    def test_the_encoder_stands_alone(self):
        assert build().encoder(tokens(3)).shape == (3, WIDTH)

    def test_no_layer_stands_behind_an_embedding_as_wide_as_the_model(self):
        assert isinstance(build(embedding=WIDTH).encoder.widen, nn.Identity)
        assert build(embedding=5).encoder.widen.weight.shape == (WIDTH, 5)


class TestPadding:
    @pytest.mark.slow
    def test_it_changes_nothing(self, trained, other):
        assert_padding_is_nothing(trained)
        assert_padding_is_nothing(other)

    @pytest.mark.slow
    @torch.no_grad()
    def test_no_token_attends_to_it_and_it_is_zero_behind_every_block(self, trained):
        texts = tokens(20)
        with record_activations(trained, [PROBABILITIES, "encoder.stages.0"]) as caught:
            trained(texts)
        padding = texts == 0
        attended = caught[PROBABILITIES].transpose(1, 3)[padding.unsqueeze(2).expand(-1, -1, LENGTH)]
        assert len(attended) > 0
        assert not attended.any()
        assert not caught["encoder.stages.0"][padding].any()

    def test_without_a_padding_every_token_counts(self):
        model = build(inputs=(InputSpec((LENGTH,), vocabulary=VOCABULARY),)).eval()
        texts = tokens(8)
        texts[:, -1] = 0
        assert not torch.allclose(model(texts[:, :-1]), model(texts))


class TestAttention:
    @torch.no_grad()
    def test_it_is_what_torch_computes(self):
        torch.manual_seed(0)
        ours, theirs = Attention(12, 3, 4).eval(), nn.MultiheadAttention(12, 3, batch_first=True).eval()
        projections = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in projections]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in projections]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
        x, absent = torch.randn(2, 7, 12), torch.zeros(2, 7, dtype=torch.bool)
        absent[1, 5:] = True
        expected, weights = theirs(x, x, x, key_padding_mask=absent, average_attn_weights=False)
        with record_activations(ours, ["probabilities"]) as caught:
            found = ours(x, Positions((~absent).float()))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(caught["probabilities"], weights, atol=1e-6, rtol=1e-5)

    def test_the_order_of_tokens_counts(self, trained):
        texts = torch.arange(1, LENGTH + 1)[None]
        assert not torch.allclose(trained(texts), trained(texts.flip(1)), atol=1e-4)


class TestCost:
    def test_parameters_by_hand(self):
        # embedding 40*12, positions 12*12; a block: four of 12*12 + 12, 12*24 + 24, 24*12 + 12, two norms of 24
        block = 4 * (144 + 12) + (288 + 24) + (288 + 12) + 2 * 24
        found = sum(p.numel() for p in build().parameters())
        assert found == 480 + 144 + 2 * block + 24 + (12 * 5 + 5)

    def test_flops_by_hand(self):
        # 12 tokens: four projections, scores and their average, two feed-forward layers; then the head
        block = 12 * 4 * 144 + 2 * 12 * 12 * 12 + 12 * 2 * 288
        assert count_flops(layer_costs(build(), EXAMPLE)) == 2 * (2 * block + 12 * 5)

    def test_products_belong_to_the_attention(self):
        layers = layer_costs(build(), EXAMPLE)
        assert layers["encoder.stages.0.attention"].macs == 2 * 12 * 12 * 12
        assert layers["encoder.embedding"].macs == 0


class TestUse:
    @pytest.mark.slow
    def test_it_learns(self, trained, other):
        assert accuracy(trained) > 0.5
        assert accuracy(other) > 0.5

    def test_symbolic_trace_computes_the_same(self, trained):
        texts = tokens(5)
        torch.testing.assert_close(torch.fx.symbolic_trace(trained)(texts), trained(texts))

    def test_taps_are_the_stages_and_feature_terms_read_them(self, trained, other):
        assert list_feature_layers(trained) == ["encoder.stages.0", "encoder.stages.1"]
        assert head_layers(trained) == ["heads.label"]
        assert has_token_output(trained.encoder.stages[0])
        assert_feature_terms_run(trained, other)

    def test_feature_terms_read_it_beside_a_convolutional_network(self, trained):
        assert_feature_terms_run(trained, build_family("text_cnn", width=8, depth=1).eval())

    def test_the_attention_term_compares_its_probabilities(self, trained, other):
        texts, found = tokens(6), []
        for model in (trained, other):
            with record_activations(model, [PROBABILITIES]) as caught, torch.no_grad():
                logits = model(texts)
            found.append(Activations({"label": logits}, dict(caught)))
        term = DISTILL.get("attention")
        loss = term.loss(term.config(weight=1.0), Batch(*found, {}, None, nn.Identity()))
        ours, theirs = (part.layer_outputs[PROBABILITIES].mean(1) for part in found)
        expected = F.kl_div(ours.clamp_min(1e-12).log(), theirs, reduction="sum") / (6 * LENGTH)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
        assert loss.item() > 0


class TestCompression:
    @pytest.mark.slow
    @torch.no_grad()
    def test_structured_pruning_removes_heads_and_narrows_the_feed_forward_layers(self, trained):
        method = PRUNE.get("structured")
        config = method.config(pruning_ratio=0.5)
        pruned, state = method.apply(trained, config, context())
        blocks = [f"encoder.stages.{number}" for number in (0, 1)]
        attention = [f"{block}.attention.{part}" for block in blocks for part in ("query", "key", "value")]
        assert state.report["channels"] == {
            **{layer: [12, 6] for layer in attention},
            **{f"{block}.feed_forward.0": [24, 12] for block in blocks},
        }
        # Channels that a norm reads stay.
        stays = [f"{block}.{layer}" for block in blocks for layer in ("attention.out", "feed_forward.2")]
        assert set(state.report["uncut"]) == {"encoder.embedding", "heads.label", *stays}
        # In each block half of the four projections, of the feed-forward layers, and of scores and their average.
        per_block = 12 * 4 * 12 * 6 + 12 * 2 * 12 * 12 + 2 * 12 * 12 * 6
        assert count_flops(layer_costs(trained, EXAMPLE)) - count_flops(layer_costs(pruned, EXAMPLE)) == 4 * per_block
        assert torch.equal(replayed(method, config, state, build(), pruned)(tokens(4)), pruned(tokens(4)))
        assert_padding_is_nothing(pruned)
        assert_graph_is(export_float(pruned, EXAMPLE, HEADS), pruned)

    @torch.no_grad()
    def test_unstructured_pruning_zeroes_half(self, trained):
        method = PRUNE.get("unstructured")
        pruned, state = method.apply(trained, method.config(pruning_ratio=0.5), context())
        assert state.report["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert pruned(tokens(4)).isfinite().all()

    @torch.no_grad()
    def test_whole_blocks_can_go(self, trained):
        method = PRUNE.get("depth")
        pruned, _ = method.apply(trained, method.config(), context())
        assert count_flops(layer_costs(pruned, EXAMPLE)) < 0.55 * count_flops(layer_costs(trained, EXAMPLE))
        assert_padding_is_nothing(pruned)

    @pytest.mark.slow
    @pytest.mark.parametrize("weight_bits", [8, 4])
    @pytest.mark.parametrize("which", ["trained", "other"])
    @torch.no_grad()
    def test_post_training_quantization_keeps_the_answers_is_replayed_and_exports(self, request, which, weight_bits):
        model = request.getfixturevalue(which)
        method = QUANTIZE.get("post_training")
        config = method.config(weight_bits=weight_bits, activation_bits=8)
        quantized, state = method.apply(model, config, context())
        assert linear_and_convolutions(model) <= set(state.bits)
        assert accuracy(quantized) > accuracy(model) - 0.1
        assert torch.equal(replayed(method, config, state, model, quantized)(tokens(4)), quantized(tokens(4)))
        if (weight_bits, which) == (4, "other"):
            assert_graph_is(export_quantized(quantized, state, EXAMPLE, HEADS), quantized)


class TestRefusals:
    @pytest.mark.parametrize("inputs", [(InputSpec((1, 12)),), (InputSpec((12,)),), INPUTS * 2])
    def test_an_input_that_is_no_text(self, inputs):
        with pytest.raises(UsageError, match="'transformer' takes one input of whole numbers"):
            build(inputs=inputs)

    @pytest.mark.parametrize("knobs", [{"layers": 0}, {"head_size": 1}, {"feed_forward": 0}, {"pooling": "sum"}])
    def test_a_knob_outside_its_range(self, knobs):
        with pytest.raises(KnobError, match=r"transformer\."):
            TransformerConfig(**knobs)
