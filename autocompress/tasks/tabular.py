"""Classification and regression of the rows of a table in a CSV or Parquet file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.heads import Head, Regression
from autocompress.core.preprocessing import CategoriesInput, NumbersInput, Preprocessing, RawExample
from autocompress.core.registry import TASKS
from autocompress.core.task import ExampleKeys, InputSpec, Split, Splits
from autocompress.errors import UsageError, did_you_mean
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.tasks.base import (
    FRACTIONS,
    Supervised,
    complete_splits,
    describe_imbalance,
    locate_test_rows,
    sort_classes,
    split_randomly,
)
from autocompress.tasks.output_sources import OutputSource, TableColumns, open_source
from autocompress.tasks.split_rows import KeyColumn
from autocompress.tasks.table_files import (
    MAX_WHOLE_CLASSES,
    Columns,
    check_column,
    choose_columns,
    is_number_column,
    name_categories,
    read_numbers,
    read_table,
)
from autocompress.tasks.targets import make_strata, metrics_of
from autocompress.tasks.teacher_outputs import NO_TRAINING, TeacherOutputs
from autocompress.tasks.text import make_head_name

KINDS = ("auto", "classes", "regression")
SCALINGS = ("standard", "quantile")
# A table with fewer rows has a narrower teacher.
SMALL_ROWS = 1_000
# Up to this share of equal rows they count as copies, which could be in two splits.
MAX_REPEATED_SHARE = 0.1
# Quantiles between which a column is interpolated.
KNOTS = 65


@TASKS.register("tabular")
class Tabular(Supervised):
    """Your own table: a CSV or Parquet file with a column of classes or numbers to predict from the others.

    Columns of numbers are scaled by statistics of the training split, and a flag marks missing ones. Columns of texts
    and truth values are categories; a missing or rare one has an embedding of its own. A column with one value, an
    index of the rows, a time and a column of identifying texts are left out, and :attr:`notices` names them.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header, which may be compressed as ``.gz``, or a ``.parquet`` file.
        test: A second file of that kind for the test split; by default it is taken out of ``path``.
        target: Name of the column to predict; rows without it are left out.
        kind: ``classes``, ``regression``, or ``auto``: real numbers and more than 20 whole ones are numbers.
        categorical: Columns of numbers that are categories, such as codes, and columns of many names to keep; a list,
            or names separated by commas.
        exclude: Columns to leave out, in the same form.
        scaling: ``standard`` for mean 0 and deviation 1, or ``quantile`` for a normal distribution, which long tails
            do not disturb.
        split_groups: Name of the column of groups, such as patients: ``splits: {groups: patient}`` in a search space.
            The model does not see the column.
        split_time: Name of the column of times, instead: ``splits: {time: date}`` in a search space.
        teacher: An ``.onnx`` file that predicts the target, in the place of a trained network. It takes the columns of
            the file by name, or as one matrix of numbers.
        teacher_content: Hash of the outputs of the teacher that a run was started with; empty for any.

    Raises:
        UsageError: A file cannot be used (the message names the column), or an option is out of bounds.
    """

    name = "tabular"
    split_keys = ("groups", "time")

    def __init__(
        self,
        path: str | Path = "",
        *,
        test: str | Path = "",
        target: str = "target",
        kind: str = "auto",
        categorical: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        scaling: str = "standard",
        split_groups: str = "",
        split_time: str = "",
        teacher: str | Path = "",
        teacher_content: str = "",
    ) -> None:
        if not path:
            raise UsageError(
                "task.tabular.path is not set; give a .csv or .parquet file, "
                "for example --set task.tabular.path=data/wine.csv"
            )
        for option, value, choices in (("kind", kind, KINDS), ("scaling", scaling, SCALINGS)):
            if value not in choices:
                raise UsageError(f"task.tabular.{option} is {value!r}; choose one of {', '.join(choices)}")
        self._scaling, self._target = scaling, target
        key = KeyColumn.from_options(split_groups, split_time)
        paths = {"train": Path(path).expanduser(), **({"test": Path(test).expanduser()} if test else {})}
        notices: list[str] = []
        tables = {part: _read_rows(file, target, notices) for part, file in paths.items()}
        keys = _read_keys(key, paths, tables)
        # A model of new groups, or of later times, cannot use their names.
        excluded = [*_list_names(exclude), *([key.name] if key.name else [])]
        self._columns = choose_columns(paths["train"], tables["train"], target, _list_names(categorical), excluded)
        head_name = make_head_name(target)
        minimum = len(FRACTIONS) + 1 - bool(test)
        self._head, names = _read_head(paths["train"], tables["train"][target], kind, minimum, notices)
        self.heads: Mapping[str, int] = {head_name: self._head}
        self.labels: Mapping[str, Sequence[str]] = {head_name: names} if names else {}
        self.metrics = metrics_of([self._head])
        self._tables = tables
        self._parts = {
            part: replace(self._build_part(paths[part], table, head_name, names), keys=keys[part])
            for part, table in tables.items()
        }
        self.inputs = self._describe_inputs()
        self._excluded, self._paths = excluded, paths
        self._notices = (*notices, *self._columns.notices, *self._describe_targets(head_name, names))

        self._teacher_outputs = TeacherOutputs(open_source(teacher), self) if teacher else None
        if self._teacher_outputs is not None and teacher_content not in ("", self._teacher_outputs.identity):
            raise UsageError(f"the outputs of {teacher} differ from those that this run was started with")

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Hash of the outputs of a given teacher."""
        return {} if self._teacher_outputs is None else {"teacher_content": self._teacher_outputs.identity}

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data: rows and columns that are left out, imbalanced classes, a column that is the target."""
        return tuple(filter(None, self._notices))

    @property
    def has_distinct_inputs(self) -> bool:
        """Whether equal rows are copies of one case; not if many are equal, as in a table of a few categories."""
        table = self._tables["train"]
        columns = [*self._columns.numbers, *self._columns.categories]
        return float(table.duplicated(subset=columns).mean()) <= MAX_REPEATED_SHARE

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write a tiny CSV file of two classes into a folder, and return the value for ``path``."""
        random = np.random.default_rng(0)
        lines = ["area,rooms,city,target"]
        for _ in range(90):
            area, rooms, city = random.uniform(20, 200), random.integers(1, 7), random.choice(["north", "south"])
            is_dear = area + 20 * rooms + 60 * (city == "south") > 200
            shown = "" if random.random() < 0.1 else f"{area:.1f}"
            lines.append(f"{shown},{rooms},{city},{'dear' if is_dear else 'cheap'}")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "table.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def splits(self, seed: int) -> Splits:
        """Return five splits, stratified by class or by the size of the number, scaled by the training split.

        Raises:
            UsageError: A class has too few rows.
        """
        splits = self._split_rows(seed)
        entry = self._fit_numbers(splits.train)
        if entry is None:
            return splits
        scaled = {}
        for name, split in splits.items():
            numbers = torch.from_numpy(_scale_numbers(entry, split.inputs[0].numpy()))
            scaled[name] = replace(split, inputs=(numbers, *split.inputs[1:]))
        return Splits(**scaled)

    def select_training_rows(self, seed: int = 0) -> pd.DataFrame:
        """Return the rows of the training split with all columns of the file: a teacher is fitted on them.

        Args:
            seed: Seed of the splits, ``split_seed`` of a search space.
        """
        rows = self._split_rows(seed).train.keys.rows
        return self.select_rows([] if rows is None else rows.tolist())

    def select_rows(self, rows: Sequence[int]) -> pd.DataFrame:
        """Return rows with all columns of the file, by the numbers in ``Split.keys.rows``."""
        return pd.concat(self._tables.values(), ignore_index=True).iloc[list(rows)]

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the scaling of the numbers, and the names of the categories."""
        numbers = self._fit_numbers(self._split_rows(seed).train)
        categories = CategoriesInput(tuple(self._columns.categories), tuple(self._columns.categories.values()))
        return (*([numbers] if numbers else []), *([categories] if self._columns.categories else []))

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the rows of the test split as mappings of column names to values."""
        strata = make_strata(self._head, self._first_targets())
        part, rows = locate_test_rows(self._parts, seed, strata, at_random=strata is None)
        columns = [*self._columns.numbers, *self._columns.categories]
        return self._tables[part][columns].iloc[rows].to_dict("records")

    def teacher(self) -> tuple[Part, Part]:
        """Return a perceptron of width 128, narrower for few rows, and its training config; or the given teacher."""
        if self._teacher_outputs is not None:
            return NO_TRAINING
        rows = len(self._parts["train"])
        # With few rows, a wide network learns the noise, and an epoch has few steps.
        is_small = rows < SMALL_ROWS
        return (
            Part.of("table_mlp", width=64 if is_small else 128, depth=1 if is_small else 2, dropout=0.3),
            Part.of(
                "adamw",
                epochs=100 if is_small else 40 if rows < 20_000 else 20,
                learning_rate=2e-3,
                weight_decay=0.3 if is_small else 0.1,
                batch_size=32 if rows < 20_000 else 256,
            ),
        )

    def build(self, student: Part) -> nn.Module:
        """Return an untrained model of a family, or the given teacher."""
        if self._teacher_outputs is not None and student.name == FROM_TEACHER:
            return self._teacher_outputs.make_model()
        return super().build(student)

    def compute_rows(self, source: OutputSource) -> list[NDArray[Any]]:
        """Return the outputs of a source for every row; those of the test file come last."""
        used = [*self._columns.numbers, *self._columns.categories]
        parts = []
        for part, table in self._tables.items():
            every = [name for name in table.columns if name != self._target and name not in self._excluded]
            parts.append(source.compute_table(table, TableColumns(self._paths[part], every, used)))
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _first_targets(self) -> Tensor:
        return next(iter(self._parts["train"].targets.values()))

    def _split_rows(self, seed: int) -> Splits:
        """Return five splits whose numbers are not scaled."""
        strata = make_strata(self._head, self._first_targets())
        if strata is None:
            return split_randomly(self._parts, seed)
        names = next(iter(self.labels.values()), None)
        return complete_splits(self._parts, seed, names, strata)

    def _fit_numbers(self, train: Split) -> NumbersInput | None:
        """Return the scaling of the columns of numbers in a training split; None if there are none."""
        if not self._columns.numbers:
            return None
        values = train.inputs[0].numpy()
        # A column may be empty or constant in the split, though not in the whole table.
        columns = [column[~np.isnan(column)] for column in values.T]
        mean = tuple(float(column.mean()) if len(column) else 0.0 for column in columns)
        std = tuple((float(column.std()) if len(column) else 0.0) or 1.0 for column in columns)
        knots: tuple[tuple[float, ...], ...] = ((),) * len(columns)
        scores = knots
        if self._scaling == "quantile":
            pairs = [_fit_quantiles(column) for column in columns]
            knots, scores = (tuple(pair[at] for pair in pairs) for at in (0, 1))
        return NumbersInput(self._columns.numbers, mean, std, self._columns.flagged, knots, scores)

    def _build_part(self, path: Path, table: pd.DataFrame, head: str, names: Sequence[str]) -> Split:
        """Return one part of the data: numbers in float64 and not scaled, categories as rows of their embeddings."""
        columns = self._columns
        for column in (*columns.numbers, *columns.categories):
            check_column(path, table, column, "exclude")
        inputs: list[Tensor] = []
        if columns.numbers:
            for column in columns.numbers:
                if not is_number_column(table[column]):
                    raise UsageError(f"{path}: column '{column}' has texts, but the training file has numbers there")
            inputs.append(torch.from_numpy(np.stack([read_numbers(table[name]) for name in columns.numbers], 1)))
        if columns.categories:
            inputs.append(_index_categories(columns, table))
        if not names:
            targets = torch.from_numpy(read_numbers(table[self._target])).float()
        else:
            rows = {name: index for index, name in enumerate(names)}
            cells = name_categories(table[self._target])
            unknown = next((cell for cell in cells if cell not in rows), None)
            if unknown is not None:
                raise UsageError(f"{path}: the class '{unknown}' does not occur in the training file")
            targets = torch.tensor([rows[cell] for cell in cells])
        return Split(tuple(inputs), {head: targets})

    def _describe_inputs(self) -> tuple[InputSpec, ...]:
        columns = self._columns
        specs = []
        if columns.numbers:
            specs.append(InputSpec((len(columns.numbers) + len(columns.flagged),)))
        if columns.categories:
            entry = CategoriesInput(tuple(columns.categories), tuple(columns.categories.values()))
            specs.append(InputSpec(entry.shape, entry.vocabulary))
        return tuple(specs)

    def _describe_targets(self, head: str, names: Sequence[str]) -> list[str]:
        if not names:
            return []
        targets = self._parts["train"].targets[head].numpy()
        notices = [
            describe_imbalance(dict(zip(names, np.bincount(targets, minlength=len(names)).tolist(), strict=True)))
        ]
        table = self._tables["train"]
        for column in (*self._columns.numbers, *self._columns.categories):
            cells = name_categories(table[column])
            # As many names as classes, each with one class: the column is the target under other names.
            pairs = set(zip(cells.tolist(), targets.tolist(), strict=True))
            if len(pairs) == len(names) == len({cell for cell, _ in pairs}):
                notices.append(
                    f"column '{column}' determines '{self._target}'; exclude it unless it is known in advance"
                )
        return notices


def _read_keys(key: KeyColumn, paths: Mapping[str, Path], tables: Mapping[str, pd.DataFrame]) -> dict[str, ExampleKeys]:
    """Return the groups or times of each part, with the numbers of its rows."""
    rows, first = {}, 0
    for part, table in tables.items():
        rows[part] = torch.arange(first, first + len(table))
        first += len(table)
    if not key.name:
        return {part: ExampleKeys(rows=rows[part]) for part in tables}
    values = {}
    for part, table in tables.items():
        if key.name not in table.columns:
            hint = did_you_mean(key.name, list(table.columns)[:50])
            raise UsageError(f"{paths[part]}: no column '{key.name}'; {hint} (set splits.groups or splits.time)")
        values[part] = name_categories(table[key.name]).tolist()
    locations = {
        part: [f"{paths[part]}: row {row} of those with a target" for row in range(1, len(cells) + 1)]
        for part, cells in values.items()
    }
    return {part: replace(keys, rows=rows[part]) for part, keys in key.read_keys(values, locations).items()}


def _list_names(names: str | Sequence[str]) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)


def _read_rows(path: Path, target: str, notices: list[str]) -> pd.DataFrame:
    """Return the rows of a file that have a target; rows that repeat an earlier one are left out if they are few."""
    table = read_table(path)
    check_column(path, table, target, "target")
    labelled: pd.DataFrame = table[name_categories(table[target]) != ""].reset_index(drop=True)
    if not len(labelled):
        raise UsageError(f"{path} has no row with a value of '{target}'")
    if lost := len(table) - len(labelled):
        notices.append(f"{path.name}: {lost:,} rows without a value of '{target}' are left out")
    distinct: pd.DataFrame = labelled.drop_duplicates(ignore_index=True)
    repeated = len(labelled) - len(distinct)
    # Many equal rows are different cases with the same few values, and not copies of one case.
    if repeated > MAX_REPEATED_SHARE * len(labelled):
        notices.append(f"{path.name}: {repeated:,} rows equal an earlier one; they stay, and may be in two splits")
        return labelled
    if repeated:
        notices.append(f"{path.name}: {repeated:,} rows that repeat an earlier one are left out")
    return distinct


def _read_head(
    path: Path, values: "pd.Series[Any]", kind: str, minimum: int, notices: Sequence[str]
) -> tuple[Head, list[str]]:
    """Return the head that predicts a column, and the names of its classes; none for numbers."""
    is_number = is_number_column(values)
    if kind == "regression" and not is_number:
        raise UsageError(f"{path}: column '{values.name}' has texts such as {str(values.iloc[0])[:30]!r}, not numbers")
    if is_number and kind != "classes":
        numbers = read_numbers(values)
        if not np.isfinite(numbers).all():
            raise UsageError(f"{path}: column '{values.name}' is infinite in some rows")
        is_measured = bool((numbers != np.round(numbers)).any()) or len(np.unique(numbers)) > MAX_WHOLE_CLASSES
        if kind == "regression" or is_measured:
            if len(np.unique(numbers)) < 2:
                raise UsageError(f"{path}: column '{values.name}' has the single value {numbers[0]:g}")
            return Regression(1, scale=(float(numbers.std()),), center=(float(numbers.mean()),)), []
    counts = Counter(name_categories(values).tolist())
    if len(counts) < 2:
        raise UsageError(f"{path}: column '{values.name}' has the single class '{next(iter(counts))}'")
    rarest = min(counts, key=lambda name: (counts[name], name))
    if counts[rarest] < minimum:
        # Rows that were left out explain a count that is not that of the file.
        left_out = f" ({'; '.join(notices)})" if notices else ""
        raise UsageError(
            f"{path}: class '{rarest}' of column '{values.name}' occurs in {counts[rarest]} of {len(values):,} usable "
            f"rows{left_out}; {minimum} disjoint splits need at least one each, so join it with another class, leave "
            "it out, or set task.tabular.kind=regression"
        )
    names = sort_classes(counts)
    return Head(len(names)), names


def _index_categories(columns: Columns, table: pd.DataFrame) -> Tensor:
    """Return the row of each category in the table of embeddings, ``[N, K]``."""
    indices, first = [], 0
    for column, names in columns.categories.items():
        rows = {name: first + index for index, name in enumerate(names, 1)}
        indices.append([rows.get(cell, first) for cell in name_categories(table[column])])
        first += len(names) + 1
    return torch.tensor(indices).T.contiguous()


def _fit_quantiles(values: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return quantiles of a column and the values of a normal distribution there; equal quantiles are one."""
    if len(np.unique(values)) < 3:
        return (), ()
    shares = np.linspace(0, 1, KNOTS)
    knots, places = np.unique(np.quantile(values, shares), return_inverse=True)
    # The ends of a normal distribution are infinite; those of a sample of this size are not.
    edge = 1 / (2 * max(len(values), KNOTS))
    scores = ndtri(np.clip(shares, edge, 1 - edge))
    means = np.bincount(places, weights=scores) / np.bincount(places)
    if len(knots) < 3:
        return (), ()
    return tuple(knots.tolist()), tuple(np.round(means, 5).tolist())


def _scale_numbers(entry: NumbersInput, values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return scaled numbers and flags, ``[N, F] -> [N, F + flags]``, as the pipeline of an artifact computes them."""
    scaled = (values - np.asarray(entry.mean)) / np.asarray(entry.std)
    for column, (knots, scores) in enumerate(zip(entry.knots, entry.scores, strict=True)):
        if knots:
            scaled[:, column] = np.interp(values[:, column], knots, scores)
    is_missing = np.isnan(values)
    scaled[is_missing] = 0.0
    flagged = [entry.columns.index(column) for column in entry.flagged]
    return np.concatenate([scaled, is_missing[:, flagged]], 1).astype(np.float32)
