from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.core.precisions import Precisions
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.onnx import export_float
from autocompress.targets import make_target
from autocompress.targets.ncnn import LAYERS, WEIGHTS, _check_layers
from tests.export.nets import NETS

needs_ncnn = pytest.mark.skipif(
    not (find_spec("ncnn") and find_spec("pnnx")), reason="needs pip install 'autocompress[ncnn]'"
)
EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def test_it_computes_in_floating_point_only() -> None:
    assert make_target("ncnn", {}).precisions() == Precisions(((32, 32),), (32,))


@pytest.mark.skipif(bool(find_spec("ncnn")), reason="ncnn is installed")
def test_the_extra_is_named_where_it_is_not_installed() -> None:
    with pytest.raises(UsageError, match=r"autocompress\[ncnn\]"):
        make_target("ncnn", {}).describe()


def test_an_operator_without_a_layer_is_named() -> None:
    text = "7767517\n2 2\nInput in0 0 1 in0\naten::erfinv erfinv_0 1 1 in0 out0\n"
    with pytest.raises(ArtifactError, match=r"no layer for the operator aten::erfinv \('erfinv_0'\)"):
        _check_layers(text)


@needs_ncnn
@pytest.mark.slow
def test_it_computes_what_onnxruntime_does() -> None:
    torch.manual_seed(0)
    content = export_float(NETS["separable"]().eval(), EXAMPLE, {"y": 10}).SerializeToString()
    target, inputs = make_target("ncnn", {}), [np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)]
    assert set(target.convert(content)) == {LAYERS, WEIGHTS}
    (values,) = target.load(content)(inputs)
    (expected,) = make_target("onnxruntime", {}).load(content)(inputs)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@needs_ncnn
@pytest.mark.slow
def test_a_model_that_it_computes_wrongly_is_refused() -> None:
    # pnnx takes the circular padding and the rows for something else.
    model = NETS["rows"]().eval()
    content = export_float(model, EXAMPLE, {"label": 10, "even": 2}).SerializeToString()
    with pytest.raises(ArtifactError, match="computes another output"):
        make_target("ncnn", {}).load(content)
    table = export_float(nn.Embedding(20, 6), (torch.zeros(1, dtype=torch.int64),), {"y": 6}).SerializeToString()
    with pytest.raises(ArtifactError, match=r"it lacks Gather \("):
        make_target("ncnn", {}).load(table)
    with pytest.raises(ArtifactError, match="damaged"):
        make_target("ncnn", {}).load(content[:50])
