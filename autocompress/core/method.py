"""The interface of compression methods: pruning and quantization.

A method is one file: a frozen config whose fields declare their ranges, and two functions. ``apply`` compresses a copy
of a model and records the changes as JSON; ``restore`` repeats them on a fresh model. A saved candidate is rebuilt from
its architecture and its tensors, without pickle.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import Tensor, nn

from autocompress.core.knobs import FloatRange, IntRange, Settings, knob
from autocompress.errors import CompressionError

C = TypeVar("C", bound=Settings)
T = TypeVar("T")


@dataclass(frozen=True)
class Recovery(Settings):
    """Hyperparameters of fine-tuning after pruning; the trial does this training."""

    recovery_epochs: int = knob(3, IntRange(0, 1000), "passes over the training split after the cut")
    recovery_learning_rate: float = knob(5e-3, FloatRange(1e-5, 1.0, log=True), "peak learning rate of the recovery")

    def estimate_epochs(self) -> float:
        """Return the epochs of fine-tuning."""
        return float(self.recovery_epochs)


@dataclass(frozen=True)
class LayerBits:
    """Bit-widths of one layer; 32 stands for floating point.

    Attributes:
        weight: Bits of its weights.
        activation: Bits of its inputs.
        stored: Bits of its weights in an exported file, where the target computes them wider than it stores them.
    """

    weight: int = 32
    activation: int = 32
    stored: int = field(default=32, compare=False)


def require_distinct(names: Iterable[object]) -> None:
    """Check that a history names each part of a model once.

    A history comes from a file, which could repeat one entry as often as its size allows.

    Raises:
        CompressionError: A name occurs twice.
        TypeError: A name cannot be compared.
    """
    seen = set[object]()
    for name in names:
        if name in seen:
            raise CompressionError(f"the history names {str(name)[:60]!r} twice")
        seen.add(name)


def match_layers(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Return the names of the modules that a pattern matches, or that lie inside a module which one matches.

    Example:
        >>> match_layers(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), ["1"])
        ['1', '1.0']
    """
    patterns = list(patterns)
    return [
        name
        for name, _ in model.named_modules()
        if any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)
    ]


@dataclass(frozen=True)
class Context:
    """The data and functions that a method may use beside the model.

    Attributes:
        example: Batch of one example, as the model's positional arguments: for tracing and shapes.
        calibration: Batches of positional arguments from the calibration split, for ranges and scores.
        targets: Targets of each calibration batch, ``{head: [B]}``.
        loss: Function of the model's raw output and one batch's targets that returns a scalar, for gradients.
        seed: Seed of all random choices.
        fine_tune: Function that trains a model in place for some epochs at a peak learning rate, with the trial's own
            distillation, and calls its last argument after each step; for methods that train between their steps.
        score: Function that returns the task's first metric on the split ``search_val``, larger is better; for methods
            that measure after each of their steps.
        score_heads: Function that returns the same metric of each head, ``{head: score}``; ``None`` for tasks with one
            head.
        reduce_range: Whether weights of an integer kernel use 7 of their 8 bits, because the target's kernels overflow
            otherwise.
        shared: Results of :meth:`compute_once` for one model, shared by all compression recipes of that model.
        ignore: Patterns of layer names, such as ``encoder.*``, whose channels are not removed.
        float_layers: Patterns of layer names that are not quantized.
    """

    example: tuple[Tensor, ...]
    calibration: tuple[tuple[Tensor, ...], ...] = ()
    targets: tuple[Mapping[str, Tensor], ...] = ()
    loss: Callable[[Any, Mapping[str, Tensor]], Tensor] | None = None
    seed: int = 0
    fine_tune: Callable[[nn.Module, int, float, Callable[[], None] | None], None] | None = None
    score: Callable[[nn.Module], float] | None = None
    score_heads: Callable[[nn.Module], Mapping[str, float]] | None = None
    reduce_range: bool = False
    # Results of computations do not distinguish contexts, so comparison and text leave them out.
    shared: dict[Hashable, object] | None = field(default=None, compare=False, repr=False)
    ignore: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()

    def measure_heads(self, model: nn.Module) -> dict[str, float]:
        """Return the score of each head; the score of the whole task, under the name ``""``, if it has one head.

        Raises:
            CompressionError: The context has no function that measures.
        """
        if self.score_heads is not None:
            return dict(self.score_heads(model))
        if self.score is None:
            raise CompressionError("a method that measures after each step needs the function 'score' in the context")
        return {"": self.score(model)}

    def compute_once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value of a function, computed once for all compression recipes of a model.

        Args:
            key: Key of the value: everything that it depends on beside the model.
            compute: Function that returns the value; the value is not changed afterwards.
        """
        if self.shared is None:
            return compute()
        if key not in self.shared:
            self.shared[key] = compute()
        # The key belongs to one function, and so to one type.
        return cast(T, self.shared[key])


@dataclass(frozen=True)
class MethodState:
    """The record of ``apply``, from which ``restore`` repeats it.

    Attributes:
        history: JSON values for ``restore`` (removed channels, quantized layers).
        tensors: Tensors that belong to the history and not to the model's own ``state_dict``.
        bits: Layer name to bit-widths, for the layers that are quantized.
        report: JSON values for the candidate's card (measured sparsity, error of each layer).
        masks: Parameter name to a mask shaped like it, 0 where the weight is removed; later training keeps it exact.
    """

    history: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def apply_masks(self, model: nn.Module) -> None:
        """Set the removed weights of ``model`` to exactly zero, in place."""
        for name, mask in self.masks.items():
            # Through .data, because autograd refuses in-place changes of a parameter.
            weight = model.get_parameter(name).data
            weight.mul_(mask.to(weight.device))


class Method(Protocol[C]):
    """A pruning or quantization method; registered by name as an instance."""

    name: ClassVar[str]
    config: type[C]

    def is_identity(self, config: C) -> bool:
        """Return whether this config leaves every model as it is (ratio 0, 32 bits)."""
        ...

    def apply(self, model: nn.Module, config: C, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a compressed copy in evaluation mode, and the record of its changes; ``model`` is not changed.

        Raises:
            CompressionError: The method cannot compress this model.
        """
        ...

    def restore(self, model: nn.Module, config: C, state: MethodState) -> nn.Module:
        """Return a fresh model with the compressed structure; its weights come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        ...


@dataclass(frozen=True)
class ScoreFloor:
    """The lowest score of each head that a method which works in steps accepts.

    A mean over heads would hide a head that fails, so the limit applies to each of them.

    Attributes:
        start: Score of each head before the first step.
        floor: Largest accepted loss of a head.

    Example:
        >>> limit = ScoreFloor({"language": 0.9, "kind": 0.8}, floor=0.05)
        >>> limit.accepts({"language": 0.95, "kind": 0.7})
        False
        >>> limit.describe({"language": 0.95, "kind": 0.7})
        "from 0.8000 to 0.7000 on head 'kind', below the limit of 0.7500"
    """

    start: Mapping[str, float]
    floor: float

    def accepts(self, scores: Mapping[str, float]) -> bool:
        """Return whether no head lost more than the limit."""
        return all(scores[head] >= value - self.floor for head, value in self.start.items())

    def describe(self, scores: Mapping[str, float]) -> str:
        """Return how far the worst head fell, for a message."""
        head = min(self.start, key=lambda name: scores[name] - self.start[name])
        suffix = f" on head '{head}'" if head else ""
        before = self.start[head]
        return f"from {before:.4f} to {scores[head]:.4f}{suffix}, below the limit of {before - self.floor:.4f}"

    def to_row(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the mean over heads as ``score``, and each head's score where there are several."""
        heads = {f"score@{head}": value for head, value in scores.items()} if len(scores) > 1 else {}
        return {"score": sum(scores.values()) / len(scores), **heads}
