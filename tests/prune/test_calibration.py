from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.errors import CompressionError
from autocompress.prune import reestimate_batch_norm
from autocompress.prune.calibration import (
    calibration_batches,
    calibration_gradients,
    check_layers_not_empty,
    check_output_varies,
    enable_gradients,
    flatten_outputs,
    make_noise,
    measure_calibration,
)
from tests.prune.toys import EXAMPLE, cnn, cross_entropy, labelled_context


class TestLabelled:
    @pytest.mark.parametrize(("size", "limit", "sizes"), [(1, 99, [1] * 16), (5, 99, [5, 3, 5, 3]), (8, 11, [8, 3])])
    def test_batches_hold_each_example_once_up_to_the_limit(self, size, limit, sizes):
        context = labelled_context()
        found = calibration_batches(context, size, limit)
        assert [len(inputs[0]) for inputs, _ in found] == sizes
        total = sum(sizes)
        assert torch.equal(
            torch.cat([inputs[0] for inputs, _ in found]), torch.cat([b[0] for b in context.calibration])[:total]
        )
        assert torch.equal(
            torch.cat([targets["label"] for _, targets in found]),
            torch.cat([t["label"] for t in context.targets])[:total],
        )

    def test_without_targets_or_a_loss_there_is_nothing_to_measure(self):
        with pytest.raises(CompressionError, match="batches with their targets"):
            calibration_batches(replace(labelled_context(), targets=()), 8)
        with pytest.raises(CompressionError, match="needs the task's loss"):
            calibration_batches(Context(EXAMPLE), 8)


class TestRead:
    def test_loss_and_accuracy_are_those_of_all_examples_at_once(self):
        model, context = cnn(), labelled_context(batches=3, size=5)
        x, y = torch.cat([b[0] for b in context.calibration]), torch.cat([t["label"] for t in context.targets])
        with torch.no_grad():
            logits = model(x)
        found = measure_calibration(model, context)
        assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
        assert found.accuracy == {"label": pytest.approx(float((logits.argmax(1) == y).float().mean()))}

    def test_every_head_has_its_accuracy(self):
        heads = {"digit": 10, "parity": 2}
        assert set(measure_calibration(cnn(heads=heads), labelled_context(heads=heads)).accuracy) == set(heads)

    def test_a_head_that_names_no_class_has_none(self):
        context = replace(
            labelled_context(), loss=lambda output, targets: (output.mean(1) - targets["label"]).square().mean()
        )
        regression = replace(context, targets=tuple({"label": t["label"].float()} for t in context.targets))
        assert measure_calibration(cnn(), regression).accuracy == {}
        assert (
            measure_calibration(
                nn.Sequential(cnn(), nn.Unflatten(1, (2, 5))), replace(context, loss=lambda o, t: o.sum())
            ).accuracy
            == {}
        )

    def test_an_output_of_another_form_has_none(self):
        class Listed(nn.Module):
            def forward(self, x):
                return [x.mean()]

        context = replace(labelled_context(), loss=lambda output, _: output[0])
        assert measure_calibration(Listed(), context).accuracy == {}

    def test_a_loss_that_is_not_finite_is_refused(self):
        model = cnn()
        model.stem[0].weight.data[:] = torch.nan
        with pytest.raises(CompressionError, match="loss of CNN on the calibration split is nan"):
            measure_calibration(model, labelled_context())

    def test_without_a_loss(self):
        with pytest.raises(CompressionError, match="needs the task's loss"):
            measure_calibration(cnn(), Context(EXAMPLE))


class TestGradients:
    def test_each_example_counts_alike(self):
        """By hand: the root of the mean of squared gradients, each example's scaled to length 1."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        context = labelled_context(batches=1, size=3)
        squares = [torch.zeros_like(p) for p in model.parameters()]
        for row in range(3):
            loss = cross_entropy(model(context.calibration[0][0][[row]]), {"label": context.targets[0]["label"][[row]]})
            found = torch.autograd.grad(loss, list(model.parameters()))
            length = sum(g.square().sum() for g in found)
            squares = [s + g.square() / length for s, g in zip(squares, found, strict=True)]
        with calibration_gradients(model, context):
            for parameter, square in zip(model.parameters(), squares, strict=True):
                torch.testing.assert_close(parameter.grad, (square / 3).sqrt())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_an_example_that_the_model_is_sure_of_counts(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            model[1].weight.mul_(0).add_(torch.eye(10, 64) * 8)
        x = torch.zeros(2, 1, 8, 8)
        x[0, 0, 0, 0] = x[1, 0, 0, 1] = 1.0
        # The first is predicted right with near certainty, the second is wrong.
        context = Context((x[:1],), ((x,),), ({"label": torch.tensor([0, 0])},), cross_entropy)
        with calibration_gradients(model, context):
            used = model[1].weight.grad[:, :2].square().sum(0)
        torch.testing.assert_close(used[0], used[1])

    def test_frozen_weights_get_one_and_stay_frozen(self):
        model = cnn()
        model.stem.requires_grad_(False)
        with calibration_gradients(model, labelled_context()):
            assert model.stem[0].weight.grad.abs().sum() > 0
        assert not model.stem[0].weight.requires_grad
        assert model.heads["label"].weight.requires_grad

    def test_a_layer_that_the_loss_does_not_reach_has_zero(self):
        heads = {"label": 10, "other": 2}
        model = cnn(heads=heads)
        context = labelled_context()
        with calibration_gradients(model, replace(context, loss=lambda o, t: cross_entropy({"label": o["label"]}, t))):
            assert not model.heads["other"].weight.grad.any()

    def test_a_model_cut_off_from_its_loss_is_refused(self):
        context = replace(labelled_context(), loss=lambda output, targets: output.detach().sum())
        with pytest.raises(CompressionError, match="cannot be differentiated"), calibration_gradients(cnn(), context):
            pass

    def test_gradients_that_are_not_finite_are_refused(self):
        model = cnn()
        model.heads["label"].weight.data[0, 0] = torch.nan
        with pytest.raises(CompressionError, match="not finite"), calibration_gradients(model, labelled_context()):
            pass


class TestTrainable:
    def test_flags_come_back_even_for_replaced_parameters(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(False)
        with enable_gradients(model):
            assert all(parameter.requires_grad for parameter in model.parameters())
            model[0].weight = nn.Parameter(torch.ones(1, 2))
        assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


class TestRefuseEmptyLayers:
    def test_an_empty_layer_is_named(self):
        with pytest.warns(UserWarning, match="zero-element"):
            model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
        with pytest.raises(CompressionError, match="'0' has no channels"):
            check_layers_not_empty(model)

    def test_a_batch_norm_without_weights_is_none(self):
        check_layers_not_empty(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)))


class TestRefuseDeadModel:
    def test_a_model_that_listens_passes(self):
        check_output_varies(cnn(), labelled_context())

    def test_one_that_answers_alike_is_refused(self):
        model = cnn()
        model.stem[0].weight.data.zero_()
        with pytest.raises(CompressionError, match="ignores its input"):
            check_output_varies(model, labelled_context())

    def test_one_whose_statistics_only_look_dead_passes(self):
        """A cut shifts what reaches a batch norm so far that no rectifier opens; measuring again brings it back."""
        model = cnn(block="plain")
        model.stem[1].running_mean.fill_(1e4)
        with torch.no_grad():
            answers = model(torch.randn(4, 1, 8, 8))
        assert torch.equal(answers, answers[:1].expand_as(answers))
        check_output_varies(model, labelled_context())

    def test_an_output_that_is_not_finite(self):
        model = cnn()
        model.heads["label"].bias.data[0] = torch.inf
        with pytest.raises(CompressionError, match="not finite"):
            check_output_varies(model, labelled_context())

    @pytest.mark.parametrize("context", [Context(EXAMPLE), labelled_context(size=1)], ids=["none", "ones"])
    def test_too_few_examples_show_nothing(self, context):
        model = cnn()
        model.stem[0].weight.data.zero_()
        check_output_varies(model, context)

    def test_the_model_stays_as_it_was(self):
        model = cnn()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        check_output_varies(model, labelled_context())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_tensors_are_found_in_any_output():
    one, other = torch.zeros(1), torch.ones(2)
    assert [t.tolist() for t in flatten_outputs({"a": [one, (other, None)], "b": 3})] == [[0.0], [1.0, 1.0]]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))


def test_statistics_are_the_average_over_the_batches():
    model, batches = net(), [(torch.randn(4, 1, 8, 8),), (torch.randn(4, 1, 8, 8) + 3,)]
    reestimate_batch_norm(model, batches)
    with torch.no_grad():
        features = [model[0](x) for (x,) in batches]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variance = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)


def test_flags_momentum_and_weights_stay():
    model = net().train()
    model[3].eval()
    model[1].momentum = 0.3
    weights = [p.clone() for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    reestimate_batch_norm(model, [(torch.randn(4, 1, 8, 8),)])
    assert [m.training for m in model.modules()] == flags
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_flags_are_restored_when_the_model_fails():
    model = net().train()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [(torch.randn(4, 2, 8, 8),)])
    assert model.training
    assert model[1].momentum == 0.1


def test_a_batch_of_one_is_skipped_and_alone_is_refused():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))
    one, two = (torch.randn(1, 1, 4, 4),), (torch.randn(2, 1, 4, 4),)
    reestimate_batch_norm(pooled, [two, one])
    torch.testing.assert_close(pooled[1].running_mean, two[0].mean().view(1))
    with pytest.raises(CompressionError, match="two examples"):
        reestimate_batch_norm(pooled, [one])


def test_a_model_without_batch_norm_needs_no_data():
    reestimate_batch_norm(nn.Linear(2, 2), [])


def test_noise_has_the_shape_and_type_of_the_example_and_keeps_integers():
    example = torch.zeros(2, 3, dtype=torch.float64), torch.arange(4)
    real, whole = make_noise(example, seed=0)
    assert real.shape == (2, 3)
    assert real.dtype == torch.float64
    assert bool(real.all())
    assert torch.equal(whole, torch.arange(4))
    assert torch.equal(real, make_noise(example, seed=0)[0])
    assert not torch.equal(real, make_noise(example, seed=1)[0])
