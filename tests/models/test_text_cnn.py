import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.core.task import InputSpec
from autocompress.distill.activations import has_token_output, head_layers, list_feature_layers
from autocompress.errors import KnobError, UsageError
from autocompress.export.onnx import export_float, export_quantized
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.models.text_cnn import BLOCKS, TextCNNConfig
from autocompress.quantize.folding import fold_batch_norm
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

SMALL = {"embedding": 8, "width": 12, "depth": 2}


def build(**knobs):
    return build_family("text_cnn", **{**SMALL, **knobs})


def settled(**knobs):
    return settle("text_cnn", **{**SMALL, **knobs})


@pytest.fixture(scope="module")
def trained():
    return {block: settled(block=block) for block in BLOCKS}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


class TestShapes:
    @settings(max_examples=20, deadline=None)
    @given(
        embedding=st.integers(2, 9),
        width=st.integers(4, 9),
        depth=st.integers(1, 3),
        kernel=st.sampled_from([3, 5, 7]),
        block=st.sampled_from(sorted(BLOCKS)),
        stem_stride=st.sampled_from([1, 2, 4]),
        pooling=st.sampled_from(["max", "mean"]),
        length=st.integers(1, 30),
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
        assert build().encoder(tokens(3)).shape == (3, SMALL["width"])


class TestPadding:
    @pytest.mark.slow
    @pytest.mark.parametrize("block", BLOCKS)
    def test_it_changes_nothing(self, trained, block):
        assert_padding_is_nothing(trained[block])

    @pytest.mark.parametrize("knobs", [{"stem_stride": 2, "kernel": 5}, {"stem_stride": 4, "pooling": "mean"}])
    def test_nor_behind_a_stride(self, knobs):
        # Six tokens under a stride of four: the last window reaches over the end of the text.
        assert_padding_is_nothing(settled(steps=10, **knobs))

    def test_without_a_padding_every_token_counts(self):
        model = build(inputs=(InputSpec((LENGTH,), vocabulary=VOCABULARY),)).eval()
        texts = tokens(8)
        changed = texts.clone()
        changed[:, -1] = 0
        assert model.encoder.embedding.padding_idx is None
        assert not torch.allclose(model(texts[:, :-1]), model(texts))

    def test_the_row_of_padding_learns_nothing(self, trained):
        assert not trained["plain"].encoder.embedding.weight[0].any()


class TestCost:
    def test_parameters_by_hand(self):
        # embedding 40*8; stem 8*12*3 + 24; two blocks of 12*12*3 + 24; head 12*5 + 5
        assert parameters(build(block="plain")) == 320 + (288 + 24) + 2 * (432 + 24) + 65
        # depthwise 12*3 + 24, pointwise 12*12 + 24
        assert parameters(build(block="separable")) == 320 + (288 + 24) + 2 * (36 + 24 + 144 + 24) + 65
        # windows of 1, 3 and 5 with four channels each, then 12*12
        parallel = 12 * 4 * (1 + 3 + 5) + 3 * 8 + 144 + 24
        assert parameters(build(block="parallel")) == 320 + (288 + 24) + 2 * parallel + 65

    def test_flops_by_hand(self):
        # Looking up the embedding costs nothing; 12 positions, six behind a stride of two.
        model = build(block="plain")
        assert count_flops(layer_costs(model, EXAMPLE)) == 2 * (12 * 288 + 2 * 12 * 432 + 60)
        strided = build(block="residual", depth=1, stem_stride=2)
        assert count_flops(layer_costs(strided, EXAMPLE)) == 2 * (6 * 288 + 2 * 6 * 432 + 60)


class TestUse:
    @pytest.mark.parametrize("block", BLOCKS)
    def test_every_block_learns(self, trained, block):
        assert accuracy(trained[block]) > 0.5

    @pytest.mark.slow
    @pytest.mark.parametrize("block", BLOCKS)
    def test_symbolic_trace_computes_the_same(self, trained, block):
        texts = tokens(5)
        torch.testing.assert_close(torch.fx.symbolic_trace(trained[block])(texts), trained[block](texts))

    def test_taps_are_the_stages_and_feature_terms_read_them(self, trained):
        model, teacher = trained["plain"], trained["parallel"]
        assert list_feature_layers(model) == ["encoder.stages.0", "encoder.stages.1"]
        assert head_layers(model) == ["heads.label"]
        assert not has_token_output(model.encoder.stages[0])
        assert_feature_terms_run(model, teacher)


@pytest.mark.parametrize("block", BLOCKS)
class TestCompression:
    @pytest.mark.slow
    @torch.no_grad()
    def test_structured_pruning_shrinks_it_and_is_replayed(self, trained, block):
        method = PRUNE.get("structured")
        config = method.config(pruning_ratio=0.5)
        model = trained[block]
        pruned, state = method.apply(model, config, context())
        assert count_flops(layer_costs(pruned, EXAMPLE)) < 0.55 * count_flops(layer_costs(model, EXAMPLE))
        assert set(state.report["uncut"]) == {"heads.label"}
        assert torch.equal(replayed(method, config, state, build(block=block), pruned)(tokens(4)), pruned(tokens(4)))
        assert_padding_is_nothing(pruned)
        if block == "plain":
            assert_graph_is(export_float(fold_batch_norm(pruned, EXAMPLE), EXAMPLE, HEADS), pruned)

    @torch.no_grad()
    def test_unstructured_pruning_zeroes_half(self, trained, block):
        method = PRUNE.get("unstructured")
        pruned, state = method.apply(trained[block], method.config(pruning_ratio=0.5), context())
        assert state.report["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert (pruned.encoder.embedding.weight == 0).float().mean() > 0.4
        assert pruned(tokens(4)).isfinite().all()

    @pytest.mark.slow
    @pytest.mark.parametrize("weight_bits", [8, 4])
    @torch.no_grad()
    def test_post_training_quantization_keeps_the_answers_is_replayed_and_exports(self, trained, block, weight_bits):
        method = QUANTIZE.get("post_training")
        config = method.config(weight_bits=weight_bits, activation_bits=8)
        model = fold_batch_norm(trained[block], EXAMPLE)
        assert not any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
        quantized, state = method.apply(model, config, context())
        assert linear_and_convolutions(model) <= set(state.bits)
        assert accuracy(quantized) > accuracy(model) - 0.1
        assert torch.equal(replayed(method, config, state, model, quantized)(tokens(4)), quantized(tokens(4)))
        if (weight_bits, block) in ((8, "residual"), (4, "plain")):
            assert_graph_is(export_quantized(quantized, state, EXAMPLE, HEADS), quantized)


class TestRefusals:
    @pytest.mark.parametrize("inputs", [(InputSpec((1, 12)),), (InputSpec((12,)),), INPUTS * 2])
    def test_an_input_that_is_no_text(self, inputs):
        with pytest.raises(UsageError, match="'text_cnn' takes one input of whole numbers"):
            build(inputs=inputs)

    @pytest.mark.parametrize("knobs", [{"width": 2}, {"kernel": 4}, {"block": "dense"}, {"pooling": "sum"}])
    def test_a_knob_outside_its_range(self, knobs):
        with pytest.raises(KnobError, match=r"text_cnn\."):
            TextCNNConfig(**knobs)

    def test_no_class(self):
        with pytest.raises(UsageError, match="at least one class"):
            build_family("text_cnn", heads={"label": 0})
