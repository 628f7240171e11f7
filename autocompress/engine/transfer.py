"""The key ``distill.transfer`` of a spec: its source is found and compared with the task before anything is trained."""

import json
from dataclasses import replace
from pathlib import Path

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import Splits, Task
from autocompress.engine.spec import Source, Spec, TransferSection
from autocompress.errors import AutocompressError, SpecError, TrialError, UsageError, did_you_mean
from autocompress.store.run_store import RunStore
from autocompress.store.schema import DATABASE
from autocompress.trial.teacher import TeacherRecipe, build_source, teacher_name
from autocompress.trial.transfer import Shapes, SourceTask, Transfer, check_transfer, check_unlabelled, read_weights

KEY = ("distill", "transfer")
# File of an exported artifact, and of a teacher in its run folder.
ARTIFACT, TEACHER = "architecture.json", Path("teacher") / "teacher.json"


def plan_transfer(source: Source, task: Task, splits: Splits, recipe: TeacherRecipe) -> tuple[TeacherRecipe, str]:
    """Return the recipe of the teacher with the transfer that a spec asks for, and a remark on it for the reader.

    Args:
        source: The spec with its lines.
        task: The new task.
        splits: Its five splits.
        recipe: Recipe of a teacher that starts from random weights.

    Raises:
        SpecError: The source cannot be used, its classes differ and no new head is requested, or its layers do not fit
            the task; the message names the line.
    """
    section = source.spec.distill.transfer
    if section is None:
        return recipe, ""
    try:
        _check_labels(source, section)
        student, transfer, shapes = _find_source(source.spec, section, recipe.student)
        fit = recipe.fit
        if section.backbone is not None:
            fit = Part.of(fit.name, **{**fit.values, "backbone": section.backbone})
        is_frozen = section.backbone == "frozen"
        check_transfer(task.build(student), shapes, task, transfer, frozen=is_frozen)
        if not section.labels:
            check_unlabelled(task, splits)
    except SpecError:
        raise
    except AutocompressError as error:
        raise source.make_error(KEY, str(error)) from None
    return replace(recipe, student=student, fit=fit, transfer=transfer), describe_transfer(section)


def describe_transfer(section: TransferSection) -> str:
    """Return one sentence on a transfer, for the page and the terminal.

    Example:
        >>> describe_transfer(TransferSection.model_validate({"from": "digits", "head": "new", "backbone": "frozen"}))
        'the teacher is transferred from digits: new head, frozen backbone'
    """
    if not section.labels:
        return (
            f"the teacher is the one of {section.source}, and no label of the training data is read: its predictions "
            "are the targets, also those of the baseline without distillation"
        )
    return (
        f"the teacher is transferred from {section.source}: {section.head} head, {section.backbone or 'tuned'} backbone"
    )


def _check_labels(source: Source, section: TransferSection) -> None:
    """Check that a transfer without labels trains nothing of the teacher.

    Raises:
        SpecError: A new head or a backbone to train is requested; the message names the line.
    """
    if section.labels:
        return
    if section.head == "new":
        raise source.make_error((*KEY, "head"), "a new head is trained on labels; keep the head, or set labels: true")
    if section.backbone is not None:
        message = "without labels the source is the teacher as it is; remove `backbone`, or set labels: true"
        raise source.make_error((*KEY, "backbone"), message)


def _find_source(spec: Spec, section: TransferSection, default: Part) -> tuple[Part, Transfer, Shapes]:
    """Return the architecture of the source, the transfer, and the shape of each tensor of the source.

    Args:
        spec: The spec.
        section: Its key ``distill.transfer``.
        default: Architecture of the teacher where the source does not tell it.

    Raises:
        UsageError: There is no such source, or it cannot be used.
        TrialError: Its weights cannot be read.
    """
    path = Path(section.source).expanduser()
    # A path comes before the name of a task: a folder may be called like one.
    if (path / DATABASE).is_file():
        return _read_run(spec, section, path)
    if (path / ARTIFACT).is_file():
        raise UsageError(f"{path} is an exported candidate; transfer from its run folder, two folders above")
    if path.is_file():
        weights, digest = read_weights(path)
        transfer = Transfer(str(path.resolve()), digest, section.head, section.labels)
        return default, transfer, {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if section.source in TASKS:
        return _plan_source_task(spec, section)
    raise UsageError(
        f"'{section.source}' is neither a run folder nor a .safetensors file nor a task: "
        f"{did_you_mean(section.source, TASKS)}"
    )


def _read_run(spec: Spec, section: TransferSection, folder: Path) -> tuple[Part, Transfer, Shapes]:
    record = folder / TEACHER
    if not record.is_file():
        raise UsageError(f"{folder} has no trained teacher; finish its search first")
    try:
        entries = json.loads(record.read_text())
        student, expected = Part.from_json(entries["student"]), entries["sha256"]["weights.safetensors"]
    except (OSError, ValueError, KeyError) as damage:
        raise UsageError(f"{record} is damaged ({damage}); run that search again") from damage
    declared = spec.teacher.student
    if declared is not None and Part.from_json(declared) != student:
        raise UsageError(f"the teacher of {folder} is {student.to_json()}; remove teacher.student, which differs")
    path = record.with_name("weights.safetensors").resolve()
    weights, digest = read_weights(path)
    # The weights decide every result that follows, so a changed byte is an error here.
    if digest != expected:
        raise TrialError(f"{path} is damaged: it does not match its checksum; run that search again")
    with RunStore.read(folder) as store:
        heads = dict(store.run_info().heads)
    transfer = Transfer(str(path), digest, section.head, section.labels, heads=heads)
    return student, transfer, {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _plan_source_task(spec: Spec, section: TransferSection) -> tuple[Part, Transfer, Shapes]:
    default_student, fit = TASKS.get(section.source)().teacher()
    # The spec may name another architecture than the default of the source task.
    declared = spec.teacher.student
    student = default_student if declared is None else Part.from_json(declared)
    described = SourceTask(Part(section.source), student, fit)
    task, splits, recipe = build_source(described)
    name = teacher_name(task, splits, recipe)
    transfer = Transfer("", name, section.head, section.labels, described, dict(task.heads))
    shapes = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in task.build(student).state_dict().items()}
    return student, transfer, shapes
