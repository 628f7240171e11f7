import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.core.registry import PRUNE, STUDENTS
from autocompress.core.task import InputSpec
from autocompress.distill.activations import head_layers, list_feature_layers
from autocompress.errors import KnobError, UsageError
from autocompress.export.onnx import export_float
from autocompress.measure.cost import count_macs, layer_costs
from autocompress.models.convolutional import CNN1dConfig, CNNConfig
from autocompress.models.sharing import SHARING, HeadConfig, make_heads
from autocompress.prune.depth import find_blocks

HEADS = {"kind": 5, "language": 3}
FAMILIES = {"cnn": (CNNConfig, (1, 8, 8)), "cnn1d": (CNN1dConfig, (1, 40))}


def build(heads=HEADS, features=6, seed=0, **knobs):
    torch.manual_seed(seed)
    return make_heads(HeadConfig(**knobs), features, heads).eval()


def network(family="cnn", heads=HEADS, seed=0, **knobs):
    """Return a small network of a family and what it takes, its batch norms settled."""
    config, shape = FAMILIES[family]
    torch.manual_seed(seed)
    model = STUDENTS.get(family).build(config(width=8, depth=1, stages=2, **knobs), (InputSpec(shape),), heads).train()
    for _ in range(2):
        model(torch.randn(16, *shape))
    return model.eval(), torch.randn(12, *shape)


def sizes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


class TestDefault:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_is_a_linear_layer_a_head_with_the_names_it_always_had(self, family):
        model, _ = network(family)
        names = [name for name in model.state_dict() if name.startswith("heads")]
        assert names == ["heads.kind.weight", "heads.kind.bias", "heads.language.weight", "heads.language.bias"]

    def test_the_seed_gives_the_weights_of_plain_linear_layers(self):
        torch.manual_seed(7)
        plain = nn.ModuleDict({head: nn.Linear(6, classes) for head, classes in HEADS.items()})
        ours = build(seed=7).state_dict()
        assert list(ours) == list(plain.state_dict())
        assert all(torch.equal(ours[name], tensor) for name, tensor in plain.state_dict().items())

    def test_the_knobs_come_after_the_familys_own(self):
        assert next(iter(CNNConfig.knobs())) == "width"
        assert list(CNNConfig.knobs())[-3:] == ["sharing", "experts", "head_hidden"]


class TestShapes:
    @pytest.mark.parametrize("sharing", SHARING)
    @pytest.mark.parametrize("hidden", [0, 4])
    def test_several_heads_return_a_mapping_in_their_order_and_one_a_tensor(self, sharing, hidden):
        found = build(sharing=sharing, head_hidden=hidden)(torch.randn(7, 6))
        assert {head: tuple(logits.shape) for head, logits in found.items()} == {"kind": (7, 5), "language": (7, 3)}
        assert list(found) == list(HEADS)
        assert build({"label": 4}, sharing=sharing, head_hidden=hidden)(torch.randn(7, 6)).shape == (7, 4)

    @pytest.mark.parametrize("head", ["", "a.b", "items", "forward", "training", "head_layers"])
    def test_a_name_that_no_module_can_have_is_refused(self, head):
        with pytest.raises(UsageError, match="a head cannot be called"):
            build({"label": 2, head: 2})

    @pytest.mark.parametrize("knobs", [{"experts": 1}, {"experts": 9}, {"head_hidden": 257}, {"sharing": "none"}])
    def test_a_knob_outside_its_range_is_refused(self, knobs):
        with pytest.raises(KnobError, match="outside"):
            HeadConfig(**knobs)


class TestByHand:
    @torch.no_grad()
    def test_a_mixture_weighs_its_experts_by_a_gate_a_head(self):
        heads, x = build(sharing="mixture", experts=3), torch.randn(4, 6)
        found = heads(x)
        experts = [torch.relu(x @ layer[0].weight.T + layer[0].bias) for layer in heads.experts.values()]
        for head, gate in heads.gates.items():
            scores = torch.exp(x @ gate.weight.T)
            shares = scores / scores.sum(1, keepdim=True)
            mixed = sum(shares[:, [index]] * expert for index, expert in enumerate(experts))
            tower = heads.towers[head]
            torch.testing.assert_close(found[head], mixed @ tower.weight.T + tower.bias)

    @torch.no_grad()
    def test_an_expert_that_a_gate_chooses_alone_is_all_that_its_head_sees(self):
        heads, x = build(sharing="mixture", experts=2), torch.rand(4, 6)
        heads.gates["kind"].weight[0], heads.gates["kind"].weight[1] = 100.0, -100.0
        before = heads(x)
        heads.experts["1"][0].bias += 5
        after = heads(x)
        torch.testing.assert_close(after["kind"], before["kind"])
        assert not torch.allclose(after["language"], before["language"])

    @torch.no_grad()
    def test_a_shared_middle_lies_between_private_bottoms_and_towers(self):
        heads, x = build(sharing="shared_middle", head_hidden=4), torch.randn(4, 6)
        middle = heads.middle[0]
        for head, logits in heads(x).items():
            bottom, (first, _, last) = heads.bottoms[head][0], heads.towers[head]
            hidden = torch.relu(torch.relu(x @ bottom.weight.T + bottom.bias) @ middle.weight.T + middle.bias)
            hidden = torch.relu(hidden @ first.weight.T + first.bias)
            torch.testing.assert_close(logits, hidden @ last.weight.T + last.bias)

    @pytest.mark.parametrize(
        ("knobs", "expected"),
        [
            ({}, 6 * 5 + 6 * 3),
            ({"head_hidden": 4}, 2 * 6 * 4 + 4 * 5 + 4 * 3),
            # Two bottoms, the middle once a head, two towers.
            ({"sharing": "shared_middle"}, 2 * 36 + 2 * 36 + 6 * 8),
            # Three experts, two gates of three, two towers.
            ({"sharing": "mixture", "experts": 3}, 3 * 36 + 2 * 6 * 3 + 6 * 8),
        ],
    )
    def test_multiply_accumulates(self, knobs, expected):
        assert count_macs(layer_costs(build(**knobs), (torch.zeros(1, 6),))) == expected


@pytest.mark.parametrize("sharing", SHARING)
class TestUse:
    @pytest.mark.parametrize("hidden", [0, 4])
    def test_the_layers_that_give_the_logits_are_found(self, sharing, hidden):
        model, x = network(sharing=sharing, head_hidden=hidden)
        found = head_layers(model)
        assert [model.get_submodule(name).out_features for name in found] == [5, 3]
        caught = {}
        for name in found:
            model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: caught.update({name: out}))
        logits = model(x)
        assert all(torch.equal(caught[name], logits[head]) for name, head in zip(found, HEADS, strict=True))
        assert list_feature_layers(model) == ["stages.0", "stages.1"]

    def test_every_weight_learns(self, sharing):
        heads = build(sharing=sharing, head_hidden=4).train()
        x, targets = torch.randn(64, 6), {head: torch.arange(64) % classes for head, classes in HEADS.items()}
        loss = sum(nn.functional.cross_entropy(logits, targets[head]) for head, logits in heads(x).items())
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in heads.parameters())

    def test_symbolic_trace_computes_the_same(self, sharing):
        model, x = network(sharing=sharing)
        traced = torch.fx.symbolic_trace(model)
        assert all(torch.equal(logits, model(x)[head]) for head, logits in traced(x).items())

    @pytest.mark.slow
    @torch.no_grad()
    def test_it_exports(self, sharing):
        heads, x = build(sharing=sharing, head_hidden=4), torch.randn(5, 6)
        graph = export_float(heads, (torch.zeros(1, 6),), HEADS).SerializeToString()
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for logits, expected in zip(found, heads(x).values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.slow
    @torch.no_grad()
    @pytest.mark.parametrize("family", FAMILIES)
    def test_structured_pruning_cuts_the_encoder_and_is_replayed(self, sharing, family):
        method = PRUNE.get("structured")
        config = method.config(pruning_ratio=0.5)
        model, x = network(family, sharing=sharing, head_hidden=8)
        pruned, state = method.apply(model, config, Context((x[:1],), ((x,),)))
        widths = sizes(pruned)
        assert widths["stages.1.0.body.3.weight"][0] == 8
        if sharing == "mixture":
            # A gate has a share for each expert, whose number stays.
            assert any("gates" in name and "softmax" in why for name, why in state.report["uncut"].items())
            assert all(widths[f"heads.experts.{index}.0.weight"] == (8, 8) for index in range(4))
            assert all(widths[f"heads.gates.{head}.weight"] == (4, 8) for head in HEADS)
        if sharing == "shared_middle":
            assert all(widths[f"heads.bottoms.{head}.0.weight"] == (8, 8) for head in HEADS)
            assert widths["heads.middle.0.weight"] == (8, 8)
        fresh = method.restore(network(family, seed=5, sharing=sharing, head_hidden=8)[0], config, state)
        fresh.load_state_dict(pruned.state_dict())
        assert all(torch.equal(logits, pruned(x)[head]) for head, logits in fresh(x).items())

    def test_depth_pruning_does_not_take_experts_for_blocks(self, sharing):
        model, x = network(sharing=sharing)
        assert not [name for name in find_blocks(model, (x[:1],)) if name.startswith("heads")]
