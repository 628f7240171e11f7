"""Signal classification: MNIST-1D, and a user's own series in a CSV or NPZ file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.preprocessing import Preprocessing, RawExample, SeriesInput
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.augment import random_shift
from autocompress.tasks.base import Supervised, check_positive, complete_splits, locate_test_rows, sort_classes
from autocompress.tasks.long_series import read_long_series, read_series_list
from autocompress.tasks.mnist1d import CLASSES, POINTS, generate_mnist1d
from autocompress.tasks.signal_files import Series, read_series
from autocompress.tasks.split_rows import KeyColumn
from autocompress.tasks.text_encoding import UNTRUNCATED_SHARE

#: A file, or a list of series ``[L]`` or ``[C, L]`` with their labels.
SeriesSource: TypeAlias = str | Path | tuple[Sequence[object], Sequence[object]]
# Number of training curves in the published split of MNIST-1D; the rest are the test curves.
PUBLISHED_TRAIN = 4000


@TASKS.register("mnist1d")
class MNIST1D(Supervised):
    """MNIST-1D: 5,000 digits as curves of 40 points, ten classes; linear models reach 32%, convolutional ones 94%.

    Source: S. Greydanus and D. Kobak (2020), Scaling down deep learning with MNIST-1D, arXiv:2011.14439.

    Args:
        seed: Seed of the generator; 42 gives the published data, whose last 1,000 curves are the test split.
        views: Number of augmented views of the training split; 1 disables augmentation.

    Raises:
        UsageError: An option is out of bounds.
    """

    name = "mnist1d"
    heads: Mapping[str, int] = {"label": CLASSES}
    inputs = (InputSpec((1, POINTS)),)

    def __init__(self, seed: int = 42, views: int = 16) -> None:
        self.views = check_positive("mnist1d.views", views)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UsageError(f"task.mnist1d.seed is {seed!r}; give a whole number from 0 to 2**32 - 1")
        self._seed = seed

    def splits(self, seed: int) -> Splits:
        """Return 2,880 training, 160 calibration, 480 + 480 validation and the 1,000 published test curves."""
        curves, digits = _generate_curves(self._seed)
        parts = {"train": slice(PUBLISHED_TRAIN), "test": slice(PUBLISHED_TRAIN, None)}
        return complete_splits(
            {part: Split((curves[rows],), {"label": digits[rows]}) for part, rows in parts.items()}, seed
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the form of a curve: 40 points of the published data, which is normalized."""
        return (SeriesInput((1, POINTS), (0.0,), (1.0,)),)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the 1,000 published test curves, 40 points each."""
        return list(_generate_curves(self._seed)[0][PUBLISHED_TRAIN:, 0].numpy())

    def view(self, split: Split, index: int) -> Split:
        """Return the curves shifted circularly by up to four points and scaled by up to 10%; view 0 is the split."""
        if index == 0:
            return split
        return Split((random_shift(split.inputs[0], seed=index, wrap=True),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 16 and its training config."""
        return (
            Part.of("cnn1d", width=16, depth=2, stages=3, block="residual"),
            Part.of("adamw", epochs=25, learning_rate=5e-3, batch_size=64),
        )


def _measure_channels(series: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, ``[N, C, L] -> [1, C, 1]``."""
    mean = series.mean((0, 2), keepdim=True)
    std = series.std((0, 2), keepdim=True, correction=0)
    # The deviation of a constant channel is 0; dividing by 1 avoids values that are not finite.
    return mean, torch.where(std > 0, std, torch.ones_like(std))


@lru_cache(maxsize=2)
def _generate_curves(seed: int) -> tuple[Tensor, Tensor]:
    """Return all curves ``[5000, 1, 40]`` and their digits; the cache saves half a second per call."""
    curves, digits = generate_mnist1d(seed=seed)
    return torch.tensor(curves, dtype=torch.float32).unsqueeze(1), torch.tensor(digits)


def _read_source(source: SeriesSource, label: str, series: str, order: str, key: str) -> Series:
    """Return the series of a file, of a table in long format if there is a column of series, or of a pair."""
    if isinstance(source, tuple):
        if key:
            raise UsageError("split_groups and split_time name a column of a file; series in memory have none")
        if len(source) != 2:
            raise UsageError(f"the series are a tuple of {len(source)}; give a pair (series, labels)")
        return read_series_list(*source)
    path = Path(source).expanduser()
    return read_long_series(path, series, label, order, key) if series else read_series(path, label, key)


@TASKS.register("signals")
class Signals(Supervised):
    """Your own series with one label each: a CSV file, or an NPZ file with ``x`` and ``y``.

    Series are normalized by the mean and standard deviation of each channel in the training split. If their lengths
    differ, they are filled with zeros or lose their end, and a further channel is 1 where a series has values.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header and one series per row: a column with the label, and numbers in
            all other columns; or an ``.npz`` file with ``x`` ``[N, L]`` or ``[N, C, L]`` and ``y`` ``[N]``, and
            ``lengths`` ``[N]`` if some are shorter than L. In Python also a pair ``(series, labels)`` of a list of
            arrays ``[L]`` or ``[C, L]`` and their labels.
        test: A second file of that kind for the test split; by default it is taken out of ``path``.
        label: Name of the label column in a CSV file.
        series: Name of the column of series in a table in long format, with one point of a series in each row; it may
            also be a ``.parquet`` file.
        order: Name of the column that sorts the rows of a series in long format; by default a column called
            ``timestamp``, ``datetime``, ``date`` or ``time``, or else the order of the file.
        length: Points of a series of different lengths; by default the smallest number that truncates at most 5% of the
            training series.
        views: Number of augmented views of the training split; 1 disables augmentation.
        shift: Largest shift in time of an augmented view, as a share of the length; the values at the ends are
            repeated.
        scale: Largest change of amplitude of an augmented view, as a share.
        split_groups: Name of the column (or array) of groups, such as patients or recordings:
            ``splits: {groups: patient}`` in a search space.
        split_time: Name of the column (or array) of times, instead: ``splits: {time: date}`` in a search space.

    Raises:
        UsageError: A file cannot be used (the message names the line), or an option is out of bounds.
    """

    name = "signals"
    split_keys = ("groups", "time")

    def __init__(
        self,
        path: SeriesSource = "",
        *,
        test: SeriesSource = "",
        label: str = "label",
        series: str = "",
        order: str = "",
        length: int | None = None,
        views: int = 1,
        shift: float = 0.05,
        scale: float = 0.1,
        split_groups: str = "",
        split_time: str = "",
    ) -> None:
        if not path:
            raise UsageError(
                "task.signals.path is not set; give a .csv or .npz file, "
                "for example --set task.signals.path=data/heartbeats.csv"
            )
        self.views = check_positive("signals.views", views)
        for option, value in {"shift": shift, "scale": scale}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
                raise UsageError(f"task.signals.{option} is {value!r}; give a share from 0 to 0.5")
        self._shift, self._scale = shift, scale
        key = KeyColumn.from_options(split_groups, split_time)
        sources = {"train": path, **({"test": test} if test else {})}
        series_of_part = {
            part: _read_source(source, label, series, order, key.name) for part, source in sources.items()
        }
        shapes = [list(part.values.shape[1:]) for part in series_of_part.values()]
        # A file of one series in each row has one length, and another one is an error.
        has_lengths = length is not None or any(part.lengths is not None for part in series_of_part.values())
        if len({shape[0] if has_lengths else tuple(shape) for shape in shapes}) > 1:
            raise UsageError(f"{test} holds series {shapes[1]}, {path} {shapes[0]}")
        self._read_lengths(series_of_part, length)
        self._class_names = sort_classes(set(series_of_part["train"].labels))
        keys = key.read_keys(
            {part: series.keys for part, series in series_of_part.items()},
            {part: series.locations for part, series in series_of_part.items()},
        )
        self._parts = {
            part: replace(self._build_split(part, series), keys=keys[part]) for part, series in series_of_part.items()
        }
        # Of an example: channels, the one of the padding included, and points.
        self.shape = tuple(self._parts["train"].inputs[0].shape[1:])
        self.inputs = (InputSpec(self.shape),)
        self.heads: Mapping[str, int] = {"label": len(self._class_names)}
        self.labels: Mapping[str, list[str]] = {"label": list(self._class_names)}

    @property
    def notices(self) -> Sequence[str]:
        """Remark on series that lose their end."""
        return (self._truncated,) if self._truncated else ()

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write a tiny CSV file of three classes into a folder, and return the value for ``path``."""
        random = np.random.default_rng(0)
        time = np.arange(24)
        lines = ["label," + ",".join(f"t{step}" for step in time)]
        for number in range(60):
            # The classes differ in frequency, with a random phase and noise.
            cycles = number % 3 + 1
            values = np.sin(2 * np.pi * cycles * time / len(time) + random.uniform(0, 6)) + random.normal(0, 0.1, 24)
            lines.append(f"{('slow', 'medium', 'fast')[number % 3]}," + ",".join(f"{value:.4f}" for value in values))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "signals.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def splits(self, seed: int) -> Splits:
        """Return five splits, normalized by the training split: by groups or time, or else stratified by class.

        Raises:
            UsageError: A class has too few series, or there are too few groups or times.
        """
        splits = complete_splits(self._parts, seed, self._class_names)
        mean, std = self._measure_series(splits.train.inputs[0])
        return Splits(
            **{
                name: replace(split, inputs=(self._normalize(split.inputs[0], mean, std),))
                for name, split in splits.items()
            }
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the normalization of each channel."""
        statistics = self._measure_series(complete_splits(self._parts, seed, self._class_names).train.inputs[0])
        mean, std = (tuple(values.flatten().tolist()) for values in statistics)
        channels, length = self.shape
        return (SeriesInput((channels, length), mean, std, is_padded=self._is_padded),)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the series of the test split, ``[C, L]`` each, with lengths of their own if these differ."""
        part, rows = locate_test_rows(self._parts, seed)
        series = self._series[part]
        lengths = np.full(len(series.values), self.shape[1]) if series.lengths is None else series.lengths
        return [series.values[row, :, : lengths[row]] for row in rows]

    def view(self, split: Split, index: int) -> Split:
        """Return the series shifted and scaled at random; view 0 is the split itself."""
        if index == 0:
            return split
        moved = random_shift(split.inputs[0], index, shift=self._shift, scale=self._scale)
        if self._is_padded:
            # The channel of the padding moves with the series and is not scaled.
            moved[:, -1] = (moved[:, -1] > 0).float()
        return Split((moved,), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 16, with a stride in the stem for long series, and its training config."""
        # Long series are shortened in the stem, which keeps the cost of the teacher low.
        stride = 1 if self.shape[1] < 128 else 2 if self.shape[1] < 512 else 4
        return (
            Part.of("cnn1d", width=16, depth=2, stages=3, block="residual", stem_stride=stride),
            Part.of("adamw", epochs=30, learning_rate=4e-3, batch_size=32),
        )

    def _read_lengths(self, series_of_part: dict[str, Series], length: int | None) -> None:
        """Decide whether series are padded, and to which length."""
        lengths = {
            part: np.full(len(series.values), series.values.shape[2]) if series.lengths is None else series.lengths
            for part, series in series_of_part.items()
        }
        train = np.sort(lengths["train"])
        if length is not None:
            check_positive("signals.length", length)
        self._is_padded = length is not None or len({*np.concatenate(list(lengths.values())).tolist()}) > 1
        self._length = length or int(train[math.ceil(UNTRUNCATED_SHARE * len(train)) - 1])
        share = float((train > self._length).mean())
        text = f"{share:.0%} of the series are longer than {self._length} points and lose their end"
        self._truncated = text if share else ""
        self._series = {part: replace(series, lengths=lengths[part]) for part, series in series_of_part.items()}

    def _measure_series(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel without the padding, ``[1, C, 1]``."""
        if not self._is_padded:
            return _measure_channels(inputs)
        columns = inputs[:, :-1].transpose(0, 1)[:, inputs[:, -1] > 0]
        mean, std = _measure_channels(columns.unsqueeze(0))
        return mean, std

    def _normalize(self, inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        if not self._is_padded:
            return (inputs - mean) / std
        mask = inputs[:, -1:]
        return torch.cat([torch.where(mask > 0, (inputs[:, :-1] - mean) / std, 0.0), mask], 1)

    def _pad_series(self, series: Series) -> Tensor:
        """Return series with the channel of the padding, ``[N, C + 1, L]``."""
        values = torch.from_numpy(series.values)
        if not self._is_padded or series.lengths is None:
            return values
        missing = max(self._length - values.shape[2], 0)
        padded = torch.nn.functional.pad(values[:, :, : self._length], (0, missing))
        mask = torch.arange(self._length) < torch.from_numpy(series.lengths).unsqueeze(1)
        return torch.cat([padded, mask.unsqueeze(1).float()], 1)

    def _build_split(self, part: str, series: Series) -> Split:
        unknown = sorted(set(series.labels) - set(self._class_names))
        if unknown:
            raise UsageError(f"{part} holds the class '{unknown[0]}', which train does not have")
        numbers = {name: number for number, name in enumerate(self._class_names)}
        return Split((self._pad_series(series),), {"label": torch.tensor([numbers[name] for name in series.labels])})
