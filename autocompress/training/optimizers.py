"""How a fit steps: optimizers, learning-rate schedules, and the knobs that every fit shares."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from autocompress.core.config import Part
from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.core.registry import FITS


@dataclass(frozen=True)
class FitConfig(Settings):
    """Knobs that every optimizer shares."""

    epochs: int = knob(15, IntRange(0, 1000), "passes over the training split; 0 leaves the model as it is")
    batch_size: int = knob(64, IntRange(1, 4096, log=True), "examples a step")
    learning_rate: float = knob(5e-3, FloatRange(1e-5, 10.0, log=True), "peak of the schedule")
    schedule: str = knob(
        "one_cycle", Choice(("one_cycle", "cosine", "step", "constant", "plateau")), "how the learning rate moves"
    )
    warmup: float = knob(0.2, FloatRange(0.0, 0.9), "share of the steps in which the learning rate rises")
    weight_decay: float = knob(1e-4, FloatRange(0.0, 1.0), "decay of the weights")
    clip_norm: float = knob(5.0, FloatRange(0.0, 1000.0), "largest gradient norm; 0 leaves gradients alone")
    label_smoothing: float = knob(0.0, FloatRange(0.0, 0.9), "share of the target spread over all classes")
    mixup: float = knob(0.0, FloatRange(0.0, 10.0), "alpha of the Beta that mixes pairs of examples; 0 mixes none")
    l1_weights: float = knob(0.0, FloatRange(0.0, 1.0), "penalty on the absolute value of each weight")
    l1_batch_norm: float = knob(0.0, FloatRange(0.0, 1.0), "penalty on the absolute value of each batch-norm scale")
    patience: int = knob(0, IntRange(0, 1000), "epochs without a better held-out loss before the fit ends; 0 never")
    precision: str = knob(
        "float32", Choice(("float32", "bfloat16", "auto")), "bfloat16 runs channels_last under autocast; auto probes"
    )
    init: str = knob(
        "random",
        Choice(("random", "teacher")),
        "where weights start: at random, or from the teacher's in layers of the same name",
    )
    backbone: str = knob("tuned", Choice(("tuned", "frozen")), "frozen trains the heads alone")
    head_weights: str = knob(
        "fixed", Choice(("fixed", "uncertainty", "dynamic")), "how the losses of several heads are weighted"
    )
    first_head: float = knob(1.0, FloatRange(0.01, 100.0, log=True), "fixed weight of the first head over each other")
    sandwich: float = knob(
        0.0, FloatRange(0.0, 0.9), "channels that the narrowest of the sub-networks trained along does without; 0: none"
    )
    processes: int = knob(1, IntRange(1, 64), "processes that share each batch")


@dataclass(frozen=True)
class AdamWConfig(FitConfig):
    """Knobs of :class:`AdamW`."""

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
    """Knobs of :class:`SGD`."""

    label = "fit.sgd"

    learning_rate: float = knob(0.1, FloatRange(1e-5, 10.0, log=True), "peak of the schedule")
    momentum: float = knob(0.9, FloatRange(0.0, 0.999), "share of the last step that goes on")


class SGD:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""

    name = "sgd"
    config = SGDConfig

    def optimizer(self, config: SGDConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer over ``parameters``."""
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            fused=True,
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
    """Moves the learning rate of one optimizer."""

    def after_step(self) -> None:
        """Take note of a step."""
        ...

    def after_epoch(self, loss: float) -> None:
        """Take note of an epoch and its loss."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return how far it has come."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where another one had come to."""
        ...


@dataclass(frozen=True)
class _Inner:
    """Keeps a torch schedule."""

    inner: LambdaLR | OneCycleLR | ReduceLROnPlateau

    def state_dict(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.inner.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(dict(state_dict))


@dataclass(frozen=True)
class _PerStep(_Inner):
    """A torch schedule that moves at each step."""

    inner: LambdaLR | OneCycleLR

    def after_step(self) -> None:
        self.inner.step()

    def after_epoch(self, loss: float) -> None:
        """Nothing: it moved already."""


@dataclass(frozen=True)
class _PerEpoch(_Inner):
    """A torch schedule that moves by the loss of each epoch."""

    inner: ReduceLROnPlateau

    def after_step(self) -> None:
        """Nothing: it waits for the epoch."""

    def after_epoch(self, loss: float) -> None:
        self.inner.step(loss)


def _one_cycle(optimizer: Optimizer, config: FitConfig, steps: int) -> Schedule:
    """Rise to the peak, fall to almost nothing (Smith and Topin 2018, arXiv:1708.07120)."""
    if steps < 4:
        # Too few to rise and fall; torch's phases would have no length.
        return _factor(lambda share: 1.0)(optimizer, config, steps)
    share = min(max(config.warmup, 2.0 / steps), 0.9)
    cycle = OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=share, cycle_momentum=False)
    return _PerStep(cycle)


def _factor(shape: Callable[[float], float]) -> Callable[[Optimizer, FitConfig, int], Schedule]:
    """Return a schedule that warms up linearly, then follows ``shape`` of the share of steps done since."""

    def build(optimizer: Optimizer, config: FitConfig, steps: int) -> Schedule:
        warm = int(config.warmup * steps)

        def factor(step: int) -> float:
            return (step + 1) / (warm + 1) if step < warm else shape((step - warm) / max(steps - warm, 1))

        return _PerStep(LambdaLR(optimizer, factor))

    return build


def _plateau(optimizer: Optimizer, config: FitConfig, steps: int) -> Schedule:
    return _PerEpoch(ReduceLROnPlateau(optimizer, factor=0.3, patience=2))


SCHEDULES: Mapping[str, Callable[[Optimizer, FitConfig, int], Schedule]] = {
    "one_cycle": _one_cycle,
    # Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    "cosine": _factor(lambda share: 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))),
    # A tenth after half of the steps, a hundredth after three quarters (He et al. 2016, arXiv:1512.03385).
    "step": _factor(lambda share: 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01),
    "constant": _factor(lambda share: 1.0),
    "plateau": _plateau,
}
