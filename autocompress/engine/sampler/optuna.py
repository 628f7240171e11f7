"""Optuna behind one small class: who proposes the next training, and what it learns from."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from autocompress.core.config import fingerprint
from autocompress.core.knobs import Leaf
from autocompress.engine.sampler.optuna_export import publish
from autocompress.engine.sampler.optuna_storage import Memory
from autocompress.store.run_store import DATABASE, Study

# Points that TPE weighs before it proposes one. More than Optuna's 24 pays in joint spaces: on NAS-Bench-201 the regret
# after 200 evaluations falls by a quarter (tests/engine/test_sampler_regret.py); with 256 it rises again.
EXPECTED = 64


class Proposer:
    """Ask and tell on an Optuna study that is in memory, and on disk in the run's store.

    Args:
        store: The run's.
        name: Name of the study.
        sampler: ``surrogate``, ``tpe``, ``nsga2``, ``nsga3``, ``gp`` or ``random``.
        seed: With the number of each job it seeds the sampler, so a resumed search goes on as it would have.
        directions: ``maximize`` or ``minimize``, one an objective.
        metric_names: What Optuna's own tools call the values.
    """

    def __init__(
        self,
        store: Study,
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
        self._published = -1
        storage = Memory(store)
        with _quiet():
            if storage.get_all_studies():
                self._study = optuna.load_study(study_name=name, storage=storage)
            else:
                self._study = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
                self._study.set_metric_names(list(metric_names))

    def enqueue(self, values: Mapping[str, Leaf]) -> None:
        """Propose ``values`` before anything that is sampled."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def ask(self, number: int, attempt: int = 0) -> Trial:
        """Return an empty trial for job ``number``; further attempts at the same job draw differently."""
        with _quiet():
            # A sampler keeps no state that its study does not hold, so a fresh one per job loses nothing. What was
            # enqueued needs none that thinks.
            name = "random" if self.waiting else self._sampler
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
        """Tell a trial's values, or with ``None`` that it failed; a trial that was told before stays as it is.

        Args:
            trial: The trial or its number in the study.
            values: One an objective.
            constraints: Name to violation; at most 0 is feasible.
            stopped: Whether one without values was given up, not broken: TPE then takes it for a poor one.
        """
        if isinstance(trial, Trial):
            for name, violation in (constraints or {}).items():
                trial.set_constraint(name, violation)
        missing = TrialState.PRUNED if stopped else TrialState.FAIL
        state = TrialState.COMPLETE if values is not None else missing
        with _quiet():
            self._study.tell(trial, values, state=state, skip_if_finished=True)

    def publish(self) -> None:
        """Bring Optuna's own tables in ``study.db`` up to date, for Optuna's tools: nothing here reads them.

        Raises:
            StorageError: No space is left, or the folder cannot be written.
        """
        told = sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))
        if told == self._published:
            return
        with _quiet():
            publish(self._study, self._database)
        self._published = told

    @property
    def waiting(self) -> bool:
        """Whether values that were proposed have not been asked for yet."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def running(self) -> list[int]:
        """Return the numbers of trials that were asked and not told."""
        return [trial.number for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def abandon(self, number: int) -> None:
        """Tell a trial that nobody works on as failed."""
        self.tell(number, None)


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return Optuna's sampler of a name; that of ``surrogate``, which proposes by itself where it can, is TPE."""
    seed %= 2**32
    if name in ("tpe", "surrogate"):
        return TPESampler(multivariate=True, group=True, constant_liar=True, n_ei_candidates=EXPECTED, seed=seed)
    if name == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if name == "nsga2":
        return NSGAIISampler(seed=seed)
    return NSGAIIISampler(seed=seed) if name == "nsga3" else RandomSampler(seed=seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's notices that a feature is experimental: which ones are used is decided here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
