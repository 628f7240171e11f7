"""Check before a search that its students can be exported for the target: a search of hours must not end in nothing."""

from autocompress.core.config import Part
from autocompress.core.registry import STUDENTS
from autocompress.core.run_info import TargetInfo
from autocompress.core.task import Task
from autocompress.errors import ArtifactError
from autocompress.export.onnx import export_float
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.quantize.folding import fold_batch_norm
from autocompress.targets import make_target

PACKAGE = "autocompress."


def is_proven(family: str) -> bool:
    """Return whether a student family is built in and makes its own models, which the tests export."""
    return family != FROM_TEACHER and type(STUDENTS.get(family)).__module__.startswith(PACKAGE)


def find_export_error(task: Task, family: str, target: TargetInfo) -> str:
    """Return why an untrained student of a family cannot run on a target; empty if it can.

    Args:
        task: The task that builds the student.
        family: Registered name of the family.
        target: The target.
    """
    model, example = task.build(Part(family)).eval(), task.example()
    try:
        proto = export_float(fold_batch_norm(model, example), example, task.heads)
        loaded = make_target(target.name, target.options).load(proto.SerializeToString())
        outputs = loaded([tensor.numpy() for tensor in example])
    except ArtifactError as error:
        return str(error)
    # A graph that loads may still have lost an output.
    count = len(task.heads)
    return "" if len(outputs) == count else f"the exported graph has {len(outputs)} outputs for {count} heads"
