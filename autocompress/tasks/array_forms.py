"""Forms of data in memory: arrays, frames, columns and data sets of several libraries, read as tensors.

array     a tensor, a NumPy array of any byte order or stride, a pandas or Arrow column, a sparse matrix, lists
data set  items (input, target) or {"input": ..., "label": ...}: torch's Dataset and DataLoader, Hugging Face
          `datasets`, a list, an iterator
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from autocompress.core.heads import IGNORED
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.base import sort_classes
from autocompress.tasks.mapped_arrays import (
    CHECKED_ITEMS,
    MEMORY_SHARE,
    ArrayWriter,
    FileArray,
    ReadProgress,
    compact_values,
    exceeds_memory,
    require_disk,
)

# Names of the target in items that are mappings.
TARGET_NAMES = ("label", "labels", "target", "targets", "y")

# Bytes that torch takes for a tensor besides its values (measured: 730).
TENSOR_BYTES = 750

#: Values of one field of the items of a data set.
FieldValues: TypeAlias = list[Any]
#: Fields of the items by name or position.
Fields: TypeAlias = dict[Any, FieldValues]


@runtime_checkable
class ItemDataset(Protocol):
    """Torch-style data set: a length and items ``(input, target)``."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """Return one item."""
        ...


def read_array(description: str, value: object) -> Tensor:
    """Return an array or a tensor on the CPU in a form that torch computes with.

    Args:
        description: Name of the value, for messages.
        value: A tensor, an array of any byte order or stride, a pandas or Arrow object, a sparse matrix, or nested
            lists of numbers.

    Raises:
        UsageError: The values are no real numbers.
    """
    if isinstance(value, Tensor):
        return _read_tensor(description, value)
    array = _read_numpy(description, value)
    kind = array.dtype.kind
    if kind == "c":
        raise UsageError(_describe_complex(description))
    if kind not in "fiub":
        first = array.reshape(-1)[0] if array.size else None
        advice = "give numbers (class names as indices, for example through numpy.unique(names, return_inverse=True))"
        if kind in "mM":
            advice = "give numbers, such as seconds since the first one"
        raise UsageError(
            f"{description} has values of type {type(first).__name__}, such as {str(first)[:30]!r}; {advice}"
        )
    if kind == "u" and array.dtype.itemsize == 8 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise UsageError(f"{description} has whole numbers above 2^63; give them as real numbers")
    # torch takes neither the byte order of another machine, nor negative strides, nor large unsigned integers.
    native = np.dtype(np.float32 if kind == "f" and array.dtype.itemsize < 4 else array.dtype.newbyteorder("="))
    if kind == "f" and array.dtype.itemsize > 8:
        native = np.dtype(np.float64)
    if kind == "u" and array.dtype.itemsize > 1:
        native = np.dtype(np.int64)
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def _read_tensor(description: str, value: Tensor) -> Tensor:
    if value.is_nested:
        raise UsageError(f"{description} is a nested tensor; pad its examples to one length")
    tensor = value.detach()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = (tensor if tensor.layout is torch.strided else tensor.to_dense()).cpu()
    if tensor.is_complex():
        raise UsageError(_describe_complex(description))
    # torch has few operations on other unsigned numbers.
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def _describe_complex(description: str) -> str:
    return f"{description} has complex numbers; give their real and imaginary parts as two channels"


def _read_numpy(description: str, value: Any) -> NDArray[Any]:
    """Return a value as an array; numbers among Python objects, with None where one is missing, become real ones."""
    if isinstance(value, np.ma.MaskedArray):
        # Otherwise the values behind the mask would pass for known ones.
        value = np.ma.filled(value.astype(float), np.nan) if np.ma.is_masked(value) else value.data
    value = _unwrap_scalars(value)
    # Sparse matrices of scipy; their conversion by NumPy would give a single object.
    value = value.toarray() if hasattr(value, "toarray") else value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UsageError(f"{description} has rows of different lengths; pad them to one length") from error
    if array.dtype != object:
        return array
    flat = array.reshape(-1)
    if len(flat) and all(isinstance(entry, np.ndarray | list | tuple) for entry in flat):
        # Fields of lists, as Arrow and pandas hold vectors.
        try:
            return _read_numpy(description, np.stack([np.asarray(entry) for entry in flat]))
        except ValueError as error:
            raise UsageError(f"{description} has rows of different lengths; pad them to one length") from error
    is_text = any(isinstance(entry, str | bytes) for entry in flat)
    try:
        # pandas' nullable numbers, Decimal and None; text that looks like a number stays text.
        return array if is_text else np.asarray([_read_number(entry) for entry in flat]).reshape(array.shape)
    except (TypeError, ValueError):
        return array


def _unwrap_scalars(value: Any) -> Any:
    """Return a list of Arrow scalars as Python values: NumPy would read the bytes of their buffers."""
    if isinstance(value, list | tuple) and value and hasattr(value[0], "as_py"):
        return [entry.as_py() for entry in value]
    return value


def _read_number(entry: Any) -> float | int:
    # pandas.NA is no number, and has no truth value.
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return float("nan")
    return int(entry) if isinstance(entry, int | np.integer) else float(entry)


def read_class_names(description: str, value: object, names: list[str] | None) -> tuple[Tensor, list[str]] | None:
    """Return class indices ``[N]`` and the names of the classes if the targets are texts; None if they are numbers.

    Args:
        description: Name of the targets, for messages.
        value: Targets in any form.
        names: Names of the classes in their order, if they are known; by default those that occur, sorted.

    Raises:
        UsageError: A target is none of the known classes.

    Example:
        >>> read_class_names("y", ["b", "a", None], None)
        (tensor([   1,    0, -100]), ['a', 'b'])
    """
    if isinstance(value, Tensor) or hasattr(value, "toarray"):
        return None
    value = _unwrap_scalars(value)
    try:
        array = np.asarray(value)
    except ValueError:
        # Rows of different lengths, which the reading of numbers names.
        return None
    if array.ndim != 1 or array.dtype.kind not in "OUST":
        return None
    # NumPy would turn numbers beside texts in a list into texts.
    raw = value if isinstance(value, list | tuple) else array.tolist()
    entries = [entry.decode(errors="replace") if isinstance(entry, bytes) else entry for entry in raw]
    if not any(isinstance(entry, str) for entry in entries):
        return None
    # None, NaN and pandas.NA mark a missing label among texts.
    mixed = next((entry for entry in entries if isinstance(entry, int | float | np.number) and entry == entry), None)
    if mixed is not None:
        raise UsageError(f"{description} has texts and numbers, such as {mixed!r}; give names or class indices alone")
    texts = [entry for entry in entries if isinstance(entry, str)]
    names = sort_classes(set(texts)) if names is None else names
    indices = {name: index for index, name in enumerate(names)}
    unknown = next((entry for entry in texts if entry not in indices), None)
    if unknown is not None:
        raise UsageError(f"{description} has the class '{unknown}', which is unknown; {did_you_mean(unknown, names)}")
    return torch.tensor(
        [indices.get(entry, IGNORED) if isinstance(entry, str) else IGNORED for entry in entries]
    ), names


def as_pair(part: str, data: object, *, keep_targets: bool = False) -> tuple[object, object]:
    """Return data as a pair of inputs and targets; a data set or an iterator is read once.

    Args:
        part: Name of the data, for messages.
        data: A pair, or a data set with items ``(input, target)``, or an iterator over such.
        keep_targets: Whether targets have any structure: they stay as they are, in a list.

    Raises:
        UsageError: The data has another form, or is too large for the memory.
    """
    if keep_targets and isinstance(data, DataLoader):
        # Its collate function makes batches of inputs and targets; a custom head collates targets alone.
        data = data.dataset
    if isinstance(data, tuple) and len(data) == 2:
        return data
    # Of pandas, polars and Arrow: a frame is no data set of items.
    if hasattr(data, "columns") or type(data).__name__ == "Table":
        raise UsageError(
            f"data '{part}' is a {type(data).__name__}; give (inputs, targets), such as "
            "(table[features], table[target]), or search the task `tabular` on a file"
        )
    items = None if isinstance(data, str | bytes | np.ndarray | Tensor | Mapping) else _list_items(data)
    if items is None:
        raise UsageError(f"data '{part}' is {type(data).__name__}; give (inputs, targets), or a data set of such")
    return _stack_items(part, items, keep_targets, _count_items(data))


def _list_items(data: Any) -> Iterator[object] | None:
    """Return the items of a data set in a fixed order; None if the data is none."""
    if isinstance(data, DataLoader):
        # The order of the data set, because splits must be the same in each process that reads it.
        items = _list_items(data.dataset)
        collate = data.collate_fn
        if items is None or collate is default_collate:
            return items
        return (_take_first(collate([item])) for item in items)
    if isinstance(data, ItemDataset) and not isinstance(data, tuple | IterableDataset):
        return (data[index] for index in range(len(data)))
    return iter(data) if isinstance(data, Iterable) else None


def _count_items(data: object) -> int | None:
    """Return the number of items of a data set; None if it is unknown."""
    items: object = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(items, IterableDataset) or not isinstance(items, ItemDataset):
        return None
    count: int = len(items)
    return count


def _take_first(batch: Any) -> Any:
    """Return the only example of a batch of one, in the structure of the batch."""
    if isinstance(batch, Mapping):
        return {name: _take_first(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list) and not isinstance(batch[0], int | float | str):
        return tuple(_take_first(value) for value in batch)
    return batch[0]


def _stack_items(part: str, items: Iterator[object], keep_targets: bool, total: int | None) -> tuple[object, object]:
    """Return the inputs and the targets of all items; kept targets are a list.

    Inputs that take more than a share of the memory go to files, see :mod:`autocompress.tasks.mapped_arrays`.
    """
    inputs: Fields = {}
    targets: Fields = {}
    raw_targets: list[object] = []
    progress = ReadProgress(f"data '{part}'", total)
    with ExitStack() as stack:
        writers: dict[Any, ArrayWriter] = {}
        for index, item in enumerate(_catch_errors(part, items)):
            pair = _divide_item(part, index, item)
            if keep_targets:
                raw_targets.append(pair[1])
            for where, columns, value in (("", inputs, pair[0]), ("target of ", targets, pair[1]))[
                : 1 if keep_targets else 2
            ]:
                fields = _name_fields(value)
                if index and set(fields) != set(columns):
                    raise UsageError(f"data '{part}', item {index} has other parts than item 0")
                for name, entry in fields.items():
                    column = columns.setdefault(name, [])
                    column.append(_read_entry(f"data '{part}', {where}item {index}", entry, bool(where)))
                    _check_shape(part, index, where, column)
            if index % CHECKED_ITEMS == 0:
                _check_targets(part, index + 1, list(targets.values()))
                size = sum(column[0].nbytes for column in inputs.values())
                read, count = index + 1, total or index + 1
                if not writers and exceeds_memory((size + TENSOR_BYTES * len(inputs)) * count):
                    require_disk(f"data '{part}'", size * count, None if total else read)
                    for name, column in inputs.items():
                        writers[name] = stack.enter_context(closing(ArrayWriter(torch.stack(column[:1]))))
                _flush_columns(part, inputs, writers)
                if writers and total is None:
                    require_disk(f"data '{part}'", size * read, read)
                progress.update(read)
        if not inputs:
            raise UsageError(f"data '{part}' is empty")
        # The first entry stays, for the shape.
        _flush_columns(part, inputs, writers)
        files = {name: writer.finish() for name, writer in writers.items()}
    return _join_columns(inputs, files), raw_targets if keep_targets else _join_columns(targets, {})


def _flush_columns(part: str, inputs: Fields, writers: Mapping[Any, ArrayWriter]) -> None:
    """Write the entries that are in memory to the files, and leave the first one of the data as the example of all."""
    for name, writer in writers.items():
        column = inputs[name]
        # After the first write, the first entry is in the file already.
        rest = column[1:] if writer.count else column
        if rest:
            where = f"data '{part}'" if name is None else f"data '{part}', input {name}"
            writer.append(where, torch.stack(rest))
        del column[1:]


def _catch_errors(part: str, items: Iterator[object]) -> Iterator[object]:
    index = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:  # the user's code may raise any exception
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(f"data '{part}', item {index} cannot be read ({reason})") from error
        yield item
        index += 1


def _divide_item(part: str, index: int, item: object) -> tuple[object, object]:
    """Return the input and the target of an item."""
    if isinstance(item, Mapping):
        target_names = [name for name in item if str(name).lower() in TARGET_NAMES]
        if len(target_names) != 1 or len(item) < 2:
            raise UsageError(
                f"data '{part}', item {index} has the names {list(item)}; one of them must be the target, with a name "
                f"such as {' or '.join(TARGET_NAMES[:3])}, and the others the inputs"
            )
        rest = {name: value for name, value in item.items() if name != target_names[0]}
        return (next(iter(rest.values())) if len(rest) == 1 else rest), item[target_names[0]]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise UsageError(f"data '{part}', item {index} is {type(item).__name__}; items must be (input, target)")


def _name_fields(value: object) -> dict[Any, object]:
    if isinstance(value, Mapping):
        return dict(value)
    # A list is an array; a tuple holds several inputs.
    return dict(enumerate(value)) if isinstance(value, tuple) else {None: value}


def _read_entry(description: str, entry: object, is_target: bool) -> Tensor | str | None:
    # Class names are indexed when all of them are known.
    if is_target and (entry is None or isinstance(entry, str)):
        return entry
    if isinstance(entry, str):
        raise UsageError(f"{description} is a text; give token indices, or search the task `text` on a file")
    values = read_array(description, entry)
    # Python's numbers are of double precision, which no model reads.
    return values if is_target else compact_values(values, values.dim() + 1)


def _check_shape(part: str, index: int, where: str, column: FieldValues) -> None:
    first, last = getattr(column[0], "shape", None), getattr(column[-1], "shape", None)
    if first != last:
        described = "no shape" if last is None else f"the {'target of the ' if where else ''}shape {list(last)}"
        raise UsageError(f"data '{part}', item {index} has {described}, not that of item 0")


def _check_targets(part: str, count: int, columns: list[FieldValues]) -> None:
    size = sum(column[0].nbytes * count for column in columns if isinstance(column[0], Tensor))
    if exceeds_memory(size):
        raise UsageError(
            f"data '{part}': targets take more than {MEMORY_SHARE:.0%} of the free memory after {count:,} items; give "
            "a part of it (itertools.islice), since targets are held in memory"
        )


def _join_columns(columns: Fields, files: Mapping[Any, FileArray]) -> object:
    """Return the columns as they were: one, a tuple, or a mapping of names; those in files as such."""
    joined: dict[Any, object] = {name: files.get(name) or _stack_column(column) for name, column in columns.items()}
    if list(joined) == [None]:
        return joined[None]
    return tuple(joined.values()) if all(isinstance(name, int) for name in joined) else joined


def _stack_column(column: FieldValues) -> object:
    return torch.stack(column) if isinstance(column[0], Tensor) else np.array(column, dtype=object)
