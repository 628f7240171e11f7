"""Optuna's storage is restored from the run's store, change by change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autocompress.core.run_info import RunInfo
from autocompress.engine.sampler.optuna import OptunaSampler, OptunaStorage
from autocompress.store.run_store import RunStore


def make_optuna_sampler(store: RunStore, name: str = "tpe") -> OptunaSampler:
    return OptunaSampler(store, "x", name, 1, ["maximize", "minimize"], ["accuracy", "cost"])


def run_trial(sampler: OptunaSampler, number: int, *, with_result: bool = True) -> dict[str, Any]:
    trial = sampler.ask(number)
    kind = trial.suggest_categorical("student", ["cnn", "mlp"])
    width = trial.suggest_int(f"student.{kind}.width", 4, 64, log=True)
    rate = trial.suggest_float("fit.rate", 1e-3, 1e-1, log=True)
    if with_result and number % 5 == 4:
        sampler.tell(trial, None, stopped=number % 2 == 0)
    elif with_result:
        sampler.tell(trial, [1 - 1 / width, width * (1 + rate)], {"bytes": width - 32.0})
    return trial.params


def trials(storage: OptunaStorage) -> list[FrozenTrial]:
    (study,) = storage.get_all_studies()
    return storage.get_all_trials(study._study_id)


def commit(store: RunStore) -> None:
    """Write in a transaction, as a driver does with each job."""
    store.update_run_info(replace(store.run_info(), seconds=1.0))


def test_journal_restores_the_study(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, RunInfo(name="x")) as store:
        sampler = make_optuna_sampler(store)
        sampler.enqueue({"student": "mlp", "student.mlp.width": 7, "fit.rate": 0.01})
        assert run_trial(sampler, 0) == {"student": "mlp", "student.mlp.width": 7, "fit.rate": 0.01}
        for number in range(1, 15):
            run_trial(sampler, number)
        run_trial(sampler, 15, with_result=False)
        sampler.enqueue({"student": "cnn"})
        commit(store)
        before = trials(sampler._study._storage)  # type: ignore[arg-type]
    with RunStore.open(tmp_path) as store:
        storage = OptunaStorage(store)
        assert trials(storage) == before
        (study,) = storage.get_all_studies()
        assert study.study_name == "x"
        assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
        assert storage.get_study_system_attrs(0)
    states = {trial.state for trial in before}
    assert states == {
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_resumed_search_proposes_the_same_values(tmp_path: Path, name: str) -> None:
    with RunStore.create(tmp_path / "whole", RunInfo(name="x")) as store:
        whole = make_optuna_sampler(store, name)
        expected = [run_trial(whole, number) for number in range(16)]
    with RunStore.create(tmp_path / "parts", RunInfo(name="x")) as store:
        first = make_optuna_sampler(store, name)
        proposed = [run_trial(first, number) for number in range(12)]
        commit(store)
    with RunStore.open(tmp_path / "parts") as store:
        again = make_optuna_sampler(store, name)
        proposed += [run_trial(again, number) for number in range(12, 16)]
    assert proposed == expected


def test_entries_without_a_transaction_are_lost(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, RunInfo(name="x")) as store:
        sampler = make_optuna_sampler(store)
        run_trial(sampler, 0)
        commit(store)
        run_trial(sampler, 1)
    with RunStore.open(tmp_path) as store:
        assert len(trials(OptunaStorage(store))) == 1


def test_trials_share_names_and_distributions(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, RunInfo(name="x")) as store:
        sampler = make_optuna_sampler(store, "random")
        for number in range(8):
            run_trial(sampler, number)
        stored = sampler._study.get_trials(deepcopy=False)
        assert len({id(trial.distributions["fit.rate"]) for trial in stored}) == 1
        assert len({id(name) for trial in stored for name in trial.params}) == 4
        other = optuna.distributions.FloatDistribution(0.5, 0.7)
        with pytest.raises(ValueError, match="distribution"):
            sampler.ask(9).suggest_float("student", other.low, other.high)


def test_attributes_have_their_stored_form_at_once(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, RunInfo(name="x")) as store:
        sampler = make_optuna_sampler(store)
        storage = sampler._study._storage
        storage.set_study_system_attr(0, "pairs", {1: (2, 3)})
        trial = sampler.ask(0)
        storage.set_trial_system_attr(trial._trial_id, "pairs", {1: (2, 3)})
        commit(store)
        before = storage.get_study_system_attrs(0)["pairs"], storage.get_trial_system_attrs(trial._trial_id)["pairs"]
    with RunStore.open(tmp_path) as store:
        again = OptunaStorage(store)
        assert (again.get_study_system_attrs(0)["pairs"], again.get_trial_system_attrs(0)["pairs"]) == before
