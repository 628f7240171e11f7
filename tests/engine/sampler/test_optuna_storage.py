"""What a sampler remembers survives its process, change by change."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autocompress.engine.sampler.optuna import OptunaSampler
from autocompress.engine.sampler.optuna_storage import OptunaStorage
from autocompress.store.run_store import RunStore


def proposer(store: RunStore, sampler: str = "tpe") -> OptunaSampler:
    return OptunaSampler(store, "x", sampler, 1, ["maximize", "minimize"], ["accuracy", "cost"])


def one(proposer: OptunaSampler, number: int, *, told: bool = True) -> dict[str, Any]:
    trial = proposer.ask(number)
    kind = trial.suggest_categorical("student", ["cnn", "mlp"])
    width = trial.suggest_int(f"student.{kind}.width", 4, 64, log=True)
    rate = trial.suggest_float("fit.rate", 1e-3, 1e-1, log=True)
    if told and number % 5 == 4:
        proposer.tell(trial, None, stopped=number % 2 == 0)
    elif told:
        proposer.tell(trial, [1 - 1 / width, width * (1 + rate)], {"bytes": width - 32.0})
    return trial.params


def trials(memory: OptunaStorage) -> list[FrozenTrial]:
    (study,) = memory.get_all_studies()
    return memory.get_all_trials(study._study_id)


def written(store: RunStore) -> None:
    """Let a transaction pass, as a driver does with each job."""
    store.set_meta({"anything": 1})


def test_what_was_noted_is_found_again(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, {"name": "x"}) as store:
        here = proposer(store)
        here.enqueue({"student": "mlp", "student.mlp.width": 7, "fit.rate": 0.01})
        assert one(here, 0) == {"student": "mlp", "student.mlp.width": 7, "fit.rate": 0.01}
        for number in range(1, 15):
            one(here, number)
        one(here, 15, told=False)
        here.enqueue({"student": "cnn"})
        written(store)
        before = trials(here._study._storage)  # type: ignore[arg-type]
    with RunStore.open(tmp_path) as store:
        memory = OptunaStorage(store)
        assert trials(memory) == before
        (study,) = memory.get_all_studies()
        assert study.study_name == "x"
        assert [each.name for each in study.directions] == ["MAXIMIZE", "MINIMIZE"]
        assert memory.get_study_system_attrs(0)
    states = {each.state for each in before}
    assert states == {
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING,
    }  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_search_that_is_taken_up_proposes_what_it_would_have(tmp_path: Path, sampler: str) -> None:
    with RunStore.create(tmp_path / "whole", {"name": "x"}) as store:
        whole = proposer(store, sampler)
        expected = [one(whole, number) for number in range(16)]
    with RunStore.create(tmp_path / "parts", {"name": "x"}) as store:
        first = proposer(store, sampler)
        found = [one(first, number) for number in range(12)]
        written(store)
    with RunStore.open(tmp_path / "parts") as store:
        again = proposer(store, sampler)
        found += [one(again, number) for number in range(12, 16)]
    assert found == expected


def test_what_is_in_no_transaction_is_forgotten(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, {"name": "x"}) as store:
        here = proposer(store)
        one(here, 0)
        written(store)
        one(here, 1)
    with RunStore.open(tmp_path) as store:
        assert len(trials(OptunaStorage(store))) == 1


def test_trials_share_what_they_have_in_common(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, {"name": "x"}) as store:
        here = proposer(store, "random")
        for number in range(8):
            one(here, number)
        found = here._study.get_trials(deepcopy=False)
        assert len({id(each.distributions["fit.rate"]) for each in found}) == 1
        assert len({id(name) for each in found for name in each.params}) == 4
        other = optuna.distributions.FloatDistribution(0.5, 0.7)
        with pytest.raises(ValueError, match="distribution"):
            here.ask(9).suggest_float("student", other.low, other.high)


def test_what_is_kept_beside_a_trial_is_at_once_what_will_be_read(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, {"name": "x"}) as store:
        here = proposer(store)
        memory = here._study._storage
        memory.set_study_system_attr(0, "pairs", {1: (2, 3)})
        trial = here.ask(0)
        memory.set_trial_system_attr(trial._trial_id, "pairs", {1: (2, 3)})
        written(store)
        before = memory.get_study_system_attrs(0)["pairs"], memory.get_trial_system_attrs(trial._trial_id)["pairs"]
    with RunStore.open(tmp_path) as store:
        again = OptunaStorage(store)
        assert (again.get_study_system_attrs(0)["pairs"], again.get_trial_system_attrs(0)["pairs"]) == before
