"""What every registered pruning and quantization method promises, whatever it does inside."""

import copy
import functools
import json
import warnings
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import nn

from autocompress.core.knobs import FloatRange, IntRange
from autocompress.core.method import Context, LayerBits, MethodState, Recovery
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.core.task import InputSpec
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from autocompress.errors import CompressionError
from autocompress.measure import Subject, layer_costs, measure
from autocompress.models import CNN, CNNConfig
from autocompress.models.tokens import TokenClassifier
from autocompress.models.transformer import TransformerConfig, TransformerFamily

METHODS = [pytest.param(PRUNE.get(name), id=f"prune.{name}") for name in PRUNE.names()]
METHODS += [pytest.param(QUANTIZE.get(name), id=f"quantize.{name}") for name in QUANTIZE.names()]
BLOCKS = ["plain", "residual", "separable", "inverted"]
# Methods for one kind of layers, and the model that has them; all others are run on each kind of block.
OWN_MODEL = {"heads": "transformer", "tokens": "transformer", "embedding_rank": "transformer"}
# The layer that widens a narrow table multiplies, which a look-up does not.
RAISED_COSTS = {"embedding_rank": {"flops", "bops", "effective_flops"}}


def list_blocks(method):
    own = OWN_MODEL.get(method.name)
    return [own] if own else BLOCKS


CASES = [
    pytest.param(param.values[0], block, id=f"{param.id}-{block}")
    for param in METHODS
    for block in list_blocks(param.values[0])
]
COSTS = ("flops", "bops", "effective_flops", "parameters", "nonzero_parameters", "bytes", "sparse_bytes")

# The settings that make a method do nothing, and those that make it do something, by knob.
NOTHING = {
    "pruning_ratio": 0.0,
    "n": 4,
    "m": 4,
    "weight_bits": 32,
    "activation_bits": 32,
    "average_bits": 32.0,
    "budget_bits": 32.0,
}
SOMETHING = {
    "pruning_ratio": 0.5,
    "steps": 2,
    "n": 2,
    "m": 4,
    "weight_bits": 4,
    "activation_bits": 8,
    "average_bits": 4.0,
    "budget_bits": 4.0,
    "floor": 1.0,
    "step": 0.25,
    # The promises are those of any number, and the default takes a second for each model.
    "iterations": 20,
}


def configure(method, values):
    settings = {name: value for name, value in values.items() if name in method.config.knobs()}
    assert settings, f"{method.name} has none of the knobs {sorted(values)}: say in this file what makes it do nothing"
    return method.config.of(settings)


def build(block="residual", seed=0):
    torch.manual_seed(seed)
    if block == "transformer":
        config = TransformerConfig(layers=2, attention_heads=4, head_size=6)
        return TransformerFamily().build(config, (TOKENS,), HEADS).eval()
    model = CNN(CNNConfig(width=8, depth=2, stages=2, block=block), 1, {"digit": 10, "parity": 2})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


def draw_inputs(block, count, generator):
    if block == "transformer":
        return torch.randint(1, TOKENS.vocabulary, (count, *TOKENS.shape), generator=generator)
    return torch.randn(count, 1, 8, 8, generator=generator)


def context(seed=0, block="residual"):
    generator = torch.Generator().manual_seed(9)
    batches = tuple((draw_inputs(block, 8, generator),) for _ in range(2))
    targets = tuple(
        {head: torch.randint(0, classes, (8,), generator=generator) for head, classes in HEADS.items()} for _ in batches
    )

    def loss(output, wanted):
        return sum(nn.functional.cross_entropy(output[head], wanted[head]) for head in HEADS)

    def tune(model, epochs, learning_rate, after_step):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=learning_rate)
        for _ in range(2):
            for inputs, wanted in zip(batches, targets, strict=True):
                out = model(*inputs)
                of_batch = loss(out, wanted) if isinstance(out, dict) else one_head(out, wanted)
                optimizer.zero_grad()
                of_batch.backward()
                optimizer.step()
                if after_step is not None:
                    after_step()
        model.eval()

    @torch.no_grad()
    def score(model):
        outputs = [model(*inputs) for inputs in batches]
        guesses = [(out["digit"] if isinstance(out, dict) else out).argmax(1) for out in outputs]
        hits = [guess == wanted["digit"] for guess, wanted in zip(guesses, targets, strict=True)]
        return float(torch.cat(hits).double().mean())

    return Context((torch.zeros_like(batches[0][0][:1]),), batches, targets, loss, seed, tune, score)


def one_head(output, wanted):
    return nn.functional.cross_entropy(output, wanted["digit"])


HEADS = {"digit": 10, "parity": 2}
TOKENS = InputSpec((12,), vocabulary=300, missing=0)


@torch.no_grad()
def logits(model):
    block = "transformer" if isinstance(model, TokenClassifier) else "residual"
    return model(draw_inputs(block, 8, torch.Generator().manual_seed(3)))


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclass(frozen=True)
class Compressed:
    """What a method made of a model."""

    model: nn.Module
    out: nn.Module
    state: MethodState
    kept_random_stream: bool


@functools.cache
def compress(method, block, something):
    """Compress a model, once for all tests that look at it and change nothing."""
    model = build(block)
    before = torch.random.get_rng_state()
    config = configure(method, SOMETHING if something else NOTHING)
    out, state = method.apply(model, config, context(block=block))
    return Compressed(model, out, state, torch.equal(torch.random.get_rng_state(), before))


def costs(model, block, state=None):
    bits = {} if state is None else state.bits
    return measure(Subject(layers=layer_costs(model, context(block=block).example), bits=bits), COSTS)


def rebuild(method, config, model, state, block):
    """Rebuild a model from its architecture, JSON and tensors alone, as a saved candidate is."""
    history = json.loads(json.dumps(dict(state.history), allow_nan=False))
    saved = MethodState(history, state.tensors, state.bits)
    fresh = method.restore(build(block, seed=7), config, saved)
    fresh.load_state_dict(snapshot(model))
    return fresh.eval()


@pytest.mark.parametrize("method", METHODS)
class TestConfig:
    def test_it_survives_a_round_trip(self, method):
        for config in (method.config(), configure(method, SOMETHING), configure(method, NOTHING)):
            assert method.config.of(json.loads(json.dumps(config.to_dict()))) == config

    def test_every_field_declares_its_range_and_meaning(self, method):
        knobs = method.config.knobs()
        assert set(knobs) == {field.name for field in fields(method.config)}
        assert all(knob.doc for knob in knobs.values())

    def test_its_name_is_the_one_it_is_registered_under(self, method):
        assert method in [registry.get(method.name) for registry in (PRUNE, QUANTIZE) if method.name in registry]
        assert method.config.label.endswith(f".{method.name}")

    def test_the_identity_is_known(self, method):
        assert method.is_identity(configure(method, NOTHING))
        assert not method.is_identity(configure(method, SOMETHING))

    def test_every_end_of_every_range_is_a_config(self, method):
        for name, knob in method.config.knobs().items():
            ends = (
                (knob.domain.low, knob.domain.high)
                if isinstance(knob.domain, FloatRange | IntRange)
                else knob.domain.options
            )
            for end in ends:
                assert getattr(method.config.of({name: end}), name) == end


@pytest.mark.parametrize("method", METHODS)
def test_a_search_space_can_open_every_knob(method):
    section = "prune" if method.name in PRUNE and PRUNE.get(method.name) is method else "quantize"
    opened = ", ".join(f"{name}: {{}}" for name in method.config.knobs())
    space = open_space(parse_spec(f"task: digits\nstudent: cnn\n{section}: {{{method.name}: {{{opened}}}}}", "x"))
    outputs = {name for name, _ in space.dimensions()}
    assert outputs >= {f"{section}.{method.name}.{name}" for name in method.config.knobs()}


@pytest.mark.parametrize(("method", "block"), CASES)
class TestApply:
    @pytest.mark.slow
    def test_the_identity_changes_no_logit(self, method, block):
        result = compress(method, block, False)
        for head, values in logits(result.model).items():
            torch.testing.assert_close(logits(result.out)[head], values, rtol=1e-4, atol=1e-5)
        assert all(bits == LayerBits(32, 32) for bits in result.state.bits.values())

    @pytest.mark.slow
    def test_a_setting_that_is_no_identity_changes_logits_and_lowers_cost(self, method, block):
        result = compress(method, block, True)
        assert not equal(logits(result.model), logits(result.out))
        before, after = costs(result.model, block), costs(result.out, block, result.state)
        assert all(after[name] <= before[name] for name in set(COSTS) - RAISED_COSTS.get(method.name, set()))
        assert any(after[name] < 0.9 * before[name] for name in COSTS)

    @pytest.mark.slow
    def test_shapes_and_finiteness_are_kept(self, method, block):
        result = compress(method, block, True)
        outputs = logits(result.out)
        for head, values in logits(result.model).items():
            assert outputs[head].shape == values.shape
            assert outputs[head].isfinite().all()
        assert not any(module.training for module in result.out.modules())

    @pytest.mark.slow
    @pytest.mark.parametrize("settings", [NOTHING, SOMETHING], ids=["nothing", "something"])
    def test_the_given_model_stays_as_it_was(self, method, block, settings):
        model = build(block).train()
        before, flags = snapshot(model), [module.training for module in model.modules()]
        hooks = copy.deepcopy([len(module._forward_pre_hooks) for module in model.modules()])
        out, _ = method.apply(model, configure(method, settings), context(block=block))
        with torch.no_grad():
            for parameter in out.parameters():
                parameter.fill_(7)
        assert equal(snapshot(model), before)
        assert [module.training for module in model.modules()] == flags
        assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_weights(self, method, block):
        first = compress(method, block, True)
        model = build(block)
        torch.manual_seed(2)
        other, second = method.apply(model, configure(method, SOMETHING), context(block=block))
        assert equal(snapshot(first.out), snapshot(other))
        assert first.state.history == second.history
        assert first.state.report == second.report

    @pytest.mark.slow
    def test_the_global_random_stream_stays(self, method, block):
        assert compress(method, block, True).kept_random_stream

    def test_history_and_report_are_json(self, method, block):
        state = compress(method, block, True).state
        for part in (state.history, state.report):
            assert json.loads(json.dumps(dict(part), allow_nan=False)) == dict(part)


@pytest.mark.slow
@pytest.mark.parametrize("something", [False, True], ids=["nothing", "something"])
@pytest.mark.parametrize(("method", "block"), CASES)
def test_a_saved_model_is_rebuilt_without_pickle(method, something, block):
    result = compress(method, block, something)
    config = configure(method, SOMETHING if something else NOTHING)
    assert equal(logits(rebuild(method, config, result.out, result.state, block)), logits(result.out))


@pytest.mark.slow
@pytest.mark.parametrize("method", [param for param in METHODS if issubclass(param.values[0].config, Recovery)])
def test_a_method_that_recovers_returns_a_model_that_learns_and_keeps_its_zeros(method):
    block = list_blocks(method)[-1]
    out, state = method.apply(build(block), configure(method, SOMETHING), context(block=block))
    zeros = {name: out.get_parameter(name) == 0 for name in state.masks}
    x, y = draw_inputs(block, 16, torch.Generator().manual_seed(1)), torch.arange(16) % 10
    optimizer = torch.optim.Adam(out.train().parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(out(x)["digit"], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state.apply_masks(out)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, mask in state.masks.items():
        assert mask.shape == out.get_parameter(name).shape
        assert torch.equal(out.get_parameter(name) == 0, zeros[name])
        assert torch.equal(mask == 0, zeros[name])


@pytest.mark.parametrize("method", METHODS)
class TestRefusals:
    def test_weights_that_are_not_finite(self, method):
        block = list_blocks(method)[0]
        model = build(block)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.view(-1)[0] = torch.nan
        with pytest.raises(CompressionError):
            method.apply(model, configure(method, SOMETHING), context(block=block))

    def test_a_layer_without_channels(self, method):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of the initialisation of an empty layer
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 0), nn.Linear(0, 3))

        with pytest.raises(CompressionError):
            method.apply(model, configure(method, SOMETHING), replace(context(), loss=one_head))

    def test_a_model_without_layers(self, method):
        with pytest.raises(CompressionError):
            method.apply(nn.Sequential(nn.Flatten()), configure(method, SOMETHING), replace(context(), loss=one_head))

    @pytest.mark.slow
    def test_a_history_of_another_model(self, method):
        config = configure(method, SOMETHING)
        block = OWN_MODEL.get(method.name, "residual")
        _, state = method.apply(build(block), config, context(block=block))
        other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
        with pytest.raises(CompressionError):
            method.restore(other, config, state)

    @pytest.mark.parametrize("entry", ["", "layers", "masked", "dropped", "heads", "tokens"])
    def test_a_history_of_another_form(self, method, entry):
        with pytest.raises(CompressionError):
            method.restore(build(), configure(method, SOMETHING), MethodState(history={entry: 3} if entry else {}))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_any_size_give_a_finite_model_or_a_named_error(method, scale):
    block = OWN_MODEL.get(method.name, "residual")
    model = build(block)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    try:
        out, _ = method.apply(model, configure(method, SOMETHING), context(block=block))
    except CompressionError:
        return  # Named, so the search goes on without it.
    assert all(values.isfinite().all() for values in logits(out).values())
