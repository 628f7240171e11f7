from collections.abc import Callable

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.errors import KnobError, TrialError, UnknownNameError
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.objective import TrainingObjective
from autocompress.training.optimizers import fit_config

TASK = Digits()
SPLITS = TASK.splits(0)
SMALL = Part.of("cnn", width=8, depth=1)


class FakeTeacher:
    """Logits without a network."""

    model = nn.Identity()

    def __init__(self, view: Callable[[int], dict[str, torch.Tensor]]) -> None:
        self.view = view


def trained(part: Part, *, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    model = TASK.build(SMALL)
    fit(model, FitRequest(TASK, SPLITS.train, part, seed=seed, **options))  # type: ignore[arg-type]
    return model


def accuracy(model: nn.Module) -> float:
    logits = predict(model, TASK, SPLITS.search_val)["label"]
    return float((logits.argmax(1) == SPLITS.search_val.targets["label"]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [Part.of("adamw", epochs=8, learning_rate=1e-2), Part.of("sgd", epochs=8, learning_rate=0.1)],
    ids=lambda part: part.name,
)
def test_each_optimizer_learns(part: Part) -> None:
    assert accuracy(trained(part)) > 0.6


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    part = Part.of("adamw", epochs=2)
    one, again, other = (trained(part, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
def test_the_curve_has_a_row_an_epoch_and_falls() -> None:
    rows: list[dict[str, float]] = []
    torch.manual_seed(0)
    model = TASK.build(SMALL)
    curve = fit(model, FitRequest(TASK, SPLITS.train, Part.of("adamw", epochs=5), on_epoch=rows.append)).curve
    assert curve == rows
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4, 5]
    assert curve[-1]["loss"] < curve[0]["loss"] * 0.9
    assert not model.training


@pytest.mark.slow
def test_pure_distillation_learns_the_teacher_and_not_the_targets() -> None:
    # A "teacher" that is always wrong by one class: with alpha = 1 the student must follow it.
    wrong = (SPLITS.train.targets["label"] + 1) % 10
    logits = nn.functional.one_hot(wrong, 10).float() * 10
    model = trained(
        Part.of("adamw", epochs=12, learning_rate=1e-2),
        terms=[Part.of("soft_target", alpha=1.0, temperature=1.0)],
        teacher=FakeTeacher(lambda view: {"label": logits}),
    )
    predicted = predict(model, TASK, SPLITS.search_val)["label"].argmax(1)
    assert float((predicted == (SPLITS.search_val.targets["label"] + 1) % 10).float().mean()) > 0.6


@pytest.mark.slow
def test_the_teachers_logits_are_asked_for_the_view_that_is_trained_on() -> None:
    requested: list[int] = []

    def teacher(view: int) -> dict[str, torch.Tensor]:
        requested.append(view)
        return {"label": torch.zeros(len(SPLITS.train), 10)}

    trained(Part.of("adamw", epochs=18), terms=[Part("soft_target")], teacher=FakeTeacher(teacher))
    assert requested == [*range(16), 0, 1]
    requested.clear()
    trained(Part.of("adamw", epochs=3, views=2), terms=[Part("soft_target")], teacher=FakeTeacher(teacher))
    assert requested == [0, 1, 0]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([Part("soft_target")], "reads a teacher"),
        ([Part("none"), Part("soft_target")], "exactly one term"),
        ([], "exactly one"),
    ],
)
def test_terms_that_cannot_work_are_refused_before_training(terms: list[Part], message: str) -> None:
    with pytest.raises(TrialError, match=message):
        fit(TASK.build(SMALL), FitRequest(TASK, SPLITS.train, Part("adamw"), terms=terms))


def test_unknown_optimizers_and_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        fit(TASK.build(SMALL), FitRequest(TASK, SPLITS.train, Part("adam")))
    with pytest.raises(KnobError, match=r"fit.adamw.epochs = -1"):
        fit(TASK.build(SMALL), FitRequest(TASK, SPLITS.train, Part.of("adamw", epochs=-1)))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "constant", "plateau"])
def test_each_schedule_learns(schedule: str) -> None:
    part = Part.of("adamw", epochs=6, learning_rate=1e-2, schedule=schedule)
    assert accuracy(trained(part)) > 0.4


def test_label_smoothing_is_torchs_own() -> None:
    logits, targets = {"label": torch.randn(5, 10)}, {"label": torch.arange(5)}
    objective = TrainingObjective.from_terms(
        [Part("none")], TASK, fit_config(Part.of("adamw", label_smoothing=0.2)), None, 0
    )
    _, hard = objective.prepare_hard_loss(SPLITS.train.take(slice(0, 5)), torch.Generator())
    expected = nn.functional.cross_entropy(logits["label"], targets["label"], label_smoothing=0.2)
    assert hard(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_mixes_inputs_and_losses_by_the_same_share() -> None:
    objective = TrainingObjective.from_terms([Part("none")], TASK, fit_config(Part.of("adamw", mixup=1.0)), None, 0)
    batch = SPLITS.train.take(slice(0, 32))
    inputs, hard = objective.prepare_hard_loss(batch, torch.Generator().manual_seed(4))
    share, other = torch._sample_dirichlet(torch.ones(2), generator=torch.Generator().manual_seed(4))
    assert share + other == pytest.approx(1.0)
    assert not torch.equal(inputs[0], batch.inputs[0])
    assert inputs[0].mean() == pytest.approx(float(batch.inputs[0].mean()), abs=1e-4)
    logits = {"label": torch.randn(32, 10)}
    assert float(hard(logits, batch.targets)) != pytest.approx(float(TASK.loss(logits, batch.targets)))


@pytest.mark.slow
def test_l1_penalties_shrink_what_they_name() -> None:
    def sizes(**settings: float) -> tuple[float, float]:
        model = trained(Part.of("adamw", epochs=8, learning_rate=2e-2, **settings))
        norms = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        weights = [p for p in model.parameters() if p.dim() > 1]
        return tuple(float(sum(p.detach().abs().sum() for p in actual)) for actual in (weights, norms))  # type: ignore[return-value]

    weights, norms = sizes()
    assert sizes(l1_weights=0.01)[0] < weights * 0.8
    assert sizes(l1_batch_norm=0.3)[1] < norms * 0.8
