"""Check before a search that its students can be exported for the target: a search of hours must not end in nothing."""

import re
from collections.abc import Mapping, Sequence

from autocompress.core.config import Part
from autocompress.core.registry import STUDENTS
from autocompress.core.run_info import TargetInfo
from autocompress.core.task import Task
from autocompress.errors import ArtifactError
from autocompress.export.onnx import export_float, list_layers_of_operators
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.quantize.folding import fold_batch_norm
from autocompress.targets import make_target

PACKAGE = "autocompress."
LAYERS_SHOWN = 3


# Targets that run every model which the tests export: onnxruntime itself, and devices that take its files.
PROVEN_TARGETS = ("onnxruntime", "command")


def is_proven(family: str, target: str) -> bool:
    """Return whether a student family is built in and makes its own models, which the tests export for the target."""
    is_own = family == FROM_TEACHER or not type(STUDENTS.get(family)).__module__.startswith(PACKAGE)
    return target in PROVEN_TARGETS and not is_own


def find_export_error(task: Task, family: str, target: TargetInfo) -> str:
    """Return why an untrained student of a family cannot run on a target; empty if it can.

    Args:
        task: The task that builds the student.
        family: Registered name of the family.
        target: The target.
    """
    model, example = task.build(Part(family)).eval(), task.example()
    try:
        folded = fold_batch_norm(model, example)
        proto = export_float(folded, example, task.heads)
    except ArtifactError as error:
        return str(error)
    try:
        loaded = make_target(target.name, target.options).load(proto.SerializeToString())
        outputs = loaded([tensor.numpy() for tensor in example])
    except ArtifactError as error:
        return f"{error}{_name_layers(str(error), list_layers_of_operators(folded, example, task.heads))}"
    # A graph that loads may still have lost an output.
    count = len(task.heads)
    return "" if len(outputs) == count else f"the exported graph has {len(outputs)} outputs for {count} heads"


def _name_layers(reason: str, layers: Mapping[str, Sequence[str]]) -> str:
    """Return the layers whose operators a reason names, such as ``(Pad of 'first', 'second')``."""
    words = set(re.findall(r"\w+", reason.replace("_", " ")))
    parts = [
        f"{operator} of {', '.join(repr(name) for name in names[:LAYERS_SHOWN])}"
        for operator, names in layers.items()
        if operator in words
    ]
    return f" ({'; '.join(parts)})" if parts else ""
