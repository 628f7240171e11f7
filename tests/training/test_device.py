import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.registry import DISTILL, TASKS
from autocompress.errors import UsageError
from autocompress.training.device import CPU, available_device, default_device, move_model, require_device
from autocompress.training.fit import FitRequest, fit
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from autocompress.trial.runner import run_trial
from autocompress.trial.teacher import TeacherRecipe
from tests.training.mock_device import CARD, OnCard, a_card

TEACHER = TeacherRecipe(Part.of("cnn", width=8, depth=1), Part.of("adamw", epochs=3, learning_rate=1e-2))
SETUP = Setup(Part("digits"), 0, TEACHER, ("accuracy", "loss"), ("bytes", "effective_flops"))
SMALL = Part.of("cnn", width=8, depth=1)
FIT = Part.of("adamw", epochs=1, learning_rate=1e-2, batch_size=128)
SOFT = (Part.of("soft_target"),)


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    with reproducible_torch():
        yield


def weights(model: nn.Module) -> dict[str, Tensor]:
    actual = model.state_dict()
    assert not any(isinstance(entry, OnCard) for entry in actual.values())
    return dict(actual)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def trained(device: torch.device, part: Part = FIT, terms: tuple[Part, ...] = SOFT) -> nn.Module:
    pipeline = load_pipeline(SETUP)
    torch.manual_seed(0)
    model = pipeline.task.build(SMALL)
    fit(
        model,
        FitRequest(
            pipeline.task, pipeline.splits.train, part, terms=terms, teacher=pipeline.teacher, seed=5, device=device
        ),
    )
    return model


def test_the_pretend_card_refuses_what_a_real_one_refuses() -> None:
    with a_card() as card:
        layer = nn.Linear(2, 2).to(card)
        assert layer.weight.device.type == CARD
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=card)


def test_a_model_comes_back_from_the_card_whatever_happens() -> None:
    layer = nn.Linear(2, 2)
    with a_card() as card:
        with pytest.raises(RuntimeError, match="same device"), move_model(layer, card):
            layer(torch.ones(1, 2))
        assert layer.weight.device == CPU
        with default_device(card):
            assert torch.zeros(1).device.type == CARD
        assert torch.zeros(1).device == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_refused_with_what_to_do() -> None:
    require_device("cpu")
    assert available_device("cuda") == available_device("cpu") == CPU
    with pytest.raises(UsageError, match=r"graphics card, but torch .* CUDA.*; set search\.device=cpu"):
        require_device("cuda")


LOGIT = [name for name in DISTILL if DISTILL.get(name).kind == "logit"]
FEATURE = [name for name in DISTILL if DISTILL.get(name).kind != "logit"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "terms", [(Part(name),) for name in LOGIT] + [(*SOFT, Part(name)) for name in FEATURE], ids=str
)
def test_every_term_gives_on_the_card_what_it_gives_on_the_processor(terms: tuple[Part, ...]) -> None:
    here = weights(trained(CPU, terms=terms))
    with a_card() as card:
        there = weights(trained(card, terms=terms))
    assert same(here, there)
    teacher = load_pipeline(SETUP).teacher.model
    assert not any(isinstance(entry, OnCard) for entry in teacher.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.3, "label_smoothing": 0.1},
        {"patience": 1, "epochs": 3},
        {"backbone": "frozen"},
        {"l1_weights": 1e-4, "l1_batch_norm": 1e-4, "clip_norm": 1.0},
        {"processes": 2},
    ],
    ids=str,
)
def test_every_setting_of_a_fit_gives_the_same_on_the_card(settings: dict[str, float | str]) -> None:
    part = Part.of("adamw", **{**FIT.values, **settings})
    with a_card() as card:
        there = weights(trained(card, part))
    # Several processes share the processors; on a card there is one.
    assert same(there, weights(trained(CPU, Part.of("adamw", **{**part.values, "processes": 1}))))


@pytest.mark.slow
def test_precision_is_chosen_and_lowered_where_the_model_runs() -> None:
    requested = []

    def lowered(device: str, **_: object) -> AbstractContextManager[None]:
        requested.append(device)
        return nullcontext()

    # Its teacher is trained on the processor when it is first used.
    load_pipeline(SETUP)
    with a_card() as card, mock.patch("torch.autocast", lowered):
        trained(card, Part.of("adamw", **{**FIT.values, "precision": "auto"}))
    assert set(requested) == {CARD}


@pytest.mark.slow
def test_a_training_that_pauses_on_the_card_goes_on_there_and_elsewhere() -> None:
    pipeline = load_pipeline(SETUP)
    part = Part.of("sgd", epochs=2, batch_size=128)

    def segment(device: torch.device, until: int | None, paused: bytes) -> tuple[dict[str, Tensor], bytes]:
        torch.manual_seed(0)
        model = pipeline.task.build(SMALL)
        actual = fit(
            model,
            FitRequest(
                pipeline.task,
                pipeline.splits.train,
                part,
                terms=SOFT,
                teacher=pipeline.teacher,
                seed=5,
                until=until,
                paused=paused,
                device=device,
            ),
        )
        return weights(model), actual.paused

    whole, _ = segment(CPU, None, b"")
    with a_card() as card:
        _, paused = segment(card, 1, b"")
        assert same(segment(card, None, paused)[0], whole)
    assert same(segment(CPU, None, paused)[0], whole)


# With masks and without, rounding by ranges that follow and by learned steps: the other methods train by these.
CUTS = [
    CompressionRecipe(Part.of("unstructured", recovery_epochs=1)),
    CompressionRecipe(Part.of("structured", recovery_epochs=1)),
    CompressionRecipe(quantize=Part.of("qat", epochs=1)),
    CompressionRecipe(quantize=Part.of("lsq", epochs=1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_cut_that_trains_gives_the_same_where_it_trains_on_the_card(cut: CompressionRecipe) -> None:
    here = load_pipeline(SETUP)
    training = CompressionConfig(SMALL, SOFT, FIT, seed=1)
    model = trained(CPU)

    def cut_on(device: torch.device) -> dict[str, Tensor]:
        pipeline = type(here)(here.task, here.splits, here.teacher, device)
        pruned, _ = pipeline.prune(copy.deepcopy(model), training, cut.prune)
        return weights(pipeline.quantize(pruned, training, cut.quantize)[0])

    expected = cut_on(CPU)
    with a_card() as card:
        assert same(cut_on(card), expected)


FAMILIES = [
    ("digits", Part.of("cnn", width=8, depth=1, block="separable"), {}),
    ("langid", Part.of("text_cnn"), {}),
    ("langid", Part.of("transformer"), {}),
    ("langid_kind", Part.of("text_cnn"), {"head_weights": "uncertainty"}),
    ("langid_kind", Part.of("text_cnn"), {"head_weights": "dynamic", "epochs": 3}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "student", "settings"), FAMILIES, ids=str)
def test_every_family_trains_on_the_card(task: str, student: Part, settings: dict[str, str | int]) -> None:
    actual = TASKS.get(task)()
    train = actual.splits(0).train.take(slice(0, 64))

    def on(device: torch.device) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = actual.build(student)
        fit(
            model,
            FitRequest(actual, train, Part.of("adamw", **{"epochs": 1, "batch_size": 32, **settings}), device=device),
        )
        return weights(model)

    expected = on(CPU)
    with a_card() as card:
        assert same(on(card), expected)


@pytest.mark.slow
def test_a_trial_that_trains_sub_networks_along_gives_the_same_candidates_on_the_card() -> None:
    training = CompressionConfig(SMALL, SOFT, Part.of("adamw", **FIT.values, sandwich=0.1), seed=1)
    job = Job(
        3,
        training,
        (CompressionRecipe(), CompressionRecipe(quantize=Part.of("post_training", weight_bits=8, activation_bits=8))),
    )
    expected = run_trial(job, SETUP)
    with a_card():
        actual = run_trial(job, replace(SETUP, device=CARD))
    assert [entry.scores for entry in actual.candidates] == [entry.scores for entry in expected.candidates]
    assert actual.checkpoints == expected.checkpoints
