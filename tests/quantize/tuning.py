"""Contexts that can train, and means over seeds, for the tests of methods that learn their rounding."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.method import Context

Digits = tuple[Tensor, Tensor, Tensor, Tensor]


def loss(output: Any, targets: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(output, targets["label"])


def context(data: Digits, inspect: Callable[[nn.Module], None] | None = None, seed: int = 0) -> Context:
    """Return a context with 256 calibration digits; ``seen`` is shown the model after its training."""
    images, labels = data[0], data[1]

    def tune(model: nn.Module, epochs: int, learning_rate: float, after_step: Callable[[], None] | None) -> None:
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(images) // 64))
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=order).split(64)[: len(images) // 64]:
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
                if after_step is not None:
                    after_step()
        model.eval()
        if inspect is not None:
            inspect(model)

    batches = tuple((batch,) for batch in images[:256].split(64))
    targets = tuple({"label": batch} for batch in labels[:256].split(64))
    return Context((images[:1],), batches, targets, loss, seed, tune)


def train_model(build: Callable[[], nn.Module], data: Digits, seed: int, epochs: int = 6) -> nn.Module:
    """Return a network trained from the weights that a seed gives it."""
    torch.manual_seed(seed)
    model = build()
    context(data, seed=seed).fine_tune(model, epochs, 5e-3, None)  # type: ignore[misc]
    return model


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
