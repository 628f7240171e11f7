from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from autocompress.core.registry import PRUNE
from autocompress.measure import cost, layer_costs
from autocompress.prune import StructuredConfig
from autocompress.prune.calibration import measure_calibration
from autocompress.prune.channel_sensitivity import (
    ChannelCost,
    GroupSensitivity,
    allocate_removals,
    count_weight_uses,
    measure_sensitivity,
)
from autocompress.prune.channels import ChannelGraph, replay_history
from autocompress.prune.importance import CRITERIA, score_channels
from autocompress.prune.schedule import rank_removable_channels
from autocompress.prune.structured import ScoredGroup
from tests.prune.toys import EXAMPLE, cnn, labelled_context
from tests.prune.zoo import FOLLOWED


def ranked_groups(model, example=EXAMPLE):
    channels = ChannelGraph(model, example)
    found = []
    for group in channels.groups:
        scores = score_channels(group.slices, group.channels, CRITERIA["l2"], torch.Generator())
        found.append(ScoredGroup(group, scores, 0))
    return channels, found


class TestMeasuring:
    @pytest.mark.slow
    def test_silence_reads_as_a_cut_does(self):
        model, context = cnn(block="residual", width=8), labelled_context()
        before = measure_calibration(model, context)
        measured = measure_sensitivity(model, ranked_groups(model)[1], context)
        for place, group in zip(ranked_groups(model)[1], measured, strict=True):
            for count, loss, drop in group.points:
                cut = cnn(block="residual", width=8)
                channels, places = ranked_groups(cut)
                twin = next(other for other in places if other.group.name == place.group.name)
                replay_history(cut, channels.list_removals([(twin.group, list(group.order[:count]))]))
                after = measure_calibration(_settled(cut, context), context)
                base = measure_calibration(_settled(cnn(block="residual", width=8), context), context)
                assert loss == pytest.approx(after.loss - base.loss, abs=1e-4)
                assert drop["label"] == pytest.approx(base.accuracy["label"] - after.accuracy["label"])
        assert measure_calibration(model, context) == before

    def test_points_reach_from_few_channels_to_all_that_may_go(self):
        model = cnn(block="plain", width=8, stages=1)
        for group in measure_sensitivity(model, ranked_groups(model)[1], labelled_context()):
            assert [count for count, _, _ in group.points] == [2, 4, 5, 7]
            assert len(group.order) == 7

    def test_a_group_without_a_channel_to_spare_has_no_points(self):
        group = GroupSensitivity("a", (), ())
        assert group.loss_curve() == [0.0]
        assert group.table_rows(1) == []

    def test_rows_are_a_table(self):
        group = GroupSensitivity("stem.0", (1, 0, 2), ((1, 0.1, {"label": 0.02}), (3, 0.5, {"label": 0.3})))
        assert group.table_rows(4) == [
            {"layer": "stem.0", "pruning_ratio": 0.25, "loss": 0.1, "accuracy_drop": {"label": 0.02}},
            {"layer": "stem.0", "pruning_ratio": 0.75, "loss": 0.5, "accuracy_drop": {"label": 0.3}},
        ]


def _settled(model, context):
    from autocompress.prune import reestimate_batch_norm

    reestimate_batch_norm(model, context.calibration)
    return model


class TestCurve:
    @given(st.lists(st.floats(-1, 5), min_size=1, max_size=5))
    def test_it_rises_ever_faster_and_never_above_a_measurement(self, losses):
        points = tuple((2 * index + 1, loss, {}) for index, loss in enumerate(losses))
        curve = GroupSensitivity("a", tuple(range(points[-1][0])), points).loss_curve()
        assert len(curve) == points[-1][0] + 1
        assert curve[0] == 0.0
        steps = [after - before for before, after in pairwise(curve)]
        assert all(step >= 0 for step in steps)
        assert all(before <= after + 1e-9 for before, after in pairwise(steps))
        assert all(curve[count] <= max(loss, 0.0) + 1e-9 for count, loss, _ in points)

    def test_by_hand(self):
        group = GroupSensitivity("a", (0, 1, 2, 3), ((1, 0.3, {}), (2, 0.2, {}), (4, 1.2, {})))
        assert group.loss_curve() == pytest.approx([0.0, 0.1, 0.2, 0.7, 1.2])


class TestCost:
    @pytest.mark.parametrize("weighted", ["flops", "parameters"])
    @pytest.mark.parametrize(("kind", "example", "layers"), FOLLOWED, ids=[row[0].__name__ for row in FOLLOWED])
    def test_it_foresees_what_a_cut_leaves(self, kind, example, layers, weighted):
        torch.manual_seed(0)
        model = kind().eval()
        channels, ranked = ranked_groups(model, example)
        orders = [rank_removable_channels(place.scores) for place in ranked]
        uses = count_weight_uses(model, example)
        uses = uses if weighted == "flops" else dict.fromkeys(uses, 1.0)
        foreseen = ChannelCost(model, ranked, orders, uses)
        counts = [len(order) // 2 for order in orders]
        expected = foreseen(counts)
        assert foreseen([0] * len(orders)) == pytest.approx(self.true(model, uses))
        removals = [
            (place.group, sorted(order[:count])) for place, order, count in zip(ranked, orders, counts, strict=True)
        ]
        replay_history(model, channels.list_removals(removals))
        assert expected == pytest.approx(self.true(model, uses))

    def true(self, model, uses):
        return sum(use * model.get_submodule(name).weight.numel() for name, use in uses.items())

    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    def test_the_uses_of_a_cnn_make_its_macs(self, block):
        model = cnn(block=block, width=8)
        total = sum(
            use * model.get_submodule(name).weight.numel() for name, use in count_weight_uses(model, EXAMPLE).items()
        )
        assert total == cost.count_macs(layer_costs(model, EXAMPLE))

    def test_a_transposed_convolution_counts_by_its_inputs(self):
        model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2)).eval()
        example = (torch.zeros(1, 2, 4, 4),)
        assert count_weight_uses(model, example) == {"0": 16.0}
        assert 16 * model[0].weight.numel() == cost.count_macs(layer_costs(model, example))

    def test_a_batch_of_several_layers_that_run_twice(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(4, 4)

            def forward(self, x):
                return self.a(self.a(x))

        assert count_weight_uses(Twice(), (torch.zeros(1, 4),)) == {"a": 2.0}


class TestAllocate:
    CURVES = st.lists(
        st.lists(st.floats(0, 1), min_size=0, max_size=8).map(
            lambda steps: [0.0, *torch.tensor(sorted(steps)).cumsum(0).tolist()]
        ),
        min_size=1,
        max_size=4,
    )

    @given(CURVES, st.floats(0, 1), st.floats(0, 1))
    def test_a_lower_target_takes_what_a_higher_one_does_and_more(self, curves, one, other):
        def total(counts):
            return sum(len(curve) - count for curve, count in zip(curves, counts, strict=True))

        whole = total([0] * len(curves))
        less = allocate_removals(curves, total, max(one, other) * whole)
        more = allocate_removals(curves, total, min(one, other) * whole)
        assert all(few <= many for few, many in zip(less, more, strict=True))

    @given(CURVES, st.floats(0, 1))
    def test_the_target_is_met_where_it_can_be(self, curves, share):
        def total(counts):
            return float(sum(len(curve) - count for curve, count in zip(curves, counts, strict=True)))

        target = share * total([0] * len(curves))
        counts = allocate_removals(curves, total, target)
        assert all(0 <= count < len(curve) for count, curve in zip(counts, curves, strict=True))
        assert total(counts) <= target or counts == [len(curve) - 1 for curve in curves]

    def test_the_cheap_and_harmless_goes_first(self):
        # The second group hurts as much as the first, but saves ten times as much.
        def total(counts):
            return 100 - counts[0] - 10 * counts[1]

        assert allocate_removals([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], total, 80) == [0, 2]
        assert allocate_removals([[0.0, 0.0, 2.0], [0.0, 1.0, 2.0]], total, 80) == [1, 2]

    def test_a_wide_group_goes_in_few_steps(self):
        calls = []

        def total(counts):
            calls.append(1)
            return 1000.0 - sum(counts)

        assert allocate_removals([[index / 1000 for index in range(1001)]], total, 500.0)[0] == pytest.approx(
            500, abs=31
        )
        assert len(calls) < 40


def test_a_uniform_cut_is_what_the_cost_says():
    model = cnn(block="residual", width=8, depth=2)
    _, ranked = ranked_groups(model)
    pruned, _ = PRUNE.get("structured").apply(model, StructuredConfig(pruning_ratio=0.5), labelled_context())
    orders = [rank_removable_channels(place.scores) for place in ranked]
    counts = [len(place.scores) // 2 for place in ranked]
    expected = ChannelCost(model, ranked, orders, count_weight_uses(model, EXAMPLE))(counts)
    assert cost.count_macs(layer_costs(pruned, EXAMPLE)) == expected
