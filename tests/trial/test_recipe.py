"""The training and compression steps of a candidate, as texts that are stored with it."""

from dataclasses import replace

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.errors import UnknownNameError
from autocompress.trial.recipe import list_operations, list_teacher_pruning

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
