"""Small artifacts that are written in milliseconds: a linear model of four numbers, without torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autocompress.export.folder import write_files
from autocompress.export.pipeline import METADATA
from autocompress.runtime.models import Level, ServedModel, load_model

ROW: Mapping[str, Any] = {
    "tensor": "input",
    "kind": "row",
    "name": "features",
    "columns": ["a", "b", "c", "d"],
    "mean": [0.0] * 4,
    "std": [1.0] * 4,
}
CLASSES: Mapping[str, Any] = {"head": "label", "kind": "classes", "classes": ["x", "y", "z"]}


def describe_origin(
    candidate: str, score: float, run: str = "rows", fingerprint: str = "0123456789ab"
) -> dict[str, Any]:
    return {
        "run": run,
        "fingerprint": fingerprint,
        "candidate": candidate,
        "metric": "accuracy",
        "scores": {"accuracy": {"value": score, "direction": "maximize"}},
        "costs": {"effective_flops": 10.0},
    }


def write_model(
    folder: Path,
    origin: Mapping[str, Any] | None = None,
    weights: np.ndarray[Any, Any] | None = None,
    repeats: int = 0,
    **changes: object,
) -> Path:
    """Write an artifact that serves, and return its folder; ``repeats`` of a large product make it slow."""
    record = {"format": 1, "task": "rows", "inputs": [ROW], "outputs": [CLASSES], "session": {}, **changes}
    if origin is not None:
        record["origin"] = origin
    preprocess = json.dumps(record).encode()
    weights = np.eye(4, 3, dtype=np.float32) if weights is None else weights
    nodes = [helper.make_node("MatMul", ["input", "weights"], ["before_0"])]
    nodes += [helper.make_node("Softmax", [f"before_{at}"], [f"before_{at + 1}"]) for at in range(repeats)]
    nodes.append(helper.make_node("Identity", [f"before_{repeats}"], ["label"]))
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("label", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {METADATA: preprocess.decode()})
    onnx.checker.check_model(model)
    files = {"preprocess.json": preprocess, "model.onnx": model.SerializeToString()}
    write_files(folder, files, lambda written: None)
    return folder


def make_levels(folder: Path, scores: Sequence[float] = (0.8, 0.9)) -> tuple[Level, ...]:
    """Return levels ``m0``, ``m1`` of models whose class tells the level: model k adds k to the class of the input."""
    models: list[ServedModel] = []
    for at, score in enumerate(scores):
        weights = np.roll(np.eye(4, 3, dtype=np.float32)[:3], at, axis=1)
        weights = np.vstack([weights, np.zeros((1, 3), np.float32)])
        models.append(load_model(write_model(folder / f"m{at}", describe_origin(f"m{at}", score), weights)))
    return tuple(Level(model.name, model, score=model.score) for model in models)
