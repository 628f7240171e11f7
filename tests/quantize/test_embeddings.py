"""Embedding tables: rounded row by row, their row numbers never, by every method."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.method import Context, LayerBits
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError
from autocompress.measure import layer_costs
from autocompress.measure.cost import count_model_bytes
from autocompress.quantize.quantizers import WEIGHT_QUANTIZERS

ROWS = 40
METHODS = {
    "post_training": {"weight_bits": 4, "activation_bits": 8},
    "adaround": {"weight_bits": 4, "activation_bits": 8, "iterations": 10},
    "qat": {"weight_bits": 4, "activation_bits": 8, "epochs": 1},
    "lsq": {"weight_bits": 4, "activation_bits": 8, "epochs": 1},
    "mixed_precision": {"budget": "size", "budget_bits": 4.0},
    "progressive": {"floor": 1.0},
}


class Net(nn.Module):
    """A table, a bag of another, and a layer on both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bag = nn.Embedding(ROWS, 6), nn.EmbeddingBag(ROWS, 6, mode="mean")
        self.head = nn.Linear(12, 3)

    def forward(self, one: Tensor, several: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(one), self.bag(several)], -1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        # Rows of very unequal size: one scale for all of them would lose the small ones.
        model.one.weight.mul_(torch.logspace(-3, 1, ROWS)[:, None])
    return model


@pytest.fixture
def context() -> Context:
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randint(ROWS, (32,), generator=generator), torch.randint(ROWS, (32, 4), generator=generator))
        for _ in range(2)
    ]
    targets = [{"label": torch.randint(3, (32,), generator=generator)} for _ in batches]

    def loss(output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(output, target["label"])

    def tune(model: nn.Module, epochs: int, rate: float, after: object) -> None:
        optimizer = torch.optim.Adam(model.parameters(), rate)
        model.train()
        for inputs, target in zip(batches * epochs, targets * epochs, strict=True):
            optimizer.zero_grad()
            loss(model(*inputs), target).backward()
            optimizer.step()

    example = tuple(tensor[:1] for tensor in batches[0])
    return Context(example, tuple(batches), tuple(targets), loss, 0, tune, lambda model: 0.0)


@pytest.mark.parametrize("name", QUANTIZE.names())
def test_every_method_rounds_rows_and_leaves_row_numbers(name: str, net: Net, context: Context) -> None:
    method = QUANTIZE.get(name)
    config = method.config.of(METHODS[name])
    quantized, state = method.apply(net, config, context)
    for table in ("one", "bag"):
        bits = state.bits[table]
        assert bits.activation == 32
        assert 2 <= bits.weight <= 8
        assert not hasattr(quantized.get_submodule(table), "input_quantizer")
        assert state.tensors[f"{table}.weight_scale"].shape == (ROWS,)
        for row in quantized.get_parameter(f"{table}.weight"):
            assert len(row.unique()) <= 2**bits.weight
    fresh = method.restore(Net(), config, state)
    rest = {key: value for key, value in quantized.state_dict().items() if key not in state.history["restored"]}
    fresh.load_state_dict(rest, strict=False)
    assert torch.equal(fresh(*context.calibration[0]), quantized(*context.calibration[0]))


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_are_what_the_quantizer_makes_of_each(bits: int, net: Net, context: Context) -> None:
    settings = {"weight_bits": bits, "activation_bits": 32, "weight_observer": "minmax", "bias_correction": False}
    method = QUANTIZE.get("post_training")
    quantized, _ = method.apply(net, method.config.of(settings), context)
    symmetric = WEIGHT_QUANTIZERS["symmetric"]
    for before, after in zip(net.one.weight.detach(), quantized.get_parameter("one.weight"), strict=True):
        grid = symmetric.fit(*before.aminmax(), bits)
        torch.testing.assert_close(after.detach(), symmetric.decode(symmetric.encode(before, grid), grid))
        assert float((after.detach() - before).abs().max()) <= float(grid.scale) / 2 * 1.001


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("quantizer", ["linear", "power_of_two", "codebook"])
def test_a_table_has_a_scale_a_row_whatever_the_granularity(
    granularity: str, quantizer: str, net: Net, context: Context
) -> None:
    settings = {"weight_bits": 4, "granularity": granularity, "quantizer": quantizer, "group_size": 2}
    method = QUANTIZE.get("post_training")
    _, state = method.apply(net, method.config.of(settings), context)
    assert state.tensors["one.weight_scale"].shape == (ROWS,)
    assert not {"one", "bag"} & set(state.report.get("float_in_onnx", {}).get("layers", []))


def test_bytes_count_codes_and_one_scale_a_row(net: Net, context: Context) -> None:
    method = QUANTIZE.get("post_training")
    quantized, state = method.apply(net, method.config.of({"weight_bits": 4, "activation_bits": 8}), context)
    costs = layer_costs(quantized, context.example)
    assert costs["one"].channels == ROWS
    tables = {name: costs[name] for name in ("one", "bag")}
    assert count_model_bytes(tables, state.bits) == 2 * (ROWS * 6 * 4 // 8 + 4 * ROWS)
    assert count_model_bytes(tables, {}) == 2 * ROWS * 6 * 4


def test_rows_of_zeros_and_padding_stay_zero(context: Context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(ROWS, 6, padding_idx=0), nn.Linear(6, 3)).eval()
    for scheme in ("symmetric", "asymmetric"):
        method = QUANTIZE.get("post_training")
        inputs = context.calibration[0][:1]
        settings = method.config.of({"weight_bits": 3, "weight_scheme": scheme})
        quantized, _ = method.apply(model, settings, Context((inputs[0][:1],), (inputs,)))
        assert not bool(quantized.get_parameter("0.weight")[0].any())


@pytest.mark.parametrize("solver", ["exact", "greedy"])
def test_bit_operations_leave_tables_at_eight_bits_and_size_does_not(solver: str, net: Net, context: Context) -> None:
    method = QUANTIZE.get("mixed_precision")
    for budget, expected in (("bops", {8}), ("size", {2, 3, 4})):
        settings = method.config.of({"budget": budget, "budget_bits": 3.0, "solver": solver})
        _, state = method.apply(net, settings, context)
        assert {state.bits[table].weight for table in ("one", "bag")} <= expected
        assert state.report["assignment"]["spent_bits"] <= 3.0


def test_a_model_of_tables_alone_is_quantized_but_has_no_bit_operations_to_spend(context: Context) -> None:
    model, inputs = nn.Embedding(ROWS, 4), context.calibration[0][:1]
    alone = Context((inputs[0][:1],), (inputs,))
    method = QUANTIZE.get("post_training")
    _, state = method.apply(model, method.config.of({"weight_bits": 8, "activation_bits": 8}), alone)
    assert state.bits == {"": LayerBits(8, 32)}
    mixed = QUANTIZE.get("mixed_precision")
    with pytest.raises(CompressionError, match="multiplies nothing: set budget to 'size'"):
        mixed.apply(model, mixed.config.of({"budget": "bops", "budget_bits": 4.0}), alone)


def test_a_table_that_rescales_its_rows_stays(context: Context) -> None:
    model = nn.Sequential(nn.Embedding(ROWS, 4, max_norm=1.0), nn.Linear(4, 2))
    inputs = context.calibration[0][:1]
    method = QUANTIZE.get("post_training")
    _, state = method.apply(model, method.config.of({}), Context((inputs[0][:1],), (inputs,)))
    assert set(state.bits) == {"1"}


def test_a_table_with_a_value_that_is_not_finite_is_named(net: Net, context: Context) -> None:
    with torch.no_grad():
        net.one.weight[3, 2] = torch.nan
    method = QUANTIZE.get("post_training")
    with pytest.raises(CompressionError, match="layer 'one', weight"):
        method.apply(net, method.config.of({}), context)
