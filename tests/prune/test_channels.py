import pytest
import torch
import torch_pruning
from torch import nn

from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.prune import Structured, StructuredConfig
from autocompress.prune.calibration import flatten_outputs
from autocompress.prune.channels import (
    ChannelGraph,
    have_close_outputs,
    replay_history,
    verify_pruned_model,
    zero_input_channels,
)
from tests.prune.toys import cnn, labelled_context
from tests.prune.zoo import (
    FOLLOWED,
    IMAGE,
    REFUSED,
    VECTOR,
    AddedToConcat,
    Dense,
    Grouped,
    Mlp,
    Net,
    Shared,
)

METHOD = Structured()


def build(kind):
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model


def batch(example, size=4):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(size, *x.shape[1:], generator=generator)
        if x.is_floating_point()
        else torch.randint(0, 10, (size, *x.shape[1:]), generator=generator)
        for x in example
    )


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize(("kind", "example", "layers"), FOLLOWED, ids=[row[0].__name__ for row in FOLLOWED])
class TestFollowed:
    def test_the_expected_layers_shrink_and_the_model_rebuilds(self, kind, example, layers, scope):
        model = build(kind)
        config = StructuredConfig(pruning_ratio=0.5, scope=scope)
        pruned, state = METHOD.apply(model, config, Context(example))
        assert set(state.report["channels"]) == layers
        rebuilt = METHOD.restore(kind(), config, state)
        rebuilt.load_state_dict(pruned.state_dict())
        for ours, theirs in zip(
            flatten_outputs(rebuilt(*batch(example))), flatten_outputs(pruned(*batch(example))), strict=True
        ):
            assert torch.equal(ours, theirs)

    def test_the_deepest_cut_keeps_a_channel_everywhere(self, kind, example, layers, scope):
        config = StructuredConfig(pruning_ratio=0.9, scope=scope)
        pruned, state = METHOD.apply(build(kind), config, Context(example))
        assert all(before > after >= 1 for before, after in state.report["channels"].values())
        assert all(out.isfinite().all() for out in flatten_outputs(pruned(*batch(example))))


@pytest.mark.parametrize(("kind", "example", "reason"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(kind, example, reason):
    with pytest.raises(CompressionError, match=reason):
        METHOD.apply(build(kind), StructuredConfig(pruning_ratio=0.5), Context(example))


class TestRemoval:
    def test_a_hand_made_cut(self):
        # a -> b: channel 1 of a goes, with its bias and its column in b
        model = Net(a=nn.Linear(4, 3), b=nn.Linear(3, 2))
        model.forward = lambda x: model.b(model.a(x).relu())
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        channels = ChannelGraph(model.eval(), VECTOR)
        (group,) = channels.groups
        history = channels.list_removals([(group, [1])])
        assert history == [["a", True, [1]], ["b", False, [1]]]
        replay_history(model, history)
        assert torch.equal(model.a.weight, before["a.weight"][[0, 2]])
        assert torch.equal(model.a.bias, before["a.bias"][[0, 2]])
        assert torch.equal(model.b.weight, before["b.weight"][:, [0, 2]])
        assert torch.equal(model.b.bias, before["b.bias"])

    def test_nothing_chosen_changes_nothing(self):
        channels = ChannelGraph(build(Mlp), VECTOR)
        assert channels.list_removals([(channels.groups[0], [])]) == []

    def test_a_choice_in_a_grouped_convolution_goes_from_every_block(self):
        channels = ChannelGraph(build(Grouped), IMAGE)
        wide = next(group for group in channels.groups if group.name == "g")
        assert wide.channels == 3
        assert channels.list_removals([(wide, [0, 2])])[0] == ["g", True, [0, 2, 3, 5, 6, 8, 9, 11]]

    @pytest.mark.parametrize("chosen", [range(8), [8], [-1]], ids=str)
    def test_all_channels_or_one_that_is_not_there_are_refused(self, chosen):
        channels = ChannelGraph(build(Shared), IMAGE)
        with pytest.raises(CompressionError, match="has 8 channels and must keep at least one"):
            channels.list_removals([(channels.groups[0], chosen)])

    def test_each_part_of_a_concatenation_is_a_group_of_its_own(self):
        # a and b are concatenated and added to c: six channels of c go with those of a, two with those of b.
        channels = ChannelGraph(build(AddedToConcat), IMAGE)
        groups = {group.name: group for group in channels.groups}
        assert {name: group.channels for name, group in groups.items()} == {"a": 6, "b": 2, "d": 4}
        history = channels.list_removals([(groups["a"], [0, 5]), (groups["b"], [1])])
        # The second group finds the inputs of d moved up by the first.
        assert [entry for entry in history if entry[0] == "d"] == [["d", False, [0, 5]], ["d", False, [5]]]


class TestGroups:
    """What goes together is what torch-pruning says goes together."""

    @pytest.mark.slow
    @pytest.mark.parametrize("criterion", ["l2", "taylor"])
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    def test_every_layer_loses_the_channels_of_its_group(self, block, criterion):
        model = cnn(block=block, width=8, depth=2)
        given = labelled_context()
        _, state = METHOD.apply(model, StructuredConfig(pruning_ratio=0.3, criterion=criterion), given)
        graph = torch_pruning.DependencyGraph().build_dependency(model, given.example)
        names = {module: name for name, module in model.named_modules()}
        history = [(name, outputs, tuple(indices)) for name, outputs, indices in state.history["layers"]]
        started = 0
        while started < len(history):
            name, outputs, indices = history[started]
            assert outputs
            layer = model.get_submodule(name)
            expected = {
                (names[dep.target.module], graph.is_out_channel_pruning_fn(dep.handler), tuple(sorted(found)))
                for dep, found in graph.get_pruning_group(
                    layer, graph.get_pruner_of_module(layer).prune_out_channels, list(indices)
                )
                if dep.target.module in names
            }
            assert set(history[started : started + len(expected)]) == expected
            started += len(expected)
        assert started > 4


class TestSilence:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "layer", [nn.Linear(4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)], ids=str
    )
    def test_a_silent_input_changes_no_output(self, layer):
        x = torch.randn(2, 4, *([] if isinstance(layer, nn.Linear) else [5, 5]))
        loud = x.clone()
        loud[:, [1, 2]] += 5
        assert not torch.allclose(layer(x), layer(loud))
        zero_input_channels(layer, [1, 2])
        torch.testing.assert_close(layer(x), layer(loud))


class TestReplay:
    @pytest.mark.parametrize(
        "history",
        [
            [["nowhere", True, [0]]],
            [["1.weight", True, [0]]],
            [["0", True, [8]]],
            [["0", True, [-1]]],
            [["0", True, []]],
            [["0", True, list(range(8))]],
            [["0", True, ["0"]]],
            [["0", True, 3]],
            [["0", True]],
            [[5, True, [0]]],
            [["0", "in_features", 10**9]],
            [["0", "training", 2]],
            [["3", True, [0]], ["5", True, [0]]],
            "text",
            [None],
        ],
        ids=str,
    )
    def test_a_history_that_does_not_fit_is_refused(self, history):
        with pytest.raises(CompressionError, match="history does not fit"):
            replay_history(Mlp(), history)

    def test_a_state_without_history_is_refused(self):
        with pytest.raises(CompressionError, match="no list of layers"):
            METHOD.restore(Mlp(), StructuredConfig(), MethodState())


class TestVerification:
    """A cut made at the wrong place is noticed."""

    def cut(self, kind=Mlp, example=VECTOR):
        model = build(kind)
        pruned, state = METHOD.apply(model, StructuredConfig(pruning_ratio=0.5), Context(example))
        return model, pruned, state.history["layers"]

    def test_the_right_cut_passes(self):
        model, pruned, history = self.cut()
        verify_pruned_model(model, pruned, history, batch(VECTOR))

    def test_channels_in_another_order(self):
        model, pruned, history = self.cut()
        with torch.no_grad():
            pruned[2].weight.copy_(pruned[2].weight.flip(1))
        with pytest.raises(CompressionError, match="mixes channels"):
            verify_pruned_model(model, pruned, history, batch(VECTOR))

    def test_an_output_that_is_not_finite(self):
        model, pruned, history = self.cut()
        with torch.no_grad():
            pruned[4].bias[0] = torch.inf
        with pytest.raises(CompressionError, match="not finite"):
            verify_pruned_model(model, pruned, history, batch(VECTOR))

    def test_another_shape(self):
        model, pruned, history = self.cut()
        pruned[4] = nn.Linear(3, 2)
        with pytest.raises(CompressionError, match="shape"):
            verify_pruned_model(model, pruned, history, batch(VECTOR))

    def test_a_model_that_no_longer_runs(self):
        model, pruned, history = self.cut()
        pruned[2] = nn.Linear(7, 6)
        with pytest.raises(CompressionError, match="fails"):
            verify_pruned_model(model, pruned, history, batch(VECTOR))

    def test_the_whole_model_stays_as_it_was(self):
        model, pruned, history = self.cut(Dense, IMAGE)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        verify_pruned_model(model, pruned, history, batch(IMAGE))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("actual", "is_close"),
    [([1.0, -2.0], True), ([1.0, -2.001], True), ([1.0, -2.01], False), ([1.0, torch.nan], False), ([1.0], False)],
    ids=str,
)
def test_outputs_are_close_up_to_rounding(actual, is_close):
    assert have_close_outputs([torch.tensor(actual)], [torch.tensor([1.0, -2.0])]) is is_close
