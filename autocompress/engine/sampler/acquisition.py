"""What to train next: what may add most hypervolume for its effort.

Costs are known before anything is trained, so only scores are guessed: from all trainings at all rungs, by a Gaussian
process (:mod:`autocompress.engine.sampler.gaussian_process`), and from what cuts did to other points. New trainings
and those that are paused compete by the hypervolume that they are expected to add (expected hypervolume improvement, Emmerich,
Giannakoglou and Naujoks 2006) for what they have left to do.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, fingerprint
from autocompress.core.knobs import Leaf
from autocompress.core.records import Candidate, Cut
from autocompress.engine.limits import Price
from autocompress.engine.sampler.encoding import Encoding
from autocompress.engine.sampler.gaussian_process import Gaussian, Inputs
from autocompress.engine.sampler.proposals import Drawn
from autocompress.engine.scheduler.compute_cost import epochs_of_fit, size_at
from autocompress.engine.space import Space
from autocompress.errors import AutocompressError
from autocompress.trial.recipe import starting_cuts

Vector = NDArray[np.float64]
# Trainings that are compared for one choice: drawn anew, and near the best so far.
DRAWN = 48
NEAR = 12
PARENTS = 8
# Students among them that were never trained, as to price one takes some hundredths of a second; at first the workers
# start anyway. It is a number, and not what is priced by now, so that a resumed search chooses as it would have.
PRICED = 16
PRICED_AT_FIRST = 40
# One that is cut out of the teacher takes as long as so many.
CUT_OUT = 4
# Observations that the model keeps.
MEMORY = 240
# Trainings that the effect of a cut is taken from.
RECENT = 12
# Share of the box; less is noise.
LEAST_GAIN = 1e-4
# An error of nothing is not far better than one of a hundredth.
FLOOR = 0.01
WORST = 1.5
# What is uncertain of a score: standard deviations, and how likely each is.
NODES = ((-2.0, 0.1), (-0.7, 0.4), (0.7, 0.4), (2.0, 0.1))


@dataclass(frozen=True)
class Place:
    """A training by what is known of it before it begins.

    Attributes:
        training: How it is trained.
        point: Normalised objectives of the uncut student, ``[M]``; the scores are not known.
        cost: Decimal logarithm of its first cost.
        size: What an epoch of it takes.
    """

    training: CompressionConfig
    point: Vector
    cost: float
    size: float


@dataclass
class Observed:
    """A training that has begun.

    Attributes:
        place: Where it lies.
        scores: Share of its epochs to its normalised scores, ``[S]``.
    """

    place: Place
    scores: dict[float, Vector] = field(default_factory=dict)


class Surrogate:
    """Compares trainings.

    Args:
        space: What may be chosen.
        price: Returns the costs of cuts of a training.
        normalised: Candidate to normalised objectives, ``[M]``, not clipped.
        objectives: Records as they stand in the run's description.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        space: Space,
        price: Price,
        normalised: Callable[[Candidate], Vector],
        objectives: Sequence[Mapping[str, object]],
        seed: int,
    ) -> None:
        self._space = space
        self._price = price
        self._normalised = normalised
        self._scores = [column for column, each in enumerate(objectives) if each["kind"] == "score"]
        self._cost = str(next(each["name"] for each in objectives if each["kind"] == "cost"))
        self._seed = seed
        self._encoding = Encoding(space)
        self._observed: dict[int, Observed] = {}
        self._shifts: dict[Cut, list[Vector]] = {}
        self._ended: dict[CompressionConfig, Vector] = {}
        # How far the cuts that are worth making usually move a point, [K, M].
        self._usual: Vector = np.zeros((1, len(objectives)))
        self._complete: list[int] = []
        self._costs: dict[str, Mapping[str, float]] = {}
        self._parent: Candidate | None = None
        self._foreseen: Iterator[bool] | None = None

    @property
    def ready(self) -> bool:
        """Whether a training of the search has ended, so that those that are paused can be told apart."""
        return any(number >= 0 for number in self._complete)

    def note(self, number: int, candidates: Sequence[Candidate]) -> None:
        """Take note of what was cut from a training at a rung or at its end; ``number`` is that of its job.

        The first candidate is the uncut one; without it nothing is learned.
        """
        self._foreseen = None
        uncut = candidates[0]
        point = self._normalised(uncut)
        if uncut.config.prune is not None or uncut.config.quantize is not None or not np.isfinite(point).all():
            return
        training = uncut.config.training
        self._parent = self._parent or uncut
        self._costs.setdefault(_student(training), uncut.costs)
        known = self._observed.setdefault(number, Observed(self._placed(training, uncut.costs)))
        share = 1.0 if uncut.complete else uncut.epochs / max(epochs_of_fit(training.fit), uncut.epochs)
        known.scores[share] = point[self._scores]
        if not uncut.complete:
            return
        self._complete.append(number)
        self._ended[training] = point
        self.note_cuts(candidates)

    def note_cuts(self, candidates: Sequence[Candidate]) -> None:
        """Take note of what was cut from trainings that have ended, further cuts included."""
        for each in candidates:
            before = self._ended.get(each.config.training)
            shift = None if before is None else self._normalised(each) - before
            if shift is not None and np.isfinite(shift).all():
                self._shifts.setdefault(Cut(each.config.prune, each.config.quantize), []).append(shift)
        if self._shifts:
            usual = [np.median(np.stack(each[-RECENT:]), axis=0) for each in self._shifts.values()]
            # One that costs more than another and scores less does so wherever it begins.
            self._usual = np.asarray(moocore.filter_dominated(np.stack(usual)))

    def best(
        self,
        front: Vector,
        number: int,
        paused: Mapping[int, float],
        begun: Mapping[int, CompressionConfig],
        known: Callable[[CompressionConfig], bool] | None,
    ) -> CompressionConfig | int | None:
        """Return the training that promises most for its effort, or the number of the paused one that does.

        Args:
            front: Normalised objectives of the front, ``[N, M]``.
            number: Of the job that a new training will be.
            paused: Epochs that each paused training has left.
            begun: Trainings that are under way: what they will add is theirs.
            known: Whether a training was begun before; ``None`` where none may begin.

        Returns:
            ``None`` where nothing is known, or nothing gained.
        """
        self._foreseen = None
        if not self._observed:
            return None
        drawn = () if known is None else self._pool(number, self._nearest(front))
        places = list(self._priced(each for each in drawn if known is None or not known(each)))
        waiting = [each for each in paused if each in self._observed]
        asked = [*places, *(self._observed[each].place for each in waiting)]
        if not asked:
            return None
        gains = self._gains(asked, [self._observed[each].place for each in begun if each in self._observed], front)
        epochs = [*(float(epochs_of_fit(place.training.fit)) for place in places), *(paused[each] for each in waiting)]
        rates = gains / (np.array(epochs) * np.array([place.size for place in asked]))
        rates[gains <= LEAST_GAIN] = 0.0
        best = int(np.argmax(rates))
        if not rates[best] > 0:
            return None
        return places[best].training if best < len(places) else waiting[best - len(places)]

    def ahead(self, front: Vector, number: int, begun: Mapping[int, CompressionConfig]) -> bool:
        """Price a student that the next choice will probably compare; no choice depends on it.

        Args:
            front: As it is now.
            number: Of the job that a new training will be.
            begun: Trainings that are under way: next time they may be among the best.

        Returns:
            Whether there may be more to price.
        """
        if not self._observed:
            return False
        if self._foreseen is None:
            self._foreseen = self._foresee(front, number, begun)
        return next(self._foreseen, None) is not None

    def values(self, training: CompressionConfig) -> dict[str, Leaf]:
        """Return what a sampler has to propose to get a training."""
        return self._encoding.values(training)

    # -- what is compared ---------------------------------------------------------------------

    def _foresee(self, front: Vector, number: int, begun: Mapping[int, CompressionConfig]) -> Iterator[bool]:
        for parents in (self._nearest(front), begun):
            for _ in self._priced(self._pool(number, parents)):
                yield True

    def _pool(self, number: int, near: Mapping[int, CompressionConfig]) -> Iterator[CompressionConfig]:
        """Yield trainings drawn near some that are known, and anew; near each, they are the same beside any others.

        All take turns: only so many have a price, and without those drawn anew a search stays where it began.
        """
        parents = [(each, self.values(training), 1) for each, training in near.items()]
        draws = [
            (values, Random(fingerprint([self._seed, number, parent])), count)
            for parent, values, count in [*parents, (None, {}, DRAWN // NEAR)]
        ]
        seen = set()
        for _ in range(NEAR):
            for values, random, count in draws:
                for _ in range(count):
                    training = self._space.suggest(Drawn(values, random), cut=False)[0]
                    key = fingerprint(training.to_json())
                    if key not in seen:
                        yield training
                    seen.add(key)

    def _nearest(self, front: Vector) -> dict[int, CompressionConfig]:
        """Return the finished trainings whose cuts lie least behind the front, the nearest first."""
        behind = {}
        for number in self._complete:
            rows = self._rows(self._observed[number].place.point, self._observed[number].scores[1.0])
            # How far a point would have to move in one objective to be on the front.
            apart = np.clip(rows[:, None] - front[None], 0.0, None).min(axis=2).max(axis=1, initial=0.0)
            behind[number] = (float(apart.min()), -number)
        nearest = sorted(behind, key=lambda number: behind[number])[:PARENTS]
        return {number: self._observed[number].place.training for number in nearest}

    def _priced(self, trainings: Iterator[CompressionConfig]) -> Iterator[Place]:
        """Yield the trainings whose students have a price; only so many students are new."""
        trained = {_student(each.place.training) for each in self._observed.values()}
        new: set[str] = set()
        left = PRICED if self.ready else PRICED_AT_FIRST
        for training in trainings:
            key = _student(training)
            if key not in trained and key not in new:
                if left <= 0:
                    continue
                left -= CUT_OUT if starting_cuts(training.student) else 1
                new.add(key)
            if key not in self._costs:
                try:
                    self._costs[key] = next(iter(self._price(training, [Cut()])), {})
                except AutocompressError:
                    self._costs[key] = {}
            if self._costs[key]:
                yield self._placed(training, self._costs[key])

    def _placed(self, training: CompressionConfig, costs: Mapping[str, float]) -> Place:
        assert self._parent is not None
        uncut = Candidate("", -1, training, 0, self._parent.scores, costs)
        cost = math.log10(max(costs.get(self._cost, 0.0), 1e-9))
        return Place(training, self._normalised(uncut), cost, size_at(costs, training))

    # -- what is expected ---------------------------------------------------------------------

    def _gains(self, asked: Sequence[Place], begun: Sequence[Place], front: Vector) -> Vector:
        """Return the hypervolume that each is expected to add to the front and to what is under way, ``[N]``."""
        means, deviations = self._predicted([*asked, *begun])
        later = zip(begun, means[len(asked) :], strict=True)
        expected = [self._rows(place.point, _back(mean)) for place, mean in later]
        reached = np.clip(np.vstack([front, *expected]), 0.0, 1.0)
        if len(reached):
            reached = np.asarray(moocore.filter_dominated(reached))
        volume = moocore.Hypervolume(ref=np.ones(len(asked[0].point)))
        before = float(volume(reached)) if len(reached) else 0.0
        gains = np.zeros(len(asked))
        for index, place in enumerate(asked):
            for node, weight in NODES:
                rows = np.clip(self._rows(place.point, _back(means[index] + node * deviations[index])), 0.0, 1.0)
                beaten = np.asarray((reached[None] <= rows[:, None]).all(axis=2)).any(axis=1)
                if not beaten.all():
                    gains[index] += weight * (float(volume(np.vstack([reached, rows[~beaten]]))) - before)
        return gains

    def _rows(self, point: Vector, scores: Vector) -> Vector:
        """Return where the cuts of a training lie that scores so, ``[K, M]``: moved as far as they moved others."""
        found = point.copy()
        found[self._scores] = scores
        return np.asarray(found + self._usual)

    def _predicted(self, asked: Sequence[Place]) -> tuple[Vector, Vector]:
        """Return means and deviations of the logarithms of the scores at the end, ``[N, S]`` each."""
        # In an order that a resumed search finds again.
        known = [self._observed[number] for number in sorted(self._observed)]
        seen = [(each.place, share, row) for each in known for share, row in sorted(each.scores.items())][-MEMORY:]
        where = self._inputs(asked, [1.0] * len(asked))
        inputs = self._inputs([place for place, _, _ in seen], [share for _, share, _ in seen])
        values = np.log(np.clip(np.stack([row for _, _, row in seen]), 0.0, WORST) + FLOOR)
        found = [Gaussian(inputs, values[:, column]).predict(where) for column in range(values.shape[1])]
        return np.column_stack([mean for mean, _ in found]), np.column_stack([deviation for _, deviation in found])

    def _inputs(self, places: Sequence[Place], shares: Sequence[float]) -> Inputs:
        pairs = [self._encoding.points(place.training) for place in places]
        return Inputs(
            np.stack([student for student, _ in pairs]),
            np.stack([recipe for _, recipe in pairs]),
            np.array([place.cost for place in places]),
            np.log(np.array(shares)),
        )


def _student(training: CompressionConfig) -> str:
    # What an uncut student costs depends on nothing else.
    return fingerprint(training.student.to_json())


def _back(logarithms: Vector) -> Vector:
    """Return normalised scores of what the model knows them by."""
    return np.asarray(np.exp(logarithms) - FLOOR)
