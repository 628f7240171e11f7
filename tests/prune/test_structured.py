import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.core.method import Context, MethodState, Recovery
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError, KnobError
from autocompress.measure import cost, layer_costs
from autocompress.prune import StructuredConfig
from autocompress.prune.channels import ChannelGroup
from autocompress.prune.importance import CRITERIA
from autocompress.prune.structured import ScoredGroup, round_to_multiple
from tests.prune.toys import EXAMPLE, Tuner, chain, cnn, labelled_context

METHOD = PRUNE.get("structured")


def apply(model, calibration=(), seed=0, **knobs):
    found = labelled_context(seed) if CRITERIA[knobs.get("criterion", "l2")].gradients else None
    return METHOD.apply(model, StructuredConfig(**knobs), found or Context(EXAMPLE, calibration=calibration, seed=seed))


def flops(model):
    return cost.count_flops(layer_costs(model, EXAMPLE))


def widths(model):
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


class TestRatiosOnNarrowLayers:
    """Ratio 0, .01, .5, .9 on layers of 1 to 8 channels: one channel is kept, cost never rises, 1.0 is refused."""

    @pytest.mark.slow
    @pytest.mark.parametrize("scope", ["uniform", "global"])
    @pytest.mark.parametrize("width", range(2, 9))
    def test_cost_falls_with_the_ratio_and_a_channel_is_kept(self, width, scope):
        model = chain(width)
        rows = []
        for ratio in (0.0, 0.01, 0.5, 0.9):
            pruned, state = apply(model, pruning_ratio=ratio, scope=scope)
            rows.append((flops(pruned), state.report["sparsity"]))
            assert min(widths(pruned).values()) >= 1
            assert pruned(torch.randn(2, 1, 8, 8)).shape == (2, 10)
        assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
        assert rows[0] == (flops(model), 0.0)
        assert rows[1][0] < rows[0][0]  # even the smallest ratio is no copy of the uncut model
        assert rows[2][1] == pytest.approx(0.5, abs=0.5 / width)
        assert rows[3][1] == pytest.approx(min(0.9, (width - 1) / width), abs=0.5 / width)

    @pytest.mark.parametrize("ratio", [0.01, 0.5, 0.9])
    def test_layers_of_one_channel_have_none_to_spare(self, ratio):
        with pytest.raises(CompressionError, match="no channel can be removed"):
            apply(chain(1), pruning_ratio=ratio)

    def test_layers_of_one_channel_pass_at_ratio_zero(self):
        model = chain(1)
        assert flops(apply(model, pruning_ratio=0.0)[0]) == flops(model)

    @pytest.mark.parametrize("ratio", [1.0, 0.99, -0.1, math.nan])
    def test_a_ratio_outside_its_range_is_refused(self, ratio):
        with pytest.raises(KnobError, match=r"prune\.structured\.pruning_ratio"):
            StructuredConfig(pruning_ratio=ratio)

    @pytest.mark.slow
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    @pytest.mark.parametrize("scope", ["uniform", "global"])
    def test_cost_never_rises_over_a_fine_grid(self, block, scope):
        model = cnn(block=block, width=5)
        costs = [flops(apply(model, pruning_ratio=step / 20, scope=scope)[0]) for step in range(19)]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] < 0.2 * costs[0]


class TestWhatIsCut:
    def test_heads_keep_their_classes(self):
        pruned, state = apply(cnn(heads={"digit": 10, "parity": 2}), pruning_ratio=0.9)
        out = pruned(torch.randn(3, 1, 8, 8))
        assert {head: tuple(t.shape) for head, t in out.items()} == {"digit": (3, 10), "parity": (3, 2)}
        assert set(state.report["uncut"]) == {"heads.digit", "heads.parity"}

    def test_the_report_counts_channels(self):
        pruned, state = apply(cnn(block="plain"), pruning_ratio=0.5)
        assert state.report["channels"] == {"stem.0": [4, 2], "stages.0.0.0": [4, 2], "stages.1.0.0": [8, 4]}
        assert state.report["sparsity"] == 0.5
        assert widths(pruned) == {name: after for name, (_, after) in state.report["channels"].items()}

    def test_a_residual_sum_loses_the_same_channels_on_both_sides(self):
        pruned, state = apply(cnn(block="residual", width=8, depth=2), pruning_ratio=0.5)
        removed = {name: indices for name, outputs, indices in state.history["layers"] if outputs}
        assert removed["stem.0"] == removed["stages.0.0.body.3"] == removed["stages.0.1.body.3"]
        assert flops(pruned) < 0.35 * flops(cnn(block="residual", width=8, depth=2))

    def test_depthwise_convolutions_stay_depthwise(self):
        pruned, _ = apply(cnn(block="separable", width=8), pruning_ratio=0.5)
        depthwise = pruned.stages[0][0][0]
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == 4

    @pytest.mark.parametrize(("criterion", "weakest"), [("l1", 1), ("l2", 1), ("batch_norm", 2)])
    def test_the_least_important_channel_goes(self, criterion, weakest):
        model = chain(4, layers=1)
        with torch.no_grad():
            model[0].weight[1] *= 0.01
            model[5].weight[:, 1] *= 0.01
            model[1].weight.copy_(torch.tensor([1.0, 1.0, 0.5, 1.0]))
        _, state = apply(model, pruning_ratio=0.25, criterion=criterion)
        assert state.history["layers"][0] == ["0", True, [weakest]]

    def test_global_scope_spares_layers_that_matter(self):
        model = chain(8)
        with torch.no_grad():
            model[0].weight[4:] *= 1e-3
            model[1].weight[4:] *= 1e-3
            model[3].weight[:, 4:] *= 1e-3
        _, state = apply(model, pruning_ratio=1 / 6, scope="global")
        assert state.report["channels"] == {"0": [8, 4]}

    def test_kept_weights_are_the_model_s_own(self):
        model = chain(4, layers=1)
        pruned, state = apply(model, pruning_ratio=0.5)
        kept = [channel for channel in range(4) if channel not in state.history["layers"][0][2]]
        assert torch.equal(pruned[0].weight, model[0].weight[kept])
        assert torch.equal(pruned[1].running_mean, model[1].running_mean[kept])
        assert torch.equal(pruned[5].weight, model[5].weight[:, kept])

    def test_frozen_weights_are_cut_and_stay_frozen(self):
        model = cnn()
        model.stem.requires_grad_(False)
        pruned, state = apply(model, pruning_ratio=0.5)
        assert state.report["channels"]["stem.0"] == [4, 2]
        assert {name for name, p in pruned.named_parameters() if not p.requires_grad} == {
            name for name, p in model.named_parameters() if not p.requires_grad
        }

    @pytest.mark.slow
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_a_pruned_model_learns(self, block, criterion):
        pruned, _ = apply(cnn(block=block, width=8), pruning_ratio=0.5, criterion=criterion)
        x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
        optimizer = torch.optim.Adam(pruned.train().parameters(), lr=0.01)
        losses = []
        for _ in range(8):
            loss = nn.functional.cross_entropy(pruned(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


class TestRandom:
    def test_the_seed_decides(self):
        histories = [apply(cnn(width=8), criterion="random", seed=seed)[1].history for seed in (0, 0, 1)]
        assert histories[0] == histories[1] != histories[2]

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_the_global_stream_stays(self, criterion):
        model = cnn()
        state = torch.random.get_rng_state()
        apply(model, criterion=criterion)
        assert torch.equal(torch.random.get_rng_state(), state)


class TestMeasuredCriteria:
    @pytest.mark.parametrize("criterion", ["gradient", "taylor"])
    def test_a_channel_that_the_loss_does_not_depend_on_goes(self, criterion):
        # Channel 2 has large weights on both sides, but its rectifier never opens: no magnitude says so.
        model = chain(4, layers=1)
        with torch.no_grad():
            model[0].weight[2] *= 10
            model[1].bias[2] = -100
        assert apply(model, pruning_ratio=0.25, criterion=criterion)[1].history["layers"][0] == ["0", True, [2]]
        assert apply(model, pruning_ratio=0.25, criterion="l2")[1].history["layers"][0] != ["0", True, [2]]

    @pytest.mark.parametrize("criterion", ["gradient", "taylor"])
    @pytest.mark.parametrize(
        ("given", "reason"),
        [(Context(EXAMPLE), "task's loss"), (replace(labelled_context(), targets=()), "batches with their targets")],
        ids=["no loss", "no targets"],
    )
    def test_what_they_measure_on_must_be_there(self, criterion, given, reason):
        with pytest.raises(CompressionError, match=reason):
            METHOD.apply(cnn(), StructuredConfig(criterion=criterion), given)

    def test_the_model_carries_no_gradient_away(self):
        model = cnn()
        pruned, _ = apply(model, criterion="taylor")
        assert all(parameter.grad is None for parameter in [*model.parameters(), *pruned.parameters()])


class TestState:
    def test_it_survives_json(self):
        model = cnn(block="separable")
        pruned, state = apply(model, pruning_ratio=0.6)
        history, report = json.loads(json.dumps([dict(state.history), dict(state.report)], allow_nan=False))
        assert report == dict(state.report)
        rebuilt = METHOD.restore(cnn(seed=5, block="separable"), StructuredConfig(), MethodState(history=history))
        rebuilt.load_state_dict(pruned.state_dict())
        x = torch.randn(4, 1, 8, 8)
        assert torch.equal(rebuilt(x), pruned(x))

    def test_another_architecture_is_refused(self):
        _, state = apply(cnn(width=8))
        with pytest.raises(CompressionError, match="history does not fit"):
            METHOD.restore(cnn(width=2), StructuredConfig(), state)

    def test_calibration_examples_serve_the_check(self):
        batches = ((torch.randn(16, 1, 8, 8),),)
        assert apply(cnn(), calibration=batches)[1].report["sparsity"] == 0.5


class TestRefusals:
    def test_a_layer_without_channels(self):
        with pytest.warns(UserWarning, match="zero-element"):
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 0), nn.Linear(0, 3))
        with pytest.raises(CompressionError, match="'1' has no channels"):
            apply(model)

    def test_a_criterion_that_finds_nothing_to_read(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
        with pytest.raises(CompressionError, match="batch_norm scores none of its layers"):
            apply(model, criterion="batch_norm")

    def test_a_model_with_one_layer(self):
        with pytest.raises(CompressionError, match="it is an output of the model"):
            apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))

    def test_weights_that_are_not_finite(self):
        model = cnn()
        model.stem[0].weight.data[0, 0, 0, 0] = torch.nan
        with pytest.raises(CompressionError, match=r"'stem\.0' are not finite"):
            apply(model)


def test_nothing_is_printed(capfd):
    apply(cnn(), pruning_ratio=0.5)
    assert capfd.readouterr() == ("", "")


def test_it_declares_a_recovery():
    assert issubclass(METHOD.config, Recovery)
    assert METHOD.config.knobs()["recovery_epochs"].default == 3


METHODS = [PRUNE.get("structured"), PRUNE.get("adaptive")]


def configure(method, **knobs):
    return method.config(**{"schedule": "linear", "steps": 3, "step_epochs": 1} | knobs)


@pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
class TestSeveralCuts:
    @pytest.mark.slow
    def test_the_model_trains_between_and_rebuilds(self, method, block):
        tuner = Tuner()
        model = cnn(block=block, width=8)
        pruned, state = method.apply(model, configure(method, pruning_ratio=0.6), labelled_context(tune=tuner))
        assert len(tuner.calls) == 2
        rebuilt = method.restore(
            cnn(seed=3, block=block, width=8),
            configure(method),
            MethodState(history=json.loads(json.dumps(dict(state.history)))),
        )
        rebuilt.load_state_dict(pruned.state_dict())
        x = torch.randn(4, 1, 8, 8)
        assert torch.equal(rebuilt(x), pruned(x))
        assert not pruned.training

    @pytest.mark.slow
    def test_without_training_they_reach_the_same_ratio(self, method, block):
        model, context = cnn(block=block, width=8), labelled_context()
        config = configure(method, pruning_ratio=0.6, step_epochs=0)
        once = method.config(pruning_ratio=0.6, schedule="one_shot")
        key = "removed" if method.name == "adaptive" else "sparsity"
        reached = [method.apply(model, each, context)[1].report[key] for each in (config, once)]
        assert reached[0] == pytest.approx(reached[1], abs=0.08)
        assert reached[0] > 0.5


class TestStructuredSteps:
    METHOD = PRUNE.get("structured")

    @pytest.mark.parametrize("scope", ["uniform", "global"])
    @pytest.mark.parametrize("schedule", ["linear", "cubic"])
    def test_the_cuts_follow_the_schedule(self, schedule, scope):
        widths = []

        def tune(model, *_):
            widths.append(model.stem[0].out_channels + model.stages[0][0][0].out_channels)

        config = StructuredConfig(pruning_ratio=0.75, schedule=schedule, steps=3, scope=scope)
        _, state = self.METHOD.apply(cnn(block="plain", width=16, stages=1), config, labelled_context(tune=tune))
        left = [32 - round(32 * ratio) for ratio in config.step_ratios(0.75)]
        assert widths == [pytest.approx(count, abs=1) for count in left[:2]]
        assert state.report["sparsity"] == pytest.approx(0.75, abs=0.04)

    def test_the_report_compares_the_end_with_the_beginning(self):
        config = StructuredConfig(pruning_ratio=0.5, schedule="linear", steps=2, step_epochs=0)
        _, state = self.METHOD.apply(cnn(block="plain"), config, labelled_context())
        assert state.report["channels"] == {"stem.0": [4, 2], "stages.0.0.0": [4, 2], "stages.1.0.0": [8, 4]}
        assert state.report["sparsity"] == 0.5

    def test_frozen_weights_are_frozen_while_it_trains(self):
        model = cnn()
        model.stem.requires_grad_(False)
        flags = []

        def tune(pruned, *_):
            flags.append({name for name, p in pruned.named_parameters() if not p.requires_grad})

        config = StructuredConfig(schedule="linear", steps=2)
        pruned, _ = self.METHOD.apply(model, config, labelled_context(tune=tune))
        assert flags == [{"stem.0.weight", "stem.1.weight", "stem.1.bias"}]
        assert {name for name, p in pruned.named_parameters() if not p.requires_grad} == flags[0]

    def test_training_that_breaks_the_weights_is_noticed(self):
        def tune(model, *_):
            model.stem[0].weight.data[:] = torch.nan

        with pytest.raises(CompressionError, match="not finite"):
            self.METHOD.apply(cnn(), StructuredConfig(schedule="linear", steps=2), labelled_context(tune=tune))


def test_a_cut_that_leaves_no_path_is_refused():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
        model[2].weight.copy_(torch.tensor([[0.1, 9.0]] * 3))
    with pytest.raises(CompressionError, match="ignores its input"):
        PRUNE.get("structured").apply(model, StructuredConfig(), labelled_context(shape=(4,)))


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_layers_keep_a_multiple_of_what_is_asked(method, multiple):
    model = cnn(block="residual", width=24)
    kept = []
    for ratio in (0.0, 0.2, 0.4, 0.6, 0.9):
        pruned, state = method.apply(model, method.config(pruning_ratio=ratio, round_to=multiple), labelled_context())
        widths = state.report["channels"].values()
        assert all(after % multiple == 0 or after == before for before, after in widths)
        assert all(after >= multiple for _, after in widths)
        pruned(torch.randn(2, 1, 8, 8))
        kept.append(sum(parameter.numel() for parameter in pruned.parameters()))
    # The adaptive method deals what is left anew at each ratio, so steps of eight may cross.
    assert method.name == "adaptive" or kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0] / 2


class OwnLinear(nn.Module):
    """A linear layer of another library, such as that of I-BERT."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.head_size, self.all_head_size = 4, 4, 16
        self.query, self.key, self.value, self.out = (OwnLinear(16, 16) for _ in range(4))

    def forward(self, x):
        shape = (*x.shape[:-1], self.num_heads, self.head_size)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = (query @ key.transpose(-1, -2) / 2).softmax(-1) @ value
        return x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], self.all_head_size))


@pytest.mark.parametrize("criterion", ["l2", "taylor", "random"])
def test_heads_and_channels_of_linear_layers_of_another_library_are_removed(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(
        OwnAttention(), OwnLinear(16, 24), nn.ReLU(), OwnLinear(24, 16), nn.Flatten(), OwnLinear(80, 10)
    )
    config = StructuredConfig(pruning_ratio=0.5, criterion=criterion)
    pruned, state = PRUNE.get("structured").apply(model.eval(), config, labelled_context(shape=(5, 16)))
    assert (pruned[0].num_heads, pruned[0].all_head_size, pruned[0].query.weight.shape) == (2, 8, (8, 16))
    assert (pruned[1].weight.shape, pruned[3].weight.shape) == ((12, 16), (8, 12))
    assert state.report["channels"]["0.query.weight"] == [16, 8]
    # The least important channels go, as in a linear layer of torch.
    norms = model[1].weight.square().sum(1) + model[3].weight.square().sum(0)
    if criterion == "l2":
        kept = norms.argsort(descending=True)[:12].sort().values
        assert torch.equal(pruned[1].weight, model[1].weight[kept])


def test_a_multiple_of_channels_does_not_hold_whole_heads():
    model = nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), nn.Linear(16, 3))
    context = labelled_context(shape=(5, 6))
    pruned, _ = PRUNE.get("structured").apply(model, StructuredConfig(pruning_ratio=0.5, round_to=4), context)
    attention = pruned[1].self_attn
    assert (attention.num_heads, pruned[1].linear1.out_features) == (2, 12)


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_nearest_multiple_is_kept(channels, data):
    indices = data.draw(st.lists(st.integers(0, channels - 1), unique=True, max_size=channels - 1))
    multiple = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    scores = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=channels, max_size=channels)))
    found = round_to_multiple(ScoredGroup(ChannelGroup("a", channels, ()), scores, 0), indices, multiple)
    left = channels - len(found)
    assert set(found) <= set(range(channels))
    assert left % multiple == 0 or left == channels
    kept = channels - len(indices)
    assert not indices or abs(left - kept) <= max(multiple / 2, multiple - kept)
