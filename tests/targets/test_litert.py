from importlib.util import find_spec

import numpy as np
import pytest
import torch

from autocompress.core.precisions import Precisions
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.onnx import export_float
from autocompress.targets import make_target
from autocompress.targets.litert import PROGRAM
from tests.export.nets import NETS

is_installed = bool(find_spec("ai_edge_litert") and find_spec("litert_torch"))
needs_litert = pytest.mark.skipif(not is_installed, reason="needs pip install 'autocompress[litert]'")
EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def test_it_computes_in_floating_point() -> None:
    assert make_target("litert", {}).precisions() == Precisions(((32, 32),), (32,))


@pytest.mark.skipif(is_installed, reason="litert is installed")
def test_the_extra_is_named_where_it_is_not_installed() -> None:
    with pytest.raises(UsageError, match=r"autocompress\[litert\]"):
        make_target("litert", {}).describe()


@needs_litert
@pytest.mark.slow
def test_it_computes_what_onnxruntime_does() -> None:
    torch.manual_seed(0)
    content = export_float(NETS["residual"]().eval(), EXAMPLE, {"y": 10}).SerializeToString()
    inputs = [np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)]
    target = make_target("litert", {})
    assert set(target.convert(content)) == {PROGRAM}
    (values,) = target.load(content)(inputs)
    (expected,) = make_target("onnxruntime", {}).load(content)(inputs)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@needs_litert
@pytest.mark.slow
def test_a_model_without_a_translation_is_refused() -> None:
    content = export_float(NETS["rows"]().eval(), EXAMPLE, {"label": 10, "even": 2}).SerializeToString()
    with pytest.raises(ArtifactError, match="not translated"):
        make_target("litert", {}).load(content)
