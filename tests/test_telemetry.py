"""onnxruntime leaves no device id and no queue of events behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN_A_MODEL = """
from onnx import TensorProto, helper
from autocompress.targets.onnx_session import create_session
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
session = create_session(model.SerializeToString())
"""


@pytest.mark.slow
def test_no_file_of_telemetry_appears(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", RUN_A_MODEL], env=env, check=True)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(("value", "expected"), [(None, "1"), ("0", "0")])
def test_a_value_of_the_user_stays(value: str | None, expected: str) -> None:
    env = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    code = "import autocompress, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
