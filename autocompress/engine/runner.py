"""A whole search from spec to frozen front, in the order in which things may fail: the cheap checks first."""

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autocompress.backends.base import Backend
from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.machine import processor
from autocompress.core.plugins import guests
from autocompress.core.records import Candidate, Cut
from autocompress.core.registry import OBJECTIVES, TASKS
from autocompress.core.task import Splits, Task
from autocompress.engine.backend_factory import make_backend
from autocompress.engine.driver import Driver
from autocompress.engine.finish import finish
from autocompress.engine.initial_design import Fixed, Values, starts
from autocompress.engine.modes import MODES
from autocompress.engine.preflight import look
from autocompress.engine.probe import safe_space
from autocompress.engine.progress import Progress
from autocompress.engine.sampler.optuna import Proposer
from autocompress.engine.space import Space, open_space
from autocompress.engine.spec import Source
from autocompress.errors import AutocompressError, SearchFailedError
from autocompress.measure.heads import AT, objective_called, refuse_unknown_head, scores_to_measure
from autocompress.store.run_store import DATABASE, Study
from autocompress.training.device import nearest
from autocompress.training.optimizers import fit_config
from autocompress.trial.cost_estimate import price
from autocompress.trial.pipeline import Setup, settled
from autocompress.trial.runner import TrialRunner, cpu_capability, teacher_record
from autocompress.trial.teacher import Teacher, TeacherRecipe, load_teacher

LIBRARIES = ("autocompress", "torch", "optuna", "torch-pruning", "onnxruntime")


@dataclass(frozen=True)
class Events:
    """Callbacks of a search, all called in the caller's thread.

    Attributes:
        phase: A line that says what begins now.
        teacher: Epochs done and epochs in all, while a teacher is trained.
        progress: After every ask and tell.
        notice: What a reader should know about the data or the teacher.
    """

    phase: Callable[[str], None] = lambda text: None
    teacher: Callable[[int, int], None] = lambda done, total: None
    progress: Callable[[Progress], None] = lambda progress: None
    notice: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Plan:
    """A checked spec: everything that can be wrong before training has been looked at.

    Attributes:
        source: The spec with its lines.
        space: What may be chosen.
        task: The task's object.
        splits: Its five splits.
        setup: What workers need.
        objectives: Records without their boxes.
        backend: Where trials run.
        notices: What a reader should know: about the data, and what cannot be cut.
    """

    source: Source
    space: Space
    task: Task
    splits: Splits
    setup: Setup
    objectives: tuple[dict[str, Any], ...]
    backend: Backend
    notices: tuple[str, ...] = ()


def make_plan(source: Source, *, warm: bool = False) -> Plan:
    """Check a spec against everything that is registered, load the data, and build the teacher once, untrained.

    Args:
        source: The spec with its lines.
        warm: Whether the plan will be run, so that workers may start meanwhile.

    Raises:
        SpecError: A name or a setting is wrong; the message names the line.
        UsageError: The task's data cannot be used.
    """
    backend = make_backend(source)
    if warm:
        backend.warm()
    try:
        return _checked(source, backend)
    except BaseException:
        backend.cool()
        raise


def _checked(source: Source, backend: Backend) -> Plan:
    spec = source.spec
    mode = MODES[spec.search.mode]
    space = mode.narrow(open_space(source))
    ((task_name, options),) = spec.task.items()
    try:
        task: Task = TASKS.get(task_name)(**options)
    except AutocompressError as error:
        raise source.error(("task",), str(error)) from None
    except TypeError as error:
        raise source.error(("task", task_name), f"{task_name} does not take these options ({error})") from None
    for name in spec.objectives:
        _known(source, ("objectives", name), name, task)
    for name in spec.limits:
        _known(source, ("limits", name), name, task)
    if len({objective_called(name).kind for name in spec.objectives}) != 2:
        raise source.error(("objectives",), "name at least one score (such as accuracy) and one cost (such as bytes)")
    splits = task.splits(spec.split_seed)
    student, fit = task.teacher()
    if spec.teacher.student is not None:
        student = Part.from_json(spec.teacher.student)
    if spec.teacher.fit is not None:
        fit = Part.from_json(spec.teacher.fit)
    try:
        fit_config(fit)
        task.build(student)
    except AutocompressError as error:
        raise source.error(("teacher",), str(error)) from None
    setup = Setup(
        Part.of(task_name, **{**options, **task.pinned}),
        spec.split_seed,
        TeacherRecipe(student, fit, spec.teacher.seed),
        tuple(scores_to_measure({*OBJECTIVES} & {*task.metrics} | {*spec.objectives, *spec.limits}, task.heads)),
        tuple(name for name in OBJECTIVES if OBJECTIVES.get(name).kind == "cost"),
        spec.search.trains_on,
    )
    records = tuple(_record(name) for name in spec.objectives)
    space, unsafe = safe_space(space, task, splits)
    return Plan(source, space, task, splits, setup, records, backend, (*task.notices, *unsafe))


def run_search(
    plan: Plan, folder: Path, *, resume: bool = False, command: str = "", events: Events | None = None
) -> Study:
    """Train the teacher if it is not cached, search, freeze the front, read the test split, and return the store.

    Args:
        plan: From :func:`make_plan`.
        folder: The run folder.
        resume: Continue the run that lies there.
        command: What the user typed, for the report.
        events: Callbacks.

    Raises:
        RunFolderError: The folder holds another run, or its spec differs from this one.
        SearchFailedError: Every trial failed; what is stored stays readable.
        KeyboardInterrupt: The user stopped it; what is stored stays readable and the run can be resumed.
    """
    events = events or Events()
    study = _open(plan, folder, resume, command)
    for notice in plan.notices:
        events.notice(notice)
    try:
        with plan.backend.opened(study.folder):
            with settled():
                teacher = _teacher(plan, events)
                _describe(plan, study, teacher)
            luggage = teacher.luggage() if plan.backend.elsewhere else None
            runner = TrialRunner(plan.setup, guests([plan.task.name]), luggage)
            plan.backend.ready(runner)
            driver = _driver(plan, study, events)
            events.phase("searching")
            try:
                plan.backend.run(driver.ask, runner, driver.tell, driver.ahead)
            finally:
                driver.leave()
                study.set_meta({"seconds": driver.elapsed, "exhausted": driver.exhausted})
        if driver.hopeless or study.candidates().empty:
            raise SearchFailedError(_why_nothing(plan, driver, study))
        events.phase("freezing the front and reading the test split")
        with settled():
            finish(plan.setup, plan.source.spec.search.minutes, study)
    except BaseException:
        study.close()
        raise
    return study


def _known(source: Source, place: tuple[str, ...], name: str, task: Task) -> None:
    try:
        objective_called(name)
        if AT in name:
            refuse_unknown_head(name, task.heads)
    except AutocompressError as error:
        raise source.error(place, str(error)) from None


def _record(name: str) -> dict[str, Any]:
    found = objective_called(name)
    return {"name": found.name, "direction": found.direction, "unit": found.unit, "kind": found.kind}


def _open(plan: Plan, folder: Path, resume: bool, command: str) -> Study:
    spec = plan.source.spec
    look(folder, spec, resume=resume, command=command)
    if (folder / DATABASE).exists():
        study = Study.open(folder)
    else:
        study = Study.create(folder, {"name": spec.name, "content": spec.content(), "command": command})
    write_atomic(folder / "spec.yaml", spec.to_yaml())
    return study


def _teacher(plan: Plan, events: Events) -> Teacher:
    total = fit_config(plan.setup.teacher.fit).epochs
    events.phase("loading the teacher")
    # The driver of a cluster may sit where no card is.
    device = nearest(plan.setup.device)
    teacher = load_teacher(
        plan.task, plan.splits, plan.setup.teacher, lambda row: events.teacher(int(row["epoch"]), total), device
    )
    if teacher.notice:
        events.phase(teacher.notice)
    return teacher


def _describe(plan: Plan, study: Study, teacher: Teacher) -> None:
    spec = plan.source.spec
    record: dict[str, Any] = {
        **teacher_record(plan.setup),
        "config": {"student": plan.setup.teacher.student.to_json(), "fit": plan.setup.teacher.fit.to_json()},
    }
    test = (study.meta("teacher") or {}).get("scores", {}).get("test")
    if test is not None:
        record["scores"]["test"] = test
    study.set_meta(
        {
            "setup": plan.setup.to_json(),
            "task": plan.task.name,
            "heads": dict(plan.task.heads),
            "mode": spec.search.mode,
            "spec": spec.to_yaml(),
            "teacher": record,
            "notices": list(plan.notices),
            "plugins": list(guests().plugins),
            "objectives": [{**objective, "box": _box(plan, objective, record)} for objective in plan.objectives],
            "all_objectives": [_record(name) for name in (*plan.setup.scores, *plan.setup.costs)],
            "limits": {name: limit.model_dump(exclude_none=True) for name, limit in spec.limits.items()},
            "pick": spec.pick.model_dump(),
            "splits": {name: len(split) for name, split in plan.splits.items()},
            "environment": _environment(plan),
        }
    )
    # With its teacher beside it, a run folder can be moved and read years later.
    for path in teacher.files():
        write_atomic(study.folder / "teacher" / path.name, path.read_bytes())
    write_atomic(study.folder / "environment.json", json.dumps(study.meta("environment"), indent=1, sort_keys=True))


def _box(plan: Plan, objective: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[float]:
    """Return [reference, ideal] as the spec declares it, or from chance and the teacher's cost."""
    declared = plan.source.spec.objectives[objective["name"]]
    if declared is not None:
        return [float(bound) for bound in declared]
    if objective["kind"] == "cost":
        cost = max(float(teacher["costs"][objective["name"]]), 1.0)
        return [cost, cost * 1e-5]
    if objective["direction"] == "maximize":
        head = objective["name"].partition(AT)[2]
        return [1 / (plan.task.heads[head] if head else max(plan.task.heads.values())), 1.0]
    return [max(float(teacher["scores"]["search_val"][objective["name"]]) * 10, 1.0), 0.0]


def _environment(plan: Plan) -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "workers": getattr(plan.backend, "workers", 1),
        "threads_per_worker": 1,
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in (*LIBRARIES, *plan.backend.libraries)},
        "capability": cpu_capability(),
        "data": plan.splits.fingerprint(),
    }


def _driver(plan: Plan, study: Study, events: Events) -> Driver:
    spec = plan.source.spec
    objectives = study.meta("objectives")
    proposer = Proposer(
        study,
        spec.name,
        MODES[spec.search.mode].sampler or spec.search.sampler,
        spec.search.seed,
        [objective["direction"] for objective in objectives],
        [f"log10 {o['name']}" if o["kind"] == "cost" else o["name"] for o in objectives],
    )
    first = plan.space.defaults(plan.setup.teacher.student)
    start = starts(plan.space, first, partial(_cost, plan)) if MODES[spec.search.mode].amortized else [first]
    return Driver(
        study,
        plan.space,
        spec.search,
        proposer,
        objectives,
        study.meta("limits"),
        start,
        events.progress,
        partial(price, plan.setup),
        spec.pick.max_drop,
        _as_candidate(plan, study.meta("teacher")),
    )


def _as_candidate(plan: Plan, record: Mapping[str, Any]) -> Candidate:
    """Return the teacher as what it would be in a search: a training that has ended."""
    teacher = plan.setup.teacher
    training = CompressionConfig(teacher.student, (Part("none"),), teacher.fit)
    epochs = fit_config(teacher.fit).epochs
    return Candidate("teacher", -1, training, epochs, record["scores"], record["costs"], complete=True)


def _cost(plan: Plan, values: Values) -> float:
    """Return the first cost of a student before any cut; NaN if it cannot be built."""
    training, _ = plan.space.suggest(Fixed(values), cut=False)
    name = next(objective["name"] for objective in plan.objectives if objective["kind"] == "cost")
    try:
        found = price(plan.setup, training, [Cut()])
    except AutocompressError:
        return math.nan
    return max(float(found[0][name]), 1e-9) if found else math.nan


def _why_nothing(plan: Plan, driver: Driver, study: Study) -> str:
    limits = driver.limits
    if limits.refused and study.trials().empty:
        found = ", ".join(f"{name} = {least:.6g}" for name, least in limits.least.items())
        return (
            f"none of {limits.refused} configurations keeps the limits on {', '.join(limits.least)}, however it is cut "
            f"(the least was {found}); widen them"
        )
    return f"every trial failed; the most frequent reason: {_top_reason(study)}"


def _top_reason(study: Study) -> str:
    reasons = study.trials()["reason"]
    reasons = reasons[reasons != ""]
    return str(reasons.mode().iloc[0]) if len(reasons) else "no trial was run"
