"""A task and a teacher that another process can load in little time: nothing but torch is imported."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.task import Logits, Split, Splits, Targets


def network(width: int = 6, seed: int = 0) -> nn.Module:
    """A network without batch norms, whose statistics would be those of each share."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


def examples() -> Split:
    """Five numbers each; the class is where the largest of the first three stands."""
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    return Split((x,), {"label": x[:, :3].argmax(1)})


class Light:
    """Three classes of five numbers; view 1 is the mirror image."""

    name = "light"
    heads: Mapping[str, int] = {"label": 3}
    metrics = ("accuracy",)
    views = 2

    def splits(self, seed: int) -> Splits:
        return Splits(*[examples()] * 5)

    def view(self, split: Split, index: int) -> Split:
        return Split((split.inputs[0] * (1 + 0.1 * index),), split.targets)

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(1, 5),)

    def teacher(self) -> tuple[Part, Part]:
        return Part("none"), Part("adamw")

    def build(self, student: Part) -> nn.Module:
        return network()

    def loss(self, logits: Logits, targets: Targets) -> Tensor:
        return F.cross_entropy(logits["label"], targets["label"])


class Wide:
    """A teacher that can travel."""

    def __init__(self) -> None:
        self.model = network(9, seed=4).eval()

    def view(self, index: int) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return {"label": self.model(*Light().view(examples(), index).inputs)}


class Faulty(Light):
    """The first process that loads it fails, or dies."""

    def __init__(self, mark: Path, fault: str) -> None:
        self.mark, self.fault = mark, fault

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if self.fault == "dies":
            os.kill(os.getpid(), 9)
        raise ZeroDivisionError("on purpose")
