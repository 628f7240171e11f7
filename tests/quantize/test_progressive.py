import pytest
import torch

from autocompress.core.method import Context, LayerBits, MethodState
from autocompress.errors import CompressionError
from autocompress.models import CNN, CNNConfig
from autocompress.quantize import Progressive, ProgressiveConfig

METHOD = Progressive()
EXAMPLE = (torch.zeros(1, 1, 8, 8),)
NUDGE = 0.25


def net():
    torch.manual_seed(0)
    return CNN(CNNConfig(width=6, depth=1, stages=2, block="plain"), 1, {"label": 4}).eval()


class Judge:
    """Scores by the distinct values of a kernel's row, and trains by moving every weight a little."""

    def __init__(self, worth):
        self.worth, self.trained = worth, []

    def score(self, model):
        return self.worth(model.heads["label"].weight[0].unique().numel())

    def tune(self, model, epochs, learning_rate, after_step):
        self.trained.append((epochs, learning_rate))
        with torch.no_grad():
            head = model.heads["label"]
            original = head.parametrizations.weight.original if hasattr(head, "parametrizations") else head.weight
            original += NUDGE

    def context(self):
        inputs = (torch.randn(8, *EXAMPLE[0].shape[1:], generator=torch.Generator().manual_seed(1)),)
        return Context(EXAMPLE, (inputs,), fine_tune=self.tune, score=self.score)


def run(worth, **knobs):
    judge = Judge(worth)
    quantized, state = METHOD.apply(net(), ProgressiveConfig(**knobs), judge.context())
    return judge, quantized, state


@pytest.mark.parametrize(
    ("weight", "activation", "stages"),
    [
        (3, 4, [(8, 8), (6, 6), (4, 4), (3, 4)]),
        (8, 8, [(8, 8)]),
        (5, 8, [(8, 8), (6, 8), (5, 8)]),
        (32, 4, [(32, 8), (32, 6), (32, 4)]),
        (2, 32, [(8, 32), (6, 32), (4, 32), (3, 32), (2, 32)]),
        (32, 32, []),
    ],
)
def test_the_last_stage_has_the_requested_bits(weight, activation, stages):
    assert ProgressiveConfig(weight_bits=weight, activation_bits=activation).bit_stages() == stages


@pytest.mark.parametrize("training", ["qat", "lsq"])
def test_it_goes_down_to_the_last_rung_while_the_score_holds(training):
    judge, _, state = run(lambda values: 0.9, weight_bits=3, activation_bits=4, epochs=2, training=training)
    assert set(state.bits.values()) == {LayerBits(3, 4)}
    assert [row["weight_bits"] for row in state.report["path"]] == [32, 8, 6, 4, 3]
    assert judge.trained == [(2, 5e-3)] * 4


def test_the_rung_below_the_floor_is_undone():
    scores = iter([0.9, 0.9, 0.89, 0.9, 0.5])
    _, quantized, state = run(lambda values: next(scores), weight_bits=3, activation_bits=8)
    assert state.report["path"][-1] == {"weight_bits": 3, "activation_bits": 8, "score": 0.5, "kept": False}
    assert set(state.bits.values()) == {LayerBits(4, 8)}
    assert quantized.heads["label"].weight.unique().numel() > 8


@pytest.mark.parametrize("training", ["qat", "lsq"])
def test_a_stage_starts_from_the_floating_point_weights_of_the_stage_before(training):
    _, quantized, _ = run(lambda values: 0.9, weight_bits=6, activation_bits=32, training=training)
    expected = net().heads["label"].weight + 2 * NUDGE
    step = expected.abs().amax(1, keepdim=True) / 31
    weight = quantized.heads["label"].weight
    # Steps that are not trained clip what moved out of their reach.
    reached = torch.minimum(expected, weight.amax(1, keepdim=True))
    assert bool(((weight - reached).abs() <= 2 * step).all())
    assert bool((weight.amax(1) > net().heads["label"].weight.amax(1) + 0.5 * NUDGE).all())


def test_a_first_stage_below_the_limit_is_an_error_with_the_figures():
    scores = iter([1.0, 0.0])
    with pytest.raises(CompressionError, match=r"8/8 bits, lowers the score from 1\.0000 to 0\.0000"):
        run(lambda values: next(scores), weight_bits=4, activation_bits=8)


def test_the_result_is_rebuilt_from_its_history():
    _, quantized, state = run(lambda values: 0.9, weight_bits=4, activation_bits=4)
    saved = MethodState(state.history, state.tensors, state.bits)
    fresh = METHOD.restore(net(), ProgressiveConfig(), saved)
    fresh.load_state_dict(quantized.state_dict())
    x = torch.randn(3, *EXAMPLE[0].shape[1:])
    assert torch.equal(fresh.eval()(x), quantized(x))


def test_a_context_that_cannot_measure_is_refused():
    with pytest.raises(CompressionError, match="trains and measures in each stage"):
        METHOD.apply(net(), ProgressiveConfig(), Context(EXAMPLE))
