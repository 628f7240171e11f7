from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError, KnobError
from autocompress.measure import cost, layer_costs
from autocompress.prune import AdaptiveConfig
from autocompress.prune.adaptive import MIN_WIDTH_SHARE
from tests.prune.toys import EXAMPLE, believing, chain, cnn, labelled_context

METHOD = PRUNE.get("adaptive")


def apply(model, context=None, **knobs):
    return METHOD.apply(model, AdaptiveConfig(**{"steps": 2} | knobs), context or labelled_context())


class TestBudget:
    @pytest.mark.slow
    @pytest.mark.parametrize("block", ["plain", "residual", "separable", "inverted"])
    @pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
    def test_the_flops_that_were_asked_for_go(self, block, ratio):
        model = cnn(block=block, width=12, stages=2)
        pruned, state = apply(model, pruning_ratio=ratio)
        removed = 1 - cost.count_flops(layer_costs(pruned, EXAMPLE)) / cost.count_flops(layer_costs(model, EXAMPLE))
        assert state.report["removed"] == pytest.approx(removed)
        assert ratio <= removed < ratio + 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
    def test_parameters_can_be_the_budget(self, ratio):
        model = cnn(block="plain", width=12)
        pruned, state = apply(model, pruning_ratio=ratio, budget="parameters")
        sizes = [sum(p.numel() for p in m.parameters() if p.dim() > 1) for m in (model, pruned)]
        assert state.report["removed"] == pytest.approx(1 - sizes[1] / sizes[0])
        assert ratio <= state.report["removed"] < ratio + 0.12

    @pytest.mark.slow
    @pytest.mark.parametrize("width", range(2, 9))
    def test_cost_falls_with_the_ratio_and_a_channel_is_kept(self, width):
        model = chain(width)
        costs = []
        for ratio in (0.0, 0.01, 0.5, 0.9, 0.98):
            pruned, state = apply(model, pruning_ratio=ratio, schedule="one_shot")
            costs.append(cost.count_flops(layer_costs(pruned, EXAMPLE)))
            assert all(after >= 1 for _, after in state.report["channels"].values())
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > costs[1]

    @pytest.mark.parametrize("ratio", [1.0, 0.99, -0.1])
    def test_a_ratio_outside_its_range_is_refused(self, ratio):
        with pytest.raises(KnobError, match=r"prune\.adaptive\.pruning_ratio"):
            AdaptiveConfig(pruning_ratio=ratio)


class TestSensitivity:
    def test_a_layer_that_does_nothing_gives_its_channels_first(self):
        """Two branches; one of them is not listened to."""

        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.quiet, self.loud = (nn.Conv2d(1, 8, 3, padding=1) for _ in range(2))
                self.head = nn.Linear(16, 10)

            def forward(self, x):
                return self.head(torch.cat([self.quiet(x).relu(), self.loud(x).relu()], 1).mean((2, 3)))

        torch.manual_seed(0)
        model = Branches().eval()
        with torch.no_grad():
            model.head.weight[:, :8] = 0
            model.head.weight[:, 8:] *= 5
        context = believing(model, labelled_context())
        _, state = apply(model, context, pruning_ratio=0.3, schedule="one_shot", criterion="l2")
        assert state.report["channels"] == {"quiet": [8, 3]}

    @pytest.mark.slow
    def test_no_layer_is_cut_to_next_to_nothing(self):
        for ratio in (0.3, 0.6, 0.9):
            least = MIN_WIDTH_SHARE * (1 - ratio) ** 0.5
            _, state = apply(cnn(width=16, stages=3), labelled_context(), pruning_ratio=ratio)
            assert all(after >= least * before for before, after in state.report["channels"].values())
            assert state.report["removed"] >= ratio - 1e-9

    def test_the_table_has_a_row_for_each_cut_layer_and_ratio(self):
        model = cnn(block="plain", width=8, stages=2, heads={"digit": 10, "parity": 2})
        context = labelled_context(heads={"digit": 10, "parity": 2})
        _, state = apply(model, context, steps=3)
        rows = state.report["sensitivity"]
        assert {row["step"] for row in rows} == {1, 2, 3}
        assert {row["layer"] for row in rows} == {"stem.0", "stages.0.0.0", "stages.1.0.0"}
        assert all(0 < row["pruning_ratio"] < 1 for row in rows)
        assert all(set(row["accuracy_drop"]) == {"digit", "parity"} for row in rows)
        assert all(isinstance(row["loss"], float) for row in rows)

    def test_it_is_measured_again_before_every_cut(self):
        _, state = apply(cnn(block="plain", width=8), steps=2)
        first, second = ([row["loss"] for row in state.report["sensitivity"] if row["step"] == step] for step in (1, 2))
        assert first != second[: len(first)]

    def test_nothing_to_do_measures_nothing(self):
        _, state = METHOD.apply(cnn(), AdaptiveConfig(pruning_ratio=0), Context(EXAMPLE))
        assert state.report["sensitivity"] == []
        assert state.report["removed"] == 0


class TestRefusals:
    @pytest.mark.parametrize("criterion", ["l2", "taylor"])
    def test_nothing_to_measure_on(self, criterion):
        with pytest.raises(CompressionError, match="needs the task's loss"):
            apply(cnn(), Context(EXAMPLE), criterion=criterion)
        with pytest.raises(CompressionError, match="batches with their targets"):
            apply(cnn(), replace(labelled_context(), targets=()), criterion=criterion)

    def test_no_channel_to_spare(self):
        with pytest.raises(CompressionError, match="no channel can be removed"):
            apply(chain(1))

    def test_nothing_that_can_be_cut(self):
        with pytest.raises(CompressionError, match="it is an output of the model"):
            apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval())

    def test_weights_that_are_not_finite(self):
        model = cnn()
        model.stem[0].weight.data[:] = torch.nan
        with pytest.raises(CompressionError, match="not finite"):
            apply(model, criterion="l2")
