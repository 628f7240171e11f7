"""Targets of examples in memory: reading them, and inferring the kind of head from targets and outputs."""

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.core.heads import IGNORED, KINDS, Binary, Dense, Detection, Head, MultiLabel, Regression, Tags
from autocompress.errors import TrialError, UsageError, did_you_mean
from autocompress.tasks.array_forms import read_array

Kind = str | Head
"""A kind of head by name, or a head with its settings."""

# The table of results has each score of a head once per split: without a suffix, and with these for other splits.
RESERVED_SUFFIXES = ("_test", "_search", "_folds")
# Groups of equal size by which a stratified split keeps the distribution of a number.
NUMBER_STRATA = 10


@dataclass(frozen=True)
class ReadHead:
    """A head that was inferred from its targets.

    Attributes:
        head: The head.
        targets: The targets of each part, in the form that the head reads.
        notice: Remark on a guess that a user should know; empty if there is none.
    """

    head: Head
    targets: Mapping[str, Tensor]
    notice: str = ""


def is_reserved_name(head: str) -> bool:
    """Return whether a name belongs to an attribute of torch's modules, or to an input of an exported graph."""
    return hasattr(nn.ModuleDict, head) or head == "training" or bool(re.fullmatch(r"input(_\d+)?", head))


def check_head_names(columns: Mapping[str, str]) -> None:
    """Check that each head's name can name a submodule, and a column of the table of results.

    Args:
        columns: Name that the user gave to the name of the head.

    Raises:
        UsageError: A name is no identifier, is reserved, or ends like the column of a split.

    Example:
        >>> check_head_names({"star rating": "star rating"})
        Traceback (most recent call last):
        autocompress.errors.UsageError: a head cannot be called 'star rating'; give a word such as 'star_rating'
    """
    for column, head in columns.items():
        if not head.isidentifier() or keyword.iskeyword(head) or is_reserved_name(head):
            word = re.sub(r"\W+", "_", head).strip("_") or "label"
            word = word if word.isidentifier() and word != head else f"{word}_label"
            raise UsageError(f"a head cannot be called '{head}'; give a word such as '{word}'")
        ending = next((suffix for suffix in RESERVED_SUFFIXES if head.endswith(suffix)), "")
        if ending and len(columns) > 1:
            raise UsageError(
                f"'{column}' gives the head '{head}', whose scores could be confused with those of a head "
                f"'{head.removesuffix(ending)}' on the split '{ending[1:]}'; rename the column or the head so that it "
                f"does not end in '{ending}'"
            )


def read_targets(description: str, value: object) -> Tensor:
    """Return targets as int64, or as float32 with NaN where one is missing.

    Raises:
        UsageError: They are no numbers, there is none, or one is infinite.
    """
    tensor = read_array(description, value)
    if not tensor.dim() or not len(tensor):
        raise UsageError(f"{description} have the shape {list(tensor.shape)}; axis 0 must be the examples")
    if not tensor.is_floating_point():
        return tensor.long()
    if bool(tensor.isinf().any()):
        example = int(tensor.isinf().reshape(len(tensor), -1).any(1).nonzero()[0])
        raise UsageError(f"{description}: example {example} is infinite; give a number, or NaN where it is missing")
    numbers = tensor.float()
    if bool(numbers.isinf().any()):
        raise UsageError(f"{description} have numbers beyond the range of float32; scale them")
    return numbers


def read_head(
    name: str, targets: Mapping[str, Tensor], kind: Kind, output: Tensor | None, missing: int | None
) -> ReadHead:
    """Return the head that the targets, and the outputs of the module if it is known, imply.

    Args:
        name: Name of the head, for messages.
        targets: Targets of each part, as :func:`read_targets` returns them.
        kind: Kind of head that the user states; ``auto`` to infer it.
        output: The module's output for one example, ``[1, ...]``; ``None`` if there is no module yet.
        missing: Class index that marks a missing label, such as 255 in masks; ``None`` for -100.

    Raises:
        UsageError: Targets and outputs do not fit each other, or the kind.
    """
    if missing is not None:
        targets = {part: torch.where(values == missing, IGNORED, values) for part, values in targets.items()}
    train = targets["train"]
    if bool((train.isnan() if train.is_floating_point() else train == IGNORED).all()):
        raise UsageError(f"every target of '{name}' is missing in train; give at least the labels of two classes")
    if kind == "detection" or isinstance(kind, Detection):
        raise UsageError(
            f"the kind of head '{name}' is 'detection', which the task of that name has; a detector of your own has a "
            "CustomHead with its loss"
        )
    if isinstance(kind, Head):
        head = _complete_head(kind, train)
        return ReadHead(head, {part: convert_targets(name, head, values) for part, values in targets.items()})
    if kind != "auto" and kind not in KINDS:
        raise UsageError(f"the kind of head '{name}' is {kind!r}: {did_you_mean(kind, KINDS)}")
    if kind == "levels":
        raise UsageError(f"the kind of head '{name}' is 'levels' without values: give Levels(size, levels=...)")
    inferred, notice = (kind, "") if kind != "auto" else _infer_kind(name, train, output)
    if kind == "classes" and train[0].numel() != 1:
        raise UsageError(
            f"targets of '{name}' have the shape {list(train.shape)}; give one class index for each example, [N], or "
            "state the kind: kinds='multilabel', 'tags', 'dense' or 'regression'"
        )
    if inferred == "one_hot":
        targets = {part: _from_one_hot(values) for part, values in targets.items()}
        inferred = "classes"
    head = _make_head(name, inferred, targets, output)
    converted = {part: convert_targets(name, head, values) for part, values in targets.items()}
    return ReadHead(head, converted, notice)


def make_strata(head: Head, targets: Tensor) -> Tensor | None:
    """Return the group of each example, ``[N]``, by which splits are stratified; ``None`` for a random split."""
    if head.kind in ("classes", "levels", "binary"):
        return targets.reshape(-1)
    if isinstance(head, Regression) and targets.numel() == len(targets) and bool(targets.isfinite().all()):
        order = targets.reshape(-1).argsort(stable=True).argsort(stable=True)
        # Each split needs examples of each group.
        groups = min(NUMBER_STRATA, len(targets) // 50)
        return order * groups // len(targets) if groups > 1 else None
    return None


def _infer_kind(name: str, targets: Tensor, output: Tensor | None) -> tuple[str, str]:
    """Return the kind of a head and a notice about a guess."""
    values = targets[~targets.isnan()] if targets.is_floating_point() else targets[targets != IGNORED]
    is_whole = not targets.is_floating_point() or bool((values == values.round()).all())
    is_binary = is_whole and bool(((values == 0) | (values == 1)).all())
    outputs = None if output is None else output[0].numel()
    described = f"targets of '{name}'"
    if targets.dim() == 1 or targets[0].numel() == 1:
        return _infer_scalar_kind(described, targets, is_whole, is_binary, outputs)
    if output is None and targets.dim() == 2 and is_binary and bool((targets.sum(1) == 1).all()):
        return "one_hot", ""
    # One output for each target: labels, numbers, or one-hot rows of a classifier.
    if output is not None and output[0].shape == targets[0].shape:
        is_one_hot = targets.dim() == 2 and is_binary and bool((targets.sum(1) == 1).all())
        if is_one_hot:
            notice = f"{described} have one 1 in each row and are read as classes; several labels: kinds='multilabel'"
            return "one_hot", notice
        return ("multilabel" if is_binary else "regression"), ""
    if not is_whole:
        return "regression", ""
    if output is None:
        is_flag = targets.is_floating_point() and is_binary
        return ("multilabel" if is_flag else "tags" if targets.dim() == 2 else "dense"), ""
    if tuple(output.shape[1:-1]) == tuple(targets.shape[1:]):
        return "tags", ""
    return "dense", ""


def _infer_scalar_kind(
    described: str, targets: Tensor, is_whole: bool, is_binary: bool, outputs: int | None
) -> tuple[str, str]:
    if not is_whole:
        return "regression", ""
    # A single output cannot be the logits of several classes.
    if outputs == 1:
        return ("binary" if is_binary else "regression"), ""
    if targets.is_floating_point():
        notice = f"{described} are real numbers that are all whole, and are read as classes; for numbers give "
        return "classes", notice + "kinds='regression'"
    return "classes", ""


def _make_head(name: str, kind: str, targets: Mapping[str, Tensor], output: Tensor | None) -> Head:
    train = targets["train"]
    if kind == "binary":
        return Binary()
    if kind == "multilabel":
        return MultiLabel(train[0].numel())
    if kind == "regression":
        return _scale_head(Regression(train[0].numel()), train)
    classes = max(int(torch.nan_to_num(part, nan=0.0).max()) for part in targets.values()) + 1
    if kind == "tags":
        return Tags(classes if output is None else int(output.shape[-1]), "accuracy")
    if kind == "dense":
        return Dense(classes if output is None else int(output.shape[1]))
    return Head(classes)


def _complete_head(head: Head, train: Tensor) -> Head:
    """Return a head of the user's; a regression without a scale takes that of the training targets."""
    if not isinstance(head, Regression) or set(head.scale) != {1.0} or any(head.center):
        return head
    # Targets of another size are refused with the outputs of the module.
    return _scale_head(head, train) if train[0].numel() == int(head) else head


def _scale_head(head: Regression, train: Tensor) -> Regression:
    """Return a regression with the mean and the standard deviation of the training targets."""
    values = train.reshape(len(train), -1).double()
    # The deviation of a constant value is 0; dividing by 1 avoids values that are not finite.
    scale = tuple(float(column[~column.isnan()].std(correction=0)) or 1.0 for column in values.T)
    center = tuple(values.nanmean(0).nan_to_num(0.0).tolist())
    return Regression(int(head), head.metric, scale, head.loss_name, head.quantile, center)


def convert_targets(name: str, head: Head, targets: Tensor) -> Tensor:
    """Return targets in the form that a head reads.

    Raises:
        UsageError: They are not classes, or there are more than the head has.
    """
    if isinstance(head, Regression):
        return targets.float()
    flat = targets.reshape(len(targets), -1)
    is_missing = flat.isnan() if flat.is_floating_point() else flat == IGNORED
    wrong = ~is_missing & ((flat != flat.round()) if flat.is_floating_point() else torch.zeros_like(is_missing))
    if bool(wrong.any()):
        example = int(wrong.any(1).nonzero()[0])
        value = float(flat[example][wrong[example]][0])
        raise UsageError(
            f"targets of '{name}': example {example} has {value:g}; class indices are whole "
            "numbers, and numbers need kinds='regression'"
        )
    indices = torch.where(is_missing, IGNORED, flat).long()
    low, high = indices < 0, indices >= head.classes
    if bool((low & ~is_missing).any()):
        example = int((low & ~is_missing).any(1).nonzero()[0])
        value = int(indices[example].min())
        raise UsageError(
            f"targets of '{name}': example {example} has the class {value}; class indices start at 0, and a missing "
            f"label is {IGNORED}"
        )
    if bool(high.any()):
        example = int(high.any(1).nonzero()[0])
        raise UsageError(
            f"targets of '{name}': example {example} has the class {int(indices[example].max())}, but the head has "
            f"{head.describe()}"
        )
    shaped = indices.reshape(targets.shape)
    return shaped if head.has_positions or head.kind == "multilabel" else shaped.reshape(-1)


def check_variety(name: str, head: Head, targets: Tensor) -> None:
    """Check that the known targets of a head are not all equal: nothing could be learned, and R2 would be NaN.

    Args:
        name: Name of the head, for messages.
        head: The head.
        targets: Targets in the form that the head reads.

    Raises:
        UsageError: They are.
    """
    values = targets[~targets.isnan()] if targets.is_floating_point() else targets[targets != IGNORED]
    if head.kind != "custom" and len(values) and bool((values == values.flatten()[0]).all()):
        what = "value" if isinstance(head, Regression) else "class"
        raise UsageError(
            f"targets of '{name}' have the single {what} {float(values.flatten()[0]):g}; give at least two"
        )


def _from_one_hot(targets: Tensor) -> Tensor:
    return targets.argmax(1)


def check_output(head: Head, name: str, output: Tensor, targets: Tensor) -> None:
    """Check that a module's output for one example fits a head and its targets, by the head's own loss.

    Args:
        head: The head.
        name: Name of the head, for messages.
        output: The module's output for one example.
        targets: The targets of that example, ``[1, ...]``.

    Raises:
        UsageError: They do not fit.
    """
    try:
        head.loss(output, targets)
    except (TrialError, IndexError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"its output for '{name}' is {list(output.shape)} and does not fit targets {list(targets.shape)} of "
            f"{head.describe()}: {' '.join(str(error).split())}"
        ) from error


def metrics_of(heads: Sequence[Head]) -> tuple[str, ...]:
    """Return the scores of a task with these heads, primary first.

    Example:
        >>> metrics_of([Regression(1)])
        ('r2', 'rmse', 'mae', 'retention')
    """
    metrics = list(dict.fromkeys(head.metric for head in heads))
    scores = ["mean_score"] if len(metrics) > 1 else []
    scores += metrics
    if any(head.has_classes for head in heads):
        scores += ["accuracy", "f1_macro", "loss", "kl", "agreement"]
    if any(head.kind == "dense" for head in heads):
        scores += ["mean_iou"]
    if any(head.has_values for head in heads):
        scores += ["r2", "rmse", "mae"]
    return tuple(dict.fromkeys([*scores, "retention"]))
