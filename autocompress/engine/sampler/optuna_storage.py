"""Optuna's storage, in memory and journaled in the run's own store."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import JsonValue

from autocompress.store.run_store import RunStore

T = TypeVar("T")


class OptunaStorage(InMemoryStorage):
    """Optuna's storage in memory, whose changes are written in the transactions of the run's store.

    The sampler's part of a job is on disk if and only if the job is, and needs no write of its own. (Optuna's own
    tables took some thirty transactions for one trial, and each proposal read them all again; its journal stores the
    domain of every hyperparameter anew for every trial, which was a third of a driver's memory.)

    Args:
        store: The open store.
    """

    def __init__(self, store: RunStore) -> None:
        super().__init__()
        # One object and its text for all equal distributions.
        self._distributions: dict[BaseDistribution, tuple[BaseDistribution, str]] = {}
        self._store: RunStore | None = None
        # By the first word of a journal entry; the words are stored.
        replays: Mapping[str, Callable[..., None]] = {
            "study": self._replay_study,
            "about": self.set_study_system_attr,
            "trial": self._replay_trial,
            "value": self._replay_param,
            "state": self._replay_state,
            "beside": self.set_trial_system_attr,
        }
        for entry in store.read_notes():
            # The lists that `_write_entry` wrote.
            assert isinstance(entry, list)
            name, *arguments = entry
            replays[str(name)](*arguments)
        # Only from here on are changes written.
        self._store = store

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study; see Optuna's base class for this method and the following."""
        study_id = super().create_new_study(directions, study_name)
        self._write_entry("study", [int(direction) for direction in directions], study_name)
        return study_id

    # Optuna's own type of these values is private.
    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of a study."""
        value = _round_trip(value)
        super().set_study_system_attr(study_id, key, value)
        self._write_entry("about", study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; of a template, only state, attributes and start are kept, which is all of an enqueued one."""
        trial_id = super().create_new_trial(study_id, template_trial)
        trial = self.get_trial(trial_id)
        trial.system_attrs = _round_trip(trial.system_attrs)
        self._write_entry("trial", study_id, int(trial.state), trial.system_attrs, _format_time(trial.datetime_start))
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set the value of a hyperparameter and its distribution."""
        # Thousands of trials share the names and the distributions of a few hyperparameters.
        param_name = sys.intern(param_name)
        if distribution not in self._distributions:
            self._distributions[distribution] = distribution, distribution_to_json(distribution)
        distribution, text = self._distributions[distribution]
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._write_entry("value", trial_id, param_name, param_value_internal, text)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set state and values of a trial; return whether the state changed."""
        is_changed = super().set_trial_state_values(trial_id, state, values)
        trial = self.get_trial(trial_id)
        times = [_format_time(time) for time in (trial.datetime_start, trial.datetime_complete)]
        self._write_entry("state", trial_id, int(state), None if values is None else list(values), *times)
        return is_changed

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial, such as its constraints or its enqueued values."""
        value = _round_trip(value)
        super().set_trial_system_attr(trial_id, key, value)
        self._write_entry("beside", trial_id, key, value)

    # -- the journal --------------------------------------------------------------------------

    def _write_entry(self, *words: object) -> None:
        if self._store is not None:
            self._store.add_note(json.dumps(words))

    def _replay_study(self, directions: list[int], name: str) -> None:
        self.create_new_study([StudyDirection(direction) for direction in directions], name)

    def _replay_trial(self, study_id: int, state: int, attributes: dict[str, JsonValue], start: str | None) -> None:
        trial = self.get_trial(self.create_new_trial(study_id, None))
        trial.state, trial.system_attrs, trial.datetime_start = TrialState(state), attributes, _parse_time(start)

    def _replay_param(self, trial_id: int, name: str, value: float, distribution: str) -> None:
        self.set_trial_param(trial_id, name, value, json_to_distribution(distribution))

    def _replay_state(
        self, trial_id: int, state: int, values: list[float] | None, start: str | None, end: str | None
    ) -> None:
        self.set_trial_state_values(trial_id, TrialState(state), values)
        trial = self.get_trial(trial_id)
        trial.datetime_start, trial.datetime_complete = _parse_time(start), _parse_time(end)


def _round_trip(value: T) -> T:
    """Return a value as JSON gives it back, so that a running search and a resumed one see the same."""
    copy: T = json.loads(json.dumps(value))
    return copy


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
