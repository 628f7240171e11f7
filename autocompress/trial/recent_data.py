"""Recent data for an adaptation: read, compared with the inputs and heads of a model, and split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from autocompress.core.array_files import read_arrays
from autocompress.core.heads import IGNORED, as_head
from autocompress.core.task import InputSpec, Split, hash_split
from autocompress.core.untrusted import check_data_file
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.array_forms import ItemDataset
from autocompress.tasks.targets import convert_targets
from autocompress.tasks.tensors import read_examples

# Shares of the recent examples; the others are trained on. "choice" selects between the stages of the adaptation, and
# "held_out" measures the result.
HELD_OUT_SHARE = 0.25
CHOICE_SHARE = 0.2
# Batch-norm statistics of fewer examples are noise, and so is a score on a quarter of them.
MIN_EXAMPLES = 64
SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True)
class RecentData:
    """Recent examples that fit a model.

    Attributes:
        examples: The examples; their targets have no meaning without labels.
        is_labelled: Whether the targets were given.
        is_ordered: Whether the examples are in the order of time.
    """

    examples: Split
    is_labelled: bool
    is_ordered: bool = False

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over inputs and targets."""
        return hash_split(self.examples)[:12]


@dataclass(frozen=True)
class RecentSplits:
    """Disjoint parts of recent data.

    Attributes:
        train: Examples for statistics, ranges and gradient steps.
        choice: Examples on which the stages of an adaptation are compared.
        held_out: Examples on which the result is measured.
    """

    train: Split
    choice: Split
    held_out: Split


def read_recent_data(
    data: object,
    inputs: Sequence[InputSpec],
    heads: Mapping[str, int],
    names: Sequence[str],
    *,
    is_ordered: bool = False,
) -> RecentData:
    """Return recent data in any supported form, checked against a model.

    Args:
        data: Path of an ``.npz`` or ``.safetensors`` file of arrays, or a mapping of such names: the inputs under
            ``names``, and the targets under the names of the heads if there are labels. Or ``(inputs, targets)``, where
            the targets may be ``None``; a single tensor or array of inputs; a split; or a data set of ``(input,
            target)``.
        inputs: Specifications of the model's inputs.
        heads: Head name to number of classes.
        names: Names of the model's inputs, as in ``model.onnx``.
        is_ordered: Whether the examples are in the order of time.

    Raises:
        UsageError: The data cannot be read, has other shapes than the model, too few examples, or one class.
    """
    kinds = {as_head(size).kind for size in heads.values()} & {"custom", "detection"}
    if kinds:
        raise UsageError(f"a model with a {min(kinds)} head cannot be adapted to recent data; search again on all data")
    pair, is_labelled = _separate_targets(data, heads, names)
    split, _ = read_examples("recent", pair)
    _check_inputs(split.inputs, inputs, names)
    if len(split) < MIN_EXAMPLES:
        raise UsageError(f"the recent data has {len(split)} examples; an adaptation needs at least {MIN_EXAMPLES}")
    if is_labelled:
        targets = dict(split.targets)
        if len(targets) == len(heads) == 1:
            # Targets without a name belong to the only head.
            targets = dict(zip(heads, targets.values(), strict=True))
        split = Split(split.inputs, _convert_targets(targets, heads))
    else:
        split = Split(split.inputs, {head: torch.zeros(len(split), dtype=torch.long) for head in heads})
    return RecentData(split, is_labelled, is_ordered)


def split_recent_data(recent: RecentData, seed: int) -> RecentSplits:
    """Return the parts of recent data: at random, or the latest examples held out if they are in the order of time."""
    count = len(recent.examples)
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(count) if recent.is_ordered else torch.randperm(count, generator=generator)
    held_out = count - round(HELD_OUT_SHARE * count)
    choice = held_out - round(CHOICE_SHARE * count)
    return RecentSplits(
        recent.examples.take(order[:choice]),
        recent.examples.take(order[choice:held_out]),
        recent.examples.take(order[held_out:]),
    )


def _separate_targets(
    data: object, heads: Mapping[str, int], names: Sequence[str]
) -> tuple[tuple[object, object] | ItemDataset, bool]:
    """Return the data in a form that :func:`read_examples` takes, and whether it has labels."""
    if isinstance(data, str | Path):
        data = _read_file(Path(data).expanduser())
    if isinstance(data, Split):
        return (tuple(data.inputs), dict(data.targets)), True
    if isinstance(data, Mapping):
        return _select_arrays(data, heads, names)
    if isinstance(data, tuple) and len(data) == 2:
        return data if data[1] is not None else _without_targets(data[0]), data[1] is not None
    if isinstance(data, Tensor | np.ndarray):
        return _without_targets(data), False
    if isinstance(data, ItemDataset) and not isinstance(data, tuple):
        return data, True
    raise UsageError(
        f"the recent data is {type(data).__name__}; give (inputs, targets), (inputs, None) without labels, a mapping "
        f"of the names {[*names, *heads]} to arrays, or the path of an .npz or .safetensors file with such names"
    )


def _without_targets(inputs: object) -> tuple[object, object]:
    first = next(iter(inputs.values()), ()) if isinstance(inputs, Mapping) else inputs
    first = first[0] if isinstance(first, tuple) and first else first
    # Placeholders: the reader of examples wants a class for each.
    return inputs, np.zeros(len(first) if isinstance(first, Tensor | np.ndarray) else 0, np.int64)


def _select_arrays(
    arrays: Mapping[str, object], heads: Mapping[str, int], names: Sequence[str]
) -> tuple[tuple[object, object], bool]:
    expected = [*names, *heads]
    for name in arrays:
        if name not in expected:
            raise UsageError(f"the recent data has the array '{name}'; the model takes {expected}")
    for name in names:
        if name not in arrays:
            raise UsageError(f"the recent data lacks the input '{name}': {did_you_mean(name, map(str, arrays))}")
    inputs = tuple(arrays[name] for name in names)
    targets = {head: arrays[head] for head in heads if head in arrays}
    return ((inputs, targets), True) if targets else (_without_targets(inputs), False)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name.

    Raises:
        UsageError: The file has another format or cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: recent data is a file of arrays, {' or '.join(SUFFIXES)}, with the model's inputs after "
            "preprocessing (see card.md), for example numpy.savez('recent.npz', input=inputs, label=targets)"
        )
    try:
        check_data_file(path)
        return load_file(path) if path.suffix == ".safetensors" else read_arrays(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _check_inputs(tensors: Sequence[Tensor], specs: Sequence[InputSpec], names: Sequence[str]) -> None:
    if len(tensors) != len(specs):
        raise UsageError(f"the recent data has {len(tensors)} inputs, and the model takes {len(specs)}: {list(names)}")
    for tensor, spec, name in zip(tensors, specs, names, strict=True):
        shape = tuple(tensor.shape[1:])
        if shape != tuple(spec.shape):
            raise UsageError(
                f"the recent data's '{name}' has examples of shape {list(shape)}, and the model takes "
                f"{list(spec.shape)}; prepare the data as for the training (see card.md)"
            )
        if spec.vocabulary and tensor.is_floating_point():
            raise UsageError(f"the recent data's '{name}' has real numbers, and the model takes whole ones")
        if not spec.vocabulary and not tensor.is_floating_point():
            raise UsageError(f"the recent data's '{name}' has whole numbers, and the model takes real ones")
        if spec.vocabulary and not 0 <= int(tensor.min()) <= int(tensor.max()) < spec.vocabulary:
            raise UsageError(
                f"the recent data's '{name}' has numbers from {int(tensor.min())} to {int(tensor.max())}, and the "
                f"model knows 0 to {spec.vocabulary - 1}"
            )


def _convert_targets(targets: Mapping[str, Tensor], heads: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the targets of every head in the form that the head reads.

    Raises:
        UsageError: A head has no targets, or targets that the model does not know, or a single class.
    """
    for name in targets:
        if name not in heads:
            raise UsageError(f"the recent data has targets of '{name}': {did_you_mean(name, heads)}")
    converted = {}
    for name, size in heads.items():
        head = as_head(size)
        if name not in targets:
            raise UsageError(f"the recent data lacks the targets of '{name}'; give all heads, or none of them")
        highest = int(torch.nan_to_num(targets[name]).max()) if head.has_classes else 0
        if highest >= head.classes and head.has_classes:
            raise UsageError(
                f"the recent data has the class {highest} of '{name}', and the model knows 0 to {head.classes - 1}; "
                "search again for new classes"
            )
        converted[name] = convert_targets(name, head, targets[name])
        present = converted[name][converted[name] != IGNORED].unique()
        if head.has_classes and len(present) == 1 and head.kind != "candidates":
            raise UsageError(
                f"the recent data has the single class {int(present[0])} of '{name}': fine-tuning would forget the "
                "others; give examples of at least two classes"
            )
    return converted
