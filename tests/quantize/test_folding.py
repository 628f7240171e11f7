import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CompressionError
from autocompress.quantize.folding import (
    FoldedBatchNorm,
    copy_model,
    estimate_unfolded_statistics,
    find_folded_pairs,
    find_outputs_to_quantize,
    fold_batch_norm,
    fold_structure,
    fold_with_report,
    trace_graph,
    unfold_batch_norm,
)
from tests.quantize.nets import Plain, unsettle

IMAGE = (torch.zeros(1, 1, 8, 8),)


class Net(nn.Module):
    """A network whose forward is the function it is given."""

    def __init__(self, run: Any, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(inputs: int = 1, outputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def outputs_agree(model: nn.Module, folded: nn.Module, *shape: int) -> None:
    values = torch.randn(16, *shape)
    with torch.no_grad():
        torch.testing.assert_close(folded(values), model(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (Plain(), (1, 8, 8), 4),
        (nn.Sequential(conv(bias=True), nn.BatchNorm2d(4), nn.ReLU()), (1, 8, 8), 1),
        (nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False)), (1, 8, 8), 1),
        (nn.Sequential(conv(4, 4, groups=4, bias=False), nn.BatchNorm2d(4)), (4, 8, 8), 1),
        (nn.Sequential(nn.Conv1d(3, 5, 3, bias=False), nn.BatchNorm1d(5)), (3, 9), 1),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), (6,), 1),
        (nn.Sequential(conv().double(), nn.BatchNorm2d(4).double()), (1, 8, 8), 1),
    ],
    ids=["plain", "bias", "no affine", "depthwise", "1d", "linear", "double"],
)
def test_a_folded_model_computes_the_same(model: nn.Module, shape: tuple[int, ...], count: int) -> None:
    unsettle(model)
    dtype = next(model.parameters()).dtype
    torch.set_default_dtype(dtype)
    try:
        folded, folding = fold_with_report(model, (torch.zeros(1, *shape),))
        outputs_agree(model, folded, *shape)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(folding.pairs) == count
    assert folding.unfolded == ()
    assert folding.reason == ""
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.modules())
    assert next(folded.parameters()).dtype == dtype


def test_the_original_is_left_alone() -> None:
    model = unsettle(Plain()).train()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, IMAGE)
    assert model.training
    assert not folded.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(model.norms[0], nn.BatchNorm2d)


def test_folding_a_folded_model_neither_traces_nor_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, first = fold_with_report(unsettle(Plain()), IMAGE)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(torch.fx.Tracer, "trace", forbidden)
    again, second = fold_with_report(folded, IMAGE)
    assert second.pairs == first.pairs == find_folded_pairs(folded)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in folded.state_dict().items())


def test_a_normalization_is_kept_where_folding_would_be_wrong() -> None:
    shared = conv(4, 4)
    cases = {
        "the output goes elsewhere too": Net(lambda s, x: s.n(h := s.c(x)) + h, c=conv(), n=nn.BatchNorm2d(4)),
        "the layer is called twice": Net(lambda s, x: s.n(s.c(s.c(s.a(x)))), a=conv(), c=shared, n=nn.BatchNorm2d(4)),
        "the normalization is called twice": Net(
            lambda s, x: s.n(s.c(s.n(s.a(x)))), a=conv(), c=conv(4, 4), n=nn.BatchNorm2d(4)
        ),
        "before the layer": Net(lambda s, x: s.c(s.n(x)), c=conv(), n=nn.BatchNorm2d(1)),
        "another operation between": Net(lambda s, x: s.n(F.relu(s.c(x))), c=conv(), n=nn.BatchNorm2d(4)),
        "no running statistics": Net(
            lambda s, x: s.n(s.c(x)), c=conv(), n=nn.BatchNorm2d(4, track_running_stats=False)
        ),
        "its weight is read elsewhere": Net(lambda s, x: s.n(s.c(x)) * s.c.weight.sum(), c=conv(), n=nn.BatchNorm2d(4)),
        "data decides the way": Net(lambda s, x: s.n(s.c(x)) if x.sum() > 0 else s.c(x), c=conv(), n=nn.BatchNorm2d(4)),
    }
    for name, model in cases.items():
        unsettle(model)
        folded, folding = fold_with_report(model, IMAGE)
        assert folding.unfolded == ("n",), name
        assert folding.pairs == (), name
        assert folding.reason, name
        outputs_agree(model, folded, 1, 8, 8)


def test_a_channel_axis_that_only_looks_right_is_noticed() -> None:
    # Linear works along the last axis, this normalization along axis 1; both have 4 entries.
    model = unsettle(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    folded, folding = fold_with_report(model, (torch.randn(1, 4, 4),))
    assert folding.reason == "folding changed the model's outputs"
    assert folding.unfolded == ("1",)
    outputs_agree(model, folded, 4, 4)


def test_an_optional_argument_stays_its_default() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, double: bool = False) -> dict[str, Tensor]:
            x = self.conv(x)
            if mask is not None:
                x = x * mask
            if double:
                x = x * 2
            return {"label": self.norm(x)}

    model = unsettle(Masked())
    folded, folding = fold_with_report(model, IMAGE)
    assert folding.pairs == (("conv", "norm"),)
    outputs_agree(model, folded, 1, 8, 8)


def test_a_weight_shared_with_another_layer_stays_as_it_was_there() -> None:
    model = Net(lambda s, x: s.other(F.relu(s.n(s.c(s.stem(x))))), stem=conv(), c=conv(4, 4), n=nn.BatchNorm2d(4))
    model.other = conv(4, 4)
    model.other.weight = model.c.weight
    unsettle(model)
    folded, folding = fold_with_report(model, IMAGE)
    assert ("c", "n") in folding.pairs
    outputs_agree(model, folded, 1, 8, 8)


def test_the_structure_alone_takes_a_folded_state_dict() -> None:
    trained, fresh = unsettle(Plain()), Plain().eval()
    folded, folding = fold_with_report(trained, IMAGE)
    fold_structure(fresh, folding.pairs)
    fold_structure(fresh, folding.pairs)
    fresh.load_state_dict(folded.state_dict())
    values = torch.randn(4, 1, 8, 8)
    assert torch.equal(fresh(values), folded(values))
    assert isinstance(fresh.norms[2], FoldedBatchNorm)
    assert fresh.norms[2].into == "convs.2"


@pytest.mark.parametrize(
    "pair", [("convs.9", "norms.0"), ("convs.0", "absent"), ("norms.0", "convs.0"), ("head", "head")]
)
def test_a_structure_that_does_not_fit_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(CompressionError):
        fold_structure(Plain(), [pair])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first
        self.register_buffer("steps", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.first(x))) + self.steps


class Listed(nn.Module):
    """Its second layer is in no table of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.hidden = [nn.Linear(4, 4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](self.first(x))


@pytest.mark.parametrize("build", [Tied, Listed, lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())])
def test_a_copy_computes_the_same_and_shares_nothing(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    duplicate, expected = copy_model(model), copy.deepcopy(model)
    example = torch.randn(3, 4)
    assert torch.equal(duplicate(example), model(example))
    assert type(duplicate) is type(model)
    assert not duplicate.training
    assert list(duplicate.state_dict()) == list(expected.state_dict())
    before = model(example)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.add_(1.0)
        for buffer in duplicate.buffers():
            buffer.add_(1)
        if isinstance(duplicate, Listed):
            duplicate.hidden[0].weight.add_(1.0)
    assert torch.equal(model(example), before)
    assert not torch.equal(duplicate(example), before)
    duplicate.train()
    duplicate.register_forward_hook(lambda *_: None)
    assert not model.training
    assert not model._forward_hooks


def test_what_was_tied_stays_tied() -> None:
    duplicate = copy_model(Tied())
    assert duplicate.first.weight is duplicate.second.weight
    assert duplicate.again is duplicate.first
    assert "steps" not in duplicate.state_dict()


def test_a_model_with_hooks_is_copied_deeply() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    copy_model(model)(torch.zeros(1, 2))
    assert seen == [1]


EXAMPLE = (torch.zeros(1, 1, 8, 8),)


class Branches(nn.Module):
    def __init__(self, run: Any, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, **options)
        self.next = nn.Conv2d(2, 2, 3, padding=1)
        self.relu, self.pool, self.identity, self.flat = nn.ReLU(), nn.MaxPool2d(2), nn.Identity(), nn.Flatten()
        self.head, self.run = nn.Linear(8, 3), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda s, x: s.next(s.conv(x)).sum(), {"next": False}),
        (lambda s, x: s.next(F.relu(s.conv(x))).relu().mean(), {"next": True}),
        (lambda s, x: s.next(s.pool(s.relu(s.identity(s.conv(x))))).sigmoid() + 1, {"next": False}),
        (lambda s, x: s.head(s.next(F.max_pool2d(torch.relu(s.conv(x)), 4)).flatten(1)), {}),
        (lambda s, x: s.head(s.flat(s.next(s.pool(s.pool(s.conv(x)))))), {}),
        (lambda s, x: s.next((h := s.conv(x)).relu()).sum() + h.sum(), {"conv": False, "next": False}),
        (lambda s, x: s.next(h := s.conv(x).relu()).sum() + h.sum(), {"conv": True, "next": False}),
        (lambda s, x: s.next(s.next(s.conv(x))).relu().sum(), {"next": False}),
        (lambda s, x: s.next(s.next(s.conv(x)).relu() * 2).relu().sum(), {"next": True}),
        (lambda s, x: s.next(s.conv(x)), {}),
        (lambda s, x: {"a": s.next(s.conv(x)).relu()}, {}),
        (lambda s, x: s.next(F.gelu(s.conv(x))).sum(), {"conv": False, "next": False}),
        (lambda s, x: s.conv(x).sum() if x.sum() > 0 else s.conv(x), {}),
    ],
)
def test_outputs_that_more_than_quantized_layers_read(run: Any, expected: dict[str, bool]) -> None:
    assert find_outputs_to_quantize(Branches(run), EXAMPLE, ["conv", "next", "head"]) == expected


def test_a_layer_that_is_not_quantized_reads_in_floating_point() -> None:
    net = Branches(lambda s, x: s.next(s.conv(x)).sum())
    assert find_outputs_to_quantize(net, EXAMPLE, ["conv"]) == {"conv": False}


def test_a_padding_that_is_an_operation_of_its_own_needs_no_integer_output() -> None:
    net = Branches(lambda s, x: s.conv(x).sum(), padding_mode="circular")
    assert find_outputs_to_quantize(net, EXAMPLE, ["conv"]) == {}


def test_tracing_follows_the_arguments_that_are_given() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x + 1 if mask is None else x * mask

    for example, operator in (((torch.ones(1),), "add"), ((torch.ones(1), torch.ones(1)), "mul")):
        called = [node.target.__name__ for node in trace_graph(Optional(), example).nodes if node.op == "call_function"]
        assert operator in called


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Plain(), (1, 8, 8)),
        (nn.Sequential(conv(bias=True), nn.BatchNorm2d(4), nn.ReLU()), (1, 8, 8)),
        (nn.Sequential(conv(bias=False), nn.BatchNorm2d(4, affine=False)), (1, 8, 8)),
        (nn.Sequential(conv(bias=True), nn.BatchNorm2d(4, affine=False)), (1, 8, 8)),
        (nn.Sequential(conv(4, 4, groups=4, bias=False), nn.BatchNorm2d(4, eps=0.1)), (4, 8, 8)),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), (6,)),
    ],
    ids=["plain", "bias", "no affine", "bias, no affine", "depthwise", "linear"],
)
def test_an_unfolded_model_computes_the_same(model: nn.Module, shape: tuple[int, ...]) -> None:
    unsettle(model)
    folded = fold_batch_norm(model, (torch.zeros(1, *shape),))
    unfolded = copy.deepcopy(model).eval()
    for tensor in unfolded.state_dict().values():
        tensor.fill_(7)
    unfold_batch_norm(unfolded, folded)
    assert {name: tensor.shape for name, tensor in unfolded.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    outputs_agree(unfolded, folded, *shape)


def test_unfolding_another_model_is_refused() -> None:
    folded = fold_batch_norm(nn.Sequential(conv(bias=False), nn.BatchNorm2d(4)).eval(), IMAGE)
    with pytest.raises(CompressionError, match="the model has no layer '1'"):
        unfold_batch_norm(nn.Sequential(conv()), folded)
    with pytest.raises(CompressionError, match="'1' is no batch normalization"):
        unfold_batch_norm(nn.Sequential(conv(), nn.ReLU()), folded)
    with pytest.raises(CompressionError, match="the folded values do not fit the model"):
        unfold_batch_norm(nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4)), folded)


def test_statistics_of_an_unfolded_model_are_those_of_its_data_and_change_no_output() -> None:
    model = unsettle(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6), nn.BatchNorm2d(6))).eval()
    folded = fold_batch_norm(model, IMAGE)
    unfolded = copy.deepcopy(model)
    unfold_batch_norm(unfolded, folded)
    batches = [(torch.randn(size, 1, 8, 8),) for size in (40, 24)]
    assert estimate_unfolded_statistics(unfolded, ["1", "4"], iter(batches))
    outputs_agree(unfolded, folded, 1, 8, 8)
    images = torch.cat([batch for (batch,) in batches])
    inputs = unfolded[0](images)
    norm = unfolded[1]
    assert torch.allclose(norm.running_mean, inputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, inputs.var((0, 2, 3), unbiased=False), rtol=1e-4)
    # In training mode on the same data the normalization does what it does in evaluation mode.
    evaluated = unfolded(images)
    assert torch.allclose(unfolded.train()(images), evaluated, atol=1e-3)


def test_statistics_need_data_and_a_normalization_with_weights() -> None:
    for norm, batches in ((nn.BatchNorm2d(4), []), (nn.BatchNorm2d(4, affine=False), [IMAGE])):
        model = nn.Sequential(conv(), norm).eval()
        unfolded = copy.deepcopy(model)
        unfold_batch_norm(unfolded, fold_batch_norm(model, IMAGE))
        before = copy.deepcopy(unfolded.state_dict())
        assert not estimate_unfolded_statistics(unfolded, ["1"], batches)
        assert all(torch.equal(tensor, before[name]) for name, tensor in unfolded.state_dict().items())
