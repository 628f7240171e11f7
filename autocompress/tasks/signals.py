"""Signal classification tasks: MNIST-1D, and a user's own series in a CSV or NPZ file."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.augment import random_shift
from autocompress.tasks.base import Supervised
from autocompress.tasks.mnist1d import CLASSES, POINTS, mnist1d
from autocompress.tasks.signal_files import Series, read_series
from autocompress.tasks.splitting import five_splits

PUBLISHED_TRAIN = 4000


@TASKS.register("mnist1d")
class MNIST1D(Supervised):
    """MNIST-1D: 5,000 drawn digits of 40 points, ten classes; a linear model gets 32%, a convolutional one 94%.

    Source: S. Greydanus and D. Kobak (2020), Scaling down deep learning with MNIST-1D, arXiv:2011.14439.

    Args:
        seed: Seed of the generator; 42 gives the published data, whose last 1,000 curves are the test split.
        views: Augmented views of the training split; 1 leaves it as it is.

    Raises:
        UsageError: An option is out of bounds.
    """

    name = "mnist1d"
    heads: Mapping[str, int] = {"label": CLASSES}
    inputs = (InputSpec((1, POINTS)),)

    def __init__(self, seed: int = 42, views: int = 16) -> None:
        self.views = _positive("mnist1d.views", views)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UsageError(f"task.mnist1d.seed is {seed!r}; give a whole number from 0 to 2**32 - 1")
        self._seed = seed

    def splits(self, seed: int) -> Splits:
        """Return 2,880 training, 160 calibration, 480 + 480 validation and the 1,000 published test curves."""
        curves, digits = _curves(self._seed)
        parts = {"train": slice(PUBLISHED_TRAIN), "test": slice(PUBLISHED_TRAIN, None)}
        return five_splits(
            {part: Split((curves[rows],), {"label": digits[rows]}) for part, rows in parts.items()}, seed
        )

    def view(self, split: Split, index: int) -> Split:
        """Return the curves moved round by up to four points and scaled by up to a tenth; view 0 is the split."""
        if index == 0:
            return split
        return Split((random_shift(split.inputs[0], seed=index, wrap=True),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 16 and how to train it."""
        return (
            Part.of("cnn1d", width=16, depth=2, stages=3, block="residual"),
            Part.of("adamw", epochs=25, learning_rate=5e-3, batch_size=64),
        )


@lru_cache(maxsize=2)
def _curves(seed: int) -> tuple[Tensor, Tensor]:
    """Return all curves ``[5000, 1, 40]`` and their digits; making them takes half a second."""
    curves, digits = mnist1d(seed=seed)
    return torch.tensor(curves, dtype=torch.float32).unsqueeze(1), torch.tensor(digits)


@TASKS.register("signals")
class Signals(Supervised):
    """Your own series of one length, one label each: a CSV file, or an NPZ file with ``x`` and ``y``.

    Series are normalised by the mean and deviation of each channel in the training split.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header, one series a row, a column for the label and every other
            column a number; or an ``.npz`` file with ``x`` ``[N, L]`` or ``[N, C, L]`` and ``y`` ``[N]``.
        test: A second such file for the test split; by default it is taken out of ``path``.
        label: Name of the label's column in a CSV file.
        views: Augmented views of the training split; 1 leaves it as it is.
        shift: Largest shift in time of an augmented view, as a share of the length; the ends are repeated.
        scale: Largest change of amplitude of an augmented view, as a share.

    Raises:
        UsageError: A file cannot be used (the message names the line), or an option is out of bounds.
    """

    name = "signals"

    def __init__(
        self,
        path: str | Path = "",
        *,
        test: str | Path = "",
        label: str = "label",
        views: int = 1,
        shift: float = 0.05,
        scale: float = 0.1,
    ) -> None:
        if not path:
            raise UsageError(
                "task.signals.path is not set; give a .csv or .npz file, "
                "for example --set task.signals.path=data/heartbeats.csv"
            )
        self.views = _positive("signals.views", views)
        for option, value in {"shift": shift, "scale": scale}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
                raise UsageError(f"task.signals.{option} is {value!r}; give a share from 0 to 0.5")
        self._shift, self._scale = shift, scale
        self._normal: tuple[list[float], list[float]] | None = None
        found = {"train": read_series(Path(path).expanduser(), label)}
        if test:
            found["test"] = read_series(Path(test).expanduser(), label)
        self._names = _names(found["train"].labels)
        self._parts = {part: self._split(part, series) for part, series in found.items()}
        self.shape = tuple(self._parts["train"].inputs[0].shape[1:])
        self.inputs = (InputSpec(self.shape),)
        self.heads: Mapping[str, int] = {"label": len(self._names)}
        self.labels: Mapping[str, list[str]] = {"label": list(self._names)}
        if "test" in found and found["test"].values.shape[1:] != self.shape:
            raise UsageError(f"{test} holds series {list(found['test'].values.shape[1:])}, {path} {list(self.shape)}")

    @staticmethod
    def sample(folder: Path) -> Path:
        """Write a tiny CSV file of three classes into a folder, and return what ``path`` is then."""
        random = np.random.default_rng(0)
        time = np.arange(24)
        lines = ["label," + ",".join(f"t{step}" for step in time)]
        for number in range(60):
            cycles = number % 3 + 1
            values = np.sin(2 * np.pi * cycles * time / len(time) + random.uniform(0, 6)) + random.normal(0, 0.1, 24)
            lines.append(f"{('slow', 'medium', 'fast')[number % 3]}," + ",".join(f"{value:.4f}" for value in values))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "signals.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def splits(self, seed: int) -> Splits:
        """Return five splits, each class in proportion.

        Raises:
            UsageError: A class has too few series.
        """
        splits = five_splits(self._parts, seed, self._names)
        train = splits.train.inputs[0]
        mean = train.mean((0, 2), keepdim=True)
        std = train.std((0, 2), keepdim=True, correction=0)
        # A constant channel would be divided by nothing.
        std = torch.where(std > 0, std, torch.ones_like(std))
        self._normal = mean.flatten().tolist(), std.flatten().tolist()
        return Splits(
            **{name: Split(((split.inputs[0] - mean) / std,), split.targets) for name, split in splits.items()}
        )

    @property
    def preprocessing(self) -> str:
        """The normalisation of each channel, known once the splits have been made."""
        if self._normal is None:
            return ""
        mean, std = (", ".join(f"{value:.6g}" for value in each) for each in self._normal)
        return f"Each channel minus its mean ({mean}), divided by its deviation ({std})."

    def view(self, split: Split, index: int) -> Split:
        """Return the series shifted and scaled at random; view 0 is the split itself."""
        if index == 0:
            return split
        return Split((random_shift(split.inputs[0], index, shift=self._shift, scale=self._scale),), split.targets)

    def teacher(self) -> tuple[Part, Part]:
        """Return a residual network of width 16, with a stride for long series, and how to train it."""
        stride = 1 if self.shape[1] < 128 else 2 if self.shape[1] < 512 else 4
        return (
            Part.of("cnn1d", width=16, depth=2, stages=3, block="residual", stem_stride=stride),
            Part.of("adamw", epochs=30, learning_rate=4e-3, batch_size=32),
        )

    def _split(self, part: str, series: Series) -> Split:
        strange = sorted(set(series.labels) - set(self._names))
        if strange:
            raise UsageError(f"{part} holds the class '{strange[0]}', which train has not")
        numbers = {name: number for number, name in enumerate(self._names)}
        return Split(
            (torch.from_numpy(series.values),), {"label": torch.tensor([numbers[name] for name in series.labels])}
        )


def _positive(option: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"task.{option} is {value!r}; give a whole number of at least 1")
    return value


def _names(labels: tuple[str, ...]) -> list[str]:
    """Return the classes in order: as numbers where all of them are, otherwise by the alphabet."""
    names = sorted(set(labels))
    try:
        return sorted(names, key=float)
    except ValueError:
        return names
