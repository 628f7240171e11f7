"""Small networks and the digits they are trained on, for the tests of this folder."""

from collections.abc import Callable
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    """Four convolutions with batch norm and a functional ReLU, average, linear head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [1, width, width, 2 * width, 2 * width]
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if index == 1:
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


def unsettle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and weights as a training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                count = module.num_features
                if module.running_mean is not None:
                    module.running_mean.copy_(torch.randn(count, generator=generator))
                    module.running_var.copy_(torch.rand(count, generator=generator) * 2 + 0.1)
                if module.affine:
                    module.weight.copy_(torch.randn(count, generator=generator))
                    module.bias.copy_(torch.randn(count, generator=generator))
    return model.eval()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, then held-out ones, ``[N, 1, 8, 8]`` and ``[N]``."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32).div(16).unsqueeze(1)[order]
    labels = torch.tensor(data.target)[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def train(build: Callable[[], nn.Module], images: Tensor, labels: Tensor, epochs: int = 8) -> nn.Module:
    """Return a network fitted to the images, in evaluation mode."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        return float((model(images).argmax(1) == labels).float().mean())
