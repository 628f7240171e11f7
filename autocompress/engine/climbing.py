"""Trainings on their way up: which are paused at which rung, which may go on, and what that takes."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import Part
from autocompress.core.records import Candidate, Cut, Job, State
from autocompress.engine.scheduler.asha import Ladder
from autocompress.engine.scheduler.compute_budget import Spending
from autocompress.engine.scheduler.compute_cost import epochs_of_fit
from autocompress.engine.scheduler.promotion import PromotionRule
from autocompress.engine.segments import Segments
from autocompress.store.schema import StoredTrial


class Climb:
    """The trainings of a search that have not ended, and how far they are.

    Attributes:
        begun: How many trainings were begun, those that have ended included.
        latest_epochs: Of the latest: about those of the next.
        trainings: Those that have not ended, by their numbers.

    Args:
        rule: Who goes on past a rung.
        rungs: How often a training pauses at most.
        cuts: What is made of a finished training.
        score: Column of the first score in the normalised objectives.
        normalised: Candidates to normalised objectives, ``[K, M]``, not clipped.
        sure: The student whose training always runs to its end, or ``None``.
    """

    def __init__(
        self,
        rule: PromotionRule,
        rungs: int,
        cuts: Sequence[Cut],
        score: int,
        normalised: Callable[[Sequence[Candidate]], NDArray[np.float64]],
        sure: Part | None,
    ) -> None:
        self.begun = 0
        self.latest_epochs = 0
        self.trainings: dict[int, Job] = {}
        self.segments = Segments(rungs, cuts)
        self.spending = Spending()
        self._ladder = Ladder(rule, score)
        self._normalised = normalised
        self._sure = sure
        self._kept: int | None = None

    def enter(self, whole: Job) -> None:
        """Put a training on the list."""
        self.begun += 1
        self.latest_epochs = epochs_of_fit(whole.training.fit)
        self.trainings[whole.number] = whole
        if whole.training.student == self._sure:
            self._ladder.keep(whole.number)
            self._kept = whole.number
            self._sure = None

    def note(self, job: Job, candidates: Sequence[Candidate]) -> None:
        """Take note of what a segment, or a whole training, came to."""
        if candidates:
            self._spent(job.number, self.segments.epochs(job), candidates[0])

    def pause(self, job: Job, candidates: Sequence[Candidate]) -> None:
        """Let a training wait at the rung that it has reached."""
        self._at(job.number, job.rung or 0, candidates)
        self._ladder.pause(job.number, job.rung or 0)

    def passed(self, stored: StoredTrial, candidates: Sequence[Candidate]) -> Iterator[tuple[float, list[Candidate]]]:
        """Take note of the rungs below the one that a stored training was last seen at.

        Yields:
            The epochs up to each of them, and what was cut there.
        """
        steps = self.segments.steps(stored.job.training) if stored.job.base is None else ()
        for rung, step in enumerate(steps):
            partial = [each for each in candidates if not each.complete and each.epochs == step]
            here = stored.state is State.PAUSED and rung == stored.job.rung
            if partial and not here:
                self._at(stored.job.number, rung, partial)
                epochs = step - (steps[rung - 1] if rung else 0)
                self._spent(stored.job.number, epochs, partial[0])
                yield epochs, partial

    def _at(self, number: int, rung: int, candidates: Sequence[Candidate]) -> None:
        self._ladder.note(number, rung, np.clip(self._normalised(candidates), 0.0, 1.0))

    def _spent(self, number: int, epochs: float, uncut: Candidate) -> None:
        self.spending.size(number, uncut)
        self.spending.spend(number, epochs)

    # -- who goes on --------------------------------------------------------------------------

    @property
    def ups(self) -> dict[int, Job]:
        """The next segment of each training that is paused, by its number."""
        return {number: self._up(number, rung) for number, rung in self._ladder.places.items()}

    def promoted(self, *, closing: bool = False) -> Job | None:
        """Return the next segment of the training that goes on, unless it has to wait; when ``closing``, none has."""
        found = self._ladder.next(
            lambda number, rung: self.spending.effort(number, self.segments.epochs(self._up(number, rung)))
        )
        job = None if found is None else self._up(*found)
        able = job is not None and (closing or self.spending.allows(job.number, self.segments.epochs(job)))
        return job if able else None

    def owed(self, short: Callable[[float], bool]) -> Job | None:
        """Return the next segment of the training that always runs to its end, if its turn has come.

        Args:
            short: Whether so much effort should begin now to be done in time.
        """
        rung = None if self._kept is None else self._ladder.places.get(self._kept)
        if self._kept is None or rung is None:
            return None
        job = self._up(self._kept, rung)
        left = self.spending.effort(job.number, self.segments.left(job))
        return job if short(left) or self.spending.allows(job.number, self.segments.epochs(job)) else None

    def go_on(self, job: Job) -> None:
        """Take note that a paused training goes on."""
        self._ladder.take(job.number)

    def end(self, number: int) -> None:
        """Take out a training that has come to its end."""
        self.trainings.pop(number, None)

    def hopeless(self) -> list[int]:
        """Take out the trainings that will hardly ever go on."""
        return self._ended(self._ladder.hopeless())

    def give_up(self) -> list[int]:
        """Take out all that wait: the search is over."""
        return self._ended(self._ladder.give_up())

    def _ended(self, numbers: list[int]) -> list[int]:
        for number in numbers:
            self.end(number)
        return numbers

    def _up(self, number: int, rung: int) -> Job:
        return self.segments.of(self.trainings[number], rung + 1)
