import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.prune.channel_tracing import FIXED, NOTHING, Nodes
from autocompress.prune.channels import trace_channels
from autocompress.prune.layer_channels import INPUTS, OUTPUTS
from tests.prune.zoo import IMAGE, TOKENS, VECTOR, Auxiliary, Heads, Masked, Net, OwnAttention, Recurrent, Shuffled


class TestNodes:
    def test_joined_sets_have_the_smallest_node_as_root(self):
        nodes = Nodes()
        first = nodes.add(4)
        nodes.join(numpy.array([first, first + 2]), numpy.array([first + 1, first + 1]))
        assert (nodes.find(numpy.arange(first, first + 4)) == [first, first, first, first + 3]).all()

    def test_nothing_joins_nothing(self):
        nodes = Nodes()
        first = nodes.add(2)
        nodes.join(numpy.array([first, NOTHING]), numpy.array([NOTHING, first + 1]))
        assert (nodes.find(numpy.arange(first, first + 2)) == [first, first + 1]).all()

    def test_a_fixed_set_keeps_its_reason_whatever_joins_it_later(self):
        nodes = Nodes()
        first = nodes.add(3)
        nodes.join(numpy.array([first + 1]), numpy.array(FIXED), "it is an output")
        nodes.join(numpy.array([first]), numpy.array([first + 1]))
        assert nodes.fixed_roots() == {first: "it is an output"}
        assert nodes.joined_roots() == {}


def roots(model, example, *sides):
    model = model.eval()
    trace = trace_channels(model, example)
    return [trace.roots(side).tolist() for side in sides]


class TestFollowing:
    def test_a_linear_layer_reads_the_outputs_of_the_one_before(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        written, read = roots(model, VECTOR, ("0", OUTPUTS), ("2", INPUTS))
        assert written == read
        assert len(set(written)) == 3

    def test_a_shuffle_moves_channels_and_asks_for_equal_blocks(self):
        written, read = roots(Shuffled(), IMAGE, ("a", OUTPUTS), ("b", INPUTS))
        # Channels 0..3 and 4..7 take turns; the same position of both blocks goes together.
        assert written[:4] == written[4:]
        assert read == [written[0], written[0], written[1], written[1], *[w for w in written[2:4] for _ in range(2)]]

    def test_a_head_is_one_set(self):
        (written,) = roots(Heads(), TOKENS, ("attention.qkv", OUTPUTS))
        query, key, value = written[:16], written[16:32], written[32:]
        assert query == key == value
        assert [len(set(query[start : start + 4])) for start in (0, 4, 8, 12)] == [1] * 4
        assert len(set(query)) == 4

    def test_what_one_head_multiplies_is_left_alone(self):
        model = OwnAttention().eval()
        trace = trace_channels(model, TOKENS)
        (root,) = set(trace.roots(("q", OUTPUTS)).tolist())
        assert trace.nodes.joined_roots()[root] == f"it runs through matrix product (zoo.py:{line_of(OwnAttention)})"

    def test_a_recurrent_layer_is_left_alone_and_named(self):
        trace = trace_channels(Recurrent().eval(), TOKENS)
        reasons = trace.nodes.fixed_roots()
        assert {reasons[root].partition(" (")[0] for root in trace.roots(("e", OUTPUTS)).tolist()} == {
            "it runs through mkldnn_rnn_layer in 'r'"
        }

    def test_values_that_are_read_are_noticed_and_real(self):
        tokens = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0]])
        assert trace_channels(Masked().eval(), (tokens,)).reads_values
        assert not trace_channels(Shuffled().eval(), IMAGE).reads_values

    @pytest.mark.parametrize(
        "operation",
        [
            lambda x: x.flip(1),
            lambda x: x[:, [3, 1, 2, 0, 4, 5]],
            lambda x: x.roll(2, 1),
            lambda x: torch.cat(x.split(2, 1)[::-1], 1),
            lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2),
        ],
        ids=["flip", "index", "roll", "split", "shuffle"],
    )
    def test_moved_channels_are_followed_by_the_operation_itself(self, operation):
        class Moved(Net):
            def __init__(self):
                super().__init__(a=nn.Linear(4, 6), b=nn.Linear(6, 3))

            def forward(self, x):
                return self.b(operation(self.a(x)).relu())

        written, read = roots(Moved(), VECTOR, ("a", OUTPUTS), ("b", INPUTS))
        assert operation(torch.tensor([written])).tolist() == [read]

    def test_an_unknown_operation_fixes_its_channels(self):
        class Unknown(Net):
            def __init__(self):
                super().__init__(a=nn.Linear(4, 6), b=nn.Linear(6, 3))

            def forward(self, x):
                return self.b(torch.sort(self.a(x))[0])

        trace = trace_channels(Unknown().eval(), VECTOR)
        reasons = trace.nodes.fixed_roots()
        assert all(reasons[root].startswith("it runs through sort") for root in trace.roots(("a", OUTPUTS)).tolist())

    def test_the_model_stays_as_it_was(self):
        model = Auxiliary()
        model.a = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout())
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        random = torch.random.get_rng_state()
        trace_channels(model, VECTOR)
        assert model.training
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
        assert torch.equal(random, torch.random.get_rng_state())
        assert not model.b._forward_hooks

    def test_normalization_with_weights_reads_channels_that_can_be_removed(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).eval()
        trace = trace_channels(model, VECTOR)
        written = trace.roots(("0", OUTPUTS)).tolist()
        assert len(set(written)) == 6
        assert written == trace.roots(("1", OUTPUTS)).tolist()
        assert set(trace.nodes.normalized_roots()) == set(written)

    def test_normalization_without_weights_joins_all_channels(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 3)).eval()
        trace = trace_channels(model, VECTOR)
        assert len(set(trace.roots(("0", OUTPUTS)).tolist())) == 1
        assert not trace.nodes.normalized_roots()

    def test_operands_of_a_concatenation_along_positions_share_their_channels(self):
        class Prefixed(Net):
            def __init__(self):
                super().__init__(a=nn.Linear(4, 6), b=nn.Linear(6, 3))
                self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 3, 6))

            def forward(self, x):
                x = torch.cat([self.token, self.a(x).unsqueeze(1).expand(-1, 2, -1)], 1)
                return self.b(x + self.positions)[:, 0]

        written, token, read = roots(Prefixed(), VECTOR, ("a", OUTPUTS), ("token", 2), ("b", INPUTS))
        assert written == token == read
        assert len(set(written)) == 6

    def test_a_concatenation_with_an_input_along_positions_fixes_its_channels(self):
        class Combined(Net):
            def __init__(self):
                super().__init__(a=nn.Linear(4, 4), b=nn.Linear(4, 3))

            def forward(self, x):
                return self.b(torch.cat([x.unsqueeze(1), self.a(x).unsqueeze(1)], 1)).mean(1)

        trace = trace_channels(Combined().eval(), VECTOR)
        reasons = {trace.nodes.fixed_roots()[root] for root in trace.roots(("a", OUTPUTS)).tolist()}
        assert reasons == {"it is combined with an input of the model"}

    def test_a_padded_pooled_image_keeps_its_channels(self):
        class Positional(Net):
            def __init__(self):
                super().__init__(a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(4, 2, 1))

            def forward(self, x):
                x = F.interpolate(F.max_pool2d(F.pad(self.a(x), (1, 1, 1, 1)), 2), scale_factor=2.0)
                return self.b(x).mean((2, 3))

        written, read = roots(Positional(), IMAGE, ("a", OUTPUTS), ("b", INPUTS))
        assert written == read
        assert len(set(written)) == 4


def line_of(kind):
    import inspect

    lines, start = inspect.getsourcelines(kind)
    return start + next(index for index, line in enumerate(lines) if "softmax" in line)
