"""The seam of compression methods: what every pruning and quantization method is.

A method is one file: a frozen config whose fields carry their range, and two functions.
``apply`` compresses a copy of a model and says in JSON how; ``restore`` replays that on a fresh model,
so a saved candidate is rebuilt from its architecture and its tensors, without pickle.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from autocompress.core.knobs import FloatRange, IntRange, Settings, knob

C = TypeVar("C", bound=Settings)
T = TypeVar("T")


@dataclass(frozen=True)
class Recovery(Settings):
    """Knobs of a method whose models train a little after the cut; the trial composes that training."""

    recovery_epochs: int = knob(3, IntRange(0, 1000), "passes over the training split after the cut")
    recovery_learning_rate: float = knob(5e-3, FloatRange(1e-5, 1.0, log=True), "peak learning rate of the recovery")

    def estimate_epochs(self) -> float:
        """Return the epochs of the recovery."""
        return float(self.recovery_epochs)


@dataclass(frozen=True)
class LayerBits:
    """Bit-widths of one layer; 32 stands for floating point."""

    weight: int = 32
    activation: int = 32


@dataclass(frozen=True)
class Context:
    """What a method may look at beside the model.

    Attributes:
        example: A batch of one, as the model's positional arguments: tracing and shapes.
        calibration: Batches of positional arguments from the calibration split; ranges are observed on them.
        targets: Targets of each calibration batch, ``{head: [B]}``.
        loss: Maps the model's raw output and one batch's targets to a scalar: gradient criteria need it.
        seed: Seeds whatever is random.
        tune: Trains a model in place for some epochs at a peak learning rate, under the trial's own distillation;
            the last argument is called after each step. Methods that train between their steps need it.
        score: The task's first metric on the split ``search_val``, turned so that more is better. Methods that
            measure after each of their steps need it.
        shared: What :meth:`once` has found out about one model, for further cuts of that very model.
    """

    example: tuple[Tensor, ...]
    calibration: tuple[tuple[Tensor, ...], ...] = ()
    targets: tuple[Mapping[str, Tensor], ...] = ()
    loss: Callable[[Any, Mapping[str, Tensor]], Tensor] | None = None
    seed: int = 0
    tune: Callable[[nn.Module, int, float, Callable[[], None] | None], None] | None = None
    score: Callable[[nn.Module], float] | None = None
    shared: dict[Hashable, Any] | None = field(default=None, compare=False, repr=False)

    def compute_once(self, key: Hashable, find: Callable[[], T]) -> T:
        """Return what ``find`` gives: found once for all cuts of a model where they share a context's notes.

        Args:
            key: What it depends on beside the model.
            find: Computes it; what it returns is not changed afterwards.
        """
        if self.shared is None:
            return find()
        if key not in self.shared:
            self.shared[key] = find()
        found: T = self.shared[key]
        return found


@dataclass(frozen=True)
class MethodState:
    """What ``apply`` did, enough to replay it.

    Attributes:
        history: JSON values that ``restore`` replays (channels removed, layers quantized).
        tensors: Tensors that belong to the history and not to the model's own ``state_dict``.
        bits: Layer name to bit-widths, for the layers that are quantized.
        report: JSON values for the candidate's card (achieved ratio, per-layer error).
        masks: Parameter name to a mask shaped like it, 0 where the weight is removed; later training keeps it exact.
    """

    history: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def apply_masks(self, model: nn.Module) -> None:
        """Set the removed weights of ``model`` back to exactly zero, in place."""
        for name, mask in self.masks.items():
            weight = model.get_parameter(name).data
            weight.mul_(mask.to(weight.device))


class Method(Protocol[C]):
    """A pruning or quantization method; registered by name as an instance."""

    name: ClassVar[str]
    config: type[C]

    def is_identity(self, config: C) -> bool:
        """Return whether this config changes nothing (ratio 0, 32 bits)."""
        ...

    def apply(self, model: nn.Module, config: C, context: Context) -> tuple[nn.Module, MethodState]:
        """Return a compressed copy in evaluation mode, and what was done; ``model`` stays as it was.

        Raises:
            CompressionError: The method cannot compress this model.
        """
        ...

    def restore(self, model: nn.Module, config: C, state: MethodState) -> nn.Module:
        """Give a fresh model the compressed structure; its weights come from the saved ``state_dict``.

        Raises:
            CompressionError: The history does not fit the model.
        """
        ...
