"""Teachers that are no torch modules: fitted estimators and ONNX files, through their outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

import autocompress
from autocompress.core.config import Part
from autocompress.core.heads import Binary
from autocompress.core.registry import TASKS
from autocompress.core.task import Split
from autocompress.errors import TrialError, UsageError
from autocompress.models.output_teacher import OutputTeacher
from autocompress.tasks.output_sources import OnnxSource
from autocompress.tasks.tabular import Tabular
from autocompress.tasks.tensors import Tensors
from autocompress.training.fit import predict

N, COLUMNS = 300, ("a", "b", "c")
NAMES = ("high", "low", "mid")


def table(**columns: Any) -> pd.DataFrame:
    """Return a table of three numbers and a target of three classes: the largest number decides."""
    values = np.random.default_rng(0).normal(size=(N, 3))
    target = np.array(NAMES)[values.argmax(1)]
    return pd.DataFrame({**dict(zip(COLUMNS, values.T, strict=True)), "target": target, **columns})


def write(folder: Path, frame: pd.DataFrame) -> Path:
    path = folder / "table.csv"
    frame.to_csv(path, index=False)
    return path


def write_onnx(
    path: Path,
    weight: np.ndarray[Any, Any],
    *,
    softmax: bool = False,
    columns: Sequence[str] = (),
    batch: int | None = None,
    with_labels: bool = False,
) -> Path:
    """Write a linear model ``[N, F] -> [N, C]``, with an input for each column if they are named."""
    entries = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in columns]
    entries = entries or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, weight.shape[0]])]
    nodes = [helper.make_node("Concat", list(columns), ["x"], axis=1)] if columns else []
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["scores" if softmax else "y"]))
    nodes += [helper.make_node("Softmax", ["scores"], ["y"], axis=1)] if softmax else []
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, weight.shape[1]])]
    if with_labels:
        nodes.append(helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [batch]))
    graph = helper.make_graph(
        nodes, "linear", entries, outputs, [numpy_helper.from_array(weight.astype(np.float32), "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def outputs_of(task: Any, split: Split) -> torch.Tensor:
    return predict(task.build(Part("from_teacher")), task, split)["target" if "target" in task.heads else "label"]


class TestEstimators:
    def test_logits_are_logarithms_of_its_probabilities_in_the_order_of_the_data(self, tmp_path: Path) -> None:
        frame = table()
        # Integer codes in an order that is not alphabetical: names of classes_ decide.
        estimator = LogisticRegression().fit(frame[["c", "a"]], frame["target"])
        task = autocompress.bring_model(estimator, Tabular(write(tmp_path, frame), exclude="b"))
        split = task.splits(0).train
        rows = frame.iloc[split.keys.rows.tolist()]
        expected = np.log(estimator.predict_proba(rows[["c", "a"]]))
        np.testing.assert_allclose(outputs_of(task, split).numpy(), np.maximum(expected, np.log(1e-6)), atol=1e-5)
        assert task.teacher()[1].values == {"epochs": 0}
        assert isinstance(task.build(Part("from_teacher")), OutputTeacher)

    def test_a_pipeline_reads_texts_and_columns_that_students_do_not(self, tmp_path: Path) -> None:
        frame = table(name=[f"n{row}" for row in range(N)], city=np.where(np.arange(N) % 2, "x", "y"))
        encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["city", "name"]), remainder="drop")
        estimator = make_pipeline(encode, LogisticRegression()).fit(frame.drop(columns="target"), frame["target"])
        task = autocompress.bring_model(estimator, Tabular(write(tmp_path, frame)))
        split = task.splits(0).select_val
        expected = estimator.predict_proba(frame.iloc[split.keys.rows.tolist()])
        np.testing.assert_allclose(outputs_of(task, split).softmax(1).numpy(), expected, atol=1e-4)

    def test_class_names_in_another_order_are_matched(self, tmp_path: Path) -> None:
        frame = table()

        class Reordered:
            classes_ = ("mid", "high", "low")

            def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
                index = [self.classes_.index(name) for name in frame["target"]]
                return np.eye(3)[index]

        task = autocompress.bring_model(Reordered(), Tabular(write(tmp_path, frame)))
        train = task.splits(0).train
        assert torch.equal(outputs_of(task, train).argmax(1), train.targets["target"])

    def test_numbers_are_predicted_by_regressors(self, tmp_path: Path) -> None:
        frame = table()
        frame["target"] = frame["a"] * 3 + 1
        estimator = HistGradientBoostingRegressor(max_iter=5).fit(frame[list(COLUMNS)], frame["target"])
        task = autocompress.bring_model(estimator, Tabular(write(tmp_path, frame)))
        split = task.splits(0).test
        expected = estimator.predict(frame.iloc[split.keys.rows.tolist()][list(COLUMNS)])
        assert outputs_of(task, split).shape == (len(split), 1)
        np.testing.assert_allclose(outputs_of(task, split)[:, 0].numpy(), expected, rtol=1e-5)

    def test_arrays_in_memory(self) -> None:
        x, y = np.random.default_rng(0).normal(size=(200, 2, 3)).astype("f4"), np.arange(200) % 2
        estimator = LogisticRegression().fit(x.reshape(200, 6), y)
        task = autocompress.bring_model(estimator, (x, y))
        split = task.splits(0).train
        expected = estimator.predict_proba(split.inputs[0].reshape(len(split), 6).numpy())
        np.testing.assert_allclose(outputs_of(task, split).softmax(1).numpy(), expected, atol=1e-4)
        number = autocompress.bring_model(LinearRegression().fit(x.reshape(200, 6), y), (x, y))
        assert number.heads["label"].kind == "regression"

    def test_a_head_with_one_logit(self) -> None:
        x = np.random.default_rng(0).normal(size=(200, 3)).astype("f4")
        y = (x[:, 0] > 0).astype(int)
        estimator = LogisticRegression().fit(x, y)
        task = autocompress.bring_model(estimator, Tensors((x, y), kinds=Binary()))
        train = task.splits(0).train
        np.testing.assert_allclose(
            outputs_of(task, train)[:, 0].numpy(),
            estimator.decision_function(train.inputs[0].numpy()).clip(np.log(1e-6), -np.log(1e-6)),
            atol=1e-3,
        )

    def test_the_task_and_its_outputs_reach_another_process(self, tmp_path: Path) -> None:
        frame = table()
        estimator = LogisticRegression().fit(frame[list(COLUMNS)], frame["target"])
        task = autocompress.bring_model(estimator, Tabular(write(tmp_path, frame)))
        copied = cloudpickle.loads(cloudpickle.dumps(task))
        assert copied.identity_options == task.identity_options
        assert torch.equal(outputs_of(copied, task.splits(0).train), outputs_of(task, task.splits(0).train))


class TestOnnxFiles:
    @pytest.mark.parametrize("columns", [(), COLUMNS])
    @pytest.mark.parametrize("softmax", [False, True])
    def test_a_table_of_numbers(self, tmp_path: Path, columns: Sequence[str], softmax: bool) -> None:
        weight, frame = np.eye(3) * 8, table()
        file = write_onnx(tmp_path / "m.onnx", weight, softmax=softmax, columns=columns, with_labels=True)
        task = Tabular(write(tmp_path, frame), teacher=file)
        split = task.splits(3).search_val
        scores = torch.from_numpy(frame[list(COLUMNS)].to_numpy()[split.keys.rows] @ weight).float()
        expected = scores.softmax(1).clamp_min(1e-6).log() if softmax else scores
        torch.testing.assert_close(outputs_of(task, split), expected, atol=1e-3, rtol=1e-3)
        assert task.build(Part("from_teacher")).file_bytes == file.stat().st_size
        assert set(task.identity_options) == {"teacher_content"}

    def test_images_with_a_fixed_batch(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(101, 4)).astype("f4")
        weight = np.random.default_rng(1).normal(size=(4, 2))
        y = (x @ weight).argmax(1)
        file = write_onnx(tmp_path / "m.onnx", weight, batch=16)
        task = autocompress.bring_model(file, (x, y))
        train = task.splits(0).train
        torch.testing.assert_close(outputs_of(task, train), train.inputs[0] @ torch.from_numpy(weight).float())

    def test_one_output_for_two_classes(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(100, 4)).astype("f4")
        weight = np.ones((4, 1))
        y = (x.sum(1) > 0).astype(int)
        task = autocompress.bring_model(write_onnx(tmp_path / "m.onnx", weight), Tensors((x, y), kinds="classes"))
        train = task.splits(0).train
        logits = outputs_of(task, train)
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], train.inputs[0].sum(1))
        number = autocompress.bring_model(tmp_path / "m.onnx", (x, x.sum(1)))
        assert number.heads["label"].kind == "regression"

    def test_a_few_logits_that_look_like_probabilities_stay_logits(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(100, 1)).astype("f4")
        y = (x[:, 0] > 0).astype(int)
        task = autocompress.bring_model(write_onnx(tmp_path / "m.onnx", np.ones((1, 1))), Tensors((x, y)))
        few = Split((torch.tensor([[0.25], [0.5]]),), {"label": torch.tensor([1, 1])})
        assert outputs_of(task, few).tolist() == [[0.0, 0.25], [0.0, 0.5]]

    def test_another_file_is_another_teacher(self, tmp_path: Path) -> None:
        path = write(tmp_path, table())
        one = Tabular(path, teacher=write_onnx(tmp_path / "m.onnx", np.eye(3)))
        options = {"path": path, "teacher": write_onnx(tmp_path / "m.onnx", np.eye(3) * 4)}
        with pytest.raises(UsageError, match=r"m\.onnx differ from those that this run was started with"):
            TASKS.get("tabular")(**options, **one.identity_options)

    def test_it_opens_again_in_another_process(self, tmp_path: Path) -> None:
        source = OnnxSource(write_onnx(tmp_path / "m.onnx", np.eye(3)))
        copied = cloudpickle.loads(cloudpickle.dumps(source))
        x = np.arange(6, dtype="f4").reshape(2, 3)
        np.testing.assert_array_equal(copied.compute_inputs([x], ())[0], x)


class TestRefusals:
    def bring(self, tmp_path: Path, teacher: object, frame: pd.DataFrame | None = None) -> None:
        autocompress.bring_model(teacher, Tabular(write(tmp_path, table() if frame is None else frame)))

    def fit(self, frame: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> LogisticRegression:
        return LogisticRegression().fit(frame[list(columns)], frame["target"])

    def test_another_number_of_classes(self, tmp_path: Path) -> None:
        frame = table()
        frame.loc[frame["target"] == "mid", "target"] = "low"
        with pytest.raises(UsageError, match="has 2 classes, and 'target' has 3: it lacks 'mid'; fit it on the same"):
            self.bring(tmp_path, self.fit(frame))
        with pytest.raises(UsageError, match=r"returns 2 numbers.*'target' has 3 classes \(high, low, mid\)"):
            self.bring(tmp_path, write_onnx(tmp_path / "m.onnx", np.ones((3, 2))))

    def test_other_names_of_classes(self, tmp_path: Path) -> None:
        frame = table()
        frame["target"] = frame["target"].str.upper()
        with pytest.raises(UsageError, match="'HIGH' is no class of the data"):
            self.bring(tmp_path, self.fit(frame))

    def test_another_order_of_classes(self, tmp_path: Path) -> None:
        file = write_onnx(tmp_path / "m.onnx", np.eye(3)[:, [2, 1, 0]])
        message = r"classes in another order: as given, .* and 100% if output 0 is 'mid' instead of 'high'; give"
        with pytest.raises(UsageError, match=message):
            self.bring(tmp_path, file)

    def test_outputs_that_are_not_finite(self, tmp_path: Path) -> None:
        frame = table()
        frame.loc[7, "a"] = np.nan
        file = write_onnx(tmp_path / "m.onnx", np.eye(3))
        with pytest.raises(UsageError, match="returns a number that is not finite for example 7; a teacher needs"):
            self.bring(tmp_path, file, frame)

    def test_columns_that_do_not_fit(self, tmp_path: Path) -> None:
        frame = table(d=1.5)
        with pytest.raises(UsageError, match=r"LogisticRegression reads the column .d., which table\.csv lacks"):
            self.bring(tmp_path, self.fit(frame, ("a", "d")))
        estimator = LogisticRegression().fit(frame[["a", "b"]].to_numpy(), frame["target"])
        with pytest.raises(UsageError, match=r"takes 2 columns, and table\.csv has 3 besides the target \(a, b, c\)"):
            self.bring(tmp_path, estimator)

    def test_a_matrix_of_numbers_from_texts(self, tmp_path: Path) -> None:
        frame = table(c=np.where(np.arange(N) % 2, "x", "y"))
        file = write_onnx(tmp_path / "m.onnx", np.eye(3))
        with pytest.raises(UsageError, match="takes numbers, and the column 'c' has texts"):
            self.bring(tmp_path, file, frame)

    def test_a_teacher_of_the_other_kind(self, tmp_path: Path) -> None:
        frame = table()
        numbers = frame.assign(target=frame["a"])
        with pytest.raises(UsageError, match="predicts numbers, and the targets of 'target' are classes"):
            self.bring(tmp_path, LinearRegression().fit(numbers[list(COLUMNS)], numbers["target"]))
        with pytest.raises(UsageError, match="predicts classes, and the targets of 'target' are numbers"):
            self.bring(tmp_path, self.fit(frame), numbers)
        with pytest.raises(UsageError, match="LinearSVC is a classifier without predict_proba; wrap it"):
            self.bring(tmp_path, LinearSVC().fit(frame[list(COLUMNS)], frame["target"]))

    def test_an_estimator_that_fails(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="LogisticRegression fails in predict_proba on 300 examples: NotFitted"):
            self.bring(tmp_path, LogisticRegression())

    def test_no_pickled_file_is_opened(self, tmp_path: Path) -> None:
        (tmp_path / "m.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        with pytest.raises(UsageError, match="load a pickled one yourself and pass the object"):
            self.bring(tmp_path, tmp_path / "m.pkl")
        with pytest.raises(UsageError, match="there is no file"):
            self.bring(tmp_path, tmp_path / "no.onnx")
        (tmp_path / "m.onnx").write_bytes(b"nothing")
        with pytest.raises(UsageError, match=r"the teacher m\.onnx cannot be run"):
            self.bring(tmp_path, tmp_path / "m.onnx")

    def test_another_number_of_rows(self, tmp_path: Path) -> None:
        class Short:
            def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
                return np.full((len(rows) - 1, 3), 1 / 3)

        with pytest.raises(UsageError, match=r"Short returns \[299, 3\] in predict_proba for 300 examples"):
            self.bring(tmp_path, Short())

    def test_numbers_that_are_no_probabilities(self, tmp_path: Path) -> None:
        class Scores:
            def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
                return np.ones((len(rows), 3))

        with pytest.raises(UsageError, match="Scores returns numbers that are no probabilities of classes"):
            self.bring(tmp_path, Scores())

    def test_options_of_modules(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="ignore: a teacher that is no torch module has neither layers"):
            autocompress.bring_model(self.fit(table()), Tabular(write(tmp_path, table())), ignore=["a"])

    def test_several_heads(self) -> None:
        x, y = np.random.default_rng(0).normal(size=(100, 3)).astype("f4"), np.arange(100) % 2
        with pytest.raises(UsageError, match=r"serves one head, and the task has 2 \(one, two\)"):
            autocompress.bring_model(LogisticRegression().fit(x, y), (x, {"one": y, "two": y}))

    def test_rows_of_another_table(self, tmp_path: Path) -> None:
        frame = table()
        task = autocompress.bring_model(self.fit(frame), Tabular(write(tmp_path, frame)))
        train = task.splits(0).train
        with pytest.raises(TrialError, match="known for the rows of its table only"):
            outputs_of(task, Split(train.inputs, train.targets))
        with pytest.raises(TrialError, match="no torch module"):
            task.build(Part("from_teacher"))(*train.inputs)


def test_a_damaged_onnx_model_without_numbers(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)],
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"returns int64 \[2, 3\]; a teacher returns numbers for each example"):
        OnnxSource(tmp_path / "m.onnx").compute_inputs([np.ones((2, 3), np.float32)], ())
