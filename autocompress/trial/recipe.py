"""The compression recipe of a candidate: its training and compression steps in order, derived from its config."""

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import Recovery
from autocompress.core.registry import PRUNE, QUANTIZE, STUDENTS
from autocompress.models.from_teacher import FromTeacherConfig
from autocompress.training.optimizers import fit_config


def list_teacher_pruning(student: Part) -> tuple[Part, ...]:
    """Return the pruning steps that make a student from the teacher before its training; empty for most families."""
    settings = STUDENTS.get(student.name).config.of(student.values)
    return settings.list_pruning_steps() if isinstance(settings, FromTeacherConfig) else ()


def list_operations(config: CompressionConfig) -> tuple[str, ...]:
    """Return the training and compression steps of a candidate in order.

    The fine-tuning after a compression step is a setting of its method: ``recovery_epochs`` of a pruning method, and
    ``epochs`` of a quantization method, which trains with simulated rounding.

    Example:
        >>> list_operations(
        ...     CompressionConfig(
        ...         Part.of("cnn"),
        ...         (Part("none"),),
        ...         Part.of("adamw", epochs=20),
        ...         Part.of("structured", pruning_ratio=0.5, recovery_epochs=6),
        ...         Part.of("qat", epochs=4),
        ...     )
        ... )
        ('train 20 epochs', 'prune (structured)', 'tune 6 epochs', 'quantize (qat)', 'tune 4 epochs')
    """
    # The texts are stored with each candidate, so their wording must stay.
    steps = [f"cut the teacher ({part.name})" for part in list_teacher_pruning(config.student)]
    fit = fit_config(config.fit)
    if fit.init == "teacher" and not steps:
        steps.append("take the teacher's weights")
    steps.append(f"train {fit.epochs} epochs")
    if config.prune is not None:
        settings = PRUNE.get(config.prune.name).config.of(config.prune.values)
        steps.append(f"prune ({config.prune.name})")
        if isinstance(settings, Recovery) and settings.recovery_epochs:
            steps.append(f"tune {settings.recovery_epochs} epochs")
    if config.quantize is not None:
        settings = QUANTIZE.get(config.quantize.name).config.of(config.quantize.values)
        steps.append(f"quantize ({config.quantize.name})")
        epochs = settings.to_dict().get("epochs")
        if epochs:
            steps.append(f"tune {epochs} epochs")
    return tuple(steps)
