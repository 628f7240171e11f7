import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.core.method import Context, MethodState
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.measure import cost, layer_costs
from autocompress.prune import DepthConfig
from autocompress.prune.calibration import measure_calibration
from autocompress.prune.depth import DroppedBlock, find_blocks, list_spread_blocks
from tests.prune.toys import EXAMPLE, believing, cnn, cross_entropy, labelled_context

METHOD = PRUNE.get("depth")
TOKENS = (torch.arange(6)[None] % 5,)


def apply(model, context=None, **knobs):
    return METHOD.apply(model, DepthConfig(**knobs), context or labelled_context())


class Layer(nn.Module):
    """A transformer layer whose forward takes a mask beside its input."""

    def __init__(self, width=8):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x, mask=None, *, scale=1.0):
        return x + scale * self.down(self.up(self.norm(x)).relu())


class Looped(nn.Module):
    """Runs a list of layers, as transformers do."""

    def __init__(self, layers):
        super().__init__()
        self.embedding, self.layers, self.head = nn.Embedding(5, 8), nn.ModuleList(layers), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, None, scale=0.5)
        return self.head(x.mean(1))


def tokens_context():
    generator = torch.Generator().manual_seed(4)
    inputs = ((torch.randint(0, 5, (12, 6), generator=generator),),)
    return Context(TOKENS, inputs, ({"label": torch.randint(0, 3, (12,), generator=generator)},), cross_entropy)


class TestFindBlocks:
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    def test_blocks_of_a_stage_are_meant_and_not_the_stage(self, block):
        found = find_blocks(cnn(block=block, depth=2, stages=2), EXAMPLE)
        assert found == ["stages.0.0", "stages.0.1", "stages.1.1"]

    def test_a_block_with_its_own_forward_is_meant_and_not_its_parts(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)))

            def forward(self, x):
                return x + self.body(x)

        model = nn.Sequential(nn.Sequential(Block(), Block()), nn.Linear(4, 2))
        assert find_blocks(model, (torch.zeros(1, 4),)) == ["0.0", "0.1"]

    def test_layers_in_a_list_take_more_than_one_argument(self):
        assert find_blocks(Looped([Layer(), Layer()]), TOKENS) == ["layers.0", "layers.1"]

    def test_torch_s_encoder_looks_into_its_first_layer_so_that_one_stays(self):
        class Encoder(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
                self.embedding, self.encoder = nn.Embedding(5, 8), nn.TransformerEncoder(layer, 3)

            def forward(self, x):
                return self.encoder(self.embedding(x)).mean(1)

        assert find_blocks(Encoder().eval(), TOKENS) == ["encoder.layers.1", "encoder.layers.2"]

    def test_what_is_no_block(self):
        shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        model = nn.Sequential(
            nn.Linear(4, 4),  # a single layer
            nn.ReLU(),
            nn.Sequential(nn.Linear(4, 6), nn.ReLU()),  # another shape
            nn.Sequential(nn.Linear(6, 4), nn.ReLU()),
            nn.Sequential(nn.ReLU(), nn.Dropout()),  # no weights
            shared,  # runs twice
            shared,
        )
        assert find_blocks(model.eval(), (torch.zeros(1, 4),)) == []

    def test_a_model_that_fails_is_named(self):
        with pytest.raises(CompressionError, match="CNN fails on its example: RuntimeError"):
            find_blocks(cnn(), (torch.zeros(1, 3, 8, 8),))

    def test_nothing_is_left_behind(self):
        model = cnn(depth=2)
        before = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
        find_blocks(model, EXAMPLE)
        assert [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()] == before


class TestDropping:
    @pytest.mark.slow
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    def test_cost_falls_with_the_ratio_and_a_block_is_kept(self, block):
        model = cnn(block=block, width=8, depth=3, stages=2)
        costs = []
        for ratio in (0.0, 0.01, 0.3, 0.6, 0.9):
            pruned, state = apply(model, pruning_ratio=ratio)
            costs.append(cost.count_flops(layer_costs(pruned, EXAMPLE)))
            assert len(state.history["dropped"]) < 5
            assert pruned(torch.randn(2, 1, 8, 8)).shape == (2, 10)
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > costs[1]
        assert len(set(costs)) >= 4

    def test_the_block_whose_loss_rises_least_goes_first(self):
        model = cnn(block="residual", depth=3, stages=1, width=8)
        with torch.no_grad():
            model.stages[0][1].body[4].weight.mul_(1e-3)  # its body adds next to nothing
            model.stages[0][1].body[4].bias.mul_(0)
            model.stages[0][1].body[4].running_mean.mul_(0)
        _, state = apply(model, believing(model, labelled_context()), pruning_ratio=0.3)
        assert state.history["dropped"] == ["stages.0.1"]
        assert abs(state.report["dropped"]["stages.0.1"]) < 1e-2

    def test_the_report_is_measured(self):
        model = cnn(block="residual", depth=2, width=8)
        context = believing(model, labelled_context())
        pruned, state = apply(model, context, pruning_ratio=0.6)
        first, last = state.report["dropped"].values()
        assert last == pytest.approx(
            measure_calibration(pruned, context).loss - measure_calibration(model, context).loss
        )
        assert first > 0
        assert state.report["sparsity"] == pytest.approx(2 / 3)
        assert state.report["blocks"] == ["stages.0.0", "stages.0.1", "stages.1.1"]

    def test_one_block_at_a_time_beats_no_order_at_all(self):
        """The pair that greedy dropping leaves out is measured better than the average pair."""
        model = cnn(block="residual", depth=2, stages=2, width=8)
        context = believing(model, labelled_context())
        _, state = apply(model, context, pruning_ratio=0.6)
        chosen = list(state.report["dropped"].values())[-1]
        losses = []
        for pair in (["stages.0.0", "stages.0.1"], ["stages.0.0", "stages.1.1"], ["stages.0.1", "stages.1.1"]):
            other = METHOD.restore(
                cnn(block="residual", depth=2, stages=2, width=8), DepthConfig(), MethodState(history={"dropped": pair})
            )
            losses.append(measure_calibration(other, context).loss - measure_calibration(model, context).loss)
        assert chosen <= sum(losses) / 3

    def test_transformer_layers(self):
        torch.manual_seed(0)
        model = Looped([Layer() for _ in range(4)]).eval()
        pruned, state = apply(model, tokens_context(), pruning_ratio=0.5)
        assert len(state.history["dropped"]) == 2
        rebuilt = METHOD.restore(
            Looped([Layer() for _ in range(4)]),
            DepthConfig(),
            MethodState(history=json.loads(json.dumps(dict(state.history)))),
        )
        rebuilt.load_state_dict(pruned.state_dict())
        assert torch.equal(rebuilt(TOKENS[0]), pruned(TOKENS[0]))

    def test_a_dropped_block_takes_and_ignores_what_the_block_took(self):
        assert DroppedBlock()(torch.ones(2), None, scale=3).tolist() == [1.0, 1.0]

    @pytest.mark.slow
    def test_it_can_be_traced_and_exported(self):
        pruned, _ = apply(cnn(block="residual", depth=2, width=4))
        x = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(torch.fx.symbolic_trace(pruned)(x), pruned(x))
        torch.testing.assert_close(torch.export.export(pruned, (x,)).module()(x), pruned(x))


class TestRefusals:
    @pytest.mark.parametrize(("depth", "reason"), [(1, "'stages.0.0' is the only"), (None, "none preserves its shape")])
    def test_no_block_to_spare(self, depth, reason):
        model = cnn(depth=1) if depth else nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with pytest.raises(CompressionError, match=f"no block can be dropped: .*{reason}"):
            apply(model)

    def test_nothing_to_measure_on(self):
        with pytest.raises(CompressionError, match="needs the task's loss"):
            apply(cnn(depth=2), Context(EXAMPLE))
        with pytest.raises(CompressionError, match="batches with their targets"):
            apply(cnn(depth=2), replace(labelled_context(), targets=()))

    def test_weights_that_are_not_finite(self):
        model = cnn(depth=2)
        model.stem[0].weight.data[:] = torch.nan
        with pytest.raises(CompressionError, match="on the calibration split is nan"):
            apply(model)

    @pytest.mark.parametrize("name", ["nowhere", "stages.0.7", "", 3, None])
    def test_a_history_that_does_not_fit(self, name):
        with pytest.raises(CompressionError, match="history does not fit the model"):
            METHOD.restore(cnn(), DepthConfig(), MethodState(history={"dropped": [name]}))

    def test_a_history_that_repeats_itself(self):
        with pytest.raises(CompressionError, match="names 1000 blocks"):
            METHOD.restore(cnn(), DepthConfig(), MethodState(history={"dropped": ["stages.0.0"] * 1000}))


class TestSpread:
    @pytest.mark.parametrize(("count", "dropped"), [(1, "0"), (2, "03"), (3, "024"), (4, "0134"), (5, "01234")])
    def test_blocks_that_remain_are_spread_and_the_last_is_among_them(self, count, dropped):
        assert list_spread_blocks("012345", count) == list(dropped)

    def test_every_second_layer_is_kept_with_its_weights_whatever_the_losses(self):
        model = Looped([Layer() for _ in range(4)])
        pruned, state = apply(model, tokens_context(), pruning_ratio=0.5, selection="spread")
        assert state.history["dropped"] == ["layers.0", "layers.2"]
        assert [isinstance(layer, DroppedBlock) for layer in pruned.layers] == [True, False, True, False]
        assert torch.equal(pruned.layers[1].up.weight, model.layers[1].up.weight)
        assert all(isinstance(rise, float) for rise in state.report["dropped"].values())
