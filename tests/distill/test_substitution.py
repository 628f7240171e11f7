import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import Split
from autocompress.distill.attacks import Robust, RobustConfig, predict_under_attacks
from autocompress.distill.substitution import evaluation_mode, substitute_tokens
from autocompress.errors import TrialError
from autocompress.tasks.base import Supervised
from autocompress.training.fit import FitRequest, fit


class Text(nn.Module):
    """A bag of tokens with padding 0, ``[B, T] -> [B, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 4, padding_idx=0)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.drop(self.table(tokens)).sum(1))
        return logits


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Text()


TOKENS = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
TARGETS = torch.tensor([0, 1, 0])


def loss(output: object) -> torch.Tensor:
    assert isinstance(output, torch.Tensor)
    return F.cross_entropy(output, TARGETS)


def test_each_step_replaces_one_token_of_each_text_and_no_padding(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    steps = [tokens for (tokens,) in substitute_tokens(net, (TOKENS,), loss, 3)]
    assert [(step != TOKENS).sum(1).tolist() for step in steps] == [[1, 1, 0], [2, 1, 0], [3, 1, 0]]
    for step in steps:
        assert torch.equal(step == 0, TOKENS == 0)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_of_a_linear_model_the_first_step_is_the_best_of_all_substitutions() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 1))
    tokens = torch.randint(9, (5, 4))
    ((attacked,),) = substitute_tokens(net, (tokens,), torch.sum, 1)  # type: ignore[arg-type]
    for row, text in enumerate(tokens):
        everything = []
        for position in range(4):
            for token in range(9):
                changed = text.clone()
                changed[position] = token
                if token != text[position]:
                    everything.append(net(changed[None]).detach().item())
        assert net(attacked[row : row + 1]).detach().item() == pytest.approx(max(everything), abs=1e-5)


def test_inputs_that_are_no_texts_are_refused(net: nn.Module) -> None:
    for model, inputs in (
        (nn.Linear(3, 2), (torch.zeros(1, 3),)),
        (nn.Embedding(3, 2), (torch.tensor([1, 2]),)),
        (nn.Flatten(), (torch.zeros(1, 3, dtype=torch.int64),)),
    ):
        with pytest.raises(TrialError, match="hotflip replaces tokens of texts"):
            list(substitute_tokens(model, inputs, torch.sum, 1))  # type: ignore[arg-type]


def test_evaluation_mode_gives_back_the_mode_of_each_module(net: nn.Module) -> None:
    net.drop.eval()  # type: ignore[union-attr]
    with evaluation_mode(net):
        assert not any(module.training for module in net.modules())
    assert [net.training, net.drop.training, net.table.training] == [True, False, True]  # type: ignore[union-attr]


class Majority(Supervised):
    """Texts of five tokens: whether three of them are above 10."""

    name = "majority_text"
    heads = {"label": 2}  # noqa: RUF012


@pytest.mark.slow
def test_training_on_replaced_tokens_withstands_them_better() -> None:
    x = torch.randint(1, 21, (600, 7), generator=torch.Generator().manual_seed(0))
    split = Split((x,), {"label": ((x > 10).sum(1) > 3).long()})
    accuracy = {}
    for attack in ("none", "hotflip"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(21, 8), nn.Flatten(), nn.Linear(56, 24), nn.ReLU(), nn.Linear(24, 2))
        request = FitRequest(Majority(), split, Part.of("adamw", epochs=8, learning_rate=1e-2))
        if attack == "hotflip":
            source = Still(model, Majority(), split)
            term = Part.of("robust", attack="hotflip", substitutions=1, alpha=0.5, temperature=1.0)
            request = FitRequest(request.task, split, request.optimizer, terms=[term], teacher=source)
        fit(model, request)
        logits = predict_under_attacks(model, Majority(), split, "hotflip", [model])["label"]
        accuracy[attack] = float((logits.argmax(1) == split.targets["label"]).float().mean())
    assert accuracy["hotflip"] > accuracy["none"] + 0.05, accuracy


class Still:
    """A teacher that knows the labels."""

    def __init__(self, model: nn.Module, task: Supervised, split: Split) -> None:
        self.model, self._logits = model, 6 * F.one_hot(split.targets["label"], 2).float()

    def view(self, index: int) -> dict[str, torch.Tensor]:
        return {"label": self._logits}


def test_the_term_replaces_as_many_tokens_as_it_is_told(net: nn.Module) -> None:
    config = RobustConfig(attack="hotflip", substitutions=2)
    change = Robust().perturb(config, net, (TOKENS,), loss, torch.Generator())
    assert (change.inputs[0] != TOKENS).sum(1).tolist() == [2, 1, 0]
    assert not change.shifts
