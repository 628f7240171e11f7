"""What a run came to: its candidates, its front, and what can be made of them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from autocompress.analysis.confirmation import as_table, confirmed, without_repeats
from autocompress.analysis.latency import timed, with_latency
from autocompress.analysis.pareto import full_fidelity, pareto_front
from autocompress.analysis.query import where
from autocompress.analysis.selection import Pick, pick
from autocompress.core.atomic import write_atomic
from autocompress.core.run_info import RunInfo
from autocompress.errors import NoCandidateError, UsageError
from autocompress.store.run_store import RunStore

if TYPE_CHECKING:
    from autocompress.report.comparison import RunTables

_NO_BOUNDS: Mapping[str, float] = MappingProxyType({})


class Front:
    """The outcome of one run: its candidates, its front, and what can be made of them.

    Args:
        folder: The run folder.

    Attributes:
        folder: The run folder.
        candidates: One row a candidate: its id, every knob by its dotted name, scores (``accuracy_search`` on
            search_val, ``accuracy`` on select_val, ``accuracy_test``), costs, and whether its training is ``complete``.
        trials: One row a trial: its state, seconds, and the reason where it failed.
        info: Description of the run: objectives with their bounds, limits, teacher, splits, environment.

    Raises:
        RunFolderError: The folder is not a run.

    Example:
        >>> front = Front(Path("reports/digits"))  # doctest: +SKIP
        >>> front.pick(max={"effective_flops": 2e6}).id  # doctest: +SKIP
        't12c7'
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read()

    def _read(self) -> None:
        with RunStore.read(self.folder) as store:
            self.info: RunInfo = with_latency(store.run_info())
            self.candidates: pd.DataFrame = timed(store.candidates(), self.info)
            self.trials: pd.DataFrame = store.trials()

    @property
    def meta(self) -> dict[str, Any]:
        """The description of the run as JSON values, by the names under which a run folder stores them."""
        return self.info.to_json()

    def to_pandas(self) -> pd.DataFrame:
        """Return the front, the cheapest candidate first; plain metric names are select_val scores.

        Of a search that is under way it is the front so far; limits of the search hold.
        """
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
        return where(self.to_pandas(), expression)

    def pick(
        self,
        *,
        max: Mapping[str, float] = _NO_BOUNDS,
        min: Mapping[str, float] = _NO_BOUNDS,
        prefer: str | None = None,
        knee: bool = False,
        candidate: str | None = None,
    ) -> Pick:
        """Return the best candidate for what is asked; without arguments, the recommended one.

        Args:
            max: Largest value allowed, by column: ``{"effective_flops": 2e6}``.
            min: Smallest value allowed, by column.
            prefer: The objective to be best at among what is allowed.
            knee: Take the bend of the front.
            candidate: Take this one.

        Raises:
            NoCandidateError: Nothing satisfies the limits; the message names the nearest.
            UnknownNameError: A column, an objective or an id that does not exist; the message suggests the nearest.
            UsageError: What is asked contradicts itself, or is about the test split.
        """
        if self.candidates.empty:
            raise NoCandidateError(f"{self.folder} holds no candidates yet")
        return pick(self.candidates, self.info, max=max, min=min, prefer=prefer, knee=knee, candidate=candidate)

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
        """Repeat the top candidates from scratch with several seeds, and return what :meth:`confirmed` then says.

        The pick is repeated, and those beside it on the front: by turns the next cheaper and the next better one. Each
        repeat is the whole recipe with another seed (training, cut, recovery, quantization); test is read for it.
        What was done before is kept and not done again. Call it under ``if __name__ == "__main__":``.

        Args:
            top: How many candidates.
            seeds: How often each is repeated.
            candidates: These instead, by their ids.
            workers: Worker processes, instead of the run's own; 0 takes one per core.
            backend: Where to train, instead of the run's own.
            on_progress: Told the trainings that are done, and all of them.

        Raises:
            UsageError: The search has not ended, or a candidate cannot be repeated.
            SearchFailedError: Every repeat failed.
        """
        from autocompress.engine.confirm import confirm_candidates

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
            self._read()
        self.report()
        return self.confirmed()

    def confirmed(self) -> pd.DataFrame:
        """Return one row for each candidate that was repeated: its means over seeds with their 95% intervals.

        Columns: ``id``, ``cost``, ``searched`` (its score in the search, on select_val), ``seeds``, ``failed``, and
        for each of ``select_val``, ``test`` and ``gap`` (test minus select_val) the mean, ``_low`` and ``_high``.
        """
        found = confirmed(self.candidates, self.trials, self.info) if self.info.objectives else []
        return as_table(found)

    def report(self, out: Path | str | None = None) -> Path:
        """Write the page with its CSV, JSON and Parquet twins; return the page's path.

        Args:
            out: The folder to write to; the run folder by default.

        Raises:
            StorageError: No space is left, or the folder cannot be written.
        """
        from autocompress.report import write_tables
        from autocompress.report.page import PAGE

        folder = self.folder if out is None else Path(out)
        write_tables(folder, self.candidates, self.trials, self.to_pandas())
        write_atomic(folder / PAGE, self.page().encode("utf-8", "backslashreplace"))
        return folder / PAGE

    def refer(self, other: "Front") -> None:
        """Let the page draw another run's hypervolume beside this one's: that of a random search, say.

        What is drawn of it is kept in this run.

        Args:
            other: A run of the same task, objectives and data.

        Raises:
            UsageError: The two do not compare, or nothing is known of the other one.
        """
        from autocompress.report.reference import reference_of

        reference = reference_of(*tables_of([self, other]))
        with RunStore.open(self.folder) as store:
            store.update_run_info(replace(store.run_info(), reference=reference))
        self._read()

    def page(self, *, live: bool = False) -> str:
        """Return the page without writing anything.

        Args:
            live: Let it ask the server that sends it for newer ones.
        """
        from autocompress.report.page import render_page

        return render_page(self.folder, self.candidates, self.trials, self.info, self._picked(), live=live)

    def _picked(self) -> Pick | None:
        with suppress(NoCandidateError):  # The page says so itself.
            return self.pick() if self.info.objectives else None
        return None

    def export(self, candidate: str | None = None, *, verify: bool = True) -> Path:
        """Write one candidate as a deployable folder; return its path.

        Args:
            candidate: Its id; the recommended one by default.
            verify: Run the exported file on the test split and compare.

        Raises:
            VerificationError: The exported file does not behave as the searched candidate.
            NoCandidateError: None was named, and none can be recommended.
            UnknownNameError: There is no such candidate.
            ArtifactError: The model cannot be exported, or something else than an artifact is in the place.
            StorageError: No space is left, or the folder cannot be written.
        """
        from autocompress.export.candidate import export_candidate

        return export_candidate(self.folder, candidate or self.pick().id, verify=verify).folder

    def bench(
        self,
        candidates: Sequence[str] = (),
        *,
        batch: int = 1,
        threads: int = 1,
        seconds: float = 0.3,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, str]:
        """Time the front, the pick and the teacher on this machine, as they would be exported.

        The medians are kept in the run as ``latency_ms``: a column of the candidates, an axis of the page, and a name
        for limits. It is no objective of the search, which counts costs that do not depend on a machine.

        Args:
            candidates: These instead, by their ids.
            batch: Examples in each run.
            threads: Threads of onnxruntime.
            seconds: How long to measure each.
            on_progress: Told the models that are done, and all of them.

        Returns:
            Why some could not be timed, by their ids.

        Raises:
            UsageError: There is no such candidate, or its training was not at its end.
            VerificationError: A candidate is not here what the search stored.
        """
        from autocompress.export.front_latency import time_run

        picked = self._picked()
        chosen = candidates or [*self.to_pandas()["id"], *([] if picked is None else [picked.id])]
        try:
            return time_run(self.folder, chosen, batch=batch, threads=threads, seconds=seconds, on_progress=on_progress)
        finally:
            self._read()
            self.report()

    def __len__(self) -> int:
        return len(self.to_pandas())

    def __repr__(self) -> str:
        return f"Front({str(self.folder)!r}: {len(self)} of {len(self.candidates)} candidates)"

    def figure(self) -> Any:
        """Return the front as a plotly figure, as the page has it: for a notebook, or to be drawn on."""
        from autocompress.report.figures import front_figure

        repeated = confirmed(self.candidates, self.trials, self.info)
        own = without_repeats(self.candidates)
        return front_figure(own, self.to_pandas(), self.info, self._picked(), repeated)

    def to_mlflow(self, experiment: str = "autocompress", tracking_uri: str | None = None) -> str:
        """Log the run to MLflow: one run with the page and the tables, and below it one for each trial and candidate.

        Needs the extra ``mlflow``. Logged once more, it is logged anew.

        Args:
            experiment: Name of the experiment; made if there is none.
            tracking_uri: Where to log; MLflow's own setting by default.

        Returns:
            The id of the run in MLflow.

        Raises:
            UsageError: MLflow is not installed.
        """
        from autocompress.export.mlflow_export import log_run

        picked = self._picked()
        chosen = "" if picked is None else picked.id
        folder = self.report().parent
        return log_run(folder, self.info, self.trials, self.to_pandas(), chosen, experiment, tracking_uri)

    def _repr_html_(self) -> str:
        from autocompress.report.notebook import front_html

        return front_html(self.to_pandas(), self.info, self._picked(), repr(self))


def tables_of(fronts: Sequence[Front]) -> "list[RunTables]":
    """Return the tables of runs under names that tell them apart."""
    from autocompress.report.comparison import RunTables, distinct_names

    names = distinct_names([front.folder for front in fronts])
    return [
        RunTables(name, front.candidates, front.trials, front.info) for name, front in zip(names, fronts, strict=True)
    ]


def refuse_worker(caller: FrameType, call: str) -> None:
    """Refuse a call that a worker makes because it imports the user's script anew.

    Raises:
        UsageError: The caller is such a script.
    """
    if caller.f_globals.get("__name__") == "__mp_main__":
        raise UsageError(f'a worker imports this script anew: call {call} under `if __name__ == "__main__":`')
