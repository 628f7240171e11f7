from pathlib import Path

import pytest

from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo
from autocompress.engine.finish import detect_validation_leak
from autocompress.store.run_store import RunStore
from tests.fakes import OBJECTIVES


@pytest.mark.parametrize(
    ("validation", "test", "size", "is_reported"),
    [
        # What a teacher that has seen its validation split looks like (CIFAR-10, 2,500 and 5,000 images).
        (0.925, 0.877, 2500, True),
        (0.89, 0.877, 2500, False),
        # Large, but so few examples that it may be chance.
        (0.925, 0.877, 100, False),
        (0.80, 0.877, 2500, False),
    ],
)
def test_leak_of_the_validation_split_gives_a_notice(
    tmp_path: Path, validation: float, test: float, size: int, is_reported: bool
) -> None:
    with RunStore.create(tmp_path / "run", RunInfo()) as study:
        study.update_run_info(
            RunInfo(
                objectives=OBJECTIVES,
                splits={"select_val": size, "test": 2 * size},
                teacher=TeacherInfo({"select_val": {"accuracy": validation}}),
            )
        )
        result = detect_validation_leak(study, {"accuracy": test})
    assert len(result) == is_reported
    assert not result or f"{validation:.1%}" in result[0]


def test_no_notice_without_an_accuracy(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", RunInfo()) as study:
        score = ObjectiveSpec("rmse", "minimize", "", "score", (1.0, 0.0))
        study.update_run_info(
            RunInfo(
                objectives=(score, OBJECTIVES[1]),
                splits={"select_val": 100, "test": 200},
                teacher=TeacherInfo({"select_val": {"rmse": 0.2}}),
            )
        )
        assert detect_validation_leak(study, {"rmse": 0.9}) == []
