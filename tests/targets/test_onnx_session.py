import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.errors import ArtifactError
from autocompress.export.onnx import export_float
from autocompress.targets.onnx_session import WEIGHTS_ONLY, create_session, is_weights_only


@pytest.fixture
def proto() -> onnx.ModelProto:
    torch.manual_seed(0)
    return export_float(nn.Linear(3, 2).eval(), (torch.ones(1, 3),), {"y": 2})


def test_a_model_runs_on_the_threads_that_are_asked_for(proto: onnx.ModelProto) -> None:
    running = create_session(proto.SerializeToString(), threads=2)
    assert running.get_session_options().intra_op_num_threads == 2
    assert running.get_providers() == ["CPUExecutionProvider"]
    (found,) = running.run(None, {running.get_inputs()[0].name: np.zeros((4, 3), np.float32)})
    assert found.shape == (4, 2)


def test_only_what_is_marked_decodes_its_weights_on_loading(proto: onnx.ModelProto) -> None:
    assert not is_weights_only(proto.SerializeToString())
    onnx.helper.set_model_props(proto, {WEIGHTS_ONLY: "1"})
    marked = proto.SerializeToString()
    assert is_weights_only(marked)
    assert create_session(marked).get_session_options().get_session_config_entry("session.disable_quant_qdq") == "1"


def test_a_damaged_model_and_one_with_outside_tensors_are_refused(proto: onnx.ModelProto) -> None:
    for damaged in (b"", b"nonsense", proto.SerializeToString()[:-20]):
        with pytest.raises(ArtifactError, match=r"ONNX model is damaged|onnxruntime cannot load"):
            create_session(damaged)
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ArtifactError, match="in other files"):
        create_session(proto.SerializeToString())
