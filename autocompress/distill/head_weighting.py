"""Weighting of the losses of several heads: fixed, by uncertainty, or by the rate at which each loss falls."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

# Temperature T of dynamic weight average; the paper uses 2.
DYNAMIC_TEMPERATURE = 2.0
# Keeps the ratio of two losses finite.
TINY = 1e-12


class HeadWeights(nn.Module):
    """The weighted mean of the losses of the heads; the weights of this class are equal.

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
        """Update the weights after an epoch; ``mean`` averages a tensor over the processes of the fit."""


class FixedWeights(HeadWeights):
    """Fixed weights: that of the first head is ``first`` times that of each other head.

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
    """Weights by a learned uncertainty of each head (Kendall et al. 2018, arXiv:1705.07115, equation 10).

    A head contributes exp(-s) times its loss plus s / 2, where s is the logarithm of its variance. For a constant loss
    the optimal s is log(2 loss), so noisy heads have smaller weights.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(heads)
        # Zero: all heads begin with the weight exp(0) = 1.
        self.log_variance = nn.Parameter(torch.zeros(len(self.heads)))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over heads of weighted loss and uncertainty, ``{head: []} -> []``."""
        return super().forward(losses) + 0.5 * self.log_variance.mean()

    def weights(self) -> Tensor:
        """Return exp(-s), ``[heads]``."""
        return torch.exp(-self.log_variance)


class DynamicWeights(HeadWeights):
    """Dynamic weight average: larger weights for heads whose loss falls slowly (Liu et al. 2019, arXiv:1803.10704).

    The weights are softmax(r / T) times the number of heads, where r is a head's loss in the last epoch divided by that
    in the epoch before. In the first two epochs all weights are equal.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(heads)
        self.history: list[Tensor] = []
        self._sum, self._steps = torch.zeros(len(self.heads)), 0

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted mean, ``{head: []} -> []``, and accumulate the losses of the epoch."""
        self._sum += torch.stack([losses[head].detach() for head in self.heads])
        self._steps += 1
        return super().forward(losses)

    def weights(self) -> Tensor:
        """Return the weights, of mean 1, ``[heads]``."""
        # The ratio needs the losses of two epochs.
        if len(self.history) < 2:
            return super().weights()
        before, last = self.history[-2:]
        rate = last / before.clamp_min(TINY)
        return torch.softmax(rate / DYNAMIC_TEMPERATURE, 0) * len(self.heads)

    def get_extra_state(self) -> list[Tensor]:
        """Return the history of losses, which torch includes in the state_dict of a paused fit."""
        return self.history

    def set_extra_state(self, state: list[Tensor]) -> None:
        """Restore the history of a paused fit."""
        self.history = [losses.to(self._sum.device) for losses in state]

    def after_epoch(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Append the mean losses of the epoch to the history."""
        self.history.append(mean(self._sum / max(self._steps, 1)))
        self._sum, self._steps = torch.zeros_like(self._sum), 0


#: Name to a function of the names of the heads and the relative weight of the first head.
HEAD_WEIGHTS: Mapping[str, Callable[[Sequence[str], float], HeadWeights]] = {
    "fixed": FixedWeights,
    "uncertainty": lambda heads, first: UncertaintyWeights(heads),
    "dynamic": lambda heads, first: DynamicWeights(heads),
}
