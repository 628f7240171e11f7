"""ResNet-8 of MLPerf Tiny on CIFAR-10: the network, the images, and the trained teacher."""

import torch
from torch import Tensor, nn

import autocompress
from autocompress.core.config import Part
from autocompress.tasks.module import Module

#: Mean and standard deviation of the channels of CIFAR-10.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
WIDTHS = (16, 32, 64)
VIEWS = 6


class Block(nn.Module):
    """Two convolutions of 3 x 3 with a shortcut, a convolution of 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features, ``[N, C, H, W]``."""
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        outputs: Tensor = self.relu2(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))
        return outputs


class ResNet8(nn.Module):
    """The ResNet of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597): one block in each of three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        inputs = (WIDTHS[0], *WIDTHS)
        self.blocks = nn.Sequential(*(Block(inputs[at], width, 1 + (at > 0)) for at, width in enumerate(WIDTHS)))
        self.pool = nn.AvgPool2d(8)
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, ``[N, 10]``."""
        features = self.pool(self.blocks(self.relu(self.norm(self.conv(inputs)))))
        logits: Tensor = self.head(torch.flatten(features, 1))
        return logits


def bring_resnet8(folder: str, epochs: int, limit: int | None = None, weights: str = "") -> Module:
    """Register the network and its data as the task ``module``, and return it.

    Args:
        folder: Class folders of CIFAR-10 in ``train`` and ``test``.
        epochs: Epochs of the teacher.
        limit: Largest number of images of each class.
        weights: File with the weights of the trained teacher; without one, it is trained.
    """
    torch.manual_seed(0)
    data = autocompress.Images(folder, mean=MEAN, std=STD, views=VIEWS, limit=limit)
    fit = Part.of("sgd", epochs=epochs, batch_size=128, learning_rate=0.1, weight_decay=5e-4, precision="bfloat16")
    task = autocompress.bring_model(ResNet8(), data, weights=weights or None, fit=None if weights else fit)
    assert isinstance(task, Module)
    return task
