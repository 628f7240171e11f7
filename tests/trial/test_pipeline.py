"""The pipeline of a trial: the stored setup, repeatable torch, each step, and students that start from the teacher."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.task import Splits
from autocompress.errors import ArtifactError, TrialError, UnknownNameError
from autocompress.quantize.folding import find_folded_pairs
from autocompress.tasks.images import Digits
from autocompress.trial.pipeline import (
    CALIBRATION_BATCH,
    Setup,
    TrialPipeline,
    list_operations,
    list_teacher_pruning,
    load_pipeline,
    load_task,
    pack_paused_state,
    read_checkpoint,
    reproducible_torch,
    unpack_paused_state,
    write_checkpoint,
)
from autocompress.trial.teacher import Teacher
from tests.trial.test_runner import SETUP, TRAINING

# No term reads the teacher, so it need not be trained.
BRIEF = CompressionConfig(
    Part.of("cnn", width=8, depth=1), (Part("none"),), Part.of("adamw", epochs=1, batch_size=64), seed=3
)
TEACHER = Part.of("cnn", width=12, depth=1)
PRUNED = Part.of("structured", pruning_ratio=0.5, recovery_epochs=0)
EIGHT = Part.of("post_training", weight_bits=8, activation_bits=8)


@pytest.fixture(scope="module")
def pipeline() -> TrialPipeline:
    """A pipeline on at most 128 digits per split with an untrained teacher."""
    task = Digits()
    splits = Splits(*(split.take(slice(0, 128)) for _, split in task.splits(0).items()))
    torch.manual_seed(0)
    teacher = Teacher(task.build(TEACHER).eval(), {"search_val": {}}, Path("unused"))
    return TrialPipeline(task, splits, teacher)


def test_a_setup_reads_back_equal() -> None:
    assert Setup.from_json(json.loads(json.dumps(SETUP.to_json()))) == SETUP


def test_reproducible_torch_restores_the_settings(tmp_path: Path) -> None:
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    assert tiny.div(2) != 0
    with reproducible_torch():
        assert tiny.div(2) == 0
        assert torch.get_num_threads() == 1
    assert tiny.div(2) != 0


@pytest.mark.slow
def test_a_student_may_start_from_its_teachers_weights() -> None:
    pipeline = load_pipeline(SETUP)
    one_epoch = {"epochs": 1, "learning_rate": 1e-3}

    def score(width: int, init: str) -> float:
        fit = Part.of("adamw", init=init, **one_epoch)
        training = replace(TRAINING, student=Part.of("cnn", width=width, depth=1), fit=fit)
        with reproducible_torch():
            return pipeline.score(pipeline.train(training).model)

    # One of the teacher's own shape knows at once what it knows; a narrower one takes its best channels.
    assert score(12, "teacher") > 0.9 > 0.5 > score(12, "random")
    assert score(8, "teacher") > score(8, "random") + 0.05
    assert list_operations(replace(TRAINING, fit=Part.of("adamw", init="teacher")))[0] == "take the teacher's weights"


@pytest.mark.slow
def test_a_training_that_started_from_the_teacher_goes_on_after_a_pause_as_if_it_never_had() -> None:
    pipeline, training = load_pipeline(SETUP), replace(TRAINING, fit=Part.of("adamw", epochs=3, init="teacher"))
    with reproducible_torch():
        whole = pipeline.train(training).model.state_dict()
        paused = pipeline.train(training, until=1).paused
        again = pipeline.train(training, paused=paused).model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_stored_setup_leaves_the_device_out() -> None:
    stored = replace(SETUP, device="cuda").to_json()
    assert stored == SETUP.to_json()
    assert set(stored) == {"task", "split_seed", "teacher", "scores", "costs"}
    assert Setup.from_json(stored).device == "cpu"


def test_a_task_is_loaded_once_per_process() -> None:
    task, splits = load_task(SETUP)
    assert load_task(replace(SETUP))[1] is splits
    assert task.name == "digits"
    assert splits.fingerprint() == Digits().splits(SETUP.split_seed).fingerprint()


def test_torch_has_its_settings_back_after_a_fault() -> None:
    tiny, threads = torch.tensor(torch.finfo(torch.float32).tiny), torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), reproducible_torch():
        raise ZeroDivisionError
    assert tiny.div(2) != 0
    assert torch.get_num_threads() == threads


def test_a_training_depends_on_its_own_seed_alone(pipeline: TrialPipeline) -> None:
    torch.manual_seed(1)
    one = pipeline.train(BRIEF)
    torch.manual_seed(2)
    again, other = pipeline.train(BRIEF), pipeline.train(replace(BRIEF, seed=4))
    weights = one.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    assert any(not torch.equal(value, weights[name]) for name, value in other.model.state_dict().items())
    assert [row["epoch"] for row in one.curve] == [1.0]
    assert (one.paused, one.start) == (b"", ())
    assert not one.model.training


def test_a_damaged_paused_state_is_a_trial_error(pipeline: TrialPipeline) -> None:
    with pytest.raises(TrialError, match="the state of a paused trial cannot be read"):
        pipeline.train(BRIEF, paused=b"nonsense, and more of it")


def test_without_a_method_a_step_returns_the_model_itself(pipeline: TrialPipeline) -> None:
    model, start = pipeline.build_student(BRIEF)
    assert start == ()
    assert pipeline.prune(model, BRIEF, None) == (model, None)
    assert pipeline.quantize(model, BRIEF, None) == (model, None)


def test_a_candidate_is_rebuilt_from_its_checkpoint_bit_for_bit(pipeline: TrialPipeline) -> None:
    config = replace(BRIEF, prune=PRUNED, quantize=EIGHT)
    with reproducible_torch():
        trained = pipeline.train(BRIEF)
        pruned, state = pipeline.prune(trained.model, BRIEF, PRUNED)
        quantized, _ = pipeline.quantize(pruned, BRIEF, EIGHT)
        assert state is not None
        checkpoint = write_checkpoint(pruned, state.history)
        rebuilt = pipeline.rebuild(config, checkpoint)
        expected = pipeline.predict(quantized, pipeline.splits.select_val)["label"]
        assert torch.equal(pipeline.predict(rebuilt.model, pipeline.splits.select_val)["label"], expected)
    assert rebuilt.prune is not None
    assert rebuilt.prune.history == state.history
    assert rebuilt.quantize is not None
    pruned_size, trained_size = (
        sum(parameter.numel() for parameter in model.parameters()) for model in (rebuilt.float_model, trained.model)
    )
    assert pruned_size < trained_size
    with pytest.raises(ArtifactError, match=r"a checkpoint is damaged .*; run the search again"):
        pipeline.rebuild(config, checkpoint[: len(checkpoint) // 2])


def test_a_candidate_without_compression_is_its_folded_student(pipeline: TrialPipeline) -> None:
    model, _ = pipeline.build_student(BRIEF)
    rebuilt = pipeline.rebuild(BRIEF, write_checkpoint(model, None))
    assert find_folded_pairs(rebuilt.model)
    assert not find_folded_pairs(rebuilt.float_model)
    example = pipeline.task.example()
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt.model(*example), rebuilt.float_model(*example))
    assert (rebuilt.prune, rebuilt.quantize, rebuilt.start) == (None, None, ())
    assert not rebuilt.model.training


def test_a_student_of_the_shape_of_its_teacher_starts_with_its_weights(pipeline: TrialPipeline) -> None:
    inherited = replace(BRIEF, student=TEACHER, fit=Part.of("adamw", epochs=0, init="teacher"))
    student = pipeline.train(inherited)
    expected = dict(pipeline.teacher.model.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in student.model.named_parameters())
    assert student.start == ()


def test_the_context_of_a_method_has_the_calibration_split_and_the_loss_of_the_task(pipeline: TrialPipeline) -> None:
    context, split = pipeline.build_context(BRIEF), pipeline.splits.calibration
    assert len(split) > CALIBRATION_BATCH
    assert [len(batch[0]) for batch in context.calibration] == [CALIBRATION_BATCH, len(split) - CALIBRATION_BATCH]
    assert torch.equal(torch.cat([batch[0] for batch in context.calibration]), split.inputs[0])
    assert torch.equal(torch.cat([batch["label"] for batch in context.targets]), split.targets["label"])
    assert context.seed == BRIEF.seed
    logits = torch.zeros(64, 10)
    assert context.loss is not None
    assert float(context.loss(logits, context.targets[0])) == pytest.approx(float(torch.tensor(10.0).log()))


def test_logits_that_are_not_finite_are_named(pipeline: TrialPipeline) -> None:
    model, _ = pipeline.build_student(BRIEF)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(TrialError, match="the model's logits for 'label' are not finite"):
        pipeline.predict(model, pipeline.splits.test)
    with pytest.raises(TrialError, match="not finite"):
        pipeline.score(model)


def test_the_score_is_the_first_metric_on_the_validation_split(pipeline: TrialPipeline) -> None:
    model, _ = pipeline.build_student(BRIEF)
    split = pipeline.splits.search_val
    predicted = pipeline.predict(model, split)["label"].argmax(1)
    accuracy = float((predicted == split.targets["label"]).double().mean())
    assert pipeline.score(model) == pytest.approx(accuracy)


PRUNE, START = {"layers": [{"name": "0", "kept": [0, 2]}]}, [{"layers": []}, {"dropped": ["1"]}]


def model() -> nn.Module:
    torch.manual_seed(0)
    # A view: safetensors itself refuses what is not contiguous.
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    net[0].weight = nn.Parameter(torch.randn(4, 3).t())
    return net


def test_weights_and_histories_come_back() -> None:
    weights, prune, start = read_checkpoint(write_checkpoint(model(), PRUNE, START))
    assert (prune, start) == (PRUNE, START)
    expected = model().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert read_checkpoint(write_checkpoint(model(), None))[1:] == ({}, [])


def test_tied_weights_and_buffers_that_are_views_are_stored() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.words = nn.Embedding(6, 4), nn.Linear(4, 6)
            self.words.weight = self.table.weight
            both = torch.randn(2, 3)
            self.register_buffer("first", both[0])
            self.register_buffer("second", both[1])

    net = Tied()
    weights = read_checkpoint(write_checkpoint(net, None))[0]
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())


def test_the_same_model_gives_the_same_bytes() -> None:
    assert len({write_checkpoint(model(), PRUNE, START) for _ in range(5)}) == 1


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-5], lambda content: b"x" * 99])
def test_a_damaged_checkpoint_is_a_value_error(damage) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(damage(write_checkpoint(model(), PRUNE)))


def test_a_paused_state_comes_back_with_its_histories_and_damage_is_named() -> None:
    assert unpack_paused_state(pack_paused_state(b"state", START)) == (b"state", START)
    assert unpack_paused_state(pack_paused_state(b"", [])) == (b"", [])
    with pytest.raises(TrialError, match="the state of a paused trial cannot be read"):
        unpack_paused_state(b"nonsense, and more of it")


PLAIN = CompressionConfig(Part.of("cnn"), (Part("none"),), Part.of("adamw", epochs=20))


def test_a_student_of_its_own_family_is_not_made_from_the_teacher() -> None:
    assert list_teacher_pruning(Part.of("cnn", width=8)) == ()
    assert list_teacher_pruning(Part.of("from_teacher", pruning_ratio=0.0)) == ()


def test_a_pruned_teacher_drops_blocks_before_channels() -> None:
    parts = list_teacher_pruning(Part.of("from_teacher", pruning_ratio=0.3, depth_ratio=0.25, round_to=4))
    assert [part.name for part in parts] == ["depth", "structured"]
    assert [part.values["pruning_ratio"] for part in parts] == [0.25, 0.3]
    assert parts[1].values["round_to"] == 4
    # The training of the student takes the place of a recovery.
    assert [part.values["recovery_epochs"] for part in parts] == [0, 0]


# Stored texts: a change would make earlier runs read differently.
@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (PLAIN, ("train 20 epochs",)),
        (
            replace(PLAIN, fit=Part.of("adamw", epochs=3, init="teacher")),
            ("take the teacher's weights", "train 3 epochs"),
        ),
        (
            replace(PLAIN, student=Part.of("from_teacher", pruning_ratio=0.3, depth_ratio=0.25)),
            ("cut the teacher (depth)", "cut the teacher (structured)", "train 20 epochs"),
        ),
        # The weights of a pruned teacher are the teacher's in any case.
        (
            replace(
                PLAIN,
                student=Part.of("from_teacher", pruning_ratio=0.3),
                fit=Part.of("adamw", epochs=3, init="teacher"),
            ),
            ("cut the teacher (structured)", "train 3 epochs"),
        ),
        (
            replace(PLAIN, prune=Part.of("structured", pruning_ratio=0.5, recovery_epochs=6)),
            ("train 20 epochs", "prune (structured)", "tune 6 epochs"),
        ),
        (
            replace(PLAIN, prune=Part.of("structured", pruning_ratio=0.5, recovery_epochs=0)),
            ("train 20 epochs", "prune (structured)"),
        ),
        (replace(PLAIN, quantize=Part.of("post_training")), ("train 20 epochs", "quantize (post_training)")),
        (
            replace(PLAIN, quantize=Part.of("qat", epochs=4)),
            ("train 20 epochs", "quantize (qat)", "tune 4 epochs"),
        ),
        (
            replace(
                PLAIN,
                prune=Part.of("structured", pruning_ratio=0.5, recovery_epochs=6),
                quantize=Part.of("qat", epochs=4),
            ),
            ("train 20 epochs", "prune (structured)", "tune 6 epochs", "quantize (qat)", "tune 4 epochs"),
        ),
    ],
)
def test_the_steps_are_listed_in_their_order(config: CompressionConfig, steps: tuple[str, ...]) -> None:
    assert list_operations(config) == steps


@pytest.mark.parametrize("field", ["student", "prune", "quantize"])
def test_an_unknown_method_is_refused_by_name(field: str) -> None:
    with pytest.raises(UnknownNameError, match="no_such_method"):
        list_operations(replace(PLAIN, **{field: Part("no_such_method")}))


def test_the_score_of_each_head_is_measured_where_a_task_has_several(pipeline: TrialPipeline) -> None:
    assert pipeline.build_context(BRIEF).score_heads is None
    model = pipeline.teacher.model
    assert pipeline.score_heads(model) == {"label": pipeline.score(model)}
