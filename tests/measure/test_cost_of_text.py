"""What models of texts cost, against counts by hand: tables, recurrent layers, attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.method import LayerBits
from autocompress.core.task import InputSpec
from autocompress.measure import cost
from autocompress.measure.cost import LayerCost, layer_costs
from autocompress.models.base import build_family_model

STEPS, FEATURES, UNITS = 5, 8, 6
X = torch.zeros(1, STEPS, FEATURES)
IDS = torch.ones(1, STEPS, dtype=torch.int64)


class Calls(nn.Module):
    """Holds a layer and a function that runs it."""

    def __init__(self, layer, run):
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, *inputs):
        return self.run(self.layer, *inputs)


def macs(layer, run=None, *example):
    """Return the multiply-accumulates, which the meta device must count the same."""
    example = example or (X,)
    model = Calls(layer, run or (lambda inner, *inputs: inner(*inputs)))
    result = cost.count_macs(layer_costs(model, example))
    meta = Calls(layer.to_empty(device="meta"), model.run)
    assert cost.count_macs(layer_costs(meta, tuple(tensor.to("meta") for tensor in example))) == result
    return result


class TestTables:
    def test_look_up_costs_nothing_and_every_row_counts(self):
        layers = layer_costs(nn.Embedding(20, FEATURES, padding_idx=0), (IDS,))
        (row,) = layers.values()
        assert (row.macs, row.weights, row.parameters, row.channels) == (0, 160, 160, 20)
        # The row of the padding is zero.
        assert row.nonzero == row.nonzero_weights == 152

    def test_bytes_of_quantized_rows_with_a_scale_each(self):
        layers = layer_costs(nn.Embedding(20, FEATURES), (IDS,))
        assert cost.count_model_bytes(layers, {}) == 4 * 160
        assert cost.count_model_bytes(layers, {"": LayerBits(4)}) == 80 + 4 * 20

    def test_bags_cost_nothing_too(self):
        assert macs(nn.EmbeddingBag(20, FEATURES), None, IDS) == 0

    def test_table_used_twice_counts_once(self):
        table = nn.Embedding(20, FEATURES)
        layers = layer_costs(Calls(table, lambda inner, ids: inner(ids) + inner(ids + 1)), (IDS,))
        assert layers["layer"].parameters == 160

    def test_a_table_that_is_the_last_layer_too(self):
        table, last = nn.Embedding(20, FEATURES), nn.Linear(FEATURES, 20, bias=False)
        last.weight = table.weight
        layers = layer_costs(nn.Sequential(table, last), (IDS,))
        assert cost.count_parameters(layers) == 160
        assert cost.count_macs(layers) == STEPS * FEATURES * 20


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
class TestRecurrent:
    def test_one_layer(self, kind, gates):
        assert macs(kind(FEATURES, UNITS, batch_first=True)) == STEPS * gates * UNITS * (FEATURES + UNITS)

    def test_layers_and_directions(self, kind, gates):
        first = 2 * STEPS * gates * UNITS * (FEATURES + UNITS)
        # The second layer reads both directions of the first.
        second = 2 * STEPS * gates * UNITS * (2 * UNITS + UNITS)
        assert macs(kind(FEATURES, UNITS, 2, batch_first=True, bidirectional=True)) == first + second

    def test_time_first_and_without_biases(self, kind, gates):
        result = macs(kind(FEATURES, UNITS, bias=False), lambda inner, x: inner(x.transpose(0, 1))[0])
        assert result == STEPS * gates * UNITS * (FEATURES + UNITS)

    def test_a_packed_sequence(self, kind, gates):
        def run(inner, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [STEPS - 2], batch_first=True)
            return inner(packed)[1]

        assert macs(kind(FEATURES, UNITS, batch_first=True), run) == (STEPS - 2) * gates * UNITS * (FEATURES + UNITS)

    def test_a_single_step(self, kind, gates):
        cell = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[kind](FEATURES, UNITS)
        assert macs(cell, lambda inner, x: inner(x[:, 0])) == gates * UNITS * (FEATURES + UNITS)


class TestAttention:
    @pytest.mark.parametrize("heads", [1, 2, 4])
    @pytest.mark.parametrize("need_weights", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    def test_torch_attention(self, heads, need_weights, masked):
        def run(inner, x):
            absent = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if masked else None
            return inner(x, x, x, need_weights=need_weights, key_padding_mask=absent)[0]

        # Three projections in and one out, scores of each pair of tokens and their average, over all heads.
        expected = 4 * STEPS * FEATURES * FEATURES + 2 * STEPS * STEPS * FEATURES
        assert macs(nn.MultiheadAttention(FEATURES, heads, batch_first=True), run) == expected

    def test_cross_attention(self):
        layer = nn.MultiheadAttention(FEATURES, 2, batch_first=True, kdim=4, vdim=6)
        result = macs(layer, lambda inner, *inputs: inner(*inputs)[0], X, torch.zeros(1, 7, 4), torch.zeros(1, 7, 6))
        projections = STEPS * FEATURES * FEATURES + 7 * 4 * FEATURES + 7 * 6 * FEATURES
        assert result == projections + 2 * STEPS * 7 * FEATURES + STEPS * FEATURES * FEATURES

    @pytest.mark.parametrize("options", [{}, {"is_causal": True}])
    def test_fused_attention(self, options):
        def run(_, x):
            heads = x.view(1, STEPS, 2, 4).transpose(1, 2)
            return F.scaled_dot_product_attention(heads, heads, heads, **options)

        # No kernel skips the half that a causal mask hides from a counter of shapes.
        assert macs(nn.Identity(), run) == 2 * STEPS * STEPS * FEATURES

    def test_own_transformer_costs_the_same_as_that_of_torch(self):
        width, tokens = 8, torch.ones(1, STEPS, dtype=torch.int64)
        spec = InputSpec((STEPS,), vocabulary=20, missing=0)
        ours = build_family_model(
            Part.of("transformer", layers=2, attention_heads=2, head_size=4), (spec,), {"label": 3}
        )
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, norm_first=True)
        theirs = nn.Sequential(nn.Embedding(20, width), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
        head = width * 3
        assert cost.count_macs(layer_costs(ours, (tokens,))) == cost.count_macs(layer_costs(theirs, (tokens,))) + head

    def test_products_of_activations_stay_at_32_bits(self):
        spec = InputSpec((STEPS,), vocabulary=20, missing=0)
        model = build_family_model(
            Part.of("transformer", layers=1, attention_heads=2, head_size=4), (spec,), {"label": 3}
        )
        layers = layer_costs(model, (IDS,))
        bits = {name: LayerBits(8, 8) for name in layers if isinstance(model.get_submodule(name), nn.Linear)}
        products = 2 * STEPS * STEPS * 8
        rest = cost.count_macs(layers) - products
        assert cost.count_bops(layers, bits) == products * 32 * 32 + rest * 8 * 8


def test_bilinear_layers():
    # Weights [3, 8, 7] times one input, then three products with the other.
    result = macs(nn.Bilinear(8, 7, 3), None, torch.zeros(1, 8), torch.zeros(1, 7))
    assert result == 3 * 8 * 7 + 3 * 8


def test_the_whole_of_a_text_model():
    model = build_family_model(
        Part.of("text_cnn", embedding=4, width=6, depth=1, block="plain"),
        (InputSpec((STEPS,), vocabulary=20, missing=0),),
        {"label": 3},
    )
    layers = layer_costs(model, (IDS,))
    assert layers["encoder.embedding"] == LayerCost(
        "encoder.embedding", 0, weights=80, parameters=80, nonzero=76, channels=20, nonzero_weights=76
    )
    assert {name: layer.macs for name, layer in layers.items() if layer.macs} == {
        "encoder.stem.0": STEPS * 4 * 6 * 3,
        "encoder.stages.0.body.0": STEPS * 6 * 6 * 3,
        "heads.label": 6 * 3,
    }
