"""The training loop: batches, held-out examples, early stopping, pauses, predictions and frozen parts."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.task import Split
from autocompress.errors import TrialError
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.optimizers import fit_config
from autocompress.training.trainer import FitResult, Trainer, hold_out
from tests.training.light import Light, examples, network
from tests.training.test_fit import SMALL, SPLITS, TASK, trained


def test_a_divergent_loss_is_named() -> None:
    broken = replace(SPLITS.train, inputs=(SPLITS.train.inputs[0] * float("nan"),))
    with pytest.raises(TrialError, match="loss is nan in epoch 1"):
        fit(TASK.build(SMALL), FitRequest(TASK, broken, Part.of("adamw", epochs=1)))


def test_no_epochs_leave_the_model_as_it_is() -> None:
    model = TASK.build(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fit(model, FitRequest(TASK, SPLITS.train, Part.of("adamw", epochs=0))).curve == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_last_batch_of_one_is_dropped_not_normalised_by_itself() -> None:
    odd = SPLITS.train.take(slice(0, 65))
    fit(TASK.build(SMALL), FitRequest(TASK, odd, Part.of("adamw", epochs=2, batch_size=64)))
    fit(TASK.build(SMALL), FitRequest(TASK, SPLITS.train.take(slice(0, 10)), Part.of("adamw", epochs=1, batch_size=64)))


@pytest.mark.slow
def test_early_stopping_ends_the_fit_and_puts_the_best_weights_back() -> None:
    torch.manual_seed(0)
    model = TASK.build(SMALL)
    part = Part.of("adamw", epochs=60, learning_rate=2e-2, schedule="constant", patience=2)
    curve = fit(model, FitRequest(TASK, SPLITS.train, part)).curve
    losses = [row["held_out_loss"] for row in curve]
    assert len(curve) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    _, held = hold_out(SPLITS.train, fit_config(part), 0)
    assert held is not None
    assert float(TASK.loss(predict(model, TASK, held), held.targets)) == pytest.approx(min(losses), rel=1e-4)


def test_after_step_is_called_after_each_step() -> None:
    calls: list[int] = []
    trained(Part.of("adamw", epochs=2, batch_size=128), after_step=lambda: calls.append(1))
    assert len(calls) == 2 * (len(SPLITS.train) // 128)


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1000.0])
def test_a_fit_gives_bit_for_bit_what_a_plain_loop_gives(clip_norm: float) -> None:
    part = Part.of("adamw", epochs=2, batch_size=64, clip_norm=clip_norm, views=1)
    torch.manual_seed(0)
    model = TASK.build(SMALL)
    plain = copy.deepcopy(model).train()
    trained_curve = fit(model, FitRequest(TASK, SPLITS.train, part, seed=3)).curve
    losses = run_plain_loop(plain, part, seed=3)
    assert [row["loss"] for row in trained_curve] == losses
    for (name, ours), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def run_plain_loop(model: nn.Module, part: Part, seed: int) -> list[float]:
    """Train with torch's own functions alone and return the mean loss of each epoch."""
    config, (images,), labels = fit_config(part), SPLITS.train.inputs, SPLITS.train.targets["label"]
    steps = len(images) // config.batch_size
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, config.epochs * steps, pct_start=config.warmup, cycle_momentum=False
    )
    order = torch.Generator().manual_seed(seed)
    means: list[float] = []
    for _ in range(config.epochs):
        rows, total = torch.randperm(len(images), generator=order), torch.zeros(())
        for step in range(steps):
            batch = rows[step * config.batch_size : (step + 1) * config.batch_size]
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        means.append(float(total / steps))
    return means


def run(model: nn.Module, **options: object) -> FitResult:
    """Train a small network on 400 examples of five numbers for up to four epochs."""
    part = Part.of("adamw", epochs=4, batch_size=100, learning_rate=3e-2)
    return Trainer(model, FitRequest(Light(), examples(), part, **options)).run()  # type: ignore[arg-type]


def test_a_paused_fit_resumes_to_the_same_weights_and_the_same_curve() -> None:
    whole, segments = network(), network()
    complete = run(whole)
    first = run(segments, until=1)
    assert first.paused
    assert complete.paused == b""
    assert [row["epoch"] for row in first.curve] == [1.0]
    # The paused state replaces the weights of the model.
    resumed = network(seed=7)
    second = run(resumed, until=3, paused=first.paused)
    last = run(resumed, until=99, paused=second.paused)
    # Not their memory: the peak is that of the process, which has grown since.
    assert (last.curve, last.paused) == (complete.curve, complete.paused)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_damaged_paused_state_is_refused() -> None:
    with pytest.raises(TrialError):
        run(network(), paused=b"nonsense, and more of it")


def test_each_epoch_is_reported_once_with_its_loss() -> None:
    rows: list[dict[str, float]] = []
    model = network()
    result = run(model, on_epoch=rows.append)
    assert rows == result.curve
    assert [row["epoch"] for row in rows] == [1.0, 2.0, 3.0, 4.0]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not model.training


def test_held_out_examples_are_a_tenth_and_the_other_rows_are_trained_on() -> None:
    split = Split((torch.arange(50.0)[:, None],), {"label": torch.arange(50)})
    patient = fit_config(Part.of("adamw", patience=2))
    rows, held_out = hold_out(split, patient, seed=3)
    assert held_out is not None
    assert len(held_out) == 5
    assert sorted([*rows.tolist(), *held_out.targets["label"].tolist()]) == list(range(50))
    again, other = hold_out(split, patient, seed=3)[0], hold_out(split, patient, seed=4)[0]
    assert torch.equal(rows, again)
    assert not torch.equal(rows, other)


def test_without_patience_or_with_few_examples_nothing_is_held_out() -> None:
    split = examples()
    for train, part in (
        (split, Part.of("adamw", patience=0)),
        (split.take(slice(0, 19)), Part.of("adamw", patience=2)),
    ):
        rows, held_out = hold_out(train, fit_config(part), 0)
        assert held_out is None
        assert rows.tolist() == list(range(len(train)))


def test_predictions_do_not_depend_on_the_batch_size_and_need_no_gradient() -> None:
    model = nn.Sequential(network(), nn.BatchNorm1d(3)).train()
    whole = predict(model, Light(), examples())["label"]
    assert not model.training
    assert whole.shape == (400, 3)
    assert not whole.requires_grad
    torch.testing.assert_close(predict(model, Light(), examples(), batch_size=7)["label"], whole)


def test_a_frozen_backbone_keeps_its_weights_and_the_head_learns() -> None:
    part = Part.of("adamw", epochs=1, batch_size=100, learning_rate=3e-2, backbone="frozen")
    model, before = network(), network()
    # The parameters of a model that was frozen before are as trainable as before, too.
    model[0].bias.requires_grad_(False)
    Trainer(model, FitRequest(Light(), examples(), part)).run()
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, True, True]
    with pytest.raises(TrialError, match="has no linear layer that could be its head"):
        Trainer(nn.Sequential(nn.Conv1d(5, 3, 1)), FitRequest(Light(), examples(), part)).run()


def test_frozen_batch_norms_keep_their_statistics_in_training() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    run(model)
    assert model[0].running_mean.tolist() == [0.0] * 5
    assert int(model[0].num_batches_tracked) == 0
    assert int(model[2].num_batches_tracked) == 16
