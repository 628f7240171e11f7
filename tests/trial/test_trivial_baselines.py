import math
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.heads import Detection
from autocompress.core.registry import BASELINES
from autocompress.core.task import Split, Task
from autocompress.tasks.images import Digits
from autocompress.trial import trivial_baselines
from autocompress.trial.pipeline import Setup, TrialPipeline
from autocompress.trial.teacher import Teacher, TeacherRecipe
from autocompress.trial.trivial_baselines import fit_baselines, measure_baselines, score_training_split

SCORES = ("accuracy", "agreement", "loss", "pgd_accuracy")
SETUP = Setup(Part("digits"), 0, TeacherRecipe(Part("cnn"), Part("adamw")), SCORES, (), primary="accuracy")


@pytest.fixture(autouse=True)
def untrained_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that always answers 0: baselines are fitted without it."""
    task = Digits()
    splits = task.splits(0)
    parts = {"train/0": splits.train, "search_val": splits.search_val, "select_val": splits.select_val}
    logits = {name: {"label": torch.eye(10)[[0] * len(split)]} for name, split in parts.items()}
    pipeline = TrialPipeline(task, splits, Teacher(nn.Identity(), logits, Path()))
    monkeypatch.setattr(trivial_baselines, "load_pipeline", lambda setup: pipeline)
    fit_baselines.cache_clear()


def test_digits_have_a_linear_and_a_constant_baseline_on_every_split() -> None:
    measured, notices = measure_baselines(SETUP)
    assert (list(measured), notices) == (["constant", "linear"], [])
    linear = measured["linear"].scores
    assert list(linear) == ["train", "search_val", "select_val"]
    # An attack needs a model's gradients.
    assert set(linear["select_val"]) == {"accuracy", "agreement", "loss"}
    assert linear["train"]["accuracy"] > 0.98
    assert 0.93 < linear["select_val"]["accuracy"] < 0.98
    assert measured["constant"].scores["select_val"]["accuracy"] == pytest.approx(28 / 280)
    assert math.isclose(measured["constant"].scores["select_val"]["loss"], math.log(10), abs_tol=0.01)
    # The teacher has no outputs on test before its front is frozen.
    assert set(measure_baselines(SETUP, ["test"])[0]["linear"].scores["test"]) == {"accuracy", "loss"}


def test_boxes_have_no_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "heads", {"boxes": Detection(2)})
    assert measure_baselines(SETUP) == ({}, [])


def test_the_teacher_is_scored_on_its_training_split() -> None:
    scores = score_training_split(SETUP)
    assert set(scores) == {"accuracy", "agreement", "loss"}
    assert scores["agreement"] == 1.0
    assert 0.05 < scores["accuracy"] < 0.15


def test_a_baseline_that_fails_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit_badly(task: Task, train: Split) -> None:
        """A baseline with a fault."""
        raise ZeroDivisionError("no rows")

    monkeypatch.setattr(BASELINES, "_objects", {**BASELINES._objects, "linear": fit_badly})
    measured, notices = measure_baselines(SETUP, ["select_val"])
    assert list(measured) == ["constant"]
    assert notices == [
        "the trivial baseline 'linear' failed, so nothing is compared with it (ZeroDivisionError: no rows)"
    ]
