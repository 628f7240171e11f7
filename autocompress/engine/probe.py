"""What can be cut from a model that a user brought, tried before the search: no trial finds out the hard way."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autocompress.core.config import Part
from autocompress.core.knobs import Domain, Leaf
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import Splits, Task, as_heads
from autocompress.engine.space import Space
from autocompress.errors import CompressionError
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.trial.pipeline import CALIBRATION_BATCH

FALLBACK = "unstructured"
# Knob of the student to the method that it stands for, and what that does, in words.
STARTS = {
    "pruning_ratio": ("structured", "removing its channels"),
    "depth_ratio": ("depth", "dropping its blocks"),
}
MILD = 0.25

Sections = dict[str, Mapping[str, Mapping[str, Leaf | Domain]]]


def safe_space(space: Space, task: Task, splits: Splits) -> tuple[Space, tuple[str, ...]]:
    """Return the space without the cuts that fail on the teacher, and a notice for each change.

    Each way of cutting is tried on a copy of the teacher; a cut is verified by forward passes. Where channels can
    be removed no more, single weights still can: ``unstructured`` takes the place. Spaces without the student
    ``from_teacher`` stay as they are.

    Args:
        space: What the spec lets vary.
        task: The task that builds the teacher.
        splits: Its splits; the first calibration examples are looked at.
    """
    students = space.sections["student"]
    if FROM_TEACHER not in students:
        return space, ()
    model = task.build(Part(FROM_TEACHER))
    context = _context(task, splits)
    reasons: dict[str, str] = {}

    def works(name: str) -> bool:
        if name not in reasons:
            method = PRUNE.get(name)
            values = {"pruning_ratio": MILD, "schedule": "one_shot"}
            known = {knob: value for knob, value in values.items() if knob in method.config.knobs()}
            try:
                method.apply(model, method.config.of(known), context)
            except CompressionError as error:
                reasons[name] = str(error)
            else:
                reasons[name] = ""
        return not reasons[name]

    sections: Sections = dict(space.sections)
    notices = []
    knobs = dict(students[FROM_TEACHER])
    for knob, (name, doing) in STARTS.items():
        if knobs.get(knob) != 0 and not works(name):
            knobs[knob] = 0.0
            notices.append(f"{doing} is not safe with this teacher ({reasons[name]}); it is left out of the search")
    sections["student"] = {**students, FROM_TEACHER: knobs}
    if set(students) == {FROM_TEACHER}:
        kept = {name: settings for name, settings in space.sections["prune"].items() if name == "none" or works(name)}
        notices += [
            f"prune.{name} is not safe with this teacher ({reasons[name]}); it is left out"
            for name in space.sections["prune"]
            if name not in kept
        ]
        if reasons.get("structured") and FALLBACK not in kept and works(FALLBACK):
            kept[FALLBACK] = {"pruning_ratio": 0.5}
            notices.append(f"prune.{FALLBACK} takes the place: half of its weights become zero, at the same FLOPs")
        sections["prune"] = kept or {"none": {}}
    return replace(space, sections=sections), tuple(notices)


def _context(task: Task, splits: Splits) -> Context:
    batch = splits.calibration.take(slice(0, CALIBRATION_BATCH))

    def loss(output: Any, targets: Any) -> Any:
        return task.loss(as_heads(output, task.heads), targets)

    return Context(task.example(), (batch.inputs,), (batch.targets,), loss)
