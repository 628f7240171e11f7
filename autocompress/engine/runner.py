"""A whole search: checks, teacher, driver, the frozen front, the baseline without distillation, and the test split.

Cheap checks come first, so that a mistake shows before any training.
"""

import inspect
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pydantic import JsonValue

from autocompress.analysis.certification import list_promise_notices
from autocompress.analysis.latency import select_timed
from autocompress.analysis.pareto import full_fidelity, pareto_front, primary_objectives
from autocompress.analysis.selection import select_candidate
from autocompress.analysis.trivial_baselines import describe_weak_teacher
from autocompress.backends.base import Backend, TrialLimits
from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.duplicates import remove_duplicates
from autocompress.core.example_scores import ExampleScores
from autocompress.core.formatting import format_value, is_finite, is_share, label_column
from autocompress.core.heads import as_head
from autocompress.core.latency_model import LATENCY, LatencyModel
from autocompress.core.records import Candidate, CompressionRecipe, Job, Role, TrialResult
from autocompress.core.registry import BACKENDS, OBJECTIVES, TASKS, collect_plugins
from autocompress.core.run_info import (
    EnvironmentInfo,
    ObjectiveSpec,
    RunInfo,
    TargetInfo,
    TeacherInfo,
    TrivialBaselineInfo,
    read_processor_name,
)
from autocompress.core.task import Splits, Task
from autocompress.core.untrusted import join_inside
from autocompress.engine.archive import Progress
from autocompress.engine.copies import copy_front
from autocompress.engine.driver import Driver
from autocompress.engine.folds import check_folds, cross_fit
from autocompress.engine.initial_design import FixedTrial, RandomTrial, Values, design_initial_trials
from autocompress.engine.patience import LEAST_GROWTH
from autocompress.engine.preflight import (
    check_attacks,
    check_layer_use,
    check_run_folder,
    check_weighted_classes,
    remove_unsafe_methods,
)
from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.space import MODES, Space, check_teacher_settings, open_space
from autocompress.engine.spec import SearchSection, Source
from autocompress.engine.target_space import narrow_to_target
from autocompress.engine.transfer import plan_transfer
from autocompress.engine.warm_start import WarmStart, load_warm_start, read_warm_start, write_warm_start
from autocompress.errors import (
    AutocompressError,
    NoCandidateError,
    RunFolderError,
    SearchFailedError,
    SpecError,
    UsageError,
)
from autocompress.measure.heads import AT, check_head, get_objective, list_scores
from autocompress.measure.thresholds import read_thresholds
from autocompress.store.control import cancel_pause
from autocompress.store.run_store import DATABASE, RunStore
from autocompress.targets import approve_programs, make_target
from autocompress.tasks.base import is_imbalanced
from autocompress.tasks.folds import DIVIDED
from autocompress.training.class_weights import check_class_weights
from autocompress.training.device import available_device, require_device
from autocompress.training.optimizers import fit_config
from autocompress.trial.pipeline import Setup, reproducible_torch
from autocompress.trial.runner import (
    SplitScores,
    TrialRunner,
    cpu_capability,
    estimate_costs,
    retrain_checkpoint,
    score_test_split,
    teacher_record,
)
from autocompress.trial.teacher import Teacher, TeacherRecipe, load_teacher
from autocompress.trial.trivial_baselines import measure_baselines, score_training_split

logger = logging.getLogger(__name__)

#: The first score by default, and its replacement where classes are imbalanced.
ACCURACY, BALANCED = "accuracy", "balanced_accuracy"
#: Largest number of class names of a head that a run stores.
MAX_NAMES = 1000
# Random students whose largest cost stands for that of a teacher without one.
SAMPLED_STUDENTS = 32
#: Libraries whose versions are stored with a run.
LIBRARIES = ("autocompress", "torch", "optuna", "onnxruntime")


@dataclass(frozen=True)
class Events:
    """Callbacks of a search, all called in the caller's thread.

    Attributes:
        phase: Receiver of one line at the start of each phase.
        teacher: Receiver of completed epochs, 0.5 in the middle of the first one, and of their total number, while a
            teacher is trained.
        progress: Receiver of the progress after every ask and tell.
        notice: Receiver of a remark on the data or the teacher for the reader of the report.
        result: Receiver of each job with its result and the progress after it.
    """

    phase: Callable[[str], None] = lambda text: None
    teacher: Callable[[float, int], None] = lambda done, total: None
    progress: Callable[[Progress], None] = lambda progress: None
    notice: Callable[[str], None] = lambda text: None
    result: Callable[[Job, TrialResult, Progress], None] = lambda job, result, progress: None


@dataclass(frozen=True)
class Plan:
    """A spec that passed every check which needs no training.

    Attributes:
        source: The spec with its lines.
        space: The search space.
        task: The task's object.
        splits: The task's five splits.
        setup: Setup of the workers.
        objectives: Objectives without their bounds.
        backend: Backend that runs the trials.
        target: Description of the target.
        notices: Remarks for the reader on the data, and on compression methods and bits that were left out.
        warm_start: Trials of an earlier run that the search starts from.
    """

    source: Source
    space: Space
    task: Task
    splits: Splits
    setup: Setup
    objectives: tuple[ObjectiveSpec, ...]
    backend: Backend
    target: TargetInfo = field(default_factory=TargetInfo)
    notices: tuple[str, ...] = ()
    warm_start: WarmStart | None = None


def make_plan(source: Source, *, warm: bool = False) -> Plan:
    """Check a spec against the registries, load the data, and build the teacher once, untrained.

    Args:
        source: The spec with its lines.
        warm: Whether the plan will be run, so that workers start during the checks.

    Raises:
        SpecError: A name or a setting is wrong; the message names the line.
        UsageError: The task's data cannot be used.
    """
    backend = make_backend(source)
    if warm:
        backend.prewarm()
    try:
        return _check_spec(source, backend)
    except BaseException:
        backend.shutdown()
        raise


def add_warm_start(plan: Plan, run: Path | None, folder: Path) -> Plan:
    """Return a plan with the trials of an earlier run; a resumed search keeps those that it was started from.

    Args:
        plan: The checked spec.
        run: Folder of the earlier run; None for a search that starts from none.
        folder: Folder of the new run.

    Raises:
        UsageError: The earlier run does not fit the search, or the search has no surrogate.
        RunFolderError: The folder of the earlier run holds none.
    """
    start = load_warm_start(folder) if (folder / DATABASE).exists() else None
    if start is None:
        if run is None:
            return plan
        if (folder / DATABASE).exists():
            raise UsageError(f"{folder} was not started from an earlier run; resume it without, or --name a new run")
        search = plan.source.spec.search
        mode = MODES[search.mode]
        if not mode.amortized or (mode.sampler or search.sampler) != "surrogate":
            raise UsageError(
                f"a warm start needs the sampler `surrogate`; mode {search.mode} with sampler {search.sampler} has no "
                "use for the trials of another run"
            )
        start = read_warm_start(run, plan.space, plan.task, plan.objectives)
    return replace(plan, warm_start=start, notices=(*plan.notices, start.notice))


def _check_spec(source: Source, backend: Backend) -> Plan:
    spec = source.spec
    mode = MODES[spec.search.mode]
    target = _describe_target(source)
    space, narrowed = narrow_to_target(source, mode.restrict_space(open_space(source)), target)
    ((task_name, options),) = spec.task.items()
    options = {**options, **_list_split_options(source, task_name)}
    try:
        task: Task = TASKS.get(task_name)(**options)
    except AutocompressError as error:
        raise source.make_error(("task",), str(error)) from None
    except TypeError as error:
        raise source.make_error(("task", task_name), f"{task_name} does not take these options ({error})") from None
    source = prefer_own_score(source, task)
    spec = source.spec
    for name in spec.objectives:
        _check_objective(source, ("objectives", name), name, task)
        _check_bounds(source, name)
    for name in spec.limits:
        _check_objective(source, ("limits", name), name, task)
    if len({get_objective(name).kind for name in spec.objectives}) != 2:
        message = "name at least one score (such as accuracy) and one cost (such as bytes)"
        raise source.make_error(("objectives",), message)
    check_attacks(source, space, task)
    check_weighted_classes(source, space, task)
    splits, leaks = _load_splits(source, task)
    source, balanced = prefer_balanced_score(source, task, splits)
    spec = source.spec
    student, fit = task.teacher()
    check_teacher_settings(source)
    if spec.teacher.student is not None:
        student = Part.from_json(spec.teacher.student)
    if spec.teacher.fit is not None:
        fit = Part.from_json(spec.teacher.fit)
    try:
        check_class_weights(task, fit_config(fit).class_weights)
        task.build(student)
    except AutocompressError as error:
        raise source.make_error(("teacher",), str(error)) from None
    check_layer_use(source, space, task)
    teacher, remark = plan_transfer(source, task, splits, TeacherRecipe(student, fit, spec.teacher.seed))
    check_folds(source, task, splits, teacher)
    primary = next(name for name in spec.objectives if get_objective(name).kind == "score")
    thresholds = _read_thresholds(source, task, primary)
    latency = _calibrate_latency(source, target)
    setup = Setup(
        Part.of(task_name, **{**options, **task.identity_options}),
        spec.split_seed,
        teacher,
        tuple(list_scores({*OBJECTIVES} & {*task.metrics} | {*spec.objectives, *spec.limits}, task.heads)),
        tuple(
            name
            for name in OBJECTIVES
            if OBJECTIVES.get(name).kind == "cost" and (name != LATENCY or latency is not None)
        ),
        spec.search.training_device,
        target.precisions,
        latency,
        primary=primary,
        is_distinct=True,
        thresholds=tuple(thresholds.items()),
    )
    objectives = tuple(_objective_spec(name) for name in spec.objectives)
    space, unsafe = remove_unsafe_methods(space, task, splits)
    promises = _list_promise_notices(source, task, splits, objectives)
    notices = tuple(filter(None, (*task.notices, balanced, remark, *leaks, *narrowed, *unsafe, *promises)))
    return Plan(source, space, task, splits, setup, objectives, backend, target, notices)


def prefer_own_score(source: Source, task: Task) -> Source:
    """Return the spec with the task's first score in the place of accuracy, if no head has classes.

    A spec that names its objectives stays as it is.
    """
    spec = source.spec
    if "objectives" in spec.model_fields_set or ACCURACY not in spec.objectives:
        return source
    if any(get_objective(ACCURACY).applies_to(size) for size in task.heads.values()):
        return source
    objectives = {task.metrics[0] if name == ACCURACY else name: bounds for name, bounds in spec.objectives.items()}
    return source.replace_objectives(objectives)


def prefer_balanced_score(source: Source, task: Task, splits: Splits) -> tuple[Source, str]:
    """Return the spec with balanced accuracy as first score where classes are imbalanced, and a notice that says so.

    A spec that names its objectives stays as it is.
    """
    spec = source.spec
    if "objectives" in spec.model_fields_set or ACCURACY not in spec.objectives:
        return source, ""
    targets = {name: [split.targets[name] for _, split in splits.items()] for name in task.heads}
    imbalanced = [name for name, size in task.heads.items() if is_imbalanced(as_head(size), targets[name])]
    if not imbalanced:
        return source, ""
    has_threshold = any(as_head(task.heads[name]).has_threshold for name in imbalanced)
    decides = " and threshold: auto decides for it" if has_threshold and spec.threshold is None else ""
    objectives = {BALANCED if name == ACCURACY else name: bounds for name, bounds in spec.objectives.items()}
    notice = (
        f"the classes of {', '.join(repr(head) for head in imbalanced)} are imbalanced, so the first score is "
        f"{BALANCED} in place of {ACCURACY}, which a model reaches that ignores rare classes; to keep it, write "
        f"objectives: [{', '.join(spec.objectives)}]; class_weights: balanced in `fit` trains for it{decides}"
    )
    return source.replace_objectives(objectives), notice


def _read_thresholds(source: Source, task: Task, score: str) -> dict[str, float | None]:
    """Return the threshold of each head that the spec names, None for one that is to be chosen for a score."""
    try:
        return read_thresholds(source.spec.list_thresholds(), task.heads, score)
    except UsageError as error:
        raise source.make_error(("threshold",), str(error)) from None


def _describe_target(source: Source) -> TargetInfo:
    ((name, options),) = source.spec.target.items()
    try:
        return make_target(name, options).describe()
    except AutocompressError as error:
        raise source.make_error(("target",), str(error)) from None


def _calibrate_latency(source: Source, target: TargetInfo) -> LatencyModel | None:
    """Return the latency model of the target for a spec that names latency; None for any other."""
    spec = source.spec
    section = next((name for name in ("objectives", "limits") if LATENCY in getattr(spec, name)), None)
    if section is None:
        return None
    if not target.precisions.restricts:
        message = f"{LATENCY} is that of a target: add `target: onnxruntime` (`autocompress list targets` shows all)"
        raise source.make_error((section, LATENCY), message)
    # Imported late: a search without latency needs no runtime in the driver's process.
    from autocompress.targets.calibration import calibrate

    try:
        return calibrate(make_target(target.name, target.options), target)
    except AutocompressError as error:
        raise source.make_error(("target",), str(error)) from None


def _list_split_options(source: Source, task_name: str) -> dict[str, str]:
    """Return the options of the task for the columns that the section ``splits`` names.

    Raises:
        SpecError: The task cannot be split by them.
    """
    columns = source.spec.splits.columns
    # Read from the class, before its constructor reads the data.
    try:
        supported = getattr(TASKS.get(task_name), "split_keys", ())
    except AutocompressError as error:
        raise source.make_error(("task",), str(error)) from None
    for kind in columns:
        if kind not in supported:
            if task_name == "module":
                message = f"give {'times' if kind == 'time' else kind}= to autocompress.bring_model, or to Tensors"
            else:
                others = ", ".join(name for name in TASKS if kind in getattr(TASKS.get(name), "split_keys", ()))
                message = f"the task '{task_name}' has no column to split by {kind}; these tasks have: {others}"
            raise source.make_error(("splits", kind), message)
    return {f"split_{kind}": column for kind, column in columns.items()}


def _load_splits(source: Source, task: Task) -> tuple[Splits, tuple[str, ...]]:
    """Return the splits without duplicates across them, and a notice on those that were removed."""
    try:
        splits = task.splits(source.spec.split_seed)
        distinct = remove_duplicates(splits, compares_inputs=task.has_distinct_inputs)
    except UsageError as error:
        raise source.make_error(("task",), str(error)) from None
    return distinct.splits, distinct.notices


def _list_promise_notices(
    source: Source, task: Task, splits: Splits, objectives: Sequence[ObjectiveSpec]
) -> tuple[str, ...]:
    """Return what the validation splits cannot prove about any candidate, before the search spends its time."""
    examples, unit = 0, "examples"
    chosen = DIVIDED if source.spec.splits.folds else ("search_val", "select_val")
    for split in (getattr(splits, name) for name in chosen):
        groups = task.resampling_groups(split)
        # Examples of a group are not independent, so groups are counted.
        examples += len(split) if groups is None else len(groups.unique())
        unit = "examples" if groups is None else "groups"
    pick = source.spec.pick
    return list_promise_notices(primary_objectives(objectives)[1], examples, pick.max_drop, pick.confidence, unit)


def run_search(
    plan: Plan,
    folder: Path,
    *,
    resume: bool = False,
    command: str = "",
    events: Events | None = None,
    before_freeze: Callable[[], None] = lambda: None,
) -> RunStore:
    """Train the teacher if it is not cached, search, freeze the front, read the test split, and return the store.

    Args:
        plan: The checked spec.
        folder: The run folder.
        resume: Whether the run in the folder is continued.
        command: Command line of the user, for the report.
        events: Callbacks of the search.
        before_freeze: Callback between the last trial and the freezing of the front, while the store is closed.

    Raises:
        RunFolderError: The folder holds another run, or its spec differs from this one.
        SearchFailedError: Every trial failed; the stored results stay readable.
        KeyboardInterrupt: The user stopped it; the stored results stay readable and the run can be resumed.
    """
    events = events or Events()
    store = _open_store(plan, folder, resume, command)
    # A search that ended while it was paused continues when it is resumed.
    cancel_pause(folder)
    for notice in plan.notices:
        events.notice(notice)
    try:
        plugins = plan.backend.collect_plugins(plan.task.name)
        with plan.backend.open(store.folder):
            with reproducible_torch():
                teacher = _load_teacher(plan, events)
                _describe_run(plan, store, teacher, events)
                _copy_front(plan, store, events)
            # Remote workers do not share this machine's cache of teachers.
            serialized = teacher.serialize() if plan.backend.is_remote else None
            runner = TrialRunner(plan.setup, plugins, serialized)
            plan.backend.prepare(runner)
            driver = _make_driver(plan, store, events)
            events.phase("searching")
            logger.info("search %s: %s", "resumed" if resume else "started", store.folder)
            try:
                plan.backend.run(driver.ask, runner, driver.tell, driver.prepare_next)
            finally:
                # Also after Ctrl-C: running jobs are marked as cancelled, and the elapsed time is stored for a resume.
                driver.close()
                info = store.run_info()
                store.update_run_info(replace(info, seconds=driver.elapsed_seconds, exhausted=driver.exhausted))
                logger.info("search ended after %.1f s", driver.elapsed_seconds)
        if driver.has_converged:
            _add_notice(store, events, _describe_end(plan.source.spec.search, driver.elapsed_seconds))
        if driver.has_only_failed_trials or store.candidate_table().empty:
            raise SearchFailedError(_explain_failure(driver, store))
        store.close()
        before_freeze()
        store = RunStore.open(folder)
        _cross_fit_finalists(plan, store, events)
        events.phase("freezing the front and reading the test split")
        with reproducible_torch():
            finish_run(plan.setup, plan.source.spec.search.minutes, store)
        if leak := detect_validation_leak(store.run_info()):
            _add_notice(store, events, leak)
        logger.info("front frozen: %d candidates", len(store.run_info().front or ()))
    except BaseException:
        store.close()
        raise
    return store


def _copy_front(plan: Plan, store: RunStore, events: Events) -> None:
    """Copy the trials of the front that a new search starts from, where they would give the same models again."""
    start = plan.warm_start
    if start is not None and start.run is not None and not store.read_trials():
        events.phase("copying the front of the earlier run")
        _add_notice(store, events, copy_front(start.run, store, plan.space, plan.setup))


def _describe_end(search: SearchSection, seconds: float) -> str:
    """Return the notice of a search that its patience has ended."""
    share = search.patience or 0.0
    budget = "" if search.minutes is None else f" of {60 * search.minutes:.0f}"
    return (
        f"the search ended after {seconds:.0f}{budget} s, because the hypervolume of the front grew by less than "
        f"{LEAST_GROWTH:.1%} in the last {share:.0%} of that time (search.patience)"
    )


def _cross_fit_finalists(plan: Plan, store: RunStore, events: Events) -> None:
    """Train the finalists in folds where the spec asks for it; the front does not depend on the result."""
    folds = plan.source.spec.splits.folds
    if folds is None:
        return
    # The backend of the search has ended its workers.
    backend = make_backend(plan.source)
    notice = cross_fit(plan.setup, backend, store, folds, events.phase)
    if notice:
        _add_notice(store, events, notice)


def _add_notice(store: RunStore, events: Events, notice: str) -> None:
    """Show a notice, and keep it for the page."""
    events.notice(notice)
    info = store.run_info()
    store.update_run_info(replace(info, notices=tuple(dict.fromkeys([*info.notices, notice]))))


def _check_objective(source: Source, key: tuple[str, ...], name: str, task: Task) -> None:
    try:
        get_objective(name)
        check_head(name, task.heads)
    except AutocompressError as error:
        raise source.make_error(key, str(error)) from None


def _check_bounds(source: Source, name: str) -> None:
    """Check that the declared ideal of an objective is better than its reference: hypervolume steers the search."""
    bounds, objective = source.spec.objectives[name], get_objective(name)
    if bounds is None:
        return
    reference, ideal = bounds
    if (ideal <= reference) if objective.direction == "maximize" else (ideal >= reference):
        raise source.make_error(
            ("objectives", name),
            f"[reference, ideal] is [{reference:g}, {ideal:g}], but {name} is to {objective.direction}: the ideal must "
            f"be the better value, as in [{ideal:g}, {reference:g}]",
        )
    if objective.kind == "cost" and ideal <= 0:
        message = f"the ideal of a cost is above 0, because costs have a logarithmic scale, got {ideal:g}"
        raise source.make_error(("objectives", name), message)


def _objective_spec(name: str) -> ObjectiveSpec:
    objective = get_objective(name)
    return ObjectiveSpec(objective.name, objective.direction, objective.unit, objective.kind)


def _open_store(plan: Plan, folder: Path, resume: bool, command: str) -> RunStore:
    spec = plan.source.spec
    check_run_folder(folder, spec, resume=resume, command=command)
    if (folder / DATABASE).exists():
        store = RunStore.open(folder)
        try:
            _check_target(store.run_info(), plan.target, folder)
        except BaseException:
            store.close()
            raise
    else:
        store = RunStore.create(folder, RunInfo(name=spec.name, content=spec.immutable_content(), command=command))
        if plan.warm_start is not None:
            write_warm_start(folder, plan.warm_start)
    write_atomic(folder / "spec.yaml", spec.to_yaml())
    ((name, options),) = spec.target.items()
    approve_programs(make_target(name, options))
    return store


def _check_target(info: RunInfo, target: TargetInfo, folder: Path) -> None:
    """Check that a resumed run goes on with the bit-widths it was begun with: they decide weights and costs."""
    if info.target.name and info.target.precisions != target.precisions:
        raise RunFolderError(
            f"{folder} was begun on {info.target.processor or 'another device'}, whose integer kernels differ from "
            "this machine's; resume it there, or --name a new run"
        )


def _load_teacher(plan: Plan, events: Events) -> Teacher:
    total = fit_config(plan.setup.teacher.fit).epochs
    events.phase("loading the teacher")
    # The driver of a cluster may run on a machine without a graphics card.
    device = available_device(plan.setup.device)
    teacher = load_teacher(plan.task, plan.splits, plan.setup.teacher, lambda done: events.teacher(done, total), device)
    if teacher.notice:
        events.phase(teacher.notice)
    logger.info("teacher ready on %s", device)
    return teacher


def _describe_run(plan: Plan, store: RunStore, teacher: Teacher, events: Events) -> None:
    spec = plan.source.spec
    info, recipe = store.run_info(), plan.setup.teacher
    measured = teacher_record(plan.setup)
    # A resumed run whose search had ended knows the teacher's score on the test split already.
    tested = {split: scores for split, scores in info.teacher.scores.items() if split == "test"}
    examples = {split: text for split, text in info.teacher.examples.items() if split == "test"}
    student, fit = recipe.student, recipe.fit
    config: dict[str, JsonValue] = {"student": {student.name: {**student.values}}, "fit": {fit.name: {**fit.values}}}
    if recipe.transfer is not None:
        config["transfer"] = recipe.transfer.to_json()
    teacher_info = TeacherInfo(
        {**measured["scores"], "train": score_training_split(plan.setup), **tested},
        measured["costs"],
        config,
        {**measured["examples"], **examples},
        tuple(teacher.read_curve()),
        measured["thresholds"],
    )
    environment = _describe_environment(plan)
    baselines, failures = _measure_baselines(plan.setup, info)
    described = replace(
        info,
        setup=plan.setup.to_json(),
        task=plan.task.name,
        heads=dict(plan.task.heads),
        labels={head: tuple(names) for head, names in plan.task.labels.items() if len(names) <= MAX_NAMES},
        mode=spec.search.mode,
        spec=spec.to_yaml(),
        teacher=teacher_info,
        trivial_baselines=baselines,
        plugins=tuple(collect_plugins().plugins),
        objectives=tuple(
            replace(objective, bounds=_choose_bounds(plan, objective, teacher_info)) for objective in plan.objectives
        ),
        all_objectives=tuple(_objective_spec(name) for name in (*plan.setup.scores, *plan.setup.costs)),
        limits={name: limit.model_dump(exclude_none=True) for name, limit in spec.limits.items()},
        max_drop=spec.pick.max_drop,
        confidence=spec.pick.confidence,
        splits={name: len(split) for name, split in plan.splits.items()},
        environment=environment,
        target=plan.target,
    )
    # Before the search spends its time: a student learns the mistakes of its teacher.
    notices = [*filter(None, [describe_weak_teacher(described)]), *failures]
    for notice in notices:
        events.notice(notice)
    store.update_run_info(replace(described, notices=(*notices, *plan.notices)))
    # The teacher is copied, so that the run folder can be moved and read on its own.
    for path in teacher.list_files():
        write_atomic(join_inside(store.folder, "teacher", path.name), path.read_bytes())
    write_atomic(store.folder / "environment.json", json.dumps(environment.to_json(), indent=1, sort_keys=True))


def _measure_baselines(setup: Setup, info: RunInfo) -> tuple[dict[str, TrivialBaselineInfo], list[str]]:
    """Return the trivial baselines and notices; of a resumed run, with the scores on test that it has."""
    measured, notices = measure_baselines(setup)
    for name, baseline in measured.items():
        earlier = info.trivial_baselines.get(name, TrivialBaselineInfo()).scores
        tested = {split: values for split, values in earlier.items() if split == "test"}
        measured[name] = replace(baseline, scores={**baseline.scores, **tested})
    return measured, notices


def _choose_bounds(plan: Plan, objective: ObjectiveSpec, teacher: TeacherInfo) -> tuple[float, float]:
    """Return reference and ideal as the spec declares them, or by default from chance and the teacher's values."""
    declared = plan.source.spec.objectives[objective.name]
    if declared is not None:
        return declared
    if objective.name == LATENCY:
        # Starting a run takes its time in any case: two powers of ten are more than models of one task differ by.
        milliseconds = _reference_cost(plan, objective.name, teacher)
        return milliseconds, milliseconds * 1e-2
    if objective.kind == "cost":
        # Costs have a logarithmic scale: five powers of ten below the teacher's.
        cost = max(_reference_cost(plan, objective.name, teacher), 1.0)
        return cost, cost * 1e-5
    if objective.kind == "score" and get_objective(objective.name).reads == "outputs":
        # A metric of the user's has an unknown range: an ideal of 1 suits shares, and a larger one follows the teacher.
        value = float(teacher.scores["search_val"][objective.name])
        lowest, margin = min(0.0, 2 * value), max(abs(value), 0.1)
        return (lowest, max(1.0, value + margin)) if objective.is_maximized else (value + 9 * margin, lowest)
    if objective.is_maximized:
        # Chance: one over the number of classes; of several heads, the most. Zero for numbers and entities.
        name, _, only = objective.name.partition(AT)
        classes = [as_head(size).classes for head, size in plan.task.heads.items() if only in ("", head)]
        has_chance = get_objective(name).reads in ("any", "classes") and min(classes) > 0
        return (1 / max(classes) if has_chance else 0.0), 1.0
    return max(float(teacher.scores["search_val"][objective.name]) * 10, 1.0), 0.0


def _reference_cost(plan: Plan, name: str, teacher: TeacherInfo) -> float:
    """Return a cost of the teacher; where that is unknown, that of the costliest of some random students, doubled."""
    if name in teacher.costs:
        return float(teacher.costs[name])
    costs = [1.0]
    for seed in range(SAMPLED_STUDENTS):
        config, _ = plan.space.suggest_config(RandomTrial(seed), with_compression=False)
        # A configuration of the space that cannot be built is skipped, as in the search.
        with suppress(AutocompressError):
            costs += [float(row[name]) for row in estimate_costs(plan.setup, config, [CompressionRecipe()])]
    return 2 * max(costs)


def _describe_environment(plan: Plan) -> EnvironmentInfo:
    return EnvironmentInfo(
        processor=read_processor_name(),
        cores=os.cpu_count(),
        workers=getattr(plan.backend, "workers", 1),
        threads_per_worker=1,
        system=platform.platform(),
        python=sys.version.split()[0],
        versions={name: version(name) for name in (*LIBRARIES, *plan.backend.libraries)},
        capability=cpu_capability(),
        data=plan.splits.fingerprint(),
    )


def _make_driver(plan: Plan, store: RunStore, events: Events) -> Driver:
    spec = plan.source.spec
    info, mode = store.run_info(), MODES[spec.search.mode]
    objectives = info.objectives
    sampler = OptunaSampler(
        store,
        spec.name,
        mode.sampler or spec.search.sampler,
        spec.search.seed,
        [objective.direction for objective in objectives],
        [f"log10 {objective.name}" if objective.kind == "cost" else objective.name for objective in objectives],
    )
    default = plan.space.default_values(plan.setup.teacher.student)
    initial = design_initial_trials(plan.space, default, partial(_first_cost, plan)) if mode.amortized else [default]
    return Driver(
        store,
        plan.space,
        spec.search,
        sampler,
        objectives,
        info.limits,
        initial,
        events.progress,
        partial(estimate_costs, plan.setup),
        spec.pick.max_drop,
        _teacher_candidate(plan, info.teacher),
        () if plan.warm_start is None else plan.warm_start.trials,
        events.result,
    )


def _teacher_candidate(plan: Plan, measured: TeacherInfo) -> Candidate | None:
    """Return the teacher as the candidate of a complete trial, the surrogate's first observation.

    None if a cost of the search is unknown.
    """
    if any(objective.kind == "cost" and objective.name not in measured.costs for objective in plan.objectives):
        return None
    teacher = plan.setup.teacher
    config = CompressionConfig(teacher.student, (Part("none"),), teacher.fit)
    epochs = fit_config(teacher.fit).epochs
    return Candidate("teacher", -1, config, epochs, measured.scores, measured.costs, complete=True)


def _first_cost(plan: Plan, values: Values) -> float:
    """Return the first cost of an uncompressed student; NaN if it cannot be built."""
    config, _ = plan.space.suggest_config(FixedTrial(values), with_compression=False)
    name = next(objective.name for objective in plan.objectives if objective.kind == "cost")
    try:
        costs = estimate_costs(plan.setup, config, [CompressionRecipe()])
    except AutocompressError:
        return math.nan
    # The initial design takes logarithms.
    return max(float(costs[0][name]), 1e-9) if costs else math.nan


def _explain_failure(driver: Driver, store: RunStore) -> str:
    limits = driver.limits
    if limits.skipped_configs and store.trial_table().empty:
        lowest = ", ".join(f"{name} = {cost:.6g}" for name, cost in limits.lowest_costs.items())
        return (
            f"none of {limits.skipped_configs} configurations meets the limits on {', '.join(limits.lowest_costs)} "
            f"under any compression setting (lowest: {lowest}); widen them"
        )
    return f"every trial failed; the most frequent reason: {_most_frequent_reason(store)}"


def _most_frequent_reason(store: RunStore) -> str:
    reasons = store.trial_table()["reason"]
    reasons = reasons[reasons != ""]
    return str(reasons.mode().iloc[0]) if len(reasons) else "no trial was run"


#: Settings of ``search`` that only some backends take, as arguments of the same name.
SETTINGS = ("resources", "address")


def make_backend(source: Source) -> Backend:
    """Return the backend that a spec names, not yet open.

    Raises:
        SpecError: The backend is unknown or does not support a setting, or a graphics card is requested on a machine
            without one; the message names the line.
    """
    search = source.spec.search
    try:
        backend = BACKENDS.get(search.backend)
        settings = {name: getattr(search, name) for name in SETTINGS if getattr(search, name) is not None}
        for name in settings.keys() - inspect.signature(backend).parameters.keys():
            others = [other for other in BACKENDS if name in inspect.signature(BACKENDS.get(other)).parameters]
            hint = f"search.backend={others[0]} does" if others else "no backend does"
            raise source.make_error(("search", name), f"the backend {search.backend} does not take {name}; {hint}")
        result: Backend = backend(search.workers, limits=_trial_limits(search), **settings)
    except SpecError:
        raise
    except AutocompressError as error:
        raise source.make_error(("search", "backend"), str(error)) from None
    # Only workers on this machine train on its devices.
    if not result.is_remote:
        try:
            require_device(search.training_device)
        except UsageError as error:
            raise source.make_error(("search", "device"), str(error)) from None
    return result


def _trial_limits(search: SearchSection) -> TrialLimits:
    return TrialLimits(None if search.trial_minutes is None else search.trial_minutes * 60, search.memory)


PLAIN = (Part("none"),)
# Share of the time budget that the baseline without distillation may add to it.
BASELINE_TIME_SHARE = 0.1
# Gap of a teacher's score between validation and test that counts as a leak: at least two points of a share, or a
# twentieth of any other score, and at least four standard errors.
LEAK_GAP = 0.02
RELATIVE_LEAK_GAP = 0.05
LEAK_STANDARD_ERRORS = 4.0


def finish_run(setup: Setup, minutes: float | None, store: RunStore) -> None:
    """Freeze the front on select_val, train the selected candidate without distillation, and read the test split.

    Args:
        setup: Setup of the run.
        minutes: Time budget of the run, in minutes; ``None`` for no limit.
        store: The open store of the run.
    """
    info = store.run_info()
    table = select_timed(store.candidate_table(), info)
    front = list(pareto_front(full_fidelity(table), info.objectives, info.limits)["id"])
    try:
        recommended = select_candidate(table, info).id
    except NoCandidateError:
        recommended = ""
    baselines = _train_baseline(setup, minutes, store, [recommended, *reversed(front)] if recommended else [])
    if baselines:
        # Where the student without distillation is as good, it is the recommended one.
        table = select_timed(store.candidate_table(), info, baselines)
        recommended = select_candidate(table, replace(info, baselines=baselines)).id
    models = {}
    for identity in dict.fromkeys([*front, *filter(None, [recommended]), *baselines]):
        candidate = store.read_candidate(identity)
        content = store.read_checkpoint(candidate.checkpoint)
        models[identity] = (candidate, retrain_checkpoint(candidate, setup) if content is None else content)
    scores, teacher = score_test_split(models, setup)
    store.add_scores(
        {identity: {"test": tested.scores} for identity, tested in scores.items()},
        {identity: {"test": tested.examples} for identity, tested in scores.items() if tested.examples},
    )
    store.update_run_info(
        replace(
            info,
            teacher=_with_test_scores(info.teacher, teacher),
            front=tuple(front),
            recommended=recommended,
            baselines=baselines,
            trivial_baselines=_add_test_scores(setup, info.trivial_baselines),
            test_reads=info.test_reads + 1,
        )
    )


def _add_test_scores(setup: Setup, baselines: Mapping[str, TrivialBaselineInfo]) -> dict[str, TrivialBaselineInfo]:
    """Return the trivial baselines with their scores on test; those that this process cannot fit stay without."""
    if not baselines:
        return {}
    tested, _ = measure_baselines(setup, ["test"])
    return {
        name: replace(baseline, scores={**baseline.scores, **tested[name].scores}) if name in tested else baseline
        for name, baseline in baselines.items()
    }


def _with_test_scores(teacher: TeacherInfo, tested: SplitScores) -> TeacherInfo:
    examples = {**teacher.examples, "test": tested.examples} if tested.examples else teacher.examples
    return replace(teacher, scores={**teacher.scores, "test": tested.scores}, examples=examples)


def detect_validation_leak(info: RunInfo) -> str:
    """Return a notice where the teacher scores so much better on validation than on test that it has seen the former.

    It is common for models that users bring, and makes every candidate seem to lose more than it does. Without such a
    gap in the first score, or without the scores of single examples on both splits, the result is empty.
    """
    _, score = primary_objectives(info.objectives)
    teacher = info.teacher
    before, after = (teacher.score(score.name, split) for split in ("select_val", "test"))
    validation, test = (ExampleScores.unpack(teacher.examples.get(split)) for split in ("select_val", "test"))
    if not is_finite(before) or not is_finite(after) or validation is None or test is None:
        return ""
    gap = before - after if score.is_maximized else after - before
    error = _pool_standard_error(validation, test)
    least = LEAK_GAP if is_share(score) else RELATIVE_LEAK_GAP * abs(after)
    if gap < max(least, LEAK_STANDARD_ERRORS * error):
        return ""
    return (
        f"the teacher's {label_column(score.name)} is {format_value(before, score)} on the validation split and "
        f"{format_value(after, score)} on the test split: unless the test data are of another kind or a later time, it "
        "has probably been trained on the validation data, so every candidate seems to lose more than it does; give "
        "data that it has not seen as val: a folder val beside train and test, or autocompress.Tensors(..., val=...)"
    )


def _pool_standard_error(one: ExampleScores, other: ExampleScores) -> float:
    """Return the standard error of the difference between two scores on different examples, which are equally spread.

    The spread is pooled, because a small split on which every example has the same score shows none.
    """
    pooled = sum(scores.examples * scores.deviation**2 for scores in (one, other)) / (one.examples + other.examples)
    return math.sqrt(pooled * (1 / one.examples + 1 / other.examples))


def _train_baseline(setup: Setup, minutes: float | None, store: RunStore, ids: list[str]) -> dict[str, str]:
    """Train the first distilled one of some candidates again without distillation; return the new id and its label.

    The result is empty where no candidate is distilled, or where the trial would exceed its share of the time budget.
    """
    distilled = [candidate for candidate in map(store.read_candidate, ids) if candidate.config.distill != PLAIN]
    if not distilled:
        return {}
    candidate = distilled[0]
    label = f"{candidate.id} without distillation"
    config = replace(candidate.config, distill=PLAIN)
    stored = store.read_trials()
    # A resumed run may have trained it already.
    for trial in stored:
        if trial.job.role is Role.BASELINE:
            for earlier in store.read_trial_candidates(trial.job.number):
                if earlier.config == config:
                    return {earlier.id: label}
    seconds = sum(trial.seconds or 0.0 for trial in stored if trial.job.training == candidate.config.training)
    # The user set the budget; a comparison is not worth exceeding it by much.
    if minutes is not None and seconds > BASELINE_TIME_SHARE * minutes * 60:
        return {}
    number = max(trial.job.number for trial in stored) + 1
    job = Job(number, config.training, (CompressionRecipe(config.prune, config.quantize),), Role.BASELINE)
    store.add_job(job, None)
    result = TrialRunner(setup)(job)
    store.record_result(result, elapsed=store.run_info().seconds or 0.0, hypervolume=float("nan"))
    return {baseline.id: label for baseline in result.candidates}
