"""Several cuts with training between them, shared by every method that removes channels."""

import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.core.method import MethodState
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.prune import StructuredConfig
from autocompress.prune.channel_pruning import ScoredGroup, round_to_multiple
from autocompress.prune.channels import ChannelGroup
from tests.prune.toys import Tuner, cnn, labelled_context

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


def test_rounding_never_takes_all_that_a_layer_has():
    group = ChannelGroup("a", 8, 1, (), ((0, 1, 2), (3, 4, 5, 6, 7)))
    scores = torch.tensor([0.0, 0.1, 9.0, 5.0, 5.0, 5.0, 5.0, 5.0])
    # Five are kept; four would be nearest, at the price of the first part.
    found = round_to_multiple(ScoredGroup(group, scores, 0), [0, 1, 3], 4)
    assert len(found) in (0, 4)
    assert not {0, 1, 2} <= set(found)
    tight = round_to_multiple(ScoredGroup(group, torch.arange(8.0), 0), [0, 1], 8)
    assert tight == []


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_nearest_multiple_is_kept(channels, data):
    indices = data.draw(st.lists(st.integers(0, channels - 1), unique=True, max_size=channels - 1))
    multiple = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    scores = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=channels, max_size=channels)))
    found = round_to_multiple(ScoredGroup(ChannelGroup("a", channels, 1, (), ()), scores, 0), indices, multiple)
    left = channels - len(found)
    assert set(found) <= set(range(channels))
    assert left % multiple == 0 or left == channels
    kept = channels - len(indices)
    assert not indices or abs(left - kept) <= max(multiple / 2, multiple - kept)
