"""What the sampler remembers, kept in memory and, change by change, in the run's own store."""

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autocompress.store.run_store import Study


class Memory(InMemoryStorage):
    """Optuna's storage in memory, whose changes are written in the transactions of the run's store.

    What a sampler did for a job is on disk if and only if the job is, and costs no write of its own. (Optuna's own
    tables took some thirty transactions for one training, and each proposal read them all again; its journal keeps the
    range of every setting anew for every trial, which was a third of a driver's memory.)

    Args:
        study: The open store.
    """

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._known: dict[BaseDistribution, tuple[BaseDistribution, str]] = {}
        self._run: Study | None = None
        for name, *arguments in study.notes():
            getattr(self, f"_again_{name}")(*arguments)
        self._run = study

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Begin a study; see Optuna's storages for this and what follows."""
        found = super().create_new_study(directions, study_name)
        self._note("study", [int(each) for each in directions], study_name)
        return found

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set what Optuna keeps beside a study."""
        value = _as_read_again(value)
        super().set_study_system_attr(study_id, key, value)
        self._note("about", study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Begin a trial, or let one wait whose values are given in its attributes: nothing else of it is kept."""
        found = super().create_new_trial(study_id, template_trial)
        trial = self.get_trial(found)
        trial.system_attrs = _as_read_again(trial.system_attrs)
        self._note("trial", study_id, int(trial.state), trial.system_attrs, _text(trial.datetime_start))
        return found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a value, as a number, and what it was drawn from."""
        # Thousands of trials draw the same few settings from the same few ranges.
        param_name = sys.intern(param_name)
        if distribution not in self._known:
            self._known[distribution] = distribution, distribution_to_json(distribution)
        distribution, text = self._known[distribution]
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._note("value", trial_id, param_name, param_value_internal, text)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set what became of a trial; return whether it may."""
        done = super().set_trial_state_values(trial_id, state, values)
        trial = self.get_trial(trial_id)
        times = [_text(time) for time in (trial.datetime_start, trial.datetime_complete)]
        self._note("state", trial_id, int(state), None if values is None else list(values), *times)
        return done

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set what Optuna keeps beside a trial: its constraints, what it is to draw."""
        value = _as_read_again(value)
        super().set_trial_system_attr(trial_id, key, value)
        self._note("beside", trial_id, key, value)

    # -- and again, from what was noted -------------------------------------------------------

    def _note(self, *words: Any) -> None:
        if self._run is not None:
            self._run.note(json.dumps(words))

    def _again_study(self, directions: list[int], name: str) -> None:
        self.create_new_study([StudyDirection(each) for each in directions], name)

    def _again_about(self, study: int, key: str, value: Any) -> None:
        self.set_study_system_attr(study, key, value)

    def _again_trial(self, study: int, state: int, beside: dict[str, Any], start: str | None) -> None:
        number = self.create_new_trial(study, None)
        trial = self.get_trial(number)
        trial.state, trial.system_attrs, trial.datetime_start = TrialState(state), beside, _time(start)

    def _again_value(self, trial: int, name: str, value: float, distribution: str) -> None:
        self.set_trial_param(trial, name, value, json_to_distribution(distribution))

    def _again_state(
        self, trial: int, state: int, values: list[float] | None, start: str | None, end: str | None
    ) -> None:
        self.set_trial_state_values(trial, TrialState(state), values)
        found = self.get_trial(trial)
        found.datetime_start, found.datetime_complete = _time(start), _time(end)

    def _again_beside(self, trial: int, key: str, value: Any) -> None:
        self.set_trial_system_attr(trial, key, value)


def _as_read_again(value: Any) -> Any:
    """Return a value as it comes back from JSON, so that a search that goes on and one that is resumed see the same."""
    return json.loads(json.dumps(value))


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
