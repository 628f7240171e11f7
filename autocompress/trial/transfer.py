"""Transfer of a teacher from another data set: its source, the check that its weights fit, and copying them.

The teacher has the architecture of the source, built for the inputs and heads of the new task. A new head starts from
random weights; a kept head has the weights of the source, and its classes must be the same.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.heads import as_head
from autocompress.core.task import Split, Splits, Task
from autocompress.core.untrusted import check_tensor_header, read_regular_file
from autocompress.distill.activations import head_layers
from autocompress.errors import TrialError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class SourceTask:
    """A task whose teacher is the source; it is trained if it is not cached.

    Attributes:
        task: Name of the task with its options.
        student: Architecture of its teacher.
        fit: Optimizer of its teacher.
    """

    task: Part
    student: Part
    fit: Part


@dataclass(frozen=True)
class Transfer:
    """How a teacher starts from the weights of a model of another data set.

    Attributes:
        path: Path of the source's weights, a safetensors file; empty if the source is the teacher of a task.
        digest: SHA-256 of the file, or name of the cached teacher; it identifies the source in caches.
        head: ``keep`` for the head of the source, ``new`` for a new one.
        labels: Whether the training reads labels; without them, the classes that the source predicts are the targets
            of the training and calibration splits, and the source is the teacher as it is.
        task: The task whose teacher is the source; ``None`` if the source is a file.
        heads: Heads of the source with their number of classes; empty if they are unknown.
    """

    path: str
    digest: str
    head: Literal["keep", "new"] = "keep"
    labels: bool = True
    task: SourceTask | None = None
    heads: Mapping[str, int] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Return the transfer as JSON values."""
        data = asdict(self)
        if self.task is not None:
            data["task"] = {name: getattr(self.task, name).to_json() for name in ("task", "student", "fit")}
        return {**data, "heads": dict(self.heads)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Transfer":
        """Return the transfer that :meth:`to_json` described."""
        task = data["task"]
        source = None if task is None else SourceTask(**{name: Part.from_json(part) for name, part in task.items()})
        return cls(**{**data, "task": source})

    def identity(self) -> dict[str, object]:
        """Return the values that determine the teacher, as JSON values; a moved file is the same source."""
        return {"source": self.digest, "head": self.head, "labels": self.labels}


def read_weights(path: Path, digest: str = "") -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file by name, and its SHA-256.

    Args:
        path: Path of the file.
        digest: Expected SHA-256; empty for any.

    Raises:
        TrialError: The file cannot be read, or has another SHA-256.
    """
    try:
        content = read_regular_file(path, follows_links=True)
        check_tensor_header(content)
        weights = load(content)
    except (OSError, SafetensorError, ValueError) as reason:
        raise TrialError(f"{path} cannot be read as a safetensors file ({reason})") from reason
    actual = hashlib.sha256(content).hexdigest()
    if digest not in ("", actual):
        raise TrialError(f"{path} has changed since this run began; restore it, or start a new run")
    return weights, actual


def check_transfer(model: nn.Module, shapes: Shapes, task: Task, transfer: Transfer, *, frozen: bool) -> None:
    """Check that the weights of a source fit a model.

    Args:
        model: The untrained teacher of the new task.
        shapes: Shape of each tensor of the source.
        task: The new task.
        transfer: The transfer.
        frozen: Whether only the head is trained.

    Raises:
        TrialError: The classes differ and no new head is requested, or the layers before the head differ.
    """
    names = _map_names(task, transfer)
    renamed = {_rename(name, names): shape for name, shape in shapes.items()}
    is_new = _list_head_tensors(model, task)
    # A brought module may name its heads in any way, so the layers behind the outputs are found by tracing.
    last = tuple(f"{name}." for name in head_layers(model))
    for name, tensor in model.state_dict().items():
        is_output = name.startswith(last) if last else False
        if transfer.head == "new" and name in is_new:
            if frozen and not is_output:
                raise TrialError(
                    f"the new head has more layers than the last one ('{name}'), and a frozen backbone trains the last "
                    "one only; set distill.transfer.backbone: tuned"
                )
            continue
        shape = renamed.get(name)
        if shape == tuple(tensor.shape):
            continue
        if is_output or (shape is None and name in is_new):
            raise TrialError(_describe_head_mismatch(task, transfer, name, shape, tuple(tensor.shape)))
        state = "is missing" if shape is None else f"has the shape {list(shape)}"
        raise TrialError(
            f"the source does not fit task '{task.name}': its '{name}' {state} instead of {list(tensor.shape)}; both "
            "tasks need inputs of one form, and the teacher the architecture of the source (teacher.student)"
        )
    if transfer.head == "new" and not is_new:
        raise TrialError(f"{type(model).__name__} has no linear layer to replace by a new head")


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], task: Task, transfer: Transfer) -> None:
    """Copy the weights of a source into a model; tensors of a new head are left as they are.

    Args:
        model: The untrained teacher of the new task, changed in place.
        weights: The tensors of the source by name.
        task: The new task.
        transfer: The transfer.

    Raises:
        TrialError: The weights do not fit.
    """
    check_transfer(model, {name: tuple(tensor.shape) for name, tensor in weights.items()}, task, transfer, frozen=False)
    names = _map_names(task, transfer)
    renamed = {_rename(name, names): tensor for name, tensor in weights.items()}
    new = _list_head_tensors(model, task) if transfer.head == "new" else set()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in new:
                # state_dict shares its memory with the model.
                tensor.copy_(renamed[name])


def remove_labels(splits: Splits, logits: Mapping[str, Mapping[str, Tensor]], heads: Mapping[str, int]) -> Splits:
    """Return splits whose training and calibration targets are a model's predictions (pseudo-labels, Lee 2013).

    No method can read the labels of these splits then, and all of them work unchanged: losses on targets, pruning
    criteria, recovery, and the baseline without distillation. The other splits keep their labels for scores.

    Args:
        splits: The five splits.
        logits: Outputs of the model by key (``train/0``, ``calibration``), then by head.
        heads: Heads of the task.
    """
    replaced = {
        name: Split(part.inputs, {head: as_head(heads[head]).predict(values) for head, values in logits[key].items()})
        for name, key, part in (
            ("train", "train/0", splits.train),
            ("calibration", "calibration", splits.calibration),
        )
    }
    return Splits(**{**dict(splits.items()), **replaced})


def check_unlabelled(task: Task, splits: Splits) -> None:
    """Check that a task can be learned without its labels.

    Raises:
        TrialError: The augmented views of the task read the labels.
    """
    if task.views == 1:
        return
    blank = Split(
        splits.train.inputs, {head: torch.zeros_like(target) for head, target in splits.train.targets.items()}
    )
    # View 0 is the split itself, so view 1 is the first that may read the labels.
    views = task.view(splits.train, 1).inputs, task.view(blank, 1).inputs
    if not all(torch.equal(one, other) for one, other in zip(*views, strict=True)):
        raise TrialError(
            f"the augmented views of task '{task.name}' are made from its labels, so it cannot be learned without "
            "them; remove distill.transfer.labels"
        )


def _map_names(task: Task, transfer: Transfer) -> dict[str, str]:
    """Return how heads of the source are named in the new task: a single head may have another name."""
    # Two single heads ask the same question under two names, such as label and digit.
    if len(transfer.heads) == len(task.heads) == 1:
        return dict(zip(transfer.heads, task.heads, strict=True))
    return {}


def _rename(name: str, names: Mapping[str, str]) -> str:
    return ".".join(names.get(part, part) for part in name.split("."))


def _list_head_tensors(model: nn.Module, task: Task) -> set[str]:
    """Return the names of the tensors that belong to heads: their last layers, and modules with a head's name."""
    # A brought module may name its heads in any way, so the layers behind the outputs are found by tracing.
    last = tuple(f"{name}." for name in head_layers(model))
    return {
        name
        for name in model.state_dict()
        if (last and name.startswith(last)) or not {*task.heads}.isdisjoint(name.split("."))
    }


def _describe_head_mismatch(
    task: Task, transfer: Transfer, name: str, shape: tuple[int, ...] | None, expected: tuple[int, ...]
) -> str:
    if transfer.heads:
        theirs = ", ".join(f"{head} ({classes} classes)" for head, classes in transfer.heads.items())
    else:
        theirs = f"{shape[0]} outputs" if shape else f"no tensor '{name}'"
    ours = ", ".join(f"{head} ({classes} classes)" for head, classes in task.heads.items())
    return (
        f"the head of the source does not fit task '{task.name}': {theirs} instead of {ours}; "
        "set distill.transfer.head: new"
    )
