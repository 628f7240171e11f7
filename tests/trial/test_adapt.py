"""Adaptation of a candidate: its stages, what the teacher and the labels are used for, and its time limit."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.heads import Head
from autocompress.core.registry import QUANTIZE
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised
from autocompress.tasks.images import Digits
from autocompress.trial import adapt as module
from autocompress.trial.adapt import (
    FINE_TUNED,
    QUANTIZATION_TRAINED,
    REESTIMATED,
    UNCHANGED,
    AdaptedCandidate,
    AdaptRequest,
    adapt_candidate,
)
from autocompress.trial.pipeline import RebuiltCandidate, TrialPipeline, reproducible_torch
from autocompress.trial.recent_data import RecentData
from autocompress.trial.teacher import Teacher

pytestmark = pytest.mark.slow

EIGHT_BITS = Part.of("post_training", weight_bits=8, activation_bits=8)
CONFIG = CompressionConfig(
    Part.of("cnn", width=8, depth=1, stages=2),
    (Part("none"),),
    Part.of("adamw", epochs=8, batch_size=64, learning_rate=2e-2),
    quantize=EIGHT_BITS,
)


class PlainDigits(Digits):
    """Digits without augmented views, which would take most of the time."""

    views = 1


def brighten(split: Split) -> Split:
    return Split(tuple(3 * tensor + 5 for tensor in split.inputs), split.targets)


@pytest.fixture(scope="module")
def pipeline() -> TrialPipeline:
    task = PlainDigits()
    splits = task.splits(0)
    return TrialPipeline(task, splits, Teacher(nn.Identity(), {"search_val": {}}, Path()))


@pytest.fixture(scope="module")
def candidate(pipeline: TrialPipeline) -> RebuiltCandidate:
    with reproducible_torch():
        trained = pipeline.train(CONFIG.training)
        model, state = pipeline.quantize(trained.model, CONFIG.training, EIGHT_BITS)
    return RebuiltCandidate(trained.model, model, None, state)


@pytest.fixture(scope="module")
def recent(pipeline: TrialPipeline) -> Split:
    return brighten(pipeline.splits.test.take(slice(0, 240)))


def run(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split, labelled: bool = True, **changes: object
) -> AdaptedCandidate:
    request = AdaptRequest(pipeline.task, CONFIG, candidate, RecentData(recent, labelled), minutes=5)
    with reproducible_torch():
        return adapt_candidate(replace(request, **changes))


def test_stages_regain_what_a_change_of_brightness_cost(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    before = copy.deepcopy(candidate.float_model.state_dict())
    adapted = run(pipeline, candidate, recent)
    scores = adapted.held_out_scores()
    assert list(scores) == [UNCHANGED, REESTIMATED, FINE_TUNED]
    assert scores[UNCHANGED] < 0.5 < 0.8 < scores[REESTIMATED]
    assert scores[FINE_TUNED] > 0.8
    assert adapted.is_changed
    assert adapted.metric == "accuracy"
    # As many epochs as the training of the candidate had, because the time allows more.
    tuned = adapted.stages[2].candidate
    assert adapted.epochs == (8 if adapted.selected.candidate is tuned else 0)
    # Ranges belong to the new data, and the old candidate has not changed.
    old, new = (stage.candidate.quantize for stage in adapted.stages[:2])
    assert old is not None
    assert new is not None
    assert new.history["layers"][0]["input"]["scale"] > 2 * old.history["layers"][0]["input"]["scale"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in candidate.float_model.state_dict().items())


def test_without_time_no_weight_is_trained(pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split) -> None:
    adapted = run(pipeline, candidate, recent, minutes=0)
    assert [stage.name for stage in adapted.stages] == [UNCHANGED, REESTIMATED]
    weights = dict(candidate.float_model.named_parameters())
    float_model = adapted.selected.candidate.float_model
    assert all(torch.equal(weight, weights[name]) for name, weight in float_model.named_parameters())
    assert (adapted.epochs, adapted.teacher) == (0, "no weight was trained")


def test_without_labels_the_teacher_replaces_them(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    teacher = copy.deepcopy(candidate.float_model)
    wrong = Split(recent.inputs, {"label": torch.zeros(len(recent), dtype=torch.long)})
    results = [run(pipeline, candidate, data, labelled=False, teacher=teacher) for data in (recent, wrong)]
    assert results[0].metric == "agreement"
    models = [result.stages[2].candidate.model.state_dict() for result in results]
    # Not a single bit depends on the targets.
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())
    # The teacher knows nothing of the change either, until its statistics are estimated again.
    assert pipeline_score(results[0], recent) > 0.8


def pipeline_score(adapted: AdaptedCandidate, split: Split) -> float:
    logits = adapted.pipeline.predict(adapted.selected.candidate.model, split)["label"]
    return float((logits.argmax(1) == split.targets["label"]).double().mean())


def test_without_labels_and_teacher_only_statistics_change(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    adapted = run(pipeline, candidate, recent, labelled=False)
    assert [stage.name for stage in adapted.stages] == [UNCHANGED, REESTIMATED]
    # Predictions are compared with those of the unchanged candidate.
    assert adapted.held_out_scores()[UNCHANGED] == 1.0
    assert pipeline_score(adapted, recent) > 0.8


def test_a_quantization_method_that_trains_is_compared_with_one_that_does_not(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    part = Part.of("lsq", weight_bits=4, activation_bits=8, epochs=1)
    with reproducible_torch():
        model, state = pipeline.quantize(candidate.float_model, CONFIG.training, part)
    assert state is not None
    trained = RebuiltCandidate(candidate.float_model, model, None, state)
    config = replace(CONFIG, quantize=part)
    adapted = run(pipeline, trained, recent, config=config)
    assert [stage.name for stage in adapted.stages] == [UNCHANGED, REESTIMATED, FINE_TUNED, QUANTIZATION_TRAINED]
    assert adapted.selected.choice == max(stage.choice for stage in adapted.stages)
    for stage in adapted.stages[1:]:
        quantize = stage.candidate.quantize
        assert quantize is not None
        assert quantize.bits == state.bits
        # Every stage is a model of the candidate's method, which an artifact rebuilds.
        fresh = copy.deepcopy(stage.candidate.float_model)
        restored = QUANTIZE.get("lsq").restore(fresh, QUANTIZE.get("lsq").config.of(part.values), quantize)
        restored.load_state_dict(stage.candidate.model.state_dict())
        logits = pipeline.predict(stage.candidate.model, recent)["label"]
        assert torch.equal(pipeline.predict(restored, recent)["label"], logits)
    # Without time the method does not train either.
    assert [stage.name for stage in run(pipeline, trained, recent, config=config, minutes=0).stages] == [
        UNCHANGED,
        REESTIMATED,
    ]


def test_a_candidate_that_cannot_be_improved_is_kept(pipeline: TrialPipeline, candidate: RebuiltCandidate) -> None:
    test = pipeline.splits.test
    own = pipeline.predict(candidate.model, test)["label"].argmax(1)
    adapted = run(pipeline, candidate, Split(test.inputs, {"label": own}))
    assert adapted.selected.name == UNCHANGED
    assert not adapted.is_changed


class Coins(Supervised):
    """Two classes: the second one above -1.5."""

    name = "coins"
    inputs = (InputSpec((1,)),)
    heads: ClassVar[dict[str, int]] = {"label": 2}

    def splits(self, seed: int) -> Splits:
        raise NotImplementedError

    def teacher(self) -> tuple[Part, Part]:
        raise NotImplementedError


def test_stages_are_scored_at_the_thresholds_of_candidate_and_teacher() -> None:
    layer = nn.Linear(1, 2)
    layer.load_state_dict({"weight": torch.tensor([[0.0], [1.0]]), "bias": torch.zeros(2)})
    model = nn.Sequential(layer).eval()
    values = torch.tensor([-2.0, -1.0, 1.0]).repeat(100)[:, None]
    recent = Split((values,), {"label": (values[:, 0] > -1.5).long()})
    config = replace(CONFIG, quantize=None)
    # The middle value has the probability 0.27.
    low = {"label": Head(2, threshold=0.2)}

    def score(labelled: bool, **changes: Any) -> float:
        request = AdaptRequest(
            Coins(), config, RebuiltCandidate(model, model, None, None), RecentData(recent, labelled), minutes=0
        )
        with reproducible_torch():
            return adapt_candidate(replace(request, **changes)).held_out_scores()[UNCHANGED]

    assert score(True) == pytest.approx(2 / 3, abs=0.1)
    assert score(True, heads=low) == 1
    assert score(False, heads=low, teacher=model) == pytest.approx(2 / 3, abs=0.1)
    assert score(False, heads=low, teacher=model, teacher_heads=low) == 1
    assert score(False, heads=low) == 1


class Constant(nn.Module):
    """A teacher that has learned nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 10)


class Oracle(nn.Module):
    """A teacher that knows the targets of the examples that it was given."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.inputs, self.targets = split.inputs[0], split.targets["label"]

    def forward(self, x: Tensor) -> Tensor:
        rows = (x.flatten(1)[:, None] - self.inputs.flatten(1)[None]).square().sum(-1).argmin(1)
        return 9 * nn.functional.one_hot(self.targets[rows], 10).float()


def test_a_teacher_teaches_only_what_it_knows_better(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[tuple[Part, ...]] = []
    fine_tune = module._fine_tune

    def record(timed: object, request: object, training: CompressionConfig, model: nn.Module) -> object:
        trainings.append(training.distill)
        return fine_tune(timed, request, training, model)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_fine_tune", record)
    for teacher in (Oracle(recent), Constant()):
        run(pipeline, candidate, recent, teacher=teacher, learning_rate=1e-4, minutes=0.2)
    assert [terms[0].name for terms in trainings] == ["soft_target", "none"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (nn.Linear(3, 10), "the teacher fails on the recent data"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), "does not return 10 classes for 'label'"),
    ],
)
def test_a_teacher_of_other_shapes_is_refused(
    teacher: nn.Module, message: str, pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    with pytest.raises(UsageError, match=message):
        run(pipeline, candidate, recent, teacher=teacher)


@pytest.mark.parametrize("settings", [{"minutes": -1.0}, {"minutes": float("nan")}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(
    settings: dict[str, float], pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        run(pipeline, candidate, recent, **settings)


def test_a_training_ends_with_the_step_at_its_time_limit(pipeline: TrialPipeline, candidate: RebuiltCandidate) -> None:
    model = copy.deepcopy(candidate.float_model)
    timed = module._TimedPipeline(pipeline.task, pipeline.splits, pipeline.teacher, deadline=0.0)
    timed.fine_tune(CONFIG.training, model, 3, 1e-3)
    assert timed.steps == [1]
    assert not model.training


def test_removed_weights_stay_removed(pipeline: TrialPipeline, recent: Split) -> None:
    part = Part.of("unstructured", pruning_ratio=0.5, recovery_epochs=0)
    with reproducible_torch():
        trained = pipeline.train(replace(CONFIG.training, fit=Part.of("adamw", epochs=1)))
        pruned, state = pipeline.prune(trained.model, CONFIG.training, part)
    assert state is not None
    # As it is read from a checkpoint: without masks.
    candidate = RebuiltCandidate(pruned, pruned, replace(state, masks={}), None)
    config = replace(CONFIG, prune=part, quantize=None)
    tuned = run(pipeline, candidate, recent, config=config, minutes=1).stages[2].candidate.float_model
    for name, mask in state.masks.items():
        weight = tuned.get_parameter(name)
        assert bool((weight[~mask.bool()] == 0).all())
        assert not torch.equal(weight, pruned.get_parameter(name))


def test_a_smaller_error_is_better(pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split) -> None:
    class ByLoss(PlainDigits):
        metrics = ("loss", "accuracy")

    adapted = run(pipeline, candidate, recent, task=ByLoss())
    assert adapted.metric == "loss"
    assert adapted.selected.choice == min(stage.choice for stage in adapted.stages)
    assert adapted.is_changed


def test_the_splits_of_an_adaptation_are_the_recent_data(
    pipeline: TrialPipeline, candidate: RebuiltCandidate, recent: Split
) -> None:
    splits: Splits = run(pipeline, candidate, recent, minutes=0).pipeline.splits
    assert len(splits.train) + len(splits.select_val) + len(splits.test) == len(recent)
