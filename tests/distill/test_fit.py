from dataclasses import replace

import pytest
import torch
from autocompress.config import Part
from autocompress.distill.fit import fit, predict
from autocompress.errors import KnobError, TrialError, UnknownNameError
from autocompress.tasks.images import Digits
from torch import nn

TASK = Digits()
SPLITS = TASK.splits(0)
SMALL = Part.of("cnn", width=8, depth=1)


def trained(part: Part, *, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    model = TASK.build(SMALL)
    fit(model, TASK, SPLITS.train, part, seed=seed, **options)  # type: ignore[arg-type]
    return model


def accuracy(model: nn.Module) -> float:
    logits = predict(model, TASK, SPLITS.search_val)["label"]
    return float((logits.argmax(1) == SPLITS.search_val.targets["label"]).float().mean())


@pytest.mark.parametrize(
    "part",
    [Part.of("adamw", epochs=8, learning_rate=1e-2), Part.of("sgd", epochs=8, learning_rate=0.1)],
    ids=lambda part: part.name,
)
def test_each_optimizer_learns(part: Part) -> None:
    assert accuracy(trained(part)) > 0.6


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    part = Part.of("adamw", epochs=2)
    one, again, other = (trained(part, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_curve_has_a_row_an_epoch_and_falls() -> None:
    rows: list[dict[str, float]] = []
    torch.manual_seed(0)
    model = TASK.build(SMALL)
    curve = fit(model, TASK, SPLITS.train, Part.of("adamw", epochs=5), on_epoch=rows.append)
    assert curve == rows
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4, 5]
    assert curve[-1]["loss"] < curve[0]["loss"] * 0.9
    assert not model.training


def test_pure_distillation_learns_the_teacher_and_not_the_targets() -> None:
    # A "teacher" that is always wrong by one class: with alpha = 1 the student must follow it.
    wrong = (SPLITS.train.targets["label"] + 1) % 10
    logits = nn.functional.one_hot(wrong, 10).float() * 10
    model = trained(
        Part.of("adamw", epochs=12, learning_rate=1e-2),
        terms=[Part.of("soft_target", alpha=1.0, temperature=1.0)],
        teacher_logits=lambda view: {"label": logits},
    )
    predicted = predict(model, TASK, SPLITS.search_val)["label"].argmax(1)
    assert float((predicted == (SPLITS.search_val.targets["label"] + 1) % 10).float().mean()) > 0.6


def test_the_teachers_logits_are_asked_for_the_view_that_is_trained_on() -> None:
    asked: list[int] = []

    def teacher(view: int) -> dict[str, torch.Tensor]:
        asked.append(view)
        return {"label": torch.zeros(len(SPLITS.train), 10)}

    trained(Part.of("adamw", epochs=18), terms=[Part("soft_target")], teacher_logits=teacher)
    assert asked == [*range(16), 0, 1]


def test_a_divergent_loss_is_named() -> None:
    broken = replace(SPLITS.train, inputs=(SPLITS.train.inputs[0] * float("nan"),))
    with pytest.raises(TrialError, match="loss is nan in epoch 1"):
        fit(TASK.build(SMALL), TASK, broken, Part.of("adamw", epochs=1))


@pytest.mark.parametrize(
    ("terms", "message"),
    [([Part("soft_target")], "teacher's logits"), ([Part("none"), Part("soft_target")], "exactly one term"), ([], "exactly one")],
)
def test_terms_that_cannot_work_are_refused_before_training(terms: list[Part], message: str) -> None:
    with pytest.raises(TrialError, match=message):
        fit(TASK.build(SMALL), TASK, SPLITS.train, Part("adamw"), terms=terms)


def test_unknown_optimizers_and_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        fit(TASK.build(SMALL), TASK, SPLITS.train, Part("adam"))
    with pytest.raises(KnobError, match=r"fit.adamw.epochs = 0"):
        fit(TASK.build(SMALL), TASK, SPLITS.train, Part.of("adamw", epochs=0))


def test_a_last_batch_of_one_is_dropped_not_normalised_by_itself() -> None:
    odd = SPLITS.train.take(slice(0, 65))
    fit(TASK.build(SMALL), TASK, odd, Part.of("adamw", epochs=2, batch_size=64))
    fit(TASK.build(SMALL), TASK, SPLITS.train.take(slice(0, 10)), Part.of("adamw", epochs=1, batch_size=64))
