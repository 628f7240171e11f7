"""What quantization-aware training promises, whichever way it finds its grids."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from autocompress.core.method import LayerBits, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError, KnobError
from autocompress.export.onnx import export_quantized
from autocompress.quantize.folding import FoldedBatchNorm
from autocompress.quantize.lsq import LSQ, LSQConfig, LSQRounding
from autocompress.quantize.qat import QAT, QATConfig, QATRounding
from autocompress.quantize.quantization_aware import QuantizationAwareSettings, WeightParametrization
from autocompress.quantize.weight_coding import WeightCoding
from autocompress.targets.onnx_session import create_session
from tests.quantize.nets import Plain, digits
from tests.quantize.tuning import Digits, context, train_model

METHODS: list[Any] = [pytest.param(QAT(), QATConfig, id="qat"), pytest.param(LSQ(), LSQConfig, id="lsq")]
SHORT = {"epochs": 1, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def data() -> Digits:
    return digits()


@pytest.fixture(scope="module")
def trained(data: Digits) -> nn.Module:
    return train_model(Plain, data, seed=0)


@pytest.mark.parametrize(("method", "config"), METHODS)
class TestEveryMethod:
    def test_it_is_registered(self, method: Any, config: type[QuantizationAwareSettings]) -> None:
        assert isinstance(QUANTIZE.get(method.name), type(method))
        with pytest.raises(KnobError, match=f"quantize.{method.name}.epochs"):
            config.of({"epochs": 0})

    @pytest.mark.slow
    def test_a_context_that_cannot_train_is_refused(
        self, method: Any, config: type[QuantizationAwareSettings], trained: nn.Module, data: Digits
    ) -> None:
        with pytest.raises(CompressionError, match=f"{method.name} trains the model"):
            method.apply(trained, config(), replace(context(data), fine_tune=None))

    def test_32_bits_train_nothing(
        self, method: Any, config: type[QuantizationAwareSettings], trained: nn.Module, data: Digits
    ) -> None:
        nothing = config(weight_bits=32, activation_bits=32)
        out, state = method.apply(trained, nothing, replace(context(data), fine_tune=None))
        assert method.is_identity(nothing)
        assert not method.is_identity(config(activation_bits=32))
        with torch.no_grad():
            torch.testing.assert_close(out(data[2]), trained(data[2]), rtol=1e-4, atol=1e-4)
        assert set(state.bits.values()) == {LayerBits(32, 32)}

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [(2, 8), (4, 32), (32, 3)])
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
    def test_the_deployed_model_rounds_as_the_trained_one_did(
        self,
        method: Any,
        config: type[QuantizationAwareSettings],
        bits: tuple[int, int],
        granularity: str,
        trained: nn.Module,
        data: Digits,
    ) -> None:
        values = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 3
        weights, inputs, logits = {}, {}, []

        @torch.no_grad()
        def look(model: nn.Module) -> None:
            for name, layer in model.named_modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    weights[name] = layer.weight.detach().clone()
                    inputs[name] = layer.input_quantizer(values) if hasattr(layer, "input_quantizer") else None
            logits.append(model(data[2]))

        settings = config(weight_bits=bits[0], activation_bits=bits[1], granularity=granularity, group_size=8, **SHORT)
        out, state = method.apply(trained, settings, context(data, look))
        assert weights.keys() == state.bits.keys()
        for name, weight in weights.items():
            deployed = out.get_submodule(name)
            assert torch.equal(weight, deployed.weight)
            assert not parametrize.is_parametrized(deployed)
            if bits[1] < 32:
                assert torch.equal(inputs[name], deployed.input_quantizer(values))
        before = logits[0]
        with torch.no_grad():
            after = out(data[2])
        # Only biases, on the grid of the products, and the 8-bit output before the average were added.
        torch.testing.assert_close(before, after, rtol=0, atol=0.03 * float(before.abs().max()))
        assert float((before.argmax(1) == after.argmax(1)).float().mean()) > 0.985

    def test_the_same_seed_gives_the_same_model(
        self, method: Any, config: type[QuantizationAwareSettings], data: Digits
    ) -> None:
        model = train_model(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)), data, 0, epochs=1)
        before = copy.deepcopy(model.state_dict())
        results = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            stream = torch.random.get_rng_state()
            out, state = method.apply(model, config(**SHORT), context(data))
            assert torch.equal(stream, torch.random.get_rng_state())
            results.append((out.state_dict(), state))
        (one, first), (other, second) = results
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert first.history == second.history
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.slow
    def test_what_was_pruned_stays_pruned(
        self, method: Any, config: type[QuantizationAwareSettings], trained: nn.Module, data: Digits
    ) -> None:
        pruned = copy.deepcopy(trained)
        gone = {}
        with torch.no_grad():
            for name in ("convs.1", "convs.2"):
                weight = pruned.get_submodule(name).weight
                gone[name] = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
                gone[name][0] = True
                weight[gone[name]] = 0
        out, state = method.apply(pruned, config(weight_bits=4, **SHORT), context(data))
        for name, zero in gone.items():
            assert not out.get_submodule(name).weight[zero].any()
            assert not state.tensors[f"{name}.weight_codes"][zero].any()

    @pytest.mark.slow
    def test_restore_and_onnx_need_nothing_else(
        self, method: Any, config: type[QuantizationAwareSettings], trained: nn.Module, data: Digits
    ) -> None:
        settings = config(weight_bits=4, activation_bits=8, **SHORT)
        out, state = method.apply(trained, settings, context(data))
        history = json.loads(json.dumps(dict(state.history)))
        restored = method.restore(Plain(), settings, MethodState(history, state.tensors, state.bits))
        restored.load_state_dict(out.state_dict())
        with torch.no_grad():
            logits = out(data[2])
            assert torch.equal(restored(data[2]), logits)
        proto = export_quantized(out, state, (data[0][:1],), {"label": 10})
        running = create_session(proto.SerializeToString())
        (logits_of_graph,) = running.run(None, {running.get_inputs()[0].name: data[2].numpy()})
        assert {node.op_type for node in proto.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
        assert float((torch.from_numpy(logits_of_graph).argmax(1) == logits.argmax(1)).float().mean()) >= 0.99

    def test_training_that_ends_in_nan_is_refused_by_name(
        self, method: Any, config: type[QuantizationAwareSettings], trained: nn.Module, data: Digits
    ) -> None:
        def spoil(model: nn.Module, *_: object) -> None:
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)

        with pytest.raises(CompressionError, match="trained"):
            method.apply(trained, config(**SHORT), replace(context(data), fine_tune=spoil))

    @pytest.mark.slow
    def test_batch_norms_are_folded_before_training(
        self, method: Any, config: type[QuantizationAwareSettings], trained: nn.Module, data: Digits
    ) -> None:
        kinds: set[type] = set()
        method.apply(trained, config(**SHORT), context(data, lambda m: kinds.update(type(x) for x in m.modules())))
        assert FoldedBatchNorm in kinds
        assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize("factory", [QATRounding(), LSQRounding()], ids=["qat", "lsq"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_codes_stand_for_the_weight_that_is_trained(factory: Any, granularity: str) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    module = WeightParametrization(weight, WeightCoding(3, granularity=granularity, group_size=8), factory)
    quantized = module.encode(weight)
    assert torch.equal(quantized.dequantize(), module(weight))
    assert quantized.codes.dtype == torch.int8
    assert int(quantized.codes.min()) >= -4
    assert int(quantized.codes.max()) <= 3
