import copy

import pytest
import torch
from torch import nn

from autocompress.quantize.model_copy import copy_model


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
