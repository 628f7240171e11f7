"""Optuna behind one small class that proposes configs and records their results."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from autocompress.core.config import fingerprint
from autocompress.core.knobs import Leaf
from autocompress.engine.sampler.optuna_export import export_study
from autocompress.engine.sampler.optuna_storage import OptunaStorage
from autocompress.store.run_store import DATABASE, RunStore

# Candidates that TPE scores for one proposal. More than Optuna's 24 pays in joint spaces: on NAS-Bench-201 the regret
# after 200 evaluations falls by a quarter (tests/engine/test_sampler_regret.py); with 256 it rises again.
TPE_CANDIDATES = 64


class OptunaSampler:
    """Ask and tell on an Optuna study that is in memory, and on disk in the run's store.

    Args:
        store: The open store of the run.
        name: Name of the study.
        sampler: ``surrogate``, ``tpe``, ``nsga2``, ``nsga3``, ``gp`` or ``random``.
        seed: Seed of the sampler, together with the number of each job, so a resumed search repeats its draws.
        directions: ``maximize`` or ``minimize`` for each objective.
        metric_names: Name of each objective for Optuna's own tools.
    """

    def __init__(
        self,
        store: RunStore,
        name: str,
        sampler: str,
        seed: int,
        directions: Sequence[Literal["maximize", "minimize"]],
        metric_names: Sequence[str],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler = sampler
        self._seed = seed
        self._database = store.folder / DATABASE
        self._exported_trials = -1
        storage = OptunaStorage(store)
        with _ignore_experimental_warnings():
            if storage.get_all_studies():
                self._study = optuna.load_study(study_name=name, storage=storage)
            else:
                self._study = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
                self._study.set_metric_names(list(metric_names))

    def enqueue(self, values: Mapping[str, Leaf]) -> None:
        """Enqueue sampler values; the next trial takes them before anything is sampled."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def ask(self, number: int, attempt: int = 0) -> Trial:
        """Return an empty trial for job ``number``; further attempts at the same job draw differently."""
        with _ignore_experimental_warnings():
            # A sampler keeps no state outside its study, so a fresh one per job loses nothing. An enqueued trial needs
            # none, and the random one costs least.
            name = "random" if self.has_enqueued_trial else self._sampler
            self._study.sampler = make_sampler(name, int(fingerprint([self._seed, number, attempt]), 16))
            return self._study.ask()

    def tell(
        self,
        trial: int | Trial,
        values: Sequence[float] | None,
        constraints: Mapping[str, float] | None = None,
        *,
        stopped: bool = False,
    ) -> None:
        """Record a trial's values, or its failure; a trial that is finished already stays as it is.

        Args:
            trial: The trial or its number in the study.
            values: One value for each objective; ``None`` where the trial failed or was stopped early.
            constraints: Violation of each constraint by name; at most 0 is feasible.
            stopped: Whether a trial without values was stopped early and did not fail; TPE learns that it was poor.
        """
        if isinstance(trial, Trial):
            for name, violation in (constraints or {}).items():
                trial.set_constraint(name, violation)
        missing = TrialState.PRUNED if stopped else TrialState.FAIL
        state = TrialState.COMPLETE if values is not None else missing
        with _ignore_experimental_warnings():
            self._study.tell(trial, values, state=state, skip_if_finished=True)

    def export_tables(self) -> None:
        """Bring Optuna's own tables in ``study.db`` up to date, for Optuna's tools; autocompress does not read them.

        Raises:
            StorageError: No space is left, or the folder cannot be written.
        """
        finished = sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))
        if finished == self._exported_trials:
            return
        with _ignore_experimental_warnings():
            export_study(self._study, self._database)
        self._exported_trials = finished

    @property
    def has_enqueued_trial(self) -> bool:
        """Whether enqueued values have not become a trial yet."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def running_trials(self) -> list[int]:
        """Return the numbers of the trials without a result."""
        return [trial.number for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def fail_trial(self, number: int) -> None:
        """Record a trial whose job was lost as failed."""
        self.tell(number, None)


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return Optuna's sampler of a name; for ``surrogate``, which falls back on it where it cannot predict, TPE."""
    seed %= 2**32
    if name in ("tpe", "surrogate"):
        return TPESampler(multivariate=True, group=True, constant_liar=True, n_ei_candidates=TPE_CANDIDATES, seed=seed)
    if name == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if name == "nsga2":
        return NSGAIISampler(seed=seed)
    return NSGAIIISampler(seed=seed) if name == "nsga3" else RandomSampler(seed=seed)


@contextmanager
def _ignore_experimental_warnings() -> Iterator[None]:
    """Silence Optuna's warnings of experimental features: this module uses them knowingly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
