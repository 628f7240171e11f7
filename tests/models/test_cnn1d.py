import copy

import onnxruntime
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.core.method import Context
from autocompress.core.registry import PRUNE, QUANTIZE, STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import KnobError, UsageError
from autocompress.export.onnx import export_float, export_quantized
from autocompress.measure.cost import count_flops, layer_costs
from autocompress.models.convolutional import BLOCKS, CNN1dConfig
from autocompress.quantize.folding import fold_batch_norm

FAMILY = STUDENTS.get("cnn1d")
EXAMPLE = (torch.zeros(1, 1, 40),)


def build(input_shape=(1, 40), heads=None, **knobs):
    torch.manual_seed(0)
    return FAMILY.build(CNN1dConfig(**knobs), (InputSpec(input_shape),), heads or {"label": 10})


def settled(**knobs):
    """Return a small network whose batch norms have seen data."""
    model = build(width=8, stages=2, **knobs).train()
    for seed in range(3):
        model(noise(32, seed))
    return model.eval()


def noise(count, seed=9):
    return torch.randn(count, 1, 40, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same(graph, model):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: noise(16).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(noise(16)), atol=1e-4, rtol=1e-4)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


class TestShapes:
    @pytest.mark.parametrize("block", BLOCKS)
    @pytest.mark.parametrize("input_shape", [(1, 40), (3, 128), (2, 7), (1, 1)])
    def test_a_single_head_returns_a_tensor(self, block, input_shape):
        model = build(input_shape, block=block, width=4, depth=2, stages=5, stem_stride=4).eval()
        assert model(torch.randn(3, *input_shape)).shape == (3, 10)

    def test_several_heads_return_a_mapping_in_the_given_order(self):
        out = build(heads={"digit": 10, "parity": 2})(torch.randn(4, 1, 40))
        assert {head: tuple(t.shape) for head, t in out.items()} == {"digit": (4, 10), "parity": (4, 2)}
        assert list(out) == ["digit", "parity"]

    def test_every_stage_after_the_first_halves_the_length_and_doubles_the_width(self):
        model = build(width=4, stages=3).eval()
        x = model.stem(torch.randn(1, 1, 40))
        shapes = [tuple(x.shape[1:])]
        for stage in model.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
        assert shapes == [(4, 40), (4, 40), (8, 20), (16, 10)]

    @settings(max_examples=15, deadline=None)
    @given(
        width=st.integers(2, 8),
        depth=st.integers(1, 3),
        stages=st.integers(1, 5),
        kernel=st.sampled_from([3, 5, 7, 9]),
        block=st.sampled_from(sorted(BLOCKS)),
        stem_stride=st.sampled_from([1, 2, 4]),
        first_stride=st.sampled_from([1, 2]),
        length=st.integers(1, 50),
    )
    def test_any_knobs_fit_any_signal(self, length, **knobs):
        model = build((1, length), **knobs).eval()
        assert torch.isfinite(model(torch.randn(2, 1, length))).all()


class TestParameters:
    def test_plain_by_hand(self):
        # stem 2*4*5 + bn 2*4; stage 0: 4*4*5 + bn 8; stage 1: 4*8*5 + bn 16; head 8*10 + 10
        assert parameters(build((2, 40), width=4, depth=1, stages=2, block="plain")) == (
            (40 + 8) + (80 + 8) + (160 + 16) + (80 + 10)
        )

    def test_residual_by_hand(self):
        # stem 5*4 + 8; stage 0: two 4*4*5 + two bn 8, no shortcut;
        # stage 1: 4*8*5 + 16, 8*8*5 + 16, shortcut 4*8 + 16; head 8*10 + 10
        assert parameters(build(width=4, depth=1, stages=2, block="residual")) == (
            (20 + 8) + 2 * (80 + 8) + (160 + 16) + (320 + 16) + (32 + 16) + (80 + 10)
        )

    def test_separable_by_hand(self):
        # stem 5*4 + 8; stage 0: depthwise 4*5 + 8, pointwise 4*4 + 8; stage 1: 4*5 + 8, 4*8 + 16; head 90
        assert parameters(build(width=4, depth=1, stages=2, block="separable")) == (
            (20 + 8) + (20 + 8) + (16 + 8) + (20 + 8) + (32 + 16) + 90
        )

    def test_flops_by_hand(self):
        # stem 40 * 1*4*5; stage 0: 40 * 4*4*5; stage 1: 20 * 4*8*5; head 8*10; two operations each
        model = build(width=4, depth=1, stages=2, block="plain").eval()
        assert count_flops(layer_costs(model, EXAMPLE)) == 2 * (40 * 20 + 40 * 80 + 20 * 160 + 80)


class TestUse:
    @pytest.mark.slow
    @pytest.mark.parametrize("block", BLOCKS)
    def test_every_block_learns_a_toy_batch(self, block):
        model = build(width=8, depth=1, stages=2, block=block)
        y = torch.arange(40) % 10
        x = noise(10)[y] + 0.1 * noise(40, seed=1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.parametrize("block", BLOCKS)
    def test_symbolic_trace_computes_the_same(self, block):
        model = build(block=block, width=4).eval()
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(noise(2)), model(noise(2)))

    @pytest.mark.slow
    def test_it_exports_as_a_float_graph(self):
        model = fold_batch_norm(settled(depth=2), EXAMPLE)
        assert_same(export_float(model, EXAMPLE, {"label": 10}), model)

    @pytest.mark.slow
    def test_builds_on_the_meta_device(self):
        with torch.device("meta"):
            model = build(width=128, depth=8, stages=5)
        assert model(torch.empty(2, 1, 40, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("block", BLOCKS)
class TestCompression:
    @torch.no_grad()
    def test_structured_pruning_shrinks_it_and_is_replayed(self, block):
        method = PRUNE.get("structured")
        config = method.config(pruning_ratio=0.5)
        model = settled(block=block, depth=1)
        pruned, state = method.apply(model, config, Context(EXAMPLE))
        assert count_flops(layer_costs(pruned, EXAMPLE)) < 0.5 * count_flops(layer_costs(model, EXAMPLE))
        fresh = method.restore(build(width=8, stages=2, block=block, depth=1), config, state)
        fresh.load_state_dict(pruned.state_dict())
        assert torch.equal(fresh.eval()(noise(4)), pruned(noise(4)))

    @pytest.mark.slow
    @torch.no_grad()
    def test_post_training_quantization_is_replayed_and_exports(self, block):
        method = QUANTIZE.get("post_training")
        config = method.config(weight_bits=8, activation_bits=8)
        model = fold_batch_norm(settled(block=block, depth=1), EXAMPLE)
        quantized, state = method.apply(model, config, Context(EXAMPLE, ((noise(64),),)))
        convolutions = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv1d)}
        assert convolutions <= set(state.bits)
        fresh = method.restore(copy.deepcopy(model), config, state)
        fresh.load_state_dict(quantized.state_dict())
        assert torch.equal(fresh.eval()(noise(4)), quantized(noise(4)))
        graph = export_quantized(quantized, state, EXAMPLE, {"label": 10})
        assert_same(graph, quantized)


class TestRefusals:
    @pytest.mark.parametrize("shape", [(64,), (1, 8, 8), (0, 40)])
    def test_an_input_that_is_no_signal(self, shape):
        with pytest.raises(UsageError, match="channels, length"):
            build(input_shape=shape)

    @pytest.mark.parametrize("heads", [{}, {"label": 0}])
    def test_no_class_to_predict(self, heads):
        with pytest.raises(UsageError, match="at least one"):
            FAMILY.build(CNN1dConfig(), (InputSpec((1, 40)),), heads)

    @pytest.mark.parametrize("knobs", [{"width": 1}, {"kernel": 1}, {"kernel": 4}, {"block": "dense"}, {"stages": 6}])
    def test_a_knob_outside_its_range(self, knobs):
        with pytest.raises(KnobError, match=r"cnn1d\."):
            CNN1dConfig(**knobs)
