"""Task of examples in memory: tensors, arrays, or a data set of ``(input, target)`` items."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.preprocessing import Preprocessing, RawExample, TensorInput
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised, complete_splits, describe_imbalance, locate_test_rows

# Name of the head if the targets are not a mapping.
ONLY_HEAD = "label"


@runtime_checkable
class ItemDataset(Protocol):
    """Torch-style data set: a length and items ``(input, target)``."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """Return one item."""
        ...


class Tensors(Supervised):
    """Examples in memory, with class indices as targets.

    Args:
        train: Pair ``(inputs, targets)`` of tensors or arrays, or a data set with items ``(input, target)``. Inputs
            are ``[N, ...]``, a tuple of them (positional arguments), or a mapping of names to them; targets are class
            indices ``[N]``, or a mapping of heads to them.
        test: Test split in one of these forms; by default it is taken out of ``train``.
        labels: Names of the classes, or a mapping of heads to names.
        missing: Input name (or position) to the whole number that stands for padding.

    Attributes:
        names: Names of the inputs if they were given as a mapping, otherwise empty.

    Raises:
        UsageError: Lengths differ, a target is not a class index, an input is not finite, or the data has one class.

    Example:
        >>> task = Tensors((torch.randn(100, 3), torch.arange(100) % 2))
        >>> task.inputs[0].shape, dict(task.heads)
        ((3,), {'label': 2})
    """

    name = "tensors"

    def __init__(
        self,
        train: object,
        test: object = None,
        *,
        labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
        missing: Mapping[str | int, int] | None = None,
    ) -> None:
        self.names: tuple[str, ...] = ()
        self._parts = {"train": self._read_part("train", train)}
        if test is not None:
            self._parts["test"] = self._read_part("test", test)
        train_split = self._parts["train"]
        self.heads = {head: self._count_classes(head) for head in train_split.targets}
        names_of_head = labels if isinstance(labels, Mapping) else {next(iter(self.heads)): labels} if labels else {}
        self.labels = {head: [str(name) for name in names] for head, names in names_of_head.items()}
        for head, names in self.labels.items():
            if head not in self.heads or len(names) != self.heads[head]:
                raise UsageError(f"labels name {len(names)} classes of '{head}', which has {self.heads.get(head)}")
        self.inputs = tuple(self._input_spec(at, missing or {}) for at in range(len(train_split.inputs)))

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data: imbalanced classes."""
        remarks = []
        for head, targets in self._parts["train"].targets.items():
            counts = torch.bincount(targets, minlength=self.heads[head]).tolist()
            names = self.labels.get(head) or [str(index) for index in range(self.heads[head])]
            remarks.append(describe_imbalance(dict(zip(names, counts, strict=True))))
        return tuple(filter(None, remarks))

    def splits(self, seed: int) -> Splits:
        """Return five splits, stratified by the first head.

        Raises:
            UsageError: A class has too few examples.
        """
        first = next(iter(self.heads))
        return complete_splits(self._parts, seed, self.labels.get(first))

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the shape and type of each input; names are those that were given."""
        unnamed = ["input"] if len(self.inputs) == 1 else [f"input_{at}" for at in range(len(self.inputs))]
        return tuple(
            TensorInput(name, spec.shape, "int64" if spec.vocabulary else "float32", spec.vocabulary)
            for name, spec in zip(self.names or unnamed, self.inputs, strict=True)
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the examples of the test split: an array, or a mapping of names to arrays for several inputs."""
        part, rows = locate_test_rows(self._parts, seed)
        arrays = [tensor[torch.from_numpy(rows)].numpy() for tensor in self._parts[part].inputs]
        if len(arrays) == 1:
            return list(arrays[0])
        names = [entry.name for entry in self.specify_preprocessing(seed)]
        return [dict(zip(names, values, strict=True)) for values in zip(*arrays, strict=True)]

    def teacher(self) -> tuple[Part, Part]:
        """Raise an error, because examples in memory have no default teacher.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "examples in memory have no default teacher; pass one: autocompress.search(teacher=model, ...)"
        )

    def _read_part(self, part: str, data: object) -> Split:
        """Return one part of the data, in any of the forms that the constructor takes, as a split."""
        if not isinstance(data, tuple) and isinstance(data, ItemDataset):
            data = _stack_items(part, data)
        if not isinstance(data, tuple) or len(data) != 2:
            raise UsageError(f"data '{part}' is {type(data).__name__}; give (inputs, targets), or a data set of such")
        raw_inputs, raw_targets = data
        if isinstance(raw_inputs, Mapping):
            names = tuple(map(str, raw_inputs))
            if self.names and names != self.names:
                raise UsageError(f"data '{part}' has the inputs {list(names)}, train has {list(self.names)}")
            self.names, raw_inputs = names, tuple(raw_inputs.values())
        elif not isinstance(raw_inputs, tuple):
            raw_inputs = (raw_inputs,)
        if not isinstance(raw_targets, Mapping):
            raw_targets = {ONLY_HEAD: raw_targets}
        inputs = tuple(self._read_input(part, at, value) for at, value in enumerate(raw_inputs))
        targets = {str(head): _read_targets(part, str(head), value) for head, value in raw_targets.items()}
        if not inputs or not targets:
            raise UsageError(f"data '{part}' has no {'inputs' if not inputs else 'targets'}")
        sizes = {len(tensor) for tensor in (*inputs, *targets.values())}
        if len(sizes) > 1:
            raise UsageError(f"data '{part}' has inputs and targets of different lengths: {sorted(sizes)}")
        return Split(inputs, targets)

    def _read_input(self, part: str, position: int, value: object) -> Tensor:
        tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).detach().cpu()
        description = f"data '{part}', input {self.names[position] if position < len(self.names) else position}"
        if not tensor.dim():
            raise UsageError(f"{description} is a single number; axis 0 must be the examples")
        if tensor.is_floating_point():
            is_finite = tensor.flatten(1).isfinite().all(1) if tensor.dim() > 1 else tensor.isfinite()
            if not bool(is_finite.all()):
                raise UsageError(f"{description} is not finite in example {int((~is_finite).nonzero()[0])}")
            return tensor.float()
        # Booleans are features 0 and 1, not indices.
        if tensor.dtype is torch.bool:
            return tensor.float()
        return tensor.long()

    def _count_classes(self, head: str) -> int:
        return max(int(part.targets[head].max()) for part in self._parts.values()) + 1

    def _input_spec(self, position: int, missing: Mapping[str | int, int]) -> InputSpec:
        tensors = [part.inputs[position] for part in self._parts.values()]
        shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
        if len(shapes) > 1:
            raise UsageError(f"input {position} has the shapes {sorted(shapes)} in train and test")
        padding = missing.get(self.names[position] if self.names else position)
        # Whole numbers are indices into an embedding table of this size.
        vocabulary = 0 if tensors[0].is_floating_point() else max(int(tensor.max()) for tensor in tensors) + 1
        return InputSpec(shapes.pop(), vocabulary, padding)


def _stack_items(part: str, items: ItemDataset) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a data set as tensors; every item is read once."""
    inputs, targets = [], []
    for index in range(len(items)):
        item = items[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UsageError(f"data '{part}', item {index} is {type(item).__name__}; items must be (input, target)")
        inputs.append(torch.as_tensor(np.asarray(item[0])) if not isinstance(item[0], Tensor) else item[0])
        targets.append(int(item[1]))
        if inputs[-1].shape != inputs[0].shape:
            raise UsageError(f"data '{part}', item {index} has the shape {list(inputs[-1].shape)}, not that of item 0")
    if not inputs:
        raise UsageError(f"data '{part}' is empty")
    return torch.stack(inputs), torch.tensor(targets)


def _read_targets(part: str, head: str, value: object) -> Tensor:
    tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).detach().cpu()
    description = f"data '{part}', targets of '{head}'"
    if tensor.dim() != 1 or not len(tensor):
        raise UsageError(
            f"{description} have the shape {list(tensor.shape)}; give one class index for each example, [N]"
        )
    if tensor.is_floating_point() and bool((tensor != tensor.round()).any()):
        example = int((tensor != tensor.round()).nonzero()[0])
        raise UsageError(
            f"{description}: example {example} has {float(tensor[example]):g}; class indices are whole numbers"
        )
    if int(tensor.min()) < 0:
        raise UsageError(
            f"{description}: example {int(tensor.argmin())} has the class {int(tensor.min())}; class indices start at 0"
        )
    return tensor.long()
