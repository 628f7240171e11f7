"""Which checkpoint to cut further, where the cut trains: recovery after pruning, rounding-aware training.

Such a cut costs epochs, so it is not made of every checkpoint. A cut moves a point about as far as it moved others
(the median, in the normalised objectives, where costs are logarithms); from that follows what hypervolume it would
add, and the most for its effort (epochs times what an epoch takes) is done first. Where trainings add more for theirs,
they come first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Base, Candidate, Cut, Job
from autocompress.engine.limits import Price
from autocompress.engine.scheduler.compute_cost import epochs_of, size_of

# Share of the box; less is noise.
LEAST_GAIN = 1e-4
# Checkpoints looked at beside those on the front.
RECENT = 32
# Trainings whose gain is compared with that of further cuts.
LATEST = 3

Vector = NDArray[np.float64]


@dataclass
class Checkpoint:
    """What the cuts of one checkpoint have given so far.

    Attributes:
        name: Of its weights.
        training: How it was trained.
        prune: How it was pruned.
        epochs: Epochs of its training.
        size: What an epoch of it takes.
        points: Quantization to the candidate's normalised objectives; ``None`` is the float model.
    """

    name: str
    training: CompressionConfig
    prune: Part | None
    epochs: int
    size: float
    points: dict[Part | None, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """A cut that trains: a pruning of a whole model, or a quantization of any.

    Attributes:
        prune: The pruning, or ``None``.
        quantize: The quantization, or ``None``; one of the two is given.
        epochs: Passes over the training split that it takes.
    """

    prune: Part | None
    quantize: Part | None
    epochs: float

    @property
    def method(self) -> str:
        """Name of what is done, whatever its settings."""
        part = self.prune or self.quantize
        return "" if part is None else part.name


class Refinement:
    """Chooses further cuts from what all cuts so far have given.

    Args:
        cuts: The whole grid.
        share: Epochs that further cuts may take, as a share of those of the trainings.
        normalise: Candidate to normalised objectives, ``[M]``, not clipped.
        price: Returns the costs of cuts of a training; without it every setting is tried to learn what it costs.
    """

    training_share = 1.0

    def __init__(
        self,
        cuts: Sequence[Cut],
        share: float,
        normalise: Callable[[Candidate], Vector],
        price: Price | None = None,
    ) -> None:
        cheap, moves = divided(cuts)
        self.at_once = tuple(cheap)
        self._quantizations = tuple(dict.fromkeys(cut.quantize for cut in cheap if cut.prune is None))
        self._moves = moves
        self._share = share
        self._normalise = normalise
        self._price = price
        self._parent: Candidate | None = None
        self._savings: dict[Move, Vector | None] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._whole: dict[CompressionConfig, Checkpoint] = {}
        self._begun: set[tuple[str, Move]] = set()
        self._begun_moves: set[Move] = set()
        self._shifts: dict[Move, list[Vector]] = {}
        # What moves would add to the front, by checkpoint, while that front and what moves usually do are the same.
        self._gains: dict[str, dict[Move, float]] = {}
        self._gains_of: tuple[bytes | None, ...] = ()
        self._trained = 0.0
        self._refined = 0.0
        self._further: set[int] = set()
        self._by_training: list[float] = []
        self._alone = False

    def train(self, epochs: float) -> None:
        """Take note of epochs of training."""
        self._trained += epochs

    def all_trained(self) -> None:
        """Take note that no training competes with further cuts any more."""
        self._alone = True

    def begin(self, job: Job) -> None:
        """Take note of a further cut that was handed out."""
        assert job.base is not None
        self._further.add(job.number)
        for cut in job.cuts:
            for move in self._moves:
                same = (move.prune, move.quantize) in ((cut.prune, None), (None, cut.quantize))
                if same and (job.base.checkpoint, move) not in self._begun:
                    self._begun.add((job.base.checkpoint, move))
                    self._begun_moves.add(move)
                    self._refined += move.epochs

    def add(self, number: int, candidates: Sequence[Candidate], gain: float) -> None:
        """Take note of what a job ended with; only candidates of complete trainings count.

        Args:
            number: The job's.
            candidates: What it gave; none where it failed.
            gain: The hypervolume that they added, a share of the box.
        """
        whole = [candidate for candidate in candidates if candidate.complete and candidate.config.prune is None]
        if whole and number not in self._further:
            self._by_training.append(gain / max(whole[0].epochs, 1) / size_of(whole[0]))
        for candidate in candidates:
            if not candidate.complete or not candidate.checkpoint:
                continue
            config = candidate.config
            place = self._checkpoints.get(candidate.checkpoint) or self._found(candidate)
            if config.prune is None:
                self._whole.setdefault(config.training, place)
            place.points[config.quantize] = self._normalise(candidate)
            self._gains.pop(place.name, None)
            if self._parent is None and config.prune is None and config.quantize is None:
                self._parent = candidate
        for candidate in candidates:
            self._learn(candidate)

    def _found(self, candidate: Candidate) -> Checkpoint:
        config, size = candidate.config, size_of(candidate)
        place = Checkpoint(candidate.checkpoint, config.training, config.prune, candidate.epochs, size)
        self._checkpoints[candidate.checkpoint] = place
        return place

    def _least(self) -> float:
        """Return what hypervolume the effort of a further cut should add: what that of the latest trainings did."""
        latest = self._by_training[-LATEST:]
        return 0.0 if self._alone or not latest else sum(latest) / len(latest)

    def next(self, front: Vector, owners: Sequence[str], number: int) -> Job | None:
        """Return the further cut that promises most, as job ``number``; ``None`` where none pays or may be made.

        Args:
            front: Normalised objectives of the front, ``[N, M]``.
            owners: Checkpoint of each of them.
            number: Number of the job.
        """
        if not self._moves or self._refined >= self._share * self._trained:
            return None
        untried = self._untried(owners)
        if untried is not None:
            return self._job(*untried, number)
        best, chosen = self._least(), None
        clipped = np.clip(front, 0.0, 1.0)
        volume_of = moocore.Hypervolume(ref=np.ones(front.shape[1]))
        volume = float(volume_of(clipped))
        shifts = {move: self._shift(move) for move in self._moves}
        gains_of = (clipped.tobytes(), *(None if shift is None else shift.tobytes() for shift in shifts.values()))
        if gains_of != self._gains_of:
            self._gains_of, self._gains = gains_of, {}
        for place, move in self._open(owners):
            gains = self._gains.setdefault(place.name, {})
            if move not in gains:
                points = np.clip(self._expected(place, move, shifts[move]), 0.0, 1.0)
                beaten = np.asarray((clipped[None] <= points[:, None]).all(axis=2)).any(axis=1)
                left = points[~beaten]
                gains[move] = float(volume_of(np.vstack([clipped, left]))) - volume if len(left) else 0.0
            rate = gains[move] / move.epochs / place.size
            if gains[move] > LEAST_GAIN and rate > best:
                best, chosen = rate, (place, move)
        return None if chosen is None else self._job(*chosen, number)

    def _open(self, owners: Sequence[str]) -> Iterator[tuple[Checkpoint, Move]]:
        names = dict.fromkeys([*owners, *list(self._checkpoints)[-RECENT:]])
        for name in names:
            place = self._checkpoints.get(name)
            if place is None:
                continue
            for move in self._moves:
                fits = place.prune is None or move.prune is None
                if fits and (name, move) not in self._begun:
                    yield place, move

    def _untried(self, owners: Sequence[str]) -> tuple[Checkpoint, Move] | None:
        """Return a cut of which nothing can be expected yet, on the checkpoint that holds most of the front."""
        begun = self._begun_moves
        methods = {move.method for move in begun}
        for move in self._moves:
            if move in begun or move in self._shifts or (move.method in methods and self._saving(move) is not None):
                continue
            whole = [name for name in owners if name in self._checkpoints and self._checkpoints[name].prune is None]
            if whole:
                name = max(dict.fromkeys(whole), key=lambda each: (whole.count(each), each))
                return self._checkpoints[name], move
        return None

    def _expected(self, place: Checkpoint, move: Move, shift: Vector | None) -> Vector:
        """Return where a move would take the points of a checkpoint."""
        if shift is None or (move.prune is None and None not in place.points):
            return np.ones((1, len(next(iter(place.points.values())))))
        if move.prune is None:
            return place.points[None][None] + shift
        return np.stack(list(place.points.values())) + shift

    def _shift(self, move: Move) -> Vector | None:
        """Return how far a move takes a point: as far as it took others.

        Where it was never made, it may lose as little as other settings of its method, and saves what it is priced at.
        """
        if move in self._shifts:
            return np.asarray(np.median(np.stack(self._shifts[move]), axis=0))
        alike = [shift for other, shifts in self._shifts.items() if other.method == move.method for shift in shifts]
        saving = self._saving(move) if alike else None
        if saving is None:
            return None
        return np.where(saving != 0, saving, np.median(np.stack(alike), axis=0))

    def _saving(self, move: Move) -> Vector | None:
        """Return what a move changes of the costs of the first training, normalised; its scores stay."""
        if move not in self._savings and self._price is not None and self._parent is not None:
            costs = self._price(self._parent.config.training, [Cut(move.prune, move.quantize)])
            after = [replace(self._parent, costs=each) for each in costs]
            before = self._normalise(self._parent)
            self._savings[move] = self._normalise(after[0]) - before if after else None
        return self._savings.get(move)

    def _learn(self, candidate: Candidate) -> None:
        """Note how far a cut moved a point."""
        config = candidate.config
        place = self._checkpoints.get(candidate.checkpoint)
        if place is None:
            return
        here = place.points[config.quantize]
        for move in self._moves:
            before: Vector | None = None
            if move.prune is not None and move.prune == config.prune and config.quantize is None:
                before = self._uncut(config.training)
            elif move.quantize is not None and move.quantize == config.quantize:
                before = place.points.get(None)
            if before is not None:
                self._shifts.setdefault(move, []).append(here - before)

    def _uncut(self, training: CompressionConfig) -> Vector | None:
        place = self._whole.get(training)
        return None if place is None else place.points.get(None)

    def _job(self, place: Checkpoint, move: Move, number: int) -> Job:
        if move.prune is None:
            cuts: tuple[Cut, ...] = (Cut(place.prune, move.quantize),)
        else:
            cuts = tuple(Cut(move.prune, quantize) for quantize in self._quantizations)
        base = Base(place.name, place.prune, place.epochs)
        return Job(number, place.training, cuts, base=base)


def divided(cuts: Sequence[Cut]) -> tuple[list[Cut], list[Move]]:
    """Return the cuts that train nothing, and the moves that do.

    A pruning with recovery is made once, and then quantized in every way that trains nothing.
    """
    cheap = [cut for cut in cuts if not epochs_of(cut)]
    prunings = dict.fromkeys(cut.prune for cut in cuts)
    quantizations = dict.fromkeys(cut.quantize for cut in cuts)
    moves = [Move(prune, None, epochs) for prune in prunings if (epochs := epochs_of(Cut(prune)))]
    moves += [Move(None, each, epochs) for each in quantizations if (epochs := epochs_of(Cut(quantize=each)))]
    return cheap, moves
