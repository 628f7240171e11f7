"""The frozen records that travel between driver, worker and store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autocompress.core.config import CompressionConfig, Part

#: Entry of a candidate's details with the threshold of each head.
THRESHOLDS = "thresholds"


class State(StrEnum):
    """State of a trial."""

    # Run folders store these values: they must not change.
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    INFEASIBLE = "infeasible"
    FAILED = "failed"


class Role(StrEnum):
    """Role of a trial: only candidates of the role ``SEARCH`` can be on the front."""

    SEARCH = "search"
    BASELINE = "baseline"
    CONFIRM = "confirm"


@dataclass(frozen=True)
class CompressionRecipe:
    """Compression of one checkpoint into one candidate; both ``None`` is the uncompressed student.

    Attributes:
        prune: Pruning method with its settings.
        quantize: Quantization method with its settings, applied after pruning.
    """

    prune: Part | None = None
    quantize: Part | None = None


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint of an earlier job that is compressed instead of training.

    Attributes:
        checkpoint: Name of the checkpoint.
        prune: Pruning method that was applied to it.
        epochs: Epochs of its training.
        content: Content of the safetensors file; the store adds it when a worker gets the job.
    """

    checkpoint: str
    prune: Part | None
    epochs: int
    # The name of the checkpoint identifies the content, so comparison leaves the bytes out.
    content: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True)
class Job:
    """One trial or a segment of it, with the compression recipes to apply to its checkpoint.

    Attributes:
        number: Number of the trial.
        training: Config of the training.
        recipes: Compression recipes, one per candidate.
        role: Role of the trial.
        rung: Index of the rung where training pauses, from 0; ``None`` trains to the end.
        until: Number of epochs at that rung; ``None`` for all epochs.
        base: Checkpoint to compress instead of training.
        paused: Training state of the previous segment.
        resampled: Name of the score that is also measured on bootstrap samples of the examples; empty for none.
    """

    number: int
    training: CompressionConfig
    recipes: tuple[CompressionRecipe, ...]
    role: Role = Role.SEARCH
    rung: int | None = None
    until: int | None = None
    base: BaseCheckpoint | None = None
    paused: bytes = field(default=b"", repr=False, compare=False)
    resampled: str = ""


@dataclass(frozen=True)
class Candidate:
    """One compressed model, measured.

    Attributes:
        id: Id ``t<trial>c<recipe>``, for example ``t12c7``.
        trial: Number of the trial.
        config: Config of training and compression.
        epochs: Epochs of training before compression; candidates of different fidelity never share a front.
        scores: Split name to metric name to value, for example ``scores["select_val"]["accuracy"]``.
        costs: Cost name to value, for example ``costs["effective_flops"]``.
        details: Entries of the candidate's card: per-class scores, bits per layer, sparsity, errors.
        checkpoint: Name of the stored weights before quantization; empty if they are not stored.
        complete: Whether training is complete, as a front requires.
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

    @property
    def thresholds(self) -> Mapping[str, float]:
        """Threshold of each head at which classes are predicted; heads without an entry have 0.5."""
        stored: Mapping[str, float] = self.details.get(THRESHOLDS) or {}
        return stored


@dataclass(frozen=True)
class Segment:
    """The time that one job took a worker.

    Attributes:
        worker: Number of the worker, from 1: the lowest one that was free.
        start: Seconds of search when the job was handed out.
        end: Seconds of search when its result came.
    """

    worker: int
    start: float
    end: float


@dataclass(frozen=True)
class TrialResult:
    """Result of one job.

    A job that pauses has the state ``PAUSED``, incomplete candidates, and the training state of the next segment.

    Attributes:
        number: Number of the trial.
        state: Any state but ``RUNNING``.
        candidates: Measured candidates, the uncompressed student first.
        seconds: Wall-clock seconds in the worker.
        reason: Reason why the trial is not complete, or recipes that failed; empty otherwise.
        curve: One row per epoch: ``{"epoch": 1, "loss": 2.1, ...}``.
        checkpoints: Checkpoint name to the content of its safetensors file.
        paused: Training state for the next segment.
    """

    number: int
    state: State
    candidates: tuple[Candidate, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    curve: tuple[Mapping[str, float], ...] = ()
    checkpoints: Mapping[str, bytes] = field(default_factory=dict)
    paused: bytes = field(default=b"", repr=False)
