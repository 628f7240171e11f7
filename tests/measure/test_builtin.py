import math

import pytest
import torch
from torch import nn

from autocompress.core.heads import Regression
from autocompress.core.method import LayerBits
from autocompress.core.registry import OBJECTIVES
from autocompress.errors import TrialError, UnknownNameError
from autocompress.measure import Subject, cost, layer_costs, measure, quality

SCORES = {
    "accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "loss", "kl", "agreement", "retention",
    "ece",
}  # fmt: skip
COSTS = {"flops", "macs", "bops", "effective_flops", "parameters", "nonzero_parameters", "bytes", "sparse_bytes"}


def subject(heads=("label",), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Subject(
        logits={head: torch.randn(240, 10, generator=generator) for head in heads},
        targets={head: torch.randint(0, 10, (240,), generator=generator) for head in heads},
        teacher_logits={head: torch.randn(240, 10, generator=generator) for head in heads},
    )


def test_every_objective_is_registered_with_its_kind():
    kinds = {name: OBJECTIVES.get(name).kind for name in OBJECTIVES}
    assert kinds.items() >= (dict.fromkeys(SCORES, "score") | dict.fromkeys(COSTS, "cost")).items()


@pytest.mark.parametrize("name", sorted(SCORES | COSTS))
def test_every_objective_has_name_doc_and_direction(name):
    result = OBJECTIVES.get(name)
    assert result.name == name
    assert result.doc.endswith(".")
    assert result.direction == ("minimize" if result.kind == "cost" or name in {"loss", "kl", "ece"} else "maximize")


def test_scores_of_one_head_equal_the_functions():
    one = subject()
    logits, targets, teacher = one.logits["label"], one.targets["label"], one.teacher_logits["label"]
    assert measure(one, SCORES) == {
        "accuracy": quality.accuracy(logits, targets),
        "f1_macro": quality.f1_macro(logits, targets),
        "f1_weighted": quality.f1_weighted(logits, targets),
        "precision_macro": quality.precision_macro(logits, targets),
        "recall_macro": quality.recall_macro(logits, targets),
        "loss": quality.cross_entropy(logits, targets),
        "ece": quality.calibration_error(logits, targets),
        "kl": quality.kl_divergence(logits, teacher),
        "agreement": quality.agreement(logits, teacher),
        "retention": quality.accuracy(logits, targets) / quality.accuracy(teacher, targets),
    }


def test_retention_by_hand():
    targets = {"label": torch.tensor([0, 1, 0, 1])}
    teacher = {"label": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])}  # 3 of 4 right
    student = {"label": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])}  # 2 of 4 right
    assert measure(Subject(student, targets, teacher), ["retention"])["retention"] == pytest.approx(2 / 3)
    assert measure(Subject(teacher, targets, teacher), ["retention"])["retention"] == 1


def test_retention_of_a_teacher_without_score_or_error_is_a_number():
    useless, targets = {"label": torch.tensor([[1.0, 0.0]])}, {"label": torch.tensor([1])}
    better = {"label": torch.tensor([[0.0, 1.0]])}
    # A candidate whose scores are not all finite has failed, so that no trial of such a teacher would succeed.
    for student in (useless, better):
        assert measure(Subject(student, targets, useless), ["retention"])["retention"] == 1
    numbers, heads = {"label": torch.tensor([1.0, 2.0])}, {"label": Regression(1)}
    exact = {"label": torch.tensor([[1.0], [2.0]])}
    assert measure(Subject(exact, numbers, exact, heads=heads), ["retention"])["retention"] == 1


def test_retention_is_nan_for_outputs_that_are_not_finite():
    one, broken = subject(), {"label": torch.full((240, 10), math.inf)}
    assert math.isnan(measure(Subject(broken, one.targets, one.logits), ["retention"])["retention"])
    assert math.isnan(measure(Subject(one.logits, one.targets, broken), ["retention"])["retention"])


def test_several_heads_count_alike():
    both = subject(("a", "b"))
    apart = [
        Subject({head: both.logits[head]}, {head: both.targets[head]}, {head: both.teacher_logits[head]})
        for head in ("a", "b")
    ]
    for name, value in measure(both, SCORES).items():
        assert value == pytest.approx(sum(measure(one, [name])[name] for one in apart) / 2)


def test_non_finite_head_makes_the_mean_nan():
    both = subject(("a", "b"))
    both.logits["b"][0, 0] = math.nan
    assert all(math.isnan(value) for value in measure(both, SCORES).values())


def test_costs_equal_the_counts_of_the_layers():
    layers = layer_costs(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),))
    bits = {"0": LayerBits(4, 8)}
    assert measure(Subject(layers=layers, bits=bits), COSTS) == {
        "flops": 64.0,
        "macs": 32.0,
        "bops": 32.0 * 32,
        "effective_flops": 2.0,
        "parameters": 36.0,
        "nonzero_parameters": 36.0,
        "bytes": 16.0 + 4 * 4 + 4 * 4,
        "sparse_bytes": 16.0 + 4 * 4 + 4 * 4,
    }
    assert cost.count_flops(layers) == 64


@pytest.mark.parametrize("name", sorted(SCORES))
def test_score_without_logits_is_an_error(name):
    with pytest.raises(TrialError, match="needs logits"):
        measure(Subject(), [name])


@pytest.mark.parametrize("name", ["kl", "agreement", "retention"])
def test_comparison_without_a_teacher_is_an_error(name):
    one = subject()
    with pytest.raises(TrialError, match="teacher logits"):
        measure(Subject(one.logits, one.targets), [name])


def test_head_without_targets_is_an_error():
    with pytest.raises(TrialError, match="'label' has no targets"):
        measure(Subject(subject().logits), ["accuracy"])


def test_an_unknown_objective_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        measure(subject(), ["acuracy"])
