"""What the sampler is told of each training, once, and of those that would have repeated it."""

from typing import TypeAlias

from optuna.trial import Trial

from autocompress.core.records import State
from autocompress.engine.sampler.optuna import Proposer

#: Values and violations of the limits, or how a training ended without any.
Answer: TypeAlias = tuple[list[float], dict[str, float]] | State


class Answers:
    """Keeps which of the sampler's trials wait for which training.

    Args:
        proposer: Who proposed them.
    """

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self._known: dict[str, int] = {}
        self._asked: dict[int, list[int | Trial]] = {}
        self._told: dict[int, Answer] = {}

    def knows(self, key: str) -> bool:
        """Return whether a training of this key was expected before."""
        return key in self._known

    def expect(self, number: int, key: str, trial: int | Trial | None) -> None:
        """Take note that a training is under way, and which trial asked for it.

        Args:
            number: The job's.
            key: What tells it from other trainings.
            trial: The sampler's trial or its number; ``None`` where nobody waits for an answer.
        """
        self._known[key] = number
        if trial is not None:
            self._asked.setdefault(number, []).append(trial)

    def repeat(self, key: str, trial: Trial) -> None:
        """Answer a duplicate with the result of its twin, now or when the twin has ended."""
        number = self._known[key]
        self._asked.setdefault(number, []).append(trial)
        if number in self._told:
            self.give(number, self._told[number])

    def give(self, number: int, answer: Answer) -> None:
        """Tell the sampler what became of a training."""
        self._told[number] = answer
        for trial in self._asked.pop(number, []):
            if isinstance(answer, State):
                self._proposer.tell(trial, None, stopped=answer is State.STOPPED)
            else:
                self._proposer.tell(trial, *answer)
