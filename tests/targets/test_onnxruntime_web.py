import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.errors import ArtifactError, UsageError
from autocompress.targets import make_target
from autocompress.targets.base import make_inputs

NAME = "onnxruntime-web"
#: A folder where `npm install onnxruntime-web` was run.
FOLDER = os.environ.get("AUTOCOMPRESS_NODE_FOLDER", ".")
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (Path(FOLDER) / "node_modules" / NAME).is_dir(),
    reason="needs node, and npm install onnxruntime-web in AUTOCOMPRESS_NODE_FOLDER",
)


def install(folder: Path) -> str:
    """Make a folder that looks as if the package were installed."""
    package = folder / "node_modules" / NAME
    package.mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": "1.2.3"}))
    return str(folder)


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run `npm install onnxruntime-web` there, or name the folder"):
        make_target(NAME, {"folder": str(tmp_path), "node": sys.executable}).describe()
    with pytest.raises(UsageError, match="there is no program 'no-such-node'"):
        make_target(NAME, {"node": "no-such-node"}).describe()
    with pytest.raises(UsageError, match="must be texts"):
        make_target(NAME, {"folder": 3})


def test_its_description_has_the_version_and_widths_that_are_exact_in_every_browser(tmp_path: Path) -> None:
    info = make_target(NAME, {"folder": install(tmp_path), "node": sys.executable}).describe()
    assert (info.version, info.precisions.weight_type, info.precisions.reduce_range) == ("1.2.3", "int8", True)
    assert make_target(NAME, info.options).describe() == info


def test_a_process_that_ends_early_is_an_error(tmp_path: Path) -> None:
    # Python takes the place of node, and cannot run the script.
    target = make_target(NAME, {"folder": install(tmp_path), "node": sys.executable})
    with pytest.raises(ArtifactError, match="node ended"):
        target.load(b"model")


@needs_node
@pytest.mark.slow
def test_it_computes_what_onnxruntime_does_and_measures_itself() -> None:
    from autocompress.export.onnx import export_float

    layer = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    content = export_float(layer, (torch.ones(1, 3),), {"y": 2}).SerializeToString()
    inputs = [np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)]
    target = make_target(NAME, {"folder": FOLDER})
    model = target.load(content)
    (first,) = model(inputs)
    np.testing.assert_allclose(first, make_target("onnxruntime", {}).load(content)(inputs)[0], rtol=1e-5, atol=1e-6)
    # A process serves many runs.
    (second,) = model([inputs[0] * 2])
    assert not np.array_equal(first, second)
    assert [array.shape for array in make_inputs(content)] == [(1, 3)]
    milliseconds = target.measure(content, 0.01)
    assert milliseconds is not None
    assert milliseconds > 0
    with pytest.raises(ArtifactError, match="onnxruntime-web cannot run the model"):
        target.load(b"nonsense")
