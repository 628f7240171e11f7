"""Small models and a calibration split, for methods that measure."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from autocompress.core.method import Context
from autocompress.models import CNN, CNNConfig

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def cnn(seed=0, heads=None, **knobs):
    torch.manual_seed(seed)
    model = CNN(CNNConfig(**{"width": 4, "depth": 1, "stages": 2} | knobs), 1, heads or {"label": 10})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


def chain(width, layers=3):
    """Convolutions of one width and a head, so that every layer has ``width`` channels to give."""
    torch.manual_seed(width)
    widths = [1] + [width] * layers
    blocks = []
    for before, after in pairwise(widths):
        blocks += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def cross_entropy(output, targets):
    outputs = output if isinstance(output, dict) else {next(iter(targets)): output}
    return torch.stack([nn.functional.cross_entropy(outputs[head], targets[head]) for head in targets]).sum()


def labelled_context(seed=0, heads=None, batches=2, size=8, tune=None, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(9)
    inputs = tuple((torch.randn(size, *shape, generator=generator),) for _ in range(batches))
    targets = tuple(
        {
            head: torch.randint(0, classes, (size,), generator=generator)
            for head, classes in (heads or {"label": 10}).items()
        }
        for _ in range(batches)
    )
    return Context((torch.zeros(1, *shape),), inputs, targets, cross_entropy, seed, tune)


@torch.no_grad()
def believing(model, context):
    """Return the context with the model's own outputs for targets: whatever changes them raises the loss."""
    targets = tuple({"label": model(*inputs)} for inputs in context.calibration)
    return replace(context, targets=targets, loss=lambda output, wanted: (output - wanted["label"]).square().mean())


class Tuner:
    """Trains on the calibration split, and remembers what it was asked for."""

    def __init__(self, steps=3):
        self.calls = []
        self.zeros = []
        self._steps = steps

    def __call__(self, model, epochs, learning_rate, after_step):
        self.calls.append((epochs, learning_rate))
        context = labelled_context()
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate)
        for _ in range(self._steps):
            loss = cross_entropy(model(*context.calibration[0]), context.targets[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
        self.zeros.append(sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1))
        model.eval()
