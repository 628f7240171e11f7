"""The commands as Python functions: search, adapt, load, compare."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.core.formatting import format_plural
from autocompress.core.latency_model import LATENCY
from autocompress.errors import (
    RunFolderError,
    SearchFailedError,
    UsageError,
    WorkersError,
    did_you_mean,
)
from autocompress.front import Front as Front, refuse_worker, tables_of
from autocompress.store.run_store import DATABASE

if TYPE_CHECKING:
    from autocompress.core.records import Job, TrialResult
    from autocompress.engine.archive import Progress
    from autocompress.engine.runner import Events, Plan
    from autocompress.export.adaptation import AdaptedArtifact
    from autocompress.export.live_log import LiveLogs
    from autocompress.report.comparison import Comparison
    from autocompress.tasks.module import Data, TeacherModel
    from autocompress.tasks.teacher_outputs import OutputsTask

# Relative to the working folder of the caller.
RUNS = Path("reports")


def search(
    spec: str | Path | None = None,
    *,
    teacher: "TeacherModel | None" = None,
    data: "Data | None" = None,
    trials: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    warm_start: str | Path | None = None,
    log: Sequence[str] = (),
    runs: Path | str = RUNS,
    events: "Events | None" = None,
    command: str = "",
) -> Front:
    """Run a search and return its front, with the page written.

    Call it under ``if __name__ == "__main__":`` in a script: workers are fresh processes that import the script.

    Args:
        spec: Path of a YAML file, or name of a shipped search space such as ``digits``. By default, ``module`` for a
            given teacher, or the space of its data if the teacher is no torch module.
        teacher: A trained ``nn.Module``, for a spec whose task is ``module``; or a fitted object with ``predict_proba``
            or ``predict``, or the path of an ``.onnx`` file, see :func:`autocompress.bring_model`.
        data: Data of the teacher: ``(inputs, targets)`` as tensors, or a task such as ``Images(path=...)``; see
            :func:`autocompress.bring_model`.
        trials: Largest number of trials, instead of the one in the spec.
        minutes: Time limit of the search in minutes, instead of the one in the spec.
        workers: Number of worker processes, instead of the one in the spec; 0 means one per core.
        seed: Seed of the search, instead of the one in the spec.
        name: Name of the run, instead of the one in the spec.
        overrides: Changes of the spec, each as ``dotted.key=value``.
        resume: Whether to continue the run of that name.
        warm_start: An earlier run of the same task and objectives, by its folder or name: the trials of its front are
            copied or repeated, and the others are the first observations of the surrogate. The search space may differ.
        log: Logs that are written while the search runs: ``tensorboard`` (in the run folder), ``mlflow``.
        runs: Folder of all runs.
        events: Callbacks for progress; in a notebook, progress is shown without any.
        command: Command line, for the report.

    Raises:
        SpecError: Something in the spec is wrong; the message names the line.
        UsageError: The teacher does not work on the data, there is neither spec nor teacher, the earlier run does not
            fit this search, or the library of a log is not installed.
        UnfinishedRunError: The same search exists there and has not ended; ``resume`` continues it.
        RunFolderError: The run exists already, or belongs to another spec.
        SearchFailedError: Every trial failed; a page of the stored trials is written.
        KeyboardInterrupt: The user interrupted the search; a page is written, and ``resume`` continues it.
    """
    # Imported here, because reading a finished run needs none of these modules.
    from autocompress.engine.notebook import NotebookProgress, find_display
    from autocompress.engine.notify import EndState, check_notify, run_notify
    from autocompress.engine.preflight import check_run_folder
    from autocompress.engine.runner import Events, add_warm_start, make_plan, run_search
    from autocompress.engine.spec import load_spec
    from autocompress.export.live_log import LiveLogs

    refuse_worker(sys._getframe(1), "search")
    if events is None and (show := find_display()) is not None:
        events = NotebookProgress(show).events
    if (teacher is None) != (data is None):
        raise UsageError("search needs teacher and data together: the model, and what it was trained for")
    if teacher is not None and data is not None:
        from autocompress.tasks.module import bring_model
        from autocompress.tasks.teacher_outputs import OutputsTask

        task = bring_model(teacher, data)
        if spec is None and isinstance(task, OutputsTask):
            # Its students are of the families that fit the data.
            spec, overrides = _find_space(task), ["task=module", *overrides]
        spec = spec or "module"
    if spec is None:
        raise UsageError("search needs a spec, such as 'digits', or a teacher with its data")
    given = {
        "search.trials": trials,
        "search.minutes": minutes,
        "search.workers": workers,
        "search.seed": seed,
        "name": name,
    }
    extra = [f"{key}={value}" for key, value in given.items() if value is not None]
    source = load_spec(spec, [*overrides, *extra])
    check_notify(source)
    folder = Path(runs) / source.spec.name
    earlier = None if warm_start is None else find_run(warm_start, runs)
    # Before the plan, which may start workers.
    check_run_folder(folder, source.spec, resume=resume, command=command)
    logs = LiveLogs(log, folder)
    if log:
        events = _add_logs(events or Events(), logs)
    plan = make_plan(source, warm=True)
    state: EndState = "failed"
    try:
        plan = add_warm_start(plan, earlier, folder)
        _check_export(plan)
        plan = _calibrate_students(plan, events)
        before_freeze = partial(_time_contenders, plan, folder, events)
        run_search(plan, folder, resume=resume, command=command, events=events, before_freeze=before_freeze).close()
        _time_front(plan, folder, events)
        front = Front(folder)
        front.report()
        state = "finished"
    except (KeyboardInterrupt, SearchFailedError, WorkersError) as reason:
        state = "interrupted" if isinstance(reason, KeyboardInterrupt) else "failed"
        # An interrupted or failed search still gets a page of the trials so far.
        _write_partial_page(folder)
        raise
    finally:
        # The plan may have started workers that an error before the search would leave running.
        plan.backend.shutdown()
        logs.close()
        run_notify(source.spec.search.notify, folder, state)
    return front


def _add_logs(events: "Events", logs: "LiveLogs") -> "Events":
    """Return callbacks that also write each result into logs."""

    def record(job: "Job", result: "TrialResult", progress: "Progress") -> None:
        events.result(job, result, progress)
        logs.record(job, result, progress.elapsed, progress.values)

    return replace(events, result=record)


def adapt(
    source: str | Path,
    data: Any,
    *,
    candidate: str | None = None,
    minutes: float = 1.0,
    ordered: bool = False,
    teacher: Any = None,
    learning_rate: float | None = None,
    seed: int = 0,
    runs: Path | str = RUNS,
) -> "AdaptedArtifact":
    """Adapt an exported or searched model to recent data, and write a new, verified version beside the old one.

    Batch-norm statistics and quantization ranges are estimated again on the recent data, and the model is fine-tuned
    under distillation from the teacher of the run. With labels, the best stage is kept, and nothing is written if none
    is better than the old model. Without labels, the teacher's outputs replace them, and the stage that agrees most
    with the teacher is kept.

    Args:
        source: An exported folder, or a run by its folder or name.
        data: Recent examples as the model's inputs: ``(inputs, targets)``, ``(inputs, None)`` without labels, a mapping
            of names to arrays, or the path of an ``.npz`` or ``.safetensors`` file with such names: ``input`` (of
            several, ``input_0``, ``input_1``, …), and the name of each head if there are labels.
        candidate: Id of the candidate of a run; the recommended one by default.
        minutes: Time limit of the training in minutes; 0 only estimates statistics and ranges again.
        ordered: Whether the examples are in the order of time: then the scores are measured on the latest ones.
        teacher: A trained ``nn.Module``, instead of the teacher of the run.
        learning_rate: Peak learning rate of the fine-tuning; a share of the candidate's by default.
        seed: Seed of the parts of the recent data and of the batches.
        runs: Folder of all runs.

    Raises:
        UsageError: The recent data does not fit the model, or has one class.
        NoCandidateError: With labels: no stage is better on the recent data than the old model.
        ArtifactError: The folder is no artifact, or its float model cannot be rebuilt here.
        VerificationError: The exported version does not behave as the adapted model.
    """
    from autocompress.export.adaptation import AdaptOptions, adapt_artifact, adapt_run
    from autocompress.export.folder import MANIFEST

    options = AdaptOptions(minutes, ordered, teacher, learning_rate, seed)
    if (Path(source) / MANIFEST).is_file():
        if candidate is not None:
            raise UsageError(f"{source} is an exported folder; a candidate belongs to a run")
        return adapt_artifact(Path(source), data, options)
    front = load(source, runs)
    return adapt_run(front.folder, candidate or front.pick().id, data, options)


def compare(names: Sequence[str | Path], runs: Path | str = RUNS, *, page: Path | None = None) -> "Comparison":
    """Return several runs of one task on common axes, and write the page if a path is given.

    Args:
        names: Run folders, or their names under ``runs``.
        runs: Folder of all runs.
        page: Path of the page; None writes no page.

    Raises:
        UsageError: There are fewer than two runs, or they searched for different things.
        RunFolderError: There is no such run.
    """
    from autocompress.report.comparison import compare_runs
    from autocompress.report.comparison_page import write_comparison

    comparison = compare_runs(tables_of([load(name, runs) for name in names]))
    if page is not None:
        write_comparison(page, comparison)
    return comparison


def write_site(names: Sequence[str | Path], folder: Path | str, runs: Path | str = RUNS) -> Path:
    """Write the pages of several runs into one folder, with an index that compares them; return the path of the index.

    Args:
        names: Run folders, or their names under ``runs``.
        folder: Folder to write. It needs no server, and any web server can show it.
        runs: Folder of all runs.

    Raises:
        RunFolderError: There is no such run.
        StorageError: No space is left, or the folder cannot be written.
    """
    from autocompress.report.site import SiteRun, name_folders, write_index

    fronts = [load(name, runs) for name in names]
    tables = tables_of(fronts)
    folders = name_folders([one.name for one in tables])
    for front, name in zip(fronts, folders, strict=True):
        front.report(Path(folder) / name)
    picks = [front.pick_or_none() for front in fronts]
    return write_index(Path(folder), [SiteRun(*run) for run in zip(tables, folders, picks, strict=True)])


def load(run: str | Path, runs: Path | str = RUNS) -> Front:
    """Open a run by its folder or by its name under ``reports/``.

    Raises:
        RunFolderError: There is no such run.
    """
    return Front(find_run(run, runs))


def find_run(run: str | Path, runs: Path | str = RUNS) -> Path:
    """Return the folder of a run given as a path or a name.

    Raises:
        RunFolderError: There is no such run; the message suggests the nearest.
    """
    # A path comes before a name below the folder of runs.
    for folder in (Path(run), Path(runs) / run):
        if (folder / DATABASE).is_file():
            return folder
    if Path(run).exists():
        raise RunFolderError(f"{run} is not a run folder: it has no {DATABASE}")
    names = [path.parent.name for path in Path(runs).glob(f"*/{DATABASE}")]
    raise RunFolderError(f"no run '{run}': {did_you_mean(str(run), names)}")


def _find_space(task: "OutputsTask") -> str:
    """Return the shipped search space of the data of a teacher that is no torch module.

    Raises:
        UsageError: There is none.
    """
    from autocompress.engine.spec import list_shipped_spaces

    if task.data_name in list_shipped_spaces():
        return task.data_name
    raise UsageError(
        f"name a search space: students of {task.outputs.source.description} are of a family that fits the data, for "
        "example spec='mine.yaml' with `task: module` and `student: {cnn: {width: [8, 16]}}`"
    )


def _check_export(plan: "Plan") -> None:
    """Check that students of the user's own code can be exported for the target of the search.

    Raises:
        SpecError: A student cannot be exported; the message names the line and the reason.
    """
    if not plan.target.precisions.restricts:
        return
    from autocompress.export.export_check import find_export_error, is_proven

    # One untrained student of each family stands for all of its settings.
    for family in plan.space.sections["student"]:
        reason = "" if is_proven(family, plan.target.name) else find_export_error(plan.task, family, plan.target)
        if reason:
            raise plan.source.make_error(
                ("student", family),
                f"cannot be exported for the target {plan.target.name}: {reason}; change the model, or search with "
                "`target: none`",
            )


def _calibrate_students(plan: "Plan", events: "Events | None") -> "Plan":
    """Return the plan with a latency model that knows students of the search, if latency is searched."""
    if plan.setup.latency is None:
        return plan
    from autocompress.engine.initial_design import RandomTrial
    from autocompress.export.latency_students import STUDENTS, calibrate_students

    if events is not None:
        events.phase(f"calibrating the latency on {plan.target.name}")
    configs = [plan.space.suggest_config(RandomTrial(seed), with_compression=True) for seed in range(STUDENTS)]
    variants = [(training.student, recipe) for training, recipe in configs]
    latency = calibrate_students(plan.task, plan.splits.calibration, variants, plan.target)
    return replace(plan, setup=replace(plan.setup, latency=latency))


def _time_contenders(plan: "Plan", folder: Path, events: "Events | None") -> None:
    """Replace predicted latencies by measured ones before the front is frozen, while no worker trains."""
    if plan.setup.latency is None:
        return
    from autocompress.export.front_latency import time_contenders

    if events is not None:
        events.phase("measuring the latency of the candidates near the front")
    _report_reasons(time_contenders(folder), events)


def _time_front(plan: "Plan", folder: Path, events: "Events | None") -> None:
    """Measure the latency of the front on the target, within the time that the spec allows."""
    seconds = plan.source.spec.search.timing_seconds
    if plan.setup.latency is None and not (plan.target.precisions.restricts and seconds):
        return
    from autocompress.export.front_latency import time_front

    if events is not None:
        events.phase("measuring the latency of the front")
    _report_reasons(time_front(folder, None if plan.setup.latency is not None else seconds), events)
    front = Front(folder)
    table = front.to_pandas()
    missing = int(table[LATENCY].isna().sum()) if LATENCY in table else len(table)
    if missing and events is not None and plan.setup.latency is None:
        events.notice(
            f"{format_plural(missing, 'candidate')} of the front not timed within {seconds:g} s; "
            f"`autocompress bench {shlex.quote(str(folder))}` times all, search.timing_seconds changes the limit"
        )


def _report_reasons(reasons: Mapping[str, str], events: "Events | None") -> None:
    for identity, reason in reasons.items():
        if events is not None:
            events.notice(f"the latency of {identity} cannot be measured: {reason}")


def _write_partial_page(folder: Path) -> None:
    if not (folder / DATABASE).is_file():
        return
    front = Front(folder)
    # Without objectives the search ended before the first trial, so there are no axes to draw.
    if front.info.objectives:
        front.report()
