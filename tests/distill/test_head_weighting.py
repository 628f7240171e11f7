import math
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import Logits, Split, Targets
from autocompress.distill.head_weighting import HEAD_WEIGHTS, DynamicWeights, FixedWeights, UncertaintyWeights
from autocompress.distill.kernels import soft_target_kl
from autocompress.errors import TrialError
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.objective import TrainingObjective
from autocompress.training.optimizers import AdamWConfig, fit_config


def alone(value: torch.Tensor) -> torch.Tensor:
    return value


class TwoHeads(Digits):
    """Which digit, and whether it is odd."""

    name = "two"
    heads: Mapping[str, int] = MappingProxyType({"digit": 10, "odd": 2})

    def loss(self, logits: Logits, targets: Targets) -> torch.Tensor:
        return torch.stack([F.cross_entropy(values, targets[head]) for head, values in logits.items()]).mean()


TASK = TwoHeads()
PLAIN = Digits().splits(0)


def two(split: Split) -> Split:
    digit = split.targets["label"]
    return Split(split.inputs, {"digit": digit, "odd": digit % 2})


TRAIN, VAL = two(PLAIN.train), two(PLAIN.search_val)


class Teacher:
    """An untrained network of two heads."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = TASK.build(Part.of("cnn", width=6, depth=1)).eval()

    def view(self, index: int) -> dict[str, torch.Tensor]:
        return {head: 5 * z for head, z in predict(self.model, TASK, TASK.view(TRAIN, index)).items()}


def test_every_choice_of_the_knob_has_weights() -> None:
    assert set(AdamWConfig.knobs()["head_weights"].domain.options) == set(HEAD_WEIGHTS)  # type: ignore[union-attr]


def test_fixed_weights_have_mean_one_and_the_ratio_that_was_asked() -> None:
    weights = FixedWeights(["a", "b", "c"], first=4.0)
    assert weights.weights().tolist() == pytest.approx([2.0, 0.5, 0.5])
    losses = {"c": torch.tensor(3.0), "a": torch.tensor(1.0), "b": torch.tensor(5.0)}
    assert weights(losses).item() == pytest.approx((2 * 1 + 0.5 * 5 + 0.5 * 3) / 3)
    assert FixedWeights(["a", "b", "c"])(losses).item() == pytest.approx(3.0)


def test_uncertainty_by_hand_and_at_its_best() -> None:
    # Kendall et al. 2018, equation 10: exp(-s) L + s / 2 is least at s = log(2 L), where it is (1 + log(2 L)) / 2.
    losses = {"a": torch.tensor(0.25), "b": torch.tensor(4.0)}
    weights = UncertaintyWeights(["a", "b"])
    assert weights(losses).item() == pytest.approx((0.25 + 4.0) / 2)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weights(losses).backward()
        optimizer.step()
    assert weights.log_variance.tolist() == pytest.approx([math.log(0.5), math.log(8.0)], abs=1e-3)
    assert weights(losses).item() == pytest.approx((1 + math.log(0.5) + 1 + math.log(8)) / 4, abs=1e-4)


def test_dynamic_weights_by_hand() -> None:
    weights = DynamicWeights(["a", "b"])
    for losses in ((4.0, 4.0), (2.0, 4.0)):
        assert weights.weights().tolist() == [1.0, 1.0]
        for share in (0.5, 1.5):
            weights({head: torch.tensor(share * loss) for head, loss in zip("ab", losses, strict=True)})
        weights.after_epoch(alone)
    # Rates 2 / 4 and 4 / 4, temperature 2: 2 softmax(0.25, 0.5).
    high = 2 / (1 + math.exp(-0.25))
    assert weights.weights().tolist() == pytest.approx([2 - high, high])
    actual = weights({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}).item()
    assert actual == pytest.approx(((2 - high) * 1 + high * 3) / 2)


def test_dynamic_weights_stay_finite_where_a_loss_was_zero() -> None:
    weights = DynamicWeights(["a", "b"])
    for loss in (0.0, 1.0):
        weights({"a": torch.tensor(loss), "b": torch.tensor(1.0)})
        weights.after_epoch(alone)
    assert weights.weights().tolist() == pytest.approx([2.0, 0.0])


def build_objective(part: Part, terms: list[Part]) -> tuple[torch.Tensor, TrainingObjective, Split]:
    teacher = Teacher()
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=4, depth=1)).eval()
    actual = TrainingObjective.from_terms(terms, TASK, fit_config(part), teacher, 0)
    from contextlib import ExitStack

    batch = TRAIN.take(slice(0, 16))
    with ExitStack() as stack, torch.no_grad():
        actual.attach_hooks(stack, model)
        actual.build_adapters(batch)
        model.eval()
        cached = {head: values[:16] for head, values in teacher.view(0).items()}
        return actual.loss(batch, cached, torch.Generator()), actual, batch


def test_equal_weights_are_the_mean_that_a_task_without_weights_gets() -> None:
    terms = [Part.of("soft_target", alpha=0.7)]
    plain, without, _ = build_objective(Part("adamw"), terms)
    split, weighted, _ = build_objective(Part.of("adamw", head_weights="dynamic"), terms)
    assert without.head_weights is None
    assert weighted.head_weights is not None
    assert split.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_first_head_may_have_a_temperature_of_its_own() -> None:
    part = Part.of("soft_target", alpha=1.0, temperature=2.0, first_temperature=2.5)
    actual, _, batch = build_objective(Part("adamw"), [part])
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=4, depth=1))
    ours, theirs = predict(model, TASK, batch), Teacher().view(0)
    by_hand = [
        soft_target_kl(ours[head], theirs[head][:16], temperature).item()
        for head, temperature in (("digit", 5.0), ("odd", 2.0))
    ]
    assert actual.item() == pytest.approx(sum(by_hand) / 2, rel=1e-4)


def accuracy(model: nn.Module) -> dict[str, float]:
    logits = predict(model, TASK, VAL)
    return {head: float((z.argmax(1) == VAL.targets[head]).float().mean()) for head, z in logits.items()}


def trained(task: Digits = TASK, terms: tuple[Part, ...] = (Part("none"),), **settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = task.build(Part.of("cnn", width=6, depth=1, stages=2, block="plain"))
    part = Part.of("adamw", **{"epochs": 14, "learning_rate": 1e-2, **settings})  # type: ignore[arg-type]
    fit(model, FitRequest(task, TRAIN, part, terms=terms, teacher=Teacher()))
    return model


@pytest.mark.slow
def test_a_heavy_first_head_is_learned_at_the_cost_of_the_other() -> None:
    even, first = accuracy(trained()), accuracy(trained(first_head=100.0))
    assert min(even.values()) > 0.6
    assert first["odd"] < even["odd"] - 0.1
    assert first["digit"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uncertainty", "dynamic"])
def test_learned_weights_learn_both_heads(kind: str) -> None:
    model = trained(head_weights=kind)
    assert min(accuracy(model).values()) > 0.6
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"stem", "stages", "heads"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soft_target", "logit_standardized", "dkd", "dist", "robust"])
def test_every_term_on_logits_can_be_weighted(name: str) -> None:
    model = trained(terms=(Part.of(name, first_temperature=0.5),), epochs=1, head_weights="uncertainty")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_task_whose_loss_wants_all_heads_is_told_so() -> None:
    class Whole(TwoHeads):
        def loss(self, logits: Logits, targets: Targets) -> torch.Tensor:
            return F.cross_entropy(logits["digit"], targets["digit"]) + F.cross_entropy(logits["odd"], targets["odd"])

    with pytest.raises(TrialError, match="computed for the head 'digit' alone"):
        trained(Whole(), epochs=1, head_weights="dynamic")
    trained(Whole(), epochs=1)
