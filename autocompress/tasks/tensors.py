"""Task of examples in memory: tensors, arrays, or a data set of ``(input, target)`` items."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.custom_head import ONLY_OUTPUT, BoundHead, CustomHead, have_one_shape, number_targets
from autocompress.core.heads import IGNORED, Custom, Head, as_head
from autocompress.core.preprocessing import Preprocessing, RawExample, TensorInput
from autocompress.core.task import ExampleKeys, InputSpec, Split, Splits
from autocompress.errors import UsageError, did_you_mean
from autocompress.measure.custom_scores import register_metrics
from autocompress.tasks.array_forms import as_pair, read_array, read_class_names
from autocompress.tasks.base import Supervised, complete_splits, describe_imbalance, locate_test_rows, split_randomly
from autocompress.tasks.mapped_arrays import (
    Column,
    FileArray,
    check_finite,
    compact_values,
    exceeds_memory,
    label_split,
    list_columns,
    locate_memmap,
    make_split,
    require_memory,
    write_array,
)
from autocompress.tasks.split_rows import KeyColumn, parse_times
from autocompress.tasks.targets import (
    Kind,
    check_head_names,
    check_output,
    check_variety,
    make_strata,
    metrics_of,
    read_head,
    read_targets,
)

# Name of the head if the targets are not a mapping.
ONLY_HEAD = "label"

# Bytes of a number in the types that a model reads.
_LARGEST_ITEM = 8

# Enough to find a text without padding where most texts have some.
EXAMPLES_COMPARED = 64


class Tensors(Supervised):
    """Examples in memory, with targets of any kind: classes, labels, numbers, or classes of tokens or pixels.

    Args:
        train: Pair ``(inputs, targets)`` of tensors, arrays, frames or columns, or a data set, loader or iterator with
            items ``(input, target)``. Inputs are ``[N, ...]``, a tuple of them (positional arguments), or a mapping of
            names to them; whole numbers are indices into a table, except bytes along several axes, which are pixels.
            Targets are class indices or class names ``[N]``, numbers, labels or classes of positions (see
            :mod:`autocompress.core.heads`), or a mapping of heads to them.
        test: Test split in one of these forms; by default it is taken out of ``train``.
        val: Examples of both validation splits in one of these forms, for a teacher that has seen ``train``; by default
            they are taken out of ``train``.
        labels: Names of the classes, or a mapping of heads to names.
        missing: Input name (or position) to the whole number that stands for padding.
        kinds: Kind of each head, ``classes``, ``binary``, ``multilabel``, ``dense``, ``tags`` or ``regression``, or a
            head of :mod:`autocompress.core.heads` with its settings; one for all, or a mapping of heads to kinds.
            ``auto`` infers it from the targets and from the outputs of the module. A
            :class:`~autocompress.core.custom_head.CustomHead` takes all outputs and targets of any structure, one for
            each example: a list, items of a data set, or a mapping of arrays.
        ignored: Class index of a missing label, such as 255 in masks; -100 by default. A missing number is NaN.
        groups: Group of each example of ``train``, ``[N]``, such as its patient: numbers or names. A group is never in
            two splits. A mapping of ``train``, ``val`` and ``test`` to groups checks that these parts share none.
        times: Time of each example, ``[N]``, instead of groups: numbers, dates as text or ``datetime64``. Training data
            is then earlier than validation data, and that is earlier than test data.

    Attributes:
        names: Names of the inputs if they were given as a mapping, otherwise empty.

    Raises:
        UsageError: Lengths differ, a target does not fit its kind, an input is not finite, or a head has one class.

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
        val: object = None,
        labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
        missing: Mapping[str | int, int] | None = None,
        kinds: Kind | Mapping[str, Kind] | CustomHead = "classes",
        ignored: int | None = None,
        groups: object = None,
        times: object = None,
    ) -> None:
        self.names: tuple[str, ...] = ()
        self._custom = kinds if isinstance(kinds, CustomHead) else None
        # Targets of a custom head, of all parts.
        self._items: list[object] = []
        train = as_pair("train", train, keep_targets=self._custom is not None)
        first = next(iter(train[1]), ONLY_HEAD) if isinstance(train[1], Mapping) and self._custom is None else ONLY_HEAD
        names_of_head = labels if isinstance(labels, Mapping) else {str(first): labels}
        # Names of classes that the targets themselves have are added while they are read.
        self._class_names: dict[str, list[str]] = {
            head: [str(name) for name in names] for head, names in names_of_head.items() if len(names)
        }
        self.labels: Mapping[str, Sequence[str]] = self._class_names
        self._read = {"train": self._read_part("train", train)}
        self._read |= {
            part: self._read_part(part, data) for part, data in (("val", val), ("test", test)) if data is not None
        }
        for part, keys in read_keys(self._read, groups, times).items():
            self._read[part] = label_split(self._read[part], keys=keys)
        train_split = self._read["train"]
        head_names = sorted(train_split.targets)
        for part, split in self._read.items():
            if sorted(split.targets) != head_names:
                raise UsageError(f"data '{part}' has the heads {sorted(split.targets)}, train has {head_names}")
        check_head_names({name: name for name in head_names})
        self._kinds: Kind | Mapping[str, Kind] = "auto" if isinstance(kinds, CustomHead) else kinds
        if isinstance(self._kinds, Mapping):
            unknown = next((str(name) for name in self._kinds if name not in head_names), None)
            if unknown is not None:
                raise UsageError(f"kinds has the head '{unknown}'; {did_you_mean(unknown, head_names)}")
        self._ignored = ignored
        self.inputs = tuple(self._input_spec(at, missing or {}) for at in range(len(train_split.inputs)))
        self._read_heads({})

    def fit_outputs(self, outputs: Mapping[str, Tensor]) -> "Tensors":
        """Return the same data with the kinds of heads that a module's outputs imply.

        Args:
            outputs: The module's outputs for one example.

        Raises:
            UsageError: Outputs and targets do not fit.
        """
        # The caller's task stays as it is: it may serve another module.
        task = copy.copy(self)
        task._read_heads(outputs)
        for name, output in outputs.items():
            if self._custom is not None:
                # Its loss reads all outputs together: the module's task tries it.
                break
            check_output(as_head(task.heads[name]), name, output, task._parts["train"].targets[name][:1])
        return task

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data: imbalanced classes, missing labels, and kinds of heads that were guessed."""
        remarks = list(self._guesses)
        for name, targets in self._parts["train"].targets.items():
            head = as_head(self.heads[name])
            is_missing = targets.isnan() if targets.is_floating_point() else targets == IGNORED
            if not head.has_positions and bool(is_missing.any()):
                remarks.append(f"{int(is_missing.sum()):,} of {targets.numel():,} targets of '{name}' are missing")
            if head.kind not in ("classes", "binary"):
                continue
            counts = torch.bincount(targets[~is_missing], minlength=head.classes).tolist()
            classes = self.labels.get(name) or [str(index) for index in range(head.classes)]
            remarks.append(describe_imbalance(dict(zip(classes, counts, strict=True))))
        return tuple(filter(None, remarks))

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one real example: costs of a recurrent model depend on how much of a text is padding.

        Of the first training examples, it is the one with the fewest zeros in its first input, if that holds tokens.
        """
        inputs = self._read["train"].take(slice(0, EXAMPLES_COMPARED)).inputs
        first = inputs[0]
        row = 0 if first.is_floating_point() else int(first.reshape(len(first), -1).count_nonzero(1).argmax())
        return tuple(tensor[row : row + 1] for tensor in inputs)

    def splits(self, seed: int) -> Splits:
        """Return five splits: by groups or times, or else stratified by the first head if it has classes or numbers.

        Raises:
            UsageError: All targets of a head are equal, a class has too few examples, or there are too few groups or
                times.
        """
        for name, targets in self._parts["train"].targets.items():
            check_variety(name, as_head(self.heads[name]), targets)
        strata = self._make_strata()
        if strata is None:
            return split_randomly(self._parts, seed)
        return complete_splits(self._parts, seed, self.labels.get(next(iter(self.heads))), strata)

    def _make_strata(self) -> Tensor | None:
        """Return the class or group of numbers of each training example in the first head; None for other kinds."""
        first = next(iter(self.heads))
        return make_strata(as_head(self.heads[first]), self._parts["train"].targets[first])

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the shape and type of each input; names are those that were given."""
        unnamed = ["input"] if len(self.inputs) == 1 else [f"input_{at}" for at in range(len(self.inputs))]
        return tuple(
            TensorInput(name, spec.shape, "int64" if spec.vocabulary else "float32", spec.vocabulary)
            for name, spec in zip(self.names or unnamed, self.inputs, strict=True)
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the examples of the test split: an array, or a mapping of names to arrays for several inputs."""
        strata = self._make_strata()
        part, rows = locate_test_rows(self._parts, seed, strata, at_random=strata is None)
        names = [entry.name for entry in self.specify_preprocessing(seed)]
        return ExampleSequence(self._parts[part].select(torch.from_numpy(rows)), names)

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
        if self._custom is not None:
            data = self._number_targets(part, data)
        split, names = read_examples(part, data, self._class_names)
        if names and self.names and names != self.names:
            raise UsageError(f"data '{part}' has the inputs {list(names)}, train has {list(self.names)}")
        self.names = names or self.names
        return split

    def _number_targets(self, part: str, data: object) -> tuple[object, object]:
        """Return inputs and numbers of the targets, which are added to those of the task.

        Raises:
            UsageError: The targets are no sequence with an entry for each example.
        """
        inputs, targets = as_pair(part, data, keep_targets=True)
        items = _list_items(part, targets)
        numbers = number_targets(items, len(self._items))
        self._items += items
        return inputs, {ONLY_OUTPUT: numbers}

    def _bind_custom_head(self, head: CustomHead, outputs: Mapping[str, Tensor]) -> None:
        """Set a head for each output of the module, which share the targets and the user's functions."""
        register_metrics(head)
        is_single = list(outputs) in ([], [ONLY_OUTPUT])
        bound = BoundHead(head, self._items, is_single, have_one_shape(self._items))
        sizes = {name: output[0].numel() for name, output in outputs.items()} or {ONLY_OUTPUT: 1}
        self._guesses: tuple[str, ...] = ()
        self.heads: Mapping[str, int] = {name: Custom(size, head.primary, bound) for name, size in sizes.items()}
        self.metrics = head.scores
        self._parts = {
            part: label_split(split, dict.fromkeys(sizes, split.targets[ONLY_OUTPUT]))
            for part, split in self._read.items()
        }

    def _read_heads(self, outputs: Mapping[str, Tensor]) -> None:
        """Set the heads, and the targets in the forms that they read."""
        if self._custom is not None:
            self._bind_custom_head(self._custom, outputs)
            return
        heads: dict[str, Head] = {}
        targets: dict[str, dict[str, Tensor]] = {part: {} for part in self._read}
        guesses = []
        for name in self._read["train"].targets:
            kind = self._kinds.get(name, "classes") if isinstance(self._kinds, Mapping) else self._kinds
            given = {part: split.targets[name] for part, split in self._read.items()}
            read = read_head(name, given, kind, outputs.get(name), self._ignored)
            heads[name] = read.head
            guesses.append(read.notice)
            for part, values in read.targets.items():
                targets[part][name] = values
        self._guesses = tuple(filter(None, guesses))
        self.heads = heads
        self.metrics = metrics_of(list(heads.values()))
        self._parts = {part: label_split(split, targets[part]) for part, split in self._read.items()}
        for name, names in self.labels.items():
            count = heads[name].named_outputs if name in heads else None
            if len(names) != count:
                raise UsageError(f"labels name {len(names)} classes of '{name}', which has {count}")

    def _input_spec(self, position: int, missing: Mapping[str | int, int]) -> InputSpec:
        tensors = [list_columns(part)[position] for part in self._read.values()]
        shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
        if len(shapes) > 1:
            raise UsageError(f"input {position} has the shapes {sorted(shapes)} in {' and '.join(self._read)}")
        padding = missing.get(self.names[position] if self.names else position)
        # Whole numbers are indices into an embedding table of this size.
        vocabulary = 0 if tensors[0].is_floating_point() else max(int(tensor.max()) for tensor in tensors) + 1
        return InputSpec(shapes.pop(), vocabulary, padding)


@dataclass(frozen=True)
class ExampleSequence(Sequence[RawExample]):
    """The examples of a split, each read when it is asked for: an array, or a mapping of names to arrays.

    Attributes:
        split: The split.
        names: Names of the inputs.
    """

    split: Split
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.split)

    @overload
    def __getitem__(self, index: int) -> RawExample: ...

    @overload
    def __getitem__(self, index: slice) -> "ExampleSequence": ...

    def __getitem__(self, index: int | slice) -> "RawExample | ExampleSequence":
        rows = torch.arange(len(self))[index].reshape(-1)
        part = self.split.select(rows)
        if isinstance(index, slice):
            return ExampleSequence(part, self.names)
        arrays = [tensor[0].numpy() for tensor in part.inputs]
        return arrays[0] if len(arrays) == 1 else dict(zip(self.names, arrays, strict=True))


def _list_items(part: str, targets: object) -> list[object]:
    """Return the targets of each example: the entries of a sequence, or of each array of a mapping."""
    if isinstance(targets, Mapping):
        columns = {name: _list_items(part, values) for name, values in targets.items()}
        if len({len(column) for column in columns.values()}) != 1:
            sizes = {str(name): len(column) for name, column in columns.items()}
            raise UsageError(f"data '{part}': targets have entries of different lengths, {sizes}")
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if isinstance(targets, str | bytes) or not hasattr(targets, "__len__") or not hasattr(targets, "__getitem__"):
        raise UsageError(f"data '{part}': targets are {type(targets).__name__}; give a list with those of each example")
    return [targets[index] for index in range(len(targets))]


def read_examples(
    part: str, data: object, classes: dict[str, list[str]] | None = None
) -> tuple[Split, tuple[str, ...]]:
    """Return examples in any of the forms that :class:`Tensors` takes as a split, and the names of the inputs.

    Args:
        part: Name of the data, for messages.
        data: Pair ``(inputs, targets)``, or a data set with items ``(input, target)``.
        classes: Names of the classes of each head; the names of a head of texts are added. ``None`` refuses texts.

    Raises:
        UsageError: Lengths differ, a target is no number, an input is not finite, or the data fit neither into memory
            nor onto the disk.
    """
    raw_inputs, raw_targets = as_pair(part, data)
    names: tuple[str, ...] = ()
    if isinstance(raw_inputs, Mapping):
        names, raw_inputs = tuple(map(str, raw_inputs)), tuple(raw_inputs.values())
    elif not isinstance(raw_inputs, tuple):
        raw_inputs = (raw_inputs,)
    if not isinstance(raw_targets, Mapping):
        raw_targets = {ONLY_HEAD: raw_targets}
    inputs = tuple(
        _read_input(f"data '{part}', input {names[at] if names else at}", value) for at, value in enumerate(raw_inputs)
    )
    targets = {
        str(head): _read_targets(f"data '{part}', targets of '{head}'", str(head), value, classes)
        for head, value in raw_targets.items()
    }
    if not inputs or not targets:
        raise UsageError(f"data '{part}' has no {'inputs' if not inputs else 'targets'}")
    sizes = {len(tensor) for tensor in (*inputs, *targets.values())}
    if len(sizes) > 1:
        raise UsageError(f"data '{part}' has inputs and targets of different lengths: {sorted(sizes)}")
    return make_split(inputs, targets), names


def read_keys(parts: Mapping[str, Split], groups: object, times: object) -> dict[str, ExampleKeys]:
    """Return the groups or times of the examples of each part.

    Args:
        parts: Part, such as ``train``, to its examples.
        groups: Groups of the training examples, ``[N]``, or a mapping of parts to them; None if there are none.
        times: Times in the same form.

    Raises:
        UsageError: Both are given, a length differs, or two parts share a group or overlap in time.
    """
    if groups is not None and times is not None:
        raise UsageError("give groups or times: a group that lasts over time would have to be in two splits")
    if groups is None and times is None:
        return {}
    given, option = (groups, "groups") if times is None else (times, "times")
    by_part = given if isinstance(given, Mapping) else {"train": given}
    # Groups are numbers or names, and times may be dates, so arrays of any type are read.
    values: dict[str, NDArray[Any]] = {}
    for part in by_part:
        if part not in parts:
            raise UsageError(f"{option} has '{part}'; {did_you_mean(str(part), parts)}")
        array = np.asarray(by_part[part])
        if array.shape != (len(parts[part]),):
            raise UsageError(
                f"{option} of '{part}' have the shape {list(array.shape)}; give one for each of the "
                f"{len(parts[part]):,} examples"
            )
        values[part] = array
    if "train" not in values:
        raise UsageError(f"{option} has no 'train'; give those of the training examples")
    key = KeyColumn(option, option == "times")
    if option == "groups":
        return key.make_group_keys(values)
    return key.make_time_keys({part: _as_times(array, part) for part, array in values.items()})


def _as_times(array: NDArray[Any], part: str) -> NDArray[np.float64]:
    if array.dtype.kind == "M":
        # NaT becomes the smallest number otherwise.
        numbers = np.where(np.isnat(array), np.nan, array.astype("datetime64[us]").astype(np.float64))
    elif array.dtype.kind in "fiub":
        numbers = array.astype(np.float64)
    else:
        places = [f"times of '{part}', example {row}" for row in range(len(array))]
        return np.array(parse_times([str(value) for value in array], "times", places))
    if not np.isfinite(numbers).all():
        example = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise UsageError(
            f"times of '{part}', example {example}: it has no place in time; give a number or a date, or leave it out"
        )
    return numbers


def _read_targets(description: str, head: str, value: object, classes: dict[str, list[str]] | None) -> Tensor:
    """Return the targets of one head; texts become indices of the classes that they name."""
    require_memory(
        description, _LARGEST_ITEM * math.prod(getattr(value, "shape", (0,))), "targets are held there: give a part"
    )
    if classes is not None:
        named = read_class_names(description, value, classes.get(head))
        if named is not None:
            classes[head] = named[1]
            return named[0]
    return read_targets(description, value)


def _read_input(description: str, value: object) -> Column:
    """Return an input of all examples as float32 or int64, in memory, or in a file if it is large or in one already.

    Raises:
        UsageError: It cannot be used, or is too large for the disk.
    """
    column = value if isinstance(value, FileArray) else locate_memmap(description, value)
    if column is not None:
        return column
    # Only this sparse form has slices of rows.
    value = value.tocsr() if hasattr(value, "tocsr") else value
    shape = getattr(value, "shape", ())
    # Frames and lists have no such slices; a copy of them takes no more than they do.
    is_divisible = hasattr(value, "toarray") or isinstance(value, np.ndarray)
    is_divisible |= isinstance(value, Tensor) and value.layout is torch.strided
    if is_divisible and shape and exceeds_memory(_LARGEST_ITEM * math.prod(shape)):
        return write_array(description, value, read_array)
    tensor = read_array(description, value)
    if not tensor.dim():
        raise UsageError(f"{description} is a single number; axis 0 must be the examples")
    if tensor.is_floating_point():
        check_finite(description, tensor)
    # Booleans are features 0 and 1, and bytes along several axes the pixels of an image: neither are indices.
    values = compact_values(tensor, tensor.dim())
    return values if values.dtype is torch.int64 else values.float()
