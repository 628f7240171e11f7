import copy

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import InputSpec
from autocompress.errors import CompressionError
from autocompress.models.base import build_family_model
from autocompress.prune import (
    NM,
    ChannelIndices,
    Depth,
    DepthConfig,
    NMConfig,
    Structured,
    StructuredConfig,
    Unstructured,
    UnstructuredConfig,
    expand_model,
    map_channels,
)
from autocompress.prune.calibration import flatten_outputs
from autocompress.prune.depth import DroppedBlock
from autocompress.prune.expansion import OriginalPositions
from tests.prune.toys import cnn, labelled_context
from tests.prune.zoo import FOLLOWED, IMAGE, VECTOR, Flatten, Grouped, Mlp, Net, Transposed

IMAGES, SEQUENCE, WORDS = InputSpec((1, 8, 8)), InputSpec((3, 16)), InputSpec((12,), 20, 0)
FAMILIES = [
    *[("cnn", {"width": 8, "depth": 2, "stages": 2, "block": block}, IMAGES) for block in ("plain", "residual")],
    *[("cnn", {"width": 8, "depth": 2, "stages": 2, "block": block}, IMAGES) for block in ("separable", "inverted")],
    ("cnn1d", {"width": 8, "depth": 1, "stages": 2, "block": "residual"}, SEQUENCE),
    ("transformer", {"layers": 2, "attention_heads": 2, "head_size": 8}, WORDS),
    ("text_cnn", {}, WORDS),
]
FAMILY_IDS = [f"{name}-{values.get('block', '')}".strip("-") for name, values, _ in FAMILIES]


def randomize(model, seed=0):
    """Give every batch normalization other statistics and weights than those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(generator=generator)
    return model.eval()


def build(name, values, spec, seed=0):
    torch.manual_seed(seed)
    return randomize(build_family_model(Part.of(name, **values), (spec,), {"label": 4}))


def inputs_of(example, size=4):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(size, *x.shape[1:], generator=generator)
        if x.is_floating_point()
        else torch.randint(0, 10, (size, *x.shape[1:]), generator=generator)
        for x in example
    )


def example_of(spec):
    if spec.vocabulary:
        return (torch.arange(spec.shape[0])[None] % spec.vocabulary,)
    return (torch.zeros(1, *spec.shape),)


@torch.no_grad()
def assert_close_outputs(first, second, inputs):
    for ours, theirs in zip(flatten_outputs(first(*inputs)), flatten_outputs(second(*inputs)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize(("name", "values", "spec"), FAMILIES, ids=FAMILY_IDS)
def test_an_expanded_family_has_equal_outputs_and_the_original_shapes(name, values, spec, ratio):
    original, example = build(name, values, spec), example_of(spec)
    before = copy.deepcopy(original.state_dict())
    config = StructuredConfig(pruning_ratio=ratio)
    pruned, state = Structured().apply(original, config, Context(example))
    expanded = expand_model(pruned, build(name, values, spec, seed=1), state.history, example)
    assert shapes_of(pruned) != shapes_of(original)
    assert shapes_of(expanded) == shapes_of(original)
    assert_close_outputs(expanded, pruned, inputs_of(example))
    for key, tensor in expanded.state_dict().items():
        is_same = tensor == before[key]
        # Pruning alone changes no value, so each one is that of the original or the one of a removed channel.
        assert bool((is_same | (tensor == (1 if key.endswith("running_var") else 0))).all())
    # The channels of zeros are the least important ones.
    again, _ = Structured().apply(expanded, config, Context(example))
    assert shapes_of(again) == shapes_of(pruned)
    assert_close_outputs(again, pruned, inputs_of(example))


@pytest.mark.parametrize("name", ["two_tower", "interaction"])
def test_a_recommender_of_several_inputs(name):
    specs = InputSpec((), vocabulary=30), InputSpec((), vocabulary=50), InputSpec((5,))
    torch.manual_seed(0)
    original = build_family_model(Part.of(name), specs, {"rating": 4}).eval()
    example = torch.tensor([3]), torch.tensor([7]), torch.zeros(1, 5)
    pruned, state = Structured().apply(original, StructuredConfig(pruning_ratio=0.5), Context(example))
    expanded = expand_model(pruned, original, state.history, example)
    assert shapes_of(expanded) == shapes_of(original) != shapes_of(pruned)
    assert_close_outputs(expanded, pruned, inputs_of(example))


@pytest.mark.parametrize(("name", "values", "spec"), FAMILIES, ids=FAMILY_IDS)
def test_an_expanded_family_is_trained_and_stays_finite(name, values, spec):
    original, example = build(name, values, spec), example_of(spec)
    pruned, state = Structured().apply(original, StructuredConfig(pruning_ratio=0.5), Context(example))
    expanded = expand_model(pruned, original, state.history, example).train()
    inputs = inputs_of(example, 8)
    before = copy.deepcopy(expanded.state_dict())
    optimizer = torch.optim.SGD(expanded.parameters(), lr=0.01)
    nn.functional.cross_entropy(expanded(*inputs), torch.arange(8) % 4).backward()
    assert all(parameter.grad is not None for parameter in expanded.parameters())
    optimizer.step()
    after = expanded.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in after.values() if tensor.is_floating_point())
    assert sum(not torch.equal(before[key], after[key]) for key in after) > len(list(expanded.parameters())) / 2
    assert all(out.isfinite().all() for out in flatten_outputs(expanded.eval()(*inputs)))


@pytest.mark.parametrize(("kind", "example", "layers"), FOLLOWED, ids=[row[0].__name__ for row in FOLLOWED])
def test_an_expanded_network_has_equal_outputs_and_a_complete_map(kind, example, layers):
    torch.manual_seed(0)
    original = randomize(kind())
    pruned, state = Structured().apply(original, StructuredConfig(pruning_ratio=0.5), Context(example))
    expanded = expand_model(pruned, kind(), state.history, example)
    assert shapes_of(expanded) == shapes_of(original)
    assert_close_outputs(expanded, pruned, inputs_of(example))
    channels = map_channels(kind(), state.history)
    # The map is of layers; the projections of attention are parameters of no layer of their own.
    for name in layers - dict(original.named_parameters()).keys():
        before, after = state.report["channels"][name]
        assert len(channels[name].outputs) == after
        assert max(channels[name].outputs) < before
    # A weight at its kept rows and columns is the weight of the pruned layer.
    for name, record in channels.items():
        layer = original.get_submodule(name)
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == 1):
            rows, columns = record.outputs, record.inputs
            if getattr(layer, "transposed", False):
                rows, columns = columns, rows
            assert torch.equal(layer.weight[rows][:, columns], pruned.get_submodule(name).weight)


class TestChannelMap:
    def test_a_hand_made_chain(self):
        history = {"layers": [["0", True, [1]], ["1", True, [1]], ["2", False, [1]], ["0", True, [0, 3]]]}
        # The second step counts the remaining channels: 0 and 3 of 0, 2, 3, 4, .. are 0 and 4.
        channels = map_channels(Mlp(), {"layers": history["layers"]})
        assert channels == {
            "0": ChannelIndices(inputs=[0, 1, 2, 3], outputs=[2, 3, 5, 6, 7]),
            "1": ChannelIndices(inputs=[0, 2, 3, 4, 5, 6, 7], outputs=[0, 2, 3, 4, 5, 6, 7]),
            "2": ChannelIndices(inputs=[0, 2, 3, 4, 5, 6, 7], outputs=[0, 1, 2, 3, 4, 5]),
        }

    def test_several_histories_follow_each_other(self):
        steps = [{"layers": [["0", True, [0]]]}, {"masked": ["0.weight"]}, {"layers": [["0", True, [0]]]}]
        assert map_channels(Mlp(), steps)["0"].outputs == [2, 3, 4, 5, 6, 7]

    def test_a_grouped_convolution_counts_the_channels_of_all_blocks(self):
        # Blocks of 2 inputs and 3 outputs.
        channels = map_channels(Grouped(), {"layers": [["g", True, [0, 3, 6, 9]], ["g", False, [1, 3, 5, 7]]]})
        assert channels["g"] == ChannelIndices(inputs=[0, 2, 4, 6], outputs=[1, 2, 4, 5, 7, 8, 10, 11])

    def test_a_depthwise_convolution_has_the_same_inputs_as_outputs(self):
        model = Net(d=nn.Conv2d(4, 4, 3, groups=4))
        assert map_channels(model, {"layers": [["d", True, [1, 2]]]})["d"] == ChannelIndices(
            inputs=[0, 3], outputs=[0, 3]
        )

    def test_a_transposed_convolution(self):
        channels = map_channels(Transposed(), {"layers": [["t", True, [0]], ["t", False, [1]]]})
        assert channels["t"] == ChannelIndices(inputs=[0, 2, 3, 4, 5, 6, 7], outputs=[1, 2, 3, 4, 5])

    def test_the_inputs_of_an_embedding_are_its_rows(self):
        model = Net(e=nn.Embedding(5, 4), n=nn.BatchNorm1d(4, affine=False))
        channels = map_channels(model, {"layers": [["e", True, [3]], ["n", True, [3]]]})
        assert channels["e"] == ChannelIndices(inputs=[0, 1, 2, 3, 4], outputs=[0, 1, 2])
        assert channels["n"].outputs == [0, 1, 2]

    def test_nothing_removed_is_an_empty_map(self):
        assert map_channels(Mlp(), {"layers": []}) == map_channels(Mlp(), []) == {}

    def test_a_layer_without_tensors_and_a_lone_layer(self):
        assert map_channels(Net(n=nn.BatchNorm1d(4, affine=False, track_running_stats=False)), []) == {}
        assert map_channels(nn.Linear(2, 2), []) == {}


class TestExpansion:
    def test_a_removed_batch_norm_channel_returns_zero(self):
        original = cnn()
        pruned, state = Structured().apply(original, StructuredConfig(pruning_ratio=0.5), labelled_context())
        expanded = expand_model(pruned, original, state.history, IMAGE)
        remaining = map_channels(original, state.history)["stem.1"].outputs
        removed = sorted(set(range(4)) - set(remaining))
        norm = expanded.get_submodule("stem.1")
        assert norm.weight[removed].tolist() == norm.bias[removed].tolist() == [0.0] * len(removed)
        assert norm.running_mean[removed].tolist() == [0.0] * len(removed)
        assert norm.running_var[removed].tolist() == [1.0] * len(removed)

    def test_a_flattened_map_reads_the_original_positions(self):
        history = {"layers": [["b", True, [1]], ["hidden", False, list(range(64, 128))]]}
        channels = map_channels(Flatten(), history)
        assert channels["hidden"].inputs == [*range(64), *range(128, 320)]

    @pytest.mark.parametrize(
        ("method", "config"),
        [
            (Unstructured(), UnstructuredConfig(pruning_ratio=0.5)),
            (NM(), NMConfig(n=1, m=4)),
            (Structured(), StructuredConfig(pruning_ratio=0.0)),
            (Depth(), DepthConfig(pruning_ratio=0.0)),
        ],
        ids=lambda part: type(part).__name__,
    )
    def test_masks_and_identities_change_nothing(self, method, config):
        pruned, state = method.apply(cnn(), config, labelled_context())
        expanded = expand_model(pruned, cnn(seed=1), state.history, IMAGE)
        assert all(torch.equal(tensor, expanded.state_dict()[name]) for name, tensor in pruned.state_dict().items())

    def test_neither_model_is_changed_and_the_result_shares_nothing(self):
        original = cnn().train()
        pruned, state = Structured().apply(original, StructuredConfig(pruning_ratio=0.5), labelled_context())
        states = [copy.deepcopy(model.state_dict()) for model in (original, pruned)]
        expanded = expand_model(pruned, original, state.history, IMAGE)
        assert original.training
        assert not expanded.training
        for parameter in expanded.parameters():
            parameter.data.add_(1)
        for model, before in zip((original, pruned), states, strict=True):
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_tensors_of_other_types_stay_whole(self):
        model = Net(a=nn.Linear(4, 8), fc=nn.Linear(8, 3))
        model.register_buffer("flags", torch.tensor([True, False]))
        model.forward = None
        positions = OriginalPositions(model, lambda numbered: numbered)
        assert positions.list_channels() == {}


class TestDepth:
    def test_dropped_residual_blocks_come_back_with_zeros(self):
        original = randomize(cnn(block="residual", depth=3, stages=1))
        pruned, state = Depth().apply(original, DepthConfig(pruning_ratio=0.6), labelled_context())
        expanded = expand_model(pruned, original, state.history, IMAGE)
        assert any(isinstance(module, DroppedBlock) for module in pruned.modules())
        assert shapes_of(expanded) == shapes_of(original)
        assert_close_outputs(expanded, pruned, inputs_of(IMAGE))
        for block in state.history["dropped"]:
            assert all(not parameter.any() for parameter in expanded.get_submodule(block).parameters())
        channels = map_channels(original, state.history)
        assert set(channels) == {
            name
            for name, module in original.named_modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and name.startswith(tuple(state.history["dropped"]))
        }
        assert all(record.inputs == record.outputs == [] for record in channels.values())

    def test_channels_after_blocks(self):
        original = randomize(cnn(block="inverted", depth=3, stages=1, width=8))
        shallow, first = Depth().apply(original, DepthConfig(pruning_ratio=0.5), labelled_context())
        pruned, second = Structured().apply(shallow, StructuredConfig(pruning_ratio=0.5), labelled_context())
        expanded = expand_model(pruned, original, [first.history, second.history], IMAGE)
        assert shapes_of(expanded) == shapes_of(original)
        assert_close_outputs(expanded, pruned, inputs_of(IMAGE))

    def test_transformer_layers(self):
        name, values, spec = "transformer", {"layers": 3, "attention_heads": 2, "head_size": 8}, WORDS
        original, example = build(name, values, spec), example_of(spec)
        context = labelled_context(heads={"label": 4})
        context = Context(example, (inputs_of(example, 8),), context.targets[:1], context.loss)
        pruned, state = Depth().apply(original, DepthConfig(pruning_ratio=0.5), context)
        expanded = expand_model(pruned, original, state.history, example)
        assert_close_outputs(expanded, pruned, inputs_of(example))

    def test_a_block_without_a_shortcut_is_refused_by_name(self):
        original = cnn(block="plain", depth=3, stages=1, width=8)
        pruned, state = Depth().apply(original, DepthConfig(pruning_ratio=0.5), labelled_context())
        (block, *_) = state.history["dropped"]
        with pytest.raises(CompressionError, match=f"the dropped blocks .*'{block}'.* only a block with a shortcut"):
            expand_model(pruned, original, state.history, IMAGE)


class TestBadInput:
    @pytest.fixture
    def mlp(self):
        torch.manual_seed(0)
        original = randomize(Mlp())
        return original, *Structured().apply(original, StructuredConfig(pruning_ratio=0.5), Context(VECTOR))

    def test_the_history_of_another_model(self, mlp):
        original, pruned, _ = mlp
        with pytest.raises(CompressionError, match="history does not fit"):
            expand_model(pruned, original, {"layers": [["conv", True, [0]]]}, VECTOR)
        with pytest.raises(CompressionError, match="history does not fit layer '0', which has 8 channels"):
            expand_model(pruned, original, {"layers": [["0", True, [8]]]}, VECTOR)
        with pytest.raises(CompressionError, match=r"no block 'blocks\.7'"):
            expand_model(pruned, original, {"dropped": ["blocks.7"]}, VECTOR)

    @pytest.mark.parametrize("history", [{}, {"removed": []}, ["layers"]], ids=str)
    def test_no_history(self, mlp, history):
        original, pruned, _ = mlp
        with pytest.raises(CompressionError, match="has neither layers, dropped blocks, heads, tokens nor masked"):
            expand_model(pruned, original, history, VECTOR)

    def test_a_model_of_other_shapes(self, mlp):
        original, pruned, state = mlp
        with pytest.raises(CompressionError, match=r"'0.weight' is \[8, 4\] and should be \[4, 4\]; pass the float"):
            expand_model(original, original, state.history, VECTOR)
        with pytest.raises(CompressionError, match=r"is absent and should be"):
            expand_model(nn.Sequential(*list(pruned)[:4]), original, state.history, VECTOR)
        folded = nn.Sequential(*pruned, nn.Linear(3, 3))
        with pytest.raises(CompressionError, match=r"'6.weight' is \[3, 3\] and should be absent"):
            expand_model(folded, original, state.history, VECTOR)

    def test_outputs_that_differ(self, mlp):
        original, pruned, state = mlp
        original.forward = lambda x: nn.Sequential.forward(original, x) + 1
        with pytest.raises(CompressionError, match="computes other outputs"):
            expand_model(pruned, original, state.history, VECTOR)

    def test_an_example_of_another_model(self, mlp):
        original, pruned, state = mlp
        with pytest.raises(CompressionError, match="the model fails on its example: RuntimeError"):
            expand_model(pruned, original, state.history, IMAGE)

    def test_a_method_that_does_more_than_removing(self, mlp):
        original, _, _ = mlp

        def add_layer(model):
            return nn.Sequential(*model, nn.Linear(3, 3))

        def repeat_row(model):
            model[0].weight.data[1] = model[0].weight.data[0]
            return model

        with pytest.raises(CompressionError, match=r"its pruning adds the tensor '6.weight'"):
            OriginalPositions(original, add_layer)
        with pytest.raises(CompressionError, match=r"the pruning of '0.weight' does more than removing channels"):
            OriginalPositions(original, repeat_row)


def test_every_built_in_method_that_removes_channels_can_be_mapped():
    for name in ("structured", "adaptive"):
        method = PRUNE.get(name)
        original = cnn()
        pruned, state = method.apply(original, method.config(pruning_ratio=0.4), labelled_context())
        expanded = expand_model(pruned, original, state.history, IMAGE)
        assert_close_outputs(expanded, pruned, inputs_of(IMAGE))
