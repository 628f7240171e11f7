"""How the losses of several heads become one: by fixed weights, by uncertainty, or by how fast each head learns."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

DYNAMIC_TEMPERATURE = 2.0
TINY = 1e-12


class HeadWeights(nn.Module):
    """Maps the loss of each head to the loss of the fit; equal weights give their mean.

    Args:
        heads: Names of the heads, in the task's order.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__()
        self.heads = tuple(heads)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted mean, ``{head: []} -> []``."""
        return (self.weights() * torch.stack([losses[head] for head in self.heads])).mean()

    def weights(self) -> Tensor:
        """Return the weights, of mean 1, ``[heads]``."""
        return torch.ones(len(self.heads))

    def after_epoch(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Take note of the end of an epoch; ``mean`` averages over the processes of the fit."""


class FixedWeights(HeadWeights):
    """The first head counts ``first`` times as much as each other one.

    Example:
        >>> FixedWeights(["a", "b"], first=3.0).weights().tolist()
        [1.5, 0.5]
    """

    def __init__(self, heads: Sequence[str], first: float = 1.0) -> None:
        super().__init__(heads)
        self.first = first

    def weights(self) -> Tensor:
        """Return the weights, of mean 1, ``[heads]``."""
        raw = torch.ones(len(self.heads))
        raw[0] = self.first
        return raw / raw.mean()


class UncertaintyWeights(HeadWeights):
    """Each head's uncertainty is learned (Kendall et al. 2018, arXiv:1705.07115, equation 10).

    A head counts exp(-s) times its loss plus s / 2, where s is the logarithm of its variance. For a loss that stays,
    the best s is log(2 loss): noisy heads count less.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(heads)
        self.log_variance = nn.Parameter(torch.zeros(len(self.heads)))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of the heads' weighted losses and uncertainties, ``{head: []} -> []``."""
        return super().forward(losses) + 0.5 * self.log_variance.mean()

    def weights(self) -> Tensor:
        """Return exp(-s), ``[heads]``."""
        return torch.exp(-self.log_variance)


class DynamicWeights(HeadWeights):
    """Heads whose loss falls more slowly count more (dynamic weight average, Liu et al. 2019, arXiv:1803.10704).

    The weight is softmax(r / 2) times the number of heads, where r is a head's loss of the last epoch over that of
    the epoch before; the first two epochs count all heads alike.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(heads)
        self.history: list[Tensor] = []
        self._sum, self._steps = torch.zeros(len(self.heads)), 0

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted mean, ``{head: []} -> []``, and note the losses."""
        self._sum += torch.stack([losses[head].detach() for head in self.heads])
        self._steps += 1
        return super().forward(losses)

    def weights(self) -> Tensor:
        """Return the weights, of mean 1, ``[heads]``."""
        if len(self.history) < 2:
            return super().weights()
        before, last = self.history[-2:]
        rate = last / before.clamp_min(TINY)
        return torch.softmax(rate / DYNAMIC_TEMPERATURE, 0) * len(self.heads)

    def get_extra_state(self) -> list[Tensor]:
        """Return the history, for a fit that pauses."""
        return self.history

    def set_extra_state(self, state: list[Tensor]) -> None:
        """Take up the history of a paused fit."""
        self.history = [each.to(self._sum.device) for each in state]

    def after_epoch(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Close an epoch: its mean losses join the history."""
        self.history.append(mean(self._sum / max(self._steps, 1)))
        self._sum, self._steps = torch.zeros_like(self._sum), 0


#: Name to a function of the heads and of what the first of them counts.
HEAD_WEIGHTS: Mapping[str, Callable[[Sequence[str], float], HeadWeights]] = {
    "fixed": FixedWeights,
    "uncertainty": lambda heads, first: UncertaintyWeights(heads),
    "dynamic": lambda heads, first: DynamicWeights(heads),
}
