"""Substitution of tokens chosen by gradient: HotFlip (Ebrahimi et al. 2018, arXiv:1712.06751).

The change of the loss by replacing token ``a`` with token ``b`` at a position is estimated to first order as
``(e_b - e_a) . g``, where ``e`` are rows of the embedding table and ``g`` is the gradient of the loss with respect to
the embedding at that position. Each step takes the largest estimate of each text (greedy search).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.distill.base import AttackLoss
from autocompress.errors import TrialError


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the context; afterwards each module has its mode of before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            # Not by train(), which would set the mode of all children as well.
            module.training = mode


@dataclass(frozen=True)
class TokenTable:
    """An embedding table that reads the tokens of texts.

    Attributes:
        layer: The embedding layer.
    """

    layer: nn.Embedding

    @property
    def padding(self) -> int:
        """The token of padding; -1, which no token is, without padding."""
        return -1 if self.layer.padding_idx is None else self.layer.padding_idx


def substitute_tokens(
    model: nn.Module, inputs: tuple[Tensor, ...], loss: AttackLoss, count: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs after each of ``count`` steps, which replace one more token of each text.

    Padding (``padding_idx`` of the embedding table) is neither replaced nor inserted, and a position is replaced once
    at most. The model is attacked in evaluation mode and not changed.

    Args:
        model: The model.
        inputs: The only positional argument of the model: tokens ``[B, T]``.
        loss: Function from the model's raw output to the value that the attack increases, ``[]``.
        count: Number of replaced tokens in each text; fewer in a text with fewer tokens.

    Raises:
        TrialError: The input is no text, or no embedding table of the model reads it.

    Example:
        >>> net = nn.Sequential(nn.Embedding(3, 1), nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[0.0], [1.0], [5.0]]))
        >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, 2.0]]))
        >>> [tokens.tolist() for (tokens,) in substitute_tokens(net, (torch.tensor([[0, 1]]),), torch.sum, 2)]
        [[[0, 2]], [[2, 2]]]
    """
    table = find_token_table(model, inputs)
    (tokens,) = inputs
    replaced = torch.zeros_like(tokens, dtype=torch.bool)
    for _ in range(count):
        estimates = _estimate_changes(model, table, tokens, loss)
        estimates[replaced] = -torch.inf
        best, best_tokens = estimates.max(2)
        values, positions = best.max(1)
        # A text whose tokens are all padding, or all replaced, stays as it is.
        rows = torch.arange(len(tokens), device=tokens.device)[values > -torch.inf]
        # A copy, because the caller may still read the inputs of the step before.
        tokens = tokens.clone()
        tokens[rows, positions[rows]] = best_tokens[rows, positions[rows]]
        replaced[rows, positions[rows]] = True
        yield (tokens,)


@torch.no_grad()
def find_token_table(model: nn.Module, inputs: tuple[Tensor, ...]) -> TokenTable:
    """Return the embedding table that reads the only input of a model, tokens ``[B, T]``.

    Raises:
        TrialError: The inputs are no text, or no table reads them.
    """
    tables: list[TokenTable] = []

    def record_table(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Embedding) and arguments[0] is inputs[0]:
            tables.append(TokenTable(layer))

    if len(inputs) == 1 and inputs[0].dim() == 2 and not inputs[0].is_floating_point():
        with evaluation_mode(model), ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, nn.Embedding):
                    stack.callback(module.register_forward_pre_hook(record_table).remove)
            model(*inputs)
    if not tables:
        raise TrialError(
            f"hotflip replaces tokens of texts, but no embedding table of {type(model).__name__} reads tokens [B, T]; "
            "choose another attack"
        )
    return tables[0]


def _estimate_changes(model: nn.Module, table: TokenTable, tokens: Tensor, loss: AttackLoss) -> Tensor:
    """Return the estimated change of the loss by each substitution, ``[B, T, V]``; -inf for forbidden ones."""
    outputs: list[Tensor] = []

    def watch_output(layer: nn.Module, arguments: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    with evaluation_mode(model), torch.enable_grad():
        handle = table.layer.register_forward_hook(watch_output)
        try:
            (gradient,) = torch.autograd.grad(loss(model(tokens)), outputs[0])
        finally:
            handle.remove()
    weight = table.layer.weight.detach()
    # The product of the gradient with each row of the table, less the one with the present row.
    estimates = gradient @ weight.T - (gradient * weight[tokens]).sum(2, keepdim=True)
    estimates.scatter_(2, tokens.unsqueeze(2), -torch.inf)
    estimates[tokens == table.padding] = -torch.inf
    if table.padding >= 0:
        estimates[:, :, table.padding] = -torch.inf
    return estimates
