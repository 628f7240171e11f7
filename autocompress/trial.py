"""The recipe of one trial: build, distil, cut, measure.

One training feeds many candidates: its checkpoint is pruned to each ratio, each pruned model recovers under the
same distillation, and each is quantized to each pair of bit-widths.
"""

import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from autocompress.config import Part
from autocompress.errors import AutocompressError
from autocompress.lab import Lab, Setup, checkpoint, lab, operations, settled
from autocompress.measure import Subject, layer_costs, measure, per_class
from autocompress.measure.cost import LayerCost
from autocompress.plugins import Guests
from autocompress.quantize import fold_batch_norm
from autocompress.records import Candidate, Cut, Job, State, TrialResult

VALIDATION = ("search_val", "select_val")


@dataclass(frozen=True)
class TrialRunner:
    """What a backend calls in its workers: ``prepare`` once, then the runner itself for each job."""

    setup: Setup
    guests: Guests = field(default_factory=Guests)

    def prepare(self) -> None:
        """Ready this process: Ctrl-C left to the driver, plugins, task and teacher loaded."""
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches the whole process group; only the driver answers it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.guests.settle()
        with settled():
            lab(self.setup)

    def __call__(self, job: Job) -> TrialResult:
        """Run one job; whatever goes wrong in it becomes a failed result with a reason."""
        started = time.perf_counter()
        try:
            with settled():
                result = run_trial(job, self.setup)
        except AutocompressError as error:
            return TrialResult(job.number, State.FAILED, reason=str(error), seconds=time.perf_counter() - started)
        except MemoryError:
            return TrialResult(job.number, State.FAILED, reason="out of memory", seconds=time.perf_counter() - started)
        except Exception as error:  # A user's task may raise anything; the search goes on and the report says why.
            reason = f"{type(error).__name__}: {error}"
            return TrialResult(job.number, State.FAILED, reason=reason, seconds=time.perf_counter() - started)
        return result


def run_trial(job: Job, setup: Setup) -> TrialResult:
    """Train once, cut and measure every candidate of a job.

    A cut that fails leaves the other cuts standing; the reason is kept.

    Raises:
        TrialError: The training diverged, or nothing could be cut from it.
    """
    started = time.perf_counter()
    place = lab(setup)
    trained = place.train(job.training)
    begun = {step.part.name: dict(step.state.report) for step in trained.start}
    candidates: list[Candidate] = []
    reasons: list[str] = []
    checkpoints: dict[str, bytes] = {}
    for index, (prune, cuts) in enumerate(_by_prune(job.cuts)):
        name = f"t{job.number}p{index}"
        try:
            pruned, state = place.prune(trained.model, job.training, prune)
            checkpoints[name] = checkpoint(pruned, state, trained.start)
            folded = fold_batch_norm(pruned, place.task.example())
            layers = layer_costs(folded, place.task.example())
        except AutocompressError as error:
            reasons.append(f"{prune.name if prune else 'uncut'}: {error}")
            continue
        shared = {"start": begun} if begun else {}
        shared |= {} if state is None else {"prune": dict(state.report)}
        for number, cut in cuts:
            try:
                candidates.append(
                    _measured(place, setup, job, number, cut, folded, layers, shared, name, len(trained.curve))
                )
            except AutocompressError as error:
                reasons.append(f"t{job.number}c{number}: {error}")
    state_of_trial = State.COMPLETE if candidates else State.FAILED
    return TrialResult(
        job.number,
        state_of_trial,
        tuple(sorted(candidates, key=lambda candidate: int(candidate.id.rpartition("c")[2]))),
        time.perf_counter() - started,
        "; ".join(dict.fromkeys(reasons)),
        tuple(trained.curve),
        checkpoints,
    )


def score_test_split(
    chosen: Mapping[str, tuple[Candidate, bytes]], setup: Setup
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Read the test split: return the scores of chosen candidates by id, and those of the teacher.

    Raises:
        ArtifactError: A checkpoint is damaged.
    """
    place = lab(setup)
    split = place.splits.test
    teacher = place.predict(place.teacher.model, split)
    found = {}
    for identity, (candidate, content) in chosen.items():
        rebuilt = place.rebuild(candidate.config, content)
        found[identity] = measure(place.subject(rebuilt.model, split, teacher, setup.scores), setup.scores)
    return found, measure(place.subject(place.teacher.model, split, teacher, setup.scores), setup.scores)


def teacher_record(setup: Setup) -> dict[str, dict[str, Any]]:
    """Return the teacher's scores on the validation splits, and its costs."""
    place = lab(setup)
    layers = layer_costs(fold_batch_norm(place.teacher.model, place.task.example()), place.task.example())
    scores = {}
    for name in VALIDATION:
        split, logits = getattr(place.splits, name), place.teacher.logits[name]
        scores[name] = measure(place.subject(place.teacher.model, split, logits, setup.scores), setup.scores)
    return {"scores": scores, "costs": measure(Subject(layers=layers), setup.costs)}


def cpu_capability() -> str:
    """Return the instruction set that torch uses here, such as ``AVX512``: results may differ between them."""
    return torch.backends.cpu.get_cpu_capability()


def _by_prune(cuts: tuple[Cut, ...]) -> list[tuple[Part | None, list[tuple[int, Cut]]]]:
    """Group cuts that share a pruned model, each with its index in the job."""
    groups: dict[Part | None, list[tuple[int, Cut]]] = {}
    for number, cut in enumerate(cuts):
        groups.setdefault(cut.prune, []).append((number, cut))
    return list(groups.items())


def _measured(
    place: Lab,
    setup: Setup,
    job: Job,
    number: int,
    cut: Cut,
    folded: nn.Module,
    layers: Mapping[str, LayerCost],
    shared: Mapping[str, object],
    name: str,
    epochs: int,
) -> Candidate:
    model, state = place.quantize(folded, job.training, cut.quantize)
    bits = {} if state is None else state.bits
    details: dict[str, object] = dict(shared)
    if state is not None:
        details.update(state.report)
    config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
    details["order"] = list(operations(config))
    scores: dict[str, dict[str, float]] = {}
    for split_name in VALIDATION:
        split = getattr(place.splits, split_name)
        subject = place.subject(model, split, place.teacher.logits[split_name], setup.scores)
        scores[split_name] = measure(subject, setup.scores)
        if split_name == "select_val":
            details["per_class"] = {
                head: per_class(values, split.targets[head]) for head, values in subject.logits.items()
            }
    return Candidate(
        f"t{job.number}c{number}",
        job.number,
        config,
        epochs,
        scores,
        measure(Subject(layers=layers, bits=bits), setup.costs),
        details,
        name,
    )
