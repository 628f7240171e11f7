"""What each choice is worth, on real digits: measured against chance, one cut, a uniform cut, no penalty."""

import pytest
import torch
from torch import nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.trial.pipeline import load_pipeline, reproducible_torch
from tests.prune.test_on_digits import SETUP, costs, scores

STUDENT = Part.of("cnn", width=8, depth=1, stages=2)
NONE = (Part("none"),)


@pytest.fixture(scope="module", autouse=True)
def _settled():
    with reproducible_torch():
        yield


@pytest.fixture(scope="module")
def students():
    """Three trained students, each with its training."""
    found = []
    for seed in range(3):
        training = CompressionConfig(STUDENT, NONE, Part.of("adamw", epochs=7, learning_rate=1e-2), seed=seed)
        found.append((training, load_pipeline(SETUP).train(training).model))
    return found


def mean_loss(students, part):
    """Return the mean loss of the students after a cut and what recovery it asks for."""
    place = load_pipeline(SETUP)
    losses = [scores(place.prune(model, training, part)[0])["loss"] for training, model in students]
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("structured", {"pruning_ratio": 0.15}),
        ("unstructured", {"pruning_ratio": 0.5, "scope": "uniform"}),
        ("unstructured", {"pruning_ratio": 0.8, "scope": "global"}),
    ],
)
def test_taylor_beats_chance(students, name, knobs):
    losses = [
        mean_loss(students, Part.of(name, criterion=criterion, recovery_epochs=0, **knobs))
        for criterion in ("taylor", "random")
    ]
    assert losses[0] < losses[1]


@pytest.mark.slow
def test_many_small_cuts_beat_one_large_one(students):
    """Ninety per cent of the weights, six passes over the data either way."""
    once = Part.of("unstructured", pruning_ratio=0.9, recovery_epochs=6)
    cubic = Part.of("unstructured", pruning_ratio=0.9, schedule="cubic", steps=4, step_epochs=1, recovery_epochs=3)
    assert mean_loss(students, cubic) < mean_loss(students, once)


@pytest.mark.slow
def test_adaptive_beats_uniform_at_equal_flops(students):
    training, model = students[0]
    uniform = Part.of("structured", pruning_ratio=0.4, recovery_epochs=3)
    share = costs(load_pipeline(SETUP).prune(model, training, uniform)[0])["flops"] / costs(model)["flops"]
    adaptive = Part.of("adaptive", pruning_ratio=1 - share, recovery_epochs=3)
    assert mean_loss(students, adaptive) < mean_loss(students, uniform)


@pytest.mark.slow
def test_network_slimming_works_from_end_to_end():
    """A penalty on batch-norm scales while fitting, then the channels with the smallest scales go (Liu 2017)."""
    place = load_pipeline(SETUP)
    found = {"slimmed": [], "random": [], "without penalty": []}
    for seed in range(2):
        for penalty in (0.0, 0.03):
            training = CompressionConfig(
                Part.of("cnn", width=12, depth=1, stages=2, block="plain"),
                NONE,
                Part.of("sgd", epochs=12, learning_rate=0.1, l1_batch_norm=penalty),
                seed=seed,
            )
            model = place.train(training).model
            scales = torch.cat([m.weight.detach().abs() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
            small = float((scales < 0.1 * scales.max()).float().mean())
            assert small > 0.3 if penalty else small < 0.1
            for criterion in ("batch_norm", "random") if penalty else ("batch_norm",):
                name = "without penalty" if not penalty else "slimmed" if criterion == "batch_norm" else "random"
                cut = Part.of("structured", pruning_ratio=0.4, criterion=criterion, scope="global", recovery_epochs=0)
                found[name].append(scores(place.prune(model, training, cut)[0])["accuracy"])
    means = {name: sum(values) / len(values) for name, values in found.items()}
    assert means["slimmed"] > means["without penalty"]
    assert means["slimmed"] > means["random"] + 0.2
