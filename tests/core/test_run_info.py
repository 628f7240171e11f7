"""The description of a run: one JSON round trip, also of what other versions wrote."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.core.run_info import (
    EnvironmentInfo,
    LatencyInfo,
    ObjectiveSpec,
    ReferenceRun,
    RunInfo,
    TeacherInfo,
    read_processor_name,
)

ACCURACY = ObjectiveSpec("accuracy", "maximize", bounds=(0.1, 1.0))
FLOPS = ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e8, 1e2))
CREATED = RunInfo(format=4, name="digits", content={"seed": None}, command="autocompress search digits")
DESCRIBED = replace(
    CREATED,
    setup={"split_seed": 0},
    task="digits",
    heads={"label": 10},
    mode="amortized",
    spec="task: digits\n",
    teacher=TeacherInfo({"select_val": {"accuracy": 0.98}}, {"effective_flops": 1e8}, {"student": {"cnn": {}}}),
    objectives=(ACCURACY, FLOPS),
    all_objectives=(replace(ACCURACY, bounds=None), replace(FLOPS, bounds=None)),
    max_drop=0.01,
    confidence=0.95,
    splits={"train": 100, "select_val": 20},
    environment=EnvironmentInfo(processor="x86", cores=2, versions={"torch": "2.13.0"}),
)
FINISHED = replace(
    DESCRIBED,
    seconds=0.0,
    front=("t0c0",),
    test_reads=1,
    confirmed={"t0c0": 5},
    latency=LatencyInfo(1, 2, "x86", "1.22", {"teacher": 0.5}, "openvino", {"t0c0": 0.25}),
    reference=ReferenceRun("random", ((0.0, 1.5, 0.25),)),
)
# As format 4 has stored it from the beginning.
STORED = {
    "format": 4,
    "name": "digits",
    "content": {"seed": None},
    "command": "autocompress search digits",
    "setup": {"split_seed": 0},
    "task": "digits",
    "heads": {"label": 10},
    "mode": "amortized",
    "spec": "task: digits\n",
    "teacher": {
        "scores": {"select_val": {"accuracy": 0.98}},
        "costs": {"effective_flops": 1e8},
        "config": {"student": {"cnn": {}}},
    },
    "notices": [],
    "plugins": [],
    "objectives": [
        {"name": "accuracy", "direction": "maximize", "unit": "", "kind": "score", "box": [0.1, 1.0]},
        {"name": "effective_flops", "direction": "minimize", "unit": "FLOPs", "kind": "cost", "box": [1e8, 1e2]},
    ],
    "all_objectives": [
        {"name": "accuracy", "direction": "maximize", "unit": "", "kind": "score"},
        {"name": "effective_flops", "direction": "minimize", "unit": "FLOPs", "kind": "cost"},
    ],
    "limits": {},
    "pick": {"max_drop": 0.01, "confidence": 0.95},
    "splits": {"train": 100, "select_val": 20},
    "environment": {"processor": "x86", "cores": 2, "versions": {"torch": "2.13.0"}},
    "seconds": 0.0,
    "exhausted": False,
    "front": ["t0c0"],
    "recommended": "",
    "baselines": {},
    "test_reads": 1,
    "confirmed": {"t0c0": 5},
    "latency": {
        "batch": 1,
        "threads": 2,
        "processor": "x86",
        "runtime": "1.22",
        "rows": {"teacher": 0.5},
        "target": "openvino",
        "float_rows": {"t0c0": 0.25},
    },
    "reference": {"name": "random", "rows": [[0.0, 1.5, 0.25]]},
}


@pytest.mark.parametrize("info", [RunInfo(), CREATED, DESCRIBED, FINISHED])
def test_a_description_is_read_back_equal(info: RunInfo) -> None:
    assert RunInfo.from_json(info.to_json()) == info


def test_the_entries_are_those_that_run_folders_hold() -> None:
    assert FINISHED.to_json() == STORED
    assert RunInfo.from_json(STORED) == FINISHED  # type: ignore[arg-type]


def test_entries_of_a_step_that_was_not_reached_are_left_out() -> None:
    assert set(CREATED.to_json()) == {"format", "name", "content", "command"}
    assert "front" not in DESCRIBED.to_json()
    assert not DESCRIBED.is_finished
    assert FINISHED.is_finished


def test_unknown_entries_survive_and_missing_or_empty_ones_take_their_defaults() -> None:
    info = RunInfo.from_json({"name": "old", "teacher": None, "colour": {"of": ["the", "page"]}})
    assert info == RunInfo(name="old", other={"colour": {"of": ["the", "page"]}})
    assert info.to_json() == {"name": "old", "colour": {"of": ["the", "page"]}}


def test_an_entry_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="splits"):
        RunInfo.from_json({"splits": "many"})


def test_what_is_measured_includes_objectives_with_their_bounds() -> None:
    assert DESCRIBED.measured == {"accuracy": ACCURACY, "effective_flops": FLOPS}
    assert DESCRIBED.teacher.score("accuracy") == 0.98
    assert DESCRIBED.teacher.score("accuracy", "test") is None


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Path("/proc/cpuinfo")
    if known.exists() and "model name" in known.read_text():
        assert f": {read_processor_name()}\n" in known.read_text()

    def nothing(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", nothing)
    assert read_processor_name() == (platform.processor() or platform.machine()) != ""
