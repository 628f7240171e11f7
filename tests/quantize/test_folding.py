import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CompressionError
from autocompress.quantize.folding import (
    FoldedBatchNorm,
    find_folded_pairs,
    fold_batch_norm,
    fold_structure,
    fold_with_report,
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
