"""Every pruning method on real digits: it changes the model, the model recovers, and the candidate is rebuilt."""

import pytest
import torch

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.registry import PRUNE
from autocompress.measure import Subject, layer_costs, measure
from autocompress.prune.n_m import has_n_m_pattern
from autocompress.quantize import fold_batch_norm
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch, write_checkpoint
from autocompress.trial.runner import run_trial
from autocompress.trial.teacher import TeacherRecipe

SETUP = Setup(
    Part("digits"),
    0,
    TeacherRecipe(Part.of("cnn", width=12, depth=1), Part.of("adamw", epochs=16, learning_rate=1e-2)),
    ("accuracy", "loss"),
    ("flops", "sparse_bytes"),
)
TRAINING = CompressionConfig(
    Part.of("cnn", width=8, depth=2, stages=2),
    (Part.of("soft_target", temperature=4.0, alpha=0.9),),
    Part.of("adamw", epochs=8, learning_rate=1e-2),
    seed=3,
)
RECOVERY = {"recovery_epochs": 4, "recovery_learning_rate": 5e-3}
STEPS = {"steps": 2, "step_epochs": 1, **RECOVERY}
PARTS = [
    Part.of("unstructured", pruning_ratio=0.7, **RECOVERY),
    Part.of("unstructured", pruning_ratio=0.5, criterion="taylor", scope="uniform", schedule="cubic", **STEPS),
    Part.of("n_m", n=2, m=4, **RECOVERY),
    Part.of("n_m", n=1, m=4, criterion="taylor", **RECOVERY),
    Part.of("structured", pruning_ratio=0.25, criterion="taylor", **RECOVERY),
    Part.of("structured", pruning_ratio=0.25, criterion="gradient", schedule="linear", scope="global", **STEPS),
    Part.of("adaptive", pruning_ratio=0.4, steps=2, **RECOVERY),
    Part.of("depth", pruning_ratio=0.34, **RECOVERY),
    Part.of("progressive", pruning_ratio=0.4, step=0.2, step_epochs=1, floor=0.2, **RECOVERY),
]
EIGHT = Part.of("post_training", weight_bits=8, activation_bits=8)


@pytest.fixture(scope="module", autouse=True)
def _settled():
    with reproducible_torch():
        yield


@pytest.fixture(scope="module")
def trained():
    return load_pipeline(SETUP).train(TRAINING).model


def scores(model):
    place = load_pipeline(SETUP)
    subject = Subject(place.predict(model, place.splits.select_val), place.splits.select_val.targets)
    return measure(subject, SETUP.scores)


def costs(model, state=None):
    place = load_pipeline(SETUP)
    layers = layer_costs(fold_batch_norm(model, place.task.example()), place.task.example())
    return measure(Subject(layers=layers, bits={} if state is None else state.bits), SETUP.costs)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.name}-{part.values.get('criterion', 'default')}")
def test_a_method_changes_the_model_which_recovers_and_is_rebuilt(part, trained):
    place = load_pipeline(SETUP)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    pruned, state = place.prune(trained, TRAINING, part)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    whole, left = costs(trained), costs(pruned)
    if part.name in ("unstructured", "n_m"):
        assert left["flops"] == whole["flops"]
        assert left["sparse_bytes"] < 0.9 * whole["sparse_bytes"]
    else:
        assert left["flops"] < 0.85 * whole["flops"]
    assert state.report["sparsity"] > 0.2 or part.name == "adaptive"
    # Training went on after the cut, and not one zero was lost.
    for name, mask in state.masks.items():
        assert torch.equal(pruned.get_parameter(name) != 0, mask)
        if part.name == "n_m":
            assert has_n_m_pattern(pruned.get_parameter(name), part.values["n"], part.values["m"])
    assert scores(pruned)["accuracy"] > 0.8

    config = CompressionConfig(TRAINING.student, TRAINING.distill, TRAINING.fit, part, EIGHT, TRAINING.seed)
    rebuilt = place.rebuild(config, write_checkpoint(pruned, state.history))
    x = place.splits.select_val.inputs
    assert torch.equal(rebuilt.float_model(*x), pruned(*x))
    quantized, _ = place.quantize(pruned, TRAINING, EIGHT)
    torch.testing.assert_close(rebuilt.model(*x), quantized(*x))
    for name in state.masks:
        zeros = pruned.get_parameter(name) == 0
        assert not quantized.get_parameter(name)[zeros].any()


@pytest.mark.slow
def test_a_trial_cuts_and_measures_a_candidate_of_every_method():
    cuts = [CompressionRecipe(), CompressionRecipe(quantize=EIGHT)]
    # The digits have no attention heads, and no embeddings.
    for name in sorted({*PRUNE.names()} - {"heads", "tokens", "embedding_rank"}):
        part = next(part for part in PARTS if part.name == name)
        bare = Part.of(name, **{**part.values, "recovery_epochs": 0})
        cuts += [CompressionRecipe(prune=bare), CompressionRecipe(bare, EIGHT)]
    result = run_trial(Job(0, TRAINING, tuple(cuts)), SETUP)
    assert result.reason == ""
    assert len(result.candidates) == len(cuts)
    whole, *others = result.candidates
    assert len({candidate.scores["select_val"]["loss"] for candidate in result.candidates}) == len(cuts)
    for candidate in others:
        assert candidate.costs["sparse_bytes"] < whole.costs["sparse_bytes"]
        rebuilt = load_pipeline(SETUP).rebuild(candidate.config, result.checkpoints[candidate.checkpoint])
        assert scores(rebuilt.model)["accuracy"] == candidate.scores["select_val"]["accuracy"]
