import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.method import Context, LayerBits, MethodState
from autocompress.core.registry import QUANTIZE
from autocompress.errors import CompressionError, KnobError
from autocompress.quantize.adaround import AdaRound, AdaRoundConfig
from autocompress.quantize.post_training import PostTraining, PostTrainingConfig
from tests.quantize.nets import Plain, accuracy, digits
from tests.quantize.tuning import Digits, context, mean_and_error, train_model

METHOD = AdaRound()
SEEDS = range(5)


@pytest.fixture(scope="module")
def data() -> Digits:
    return digits()


@pytest.fixture(scope="module")
def models(data: Digits) -> list[nn.Module]:
    return [train_model(Plain, data, seed) for seed in SEEDS]


def config(**settings: Any) -> AdaRoundConfig:
    return AdaRoundConfig(**{"weight_bits": 3, "activation_bits": 32, "iterations": 100} | settings)


def test_it_is_registered_with_its_knobs() -> None:
    assert isinstance(QUANTIZE.get("adaround"), AdaRound)
    with pytest.raises(KnobError, match=r"quantize\.adaround\.iterations"):
        AdaRoundConfig.of({"iterations": 0})
    assert METHOD.is_identity(config(weight_bits=32))
    assert not METHOD.is_identity(config())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_scheme": "asymmetric"}, {"granularity": "per_tensor"}, {"granularity": "per_group", "group_size": 8}],
)
def test_the_error_of_every_layer_falls(models: list[nn.Module], data: Digits, settings: dict[str, Any]) -> None:
    _, state = METHOD.apply(models[0], config(**settings), context(data))
    layers = state.report["adaround"]
    assert list(layers) == list(state.bits)
    assert all(row["learned"] < row["nearest"] and row["flipped"] > 0 for row in layers.values())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(4, 32), (3, 8), (32, 4)])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_what_is_deployed_has_the_form_of_post_training(
    models: list[nn.Module], data: Digits, bits: tuple[int, int], granularity: str
) -> None:
    shared: dict[str, Any] = {
        "weight_bits": bits[0],
        "activation_bits": bits[1],
        "granularity": granularity,
        "weight_observer": "mse",
    }
    shared |= {"observer": "mse"}
    calibration = context(data)
    out, state = METHOD.apply(models[0], config(iterations=20, **shared), calibration)
    _, plain = PostTraining().apply(models[0], PostTrainingConfig(**shared), calibration)
    assert state.bits == plain.bits == dict.fromkeys(state.bits, LayerBits(*bits))
    assert state.tensors.keys() == plain.tensors.keys()
    for name, tensor in state.tensors.items():
        assert (tensor.dtype, tensor.shape) == (plain.tensors[name].dtype, plain.tensors[name].shape)
        if name.endswith("codes"):
            # Up or down: never further than one step from the nearest.
            assert int((tensor.int() - plain.tensors[name].int()).abs().max()) <= 1
        else:
            assert torch.equal(tensor, plain.tensors[name])
    history = json.loads(json.dumps(dict(state.history)))
    fresh = METHOD.restore(Plain(), config(**shared), MethodState(history, state.tensors))
    fresh.load_state_dict(out.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(data[2]), out(data[2]))


@pytest.mark.slow
def test_the_model_stays_and_no_hook_is_left(models: list[nn.Module], data: Digits) -> None:
    before = copy.deepcopy(models[0].state_dict())
    out, _ = METHOD.apply(models[0], config(iterations=5), context(data))
    assert all(torch.equal(tensor, before[name]) for name, tensor in models[0].state_dict().items())
    assert not any(module._forward_pre_hooks for module in out.modules())


def test_a_layer_called_twice_and_rows_of_keyword_inputs_are_learned() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(input=self.a(self.a(x).relu()))
            return out

    torch.manual_seed(0)
    model, values = Twice().eval(), torch.randn(30, 4)
    out, state = METHOD.apply(model, config(activation_bits=8), Context((values[:1],), ((values,),)))
    assert set(state.report["adaround"]) == {"a", "b"}
    assert bool(out(values).isfinite().all())


def test_weights_cannot_be_learned_without_calibration(models: list[nn.Module], data: Digits) -> None:
    with pytest.raises(CompressionError, match="adaptive rounding needs calibration batches"):
        METHOD.apply(models[0], config(), Context((data[0][:1],)))


# With 4 bits rounding to the nearest loses next to nothing that could be gained back.
@pytest.mark.slow
@pytest.mark.parametrize(("bits", "least"), [(3, 0.0), (4, -0.005)])
def test_it_beats_rounding_to_the_nearest(
    models: list[nn.Module], data: Digits, bits: int, least: float, record_property: Callable[[str, object], None]
) -> None:
    def gains(measure: Callable[[nn.Module, nn.Module], float]) -> list[float]:
        return [measure(*pair) for pair in pairs]

    pairs = []
    for model in models:
        plain, _ = PostTraining().apply(model, PostTrainingConfig(weight_bits=bits, activation_bits=32), context(data))
        adaptive, _ = METHOD.apply(model, config(weight_bits=bits), context(data))
        pairs.append((adaptive, plain))
    difference = gains(lambda a, b: accuracy(a, data[2], data[3]) - accuracy(b, data[2], data[3]))
    record_property("accuracy gain, mean and standard error", mean_and_error(difference))
    assert mean_and_error(difference)[0] > least
    with torch.no_grad():
        for model, (adaptive, plain) in zip(models, pairs, strict=True):
            exact = model(data[2])
            assert (adaptive(data[2]) - exact).square().mean() < (plain(data[2]) - exact).square().mean()
