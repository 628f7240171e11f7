"""The task of examples that lie in memory: tensors, arrays, or a data set of ``(input, target)`` items."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised, imbalance
from autocompress.tasks.splitting import five_splits

ONLY_HEAD = "label"


@runtime_checkable
class Items(Protocol):
    """A torch-style data set: a length, and items ``(input, target)``."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one item."""
        ...


class Tensors(Supervised):
    """Examples in memory, with class indices as targets.

    Args:
        train: ``(inputs, targets)``. Inputs are a tensor ``[N, ...]``, a tuple of them (positional arguments), or a
            mapping of names to them; targets are class indices ``[N]``, or a mapping of heads to them. Arrays will
            do. Or a data set whose items are ``(input, target)``.
        test: Likewise, the test split; by default it is taken out of ``train``.
        labels: Names of the classes, or head to names.
        missing: Input name (or position) to the whole number that stands for padding.

    Attributes:
        names: Names of the inputs where they came as a mapping, otherwise empty.

    Raises:
        UsageError: Lengths differ, a target is no class index, an input is not finite, or there is one class only.

    Example:
        >>> task = Tensors((torch.randn(100, 3), torch.arange(100) % 2))
        >>> task.inputs[0].shape, dict(task.heads)
        ((3,), {'label': 2})
    """

    name = "tensors"

    def __init__(
        self,
        train: Any,
        test: Any = None,
        *,
        labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
        missing: Mapping[str | int, int] | None = None,
    ) -> None:
        self.names: tuple[str, ...] = ()
        self._parts = {"train": self._part("train", train)}
        if test is not None:
            self._parts["test"] = self._part("test", test)
        first = self._parts["train"]
        self.heads = {head: self._classes(head) for head in first.targets}
        named = labels if isinstance(labels, Mapping) else {next(iter(self.heads)): labels} if labels else {}
        self.labels = {head: [str(name) for name in names] for head, names in named.items()}
        for head, names in self.labels.items():
            if head not in self.heads or len(names) != self.heads[head]:
                raise UsageError(f"labels name {len(names)} classes of '{head}', which has {self.heads.get(head)}")
        self.inputs = tuple(self._spec(at, missing or {}) for at in range(len(first.inputs)))

    @property
    def notices(self) -> Sequence[str]:
        """What is worth knowing about the data: classes of very unequal size."""
        found = []
        for head, targets in self._parts["train"].targets.items():
            counts = torch.bincount(targets, minlength=self.heads[head]).tolist()
            names = self.labels.get(head) or [str(index) for index in range(self.heads[head])]
            found.append(imbalance(dict(zip(names, counts, strict=True))))
        return tuple(filter(None, found))

    def splits(self, seed: int) -> Splits:
        """Return five splits, each class of the first head in proportion.

        Raises:
            UsageError: A class has too few examples.
        """
        first = next(iter(self.heads))
        return five_splits(self._parts, seed, self.labels.get(first))

    def teacher(self) -> tuple[Part, Part]:
        """Refuse: which model suits these examples is not known.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "examples in memory come without a teacher; bring one: autocompress.search(teacher=model, ...)"
        )

    def _part(self, part: str, given: Any) -> Split:
        if not isinstance(given, tuple) and isinstance(given, Items):
            given = _stacked(part, given)
        if not isinstance(given, tuple) or len(given) != 2:
            raise UsageError(f"data '{part}' is {type(given).__name__}; give (inputs, targets), or a data set of such")
        raw_inputs, raw_targets = given
        if isinstance(raw_inputs, Mapping):
            names = tuple(map(str, raw_inputs))
            if self.names and names != self.names:
                raise UsageError(f"data '{part}' has the inputs {list(names)}, train has {list(self.names)}")
            self.names, raw_inputs = names, tuple(raw_inputs.values())
        elif not isinstance(raw_inputs, tuple):
            raw_inputs = (raw_inputs,)
        if not isinstance(raw_targets, Mapping):
            raw_targets = {ONLY_HEAD: raw_targets}
        inputs = tuple(self._input(part, at, value) for at, value in enumerate(raw_inputs))
        targets = {str(head): _targets(part, str(head), value) for head, value in raw_targets.items()}
        if not inputs or not targets:
            raise UsageError(f"data '{part}' holds no {'inputs' if not inputs else 'targets'}")
        sizes = {len(tensor) for tensor in (*inputs, *targets.values())}
        if len(sizes) > 1:
            raise UsageError(f"data '{part}' holds inputs and targets of different lengths: {sorted(sizes)}")
        return Split(inputs, targets)

    def _input(self, part: str, at: int, value: Any) -> Tensor:
        tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).detach().cpu()
        what = f"data '{part}', input {self.names[at] if at < len(self.names) else at}"
        if not tensor.dim():
            raise UsageError(f"{what} is a single number; axis 0 must be the examples")
        if tensor.is_floating_point():
            finite = tensor.flatten(1).isfinite().all(1) if tensor.dim() > 1 else tensor.isfinite()
            if not bool(finite.all()):
                raise UsageError(f"{what} is not finite in example {int((~finite).nonzero()[0])}")
            return tensor.float()
        if tensor.dtype is torch.bool:
            return tensor.float()
        return tensor.long()

    def _classes(self, head: str) -> int:
        return max(int(part.targets[head].max()) for part in self._parts.values()) + 1

    def _spec(self, at: int, missing: Mapping[str | int, int]) -> InputSpec:
        tensors = [part.inputs[at] for part in self._parts.values()]
        shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
        if len(shapes) > 1:
            raise UsageError(f"input {at} has the shapes {sorted(shapes)} in train and test")
        padding = missing.get(self.names[at] if self.names else at)
        vocabulary = 0 if tensors[0].is_floating_point() else max(int(tensor.max()) for tensor in tensors) + 1
        return InputSpec(shapes.pop(), vocabulary, padding)


def _stacked(part: str, items: Items) -> tuple[Any, Any]:
    """Read a data set once, and return its inputs and targets as tensors."""
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


def _targets(part: str, head: str, value: Any) -> Tensor:
    tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).detach().cpu()
    what = f"data '{part}', targets of '{head}'"
    if tensor.dim() != 1 or not len(tensor):
        raise UsageError(f"{what} have the shape {list(tensor.shape)}; give one class index for each example, [N]")
    if tensor.is_floating_point() and bool((tensor != tensor.round()).any()):
        wrong = int((tensor != tensor.round()).nonzero()[0])
        raise UsageError(f"{what}: example {wrong} has {float(tensor[wrong]):g}; class indices are whole numbers")
    if int(tensor.min()) < 0:
        raise UsageError(f"{what}: example {int(tensor.argmin())} has the class {int(tensor.min())}; they begin at 0")
    return tensor.long()
