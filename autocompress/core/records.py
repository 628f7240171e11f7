"""The frozen records that travel between driver, worker and store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autocompress.core.config import CompressionConfig, Part


class State(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    INFEASIBLE = "infeasible"
    FAILED = "failed"


class Role(StrEnum):
    """Why a trial was run: only ``SEARCH`` candidates stand on the front."""

    SEARCH = "search"
    BASELINE = "baseline"
    CONFIRM = "confirm"


@dataclass(frozen=True)
class Cut:
    """What turns one checkpoint into one candidate; both ``None`` is the uncut parent.

    Attributes:
        prune: The pruning method with its settings.
        quantize: The quantization method with its settings, applied after it.
    """

    prune: Part | None = None
    quantize: Part | None = None


@dataclass(frozen=True)
class Base:
    """A checkpoint that is cut further instead of training anew.

    Attributes:
        checkpoint: Its name.
        prune: How it was pruned.
        epochs: Epochs that its training had.
        content: The safetensors file; the store adds it when the job is handed out.
    """

    checkpoint: str
    prune: Part | None
    epochs: int
    content: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True)
class Job:
    """One training to run, whole or a segment of it, and the cuts to make from its checkpoint.

    Attributes:
        number: The trial's number.
        training: What to train.
        cuts: What to make of the checkpoint.
        role: Why.
        rung: Where the training pauses: 0 is the first rung; ``None`` trains to the end.
        until: Epochs after which it pauses; ``None`` for all of them.
        base: A checkpoint to cut instead of training.
        paused: What the segment before left.
        resampled: The score that is also told on resamplings of the examples; whoever hands the job out names it.
    """

    number: int
    training: CompressionConfig
    cuts: tuple[Cut, ...]
    role: Role = Role.SEARCH
    rung: int | None = None
    until: int | None = None
    base: Base | None = None
    paused: bytes = field(default=b"", repr=False, compare=False)
    resampled: str = ""


@dataclass(frozen=True)
class Candidate:
    """One compressed model, measured.

    Attributes:
        id: ``t<trial>c<cut>``, for example ``t12c7``.
        trial: Number of the trial it was cut from.
        config: The whole tuple, cut included.
        epochs: Epochs its training had when it was cut: points of different fidelity never share a front.
        scores: Split name to metric name to value, for example ``scores["select_val"]["accuracy"]``.
        costs: Cost name to value, for example ``costs["effective_flops"]``.
        details: What the candidate's card shows: per-class scores, per-layer bits, sparsity, errors.
        checkpoint: Name of the weights it is cut from, before quantization; empty if they were not kept.
        complete: Whether its training ran to its end; only then may it stand on a front.
    """

    id: str
    trial: int
    config: CompressionConfig
    epochs: int
    scores: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    complete: bool = True


@dataclass(frozen=True)
class TrialResult:
    """What one job came to.

    A job that pauses gives ``PAUSED``, candidates that are not complete, and what to go on from.

    Attributes:
        number: The job's number.
        state: Any state but ``RUNNING``.
        candidates: Every candidate that could be cut and measured, the uncut parent first.
        seconds: Wall-clock in the worker.
        reason: Why the trial did not complete, or which cuts were left out; empty otherwise.
        curve: One row an epoch: ``{"epoch": 1, "loss": 2.1, ...}``.
        checkpoints: Name to the content of a safetensors file, for the store to write.
        paused: What the next segment goes on from.
    """

    number: int
    state: State
    candidates: tuple[Candidate, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    curve: tuple[Mapping[str, float], ...] = ()
    checkpoints: Mapping[str, bytes] = field(default_factory=dict)
    paused: bytes = field(default=b"", repr=False)
