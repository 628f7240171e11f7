"""Searches whose teacher is no torch module: an estimator of scikit-learn, and an ONNX file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import autocompress
from autocompress.core.registry import TASKS
from autocompress.errors import SpecError, UsageError
from tests.tasks.test_teacher_outputs import COLUMNS, table, write, write_onnx

SPEC = """
task: {task}
search: {{trials: 2, workers: 1, backend: serial, timing_seconds: 0}}
student: {{{student}}}
distill: {{{distill}}}
fit: {{adamw: {{epochs: 2{fit}}}}}
quantize: {{none: , post_training: {{weight_bits: 8, activation_bits: 8}}}}
objectives: [{objectives}]
"""


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TASKS, "_objects", {name: TASKS.get(name) for name in TASKS})


def write_spec(folder: Path, **values: str) -> Path:
    defaults = {
        "task": "module",
        "student": "table_mlp: {width: [8, 16], depth: 1}",
        "distill": "soft_target: ",
        "fit": "",
        "objectives": "accuracy, bytes",
    }
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(**{**defaults, **values}))
    return path


def fit_classifier(frame: pd.DataFrame) -> LogisticRegression:
    return LogisticRegression().fit(frame[list(COLUMNS)], frame["target"])


@pytest.mark.slow
def test_an_estimator_is_searched_exported_and_its_costs_are_unknown(tmp_path: Path) -> None:
    data = autocompress.Tabular(write(tmp_path, table()))
    teacher = fit_classifier(data.select_training_rows())
    front = autocompress.search(write_spec(tmp_path), teacher=teacher, data=data, name="own", runs=tmp_path / "runs")
    assert front.info.teacher.costs == {}
    test = data.splits(0).test
    rows = table().iloc[test.keys.rows.tolist()]
    expected = teacher.score(rows[list(COLUMNS)], rows["target"])
    assert front.info.teacher.scores["test"]["accuracy"] == pytest.approx(expected)
    trained = front.info.teacher.scores["train"]["accuracy"]
    assert trained == pytest.approx(teacher.score(*_divide(data.select_training_rows())))
    # The reference of a cost is above every candidate, which the hypervolume counts from.
    reference = next(entry.bounds[0] for entry in front.info.objectives if entry.name == "bytes")
    assert reference > front.candidates["bytes"].max()
    folder = front.export("t0c0")
    assert (folder / "model.onnx").is_file()


def _divide(frame: pd.DataFrame) -> tuple[pd.DataFrame, "pd.Series[str]"]:
    return frame[list(COLUMNS)], frame["target"]


@pytest.mark.slow
def test_the_bytes_of_an_onnx_file_are_its_cost(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "m.onnx", np.eye(3) * 8)
    path = write(tmp_path, table())
    spec = write_spec(tmp_path, task=f"{{tabular: {{path: {path}, teacher: {file}}}}}")
    front = autocompress.search(spec, name="own", runs=tmp_path / "runs")
    assert front.info.teacher.costs == {"bytes": file.stat().st_size}
    assert front.info.teacher.scores["test"]["accuracy"] == 1.0
    spec = write_spec(tmp_path, task=f"{{tabular: {{path: {path}, teacher: {file}}}}}", objectives="accuracy, flops")
    front = autocompress.search(spec, name="other", runs=tmp_path / "runs")
    assert set(front.info.teacher.costs) == {"bytes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "from_teacher: "}, "prunes the teacher; name families such as table_mlp"),
        ({"distill": "soft_target: , layer_mapping: "}, "learns from layers of the teacher"),
        ({"fit": ", init: teacher"}, "takes weights of the teacher"),
        ({"fit": ", mixup: 0.2"}, "runs the teacher on mixed examples"),
        ({"fit": "}}\nteacher: {student: {table_mlp: {width: 8}"}, "replaces the teacher that was given"),
        ({"objectives": "pgd_accuracy, bytes"}, "attacks the teacher through its layers"),
    ],
)
def test_what_needs_layers_of_the_teacher_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    data = autocompress.Tabular(write(tmp_path, table()))
    with pytest.raises(SpecError, match=message) as error:
        autocompress.search(
            write_spec(tmp_path, **change), teacher=fit_classifier(table()), data=data, name="own", runs=tmp_path
        )
    assert "only its outputs are known" in str(error.value)


def test_arrays_need_a_search_space(tmp_path: Path) -> None:
    frame = table()
    x, y = frame[list(COLUMNS)].to_numpy(), np.unique(frame["target"], return_inverse=True)[1]
    with pytest.raises(UsageError, match="name a search space: students of the teacher LogisticRegression"):
        autocompress.search(teacher=LogisticRegression().fit(x, y), data=(x, y), name="own", runs=tmp_path)
