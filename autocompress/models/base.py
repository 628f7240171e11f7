"""The interface of model families: a config of hyperparameters in, an untrained module out."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar

from torch import nn

from autocompress.core.config import Part
from autocompress.core.heads import as_head
from autocompress.core.knobs import Settings
from autocompress.core.registry import STUDENTS
from autocompress.core.task import InputSpec
from autocompress.errors import UsageError

C = TypeVar("C", bound=Settings)


class Family(Protocol[C]):
    """A family of models; registered by name as an instance."""

    name: ClassVar[str]
    config: type[C]

    def build(self, config: C, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
        """Return an untrained module; one head returns a tensor ``[B, C]``, several return ``{head: [B, C]}``.

        Args:
            config: Hyperparameters of the family.
            inputs: Specifications of the module's positional arguments.
            heads: Head name to number of classes, ``{"label": 10}``.

        Raises:
            UsageError: The family cannot be built for this input or these heads.
        """
        ...


def build_family_model(student: Part, inputs: tuple[InputSpec, ...], heads: Mapping[str, int]) -> nn.Module:
    """Return an untrained module of the registered family that a student part names.

    Args:
        student: Name of the family with its hyperparameters.
        inputs: Specifications of the module's positional arguments.
        heads: Head name to number of classes.

    Raises:
        UnknownNameError: No family has that name.
        KnobError: A hyperparameter is unknown or outside its range.
        UsageError: The family cannot be built for this input or these heads.
    """
    family = STUDENTS.get(student.name)
    # The config checks names and ranges before anything is built.
    return family.build(family.config.of(student.values), inputs, heads)


def check_heads(family: str, heads: Mapping[str, int], positions: str = "") -> None:
    """Check that there is a head, that each has an output, and that the family has outputs of its kind.

    Args:
        family: Name of the family, for messages.
        heads: Heads of the task.
        positions: Kind of head with an output at each position that the family has: ``tags``, ``dense`` or
            ``detection``.

    Raises:
        UsageError: There is no head, or a head without an output, or one of a kind that the family lacks.
    """
    if not heads or min(heads.values()) < 1:
        raise UsageError(f"student '{family}' needs at least one head with at least one class, got {dict(heads)}")
    for name, size in heads.items():
        head = as_head(size)
        if head.kind == "custom" or (head.has_positions and head.kind != positions):
            raise UsageError(f"student '{family}' has no outputs for the head '{name}' of {head.describe()}")


def require_head_kind(family: str, heads: Mapping[str, int], kind: str, outputs: str) -> None:
    """Check that there is a head, and that all heads are of the only kind that the family has outputs of.

    Args:
        family: Name of the family, for messages.
        heads: Heads of the task.
        kind: Kind of head with an output at each position: ``dense`` or ``detection``.
        outputs: What the family predicts, for messages.

    Raises:
        UsageError: There is no head, or one of another kind.
    """
    check_heads(family, heads, positions=kind)
    for name, head in heads.items():
        if as_head(head).kind != kind:
            raise UsageError(f"student '{family}' {outputs}, which the head '{name}' has not")


def require_real_input(family: str, axes: tuple[str, ...], inputs: tuple[InputSpec, ...]) -> tuple[int, ...]:
    """Return the shape of the only input, which holds real numbers along the named axes.

    Raises:
        UsageError: There is another number of inputs, or an input of another form.

    Example:
        >>> require_real_input("cnn", ("channels", "height", "width"), (InputSpec((1, 8, 8)),))
        (1, 8, 8)
    """
    # A vocabulary stands for whole numbers, such as tokens.
    if len(inputs) == 1 and not inputs[0].vocabulary:
        shape = inputs[0].shape
        if len(shape) == len(axes) and min(shape) >= 1:
            return shape
    raise UsageError(
        f"student '{family}' takes one input of real numbers ({', '.join(axes)}), not {describe_inputs(inputs)}"
    )


def describe_inputs(inputs: tuple[InputSpec, ...]) -> str:
    """Return a model's inputs as text for messages.

    Example:
        >>> describe_inputs((InputSpec((3, 32, 32)), InputSpec((), vocabulary=100)))
        'inputs of shape (3, 32, 32) and () of 100 whole numbers'
    """
    parts = [f"{spec.shape}" + f" of {spec.vocabulary} whole numbers" * bool(spec.vocabulary) for spec in inputs]
    return "inputs of shape " + " and ".join(parts)
