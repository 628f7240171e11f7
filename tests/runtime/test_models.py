from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.analysis.cascade import CascadePoint, CascadeSearch
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.pipeline import Pipeline
from autocompress.runtime.models import Level, build_example, build_levels, load_model, load_models
from tests.runtime.artifacts import CLASSES, ROW, describe_origin, write_model

POINT = CascadePoint("c0", "c1", threshold=0.7, share=0.25, cost=15.0, score=0.95)
SEARCH = CascadeSearch("rows", "accuracy", "maximize", "effective_flops", (POINT,), POINT)


def write_models(folder: Path, *scores: float, **changes: Any) -> list[Path]:
    return [
        write_model(folder / f"m{at}", describe_origin(f"c{at}", score, **changes)) for at, score in enumerate(scores)
    ]


def test_models_of_one_run_are_loaded_and_timed_the_fastest_first(tmp_path: Path) -> None:
    models = load_models(write_models(tmp_path, 0.9, 0.8, 0.95))
    assert {model.name for model in models} == {"m0", "m1", "m2"}
    assert all(first.run_ms <= second.run_ms for first, second in pairwise(models))
    assert models[0].run_ms > 0


def test_files_of_different_runs_are_refused_by_name(tmp_path: Path) -> None:
    mine = write_model(tmp_path / "mine", describe_origin("c0", 0.9))
    other = write_model(tmp_path / "other", describe_origin("c1", 0.8, run="rows2", fingerprint="ffffffffffff"))
    with pytest.raises(
        UsageError, match=r"'mine' is of the run 'rows' .* and 'other' of the run 'rows2' \(ffffffffffff\)"
    ):
        load_models([mine, other])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("task", "columns"),
        ("inputs", [{**ROW, "mean": [1.0] * 4}]),
        ("outputs", [{**CLASSES, "classes": ["x", "z", "y"]}]),
    ],
)
def test_files_of_another_task_preprocessing_or_order_of_classes_are_refused(
    tmp_path: Path, part: str, value: object
) -> None:
    mine = write_model(tmp_path / "mine", describe_origin("c0", 0.9))
    other = write_model(tmp_path / "other", describe_origin("c1", 0.8), **{part: value})
    with pytest.raises(UsageError, match=rf"'mine' and 'other' have different {part}"):
        load_models([mine, other])


def test_a_file_without_its_run_is_served_alone_and_refused_beside_others(tmp_path: Path) -> None:
    old = write_model(tmp_path / "old")
    assert [model.score for model in load_models([old])] == [None]
    with pytest.raises(UsageError, match=r"'old' does not say which run.*Export it again"):
        load_models([old, write_model(tmp_path / "new", describe_origin("c0", 0.9))])


def test_a_folder_twice_none_at_all_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", describe_origin("c0", 0.9))
    with pytest.raises(UsageError, match="two of the exported folders have the name 'm'"):
        load_models([folder, folder])
    with pytest.raises(UsageError, match="at least one exported folder"):
        load_models([])
    with pytest.raises(ArtifactError, match="is not an artifact"):
        load_model(tmp_path / "missing")
    (folder / "preprocess.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has 2 bytes instead of"):
        load_models([folder])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": 7}, r"preprocess\.json was changed .*its task"),
        ({"origin": [1]}, r"preprocess\.json was changed .*its origin"),
        ({"origin": {"metric": "a", "scores": {"a": {"value": "x", "direction": "maximize"}}}}, "was changed"),
        ({"origin": {"metric": "a", "scores": {"a": {"value": 10**400, "direction": "maximize"}}}}, "was changed"),
        ({"origin": {"metric": "a", "scores": {"a": {}}}}, r"was changed \(KeyError\('value'\)\)"),
        ({"inputs": [{**ROW, "columns": ["a", "b"], "mean": [0.0] * 2, "std": [1.0] * 2}]}, r"m does not run \("),
        ({"outputs": [{**CLASSES, "classes": ["x"]}]}, r"m does not run \("),
        ({"inputs": [{**ROW, "shape": [2**14, 2**13]}]}, r"declares the size \[16384, 8192\], not 1 to"),
        ({"inputs": [{**ROW, "length": 0}]}, r"declares the size \[0\], not 1 to"),
    ],
)
def test_a_record_of_another_form_is_an_error_before_the_first_request(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_model(tmp_path / "m", **changes)
    with pytest.raises(ArtifactError, match=message):
        load_models([folder])


def test_a_smaller_error_is_a_better_score(tmp_path: Path) -> None:
    origin = describe_origin("c0", 0.3)
    origin["scores"] = {"accuracy": {"value": 0.3, "direction": "minimize"}}
    assert load_model(write_model(tmp_path / "m", origin)).score == -0.3


def test_a_slower_level_that_is_no_better_is_left_out(tmp_path: Path) -> None:
    models = [load_model(folder) for folder in write_models(tmp_path, 0.9, 0.85, 0.95)]
    timed = [replace(model, run_ms=float(at + 1)) for at, model in enumerate(models)]
    assert [level.name for level in build_levels(timed)] == ["m0", "m2"]


def test_a_cascade_is_a_level_between_its_models(tmp_path: Path) -> None:
    models = [load_model(folder) for folder in write_models(tmp_path, 0.9, 0.97)]
    timed = [replace(model, run_ms=ms) for model, ms in zip(models, (1.0, 8.0), strict=True)]
    levels = build_levels(timed, SEARCH)
    assert [level.name for level in levels] == ["m0", "c0+c1", "m1"]
    assert levels[1].run_ms == 1.0 + 0.25 * 8.0
    with pytest.raises(UsageError, match="needs the models c0 and c1; there are c0"):
        build_levels(timed[:1], SEARCH)


def test_models_of_one_run_decide_at_their_own_thresholds_also_in_a_cascade(tmp_path: Path) -> None:
    folders = [
        write_model(tmp_path / f"m{at}", describe_origin(f"c{at}", 0.9), outputs=[{**CLASSES, "threshold": threshold}])
        for at, threshold in enumerate((0.9, 0.1))
    ]
    small, large = sorted(load_models(folders), key=lambda model: model.name)
    level = Level("both", small, large, threshold=0.5)
    batch = small.pipeline.encode([[0.0, 2.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]])
    outputs, is_escalated = level.run(batch)
    # The second class has a probability of 0.79 in the first example, and of 0.32 in the second one.
    decided = [
        level.decode(values, example, is_escalated=escalated)["label"]["class"]
        for values, example, escalated in zip(batch, outputs, is_escalated, strict=True)
    ]
    assert (is_escalated, decided) == ([False, True], ["x", "y"])


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "image", "shape": [3, 4, 4], "resize": False, "white": 255, "scale": 255, "mean": [0.0], "std": [1.0]},
        {"kind": "image", "shape": [1, 4, 4], "resize": True, "white": 16, "scale": 16, "mean": [0.0], "std": [1.0]},
        {
            "kind": "text",
            "length": 5,
            "vocabulary": 9,
            "whitespace": "collapse",
            "unicode_form": None,
            "alphabet": "a",
            "encoding": "words",
        },
        {"kind": "series", "shape": [2, 4], "mean": [0.0] * 2, "std": [1.0] * 2},
        {"kind": "id", "ids": [None, "7"], "first_row": 0, "unknown_row": None},
        {"kind": "candidates", "ids": ["4", "7"], "first_row": 0, "unknown_row": None},
        {"kind": "tensor", "shape": [2, 2], "dtype": "int64", "vocabulary": 3},
        ROW,
    ],
)
def test_the_example_for_timing_has_the_form_of_every_input(entry: dict[str, Any]) -> None:
    session = type("Session", (), {"get_inputs": lambda self: []})()
    one, two = {**entry, "name": "first", "tensor": "first"}, {**entry, "name": "second", "tensor": "second"}
    for inputs in ([one], [one, two]):
        record = {"inputs": inputs, "outputs": [], "session": {}}
        (encoded,) = Pipeline(record, session).encode([build_example(record)])
        assert all(isinstance(tensor, np.ndarray) for _, tensor in encoded.values())
