"""Signal classification: MNIST-1D, and a user's own series in a CSV or NPZ file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

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
from autocompress.tasks.mnist1d import CLASSES, POINTS, generate_mnist1d
from autocompress.tasks.signal_files import Series, read_series
from autocompress.tasks.split_rows import KeyColumn

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


@TASKS.register("signals")
class Signals(Supervised):
    """Your own series of equal length with one label each: a CSV file, or an NPZ file with ``x`` and ``y``.

    Series are normalized by the mean and standard deviation of each channel in the training split.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header and one series per row: a column with the label, and numbers in
            all other columns; or an ``.npz`` file with ``x`` ``[N, L]`` or ``[N, C, L]`` and ``y`` ``[N]``.
        test: A second file of that kind for the test split; by default it is taken out of ``path``.
        label: Name of the label column in a CSV file.
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
        path: str | Path = "",
        *,
        test: str | Path = "",
        label: str = "label",
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
        series_of_part = {"train": read_series(Path(path).expanduser(), label, key.name)}
        if test:
            series_of_part["test"] = read_series(Path(test).expanduser(), label, key.name)
        self._class_names = sort_classes(set(series_of_part["train"].labels))
        keys = key.read_keys(
            {part: series.keys for part, series in series_of_part.items()},
            {part: series.places for part, series in series_of_part.items()},
        )
        self._parts = {
            part: replace(self._build_split(part, series), keys=keys[part]) for part, series in series_of_part.items()
        }
        self.shape = tuple(self._parts["train"].inputs[0].shape[1:])
        self.inputs = (InputSpec(self.shape),)
        self.heads: Mapping[str, int] = {"label": len(self._class_names)}
        self.labels: Mapping[str, list[str]] = {"label": list(self._class_names)}
        if "test" in series_of_part and series_of_part["test"].values.shape[1:] != self.shape:
            raise UsageError(
                f"{test} holds series {list(series_of_part['test'].values.shape[1:])}, {path} {list(self.shape)}"
            )

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
        mean, std = _measure_channels(splits.train.inputs[0])
        return Splits(
            **{name: replace(split, inputs=((split.inputs[0] - mean) / std,)) for name, split in splits.items()}
        )

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the normalization of each channel."""
        statistics = _measure_channels(complete_splits(self._parts, seed, self._class_names).train.inputs[0])
        mean, std = (tuple(values.flatten().tolist()) for values in statistics)
        channels, length = self.shape
        return (SeriesInput((channels, length), mean, std),)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the series of the test split, ``[C, L]`` each."""
        part, rows = locate_test_rows(self._parts, seed)
        return list(self._parts[part].inputs[0][torch.from_numpy(rows)].numpy())

    def view(self, split: Split, index: int) -> Split:
        """Return the series shifted and scaled at random; view 0 is the split itself."""
        if index == 0:
            return split
        return Split((random_shift(split.inputs[0], index, shift=self._shift, scale=self._scale),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 16, with a stride in the stem for long series, and its training config."""
        # Long series are shortened in the stem, which keeps the cost of the teacher low.
        stride = 1 if self.shape[1] < 128 else 2 if self.shape[1] < 512 else 4
        return (
            Part.of("cnn1d", width=16, depth=2, stages=3, block="residual", stem_stride=stride),
            Part.of("adamw", epochs=30, learning_rate=4e-3, batch_size=32),
        )

    def _build_split(self, part: str, series: Series) -> Split:
        unknown = sorted(set(series.labels) - set(self._class_names))
        if unknown:
            raise UsageError(f"{part} holds the class '{unknown[0]}', which train does not have")
        numbers = {name: number for number, name in enumerate(self._class_names)}
        return Split(
            (torch.from_numpy(series.values),), {"label": torch.tensor([numbers[name] for name in series.labels])}
        )
