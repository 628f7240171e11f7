from importlib.util import find_spec

import numpy as np
import pytest
import torch

from autocompress.core.method import Context
from autocompress.core.precisions import Precisions
from autocompress.core.registry import QUANTIZE
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.onnx import export_float, trace_quantized
from autocompress.models import CNN, CNNConfig
from autocompress.targets import make_target
from autocompress.targets.calibration import ChainLayer, ChainSettings, _build_chain
from autocompress.targets.executorch import PROGRAM
from tests.export.nets import NETS

needs_executorch = pytest.mark.skipif(
    not find_spec("executorch"), reason="needs pip install 'autocompress[executorch]'"
)
EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def test_it_computes_integers_with_signed_weights() -> None:
    assert make_target("executorch", {}).precisions() == Precisions(((8, 8), (32, 32)), (8, 32), weight_type="int8")


@pytest.mark.skipif(bool(find_spec("executorch")), reason="executorch is installed")
def test_the_extra_is_named_where_it_is_not_installed() -> None:
    with pytest.raises(UsageError, match=r"autocompress\[executorch\]"):
        make_target("executorch", {}).describe()


@needs_executorch
@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "separable"])
def test_it_computes_what_onnxruntime_does(name: str) -> None:
    torch.manual_seed(0)
    content = export_float(NETS[name]().eval(), EXAMPLE, {"y": 10}).SerializeToString()
    target, inputs = (
        make_target("executorch", {}),
        [np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)],
    )
    files = target.convert(content)
    assert set(files) == {PROGRAM}
    memory = target.plan_memory(files)
    assert memory is not None
    assert memory > 0
    (values,) = target.load(content)(inputs)
    (expected,) = make_target("onnxruntime", {}).load(content)(inputs)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@needs_executorch
@pytest.mark.slow
def test_integer_layers_run_on_the_kernels_of_xnnpack() -> None:
    layers = (ChainLayer("conv", 8, 3), ChainLayer("depthwise", 8, 3), ChainLayer("pointwise", 8, 1))
    chain = ChainSettings(3, 8, 2, layers, (16,))
    x = [np.random.default_rng(0).uniform(0, 5, (1, 3, 8, 8)).astype(np.float32)]
    for integer in (range(chain.depth), range(1, 3)):
        content = _build_chain(chain, integer)
        (values,) = make_target("executorch", {}).load(content)(x)
        (expected,) = make_target("onnxruntime", {}).load(content)(x)
        # One step of the output.
        np.testing.assert_allclose(values, expected, atol=0.05 + 1e-6)


@needs_executorch
@pytest.mark.slow
def test_a_rounded_tensor_that_a_sum_and_a_layer_read_is_converted() -> None:
    torch.manual_seed(0)
    model = CNN(CNNConfig(width=4, depth=1, stages=2, block="residual"), 1, {"y": 10}).eval()
    x = torch.rand(16, 1, 8, 8)
    method = QUANTIZE.get("post_training")
    quantized, state = method.apply(model, method.config.of({"weight_bits": 8}), Context((x[:1],), ((x,),)))
    content = trace_quantized(quantized, state, EXAMPLE, {"y": 10}, signed=True).build().SerializeToString()
    (values,) = make_target("executorch", {}).load(content)([x.numpy()])
    (expected,) = make_target("onnxruntime", {}).load(content)([x.numpy()])
    assert (values.argmax(-1) == expected.argmax(-1)).all()


@needs_executorch
@pytest.mark.slow
def test_a_model_without_a_translation_is_refused() -> None:
    content = export_float(NETS["rows"]().eval(), EXAMPLE, {"label": 10, "even": 2}).SerializeToString()
    with pytest.raises(ArtifactError, match="not translated"):
        make_target("executorch", {}).load(content)
