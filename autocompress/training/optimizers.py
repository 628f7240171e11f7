"""Optimizers, learning-rate schedules, and the hyperparameters that every fit shares."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from autocompress.core.config import Part
from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.core.registry import FITS
from autocompress.training.sharding import is_divided


@dataclass(frozen=True)
class FitConfig(Settings):
    """Hyperparameters that every optimizer shares."""

    epochs: int = knob(15, IntRange(0, 1000), "passes over the training split; 0 does not train the model")
    batch_size: int = knob(64, IntRange(1, 4096, log=True), "examples per step")
    learning_rate: float = knob(5e-3, FloatRange(1e-5, 10.0, log=True), "peak learning rate of the schedule")
    schedule: str = knob(
        "one_cycle",
        Choice(("one_cycle", "cosine", "step", "constant", "plateau")),
        "shape of the learning-rate schedule",
    )
    warmup: float = knob(0.2, FloatRange(0.0, 0.9), "share of the steps during which the learning rate rises")
    weight_decay: float = knob(1e-4, FloatRange(0.0, 1.0), "weight decay")
    clip_norm: float = knob(5.0, FloatRange(0.0, 1000.0), "largest gradient norm; 0 does not clip")
    label_smoothing: float = knob(0.0, FloatRange(0.0, 0.9), "share of each target that is spread over all classes")
    class_weights: str = knob(
        "none",
        Choice(("none", "balanced")),
        "weights of the classes in the task's loss: balanced weights a class by the inverse of its examples",
    )
    views: int = knob(
        0,
        IntRange(0, 1000),
        "augmented views that the epochs read in turn; 1 reads the data as it is, 0 all views of the task",
    )
    mixup: float = knob(
        0.0, FloatRange(0.0, 10.0), "alpha of the Beta distribution that mixes pairs of examples; 0 does not mix"
    )
    l1_weights: float = knob(0.0, FloatRange(0.0, 1.0), "penalty on the absolute value of each weight")
    l1_batch_norm: float = knob(0.0, FloatRange(0.0, 1.0), "penalty on the absolute value of each batch-norm scale")
    patience: int = knob(
        0, IntRange(0, 1000), "epochs without a better held-out loss before the fit stops; 0 never stops early"
    )
    precision: str = knob(
        "float32",
        Choice(("float32", "bfloat16", "auto")),
        "bfloat16 uses autocast and channels_last; auto takes the faster",
    )
    init: str = knob(
        "random",
        Choice(("random", "teacher")),
        "initial weights: random, or those of the teacher in layers of the same name",
    )
    backbone: str = knob("tuned", Choice(("tuned", "frozen")), "frozen trains only the heads")
    head_weights: str = knob(
        "fixed", Choice(("fixed", "uncertainty", "dynamic")), "weighting of the losses of several heads"
    )
    first_head: float = knob(
        1.0, FloatRange(0.01, 100.0, log=True), "fixed weight of the first head relative to each other head"
    )
    sandwich: float = knob(
        0.0, FloatRange(0.0, 0.9), "share of channels that the narrowest jointly trained sub-network omits; 0: none"
    )
    processes: int = knob(1, IntRange(1, 64), "processes that share each batch")
    shards: int = knob(
        1,
        IntRange(1, 64),
        "processes that each hold a part of weights, gradients and optimizer state, and share each batch",
    )

    @property
    def group_size(self) -> int:
        """Number of processes of the fit: ``shards`` for each of ``processes`` copies of the model."""
        return self.processes * self.shards


F = TypeVar("F", bound=FitConfig)


class OptimizerFactory(Protocol[F]):
    """An optimizer with its hyperparameters; registered by name as an instance."""

    name: ClassVar[str]
    config: type[F]

    def optimizer(self, config: F, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer over ``parameters``."""
        ...


@dataclass(frozen=True)
class AdamWConfig(FitConfig):
    """Hyperparameters of :class:`AdamW`."""

    label = "fit.adamw"


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name = "adamw"
    config = AdamWConfig

    def optimizer(self, config: AdamWConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer over ``parameters``."""
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


@dataclass(frozen=True)
class SGDConfig(FitConfig):
    """Hyperparameters of :class:`SGD`."""

    label = "fit.sgd"

    learning_rate: float = knob(0.1, FloatRange(1e-5, 10.0, log=True), "peak learning rate of the schedule")
    momentum: float = knob(0.9, FloatRange(0.0, 0.999), "share of the last step that is repeated")


class SGD:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""

    name = "sgd"
    config = SGDConfig

    def optimizer(self, config: SGDConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer over ``parameters``."""
        parameters = list(parameters)
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            # torch accepts Nesterov's variant only with momentum.
            nesterov=config.momentum > 0,
            # torch has no fused step of SGD for parameters that are divided among processes.
            fused=not any(map(is_divided, parameters)),
        )


FITS.add(AdamW.name, AdamW())
FITS.add(SGD.name, SGD())


def fit_config(part: Part) -> FitConfig:
    """Return the typed config of a ``fit`` part.

    Raises:
        UnknownNameError: No optimizer has that name.
        KnobError: A setting is unknown or outside its range.
    """
    config: FitConfig = FITS.get(part.name).config.of(part.values)
    return config


class Schedule(Protocol):
    """A learning-rate schedule of one optimizer."""

    def after_step(self) -> None:
        """Update the learning rate after an optimizer step."""
        ...

    def after_epoch(self, loss: float) -> None:
        """Update the learning rate after an epoch with this loss."""
        ...

    def state_dict(self) -> Mapping[str, object]:
        """Return the position in the schedule."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Continue from the position of another schedule of the same kind."""
        ...


@dataclass(frozen=True)
class _TorchSchedule:
    """The state of a torch schedule."""

    inner: LambdaLR | OneCycleLR | ReduceLROnPlateau

    def state_dict(self) -> Mapping[str, object]:
        state: Mapping[str, object] = self.inner.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        self.inner.load_state_dict(dict(state_dict))


@dataclass(frozen=True)
class _StepSchedule(_TorchSchedule):
    """A torch schedule that changes the learning rate after each step."""

    inner: LambdaLR | OneCycleLR

    def after_step(self) -> None:
        self.inner.step()

    def after_epoch(self, loss: float) -> None:
        """Do nothing: each step has changed the learning rate."""


@dataclass(frozen=True)
class _EpochSchedule(_TorchSchedule):
    """A torch schedule that changes the learning rate by the loss of each epoch."""

    inner: ReduceLROnPlateau

    def after_step(self) -> None:
        """Do nothing: the learning rate changes after the epoch."""

    def after_epoch(self, loss: float) -> None:
        self.inner.step(loss)


ScheduleFactory = Callable[[Optimizer, FitConfig, int], Schedule]


def _one_cycle(optimizer: Optimizer, config: FitConfig, steps: int) -> Schedule:
    """Return a schedule that rises to the peak and falls to almost 0 (Smith and Topin 2018, arXiv:1708.07120)."""
    if steps < 4:
        # The phases of torch's schedule would have no length, which it divides by.
        return _scale_learning_rate(lambda share: 1.0)(optimizer, config, steps)
    # At least two steps rise, and a tenth of the steps fall.
    share = min(max(config.warmup, 2.0 / steps), 0.9)
    # Momentum stays constant: it is a hyperparameter of SGD, and AdamW has betas instead.
    cycle = OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=share, cycle_momentum=False)
    return _StepSchedule(cycle)


def _scale_learning_rate(shape: Callable[[float], float]) -> ScheduleFactory:
    """Return the factory of a schedule with a linear warm-up.

    Args:
        shape: Function from the share of steps after the warm-up, 0 to 1, to the factor of the learning rate.
    """

    def build_schedule(optimizer: Optimizer, config: FitConfig, steps: int) -> Schedule:
        warmup_steps = int(config.warmup * steps)

        def compute_factor(step: int) -> float:
            if step < warmup_steps:
                # The first step already has a learning rate above 0.
                return (step + 1) / (warmup_steps + 1)
            return shape((step - warmup_steps) / max(steps - warmup_steps, 1))

        return _StepSchedule(LambdaLR(optimizer, compute_factor))

    return build_schedule


def _reduce_on_plateau(optimizer: Optimizer, config: FitConfig, steps: int) -> Schedule:
    """Return a schedule that lowers the learning rate when the loss has not improved for more than two epochs."""
    # torch's default patience is 10 epochs, which exceeds half of the default length of a fit.
    return _EpochSchedule(ReduceLROnPlateau(optimizer, factor=0.3, patience=2))


#: Name to a function of the optimizer, the config and the number of steps of the whole fit.
SCHEDULES: Mapping[str, ScheduleFactory] = {
    "one_cycle": _one_cycle,
    # Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    "cosine": _scale_learning_rate(lambda share: 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))),
    # Factor 0.1 after half of the steps, 0.01 after three quarters (He et al. 2016, arXiv:1512.03385).
    "step": _scale_learning_rate(lambda share: 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01),
    "constant": _scale_learning_rate(lambda share: 1.0),
    "plateau": _reduce_on_plateau,
}
