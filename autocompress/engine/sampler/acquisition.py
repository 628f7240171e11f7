"""Acquisition function of the search: expected hypervolume improvement per compute cost.

Costs are known before a trial is trained, so only its scores are uncertain. A Gaussian process
(:mod:`autocompress.engine.sampler.gaussian_process`) predicts them from all trials at all rungs; the effect of a
compression recipe on a point is predicted as its median effect in earlier trials. New trials and paused ones compete by
their expected hypervolume improvement (EHVI: Emmerich, Giannakoglou and Naujoks 2006) divided by the compute cost that
they have left.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, fingerprint
from autocompress.core.knobs import Leaf
from autocompress.core.records import Candidate, CompressionRecipe
from autocompress.core.run_info import ObjectiveSpec
from autocompress.core.threads import single_threaded_blas
from autocompress.engine.archive import CostEstimator
from autocompress.engine.sampler.encoding import Encoding, MutationTrial
from autocompress.engine.sampler.gaussian_process import (
    GaussianProcess,
    Inputs,
    fit_irreducible_error,
    interpolate_values,
)
from autocompress.engine.scheduler.compute_cost import count_fit_epochs, estimate_epoch_cost
from autocompress.engine.space import Space
from autocompress.errors import AutocompressError
from autocompress.trial.pipeline import list_teacher_pruning

Vector = NDArray[np.float64]
logger = logging.getLogger(__name__)

# Size of the candidate pool: trials drawn at random, mutations of each parent, and parents, the trials nearest to the
# front.
RANDOM_CANDIDATES = 48
MUTATIONS_PER_PARENT = 12
PARENTS = 8
# Students in the pool whose costs are not known yet. To build and price one takes some hundredths of a second, so only
# so many are; more before the first trial is complete, as workers are still starting then. The limit counts students
# that were never trained, not those that lack a price, so that a resumed search makes the same choices.
MAX_NEW_STUDENTS = 16
MAX_NEW_STUDENTS_AT_START = 40
# Configs that are compared by estimated costs, so that only the students of the best ones are priced: students that are
# priced so, and complete trials that the estimates need.
SCREENED_CONFIGS = 160
MAX_SCREENED_STUDENTS = 8
MIN_SCREENING_TRIALS = 12
# Relative pricing time of a teacher-derived student, which has to be pruned from the teacher first.
TEACHER_DERIVED_PRICING = 4
# Observations that the Gaussian process keeps, the latest ones: its time grows with their cube.
MAX_OBSERVATIONS = 240
# Latest trials that the median effect of a compression recipe is taken over.
RECENT_EFFECTS = 12
# Epochs that a trial counts at least.
UNTRAINED_EPOCHS = 0.5
# Share of the reference volume; smaller improvements are noise.
MIN_IMPROVEMENT = 1e-4
# The Gaussian process models log(error - irreducible error + ERROR_FLOOR): an error of 0 is not far better than one of
# 0.01. Errors, which are normalised, are clipped at ERROR_CEILING.
ERROR_FLOOR = 0.01
ERROR_CEILING = 1.5
# Lower bound of costs, as a cost of 0 has no logarithm.
MIN_COST = 1e-9
# Number under which the teacher is recorded.
TEACHER = -1
# Nodes and weights of the quadrature over a standard normal variable, in the manner of the four-point Gauss-Hermite
# rule (nodes 0.74 and 2.33, weights 0.454 and 0.046) with rounded values and more weight on the outer nodes: the rule's
# variance is 1.19 instead of 1, so the search explores a little more than the exact rule would.
QUADRATURE = ((-2.0, 0.1), (-0.7, 0.4), (0.7, 0.4), (2.0, 0.1))


class ExpectedHypervolumeImprovement:
    """Hypervolume that a trial is expected to add to a front.

    Objectives are normalised and minimised: 0 is the ideal, and the reference point is ``(1, ..., 1)``.

    Args:
        points: Normalised objectives of the front and of what running trials are expected to reach, ``[N, M]``.
    """

    def __init__(self, points: Vector) -> None:
        front = np.clip(points, 0.0, 1.0)
        if len(front):
            front = np.asarray(moocore.filter_dominated(front))
        self._front = front
        self._hypervolume = moocore.Hypervolume(ref=np.ones(front.shape[1]))
        self._reached = float(self._hypervolume(front)) if len(front) else 0.0
        if front.shape[1] == 2:
            # With two objectives, the dominated region is a row of rectangles along the second one.
            front = front[np.argsort(front[:, 1])]
            self._edges: Vector = np.concatenate([[0.0], front[:, 1], [1.0]])
            self._heights: Vector = np.concatenate([[1.0], front[:, 0]])

    def compute_improvements(self, points: Vector) -> Vector:
        """Return the hypervolume that each trial adds to the front, ``[N]``.

        Args:
            points: Normalised objectives of the candidates of each trial, ``[N, K, M]``.
        """
        points = np.clip(points, 0.0, 1.0)
        if points.shape[2] == 2:
            return self._compute_areas(points)
        return np.array([self._compute_volume(candidates) for candidates in points])

    def _compute_areas(self, points: Vector) -> Vector:
        """Return the improvements of trials with two objectives, ``[N]``, by rectangles."""
        order = np.argsort(points[:, :, 1], axis=1)
        starts = np.take_along_axis(points[:, :, 1], order, axis=1)
        heights = np.minimum.accumulate(np.take_along_axis(points[:, :, 0], order, axis=1), axis=1)
        ends = np.hstack([starts[:, 1:], np.ones((len(points), 1))])
        widths = np.minimum(ends[..., None], self._edges[1:]) - np.maximum(starts[..., None], self._edges[:-1])
        drops = self._heights - heights[..., None]
        return np.asarray((np.maximum(widths, 0.0) * np.maximum(drops, 0.0)).sum(axis=(1, 2)))

    def _compute_volume(self, points: Vector) -> float:
        dominated = np.asarray((self._front[None] <= points[:, None]).all(axis=2)).any(axis=1)
        if dominated.all():
            return 0.0
        return float(self._hypervolume(np.vstack([self._front, points[~dominated]]))) - self._reached

    def compute_expectations(
        self, means: Vector, deviations: Vector, place_candidates: Callable[[Vector], Vector]
    ) -> Vector:
        """Return the expected improvements of trials whose log errors are normally distributed, ``[N]``.

        One standard normal variable moves all scores of a trial together, so that the integral has one dimension.

        Args:
            means: Posterior means of their log errors, ``[N, S]``.
            deviations: Posterior standard deviations of their log errors, ``[N, S]``.
            place_candidates: Function from log errors, ``[N, S]``, to the objectives of candidates, ``[N, K, M]``.
        """
        expected = np.zeros(len(means))
        for node, weight in QUADRATURE:
            expected += weight * self.compute_improvements(place_candidates(means + node * deviations))
        return expected


@dataclass(frozen=True)
class TrialFeatures:
    """What is known of a trial before it is trained.

    Attributes:
        config: Student, distillation and fitting of the trial.
        point: Normalised objectives of the uncompressed student, ``[M]``; its scores are placeholders.
        log_cost: Decimal logarithm of its first cost.
        log_density: Decimal logarithm of its number of parameters per cost; 0 if that is unknown.
        epoch_cost: Compute cost of one epoch, as :func:`estimate_epoch_cost` gives it.
    """

    config: CompressionConfig
    point: Vector
    log_cost: float
    log_density: float
    epoch_cost: float


@dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier run.

    Attributes:
        rungs: Candidates at each number of epochs, the fewest first, and the uncompressed one first in each.
        is_on_front: Whether a candidate of it is on the front of the earlier run.
    """

    rungs: tuple[tuple[Candidate, ...], ...]
    is_on_front: bool


@dataclass
class TrialObservations:
    """Scores of a trial at the rungs that it has reached.

    Attributes:
        features: Features of the trial.
        errors: Normalised scores, ``[S]``, less is better, by the share of the epochs.
    """

    features: TrialFeatures
    errors: dict[float, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorModels:
    """Models of the scores of trials, which are modelled independently.

    Attributes:
        processes: Gaussian process of the log error of each score: ``log(error - irreducible + ERROR_FLOOR)``.
        irreducible: Irreducible error of each score, ``[S]``.
    """

    processes: Sequence[GaussianProcess]
    irreducible: Vector

    @classmethod
    def fit(cls, inputs: Inputs, errors: Vector, groups: NDArray[np.int_]) -> "ErrorModels":
        """Return models that are fitted to observed trials.

        Args:
            inputs: The trials, ``N`` of them.
            errors: Their normalised scores, ``[N, S]``, less is better.
            groups: Number of the hyperparameter of each coordinate.
        """
        errors = np.clip(errors, 0.0, ERROR_CEILING)
        irreducible = np.array([fit_irreducible_error(inputs, column, ERROR_FLOOR) for column in errors.T])
        logs = np.log(errors - irreducible + ERROR_FLOOR)
        return cls([GaussianProcess(inputs, column, groups) for column in logs.T], irreducible)

    def predict(self, inputs: Inputs) -> tuple[Vector, Vector]:
        """Return posterior means and standard deviations of the log errors, ``[N, S]`` each."""
        means, deviations = zip(*(process.predict(inputs) for process in self.processes), strict=True)
        return np.column_stack(means), np.column_stack(deviations)

    def compute_errors(self, log_errors: Vector) -> Vector:
        """Return the errors of log errors, ``[N, S]`` each."""
        return np.asarray(np.exp(log_errors) - ERROR_FLOOR + self.irreducible)


class SurrogateSampler:
    """Selects the next trial: the one with the largest expected hypervolume improvement per compute cost.

    Args:
        space: The search space.
        price: Function that returns the costs of a trial under each compression recipe.
        normalise: Function from a candidate to its normalised objectives, ``[M]``, not clipped.
        objectives: Objectives of the search.
        seed: Seed of the candidate pool.
    """

    def __init__(
        self,
        space: Space,
        price: CostEstimator,
        normalise: Callable[[Candidate], Vector],
        objectives: Sequence[ObjectiveSpec],
        seed: int,
    ) -> None:
        self._space = space
        self._price = price
        self._normalise = normalise
        kinds = [objective.kind for objective in objectives]
        self._score_columns = [column for column, kind in enumerate(kinds) if kind == "score"]
        self._cost_name = objectives[kinds.index("cost")].name
        self._seed = seed
        self._encoding = Encoding(space)
        self._observations: dict[int, TrialObservations] = {}
        self._complete: list[int] = []
        self._complete_points: dict[CompressionConfig, Vector] = {}
        self._effects: dict[CompressionRecipe, list[Vector]] = {}
        # Median effects of the non-dominated compression recipes on normalised objectives, [K, M].
        self._median_effects: Vector = np.zeros((1, len(objectives)))
        # Costs of uncompressed students by fingerprint; empty where a student cannot be built.
        self._costs: dict[str, Mapping[str, float]] = {}
        # A candidate whose scores stand in for the unknown ones where only costs are to be normalised.
        self._template: Candidate | None = None
        self._pricing: Iterator[bool] | None = None
        # Trials on the front of an earlier run, moved into the search space.
        self._earlier_front: list[CompressionConfig] = []

    @property
    def has_complete_trial(self) -> bool:
        """Whether a trial of this or an earlier search is complete, so that predictions tell paused trials apart."""
        return any(number != TEACHER for number in self._complete)

    def record_earlier_trials(self, trials: Sequence[EarlierTrial]) -> None:
        """Record the trials of an earlier run; those on its front are in every pool of candidates.

        Args:
            trials: The trials, the oldest first.
        """
        for age, trial in enumerate(reversed(trials), start=1):
            for candidates in trial.rungs:
                self.record_trial(TEACHER - age, candidates)
            if trial.is_on_front:
                values = self.sampler_values(trial.rungs[0][0].config.training)
                # Hyperparameters that the earlier space lacks are drawn at random, and the same at each start.
                draw = MutationTrial(values, Random(fingerprint([self._seed, age])), mutation_rate=0.0)
                self._earlier_front.append(self._space.suggest_config(draw, with_compression=False)[0])

    def record_trial(self, number: int, candidates: Sequence[Candidate]) -> None:
        """Record a trial's candidates at a rung or at its end.

        Nothing is recorded unless the first candidate is the uncompressed one and its objectives are finite.

        Args:
            number: The number of its job; that of the teacher is -1, and those of earlier runs are lower.
            candidates: Candidates of the trial at one number of epochs.
        """
        self._pricing = None
        parent = candidates[0]
        point = self._normalise(parent)
        is_compressed = parent.config.prune is not None or parent.config.quantize is not None
        if is_compressed or not np.isfinite(point).all():
            return
        config = parent.config.training
        self._template = self._template or parent
        # An earlier run may have counted other costs, such as those of smaller images.
        if number >= TEACHER:
            self._costs.setdefault(_student_key(config), parent.costs)
        features = self._extract_features(config, parent.costs)
        observations = self._observations.setdefault(number, TrialObservations(features))
        share = 1.0 if parent.complete else parent.epochs / max(count_fit_epochs(config.fit), parent.epochs)
        observations.errors[share] = point[self._score_columns]
        if not parent.complete:
            return
        self._complete.append(number)
        self._complete_points[config] = point
        self.record_compressions(candidates)

    def record_compressions(self, candidates: Sequence[Candidate]) -> None:
        """Record the effects of compression recipes on complete trials, refinements included."""
        for candidate in candidates:
            before = self._complete_points.get(candidate.config.training)
            effect = None if before is None else self._normalise(candidate) - before
            if effect is not None and np.isfinite(effect).all():
                recipe = CompressionRecipe(candidate.config.prune, candidate.config.quantize)
                self._effects.setdefault(recipe, []).append(effect)
        if self._effects:
            medians = [np.median(np.stack(effects[-RECENT_EFFECTS:]), axis=0) for effects in self._effects.values()]
            # Effects are added to every point alike, so a dominated effect gives a dominated candidate.
            self._median_effects = np.asarray(moocore.filter_dominated(np.stack(medians)))

    @single_threaded_blas()
    def select_trial(
        self,
        front: Vector,
        number: int,
        paused: Mapping[int, float],
        running: Mapping[int, CompressionConfig],
        is_duplicate: Callable[[CompressionConfig], bool] | None,
    ) -> CompressionConfig | int | None:
        """Return the config of the new trial, or the number of the paused one, with the largest EHVI per compute cost.

        Args:
            front: Normalised objectives of the front, ``[N, M]``.
            number: The job number that a new trial will get; it seeds the candidate pool.
            paused: Epochs left of each paused trial, by number.
            running: Configs of running trials, by number; what they are expected to add is not counted again.
            is_duplicate: Predicate for configs that were proposed before; ``None`` where no new trial may start.

        Returns:
            The selection, or ``None`` where nothing was observed yet or no improvement is expected.
        """
        self._pricing = None
        if not self._observations:
            return None
        pool = () if is_duplicate is None else self._draw_pool(number, self._nearest_to_front(front))
        new = list(self._price_pool(config for config in pool if is_duplicate is None or not is_duplicate(config)))
        waiting = [trial for trial in paused if trial in self._observations]
        running_features = [self._observations[trial].features for trial in running if trial in self._observations]
        models = self._fit_models()
        if is_duplicate is not None:
            new += self._screen_configs(number, front, models, running_features, is_duplicate)
        options = [*new, *(self._observations[trial].features for trial in waiting)]
        if not options:
            return None
        epochs = [count_fit_epochs(option.config.fit) for option in new]
        gains, rates = self._rate_trials(
            options, [*epochs, *(paused[trial] for trial in waiting)], models, running_features, front
        )
        best = int(np.argmax(rates))
        if not rates[best] > 0:
            logger.debug("no improvement expected from %d new and %d paused trials", len(new), len(waiting))
            return None
        selection = new[best].config if best < len(new) else waiting[best - len(new)]
        title = "a new trial" if best < len(new) else f"paused trial {selection}"
        logger.debug(
            "selected %s of %d options: EHVI %.3g, %.3g per cost", title, len(options), gains[best], rates[best]
        )
        return selection

    @single_threaded_blas()
    def price_ahead(self, front: Vector, number: int, running: Mapping[int, CompressionConfig]) -> bool:
        """Price one student that the next selection will probably compare, while workers are busy.

        Prices are cached, so no selection depends on it.

        Args:
            front: Normalised objectives of the present front, ``[N, M]``.
            number: The job number that a new trial will get.
            running: Configs of running trials, which may be parents of the next pool.

        Returns:
            Whether there may be more to price.
        """
        if not self._observations:
            return False
        if self._pricing is None:
            self._pricing = self._price_next_pools(front, number, running)
        return next(self._pricing, None) is not None

    def sampler_values(self, config: CompressionConfig) -> dict[str, Leaf]:
        """Return the values that a sampler has to propose to get a config."""
        return self._encoding.sampler_values(config)

    # -- the candidate pool -------------------------------------------------------------------

    def _price_next_pools(self, front: Vector, number: int, running: Mapping[int, CompressionConfig]) -> Iterator[bool]:
        for parents in (self._nearest_to_front(front), running):
            for _ in self._price_pool(self._draw_pool(number, parents)):
                yield True

    def _draw_pool(self, number: int, parents: Mapping[int, CompressionConfig]) -> Iterator[CompressionConfig]:
        """Yield random configs and mutations of the parents, without repeats.

        The random stream of a parent depends on no other parent, so that pricing ahead draws the same mutations. Random
        configs and all parents take turns: only so many students are priced, and without random ones a search would
        stay where it began.
        """
        streams: list[tuple[Mapping[str, Leaf], Random, int]] = [
            (self.sampler_values(config), Random(fingerprint([self._seed, number, parent])), 1)
            for parent, config in parents.items()
        ]
        per_turn = RANDOM_CANDIDATES // MUTATIONS_PER_PARENT
        streams.append(({}, Random(fingerprint([self._seed, number, None])), per_turn))
        drawn = {fingerprint(config.to_json()) for config in self._earlier_front}
        yield from self._earlier_front
        for _ in range(MUTATIONS_PER_PARENT):
            for values, random, count in streams:
                for _ in range(count):
                    config = self._space.suggest_config(MutationTrial(values, random), with_compression=False)[0]
                    key = fingerprint(config.to_json())
                    if key not in drawn:
                        yield config
                    drawn.add(key)

    def _nearest_to_front(self, front: Vector) -> dict[int, CompressionConfig]:
        """Return the complete trials whose candidates lie nearest to the front, the nearest first."""
        distances = {}
        for number in self._complete:
            observations = self._observations[number]
            (points,) = self._place_candidates(observations.features.point[None], observations.errors[1.0][None])
            # The distance of a point is how far it must move in one objective until the front does not dominate it.
            gaps = np.clip(points[:, None] - front[None], 0.0, None).min(axis=2).max(axis=1, initial=0.0)
            # Of equally near trials, the later one comes first.
            distances[number] = (float(gaps.min()), -number)
        nearest = sorted(distances, key=lambda number: distances[number])[:PARENTS]
        return {number: self._observations[number].features.config for number in nearest}

    def _price_pool(
        self, configs: Iterator[CompressionConfig], max_students: int = MAX_NEW_STUDENTS
    ) -> Iterator[TrialFeatures]:
        """Yield the features of the configs whose students can be priced; the number of new students is limited."""
        trained = {_student_key(observations.features.config) for observations in self._observations.values()}
        new: set[str] = set()
        left = max_students if self.has_complete_trial else MAX_NEW_STUDENTS_AT_START
        for config in configs:
            key = _student_key(config)
            if key not in trained and key not in new:
                if left <= 0:
                    continue
                left -= TEACHER_DERIVED_PRICING if list_teacher_pruning(config.student) else 1
                new.add(key)
            if key not in self._costs:
                try:
                    self._costs[key] = next(iter(self._price(config, [CompressionRecipe()])), {})
                except AutocompressError:
                    self._costs[key] = {}
            if self._costs[key]:
                yield self._extract_features(config, self._costs[key])

    def _extract_features(self, config: CompressionConfig, costs: Mapping[str, float]) -> TrialFeatures:
        assert self._template is not None
        candidate = Candidate("", -1, config, 0, self._template.scores, costs)
        log_cost = math.log10(max(costs.get(self._cost_name, 0.0), MIN_COST))
        parameters = costs.get("parameters", 0.0)
        density = math.log10(parameters) - log_cost if parameters > 0 else 0.0
        return TrialFeatures(config, self._normalise(candidate), log_cost, density, estimate_epoch_cost(costs, config))

    def _screen_configs(
        self,
        number: int,
        front: Vector,
        models: ErrorModels,
        running: Sequence[TrialFeatures],
        is_duplicate: Callable[[CompressionConfig], bool],
    ) -> list[TrialFeatures]:
        """Return the priced configs of a larger pool that promise most by estimated costs."""
        # Only students that were trained, and not all that were priced, so that a resumed search estimates the same.
        trained = [self._observations[trial].features.config for trial in sorted(self._observations)]
        trained = [config for config in trained if self._costs.get(_student_key(config))]
        if len(self._complete) < MIN_SCREENING_TRIALS or not trained:
            return []
        configs = [config for config in self._draw_screened(number, front) if not is_duplicate(config)]
        if not configs:
            return []
        student_costs = [self._costs[_student_key(config)] for config in trained]
        names = sorted(set.intersection(*map(set, student_costs)))
        logs = np.log10([[max(costs[name], MIN_COST) for name in names] for costs in student_costs])
        seen = np.stack([self._encoding.encode_trial(config)[0] for config in trained])
        new = np.stack([self._encoding.encode_trial(config)[0] for config in configs])
        estimates = 10.0 ** interpolate_values(seen, logs, new)
        trials = [
            self._extract_features(config, dict(zip(names, map(float, costs), strict=True)))
            for config, costs in zip(configs, estimates, strict=True)
        ]
        epochs = [count_fit_epochs(config.fit) for config in configs]
        _, rates = self._rate_trials(trials, epochs, models, running, front)
        promising = (configs[index] for index in np.argsort(-rates, kind="stable") if rates[index] > 0)
        return list(self._price_pool(promising, MAX_SCREENED_STUDENTS))[:MAX_SCREENED_STUDENTS]

    def _draw_screened(self, number: int, front: Vector) -> Iterator[CompressionConfig]:
        """Yield configs of the larger pool: neighbours of the parents, and as many random ones."""
        random = Random(fingerprint([self._seed, number, "screened"]))
        parents = [self.sampler_values(config) for config in self._nearest_to_front(front).values()]
        # One hyperparameter of a neighbour changes on average.
        rate = 1 / max(len(self._encoding.dimensions), 1)
        drawn = set()
        for index in range(SCREENED_CONFIGS):
            parent = parents[index // 2 % len(parents)] if index % 2 else {}
            config = self._space.suggest_config(MutationTrial(parent, random, rate), with_compression=False)[0]
            if config not in drawn:
                yield config
            drawn.add(config)

    # -- the acquisition function -------------------------------------------------------------

    def _rate_trials(
        self,
        options: Sequence[TrialFeatures],
        epochs: Sequence[float],
        models: ErrorModels,
        running: Sequence[TrialFeatures],
        front: Vector,
    ) -> tuple[Vector, Vector]:
        """Return the expected improvement of each option, and its rate per compute cost; 0 for noise; ``[N]`` each."""
        gains = self._expect_improvements(options, models, running, front)
        # A trial without training still takes time, to cut, quantize and score.
        costs = np.maximum(epochs, UNTRAINED_EPOCHS) * np.array([option.epoch_cost for option in options])
        return gains, np.where(gains > MIN_IMPROVEMENT, gains / costs, 0.0)

    def _expect_improvements(
        self,
        options: Sequence[TrialFeatures],
        models: ErrorModels,
        running: Sequence[TrialFeatures],
        front: Vector,
    ) -> Vector:
        """Return the expected hypervolume improvement of each option, ``[N]``.

        It counts from the front together with the posterior means of running trials.
        """
        inputs = self._encode_inputs([*options, *running], [1.0] * (len(options) + len(running)))
        means, deviations = models.predict(inputs)
        points = np.stack([trial.point for trial in [*options, *running]])
        count = len(options)
        expected = self._place_candidates(points[count:], models.compute_errors(means[count:]))
        ehvi = ExpectedHypervolumeImprovement(np.vstack([front, expected.reshape(-1, points.shape[1])]))
        return ehvi.compute_expectations(
            means[:count],
            deviations[:count],
            lambda log_errors: self._place_candidates(points[:count], models.compute_errors(log_errors)),
        )

    def _place_candidates(self, points: Vector, errors: Vector) -> Vector:
        """Return the objectives of trials' candidates, ``[N, K, M]``: each trial's point plus each median effect.

        Args:
            points: Normalised objectives of the uncompressed students, ``[N, M]``.
            errors: Normalised scores that replace those of the points, ``[N, S]``.
        """
        parents = points.copy()
        parents[:, self._score_columns] = errors
        return np.asarray(parents[:, None] + self._median_effects)

    def _fit_models(self) -> ErrorModels:
        # Sorted, so that a resumed search sees its observations in the same order.
        history = [self._observations[number] for number in sorted(self._observations)]
        rows = [(past.features, share, errors) for past in history for share, errors in sorted(past.errors.items())]
        rows = rows[-MAX_OBSERVATIONS:]
        seen = self._encode_inputs([features for features, _, _ in rows], [share for _, share, _ in rows])
        logger.debug("surrogate fitted to %d observations of %d trials", len(rows), len(history))
        return ErrorModels.fit(seen, np.stack([errors for _, _, errors in rows]), self._encoding.groups)

    def _encode_inputs(self, trials: Sequence[TrialFeatures], shares: Sequence[float]) -> Inputs:
        pairs = [self._encoding.encode_trial(trial.config) for trial in trials]
        return Inputs(
            np.stack([student for student, _ in pairs]),
            np.stack([recipe for _, recipe in pairs]),
            np.array([trial.log_cost for trial in trials]),
            np.array([trial.log_density for trial in trials]),
            np.log(np.array(shares)),
        )


def _student_key(config: CompressionConfig) -> str:
    # The costs of an uncompressed student depend on nothing else.
    return fingerprint(config.student.to_json())
