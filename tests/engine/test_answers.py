"""The sampler hears of each training once, of its repetitions too."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from autocompress.core.records import State
from autocompress.engine.answers import Answers
from autocompress.engine.sampler.optuna import Proposer
from autocompress.store.run_store import Study


@pytest.fixture
def proposer(tmp_path: Path) -> Proposer:
    store = Study.create(tmp_path, {"name": "x"})
    return Proposer(store, "x", "random", 0, ["maximize", "minimize"], ["accuracy", "cost"])


def states(proposer: Proposer) -> list[TrialState]:
    return [trial.state for trial in proposer._study.trials]


def test_what_a_training_came_to_is_told_with_its_violations(proposer: Proposer) -> None:
    answers = Answers(proposer)
    answers.expect(0, "a", proposer.ask(0))
    assert answers.knows("a")
    assert not answers.knows("b")
    answers.give(0, ([0.9, 4.0], {"bytes": 2.5}))
    (trial,) = proposer._study.trials
    assert trial.values == [0.9, 4.0]
    assert trial.constraints == {"bytes": 2.5}


@pytest.mark.parametrize("early", [True, False])
def test_a_repetition_gets_the_answer_of_its_twin(proposer: Proposer, early: bool) -> None:
    answers = Answers(proposer)
    answers.expect(0, "a", proposer.ask(0))
    twin = proposer.ask(1)
    if early:
        answers.repeat("a", twin)
        assert states(proposer) == [TrialState.RUNNING] * 2
    answers.give(0, ([0.9, 4.0], {}))
    if not early:
        answers.repeat("a", twin)
    assert [trial.values for trial in proposer._study.trials] == [[0.9, 4.0]] * 2


@pytest.mark.parametrize(
    ("end", "told"),
    [(State.STOPPED, TrialState.PRUNED), (State.FAILED, TrialState.FAIL)],
)
def test_a_stopped_training_was_poor_and_a_broken_one_says_nothing(
    proposer: Proposer, end: State, told: TrialState
) -> None:
    answers = Answers(proposer)
    answers.expect(0, "a", proposer.ask(0).number)
    answers.give(0, end)
    assert states(proposer) == [told]


def test_where_nobody_asked_nobody_is_told(proposer: Proposer) -> None:
    answers = Answers(proposer)
    answers.expect(0, "a", None)
    answers.give(0, ([0.9, 4.0], {}))
    assert states(proposer) == []
    # Who asks for the same later is answered at once.
    answers.repeat("a", proposer.ask(1))
    assert states(proposer) == [TrialState.COMPLETE]
