"""Base class of tasks whose data are those of another task: the teacher is what the user brings."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from autocompress.core.custom_head import CustomHead
from autocompress.core.preprocessing import Preprocessing, RawExample
from autocompress.core.task import Split, Splits, Task
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised
from autocompress.tasks.targets import Kind
from autocompress.tasks.tensors import Tensors

KindOption: TypeAlias = Kind | Mapping[str, Kind] | CustomHead | None


class DataTask(Supervised):
    """Task with the data of another task; a subclass has the teacher.

    Args:
        data: A task such as ``Images(path=...)``, or the data that :class:`~autocompress.Tensors` takes.
        kinds: Kind of each head, if the data are tensors; see there.
        groups: Group of each example, ``[N]``, if the data are tensors.
        times: Time of each example, ``[N]``, if the data are tensors.

    Raises:
        UsageError: The data cannot be used, or it is a task and an option of tensors is given.
    """

    def __init__(
        self,
        data: Any,
        *,
        kinds: KindOption = None,
        groups: object = None,
        times: object = None,
    ) -> None:
        given = {"kinds": kinds, "groups": groups, "times": times}
        for option, value in given.items():
            if value is not None and hasattr(data, "splits"):
                raise UsageError(f"{option} are those of tensors: give them to autocompress.Tensors(..., {option}=...)")
        self._data: Task = (
            data if hasattr(data, "splits") else Tensors(data, kinds=kinds or "auto", groups=groups, times=times)
        )
        self.inputs, self.labels, self.views = self._data.inputs, self._data.labels, self._data.views
        self._read_data()

    def _read_data(self) -> None:
        """Take heads and metrics of the data."""
        self.heads: Mapping[str, int] = self._data.heads
        self.metrics = self._data.metrics

    @property
    def data_name(self) -> str:
        """Name of the task of the data, such as ``tabular``."""
        return self._data.name

    @property
    def preprocessing(self) -> str:
        """Preprocessing of the data."""
        return self._data.preprocessing

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the specification of the data."""
        return self._data.specify_preprocessing(seed)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the raw test examples of the data."""
        return self._data.list_test_examples(seed)

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data."""
        return self._data.notices

    def example(self) -> tuple[Tensor, ...]:
        """Return the example of the data, a batch of one."""
        return self._data.example()

    def splits(self, seed: int) -> Splits:
        """Return the splits of the data."""
        return self._data.splits(seed)

    @property
    def has_distinct_inputs(self) -> bool:
        """Whether equal inputs of the data are duplicates."""
        return self._data.has_distinct_inputs

    @property
    def has_folds(self) -> bool:  # type: ignore[override]
        """Whether any examples of the data may be held out."""
        return bool(getattr(self._data, "has_folds", True))

    def resampling_groups(self, split: Split) -> Tensor | None:
        """Return the groups of the data."""
        return self._data.resampling_groups(split)

    def view(self, split: Split, index: int) -> Split:
        """Return augmented view ``index`` of a split."""
        return self._data.view(split, index)
