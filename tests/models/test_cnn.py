import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import KnobError, UsageError
from autocompress.models import CNNConfig
from autocompress.models.convolutional import BLOCKS

FAMILY = STUDENTS.get("cnn")


def build(input_shape=(1, 8, 8), heads=None, **knobs):
    torch.manual_seed(0)
    return FAMILY.build(CNNConfig(**knobs), (InputSpec(input_shape),), heads or {"label": 10})


def parameters(model):
    return sum(p.numel() for p in model.parameters())


class TestShapes:
    @pytest.mark.parametrize("block", BLOCKS)
    @pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 32, 32), (2, 5, 9), (1, 1, 1)])
    def test_a_single_head_returns_a_tensor(self, block, input_shape):
        model = build(input_shape, block=block, width=4, depth=2, stages=4, stem_stride=2).eval()
        assert model(torch.randn(3, *input_shape)).shape == (3, 10)

    def test_several_heads_return_a_mapping_in_the_given_order(self):
        out = build(heads={"digit": 10, "parity": 2})(torch.randn(4, 1, 8, 8))
        assert {head: tuple(t.shape) for head, t in out.items()} == {"digit": (4, 10), "parity": (4, 2)}
        assert list(out) == ["digit", "parity"]

    def test_every_stage_after_the_first_halves_the_image_and_doubles_the_width(self):
        model = build((3, 16, 16), width=4, stages=3).eval()
        x = model.stem(torch.randn(1, 3, 16, 16))
        shapes = [tuple(x.shape[1:])]
        for stage in model.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
        assert shapes == [(4, 16, 16), (4, 16, 16), (8, 8, 8), (16, 4, 4)]

    @settings(max_examples=15, deadline=None)
    @given(
        width=st.integers(2, 8),
        depth=st.integers(1, 3),
        stages=st.integers(1, 4),
        kernel=st.sampled_from([3, 5, 7]),
        block=st.sampled_from(sorted(BLOCKS)),
        stem_stride=st.sampled_from([1, 2]),
        first_stride=st.sampled_from([1, 2]),
        expansion=st.integers(1, 8),
        side=st.integers(1, 12),
    )
    def test_any_knobs_fit_any_image(self, side, **knobs):
        model = build((1, side, side), **knobs).eval()
        assert torch.isfinite(model(torch.randn(2, 1, side, side))).all()


class TestParameters:
    def test_plain_by_hand(self):
        # stem 3*4*9 + bn 2*4; stage 0: 4*4*9 + bn 8; stage 1: 4*8*9 + bn 16; head 8*10 + 10
        assert parameters(build((3, 8, 8), width=4, depth=1, stages=2, block="plain")) == (
            (108 + 8) + (144 + 8) + (288 + 16) + (80 + 10)
        )

    def test_residual_by_hand(self):
        # stem 9*4 + 8; stage 0: two 4*4*9 + two bn 8, no shortcut;
        # stage 1: 4*8*9 + 16, 8*8*9 + 16, shortcut 4*8 + 16; head 8*10 + 10
        assert parameters(build(width=4, depth=1, stages=2, block="residual")) == (
            (36 + 8) + 2 * (144 + 8) + (288 + 16) + (576 + 16) + (32 + 16) + (80 + 10)
        )

    def test_separable_by_hand(self):
        # stem 9*4 + 8; stage 0: depthwise 4*9 + 8, pointwise 4*4 + 8; stage 1: 4*9 + 8, 4*8 + 16; head 90
        assert parameters(build(width=4, depth=1, stages=2, block="separable")) == (
            (36 + 8) + (36 + 8) + (16 + 8) + (36 + 8) + (32 + 16) + 90
        )

    def test_inverted_by_hand(self):
        # stem 9*4 + 8; stage 0: widen 4*12 + 24, depthwise 12*9 + 24, narrow 12*4 + 8;
        # stage 1: widen 4*12 + 24, depthwise 12*9 + 24, narrow 12*8 + 16; head 90
        assert parameters(build(width=4, depth=1, stages=2, block="inverted", expansion=3)) == (
            (36 + 8) + (48 + 24) + (108 + 24) + (48 + 8) + (48 + 24) + (108 + 24) + (96 + 16) + 90
        )

    def test_an_inverted_block_of_expansion_one_widens_nothing(self):
        # stage 0: depthwise 4*9 + 8, narrow 4*4 + 8, as in a separable block
        one = build(width=4, depth=1, stages=1, block="inverted", expansion=1)
        assert parameters(one) == parameters(build(width=4, depth=1, stages=1, block="separable"))

    @pytest.mark.parametrize("block", ["plain", "residual", "separable"])
    def test_the_other_blocks_ignore_the_expansion(self, block):
        assert parameters(build(block=block, expansion=1)) == parameters(build(block=block, expansion=8))


class TestInverted:
    def test_the_input_is_added_where_the_shape_stays(self):
        block = build(width=4, depth=2, stages=2, block="inverted").eval().stages
        x = torch.randn(2, 4, 8, 8)
        same, halved = block[0][0], block[1][0]
        torch.testing.assert_close(same(x), x + same.body(x))
        torch.testing.assert_close(halved(x), halved.body(x))
        assert halved(x).shape == (2, 8, 4, 4)

    def test_the_narrow_end_has_no_rectifier(self):
        block = build(width=4, depth=1, stages=1, block="inverted").eval().stages[0][0]
        assert (block(torch.randn(8, 4, 8, 8)) < 0).any()
        assert isinstance(block.body[-1], nn.BatchNorm2d)


class TestUse:
    @pytest.mark.slow
    @pytest.mark.parametrize("block", BLOCKS)
    def test_every_block_learns_a_toy_batch(self, block):
        model = build(width=8, depth=1, stages=2, block=block)
        y = torch.arange(40) % 10
        x = torch.randn(10, 1, 8, 8)[y] + 0.1 * torch.randn(40, 1, 8, 8)
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
        x = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))

    @pytest.mark.slow
    def test_torch_export_computes_the_same(self):
        model = build(heads={"a": 2, "b": 3}, width=4).eval()
        x = torch.randn(2, 1, 8, 8)
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
        y = torch.randn(5, 1, 8, 8)
        torch.testing.assert_close(exported(y)["b"], model(y)["b"])

    def test_builds_on_the_meta_device(self):
        with torch.device("meta"):
            model = build(width=128, depth=8, stages=4)
        assert model(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 10)


class TestRefusals:
    def test_an_input_that_is_no_image(self):
        with pytest.raises(UsageError, match="not inputs of shape"):
            build(input_shape=(64,))

    @pytest.mark.parametrize("heads", [{}, {"label": 0}])
    def test_no_class_to_predict(self, heads):
        with pytest.raises(UsageError, match="at least one"):
            FAMILY.build(CNNConfig(), (InputSpec((1, 8, 8)),), heads)

    @pytest.mark.parametrize(
        "knobs", [{"width": 1}, {"kernel": 1}, {"kernel": 4}, {"block": "dense"}, {"stages": 5}, {"expansion": 0}]
    )
    def test_a_knob_outside_its_range(self, knobs):
        with pytest.raises(KnobError, match=r"cnn\."):
            CNNConfig(**knobs)
