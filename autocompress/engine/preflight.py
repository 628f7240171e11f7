"""Checks before anything expensive starts: the run folder, and trial runs of pruning methods on a user's model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autocompress.core.config import Part
from autocompress.core.formatting import format_plural
from autocompress.core.knobs import Choice, Domain, Leaf
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import Splits, Task, logits_by_head
from autocompress.engine.space import Space
from autocompress.engine.spec import KeyPath, Source, Spec
from autocompress.errors import CompressionError, RunFolderError, UnfinishedRunError
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.store.run_store import RunStore
from autocompress.store.schema import DATABASE, existing_run_error
from autocompress.trial.pipeline import CALIBRATION_BATCH


def check_run_folder(folder: Path, spec: Spec, *, resume: bool, command: str = "") -> None:
    """Check that a search may start or resume in a folder; the folder is not changed.

    Args:
        folder: The run folder, which need not exist.
        spec: Spec of the requested search.
        resume: Whether the run in the folder is to be continued.
        command: Command line of the user, for the message.

    Raises:
        UnfinishedRunError: The folder holds the same search, unfinished, and ``resume`` is not given.
        RunFolderError: The folder holds another run, or one that is in use.
    """
    if not (folder / DATABASE).exists():
        return
    with RunStore.open(folder) as store:
        info = store.run_info()
        before, ended = info.content, info.is_finished
        trials = len(store.trial_table())
    if before != spec.immutable_content():
        if not resume:
            raise existing_run_error(folder)
        changed = _first_difference(before, spec.immutable_content())
        raise RunFolderError(
            f"{folder} was searched with another spec: {changed} differs; restore it, or --name a new run"
        )
    if resume:
        return
    if ended:
        raise existing_run_error(folder)
    again = f"{command} --resume" if command else "search(..., resume=True)"
    raise UnfinishedRunError(
        f"{folder} holds the same search, unfinished, with {format_plural(trials, 'trial')}; continue it with: {again} "
        "(or give a new one a --name)"
    )


def _first_difference(before: object, after: object, key: str = "") -> str:
    """Return the first dotted key whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                return _first_difference(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    return f"{key} ({before!r} then, {after!r} now)"


# Scores and attacks that need inputs of a certain form, by the beginning of their names.
HOTFLIP, PUSHED = "hotflip", "pushed"


def check_attacks(source: Source, space: Space, task: Task) -> None:
    """Check that attacks which the spec names exist for the task: replaced tokens for texts, pushed items for shilling.

    Raises:
        SpecError: An objective, a limit or the attack of ``distill.robust`` does not fit the task; the message names
            the line.
    """
    spec = source.spec
    is_text = len(task.inputs) == 1 and task.inputs[0].vocabulary > 0 and len(task.inputs[0].shape) == 1
    named: list[tuple[KeyPath, str]] = [(("objectives", name), name) for name in spec.objectives]
    named += [(("limits", name), name) for name in spec.limits]
    attack = space.sections["distill"].get("robust", {}).get("attack")
    attacks = attack.options if isinstance(attack, Choice) else (attack,)
    named += [(("distill", "robust", "attack"), HOTFLIP)] * (HOTFLIP in attacks)
    for key, name in named:
        if name.startswith(HOTFLIP) and not is_text:
            message = f"hotflip replaces tokens of texts, and the inputs of task '{task.name}' are none; use pgd"
            raise source.make_error(key, message)
        if name.startswith(PUSHED) and name not in task.metrics:
            hint = next((metric for metric in task.metrics if metric.startswith(PUSHED)), "")
            use = f"use {hint}" if hint else "use poisoned_ratings or poisoned_ranking"
            raise source.make_error(key, f"task '{task.name}' has no such pushed item; {use}")


# Zeroed weights need no support by the layers, so it works where channels cannot be removed.
FALLBACK = "unstructured"
# Hyperparameters of the student `from_teacher`, each with the pruning method that it applies and a description of that.
TEACHER_PRUNING = {
    "pruning_ratio": ("structured", "removing its channels"),
    "depth_ratio": ("depth", "dropping its blocks"),
}
# A small ratio, but large enough to remove at least one of four channels.
PROBE_RATIO = 0.25

Sections = dict[str, Mapping[str, Mapping[str, Leaf | Domain]]]


def remove_unsafe_methods(space: Space, task: Task, splits: Splits) -> tuple[Space, tuple[str, ...]]:
    """Return the space without the pruning methods that fail on the teacher, and a notice for each change.

    Each method is applied to a copy of the teacher and verified by forward passes. Where ``structured`` pruning fails,
    ``unstructured`` pruning replaces it. Spaces without the student ``from_teacher`` are returned as they are.

    Args:
        space: The search space of the spec.
        task: The task that builds the teacher.
        splits: Splits of the task; the first calibration examples are read.
    """
    students = space.sections["student"]
    if FROM_TEACHER not in students:
        return space, ()
    model = task.build(Part(FROM_TEACHER))
    context = _make_context(task, splits)
    reasons: dict[str, str] = {}

    def is_safe(name: str) -> bool:
        if name not in reasons:
            method = PRUNE.get(name)
            # One step is enough to see whether the method works; a schedule would fine-tune in between.
            values: dict[str, Leaf] = {"pruning_ratio": PROBE_RATIO, "schedule": "one_shot"}
            settings = {knob: value for knob, value in values.items() if knob in method.config.knobs()}
            try:
                method.apply(model, method.config.of(settings), context)
            except CompressionError as error:
                reasons[name] = str(error)
            else:
                reasons[name] = ""
        return not reasons[name]

    sections: Sections = dict(space.sections)
    notices = []
    knobs = dict(students[FROM_TEACHER])
    for knob, (name, operation) in TEACHER_PRUNING.items():
        if knobs.get(knob) != 0 and not is_safe(name):
            knobs[knob] = 0.0
            notices.append(f"{operation} is not safe with this teacher ({reasons[name]}); it is left out of the search")
    sections["student"] = {**students, FROM_TEACHER: knobs}
    if set(students) == {FROM_TEACHER}:
        methods = space.sections["prune"]
        safe = {name: settings for name, settings in methods.items() if name == "none" or is_safe(name)}
        notices += [
            f"prune.{name} is not safe with this teacher ({reasons[name]}); it is left out"
            for name in methods
            if name not in safe
        ]
        if reasons.get("structured") and FALLBACK not in safe and is_safe(FALLBACK):
            safe[FALLBACK] = {"pruning_ratio": 0.5}
            notices.append(f"prune.{FALLBACK} replaces it: half of the weights become zero, at the same FLOPs")
        sections["prune"] = safe or {"none": {}}
    return replace(space, sections=sections), tuple(notices)


def _make_context(task: Task, splits: Splits) -> Context:
    batch = splits.calibration.take(slice(0, CALIBRATION_BATCH))

    return Context(
        task.example(),
        (batch.inputs,),
        (batch.targets,),
        lambda output, targets: task.loss(logits_by_head(output, task.heads), targets),
    )
