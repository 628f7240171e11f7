"""What computes a teacher's outputs without torch: objects with `predict_proba` or `predict`, and ONNX files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.core.untrusted import read_regular_file
from autocompress.errors import ArtifactError, UsageError, did_you_mean
from autocompress.tasks.table_files import is_number_column, name_categories

Array = NDArray[Any]
# Examples of one run of an ONNX file whose batch has no size of its own.
BATCH = 1_024
# Bytes of a file of ONNX, the most that its format allows.
LARGEST_FILE = 2**31
# Element types of ONNX as NumPy names them.
ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


class Classifier(Protocol):
    """A fitted classifier, such as one of scikit-learn."""

    def predict_proba(self, X: Any, /) -> object:  # noqa: N803
        """Return the probability of each class, ``[N, C]``."""
        ...


class Regressor(Protocol):
    """A fitted model of numbers, such as one of scikit-learn."""

    def predict(self, X: Any, /) -> object:  # noqa: N803
        """Return numbers, ``[N]`` or ``[N, D]``."""
        ...


Estimator: TypeAlias = Classifier | Regressor


class OnnxInput(Protocol):
    """An input of an ONNX file: names stand for sizes that vary."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class OnnxSession(Protocol):
    """A session of onnxruntime, which has no types."""

    def get_inputs(self) -> Sequence[OnnxInput]:
        """Return the inputs."""
        ...

    def run(self, outputs: None, inputs: dict[str, Array], /) -> Sequence[Array]:
        """Return all outputs: arrays, or lists where the file returns sequences."""
        ...


class OutputSource(Protocol):
    """What computes outputs of examples.

    Attributes:
        description: Name of the source in messages.
        file_bytes: Bytes of its file; None if it has none.
        is_probability: Whether the outputs are probabilities of classes; None if their values decide.
        classes: Names of the classes in the order of the outputs; None if they are unknown.
        identity: Hex digits that differ between two files; empty if there is no file.
    """

    description: str
    file_bytes: int | None
    is_probability: bool | None
    classes: Sequence[object] | None
    identity: str

    def compute_table(self, table: pd.DataFrame, columns: "TableColumns") -> list[Array]:
        """Return the outputs for each row of a table, one of ``[N]`` or ``[N, K]``."""
        ...

    def compute_inputs(self, inputs: Sequence[Array], names: Sequence[str]) -> list[Array]:
        """Return the outputs for the inputs of a model, axis 0 the examples; names are empty where there are none."""
        ...


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table that a source may read.

    Attributes:
        path: Path of the file, for messages.
        every: All columns but the target and those that the user left out.
        used: Columns that students read.
    """

    path: Path
    every: Sequence[str]
    used: Sequence[str]

    def select_count(self, description: str, count: int) -> Sequence[str]:
        """Return the columns of a source that takes a matrix with ``count`` columns.

        Raises:
            UsageError: There is another number of columns.
        """
        for columns in (self.every, self.used):
            if len(columns) == count:
                return columns
        names = ", ".join(self.every[:12]) + (", ..." if len(self.every) > 12 else "")
        raise UsageError(
            f"{description} takes {count} columns, and {self.path.name} has {len(self.every)} besides the target "
            f"({names}); leave the others out with exclude, or fit the teacher on a data frame with named columns"
        )

    def require(self, description: str, names: Sequence[str], table: pd.DataFrame) -> None:
        """Check that a table has the columns that a source reads by name.

        Raises:
            UsageError: One is missing.
        """
        for name in names:
            if name not in table.columns:
                hint = did_you_mean(name, list(table.columns)[:50])
                raise UsageError(f"{description} reads the column '{name}', which {self.path.name} lacks; {hint}")


@dataclass
class EstimatorSource:
    """An object of the user's with ``predict_proba``, or with ``predict`` for numbers, such as one of scikit-learn.

    Args:
        estimator: The object. It is never read from a file here: unpickling one runs code.

    Raises:
        UsageError: It is a classifier without ``predict_proba``.
    """

    estimator: object
    description: str = field(init=False)
    is_probability: bool | None = field(init=False)
    classes: Sequence[object] | None = field(init=False)
    file_bytes: int | None = None
    identity: str = ""

    def __post_init__(self) -> None:
        """Read what the object says of itself."""
        self.description = f"the teacher {type(self.estimator).__name__}"
        self.is_probability = hasattr(self.estimator, "predict_proba")
        classes = getattr(self.estimator, "classes_", None)
        if classes is not None and not self.is_probability:
            raise UsageError(
                f"{self.description} is a classifier without predict_proba; wrap it, for example in "
                "sklearn.calibration.CalibratedClassifierCV"
            )
        self.classes = None if classes is None else list(classes)

    def compute_table(self, table: pd.DataFrame, columns: TableColumns) -> list[Array]:
        """Return its outputs for the rows of a table: by names of columns if it was fitted on them, or as a matrix."""
        names = getattr(self.estimator, "feature_names_in_", None)
        count = getattr(self.estimator, "n_features_in_", None)
        if names is not None:
            columns.require(self.description, names, table)
            return [self._call(table[list(names)])]
        if count is None:
            return [self._call(table[list(columns.every)])]
        chosen = table[list(columns.select_count(self.description, int(count)))]
        is_numeric = all(is_number_column(chosen[name]) for name in chosen)
        return [self._call(chosen.to_numpy(np.float64 if is_numeric else object, na_value=np.nan))]

    def compute_inputs(self, inputs: Sequence[Array], names: Sequence[str]) -> list[Array]:
        """Return its outputs for one input; that of a scikit-learn estimator is flattened to ``[N, F]``."""
        if len(inputs) != 1:
            raise UsageError(f"{self.description} takes one array, and the data has {len(inputs)} inputs")
        is_flat = hasattr(self.estimator, "n_features_in_")
        return [self._call(inputs[0].reshape(len(inputs[0]), -1) if is_flat else inputs[0])]

    def _call(self, rows: Array | pd.DataFrame) -> Array:
        method = "predict_proba" if self.is_probability else "predict"
        try:
            outputs = np.asarray(getattr(self.estimator, method)(rows))
        except Exception as error:  # The user's code may raise any exception.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(f"{self.description} fails in {method} on {len(rows)} examples: {reason}") from error
        if outputs.shape[:1] != (len(rows),):
            raise UsageError(f"{self.description} returns {list(outputs.shape)} in {method} for {len(rows)} examples")
        return outputs


class OnnxSource:
    """An ONNX file, which onnxruntime runs.

    Args:
        path: The file. It keeps its tensors itself.

    Raises:
        UsageError: The file cannot be read or run.
    """

    def __init__(self, path: Path) -> None:
        path = path.expanduser()
        if not path.is_file():
            raise UsageError(f"there is no file {path}; the teacher is a fitted object, or the path of an .onnx file")
        self.description = f"the teacher {path.name}"
        self.is_probability: bool | None = None
        self.classes: Sequence[object] | None = None
        try:
            self._content = read_regular_file(path, LARGEST_FILE, follows_links=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from None
        self.file_bytes: int | None = len(self._content)
        self.identity = hashlib.sha256(self._content).hexdigest()
        self._session = self._open_session()

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the session, which cannot be copied to another process."""
        return {**self.__dict__, "_session": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Open the session again."""
        self.__dict__.update(state)
        self._session = self._open_session()

    def compute_table(self, table: pd.DataFrame, columns: TableColumns) -> list[Array]:
        """Return its outputs for the rows of a table: one input for each column by name, or one for a matrix."""
        entries = self._session.get_inputs()
        if len(entries) == 1 and entries[0].name not in table.columns:
            shape = entries[0].shape
            is_matrix = len(shape) == 2
            count = shape[1] if is_matrix and isinstance(shape[1], int) else len(columns.every)
            if not is_matrix:
                raise UsageError(f"{self.description} takes {shape}, not the rows of a table, [N, columns]")
            chosen = table[list(columns.select_count(self.description, count))]
            return self._run([_cast_columns(self.description, chosen, self._read_type(entries[0]))])
        names = [entry.name for entry in entries]
        columns.require(self.description, names, table)
        return self._run(
            [_cast_columns(self.description, table[[entry.name]], self._read_type(entry)) for entry in entries]
        )

    def compute_inputs(self, inputs: Sequence[Array], names: Sequence[str]) -> list[Array]:
        """Return its outputs for the inputs of a model: by name if the file has those names, otherwise in order."""
        entries = self._session.get_inputs()
        if len(entries) != len(inputs):
            raise UsageError(f"{self.description} takes {len(entries)} inputs, and the data has {len(inputs)}")
        by_name = dict(zip(names, inputs, strict=True)) if names else {}
        if {entry.name for entry in entries} == set(by_name):
            inputs = [by_name[entry.name] for entry in entries]
        return self._run([values.astype(self._read_type(entry)) for values, entry in zip(inputs, entries, strict=True)])

    def _open_session(self) -> "OnnxSession":
        # onnxruntime takes a while to import, and few tasks have such a teacher.
        from autocompress.targets.onnx_session import create_session

        try:
            session: OnnxSession = create_session(self._content)
            return session
        except ArtifactError as error:
            raise UsageError(f"{self.description} cannot be run: {error}") from error

    def _read_type(self, entry: "OnnxInput") -> str:
        if entry.type not in ONNX_TYPES:
            raise UsageError(
                f"{self.description} takes '{entry.name}' as {entry.type}, which is none of its inputs here"
            )
        return ONNX_TYPES[entry.type]

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the outputs that are numbers for each example, run in batches of the size that the file states."""
        entries = self._session.get_inputs()
        fixed = entries[0].shape[0] if entries[0].shape and isinstance(entries[0].shape[0], int) else 0
        size = fixed or BATCH
        count = len(arrays[0])
        parts: list[list[Array]] = []
        for start in range(0, count, size):
            batch = [values[start : start + size] for values in arrays]
            if fixed and len(batch[0]) < fixed:
                batch = [np.concatenate([values, values[:1].repeat(fixed - len(values), 0)]) for values in batch]
            try:
                outputs = self._session.run(None, dict(zip((entry.name for entry in entries), batch, strict=True)))
            except Exception as error:  # onnxruntime's exceptions have no common root
                raise UsageError(f"{self.description} fails: {str(error).splitlines()[0]}") from error
            if any(isinstance(values, list) for values in outputs):
                raise UsageError(
                    f"{self.description} returns probabilities as mappings of classes; convert it without them "
                    "(skl2onnx: options={'zipmap': False})"
                )
            parts.append([values[: min(size, count - start)] for values in outputs])
        joined = [np.concatenate(values) for values in zip(*parts, strict=True)]
        numbers = [
            values for values in joined if values.dtype.kind == "f" and values.ndim in (1, 2) and len(values) == count
        ]
        if not numbers:
            raise UsageError(
                f"{self.description} returns {', '.join(f'{values.dtype} {list(values.shape)}' for values in joined)}; "
                "a teacher returns numbers for each example, [N] or [N, K]"
            )
        return numbers


def _cast_columns(description: str, table: pd.DataFrame, dtype: str) -> Array:
    """Return columns of a table as ``[N, K]`` of a type of ONNX: a missing text is empty, and a missing number NaN."""
    if dtype == "object":
        return np.stack([name_categories(table[name]) for name in table], 1)
    texts = next((name for name in table if not pd.api.types.is_numeric_dtype(table[name].dtype)), None)
    if texts is not None:
        raise UsageError(f"{description} takes numbers, and the column '{texts}' has texts; give it inputs by name")
    return table.to_numpy(np.float64, na_value=np.nan).astype(dtype)


def open_source(teacher: object) -> OutputSource:
    """Return the source of the outputs of a teacher that is no torch module.

    Args:
        teacher: A fitted object with ``predict_proba`` or ``predict``, or the path of an ``.onnx`` file.

    Raises:
        UsageError: It is neither, or cannot be read.
    """
    if isinstance(teacher, str | Path):
        if Path(teacher).suffix != ".onnx":
            raise UsageError(
                f"{teacher}: a teacher is read from an .onnx file; load a pickled one yourself and pass the object, "
                "because unpickling a file runs the code in it"
            )
        return OnnxSource(Path(teacher))
    return EstimatorSource(teacher)


def is_output_source(teacher: object) -> bool:
    """Return whether a teacher is a path, or an object with ``predict_proba`` or ``predict``.

    Example:
        >>> is_output_source("model.onnx"), is_output_source(lambda: None)
        (True, False)
    """
    # A class is a function that builds an object, not a fitted object.
    is_fitted = not isinstance(teacher, type) and (hasattr(teacher, "predict_proba") or hasattr(teacher, "predict"))
    return isinstance(teacher, str | Path) or is_fitted
