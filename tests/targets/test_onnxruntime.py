from functools import partial

import numpy as np
import pytest
import torch

from autocompress.errors import ArtifactError
from autocompress.export.onnx import export_float
from autocompress.targets import make_target
from autocompress.targets.base import BindableModel


def test_a_loaded_model_takes_arrays_in_the_order_of_its_inputs() -> None:
    class Difference(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return first - 2 * second

    example = (torch.ones(1, 2), torch.ones(1, 2))
    content = export_float(Difference().eval(), example, {"y": 2}).SerializeToString()
    model = make_target("onnxruntime", {}).load(content)
    (values,) = model([np.full((1, 2), 5, np.float32), np.full((1, 2), 2, np.float32)])
    np.testing.assert_array_equal(values, [[1, 1]])


def test_bound_inputs_give_the_same_outputs() -> None:
    example = torch.arange(6.0).reshape(1, 6)
    content = export_float(torch.nn.Linear(6, 2).eval(), (example,), {"y": 2}).SerializeToString()
    model = make_target("onnxruntime", {}).load(content)
    assert isinstance(model, BindableModel)
    run = model.bind([example.numpy()])
    run()
    assert isinstance(run, partial)
    (binding,) = run.args
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], model([example.numpy()])[0])


def test_a_damaged_model_is_an_error() -> None:
    for name in ("onnxruntime", "none"):
        with pytest.raises(ArtifactError):
            make_target(name, {}).load(b"nonsense")
