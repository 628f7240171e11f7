"""What registration refuses, and what the message says."""

from dataclasses import dataclass

import pytest
from torch import nn

from autocompress.backends.base import Backend
from autocompress.core.interfaces import load_interface
from autocompress.core.knobs import FloatRange, IntRange, Settings, knob
from autocompress.core.method import Context, MethodState
from autocompress.core.registry import BACKENDS, CRITERIA, DISTILL, FITS, OBSERVERS, PRUNE, STUDENTS, TASKS
from autocompress.distill.base import Batch, Term
from autocompress.errors import PluginError
from autocompress.tasks.base import Supervised


@dataclass(frozen=True)
class HalfConfig(Settings):
    pruning_ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share of the weights")


class Half:
    name = "half"
    config: type = HalfConfig

    def is_identity(self, config: HalfConfig) -> bool:
        return config.pruning_ratio == 0

    def apply(self, model: nn.Module, config: HalfConfig, context: Context) -> tuple[nn.Module, MethodState]:
        return model, MethodState()

    def restore(self, model: nn.Module, config: HalfConfig, state: MethodState) -> nn.Module:
        return model


class NoRestore:
    name = "half"
    config = HalfConfig
    is_identity, apply = Half.is_identity, Half.apply


class ShortApply(Half):
    def apply(self, model: nn.Module, config: HalfConfig) -> nn.Module:  # type: ignore[override]
        return model


class PlainConfig(Half):
    config = dict


@dataclass(frozen=True)
class Undeclared(Settings):
    ratio: float = 0.5


class UndeclaredConfig(Half):
    config = Undeclared


class Undecorated(Settings):
    ratio: float = knob(0.5, FloatRange(0.0, 0.9), "share")


class UndecoratedConfig(Half):
    config = Undecorated


class WrongKind(Term[HalfConfig]):
    name = "wrong"
    kind = "logits"
    config = HalfConfig

    def loss(self, config: HalfConfig, batch: Batch) -> object:
        return batch


@dataclass(frozen=True)
class StepConfig(Settings):
    steps: int = knob(1, IntRange(1, 2), "steps")


class Stepper:
    name = "stepper"
    config = StepConfig

    def optimizer(self, config: StepConfig, parameters: object) -> object:
        return parameters


class OldBackend:
    name = "old"
    libraries = ()
    is_remote = False

    def opened(self, folder: object = None) -> object:
        return folder

    def run(self, ask: object, evaluate: object, tell: object, idle_work: object = None) -> None: ...


class NoLimits(Backend):
    name = "no_limits"

    def __init__(self, workers: int) -> None: ...

    def run(self, ask: object, evaluate: object, tell: object, idle_work: object = None) -> None: ...  # type: ignore[override]


class NoRun(Backend):
    name = "no_run"

    def __init__(self, workers: int, limits: object) -> None: ...


class NoTeacher(Supervised):
    name = "no_teacher"


@pytest.mark.parametrize(
    ("registry", "part", "message"),
    [
        (PRUNE, NoRestore(), r"NoRestore\): it lacks the method restore\(model, config, state\)"),
        (PRUNE, ShortApply(), r"its method apply must take \(model, config, context\)"),
        (PRUNE, Half, r"it must be an instance: Half\(\)"),
        (
            PRUNE,
            PlainConfig(),
            r"its config must be a frozen dataclass that derives from autocompress.core.knobs.Settings",
        ),
        (PRUNE, UndeclaredConfig(), r"Undeclared.ratio must be declared with knob\("),
        (PRUNE, UndecoratedConfig(), r"Undecorated must be decorated with @dataclass\(frozen=True\)"),
        (DISTILL, WrongKind(), r"its kind is 'logits', not one of 'logit', 'feature'"),
        (FITS, Stepper(), r"its config must be a frozen dataclass that derives from .*FitConfig"),
        (
            STUDENTS,
            object(),
            r"it lacks the method build\(config, inputs, heads\), the attribute name, the attribute config",
        ),
        (TASKS, NoTeacher, r"it lacks the method splits\(seed\), the method teacher\(\)"),
        (TASKS, 3, r"it must be a class, or a function that returns an instance"),
        (BACKENDS, OldBackend, r"the method open\(folder\) \(formerly opened\).*derive it from autocompress.backends"),
        (BACKENDS, NoLimits, r"its constructor must take \(workers, limits\)"),
        (BACKENDS, NoRun, r"it lacks the method run\(ask, evaluate, tell, idle_work\)"),
        (CRITERIA, abs, r"it must be an instance of autocompress.prune.importance.Criterion"),
        (OBSERVERS, lambda: None, r"it must be a function or a class that takes \(config\)"),
    ],
    ids=lambda value: getattr(value, "kind", "") if isinstance(value, object) and hasattr(value, "names") else "",
)
def test_a_part_that_does_not_fit_is_refused_with_what_it_should_have(
    registry: object, part: object, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        registry.add("a name that no other part has", part)  # type: ignore[attr-defined]
    assert "a name that no other part has" not in registry  # type: ignore[operator]


def test_a_complete_part_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PRUNE, "_objects", dict(PRUNE._objects))
    part = Half()
    assert PRUNE.add("half", part) is part
    assert PRUNE.get("half").config.of({"pruning_ratio": 0.25}) == HalfConfig(0.25)


def test_an_interface_lists_attributes_and_methods() -> None:
    interface = load_interface("autocompress.core.method:Method")
    assert {*interface.methods} == {"is_identity", "apply", "restore"}
    assert {*interface.attributes} == {"name", "config"}
