"""One point of the search space: student, distillation, training, pruning, quantization, seed.

Settings are JSON leaves, so that configs can be stored, compared and sent to other processes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from autocompress.core.knobs import Leaf
from autocompress.errors import UsageError


@dataclass(frozen=True)
class Part:
    """One method by its registered name, with its settings sorted by name.

    Attributes:
        name: Registered name.
        settings: Pairs of hyperparameter and value; the others keep their default.

    Example:
        >>> Part.of("soft_target", temperature=4.0).to_json()
        {'soft_target': {'temperature': 4.0}}
    """

    name: str
    settings: tuple[tuple[str, Leaf], ...] = ()

    @classmethod
    def of(cls, name: str, /, **settings: Leaf) -> "Part":
        """Build a part from keyword settings; lists become tuples, so that a part can be a key."""
        # Sorted, so that the order in which settings are given changes neither equality nor the fingerprint.
        return cls(name, tuple(sorted(_make_setting(key, value) for key, value in settings.items())))

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Leaf]]) -> "Part":
        """Build a part from ``{name: {setting: value}}``.

        Raises:
            UsageError: ``data`` does not hold exactly one name.
        """
        if len(data) != 1:
            raise UsageError(f"a part is one name with its settings, got {sorted(data)}")
        ((name, settings),) = data.items()
        return cls.of(name, **settings)

    @property
    def values(self) -> dict[str, Leaf]:
        """The settings as a dictionary."""
        return dict(self.settings)

    def to_json(self) -> dict[str, dict[str, Leaf]]:
        """Return ``{name: {setting: value}}``."""
        return {self.name: self.values}


def _make_setting(key: str, value: Leaf) -> tuple[str, Leaf]:
    return (key, _freeze_value(value)) if isinstance(value, list | tuple) else _intern_setting(key, value)


# Thousands of trials share few different settings. Typed, because 1, 1.0 and True are equal.
@lru_cache(maxsize=1024, typed=True)
def _intern_setting(key: str, value: Leaf) -> tuple[str, Leaf]:
    return key, value


def _freeze_value(value: Leaf | Sequence[Leaf]) -> Leaf:
    if isinstance(value, Mapping):
        raise UsageError("a value of a list is a mapping; give numbers, texts, or lists of them")
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    # Leaf leaves tuples out, because few settings are lists; a tuple keeps a part hashable.
    return cast(Leaf, tuple(map(_freeze_value, value)))


def fingerprint(data: object) -> str:
    """Return 12 hex digits of a JSON value; equal values have equal digits.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    # Sorted keys and fixed separators make the text canonical; NaN is refused, because it is not JSON.
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # 48 bits: short enough for a folder name; two of 10,000 configs collide with a probability below 1e-6.
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class CompressionConfig:
    """The settings that make one compressed model.

    ``prune`` and ``quantize`` are ``None`` where the model is not compressed: such a config describes a trial, and all
    candidates of the trial share it.

    Attributes:
        student: Architecture.
        distill: Terms of the training loss: one on logits, any number on features.
        fit: Optimizer and its hyperparameters.
        prune: Pruning method and its settings.
        quantize: Quantization method and its settings, applied after pruning.
        seed: Seed of the weights, the batches and all other random choices of the trial.

    Example:
        >>> training = CompressionConfig(Part.of("cnn", width=8), (Part.of("none"),), Part.of("adamw", epochs=5))
        >>> CompressionConfig.from_json(training.to_json()) == training
        True
    """

    student: Part
    distill: tuple[Part, ...]
    fit: Part
    prune: Part | None = None
    quantize: Part | None = None
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits: cache key and folder name."""
        return fingerprint(self.to_json())

    @property
    def training(self) -> "CompressionConfig":
        """The same config without compression: it is trained once, and compressed in many ways."""
        return replace(self, prune=None, quantize=None)

    def to_json_without_seed(self) -> dict[str, Any]:
        """Return the JSON form without the seed: equal for duplicates."""
        data = self.to_json()
        del data["seed"]
        return data

    def to_json(self) -> dict[str, Any]:
        """Return the config as nested dictionaries of JSON leaves."""
        return {
            "student": self.student.to_json(),
            "distill": {part.name: part.values for part in self.distill},
            "fit": self.fit.to_json(),
            "prune": None if self.prune is None else self.prune.to_json(),
            "quantize": None if self.quantize is None else self.quantize.to_json(),
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CompressionConfig":
        """Rebuild a config from :meth:`to_json`.

        Raises:
            UsageError: A section does not hold exactly one part, or is missing, or the seed is no whole number.
        """
        try:
            config = cls(
                student=Part.from_json(data["student"]),
                # The JSON form is a mapping whose order has no meaning: the terms are sorted by name.
                distill=tuple(Part.of(name, **values) for name, values in sorted(data["distill"].items())),
                fit=Part.from_json(data["fit"]),
                prune=None if data["prune"] is None else Part.from_json(data["prune"]),
                quantize=None if data["quantize"] is None else Part.from_json(data["quantize"]),
                seed=data["seed"],
            )
        except KeyError as missing:
            raise UsageError(f"a config needs the section {missing}") from None
        # A config is a key of tables.
        if not isinstance(config.seed, int):
            raise UsageError(f"the seed of a config is {str(config.seed)[:60]!r}; it is a whole number")
        return config
