import pytest
import torch
import torch_pruning
from torch import nn

from autocompress.errors import CompressionError
from autocompress.models import CNN, CNNConfig
from autocompress.prune.channels import ChannelGraph
from autocompress.prune.importance import (
    CRITERIA,
    Criterion,
    LayerSlice,
    flatten_by_channel,
    score_channels,
    taylor_change,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_have_the_shape_of_the_weight_and_none_is_negative(criterion):
    weight = torch.randn(4, 3, 2, 2)
    weight.grad = torch.randn(4, 3, 2, 2)
    scores = CRITERIA[criterion].importance(weight, generator())
    assert scores.shape == weight.shape
    assert scores.dtype == weight.dtype
    assert (scores >= 0).all()


class TestGradients:
    def test_taylor_is_what_the_loss_would_lose_to_first_order(self):
        weight = torch.tensor([[2.0, -3.0], [0.0, 1.0]])
        weight.grad = torch.tensor([[-1.0, 0.5], [9.0, 0.0]])
        assert CRITERIA["taylor"].importance(weight, generator()).tolist() == [[2.0, 1.5], [0.0, 0.0]]
        assert CRITERIA["gradient"].importance(weight, generator()).tolist() == [[1.0, 0.5], [9.0, 0.0]]

    def test_taylor_is_exact_for_a_linear_loss(self):
        layer = nn.Linear(3, 2, bias=False)
        x = torch.tensor([[1.0, -2.0, 0.5]])
        layer(x).sum().backward()
        scores = CRITERIA["taylor"].importance(layer.weight, generator())
        for row in range(2):
            for column in range(3):
                without = layer.weight.detach().clone()
                without[row, column] = 0
                change = (x @ without.T).sum() - layer(x).sum()
                torch.testing.assert_close(scores[row, column], change.abs())

    @pytest.mark.parametrize("criterion", ["gradient", "taylor"])
    def test_a_weight_without_a_gradient_is_refused(self, criterion):
        with pytest.raises(CompressionError, match="needs a gradient for each weight"):
            CRITERIA[criterion].importance(torch.randn(2, 2), generator())

    @pytest.mark.parametrize("block", ["plain", "residual"])
    def test_group_sums_agree_with_torch_pruning(self, block):
        torch.manual_seed(0)
        model = CNN(CNNConfig(width=6, depth=2, stages=2, block=block), 1, {"label": 3}).eval()
        example = (torch.zeros(1, 1, 8, 8),)
        channels = ChannelGraph(model, example)
        nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 3).backward()
        graph = torch_pruning.DependencyGraph().build_dependency(model, example)
        oracle = torch_pruning.importance.GroupTaylorImportance(normalizer="mean", bias=False)
        expected = {frozenset(list_layers(group)): oracle(group) for group in graph.get_all_groups()}
        # torch-pruning looks for batch norm under the name of group norm here, and so leaves it out.
        criterion = Criterion(taylor_change, (nn.Conv2d, nn.Linear), gradients=True)
        for group in channels.groups:
            scores = score_channels(group.slices, group.channels, criterion, generator())
            layers = frozenset(part.name for part in group.slices if part.outputs)
            torch.testing.assert_close(scores.float(), expected[layers])


def list_layers(group):
    """Return the layers that lose outputs with a group of torch-pruning."""
    return {
        item.dep.target.name.split()[0]
        for item in group
        if group._DG.is_out_channel_pruning_fn(item.dep.handler) and isinstance(item.dep.target.module, nn.Module)
        if next(item.dep.target.module.parameters(recurse=False), None) is not None
    }


class TestByChannel:
    """Brute force: a weight belongs to a channel if its gradient is zero while only the others carry a signal."""

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(4, 6, 3, bias=False),
            nn.Conv2d(4, 6, 3, groups=2, bias=False),
            nn.Conv2d(4, 4, 3, groups=4, bias=False),
            nn.ConvTranspose2d(4, 6, 3, bias=False),
            nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        ],
        ids=str,
    )
    def test_convolutions(self, layer):
        indices = torch.arange(layer.weight.numel(), dtype=torch.float32).view_as(layer.weight)
        inputs, outputs = flatten_by_channel(layer, indices, False), flatten_by_channel(layer, indices, True)
        for channel in range(4):
            x = torch.zeros(1, 4, 5, 5)
            x[:, channel] = torch.rand(5, 5) + 0.1
            assert set(inputs[channel].tolist()) == self.used(layer, layer(x).sum())
        for channel in range(layer.out_channels):
            out = layer(torch.rand(1, 4, 5, 5) + 0.1)
            assert set(outputs[channel].tolist()) == self.used(layer, out[:, channel].sum())

    def used(self, layer, value):
        (gradient,) = torch.autograd.grad(value, layer.weight)
        return set(gradient.flatten().nonzero().flatten().tolist())

    def test_linear_and_batch_norm(self):
        linear, norm = nn.Linear(3, 2), nn.BatchNorm1d(4)
        assert torch.equal(flatten_by_channel(linear, linear.weight, True), linear.weight)
        assert torch.equal(flatten_by_channel(linear, linear.weight, False), linear.weight.T)
        assert flatten_by_channel(norm, norm.weight, True).shape == (4, 1)


class TestChannelScores:
    @pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
    @pytest.mark.parametrize("block", ["plain", "residual"])
    def test_group_norms_agree_with_torch_pruning(self, criterion, power, block):
        torch.manual_seed(0)
        model = CNN(CNNConfig(width=6, depth=2, stages=2, block=block), 1, {"label": 3})
        example = (torch.zeros(1, 1, 8, 8),)
        graph = torch_pruning.DependencyGraph().build_dependency(model, example)
        oracle = torch_pruning.importance.GroupMagnitudeImportance(p=power, normalizer="mean")
        expected = {frozenset(list_layers(group)): oracle(group) for group in graph.get_all_groups()}
        groups = ChannelGraph(model.eval(), example).groups
        assert len(groups) > 3
        for group in groups:
            scores = score_channels(group.slices, group.channels, CRITERIA[criterion], generator())
            layers = frozenset(part.name for part in group.slices if part.outputs)
            torch.testing.assert_close(scores.float(), expected[layers])

    def test_every_layer_adds_its_share(self):
        first, second = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]]))
            second.weight.copy_(torch.tensor([[0.0, 1.0, 5.0]]))
        slices = [LayerSlice("a", first, True, range(3), range(3)), LayerSlice("b", second, False, range(3), range(3))]
        scores = score_channels(slices, 3, CRITERIA["l1"], generator())
        torch.testing.assert_close(scores, torch.tensor([2.0, 3.0, 5.0]).double() / (10 / 3))

    def test_zeros_stay_zeros(self):
        layer = nn.Linear(2, 3)
        nn.init.zeros_(layer.weight)
        part = LayerSlice("a", layer, True, range(3), range(3))
        assert score_channels([part], 3, CRITERIA["l2"], generator()).tolist() == [0, 0, 0]

    def test_batch_norm_reads_scales_alone(self):
        norm, layer = nn.BatchNorm1d(2), nn.Linear(2, 2)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([-3.0, 1.0]))
        slices = [LayerSlice("a", layer, True, range(2), range(2)), LayerSlice("b", norm, True, range(2), range(2))]
        assert score_channels(slices, 2, CRITERIA["batch_norm"], generator()).tolist() == [1.5, 0.5]

    def test_random_depends_on_its_generator_alone(self):
        part = LayerSlice("a", nn.Linear(2, 3), True, range(3), range(3))
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        first = score_channels([part], 3, CRITERIA["random"], generator(7))
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(first, score_channels([part], 3, CRITERIA["random"], generator(7)))
        assert not torch.equal(first, score_channels([part], 3, CRITERIA["random"], generator(8)))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused(self, bad):
        layer = nn.Linear(2, 3)
        with torch.no_grad():
            layer.weight[0, 0] = bad
        with pytest.raises(CompressionError, match="'fc' are not finite"):
            score_channels([LayerSlice("fc", layer, True, range(3), range(3))], 3, CRITERIA["l1"], generator())
