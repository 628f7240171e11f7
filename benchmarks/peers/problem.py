"""The problem that every tool is given: a trained classifier, its data, and seconds to compress it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.engine.runner import make_plan
from autocompress.engine.spec import load_spec
from autocompress.targets.base import make_target
from autocompress.trial.teacher import load_teacher

BATCH = 64
OPSET = 18
#: Temperature and share of soft targets in the fine-tuning of every tool that has no recipe of its own.
TEMPERATURE, ALPHA = 4.0, 0.9

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """Inputs ``[N, ...]`` and classes ``[N]``."""

    inputs: Tensor
    classes: Tensor


@dataclass(frozen=True)
class MadeModel:
    """One compressed model: its settings in words, and the content of its ONNX file."""

    settings: str
    content: bytes


@dataclass
class Problem:
    """A trained classifier of one input and one head, and its data.

    Attributes:
        space: Search space whose task and teacher it is.
        seed: Seed of the split and of the tool.
        seconds: Time that the tool may take.
        teacher: Model of ``[N, ...]`` to logits ``[N, C]``, in evaluation mode.
        train: Data to train on.
        val: Data to choose with: both validation splits.
        test: Data that no tool sees.
        started: Time at which the tool was started, in seconds of ``time.monotonic``.
    """

    space: str
    seed: int
    seconds: float
    teacher: nn.Module
    train: Split
    val: Split
    test: Split
    started: float = field(default_factory=time.monotonic)

    @property
    def example(self) -> Tensor:
        """One example, ``[1, ...]``."""
        return self.train.inputs[:1]

    def is_over(self) -> bool:
        """Return whether the time of the tool is over."""
        return time.monotonic() - self.started > self.seconds


class SingleHead(nn.Module):
    """A model of this project as a plain module: one input, logits of its only head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, ``[N, C]``."""
        output = self.model(inputs)
        if isinstance(output, dict):
            (output,) = output.values()
        return output if isinstance(output, Tensor) else output[0]


def load_problem(space: str, seed: int, seconds: float) -> Problem:
    """Return the problem of a search space with one head of classes; its default teacher is trained or cached."""
    plan = make_plan(load_spec(space, [f"split_seed={seed}"]))
    plan.backend.shutdown()
    teacher = load_teacher(plan.task, plan.splits, plan.setup.teacher)
    (head,) = plan.task.heads
    parts = {}
    for name in ("train", "search_val", "select_val", "test"):
        data = getattr(plan.splits, name)
        parts[name] = Split(data.inputs[0], data.targets[head])
    both = (parts["search_val"], parts["select_val"])
    val = Split(torch.cat([part.inputs for part in both]), torch.cat([part.classes for part in both]))
    model = SingleHead(teacher.model).eval()
    return Problem(space, seed, seconds, model, parts["train"], val, parts["test"])


def export_onnx(model: nn.Module, problem: Problem) -> bytes:
    """Return the ONNX file of a module, for any number of examples."""
    example = problem.example.repeat(2, *[1] * (problem.example.dim() - 1))
    batch = torch.export.Dim("batch")
    # Apart, because the method of an exported program returns nothing.
    model.eval()
    program = torch.onnx.export(
        model, (example,), dynamo=True, dynamic_shapes=({0: batch},), opset_version=OPSET, verbose=False
    )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def fine_tune(model: nn.Module, problem: Problem, epochs: int, learning_rate: float = 5e-3) -> nn.Module:
    """Train a model on soft targets of the teacher and true classes, one-cycle AdamW; return it in evaluation mode.

    The recipe is that of Torch-Pruning's examples with distillation (Hinton et al. 2015, arXiv:1503.02531).
    """
    torch.manual_seed(problem.seed)
    inputs, classes = problem.train.inputs, problem.train.classes
    with torch.no_grad():
        soft = torch.cat([problem.teacher(part) for part in inputs.split(1024)])
    steps = epochs * -(-len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            logits = model(inputs[rows])
            teacher = F.log_softmax(soft[rows] / TEMPERATURE, 1)
            kept = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), teacher, reduction="batchmean", log_target=True)
            loss = ALPHA * TEMPERATURE**2 * kept + (1 - ALPHA) * F.cross_entropy(logits, classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if problem.is_over():
            break
    return model.eval()


def make_predictor(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function of inputs ``[N, ...]`` to logits ``[N, C]`` that runs an ONNX file in onnxruntime."""
    model = make_target("onnxruntime", {}).load(content)
    return lambda inputs: torch.from_numpy(model([inputs.numpy()])[0])


@torch.no_grad()
def score(predict: Callable[[Tensor], Tensor], split: Split) -> float:
    """Return the share of right classes."""
    right = [
        (predict(inputs).argmax(1) == classes).double()
        for inputs, classes in zip(split.inputs.split(256), split.classes.split(256), strict=True)
    ]
    return float(torch.cat(right).mean())
