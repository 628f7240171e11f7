"""Checks before anything expensive starts: the run folder, and trial runs of pruning methods on a user's model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.core.config import Part
from autocompress.core.formatting import format_plural
from autocompress.core.knobs import Choice, Domain, FloatRange, Leaf
from autocompress.core.method import Context
from autocompress.core.registry import DISTILL, PRUNE
from autocompress.core.task import Splits, Task, logits_by_head
from autocompress.distill.attacks import ATTACKS
from autocompress.distill.base import Needs
from autocompress.engine.space import Space
from autocompress.engine.spec import KeyPath, Source, Spec
from autocompress.errors import CompressionError, RunFolderError, UnfinishedRunError, UsageError
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.models.output_teacher import OutputTeacher
from autocompress.store.run_store import RunStore
from autocompress.store.schema import DATABASE, existing_run_error
from autocompress.tasks.module import CallAdapter
from autocompress.training.class_weights import NONE, check_class_weights
from autocompress.trial.pipeline import CALIBRATION_BATCH

if TYPE_CHECKING:
    from torch import nn


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
    content = spec.immutable_content()
    if "objectives" not in spec.model_fields_set:
        # The task decides which score takes the place of accuracy, and the task is not loaded yet.
        content["objectives"] = before.get("objectives", content["objectives"])
    if before != content:
        if not resume:
            raise existing_run_error(folder)
        changed = _first_difference(before, content)
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


def check_weighted_classes(source: Source, space: Space, task: Task) -> None:
    """Check that the task has classes to weight if ``fit`` of the students asks for it.

    Raises:
        SpecError: It has none; the message names the line.
    """
    for name, settings in space.sections["fit"].items():
        value = settings.get("class_weights")
        for choice in value.options if isinstance(value, Choice) else (value,):
            try:
                check_class_weights(task, str(choice or NONE))
            except UsageError as error:
                raise source.make_error(("fit", name, "class_weights"), str(error)) from None


def check_layer_use(source: Source, space: Space, task: Task) -> None:
    """Check that a search needs no layers of a teacher that has none.

    Raises:
        SpecError: A student is the pruned teacher, starts from its weights or learns from its layers, a score attacks
            the teacher, or the spec names another one. The message names the line.
    """
    default, _ = task.teacher()
    # Any other teacher is a network of a family.
    if default.name != FROM_TEACHER or not isinstance(task.build(default), OutputTeacher):
        return
    needs: list[tuple[KeyPath, str]] = []
    if source.spec.teacher.student is not None:
        needs.append((("teacher", "student"), "replaces the teacher that was given; leave it out"))
    if FROM_TEACHER in space.sections["student"]:
        needs.append((("student", FROM_TEACHER), "prunes the teacher; name families such as table_mlp or cnn"))
    for name, settings in space.sections["distill"].items():
        if _reads_layers(name, settings):
            needs.append((("distill", name), "learns from layers of the teacher; soft_target, dkd and dist need none"))
    for name, settings in space.sections["fit"].items():
        if "teacher" in _list_values(settings.get("init", "")):
            needs.append((("fit", name, "init"), "takes weights of the teacher; leave it out"))
        if _largest_value(settings.get("mixup", 0.0)) > 0:
            needs.append((("fit", name, "mixup"), "runs the teacher on mixed examples; leave it out"))
    for section in ("objectives", "limits"):
        needs += [
            ((section, name), "attacks the teacher through its layers; leave it out")
            for name in getattr(source.spec, section)
            if name.partition("_")[0] in ATTACKS
        ]
    if needs:
        key, reason = needs[0]
        raise source.make_error(key, f"{reason} (the teacher is no torch module: only its outputs are known)")


def _reads_layers(name: str, settings: Mapping[str, Leaf | Domain]) -> bool:
    """Return whether a distillation term reads layers of the teacher under some of its settings."""
    term = DISTILL.get(name)
    fixed = {key: value for key, value in settings.items() if not isinstance(value, Domain)}
    choices = [{}, *({key: option} for key, value in settings.items() for option in _list_values(value))]
    return any(term.needs(term.config.of({**fixed, **choice})) is Needs.MODEL for choice in choices)


def _list_values(domain: Leaf | Domain) -> tuple[Leaf, ...]:
    """Return the values of a choice, or the fixed value; none for a range."""
    if isinstance(domain, Choice):
        return domain.options
    return () if isinstance(domain, Domain) else (domain,)


# Zeroed weights need no support by the layers, so it works where channels cannot be removed.
FALLBACK = "unstructured"
RATIO, HIDDEN_RATIO = "pruning_ratio", "hidden_ratio"
# Hyperparameters of the student `from_teacher`, each with the pruning method that it applies, the hyperparameter of the
# method and a description.
TEACHER_PRUNING = {
    RATIO: ("structured", RATIO, "removing its channels"),
    HIDDEN_RATIO: ("structured", HIDDEN_RATIO, "reducing its hidden size"),
    "embedding_ratio": ("embedding_rank", RATIO, "factorizing its embeddings"),
    "depth_ratio": ("depth", RATIO, "dropping its blocks"),
}
# A small ratio, but large enough to remove at least one of four channels.
PROBE_RATIO = 0.25
# Halvings of the interval between a ratio that works and one that does not; a step is then below 0.1.
HALVINGS = 3
# A longer list of layers that stay would hide the other notices.
LISTED_LAYERS = 5

Sections = dict[str, Mapping[str, Mapping[str, Leaf | Domain]]]


@dataclass
class _Probe:
    """Trial runs of pruning methods on the teacher.

    Attributes:
        model: The teacher; it is not changed.
        context: Calibration data for the methods.
        reasons: Why a method failed, by method, hyperparameter and its value; empty where it worked.
        uncut: Layers that structured pruning leaves alone, each with the reason.
    """

    model: "nn.Module"
    context: Context
    reasons: dict[tuple[str, str, float], str] = field(default_factory=dict)
    uncut: dict[str, str] = field(default_factory=dict)

    def find_failure(self, name: str, ratio: float, knob: str = RATIO) -> str:
        """Return why a method fails at a ratio; empty if it works."""
        if (name, knob, ratio) not in self.reasons:
            method = PRUNE.get(name)
            # One step is enough to see whether the method works; a schedule would fine-tune in between.
            values: dict[str, Leaf] = {RATIO: 0.0, knob: ratio, "schedule": "one_shot"}
            settings = {key: value for key, value in values.items() if key in method.config.knobs()}
            try:
                _, state = method.apply(self.model, method.config.of(settings), self.context)
            except CompressionError as error:
                self.reasons[name, knob, ratio] = str(error)
            else:
                self.reasons[name, knob, ratio] = ""
                self.uncut.update(state.report.get("uncut", {}))
                if knob == HIDDEN_RATIO:
                    # Layers that another ratio leaves alone.
                    for layer in state.report["channels"]:
                        self.uncut.pop(layer, None)
        return self.reasons[name, knob, ratio]

    def find_largest_ratio(self, name: str, strongest: float, knob: str = RATIO) -> tuple[float, str]:
        """Return the largest ratio up to ``strongest`` at which a method works, and why it fails beyond that.

        The ratio is 0 if it fails at a small one too.
        """
        reason = self.find_failure(name, strongest, knob)
        if not reason:
            return strongest, ""
        works, fails = PROBE_RATIO, strongest
        if strongest <= PROBE_RATIO or self.find_failure(name, PROBE_RATIO, knob):
            return 0.0, self.reasons.get((name, knob, PROBE_RATIO)) or reason
        for _ in range(HALVINGS):
            # Two digits, because the number stands in a notice.
            middle = round((works + fails) / 2, 2)
            if failure := self.find_failure(name, middle, knob):
                fails, reason = middle, failure
            else:
                works = middle
        return works, reason

    def describe_uncut(self) -> list[str]:
        """Return a notice with the layers whose channels stay, without those that must: the outputs of the model."""
        stay = [f"'{name}' ({reason})" for name, reason in self.uncut.items() if "an output of the model" not in reason]
        if not stay:
            return []
        more = f"; and {len(stay) - LISTED_LAYERS} more" if len(stay) > LISTED_LAYERS else ""
        notice = f"layers whose channels are not removed: {'; '.join(stay[:LISTED_LAYERS])}{more}"
        # The adapter's name of the user's module is none that the user knows.
        return [notice.replace("'module.", "'") if isinstance(self.model, CallAdapter) else notice]


def remove_unsafe_methods(space: Space, task: Task, splits: Splits) -> tuple[Space, tuple[str, ...]]:
    """Return the space without the pruning that fails on the teacher, and a notice for each change.

    Each method is applied to a copy of the teacher at the largest ratio of the space, and verified by forward passes.
    Where that fails, the ratios are limited to those that work. Where no ratio of ``structured`` pruning works,
    ``unstructured`` pruning replaces it. Spaces without the student ``from_teacher`` are returned as they are.

    Args:
        space: The search space of the spec.
        task: The task that builds the teacher.
        splits: Splits of the task; the first calibration examples are read.
    """
    students = space.sections["student"]
    if FROM_TEACHER not in students:
        return space, ()
    probe = _Probe(task.build(Part(FROM_TEACHER)), _make_context(task, splits))
    sections: Sections = dict(space.sections)
    notices = []
    knobs = dict(students[FROM_TEACHER])
    for knob, (name, setting, operation) in TEACHER_PRUNING.items():
        strongest = _largest_value(knobs.get(knob, 0.0))
        if not strongest:
            continue
        if knob == HIDDEN_RATIO and not has_layer_norm(probe.model):
            # The space of every user's model has this hyperparameter; a notice would tell most of them nothing.
            knobs[knob] = 0.0
            continue
        largest, reason = probe.find_largest_ratio(name, strongest, setting)
        if not largest:
            knobs[knob] = 0.0
            notices.append(f"{operation} is not safe with this teacher ({reason}); it is left out of the search")
        elif largest < strongest:
            knobs[knob] = _limit_values(knobs[knob], largest)
            notices.append(
                f"{operation} works up to a ratio of {largest:g} with this teacher ({reason}); "
                "larger ratios are left out of the search"
            )
    sections["student"] = {**students, FROM_TEACHER: knobs}
    if set(students) == {FROM_TEACHER}:
        sections["prune"], more = _probe_methods(probe, space.sections["prune"])
        notices += more
    return replace(space, sections=sections), (*notices, *probe.describe_uncut())


def _probe_methods(
    probe: _Probe, methods: Mapping[str, Mapping[str, Leaf | Domain]]
) -> tuple[Mapping[str, Mapping[str, Leaf | Domain]], list[str]]:
    """Return the methods of the section ``prune`` that work, with the ratios that work, and notices."""
    safe: dict[str, Mapping[str, Leaf | Domain]] = {}
    notices = []
    for name, settings in methods.items():
        strongest = _largest_value(settings.get(RATIO, PROBE_RATIO)) or PROBE_RATIO
        largest, reason = (strongest, "") if name == "none" else probe.find_largest_ratio(name, strongest)
        if not largest:
            notices.append(f"prune.{name} is not safe with this teacher ({reason}); it is left out")
            continue
        safe[name] = settings
        if largest < strongest:
            safe[name] = {**settings, RATIO: _limit_values(settings[RATIO], largest)}
            notices.append(
                f"prune.{name} works up to a ratio of {largest:g} with this teacher ({reason}); "
                "larger ratios are left out"
            )
    failures = [reason for (name, knob, _), reason in probe.reasons.items() if (name, knob) == ("structured", RATIO)]
    is_replaced = bool(failures) and all(failures) and FALLBACK not in safe
    if is_replaced and not probe.find_failure(FALLBACK, PROBE_RATIO):
        safe[FALLBACK] = {RATIO: 0.5}
        notices.append(f"prune.{FALLBACK} replaces it: half of the weights become zero, at the same FLOPs")
    return safe or {"none": {}}, notices


def has_layer_norm(model: "nn.Module") -> bool:
    """Return whether a model has a layer normalization, which reads the hidden size."""
    return any(kind.__name__ == "LayerNorm" for module in model.modules() for kind in type(module).__mro__)


def _largest_value(domain: Leaf | Domain) -> float:
    """Return the largest ratio that a domain allows."""
    if isinstance(domain, FloatRange):
        return domain.high
    options = domain.options if isinstance(domain, Choice) else (domain,)
    return max((float(option) for option in options if isinstance(option, int | float)), default=0.0)


def _limit_values(domain: Leaf | Domain, largest: float) -> Leaf | Domain:
    """Return a domain of ratios without those above ``largest``; if none is left, ``largest`` itself."""
    if isinstance(domain, FloatRange):
        return replace(domain, high=largest) if domain.low < largest else largest
    options = domain.options if isinstance(domain, Choice) else ()
    allowed = tuple(option for option in options if isinstance(option, int | float) and option <= largest)
    return Choice(allowed) if len(allowed) > 1 else (allowed or (largest,))[0]


def _make_context(task: Task, splits: Splits) -> Context:
    batch = splits.calibration.take(slice(0, CALIBRATION_BATCH))

    return Context(
        task.example(),
        (batch.inputs,),
        (batch.targets,),
        lambda output, targets: task.loss(logits_by_head(output, task.heads), targets),
        ignore=getattr(task, "ignore", ()),
    )
