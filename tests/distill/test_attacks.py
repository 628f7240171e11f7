import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import Split
from autocompress.distill.attacks import (
    AttackSettings,
    Robust,
    RobustConfig,
    _select_worst,
    fgsm,
    pgd,
    predict_under_attack,
    predict_under_attacks,
)
from autocompress.distill.base import Perturbation
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, fit, predict

TASK = Digits()
SPLITS = TASK.splits(0)


class Teacher:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def view(self, index: int) -> dict[str, torch.Tensor]:
        return predict(self.model, TASK, TASK.view(SPLITS.train, index))


def trained(part: Part, *, width: int = 8, epochs: int = 12, teacher: Teacher | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=width, depth=1))
    fit(
        model,
        FitRequest(
            TASK, SPLITS.train, Part.of("adamw", epochs=epochs, learning_rate=1e-2), terms=[part], teacher=teacher
        ),
    )
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained(Part("none"), width=16)


def share_right(logits: dict[str, torch.Tensor]) -> float:
    return float((logits["label"].argmax(1) == SPLITS.search_val.targets["label"]).float().mean())


@pytest.mark.slow
def test_attacks_stay_in_the_ball_and_raise_the_loss_pgd_more_than_fgsm(model: nn.Module) -> None:
    batch = SPLITS.search_val
    before = copy.deepcopy(model.state_dict())

    def loss(output: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, batch.targets["label"])

    one = fgsm(model, batch.inputs, loss, 0.3)
    many = pgd(model, batch.inputs, loss, AttackSettings(0.3, steps=10, step_size=0.075))
    with torch.no_grad():
        clean, fast, slow = (float(loss(model(*x.inputs))) for x in (Perturbation(batch.inputs), one, many))
    assert clean < fast < slow
    for change in (one, many):
        assert float((change.inputs[0] - batch.inputs[0]).abs().max()) <= 0.3 + 1e-6
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_the_model_keeps_its_mode(model: nn.Module) -> None:
    model.train()
    fgsm(model, SPLITS.search_val.take(slice(0, 8)).inputs, lambda output: output.sum(), 0.1)
    assert all(module.training for module in model.modules())
    model.eval()


@pytest.mark.slow
def test_a_random_start_is_drawn_from_the_generator_and_stays_in_the_ball(model: nn.Module) -> None:
    batch = SPLITS.search_val.take(slice(0, 32))

    def attack(seed: int | None, epsilon: float = 0.2, steps: int = 0) -> torch.Tensor:
        start = None if seed is None else torch.Generator().manual_seed(seed)
        change = pgd(model, batch.inputs, lambda output: output.sum(), AttackSettings(epsilon, steps, 0.05, start))
        return change.inputs[0] - batch.inputs[0]

    assert attack(None).abs().max() == 0
    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))
    assert float(attack(1).mean()) == pytest.approx(0, abs=0.02)
    for shift in (attack(1), attack(1, steps=9)):
        assert 0.19 < float(shift.abs().max()) <= 0.2 + 1e-6


def test_the_knobs_reach_the_attack() -> None:
    net = nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    x = (torch.zeros(3, 2),)

    def moved(**knobs: object) -> torch.Tensor:
        config = RobustConfig(**knobs)  # type: ignore[arg-type]
        return Robust().perturb(config, net, x, lambda output: output.sum(), torch.Generator()).inputs[0]

    assert torch.allclose(moved(attack="fgsm", epsilon=0.4), torch.full((3, 2), 0.4))
    assert torch.allclose(moved(random_start=False, epsilon=0.4, steps=2, step_size=0.25), torch.full((3, 2), 0.2))
    assert torch.allclose(moved(random_start=False, epsilon=0.4, steps=9, step_size=0.25), torch.full((3, 2), 0.4))
    assert moved(random_start=True, epsilon=0.4, steps=1, step_size=0.01).std() > 0.01


class Words(nn.Module):
    """Words ``[B, T]`` and places, through tables of their own, to two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 6), nn.Embedding(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, words: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = (self.words(words) + self.places(torch.arange(words.shape[1]))).tanh().mean(1)
        if other is not None:
            x = x * self.words(other)
        return self.head(x)


@pytest.fixture
def words() -> tuple[nn.Module, tuple[torch.Tensor, ...], torch.Tensor]:
    torch.manual_seed(0)
    return Words().eval(), (torch.randint(20, (16, 5)),), torch.randint(2, (16,))


def test_whole_numbers_are_attacked_where_they_are_embedded(
    words: tuple[nn.Module, tuple[torch.Tensor, ...], torch.Tensor],
) -> None:
    net, inputs, targets = words

    def loss(output: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, targets)

    one = fgsm(net, inputs, loss, 0.3)
    many = pgd(net, inputs, loss, AttackSettings(0.3, steps=10, step_size=0.1))
    raised = []
    for change in (Perturbation(inputs), one, many):
        assert torch.equal(change.inputs[0], inputs[0])
        with torch.no_grad(), change.apply_to(net):
            raised.append(float(loss(net(*change.inputs))))
    assert raised[0] < raised[1] <= raised[2]
    (shift,) = one.shifts["words"]
    assert shift.shape == (16, 5, 6)
    assert torch.allclose(shift.abs(), torch.full_like(shift, 0.3))
    # The table of places is shared by the batch; moving it would not be an attack on one example.
    assert not one.shifts["places"][0].any()
    assert not any(module._forward_hooks for module in net.modules())
    assert loss(net(*inputs)).item() == pytest.approx(raised[0])


def test_a_table_that_is_read_twice_is_moved_at_each_reading(
    words: tuple[nn.Module, tuple[torch.Tensor, ...], torch.Tensor],
) -> None:
    net, inputs, targets = words
    both = (*inputs, torch.randint(20, (16,)))
    change = fgsm(net, both, lambda output: F.cross_entropy(output, targets), 0.1)
    assert [tuple(shift.shape) for shift in change.shifts["words"]] == [(16, 5, 6), (16, 6)]
    with change.apply_to(net):
        moved = net(*both)
    by_hand = (net.words(both[0]) + change.shifts["words"][0] + net.places(torch.arange(5))).tanh().mean(1)
    assert torch.allclose(moved, net.head(by_hand * (net.words(both[1]) + change.shifts["words"][1])), atol=1e-6)


def test_what_has_neither_real_inputs_nor_embeddings_cannot_be_attacked() -> None:
    class Hot(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot(x, 3).float()

    with pytest.raises(TrialError, match="embedding layers, and Hot has neither"):
        fgsm(Hot(), (torch.tensor([1, 2]),), lambda output: output.sum(), 0.1)


class Majority(Digits):
    """Five words of twenty: whether more of them are below ten than not."""

    name = "majority"
    heads = {"label": 2}  # noqa: RUF012
    views = 1

    def view(self, split: Split, index: int) -> Split:
        return split


def sentences(seed: int) -> Split:
    x = torch.randint(20, (1000, 5), generator=torch.Generator().manual_seed(seed))
    return Split((x,), {"label": ((x < 10).sum(1) > 2).long()})


@pytest.mark.slow
def test_robust_distillation_on_embeddings_withstands_their_attack() -> None:
    task, train, val = Majority(), sentences(0), sentences(1)
    part = Part.of("adamw", epochs=15, learning_rate=2e-2)

    class Source:
        def __init__(self) -> None:
            torch.manual_seed(5)
            self.model = Words()
            fit(self.model, FitRequest(task, train, part))

        def view(self, index: int) -> dict[str, torch.Tensor]:
            return predict(self.model, task, train)

    teacher, attacked = Source(), {}
    for term in (Part.of("soft_target", alpha=0.9), Part.of("robust", epsilon=0.2, steps=3)):
        torch.manual_seed(0)
        student = Words()
        fit(student, FitRequest(task, train, part, terms=[term], teacher=teacher))
        clean, under = predict(student, task, val), predict_under_attack(student, task, val, epsilon=0.8, steps=5)
        right, attacked[term.name] = (
            float((logits["label"].argmax(1) == val.targets["label"]).float().mean()) for logits in (clean, under)
        )
        assert right > 0.95
    assert attacked["robust"] > attacked["soft_target"] + 0.2, attacked


@pytest.mark.slow
def test_robust_distillation_withstands_pgd_far_better_than_plain(model: nn.Module) -> None:
    teacher = Teacher(model)
    accuracy = {}
    for part in (Part.of("soft_target", alpha=0.9), Part.of("robust", epsilon=0.4, steps=3)):
        student = trained(part, width=8, epochs=12, teacher=teacher)
        attacked = predict_under_attack(student, TASK, SPLITS.search_val, epsilon=0.4, steps=10)
        accuracy[part.name] = share_right(attacked), share_right(predict(student, TASK, SPLITS.search_val))
    assert accuracy["robust"][0] > accuracy["soft_target"][0] + 0.15, accuracy
    assert accuracy["robust"][1] > 0.8, accuracy


def test_a_model_that_hides_its_gradient_is_attacked_through_the_one_it_was_cut_from(model: nn.Module) -> None:
    class Rounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model((x * 32).round() / 32)

    split = SPLITS.search_val
    shares = [
        share_right(predict_under_attack(Rounded(), TASK, split, epsilon=0.4, steps=5, through=through))
        for through in (None, model)
    ]
    plain = share_right(predict_under_attack(model, TASK, split, epsilon=0.4, steps=5))
    assert shares[0] > 0.85
    assert shares[1] == pytest.approx(plain, abs=0.05)
    assert plain < 0.6


def test_attacked_inputs_keep_to_a_range() -> None:
    net = nn.Linear(3, 1, bias=False)
    nn.init.ones_(net.weight)
    x = torch.tensor([[0.0, 0.5, 1.0]])
    for start in (None, torch.Generator().manual_seed(0)):
        for sign in (1, -1):
            settings = AttackSettings(0.3, 4, 0.3, start, [(0.0, 1.0)])
            change = pgd(net, (x,), lambda output, sign=sign: sign * output.sum(), settings)
            assert torch.allclose(change.inputs[0], (x + 0.3 * sign).clamp(0, 1))
    # What lies outside already is not pulled in.
    settings = AttackSettings(0.3, 4, 0.3, None, [(0.0, 1.0)])
    outside = pgd(net, (x + 2,), lambda output: output.sum(), settings).inputs[0]
    assert torch.allclose(outside, x + 2)


def test_one_step_is_fgsm_within_the_range_of_the_split(model: nn.Module) -> None:
    inputs, targets = SPLITS.search_val.inputs, SPLITS.search_val.targets
    actual = predict_under_attack(model, TASK, SPLITS.search_val, epsilon=0.2, steps=1)["label"]
    moved = fgsm(model, inputs, lambda output: TASK.loss({"label": output}, targets), 0.2)
    with torch.no_grad():
        by_hand = model(moved.inputs[0].clamp(inputs[0].min(), inputs[0].max()))
    assert torch.allclose(by_hand, actual, atol=1e-4)


def test_of_several_attacks_the_worst_counts_for_each_example() -> None:
    right, wrong = [2.0, 0.0], [0.0, 2.0]
    outputs = [{"label": torch.tensor([right, wrong, right])}, {"label": torch.tensor([wrong, right, right])}]
    worst = _select_worst(outputs, {"label": torch.zeros(3, dtype=torch.int64)}, {"label": 2})["label"]
    assert worst.tolist() == [wrong, wrong, right]


@pytest.mark.slow
def test_a_model_that_hides_its_gradient_is_attacked_through_its_source(model: nn.Module) -> None:
    class Stepped(nn.Module):
        """Rounds the inputs finely: nearly the same outputs, and no gradient."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model((x * 64).round() / 64)
            return logits

    stepped, split = Stepped(), SPLITS.search_val.take(slice(0, 64))

    def accuracy_under(attacked: nn.Module, sources: list[nn.Module]) -> float:
        logits = predict_under_attacks(attacked, TASK, split, "pgd", sources)["label"]
        return float((logits.argmax(1) == split.targets["label"]).float().mean())

    alone, through = accuracy_under(stepped, [stepped]), accuracy_under(stepped, [stepped, model])
    assert alone > 0.8
    assert through < alone - 0.3
    assert through == pytest.approx(accuracy_under(model, [model]), abs=0.1)
