import math

import pytest
import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError, KnobError
from autocompress.measure import cost, layer_costs
from autocompress.prune import UnstructuredConfig
from autocompress.prune.importance import WEIGHT_CRITERIA
from autocompress.prune.masking import prunable_weights
from tests.prune.toys import EXAMPLE, Tuner, cnn, labelled_context

METHOD = PRUNE.get("unstructured")


def apply(model, context=None, **knobs):
    return METHOD.apply(model, UnstructuredConfig(**knobs), context or labelled_context())


def density(model):
    found = prunable_weights(model).values()
    return sum(int(w.count_nonzero()) for w in found) / sum(w.numel() for w in found)


@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
@pytest.mark.parametrize("scope", ["uniform", "global"])
class TestEveryCriterion:
    @pytest.mark.slow
    def test_as_many_weights_go_as_were_asked_for(self, criterion, scope):
        model = cnn(width=8)
        for ratio in (0.01, 0.5, 0.9):
            pruned, state = apply(model, pruning_ratio=ratio, criterion=criterion, scope=scope)
            assert 1 - density(pruned) == pytest.approx(ratio, abs=0.01)
            assert state.report["sparsity"] == pytest.approx(1 - density(pruned))

    def test_what_stays_is_the_model_s_own(self, criterion, scope):
        model = cnn()
        pruned, state = apply(model, criterion=criterion, scope=scope)
        for name, parameter in model.named_parameters():
            mask = state.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
            assert torch.equal(pruned.get_parameter(name), parameter * mask)

    def test_flops_and_parameters_stay(self, criterion, scope):
        model = cnn()
        before, after = (layer_costs(m, EXAMPLE) for m in (model, apply(model, criterion=criterion, scope=scope)[0]))
        assert cost.count_flops(after) == cost.count_flops(before)
        assert cost.count_parameters(after) == cost.count_parameters(before)
        assert cost.count_nonzero_parameters(after) < cost.count_nonzero_parameters(before)
        assert cost.count_model_bytes(after, {}) == cost.count_model_bytes(before, {})
        assert cost.count_sparse_bytes(after, {}) < cost.count_sparse_bytes(before, {})


class TestRatios:
    @pytest.mark.parametrize("ratio", [1.0, 0.99, -0.1, math.nan])
    def test_a_ratio_outside_its_range_is_refused(self, ratio):
        with pytest.raises(KnobError, match=r"prune\.unstructured\.pruning_ratio"):
            UnstructuredConfig(pruning_ratio=ratio)

    @pytest.mark.parametrize("scope", ["uniform", "global"])
    @pytest.mark.parametrize("width", range(2, 9))
    def test_a_weight_is_kept_in_every_layer_of_any_width(self, width, scope):
        rows = []
        for ratio in (0.0, 0.01, 0.5, 0.95):
            # Without examples nothing is looked for, so even a dead model comes back.
            context = Context(EXAMPLE)
            pruned, state = apply(cnn(width=width), context, pruning_ratio=ratio, scope=scope, criterion="l1")
            rows.append(density(pruned))
            assert all(share > 0 for share in state.report["density"].values())
        assert rows == sorted(set(rows), reverse=True)

    def test_a_model_without_a_path_left_is_refused(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
        with torch.no_grad():
            # The largest weight leads into unit 0, and the largest out of a unit leads out of unit 3.
            model[1].weight[0] += 5
            model[3].weight[:, 3] += 5
        with pytest.raises(CompressionError, match="ignores its input: no weight path is left; lower pruning_ratio"):
            apply(model, pruning_ratio=0.95, scope="uniform")

    def test_one_weight_alone_cannot_go(self):
        model = nn.Linear(1, 1)
        pruned, state = METHOD.apply(model, UnstructuredConfig(), Context((torch.zeros(1, 1),)))
        assert state.report["sparsity"] == 0
        assert torch.equal(pruned.weight, model.weight)


class TestScope:
    def test_uniform_holds_in_every_layer(self):
        _, state = apply(cnn(width=8), pruning_ratio=0.75, scope="uniform")
        assert all(share == pytest.approx(0.25, abs=0.02) for share in state.report["density"].values())

    def test_global_spares_what_is_large(self):
        model = cnn(width=8)
        model.stem[0].weight.data.mul_(100)
        _, state = apply(model, pruning_ratio=0.75, scope="global", criterion="l1")
        assert state.report["density"]["stem.0.weight"] == 1.0
        assert state.report["sparsity"] == pytest.approx(0.75, abs=0.01)

    def test_l2_ranks_layers_beside_themselves(self):
        """A layer that is scaled, as any before a batch norm may be, is pruned as before by l2, but not by l1."""
        model, scaled = cnn(width=8), cnn(width=8)
        scaled.stem[0].weight.data.mul_(100)
        for criterion, same in (("l2", True), ("l1", False)):
            one, other = (
                apply(m, pruning_ratio=0.75, scope="global", criterion=criterion)[1].report["density"]
                for m in (model, scaled)
            )
            assert (one == other) is same

    def test_l1_and_l2_rank_a_single_layer_alike(self):
        one, other = (apply(cnn(), scope="uniform", criterion=name)[1].masks for name in ("l1", "l2"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_taylor_spares_what_the_loss_depends_on(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        context = labelled_context()
        for inputs in context.calibration:
            inputs[0][:, :, :4] = 0  # half of the inputs never carry anything
        pruned, _ = apply(model, context, pruning_ratio=0.5, criterion="taylor")
        assert not pruned[1].weight[:, :32].any()
        assert pruned[1].weight[:, 32:].all()


class TestSchedule:
    def test_every_step_trains_with_its_zeros_held(self):
        tuner = Tuner()
        context = labelled_context(tune=tuner)
        pruned, _ = apply(
            cnn(width=8),
            context,
            pruning_ratio=0.9,
            schedule="cubic",
            steps=3,
            step_epochs=2,
            recovery_learning_rate=0.02,
        )
        total = sum(w.numel() for w in prunable_weights(pruned).values())
        assert tuner.calls == [(2, 0.02), (2, 0.02)]
        ratios = UnstructuredConfig(schedule="cubic", steps=3).step_ratios(0.9)
        assert [zeros / total for zeros in tuner.zeros] == pytest.approx(ratios[:2], abs=0.01)
        assert 1 - density(pruned) == pytest.approx(0.9, abs=0.01)
        assert not torch.equal(pruned.stem[0].weight, apply(cnn(width=8), pruning_ratio=0.9)[0].stem[0].weight)

    def test_masks_are_exact_after_training_on(self):
        context = labelled_context(tune=Tuner())
        pruned, state = apply(cnn(width=8), context, pruning_ratio=0.8, schedule="linear", steps=2)
        before = {name: pruned.get_parameter(name).clone() for name in state.masks}
        Tuner(steps=10)(pruned, 1, 0.05, lambda: state.apply_masks(pruned))
        for name, mask in state.masks.items():
            after = pruned.get_parameter(name)
            assert torch.equal(after != 0, mask)
            assert not torch.equal(after, before[name])

    def test_without_training_it_is_refused_or_only_counts(self):
        with pytest.raises(CompressionError, match="trains between its steps"):
            apply(cnn(), schedule="linear")
        _, state = apply(cnn(), schedule="linear", step_epochs=0, pruning_ratio=0.8)
        assert state.report["sparsity"] == pytest.approx(0.8, abs=0.01)


class TestRefusals:
    @pytest.mark.parametrize("criterion", ["gradient", "taylor"])
    def test_a_measured_criterion_without_evidence(self, criterion):
        with pytest.raises(CompressionError, match="needs the task's loss"):
            apply(cnn(), Context(EXAMPLE), criterion=criterion)

    def test_weights_that_are_not_finite(self):
        model = cnn()
        model.stem[0].weight.data[0, 0, 0, 0] = torch.nan
        with pytest.raises(CompressionError, match=r"'stem\.0\.weight' are not finite"):
            apply(model)

    def test_an_untraceable_model_needs_no_trace(self):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                return self.a(x) if x.sum() > 0 else self.b(x)

        _, state = METHOD.apply(Branching(), UnstructuredConfig(), Context((torch.zeros(1, 4),)))
        assert state.report["sparsity"] == 0.5
