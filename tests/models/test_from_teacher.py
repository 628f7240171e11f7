"""Students that are the pruned teacher: the pruning steps of a config."""

import pytest

from autocompress.core.config import Part
from autocompress.core.knobs import Settings
from autocompress.core.registry import PRUNE, STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import KnobError, UsageError
from autocompress.models.base import build_family_model
from autocompress.models.from_teacher import NAME, FromTeacherConfig


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_channels_are_removed_by_one_method_with_the_scope_of_the_allocation(allocation: str) -> None:
    config = FromTeacherConfig(pruning_ratio=0.25, allocation=allocation, round_to=4, criterion="l1")
    assert config.list_pruning_steps() == (
        Part.of("structured", pruning_ratio=0.25, scope=allocation, criterion="l1", round_to=4, recovery_epochs=0),
    )


@pytest.mark.parametrize(("ratio", "share_of_flops"), [(0.5, 0.75), (0.9, 0.98)])
def test_an_adaptive_allocation_removes_the_flops_of_the_ratio(ratio: float, share_of_flops: float) -> None:
    (step,) = FromTeacherConfig(pruning_ratio=ratio, allocation="adaptive").list_pruning_steps()
    assert step.name == "adaptive"
    assert step.values["pruning_ratio"] == pytest.approx(share_of_flops)
    assert "scope" not in step.values


def test_an_adaptive_allocation_may_count_parameters() -> None:
    config = FromTeacherConfig(pruning_ratio=0.2, allocation="adaptive", budget="parameters", round_to=16)
    (step,) = config.list_pruning_steps()
    assert step.values["budget"] == "parameters"
    assert step.values["pruning_ratio"] == pytest.approx(0.36)
    assert isinstance(PRUNE.get("adaptive").config.of(step.values), Settings)


def test_blocks_are_dropped_before_channels_are_removed() -> None:
    steps = FromTeacherConfig(pruning_ratio=0.3, depth_ratio=0.5).list_pruning_steps()
    assert [step.name for step in steps] == ["depth", "structured"]
    assert steps[0].values == {"pruning_ratio": 0.5, "recovery_epochs": 0}


@pytest.mark.parametrize(("allocation", "method"), [("uniform", "structured"), ("adaptive", "adaptive")])
def test_the_hidden_size_is_reduced_with_or_without_other_channels(allocation: str, method: str) -> None:
    for ratio in (0.0, 0.5):
        config = FromTeacherConfig(pruning_ratio=ratio, hidden_ratio=0.25, allocation=allocation)
        (step,) = config.list_pruning_steps()
        assert step.name == method
        assert step.values["hidden_ratio"] == 0.25
        assert isinstance(PRUNE.get(method).config.of(step.values), Settings)
    (step,) = FromTeacherConfig(pruning_ratio=0.5, allocation=allocation).list_pruning_steps()
    assert "hidden_ratio" not in step.values


def test_embeddings_are_factorized_after_their_columns_are_removed() -> None:
    steps = FromTeacherConfig(hidden_ratio=0.25, embedding_ratio=0.5).list_pruning_steps()
    assert [step.name for step in steps] == ["structured", "embedding_rank"]
    assert steps[1].values == {"pruning_ratio": 0.5, "recovery_epochs": 0}


def test_ratios_of_zero_leave_the_teacher_whole() -> None:
    assert FromTeacherConfig(pruning_ratio=0.0, depth_ratio=0.0).list_pruning_steps() == ()


@pytest.mark.parametrize("allocation", ["uniform", "global", "adaptive"])
@pytest.mark.parametrize("ratio", [0.01, 0.9])
def test_the_steps_are_settings_that_their_methods_accept(ratio: float, allocation: str) -> None:
    config = FromTeacherConfig(pruning_ratio=ratio, depth_ratio=ratio, allocation=allocation)
    for step in config.list_pruning_steps():
        assert isinstance(PRUNE.get(step.name).config.of(step.values), Settings)


def test_a_ratio_out_of_range_names_the_student() -> None:
    with pytest.raises(KnobError, match=r"from_teacher.pruning_ratio = 0.95 is outside 0..0.9"):
        FromTeacherConfig(pruning_ratio=0.95)


def test_a_task_without_a_model_cannot_build_it() -> None:
    assert NAME in STUDENTS
    with pytest.raises(UsageError, match="needs a task with a model of its own"):
        build_family_model(Part(NAME), (InputSpec((1, 8, 8)),), {"label": 10})


def test_spread_blocks_are_asked_for_by_name() -> None:
    (step,) = FromTeacherConfig(pruning_ratio=0.0, depth_ratio=0.5, depth_selection="spread").list_pruning_steps()
    assert step.values == {"pruning_ratio": 0.5, "recovery_epochs": 0, "selection": "spread"}
