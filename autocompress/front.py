"""A run as a Python object: its candidates, its front, and methods that select, report, export and measure."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from autocompress.analysis.confirmation import summarize_repeats, tabulate_repeats, without_repeats
from autocompress.analysis.latency import add_latency_column, with_latency
from autocompress.analysis.levels import select_levels
from autocompress.analysis.pareto import full_fidelity, numeric_column, pareto_front, primary_objectives
from autocompress.analysis.query import filter_rows
from autocompress.analysis.selection import (
    Pick,
    Quantities,
    check_max_drop,
    find_row,
    select_candidate,
    select_deployable,
    select_where,
)
from autocompress.core.atomic import write_atomic
from autocompress.core.run_info import ObjectiveSpec, RunInfo
from autocompress.errors import NoCandidateError, UnknownNameError, UsageError, did_you_mean
from autocompress.store.control import cancel_pause, find_driver, request_pause
from autocompress.store.run_store import RunStore

if TYPE_CHECKING:
    from autocompress.analysis.cascade import CascadeSearch
    from autocompress.report.comparison import RunTables
    from autocompress.report.notebook import TrialView

# A default argument is shared by all calls, so it is read-only.
_NO_BOUNDS: Quantities = MappingProxyType({})

# Candidates that cascades are made of: 66 pairs.
CASCADE_MODELS = 12


class Front:
    """One run: its candidates, its front, and methods that select, report, export and measure.

    Args:
        folder: The run folder.

    Attributes:
        folder: The run folder.
        candidates: One row per candidate: its id, hyperparameters by their dotted names, scores (``accuracy_search`` on
            search_val, ``accuracy`` on select_val, ``accuracy_test``), costs, and whether its training is ``complete``.
        trials: One row per trial: its state, seconds, and the reason of a failure.
        info: Description of the run: objectives with their bounds, limits, teacher, splits, environment.

    Raises:
        RunFolderError: The folder is not a run.

    Example:
        >>> front = Front(Path("reports/digits"))  # doctest: +SKIP
        >>> front.pick(max={"effective_flops": 2e6}).id  # doctest: +SKIP
        't12c7'
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._read_run()

    def _read_run(self) -> None:
        with RunStore.read(self.folder) as store:
            # A measured latency joins the costs, so that limits and the page treat it like any other.
            self.info: RunInfo = with_latency(store.run_info())
            self.candidates: pd.DataFrame = add_latency_column(store.candidate_table(), self.info)
            self.trials: pd.DataFrame = store.trial_table()

    @property
    def meta(self) -> dict[str, Any]:
        """The description of the run as JSON values, by the names under which a run folder stores them."""
        return self.info.to_json()

    def to_pandas(self) -> pd.DataFrame:
        """Return the front, the cheapest candidate first; plain metric names are select_val scores.

        While a search is running, it is the front so far. The limits of the search hold.
        """
        # A run that ended before its teacher was ready has no objectives, and so no front.
        if self.candidates.empty or not self.info.objectives:
            return self.candidates
        return pareto_front(full_fidelity(self.candidates), self.info.objectives, self.info.limits)

    def to_parquet(self, path: Path | str) -> Path:
        """Write every candidate as Parquet, and return the path; nested columns become JSON texts.

        Raises:
            StorageError: No space is left, or the folder cannot be written.
        """
        from autocompress.report.data_files import to_parquet

        write_atomic(Path(path), to_parquet(self.candidates))
        return Path(path)

    def where(self, expression: str) -> pd.DataFrame:
        """Return the front's rows for which an expression holds, such as ``accuracy >= 0.95``.

        Raises:
            UnknownNameError: A name is no column; the message suggests the nearest.
            UsageError: The expression is not a plain comparison of columns.
        """
        return filter_rows(self.to_pandas(), expression)

    def pick(
        self,
        *,
        max: Quantities = _NO_BOUNDS,
        min: Quantities = _NO_BOUNDS,
        prefer: str | None = None,
        knee: bool = False,
        candidate: str | None = None,
        simulated: bool = False,
        guarantee: float | None = None,
        max_drop: float | None = None,
        where: str | None = None,
    ) -> Pick:
        """Return the best candidate under the given limits; without arguments, the recommended one.

        The recommended candidate is the cheapest whose loss against the teacher is certified to be at most
        ``pick.max_drop`` at the confidence ``pick.confidence`` of the search space.

        Args:
            max: Largest value allowed, by column: ``{"effective_flops": 2e6}`` or ``{"bytes": "30 KB"}``.
            min: Smallest value allowed, by column.
            prefer: Name of the objective to optimize.
            knee: Whether to select the knee of the front.
            candidate: Id of the candidate to select.
            simulated: Whether candidates without kernels on the target may be selected.
            guarantee: Confidence, such as 0.9, at which the cheapest candidate must be certified by fixed-sequence
                testing along the front: stricter than the default, because all tests together hold at it.
            max_drop: Allowed loss against the teacher, instead of that of the search space.
            where: Filter of the candidates that may be selected, in the grammar of :meth:`where`:
                ``"bytes <= 30 KB and not structured"``. The rule that selects one of them stays the same.

        Raises:
            NoCandidateError: Nothing satisfies the limits or can be guaranteed; the message names the nearest.
            UnknownNameError: A column, an objective or an id that does not exist; the message suggests the nearest.
            UsageError: The arguments contradict each other, or name a score on the test split.
        """
        if self.candidates.empty:
            raise NoCandidateError(f"{self.folder} holds no candidates yet")
        info = self.info if max_drop is None else replace(self.info, max_drop=check_max_drop(max_drop))
        rules: dict[str, Any] = {
            "max": max,
            "min": min,
            "prefer": prefer,
            "knee": knee,
            "simulated": simulated,
            "guarantee": guarantee,
        }
        if where is None:
            return select_candidate(self.candidates, info, candidate=candidate, **rules)
        if candidate is not None:
            raise UsageError("a candidate id cannot be combined with a filter")
        return select_where(self.candidates, info, where, **rules)

    def pause(self) -> None:
        """Let a search that runs in another process pause: it starts no more jobs, and its clock stands still.

        Jobs that are running end first; a trial pauses at its next rung.

        Raises:
            UsageError: The search has ended.
        """
        request_pause(self.folder)

    def resume(self) -> None:
        """Let a paused search go on.

        Raises:
            UsageError: The search is not paused.
        """
        if not cancel_pause(self.folder):
            raise UsageError(f"{self.folder} is not paused")

    @property
    def is_running(self) -> bool:
        """Whether a process on this machine runs the search; it may be paused."""
        return not self.info.is_finished and find_driver(self.folder) is not None

    def confirm(
        self,
        top: int = 5,
        seeds: int = 5,
        *,
        candidates: Sequence[str] = (),
        workers: int | None = None,
        backend: str | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> pd.DataFrame:
        """Repeat the best candidates from scratch with several seeds, and return :meth:`confirmed`.

        Repeated are the pick and its neighbours on the front, alternately the next cheaper and the next better one. A
        repeat is the whole recipe with another seed (training, pruning, fine-tuning, quantization), scored on test.
        Earlier repeats are kept and not executed again. Call it under ``if __name__ == "__main__":``.

        Args:
            top: Number of candidates.
            seeds: Number of repeats of each candidate.
            candidates: Ids of the candidates, instead of the selection above.
            workers: Number of worker processes, instead of that of the run; 0 means one per core.
            backend: Name of the backend, instead of that of the run.
            on_progress: Callback with the number of finished trials and of all trials.

        Raises:
            UsageError: The search has not ended, or a candidate cannot be repeated.
            SearchFailedError: Every repeat failed.
        """
        # Imported here, because it loads torch.
        from autocompress.engine.confirm import confirm_candidates

        # The module of the caller tells whether a worker is importing the user's script.
        refuse_worker(sys._getframe(1), "confirm")
        try:
            confirm_candidates(
                self.folder,
                top,
                seeds,
                candidates=candidates,
                workers=workers,
                backend=backend,
                on_progress=on_progress,
            )
        finally:
            # Also after an interruption: finished repeats are stored.
            self._read_run()
        self.report()
        return self.confirmed()

    def confirmed(self) -> pd.DataFrame:
        """Return one row per repeated candidate: its means over seeds with 95% intervals.

        Columns: ``id``, ``cost``, ``searched`` (its score in the search, on select_val), ``seeds``, ``failed``, and
        for each of ``select_val``, ``test`` and ``gap`` (test minus select_val) the mean, ``_low`` and ``_high``.
        """
        if not self.info.objectives:
            return tabulate_repeats([])
        return tabulate_repeats(summarize_repeats(self.candidates, self.trials, self.info))

    def report(self, out: Path | str | None = None) -> Path:
        """Write the page and the same data as CSV, JSON and Parquet; return the path of the page.

        Args:
            out: Output folder; the run folder by default.

        Raises:
            StorageError: No space is left, or the folder cannot be written.
        """
        # Imported here, because reading and selecting need none of the page.
        from autocompress.report.data_files import write_tables
        from autocompress.report.page import PAGE

        folder = self.folder if out is None else Path(out)
        write_tables(folder, self.candidates, self.trials, self.to_pandas())
        # A name that is no valid Unicode, such as that of an undecodable path, must not prevent the page.
        write_atomic(folder / PAGE, self.page().encode("utf-8", "backslashreplace"))
        return folder / PAGE

    def refer(self, other: "Front") -> None:
        """Draw the hypervolume of another run, such as a random search, on the page of this run.

        The curve of the other run is stored in this run.

        Args:
            other: A run of the same task, objectives and data.

        Raises:
            UsageError: The runs are not comparable, or the other one has no hypervolume.
        """
        from autocompress.report.summary import reference_of

        reference = reference_of(*tables_of([self, other]))
        with RunStore.open(self.folder) as store:
            store.update_run_info(replace(store.run_info(), reference=reference))
        self._read_run()

    def page(self, *, live: bool = False) -> str:
        """Return the page as HTML without writing a file.

        Args:
            live: Whether the page asks its server for newer versions.
        """
        from autocompress.report.page import render_page

        return render_page(self.folder, self.candidates, self.trials, self.info, self.pick_or_none(), live=live)

    def pick_or_none(self) -> Pick | None:
        """Return the recommended candidate; None where none can be recommended, which the page explains."""
        with suppress(NoCandidateError):
            return self.pick() if self.info.objectives else None
        return None

    def export(
        self,
        candidate: str | None = None,
        *,
        verify: bool = True,
        thresholds: Sequence[str] = (),
        integer: bool = False,
    ) -> Path:
        """Export one candidate as a deployable folder and return its path.

        Args:
            candidate: Id of the candidate; the recommended one by default.
            verify: Whether to run the exported model on the test split and compare it with the stored scores.
            thresholds: Thresholds of heads of two classes: ``auto`` or a number, or ``HEAD=auto`` and ``HEAD=0.3``.
            integer: Whether every layer that can run on integer kernels does, for a processor where these are faster
                than on this one; by default the graph that is the fastest here.

        Raises:
            UsageError: A threshold cannot be used.
            VerificationError: The exported model does not behave as the searched candidate.
            NoCandidateError: No candidate is named, and none can be recommended.
            UnknownNameError: There is no such candidate.
            ArtifactError: The model cannot be exported, or the path exists and is not an artifact.
            StorageError: No space is left, or the folder cannot be written.
        """
        from autocompress.export.candidate import export_candidate

        identity = candidate or self.pick().id
        return export_candidate(self.folder, identity, verify=verify, thresholds=thresholds, integer=integer).folder

    def export_levels(
        self,
        candidates: Sequence[str] = (),
        *,
        count: int = 4,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        """Export several candidates that a service switches between, and return their folders, the cheapest first.

        Args:
            candidates: Ids of the candidates; by default the pick, the best one, the cheapest one, and others between.
            count: Largest number of candidates that are chosen by default.
            on_progress: Callback with the number of exported candidates and of all.

        Raises:
            NoCandidateError: The run has no front, or every candidate is simulated.
            VerificationError: An exported model does not behave as the searched candidate.
        """
        from autocompress.export.origin import export_levels

        return export_levels(self.folder, candidates or self._select_levels(count), on_progress)

    def cascade(
        self,
        candidates: Sequence[str] = (),
        *,
        simulated: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "CascadeSearch":
        """Compare confidence cascades of two candidates with single candidates of equal expected cost.

        A small candidate answers where it is confident, and a larger one answers the other examples. Pair and threshold
        are chosen on select_val; the chosen cascade is scored on test. The result is written to ``cascade.json`` in the
        run folder, and the page shows it.

        Args:
            candidates: Ids of the candidates; by default a dozen of the front.
            simulated: Whether candidates without kernels on the target may be chosen by default.
            on_progress: Callback with the number of rebuilt candidates and of all.

        Raises:
            UsageError: The search has not ended, or a head has no confidence.
            NoCandidateError: There are fewer than two candidates.
        """
        from autocompress.export.cascade import search_cascades

        chosen = candidates or self._select_levels(CASCADE_MODELS, simulated=simulated)
        search = search_cascades(self.folder, chosen, on_progress)
        self._read_run()
        self.report()
        return search

    def _select_levels(self, count: int, *, simulated: bool = False) -> list[str]:
        front = self.to_pandas()
        if front.empty or not self.info.objectives:
            raise NoCandidateError(f"{self.folder} has no front yet")
        rows = front if simulated else select_deployable(front, self.info)
        return select_levels(rows, self.info.objectives, count, self.info.recommended)

    def bench(
        self,
        candidates: Sequence[str] = (),
        *,
        batch: int = 1,
        threads: int = 1,
        seconds: float = 0.3,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, str]:
        """Measure the latency of the front, the pick and the teacher on this machine, as exported models.

        The medians are stored in the run as ``latency_ms``: a column of the candidates, an axis of the page, and a name
        for limits. A search for a target times its front itself when it has ended; this measures again, and longer.

        Args:
            candidates: Ids of the candidates, instead of the selection above.
            batch: Number of examples per run.
            threads: Number of threads of onnxruntime.
            seconds: Seconds to measure each model.
            on_progress: Callback with the number of measured models and of all models.

        Returns:
            Reasons why models could not be measured, by id.

        Raises:
            UsageError: There is no such candidate, or its training is not complete.
            VerificationError: A rebuilt candidate does not have its stored scores.
        """
        from autocompress.export.front_latency import TimingOptions, time_run

        picked = self.pick_or_none()
        chosen = candidates or [*self.to_pandas()["id"], *([] if picked is None else [picked.id])]
        try:
            return time_run(self.folder, chosen, TimingOptions(batch, threads, seconds), on_progress)
        finally:
            self._read_run()
            self.report()

    def __len__(self) -> int:
        return len(self.to_pandas())

    def __repr__(self) -> str:
        return f"Front({str(self.folder)!r}: {len(self)} of {len(self.candidates)} candidates)"

    def figure(self) -> Any:
        """Return the front as the plotly figure of the page; :meth:`plot` takes other axes."""
        return self.plot()

    def plot(self, score: str | None = None, cost: str | None = None) -> Any:
        """Return a front as a plotly figure: on the axes of the search, or on others.

        Args:
            score: Name of the vertical axis; the first score of the search by default.
            cost: Name of the horizontal axis; the first cost of the search by default.

        Raises:
            UnknownNameError: No such score or cost was measured; the message suggests the nearest.
        """
        from autocompress.report.figures import front_figure

        objectives = tuple(self._choose_axis(kind, name) for kind, name in (("score", score), ("cost", cost)))
        # The declared order stays where no axis is named: it decides nothing, but further objectives do.
        info = self.info if score is cost is None else replace(self.info, objectives=objectives)
        repeated = summarize_repeats(self.candidates, self.trials, info)
        own = without_repeats(self.candidates)
        front = pareto_front(full_fidelity(self.candidates), info.objectives, info.limits)
        return front_figure(own, front, info, self.pick_or_none(), repeated)

    def _choose_axis(self, kind: str, name: str | None) -> ObjectiveSpec:
        if name is None:
            return primary_objectives(self.info.objectives)[kind == "score"]
        measured = {key: record for key, record in self.info.measured.items() if record.kind == kind}
        if name not in measured:
            raise UnknownNameError(f"unknown {kind} '{name}': {did_you_mean(name, measured)}")
        axis = measured[name]
        if axis.bounds is not None:
            return axis
        # The knee needs both ends of an axis, which the search declares for its objectives only.
        values = numeric_column(self.candidates, name)
        low, high = float(values.min()), float(values.max())
        if kind == "cost":
            low = max(low, 1e-9)
        high = high if high > low else low + 1.0
        return replace(axis, bounds=(low, high) if axis.is_maximized else (high, low))

    def trial(self, number: int) -> "TrialView":
        """Return one trial, which a notebook shows with its state and configuration.

        Raises:
            UnknownNameError: There is no such trial.
        """
        from autocompress.report.notebook import view_trial

        return view_trial(number, self.trials, self.candidates)

    def compare(self, first: str, second: str) -> pd.DataFrame:
        """Return what differs between two candidates: one row for each hyperparameter, score and cost.

        Columns are the two ids, and ``difference``, second minus first, where both are numbers.

        Raises:
            UnknownNameError: There is no such candidate; the message suggests the nearest.
        """
        rows = {name: find_row(self.candidates, name) for name in (first, second)}
        names = [name for name in self.candidates.columns if name not in ("id", "trial", "seed", "config", "details")]
        table = pd.DataFrame({name: [row[column] for column in names] for name, row in rows.items()}, index=names)
        differs = [not _is_equal(one, other) for one, other in zip(table[first], table[second], strict=True)]
        table = table[differs]
        numbers = table.apply(pd.to_numeric, errors="coerce")
        return table.assign(difference=numbers[second] - numbers[first])

    def to_mlflow(self, experiment: str = "autocompress", tracking_uri: str | None = None) -> str:
        """Log the run to MLflow: one run with the page and the tables, and nested runs for trials and candidates.

        Needs the extra ``mlflow``. Every call logs a new run.

        Args:
            experiment: Name of the experiment; made if there is none.
            tracking_uri: URI of the tracking server; the default of MLflow if None.

        Returns:
            The id of the run in MLflow.

        Raises:
            UsageError: MLflow is not installed.
        """
        from autocompress.export.mlflow_export import log_run

        picked = self.pick_or_none()
        chosen = "" if picked is None else picked.id
        # The page is written first, because it is logged as an artifact.
        folder = self.report().parent
        return log_run(folder, self.info, self.trials, self.to_pandas(), chosen, experiment, tracking_uri)

    def _repr_html_(self) -> str:
        from autocompress.report.notebook import front_html

        return front_html(self.to_pandas(), self.info, self.pick_or_none(), repr(self))


def _is_equal(one: object, other: object) -> bool:
    # NaN, a missing value, differs from itself.
    return one == other or (one != one and other != other)


def tables_of(fronts: Sequence[Front]) -> "list[RunTables]":
    """Return the tables of runs under distinct names."""
    from autocompress.report.comparison import RunTables, distinct_names

    # Runs in different folders may have the same name.
    names = distinct_names([front.folder for front in fronts])
    return [
        RunTables(name, front.candidates, front.trials, front.info) for name, front in zip(names, fronts, strict=True)
    ]


def refuse_worker(caller: FrameType, call: str) -> None:
    """Raise an error in a worker that imports the user's script and runs into a call of the main process.

    Raises:
        UsageError: The caller is a script imported by a worker.
    """
    # multiprocessing imports the main script under this name in a new process.
    if caller.f_globals.get("__name__") == "__mp_main__":
        raise UsageError(f'a worker imports this script anew: call {call} under `if __name__ == "__main__":`')
