"""What is done to make a candidate, in order: read off its config."""

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import Recovery
from autocompress.core.registry import PRUNE, QUANTIZE, STUDENTS
from autocompress.models.from_teacher import FromTeacherConfig
from autocompress.training.optimizers import fit_config


def list_teacher_pruning(student: Part) -> tuple[Part, ...]:
    """Return what is cut from the teacher before a student is trained; nothing for most families."""
    settings = STUDENTS.get(student.name).config.of(student.values)
    return settings.cuts() if isinstance(settings, FromTeacherConfig) else ()


def list_operations(config: CompressionConfig) -> tuple[str, ...]:
    """Return what is done to make a candidate, in order.

    Where a model trains on after a cut is a choice of its own: ``recovery_epochs`` of the pruning method trains
    between pruning and quantization, ``epochs`` of the quantization method trains under its rounding.

    Example:
        >>> operations(
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
    done = [f"cut the teacher ({part.name})" for part in list_teacher_pruning(config.student)]
    fit = fit_config(config.fit)
    done += ["take the teacher's weights"] if fit.init == "teacher" and not done else []
    done.append(f"train {fit.epochs} epochs")
    if config.prune is not None:
        settings = PRUNE.get(config.prune.name).config.of(config.prune.values)
        done += [f"prune ({config.prune.name})"]
        if isinstance(settings, Recovery) and settings.recovery_epochs:
            done.append(f"tune {settings.recovery_epochs} epochs")
    if config.quantize is not None:
        settings = QUANTIZE.get(config.quantize.name).config.of(config.quantize.values)
        done.append(f"quantize ({config.quantize.name})")
        epochs = settings.to_dict().get("epochs")
        done += [f"tune {epochs} epochs"] if epochs else []
    return tuple(done)
