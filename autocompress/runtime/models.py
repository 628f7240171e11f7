"""Exported models of one run in memory, cheapest first, checked against each other and timed."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from autocompress.analysis.cascade import CascadeSearch, compute_confidence
from autocompress.core.untrusted import show_value
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.folder import read_files
from autocompress.export.pipeline import Array, Pipeline, PipelineError, Values, load

# Runs of each model, in turns: the median of so few is stable enough for an order, and takes milliseconds.
TIMED_RUNS = 15
PAUSE_SECONDS = 0.002

logger = logging.getLogger(__name__)

# Key of an output in preprocess.json: each model of a run may have its own.
THRESHOLD = "threshold"

Outputs = Mapping[str, Array]
Record = Mapping[str, object]


@dataclass(frozen=True)
class ServedModel:
    """One exported model, ready to run.

    Attributes:
        name: Name of its folder.
        folder: Path of its folder.
        pipeline: Pipeline for raw input.
        origin: Run, candidate, scores and costs, as ``preprocess.json`` holds them; empty without a run.
        run_ms: Median milliseconds of one example in the model itself, without the encoding of raw input.
    """

    name: str
    folder: Path
    pipeline: Pipeline
    origin: Record = field(default_factory=dict)
    run_ms: float = 0.0

    @property
    def score(self) -> float | None:
        """Score of the candidate on select_val, larger is better; None if it is not known."""
        metric, scores = self.origin.get("metric"), self.origin.get("scores")
        entry = scores.get(metric) if isinstance(scores, Mapping) else None
        if not isinstance(entry, Mapping):
            return None
        return float(entry["value"]) * (1 if entry["direction"] == "maximize" else -1)

    def run(self, batch: Sequence[Values]) -> list[Outputs]:
        """Return the outputs of each encoded example."""
        return list(self.pipeline.run(batch))


@dataclass(frozen=True)
class Level:
    """What answers a request: one model, or a small one with a larger one for the examples of low confidence.

    Attributes:
        name: Name in answers, metrics and logs.
        model: The model that sees every example.
        larger: The model for examples of low confidence; None for a single model.
        threshold: Confidence below which the larger model answers.
        share: Expected share of the examples that the larger model answers.
        score: Score on select_val, larger is better; None if it is not known.
    """

    name: str
    model: ServedModel
    larger: ServedModel | None = None
    threshold: float = 0.0
    share: float = 0.0
    score: float | None = None

    @property
    def run_ms(self) -> float:
        """Expected milliseconds of one example."""
        return self.model.run_ms + (0.0 if self.larger is None else self.share * self.larger.run_ms)

    def run(self, batch: Sequence[Values]) -> tuple[list[Outputs], list[bool]]:
        """Return the outputs of each encoded example, and whether the larger model made them."""
        outputs = self.model.run(batch)
        if self.larger is None:
            return outputs, [False] * len(batch)
        kinds = list_kinds(self.model.pipeline)
        # The same rule as in the choice of the threshold on select_val.
        is_unsure = [confidence_of(example, kinds) < self.threshold for example in outputs]
        positions = [at for at, unsure in enumerate(is_unsure) if unsure]
        # The larger model runs once for all examples of the request.
        if positions:
            for at, example in zip(positions, self.larger.run([batch[at] for at in positions]), strict=True):
                outputs[at] = example
        return outputs, is_unsure

    def decode(self, values: Values, outputs: Outputs, *, is_escalated: bool) -> dict[str, Any]:
        """Return the prediction of one example, decided at the threshold of the model that made the outputs."""
        model = self.larger if is_escalated and self.larger is not None else self.model
        return model.pipeline.decode(values, outputs)


def list_kinds(pipeline: Pipeline) -> dict[str, str]:
    """Return the kind of each head."""
    return {entry["head"]: entry["kind"] for entry in pipeline.record["outputs"]}


def confidence_of(outputs: Outputs, kinds: Mapping[str, str]) -> float:
    """Return the confidence in one example; raises as :func:`autocompress.analysis.cascade.compute_confidence`."""
    return float(compute_confidence({head: values[None] for head, values in outputs.items()}, kinds)[0])


def load_models(folders: Sequence[Path | str], threads: int = 1, key: Path | None = None) -> tuple[ServedModel, ...]:
    """Return the models of exported folders of one run, the fastest first.

    Args:
        folders: The exported folders.
        threads: Number of threads of onnxruntime in each model.
        key: Public key that must have signed the folders; None for no check of signatures.

    Raises:
        UsageError: There is no folder, two have one name, or they come from different runs, tasks or versions.
        ArtifactError: A folder is no artifact, a file was changed, or a model does not run.
    """
    paths = [Path(folder).absolute() for folder in folders]
    if not paths:
        raise UsageError("serving needs at least one exported folder; run autocompress export first")
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two of the exported folders have the name '{name}': models are told apart by it")
    models = [load_model(path, threads, key) for path in paths]
    _check_origins(models)
    for model in models:
        _check_runs(model)
    return tuple(time_models(models))


def load_model(folder: Path, threads: int = 1, key: Path | None = None) -> ServedModel:
    """Return the model of an exported folder, not timed; for the arguments see :func:`load_models`.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, or the signature is not the key's.
    """
    # Also without a key: links, devices and damaged files are refused before onnxruntime sees them.
    read_files(folder, required=(), key=key)
    try:
        pipeline = load(folder, threads)
    except PipelineError as error:
        raise ArtifactError(str(error)) from error
    model = ServedModel(folder.name, folder, pipeline, pipeline.record.get("origin", {}))
    try:
        if not isinstance(pipeline.record["task"], str) or not isinstance(model.origin, Mapping):
            raise TypeError("its task or its origin has another form")
        # Fails where the origin has another form.
        _ = model.score
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / 'preprocess.json'} was changed ({error!r}); export it again") from error
    return model


def _check_runs(model: ServedModel) -> None:
    """Check that a model predicts an example of its own, so that no request is the first to fail.

    Raises:
        ArtifactError: It does not.
    """
    try:
        model.pipeline.predict(build_example(model.pipeline.record))
    except Exception as error:  # of many kinds: of onnxruntime, of NumPy, and of what preprocess.json lacks
        reason = f"{type(error).__name__}: {show_value(' '.join(str(error).split()))}"
        raise ArtifactError(f"{model.folder} does not run ({reason}); export it again") from error


def _check_origins(models: Sequence[ServedModel]) -> None:
    """Check that requests may be answered by any of the models.

    Raises:
        UsageError: Two models have other tasks, inputs or outputs, or come from different runs.
    """
    first, *others = models
    for model in others:
        for part in ("task", "inputs", "outputs"):
            if _describe_part(model.pipeline, part) != _describe_part(first.pipeline, part):
                raise UsageError(
                    f"'{first.name}' and '{model.name}' have different {part}, as if of different runs: one service "
                    "answers with models of one run"
                )
    # A single model has nothing to agree with.
    for model in models if others else []:
        if not model.origin:
            raise UsageError(
                f"'{model.name}' does not say which run it comes from: an earlier version exported it. Export it "
                "again: autocompress export RUN --candidate ID"
            )
    for model in others:
        if model.origin.get("fingerprint") != first.origin.get("fingerprint"):
            raise UsageError(
                f"'{first.name}' is of the run '{first.origin.get('run')}' ({first.origin.get('fingerprint')}) and "
                f"'{model.name}' of the run '{model.origin.get('run')}' ({model.origin.get('fingerprint')}): one "
                "service answers with models of one run"
            )


def _describe_part(pipeline: Pipeline, part: str) -> object:
    """Return a part of a record that the models of one run share: outputs without the threshold of each model."""
    value = pipeline.record[part]
    if part != "outputs":
        return value
    return [{name: entry[name] for name in entry if name != THRESHOLD} for entry in cast("Sequence[Record]", value)]


def time_models(
    models: Sequence[ServedModel], clock: Callable[[], float] = time.perf_counter, runs: int = TIMED_RUNS
) -> list[ServedModel]:
    """Return the models with their median time of one example, measured in turns, the fastest first."""
    # In turns: a change of the machine's speed meets all models alike. After a pause, as between two requests, in which
    # others use the caches: a small model takes twice as long then as in a row.
    batches = [[model.pipeline.encode([build_example(model.pipeline.record)])[0]] for model in models]
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(runs + 1):
        for at, model in enumerate(models):
            time.sleep(PAUSE_SECONDS)
            started = clock()
            model.run(batches[at])
            # The first turn allocates memory.
            if turn:
                seconds[at].append(clock() - started)
    timed = [replace(model, run_ms=1000 * statistics.median(own)) for model, own in zip(models, seconds, strict=True)]
    return sorted(timed, key=lambda model: model.run_ms)


def build_levels(models: Sequence[ServedModel], cascade: CascadeSearch | None = None) -> tuple[Level, ...]:
    """Return what may answer a request, the fastest first.

    A level that is slower than another one and has no better score on select_val is left out with a notice.

    Args:
        models: Models, the fastest first.
        cascade: Cascades of the run; the recommended one is a level of its own.

    Raises:
        UsageError: A model of the cascade is not among the models.
    """
    levels = [Level(model.name, model, score=model.score) for model in models]
    point = None if cascade is None else cascade.recommended
    if cascade is not None and point is not None:
        by_candidate = {str(model.origin.get("candidate", model.name)): model for model in models}
        small, large = by_candidate.get(point.small), by_candidate.get(point.large)
        if small is None or large is None:
            raise UsageError(
                f"the cascade needs the models {point.small} and {point.large}; there are {', '.join(by_candidate)}"
            )
        sign = 1 if cascade.direction == "maximize" else -1
        levels.append(Level(point.name, small, large, point.threshold, point.share, sign * point.score))
    return _leave_out_dominated(sorted(levels, key=lambda level: level.run_ms))


def _leave_out_dominated(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Return the levels without those that are slower than another one and not better; unknown scores stay."""
    chosen: list[Level] = []
    best: float | None = None
    for level in levels:
        if level.score is not None and best is not None and level.score <= best:
            logger.warning(
                "%s is left out: it takes %.3f ms an example here, and a faster model is at least as good",
                level.name,
                level.run_ms,
            )
            continue
        best = level.score if level.score is not None else best
        chosen.append(level)
    return tuple(chosen)


def build_example(record: Record) -> object:
    """Return a raw example of the right form, for timing: zeros, a short text, known ids."""
    inputs = cast("Sequence[Record]", record["inputs"])
    if all(entry["kind"] == "tokens" for entry in inputs):
        # All tensors of a tokenizer are made of one text.
        return "a"
    values = {str(entry["name"]): _build_value(entry) for entry in inputs}
    return next(iter(values.values())) if len(values) == 1 else values


def _build_value(entry: Record) -> object:
    kind = entry["kind"]
    if kind == "text":
        return "a"
    if kind in ("id", "candidates"):
        ids = [name for name in cast("Sequence[str | None]", entry["ids"]) if name is not None]
        # A short list, as services rank: the whole catalogue may have millions of ids.
        return ids[0] if kind == "id" else ids[:50]
    if kind == "row":
        return [0.0] * len(cast("Sequence[str]", entry["columns"]))
    shape = tuple(cast("Sequence[int]", entry["shape"]))
    if kind == "image":
        channels, height, width = shape
        return np.zeros((height, width) if channels == 1 else (height, width, channels), np.uint8)
    return np.zeros(shape, np.float32)
