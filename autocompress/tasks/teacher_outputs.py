"""The task of a teacher that is no torch module: students of any family learn from its outputs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.heads import Head, as_head
from autocompress.core.task import Split, Task, bounded_batch
from autocompress.errors import TrialError, UsageError
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.models.output_teacher import OutputTeacher
from autocompress.tasks.data_task import DataTask, KindOption
from autocompress.tasks.output_sources import OutputSource
from autocompress.tasks.table_files import name_category
from autocompress.tasks.tensors import Tensors

Array = NDArray[Any]
# Smallest probability of a class: its logarithm is finite, and far below that of any likely class.
SMALLEST = 1e-6
# Probabilities of an example may miss the sum 1 by rounding.
SUM_TOLERANCE = 1e-3
# Training examples on which a teacher is checked, and that identify it.
EXAMPLES_CHECKED = 2_048
# Most examples that the source gets in one call.
PREDICTED_EXAMPLES = 65_536
# Accuracy that another order of the classes must gain before the order counts as wrong, and the least examples for it.
GAIN, LEAST_EXAMPLES = 0.1, 50
NO_TRAINING = (Part(FROM_TEACHER), Part.of("adamw", epochs=0))


class TableData(Protocol):
    """A task whose rows hold more than the inputs of its models."""

    def compute_rows(self, source: OutputSource) -> list[Array]:
        """Return the outputs of a source for every row, in the order of ``Split.keys.rows``."""
        ...


@dataclass
class TeacherOutputs:
    """A teacher known by its outputs on the examples of a task.

    Args:
        source: Estimator or file that computes the outputs.
        data: The task.

    Raises:
        UsageError: The outputs do not fit the head: another number or order of classes, or values that are not finite.
    """

    source: OutputSource
    data: Task

    def __post_init__(self) -> None:
        """Compute the outputs for all rows of a table, or for some examples, and check them."""
        data = self.data
        if len(data.heads) != 1:
            raise UsageError(
                f"{self.source.description} serves one head, and the task has {len(data.heads)} "
                f"({', '.join(data.heads)}); bring a torch module"
            )
        self.name = next(iter(data.heads))
        self._is_probability = self.source.is_probability
        self.stored: Tensor | None = None
        if hasattr(data, "compute_rows"):
            self.stored = self._read_outputs(data.compute_rows(self.source))
        # The splits of one seed serve the checks: the outputs do not depend on it.
        some = data.splits(0).train.take(slice(0, EXAMPLES_CHECKED))
        outputs = self.predict_split(some)[self.name]
        self._check_order(outputs, some.targets[self.name])
        checked = outputs if self.stored is None else self.stored
        content = checked.contiguous().numpy().tobytes() + self.source.identity.encode()
        self.identity = hashlib.sha256(content).hexdigest()[:12]

    @property
    def head(self) -> Head:
        """The head that the teacher serves."""
        return as_head(self.data.heads[self.name])

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes of the data, or their numbers."""
        return self.data.labels.get(self.name) or [str(index) for index in range(self.head.classes)]

    def make_model(self) -> nn.Module:
        """Return the teacher as a model without layers."""
        return OutputTeacher(self.predict_split, self.source.file_bytes)

    def predict_split(self, split: Split) -> dict[str, Tensor]:
        """Return the outputs on examples by head.

        Raises:
            TrialError: They are rows of another table.
            UsageError: The source fails, or returns other outputs than on the examples that were checked.
        """
        if self.stored is None:
            names = getattr(self.data, "names", ())
            # In batches, because the split may be larger than the memory.
            outputs = [
                self._read_outputs(self.source.compute_inputs([tensor.numpy() for tensor in batch.inputs], names))
                for batch in split.batches(bounded_batch(split, PREDICTED_EXAMPLES))
            ]
            return {self.name: torch.cat(outputs)}
        if split.keys.rows is None:
            raise TrialError(f"the outputs of {self.source.description} are known for the rows of its table only")
        return {self.name: self.stored[split.keys.rows]}

    def _read_outputs(self, arrays: Sequence[Array]) -> Tensor:
        """Return the outputs as the head reads them: logits of classes, or numbers."""
        head, description = self.head, self.source.description
        if head.kind == "regression":
            if self.source.is_probability:
                raise UsageError(f"{description} predicts classes, and the targets of '{self.name}' are numbers")
            return torch.from_numpy(self._select_output(arrays, int(head))).float()
        if head.kind not in ("classes", "binary"):
            raise UsageError(f"{description} serves classes and numbers, not {head.describe()}; bring a torch module")
        if self.source.is_probability is False:
            raise UsageError(
                f"{description} predicts numbers, and the targets of '{self.name}' are classes; give a classifier with "
                "predict_proba, or state the kind regression"
            )
        logits = self._read_logits(arrays, head.classes)
        return logits[:, 1:] - logits[:, :1] if head.kind == "binary" else logits

    def _read_logits(self, arrays: Sequence[Array], classes: int) -> Tensor:
        """Return logits ``[N, C]`` in the order of the classes of the data."""
        order = self._order_classes()
        values = self._select_output(arrays, classes)
        # One output for two classes is that of the second one.
        is_single = values.shape[1] == 1
        if self._is_probability is None:
            # The first examples decide: a few logits may look like probabilities.
            self._is_probability = _are_probabilities(values)
        if self._is_probability and not _are_probabilities(values):
            raise UsageError(f"{self.source.description} returns numbers that are no probabilities of classes")
        if is_single:
            values = np.concatenate([1 - values if self._is_probability else 0 * values, values], 1)
        if self._is_probability:
            values = np.log(np.maximum(values, SMALLEST))
        return torch.from_numpy(values[:, order]).float()

    def _select_output(self, arrays: Sequence[Array], count: int) -> Array:
        """Return the output with the number of columns of the head, ``[N, K]`` in double precision, checked."""
        tables = [values.reshape(len(values), -1).astype(np.float64) for values in arrays]
        is_pair = self.head.kind != "regression" and count == 2
        fitting = [values for values in tables if values.shape[1] == count]
        fitting += [values for values in tables if is_pair and values.shape[1] == 1]
        if not fitting:
            sizes = " and ".join(str(values.shape[1]) for values in tables)
            wanted = f"{count} values" if self.head.kind == "regression" else f"{count} classes"
            raise UsageError(
                f"{self.source.description} returns {sizes} numbers for each example, and '{self.name}' has {wanted}"
                f"{self._list_names()}; fit it on the same targets"
            )
        values = fitting[-1]
        finite = np.isfinite(values).all(1)
        if not finite.all():
            raise UsageError(
                f"{self.source.description} returns a number that is not finite for example {int(np.argmin(finite))}; "
                "a teacher needs outputs for every example, also those with missing values"
            )
        return values

    def _list_names(self) -> str:
        if self.head.kind == "regression":
            return ""
        names = self.class_names
        return f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"

    def _order_classes(self) -> list[int]:
        """Return the column of each class of the data in the outputs of the source."""
        names = list(self.class_names)
        given = self.source.classes
        if given is None:
            return list(range(len(names)))
        theirs = [name_category(value) for value in given]
        if set(theirs) == set(names):
            return [theirs.index(name) for name in names]
        # Numbers in the order of the classes, as scikit-learn's LabelEncoder gives them.
        if theirs == [str(index) for index in range(len(names))]:
            return list(range(len(names)))
        unknown = next((name for name in theirs if name not in names), "")
        lacking = next((name for name in names if name not in theirs), "")
        raise UsageError(
            f"{self.source.description} has {len(theirs)} classes, and '{self.name}' has {len(names)}: "
            + (f"'{unknown}' is no class of the data" if unknown else f"it lacks '{lacking}'")
            + "; fit it on the same targets"
        )

    def _check_order(self, outputs: Tensor, targets: Tensor) -> None:
        """Check that no other order of the classes fits the targets much better.

        Raises:
            UsageError: One does.
        """
        head = self.head
        if head.kind == "regression":
            return
        rows = head.flatten(outputs).argmax(1).numpy()
        labels = head.flatten_targets(targets).numpy()
        is_known = labels >= 0
        rows, labels = rows[is_known], labels[is_known]
        if len(rows) < LEAST_EXAMPLES:
            return
        counts = np.zeros((head.classes, head.classes))
        np.add.at(counts, (rows, labels), 1)
        columns, best = linear_sum_assignment(-counts)
        accuracy, reordered = np.trace(counts) / len(rows), counts[columns, best].sum() / len(rows)
        if reordered > accuracy + GAIN:
            names = self.class_names
            moved = next(column for column in columns if best[column] != column)
            raise UsageError(
                f"{self.source.description} has its classes in another order: as given, {accuracy:.0%} of {len(rows)} "
                f"training examples are right, and {reordered:.0%} if output {moved} is '{names[best[moved]]}' instead "
                f"of '{names[moved]}'; give outputs in the order {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
            )


def _are_probabilities(values: Array) -> bool:
    """Return whether rows of outputs are between 0 and 1, and sum to 1 if there are several columns."""
    is_inside = bool((values >= -SUM_TOLERANCE).all() and (values <= 1 + SUM_TOLERANCE).all())
    return is_inside and (values.shape[1] == 1 or bool((np.abs(values.sum(1) - 1) <= SUM_TOLERANCE).all()))


class OutputsTask(DataTask):
    """Task of a teacher that is no torch module, with the data of another task.

    Args:
        source: Estimator or file that computes the teacher's outputs.
        data: A task, or the data that :class:`~autocompress.Tensors` takes.
        kinds: Kind of the head, if the data are tensors.
        groups: Group of each example, ``[N]``, if the data are tensors.
        times: Time of each example, ``[N]``, if the data are tensors.

    Raises:
        UsageError: The outputs do not fit the data.
    """

    name = "module"

    def __init__(
        self,
        source: OutputSource,
        data: object,
        *,
        kinds: KindOption = None,
        groups: object = None,
        times: object = None,
    ) -> None:
        is_open = kinds is None and not hasattr(data, "splits")
        if is_open and source.is_probability is False:
            kinds = "regression"
        super().__init__(data, kinds=kinds, groups=groups, times=times)
        if is_open and isinstance(self._data, Tensors) and source.is_probability is None:
            self._fit_outputs(source, self._data)
        self.outputs = TeacherOutputs(source, self._data)

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Hash of the teacher's outputs in twelve hex digits."""
        return {"content": self.outputs.identity}

    def teacher(self) -> tuple[Part, Part]:
        """Return the teacher itself, which is not trained."""
        return NO_TRAINING

    def build(self, student: Part) -> nn.Module:
        """Return the teacher, or an untrained model of a family."""
        return self.outputs.make_model() if student.name == FROM_TEACHER else super().build(student)

    def _fit_outputs(self, source: OutputSource, data: Tensors) -> None:
        """Take the kind of the head from the outputs on one example, as for a module."""
        inputs = [tensor.numpy() for tensor in data.splits(0).train.take(slice(0, 1)).inputs]
        output = source.compute_inputs(inputs, data.names)[-1]
        head = next(iter(data.heads))
        self._data = data.fit_outputs({head: torch.from_numpy(output.reshape(1, -1)).float()})
        self._read_data()
