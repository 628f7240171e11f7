"""The description of a run as typed records: objectives, limits, teacher, splits, environment and outcome.

A run folder stores one JSON value per entry. :meth:`RunInfo.from_json` and :meth:`RunInfo.to_json` are the only
places that know the names of these entries.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Literal, TypeAlias

from pydantic import JsonValue, TypeAdapter

from autocompress.core.precisions import Precisions
from autocompress.errors import UsageError


def read_processor_name() -> str:
    """Return the processor's name, such as ``AMD EPYC 7B13``."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        # No Linux, or a /proc/cpuinfo without model names.
        return platform.processor() or platform.machine()


Direction: TypeAlias = Literal["maximize", "minimize"]
#: Column name to bounds, both included: ``{"effective_flops": {"max": 2e6}}``.
Limits: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ObjectiveSpec:
    """One score or cost of a run.

    Attributes:
        name: Name of the column, the axis and the limit.
        direction: Whether larger or smaller values are better.
        unit: Unit printed after the value; empty for a fraction.
        kind: ``score`` if it is measured on a split, ``cost`` if on the model alone.
        bounds: Reference point (worst value) and ideal point (best value) of the hypervolume; None for a column that
            is not an objective of the search.

    Example:
        >>> ObjectiveSpec("accuracy", "maximize", bounds=(0.1, 1.0)).to_json()["box"]
        [0.1, 1.0]
    """

    name: str
    direction: Direction
    unit: str = ""
    kind: Literal["score", "cost"] = "score"
    bounds: tuple[float, float] | None = None

    @property
    def is_maximized(self) -> bool:
        """Whether larger values are better."""
        return self.direction == "maximize"

    def require_bounds(self) -> tuple[float, float]:
        """Return the bounds of an objective of the search.

        Raises:
            UsageError: It declares none.
        """
        if self.bounds is None:
            raise UsageError(f"the objective '{self.name}' declares no reference and ideal point")
        return self.bounds

    def to_json(self) -> dict[str, JsonValue]:
        """Return the objective as it is stored."""
        entries: dict[str, JsonValue] = {
            "name": self.name,
            "direction": self.direction,
            "unit": self.unit,
            "kind": self.kind,
        }
        if self.bounds is not None:
            # The stored name differs from the field's; _with_bounds translates it back.
            entries["box"] = list(self.bounds)
        return entries


@dataclass(frozen=True)
class TeacherInfo:
    """Measurements of the teacher; empty in a run that ended before it was trained.

    Attributes:
        scores: Split name to metric name to value, as for a candidate.
        costs: Cost name to value.
        config: Config of its model (``student``) and its training (``fit``).
        examples: Split name to the packed scores of its examples in the first score of the objectives; empty in runs of
            earlier versions.
        curve: Training curve, one row per epoch; empty in runs of earlier versions, and for a teacher that was not
            trained.
        thresholds: Threshold of each head at which classes are predicted; heads without an entry have 0.5.
    """

    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, JsonValue] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def score(self, name: str, split: str = "select_val") -> float | None:
        """Return one score on one split; None if it was not measured."""
        return self.scores.get(split, {}).get(name)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the teacher as it is stored; empty if nothing is known of it."""
        entries: dict[str, JsonValue] = {
            "scores": {split: dict(values) for split, values in self.scores.items()},
            "costs": dict(self.costs),
            "config": dict(self.config),
            "examples": dict(self.examples),
            "curve": [dict(row) for row in self.curve],
            "thresholds": dict(self.thresholds),
        }
        return {name: value for name, value in entries.items() if value}


@dataclass(frozen=True)
class TrivialBaselineInfo:
    """Measurements of a trivial baseline.

    Attributes:
        text: Description of its predictions in a few words.
        scores: Split name to metric name to value, as for the teacher.
        seconds: Duration of its fit.
    """

    text: str = ""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, JsonValue]:
        """Return the baseline as it is stored."""
        scores: dict[str, JsonValue] = {split: dict(values) for split, values in self.scores.items()}
        return {"text": self.text, "scores": scores, "seconds": self.seconds}


@dataclass(frozen=True)
class LatencyInfo:
    """Measured latencies of exported models on one machine.

    Attributes:
        batch: Examples per run.
        threads: Threads of the runtime.
        processor: Model name of the processor.
        runtime: Version of the runtime.
        rows: Candidate id, or ``teacher``, to milliseconds: the median ratio to the teacher's time in the same round,
            times the median of the teacher.
        target: Name of the target that ran the models.
        float_rows: The same for the graph of a candidate without integer layers.
    """

    batch: int = 1
    threads: int = 1
    processor: str = ""
    runtime: str = ""
    rows: Mapping[str, float] = field(default_factory=dict)
    target: str = "onnxruntime"
    float_rows: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the latencies as they are stored."""
        return {
            "batch": self.batch,
            "threads": self.threads,
            "processor": self.processor,
            "runtime": self.runtime,
            "rows": dict(self.rows),
            "target": self.target,
            "float_rows": dict(self.float_rows),
        }


@dataclass(frozen=True)
class TargetInfo:
    """The device or runtime that a search was made for.

    Attributes:
        name: Registered name; empty for a run of an earlier version, ``none`` for a free choice of bits.
        options: Options of the target in the search space.
        version: Version of the runtime; empty without one.
        processor: Model name of the processor that was probed; empty where nothing was.
        precisions: Bit-widths that it stores and computes with.
    """

    name: str = ""
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    version: str = ""
    processor: str = ""
    precisions: Precisions = field(default_factory=Precisions)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the target as it is stored; empty without one."""
        if not self.name:
            return {}
        return {
            "name": self.name,
            "options": dict(self.options),
            "version": self.version,
            "processor": self.processor,
            "precisions": self.precisions.to_json(),
        }


@dataclass(frozen=True)
class ReferenceRun:
    """Hypervolume of another run, drawn beside this run's own.

    Attributes:
        name: Name of the other run.
        rows: One row per improvement: trial number, seconds, hypervolume.
    """

    name: str
    rows: tuple[tuple[float, ...], ...] = ()

    def to_json(self) -> dict[str, JsonValue]:
        """Return the reference as it is stored."""
        return {"name": self.name, "rows": [list(row) for row in self.rows]}


@dataclass(frozen=True)
class EnvironmentInfo:
    """Machine and software of a run, and the fingerprint of its data; None and empty where it is not known.

    Attributes:
        processor: Model name of the processor.
        cores: Number of its logical cores.
        workers: Number of worker processes.
        threads_per_worker: Threads of torch in each worker.
        system: Operating system.
        python: Version of Python.
        versions: Library name to its version.
        capability: Instruction set that torch uses, such as ``AVX512``.
        data: Fingerprint of the five splits.
    """

    processor: str = ""
    cores: int | None = None
    workers: int | None = None
    threads_per_worker: int | None = None
    system: str = ""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    capability: str = ""
    data: str = ""

    def to_json(self) -> dict[str, JsonValue]:
        """Return the environment as it is stored; what is not known is left out."""
        entries: dict[str, JsonValue] = {
            "processor": self.processor,
            "cores": self.cores,
            "workers": self.workers,
            "threads_per_worker": self.threads_per_worker,
            "system": self.system,
            "python": self.python,
            "versions": dict(self.versions),
            "capability": self.capability,
            "data": self.data,
        }
        return {name: value for name, value in entries.items() if value}


@dataclass(frozen=True)
class RunInfo:
    """Everything a run folder stores about a run besides its trials and candidates.

    Entries are stored in three steps: the first four when the folder is created, those from ``setup`` to
    ``environment`` when the teacher is ready, those from ``front`` on when the search has ended or later.

    Attributes:
        format: Format of the run folder.
        name: Name of the run.
        content: Parts of the spec that decide the results; a run is resumed only with equal content.
        command: Command line that started the run, for the report.
        setup: Setup of the workers, as :meth:`autocompress.trial.pipeline.Setup.to_json` returns it.
        task: Name of the task.
        heads: Head name to its number of classes.
        labels: Head name to the name of each class; heads without names, or with very many classes, are left out.
        mode: Search mode.
        spec: The spec as YAML.
        teacher: Measurements of the teacher.
        notices: Warnings shown to the user.
        plugins: Plugin modules and files that were loaded.
        objectives: Objectives of the search, with their bounds.
        all_objectives: Every score and cost that was measured, without bounds.
        limits: Limits of the search.
        max_drop: Largest loss in the first score, against the teacher, that the recommended candidate may have.
        confidence: Confidence at which the loss of the recommended candidate is certified; None if its observed loss
            counts, as in runs of earlier versions.
        splits: Split name to its number of examples.
        environment: Machine and software.
        seconds: Seconds of search so far, over all sessions; None before the first session ended.
        exhausted: Whether every configuration of the search space was tried.
        front: Candidate ids of the frozen front, cheapest first; None before the search has ended.
        recommended: Id of the recommended candidate; empty if none can be recommended.
        baselines: Id of each baseline to its label.
        trivial_baselines: Name of each trivial baseline to its measurements; empty in runs of earlier versions.
        test_reads: Number of times the test split was read.
        confirmed: Candidate id to the number of repeats asked for.
        latency: Measured latencies.
        target: The device or runtime that the search was made for.
        reference: Hypervolume of a run to compare with.
        other: Entries that this version does not know.
    """

    format: int = 0
    name: str = ""
    content: Mapping[str, JsonValue] = field(default_factory=dict)
    command: str = ""
    setup: Mapping[str, JsonValue] = field(default_factory=dict)
    task: str = ""
    heads: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mode: str = ""
    spec: str = ""
    teacher: TeacherInfo = field(default_factory=TeacherInfo)
    notices: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    objectives: tuple[ObjectiveSpec, ...] = ()
    all_objectives: tuple[ObjectiveSpec, ...] = ()
    limits: Limits = field(default_factory=dict)
    max_drop: float | None = None
    confidence: float | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    environment: EnvironmentInfo = field(default_factory=EnvironmentInfo)
    seconds: float | None = None
    exhausted: bool = False
    # None is a search that has not ended; an empty tuple is one that ended without a front.
    front: tuple[str, ...] | None = None
    recommended: str = ""
    baselines: Mapping[str, str] = field(default_factory=dict)
    trivial_baselines: Mapping[str, TrivialBaselineInfo] = field(default_factory=dict)
    test_reads: int = 0
    confirmed: Mapping[str, int] = field(default_factory=dict)
    latency: LatencyInfo | None = None
    target: TargetInfo = field(default_factory=TargetInfo)
    reference: ReferenceRun | None = None
    other: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the search has ended and its front is frozen."""
        return self.front is not None

    @property
    def measured(self) -> dict[str, ObjectiveSpec]:
        """Every measured score and cost by name; objectives of the search with their bounds."""
        # The objectives come last: they replace entries of the same name that have no bounds.
        return {objective.name: objective for objective in (*self.all_objectives, *self.objectives)}

    @classmethod
    def from_json(cls, entries: Mapping[str, JsonValue]) -> "RunInfo":
        """Return the description that :meth:`to_json` wrote, also one by an earlier version.

        A missing entry takes its default.

        Raises:
            ValueError: An entry has another type than it should have.

        Example:
            >>> info = RunInfo.from_json({"name": "digits", "pick": {"max_drop": 0.01}, "colour": "blue"})
            >>> info.max_drop, info.front, dict(info.other)
            (0.01, None, {'colour': 'blue'})
        """
        # Null stands for a missing entry in early run folders.
        values: dict[str, JsonValue] = {
            name: value for name, value in entries.items() if name in _ENTRIES and value is not None
        }
        # Entries of a later version are kept, so that writing the description back loses nothing.
        other = {name: value for name, value in entries.items() if name not in {*_ENTRIES, "pick"}}
        for name in ("objectives", "all_objectives"):
            objectives = values.get(name)
            if isinstance(objectives, list):
                values[name] = [_with_bounds(objective) for objective in objectives]
        # The entry is an object, whose keys have fields of their own.
        pick = entries.get("pick")
        if isinstance(pick, dict):
            values |= {name: pick.get(name) for name in _PICK}
        return _run_info_adapter().validate_python({**values, "other": other})

    def to_json(self) -> dict[str, JsonValue]:
        """Return the description as it is stored: one JSON value per entry.

        Entries of a step that the run has not reached are left out.
        """
        entries: dict[str, JsonValue] = {
            "format": self.format,
            "name": self.name,
            "content": dict(self.content),
            "command": self.command,
            "setup": dict(self.setup),
            "task": self.task,
            "heads": dict(self.heads),
            "labels": {head: list(names) for head, names in self.labels.items()},
            "mode": self.mode,
            "spec": self.spec,
            "teacher": self.teacher.to_json(),
            "notices": list(self.notices),
            "plugins": list(self.plugins),
            "objectives": [objective.to_json() for objective in self.objectives],
            "all_objectives": [objective.to_json() for objective in self.all_objectives],
            "limits": {name: dict(bounds) for name, bounds in self.limits.items()},
            "pick": {name: value for name in _PICK if (value := getattr(self, name)) is not None},
            "splits": dict(self.splits),
            "environment": self.environment.to_json(),
            "seconds": self.seconds,
            "exhausted": self.exhausted,
            "front": None if self.front is None else list(self.front),
            "recommended": self.recommended,
            "baselines": dict(self.baselines),
            "trivial_baselines": {name: baseline.to_json() for name, baseline in self.trivial_baselines.items()},
            "test_reads": self.test_reads,
            "confirmed": dict(self.confirmed),
            "latency": None if self.latency is None else self.latency.to_json(),
            "target": self.target.to_json(),
            "reference": None if self.reference is None else self.reference.to_json(),
        }
        # Empty values are stored too, once their step is reached: a run with no notice says so.
        reached = {"command"} if self.content else set()
        reached |= {"notices", "plugins", "limits"} if self.objectives else set()
        reached |= {"exhausted"} if self.seconds is not None else set()
        reached |= {"front", "recommended", "baselines"} if self.front is not None else set()
        # A number of type float is stored also if it is zero; other empty values need their step.
        stored: dict[str, JsonValue] = {
            name: value
            for name, value in entries.items()
            if name in reached or value or isinstance(value, float) or (name == "seconds" and value is not None)
        }
        return {**stored, **self.other}


#: Fields that the entry ``pick`` holds.
_PICK = ("max_drop", "confidence")
#: Entries that have a field of the same name.
_ENTRIES = {entry.name for entry in fields(RunInfo)} - {*_PICK, "other"}


@cache
def _run_info_adapter() -> TypeAdapter[RunInfo]:
    # Built at the first use: it takes some milliseconds, which `autocompress --version` need not spend.
    return TypeAdapter(RunInfo)


def _with_bounds(objective: JsonValue) -> JsonValue:
    """Return a stored objective with ``box`` under the name of the field."""
    if not isinstance(objective, dict):
        return objective
    return {"bounds" if name == "box" else name: value for name, value in objective.items()}
