import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autocompress.core.method import LayerBits
from autocompress.measure import cost
from autocompress.measure.cost import LayerCost, layer_costs
from autocompress.models import CNN, CNNConfig

MLP = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5, bias=False))


class Attention(nn.Module):
    """Single-head attention whose products are functions, not modules."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        scores = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return scores @ self.value(x)


class Twice(nn.Module):
    """Runs one layer twice, and lends it to a sibling that is not its parent."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.borrower = Borrower()
        self.alias = self.layer

    def forward(self, x):
        return self.borrower(self.layer(x), self.alias)


class Borrower(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(6, 2)

    def forward(self, x, layer):
        return self.own(layer(x))


def counted(model, *example):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*example)
    return counter.get_total_flops()


def macs_of(model, *example):
    return {name: layer.macs for name, layer in layer_costs(model, example).items() if layer.macs}


class TestByHand:
    def test_plain_cnn(self):
        model = CNN(CNNConfig(width=4, depth=1, stages=2, block="plain"), 3, {"label": 10})
        # MACs of a convolution: output pixels x output channels x input channels x window.
        assert macs_of(model, torch.zeros(1, 3, 8, 8)) == {
            "stem.0": 64 * 4 * 3 * 9,
            "stages.0.0.0": 64 * 4 * 4 * 9,
            "stages.1.0.0": 16 * 8 * 4 * 9,  # stride 2: 8x8 becomes 4x4
            "heads.label": 8 * 10,
        }

    def test_depthwise_separable_cnn(self):
        model = CNN(CNNConfig(width=4, depth=1, stages=2, block="separable"), 1, {"label": 10})
        assert macs_of(model, torch.zeros(1, 1, 8, 8)) == {
            "stem.0": 64 * 4 * 1 * 9,
            "stages.0.0.0": 64 * 4 * 9,  # depthwise: each output channel reads one input channel
            "stages.0.0.3": 64 * 4 * 4,
            "stages.1.0.0": 16 * 4 * 9,
            "stages.1.0.3": 16 * 8 * 4,
            "heads.label": 8 * 10,
        }

    def test_mlp(self):
        layers = layer_costs(MLP, (torch.zeros(1, 20),))
        assert layers["0"] == LayerCost(
            "0", macs=600, weights=600, parameters=630, nonzero=630, channels=30, nonzero_weights=600
        )
        assert layers["2"] == LayerCost(
            "2", macs=150, weights=150, parameters=150, nonzero=150, channels=5, nonzero_weights=150
        )
        assert (cost.count_macs(layers), cost.count_flops(layers), cost.count_parameters(layers)) == (750, 1500, 780)

    def test_grouped_strided_dilated_and_transposed(self):
        grouped = nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=1, groups=4)
        # height (9 + 2 - 3) / 2 + 1 = 5, width 7 + 2 - 5 + 1 = 5; each output reads 8 / 4 = 2 input channels
        assert macs_of(grouped, torch.zeros(1, 8, 9, 7)) == {"": 5 * 5 * 12 * 2 * 15}
        dilated = nn.Conv1d(2, 3, 3, dilation=2)
        assert macs_of(dilated, torch.zeros(1, 2, 10)) == {"": 6 * 3 * 2 * 3}
        transposed = nn.ConvTranspose2d(2, 3, 2, stride=2)
        assert macs_of(transposed, torch.zeros(1, 2, 4, 4)) == {"": 16 * 2 * 3 * 4}  # every input pixel paints a window

    def test_matrix_products_count_for_the_module_around_them(self):
        # tokens 5, features 8: three projections of 5*8*8, scores 5*5*8, their average 5*5*8
        assert macs_of(Attention(), torch.zeros(1, 5, 8)) == {"": 2 * 5 * 5 * 8, "query": 320, "key": 320, "value": 320}

    def test_shared_layer_counts_each_run_and_its_parameters_once(self):
        layers = layer_costs(Twice(), (torch.zeros(1, 6),))
        assert {name: (layer.macs, layer.parameters) for name, layer in layers.items()} == {
            "layer": (2 * 36, 42),
            "borrower.own": (12, 14),
        }

    def test_tied_weights_count_once(self):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        layers = layer_costs(model, (torch.zeros(1, 4),))
        assert (cost.count_parameters(layers), cost.count_model_bytes(layers, {}), cost.count_macs(layers)) == (
            16,
            64,
            32,
        )


class TestKernels:
    """Kernels for which torch's counter alone says zero."""

    def test_fused_transformer_layer(self):
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        # tokens 5: projections in 5*8*24 and out 5*8*8, two products of 5*5*8, two feed-forward layers of 5*8*16
        expected = 5 * 8 * 24 + 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16
        assert cost.count_macs(layer_costs(model, (torch.zeros(1, 5, 8),))) == expected
        assert torch.backends.mha.get_fastpath_enabled()

    def test_scaled_dot_product_attention(self):
        class Scaled(nn.Module):
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q, k, v)

        example = (torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 7, 4))
        assert macs_of(Scaled(), *example) == {"": 2 * 5 * 7 * 8}

    @pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
    def test_recurrent_layers(self, kind, gates):
        # five steps, each gate of 6 units reads 8 inputs and 6 states
        assert macs_of(kind(8, 6, batch_first=True), torch.zeros(1, 5, 8)) == {"": 5 * gates * 6 * (8 + 6)}

    def test_products_with_a_vector(self):
        class Vector(nn.Module):
            def forward(self, x):
                return torch.addmv(x[:, 0], x, x[0]) @ (x @ x[1])

        assert macs_of(Vector(), torch.zeros(8, 8)) == {"": 64 + 64 + 8}

    def test_the_meta_device_counts_the_same(self):
        config = CNNConfig(width=4, block="separable")
        real = layer_costs(CNN(config, 1, {"label": 3}), (torch.zeros(1, 1, 8, 8),))
        with torch.device("meta"):
            assert layer_costs(CNN(config, 1, {"label": 3}), (torch.zeros(1, 1, 8, 8),)).keys() == real.keys()
            meta = layer_costs(CNN(config, 1, {"label": 3}), (torch.zeros(1, 1, 8, 8),))
        for name, layer in meta.items():
            assert (layer.macs, layer.weights, layer.parameters) == (
                real[name].macs,
                real[name].weights,
                real[name].parameters,
            )
            assert layer.nonzero == layer.parameters


@pytest.mark.parametrize("block", ["plain", "residual", "separable"])
def test_total_equals_the_counter_of_torch(block):
    model, x = CNN(CNNConfig(width=6, depth=2, block=block), 1, {"a": 3, "b": 2}), torch.zeros(1, 1, 8, 8)
    assert cost.count_flops(layer_costs(model, (x,))) == counted(model, x) > 0


class TestUntouched:
    def test_flags_buffers_and_hooks_are_restored(self):
        class Counter(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("last", torch.zeros(2))

            def forward(self, x):
                self.calls += 1
                self.last = x.detach()[0]
                return x

        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Counter()).train()
        model[0].eval()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        layer_costs(model, (torch.ones(1, 2),))
        assert [module.training for module in model.modules()] == [True, False, True, True]
        assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_failing_model_is_restored(self):
        model = MLP.train()
        with pytest.raises(RuntimeError):
            layer_costs(model, (torch.zeros(1, 7),))
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())

    def test_random_state_is_unchanged(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        layer_costs(model, (torch.zeros(1, 2),))
        assert torch.equal(torch.rand(1), expected)


def test_the_quantizer_of_a_layer_changes_nothing():
    class Quantizer(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("low", torch.zeros(1))

        def forward(self, x):
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -8, 7) * self.scale

    example = (torch.zeros(1, 20),)
    model = nn.Sequential(nn.Linear(20, 30), nn.Conv1d(1, 1, 1))[:1]
    before = layer_costs(model, example)
    model[0].input_quantizer = Quantizer()
    model[0].register_forward_pre_hook(lambda module, inputs: module.input_quantizer(inputs[0]))
    assert layer_costs(model, example) == before


def test_a_parametrized_weight_belongs_to_its_layer():
    model = nn.Sequential(nn.Linear(4, 3))
    before = layer_costs(model, (torch.zeros(1, 4),))
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    assert layer_costs(model, (torch.zeros(1, 4),)) == before


def test_nonzero_parameters_are_counted():
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    layers = layer_costs(model, (torch.zeros(1, 4),))
    assert (cost.count_parameters(layers), cost.count_nonzero_parameters(layers)) == (15, 12)


class TestBits:
    LAYERS = layer_costs(MLP, (torch.zeros(1, 20),))

    def test_bops_and_effective_flops(self):
        bits = {"0": LayerBits(8, 4)}
        assert cost.count_bops(self.LAYERS, bits) == 600 * 8 * 4 + 150 * 32 * 32
        assert cost.count_effective_flops(self.LAYERS, bits) == 1200 * 32 / 1024 + 300

    def test_effective_flops_equal_flops_at_32_bits(self):
        assert cost.count_effective_flops(self.LAYERS, {}) == cost.count_flops(self.LAYERS) == 1500

    def test_bytes(self):
        # 32 bits: 780 parameters x 4. First layer at 3 bits: 600 * 3 / 8 = 225, 30 biases x 4, 30 scales x 4.
        assert cost.count_model_bytes(self.LAYERS, {}) == 3120
        assert cost.count_model_bytes(self.LAYERS, {"0": LayerBits(3, 8)}) == 225 + 120 + 120 + 600

    def test_bytes_are_rounded_up(self):
        layers = layer_costs(nn.Linear(3, 1, bias=False), (torch.zeros(1, 3),))
        assert cost.count_model_bytes(layers, {"": LayerBits(3, 3)}) == 2 + 4  # nine bits fill two bytes, one scale

    def test_batch_norm_statistics_count_unless_folded(self):
        layers = layer_costs(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), (torch.zeros(1, 1, 2, 2),))
        # conv 2 + 2, batch norm 2 + 2 parameters and 2 + 2 statistics; its counter of batches is no float
        assert cost.count_model_bytes(layers, {}) == 4 * (4 + 4 + 4)
        assert layers["1"] == LayerCost("1", macs=0, weights=0, parameters=4, nonzero=2, buffers=4, nonzero_weights=0)

    @given(st.integers(1, 8), st.integers(1, 8))
    def test_fewer_bits_never_cost_more(self, weight, activation):
        less = {name: LayerBits(weight, activation) for name in self.LAYERS}
        more = {name: LayerBits(weight + 1, activation) for name in self.LAYERS}
        assert (
            cost.count_bops(self.LAYERS, less) < cost.count_bops(self.LAYERS, more) < cost.count_bops(self.LAYERS, {})
        )
        assert cost.count_model_bytes(self.LAYERS, less) < cost.count_model_bytes(self.LAYERS, more) < 3120


class TestSparseBytes:
    @staticmethod
    def layers(density, bias=True):
        layer = nn.Linear(40, 10, bias=bias)
        flat = torch.zeros(400)
        flat[: int(400 * density)] = 1.0
        layer.weight.data = flat.view(10, 40)
        return layer_costs(layer, (torch.zeros(1, 40),))

    @pytest.mark.parametrize("width", [32, 8, 5, 2])
    @pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
    def test_sparse_bytes_are_a_mask_and_the_nonzero_values(self, density, width):
        layers, bits = self.layers(density), {"": LayerBits(width, 32)}
        rest = 4 * 10 + (4 * 10 if width < 32 else 0)  # the bias, and a scale for each output
        packed = 400 // 8 + -(-int(400 * density) * width // 8)
        assert cost.count_sparse_bytes(layers, bits) == rest + min(packed, 400 * width // 8)
        assert cost.count_model_bytes(layers, bits) == rest + 400 * width // 8

    def test_sparse_bytes_never_exceed_the_dense_ones(self):
        for density in (0.97, 1.0):
            layers = self.layers(density)
            assert cost.count_sparse_bytes(layers, {}) == cost.count_model_bytes(layers, {})

    def test_zeros_in_biases_and_buffers_save_nothing(self):
        layer = nn.BatchNorm1d(8)
        nn.init.zeros_(layer.weight)
        layers = layer_costs(layer.eval(), (torch.zeros(2, 8),))
        assert cost.count_sparse_bytes(layers, {}) == cost.count_model_bytes(layers, {})

    def test_a_layer_of_unknown_density_counts_as_dense(self):
        layers = {"a": LayerCost("a", 64, weights=64, parameters=64, nonzero=1, channels=8)}
        assert cost.count_sparse_bytes(layers, {}) == cost.count_model_bytes(layers, {}) == 256

    def test_meta_device_counts_no_zeros(self):
        with torch.device("meta"):
            layers = layer_costs(nn.Linear(40, 10), (torch.zeros(1, 40),))
        assert cost.count_sparse_bytes(layers, {}) == cost.count_model_bytes(layers, {})


class _Pool(nn.Module):
    """Reads by learned queries: a view of a parameter is the input of a submodule."""

    def __init__(self):
        super().__init__()
        self.queries, self.read = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(4, 8)
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.read(x).relu()
        queries = self.queries.expand(len(x), -1, -1)
        return self.out(self.attention(queries, hidden, hidden)[0][:, 0])


def test_a_view_of_a_parameter_is_an_input_like_any_other():
    costs = layer_costs(_Pool(), (torch.zeros(1, 6, 4),))
    # Keys and values of 6 positions, the query, scores and averages of 2 heads of 4 numbers, and the output.
    attention = 2 * 6 * 8 * 8 + 8 * 8 + 2 * 2 * 6 * 4 + 8 * 8
    assert cost.count_macs(costs) == 6 * 4 * 8 + attention + 8 * 3


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 4, 4), 16 * 2 * 3 * 4),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (1, 4, 5), 5 * 4 * 3 * 3),
        (nn.LSTM(4, 6, batch_first=True), (1, 5, 4), 5 * 4 * 6 * (4 + 6)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), (1, 4), 4 * 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_cost_what_a_count_by_hand_says(layer, shape, macs):
    assert cost.count_macs(layer_costs(layer, (torch.zeros(shape),))) == macs


def test_a_masked_encoder_costs_what_an_unmasked_one_does():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x, mask=None):
            return self.encoder(x, src_key_padding_mask=mask)

    model, x = Masked().eval(), torch.randn(1, 6, 8)
    mask = torch.tensor([[False, False, False, False, True, True]])
    costs = [cost.count_macs(layer_costs(model, inputs)) for inputs in ((x,), (x, mask))]
    assert costs[0] == costs[1] == 6 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 6 * 6 * 8


def test_kernels_and_the_operators_between_them_are_described() -> None:
    model = CNN(CNNConfig(width=8, depth=1, stages=1, block="separable"), 3, {"label": 4})
    layers = cost.list_layer_work(layer_costs(model, (torch.zeros(1, 3, 8, 8),)), {})
    assert [layer.kind for layer in layers] == ["conv2", "depthwise2", "pointwise2", "linear"]
    assert [layer.channels for layer in layers] == [(3, 8), (1, 8), (8, 8), (1, 4)]
    # The average over all positions runs after the last convolution.
    assert [(layer.operators, layer.elements) for layer in layers] == [(0, 0), (0, 0), (1, 8), (0, 0)]

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x + self.first(x)).transpose(1, 2).transpose(1, 2) * 2 + self.second(x)

    layers = cost.list_layer_work(layer_costs(Shortcut(), (torch.zeros(1, 2, 5),)), {"first": LayerBits(8, 8)})
    assert [layer.kind for layer in layers] == ["conv1", "pointwise1"]
    assert [layer.bits for layer in layers] == [(8, 8), (32, 32)]
    # Neither the ReLU nor the views count.
    assert [layer.operators for layer in layers] == [2, 1]


def test_lookups_and_the_operators_before_the_first_layer_are_described() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.words = nn.EmbeddingBag(100, 4, mode="sum"), nn.Embedding(10, 3)
            self.head = nn.Linear(7, 2)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            rows = rows * 3 + 1
            return self.head(torch.cat([self.table(rows), self.words(rows // 30).sum(1)], 1))

    layers = layer_costs(Bag(), (torch.tensor([[5, 7, 11, 2, 3]]),))
    # Decoded from 4 bits to floating point; the other table is stored in floating point.
    works = cost.list_layer_work(layers, {"table": LayerBits(stored=4), "head": LayerBits(8, 8, stored=8)})
    assert [work.kind for work in works] == ["operator", "lookup", "lookup", "linear"]
    assert [work.bits for work in works[1:]] == [(4, 32), (32, 32), (8, 8)]
    # Rows of five indices.
    assert [work.activations for work in works] == [0, 5 * 4, 5 * 3, 2]
    # Product, sum and quotient of five indices, the offset of one bag, the sum of three numbers, and seven joined ones.
    assert (works[0].operators, works[0].elements) == (6, 3 * 5 + 1 + 3 + 7)
    # A network without them has no such row.
    assert cost.list_layer_work(layer_costs(nn.Linear(2, 2), (torch.zeros(1, 2),)), {})[0].kind == "linear"
