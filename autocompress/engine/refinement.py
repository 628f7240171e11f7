"""Refinement: which checkpoint gets a compression step that trains.

Such steps (recovery after pruning, quantization-aware training) cost epochs, so they are not applied to every
checkpoint. The effect of a step is predicted as its median effect on earlier checkpoints: a shift of the candidate's
point in the normalized objectives, where costs are logarithms. The step with the largest predicted hypervolume per
compute cost (epochs times the cost of an epoch) runs first. Where new trials add more hypervolume per compute cost,
they come first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import moocore
import numpy as np
from numpy.typing import NDArray

from autocompress.analysis.pareto import primary_objectives
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import BaseCheckpoint, Candidate, CompressionRecipe, Job
from autocompress.core.run_info import ObjectiveSpec
from autocompress.engine.archive import Archive, CostEstimator
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost, count_recipe_epochs
from autocompress.engine.space import Mode

Vector = NDArray[np.float64]


class SequentialRefinement:
    """Selects refinement jobs stage by stage, each on the choice of the stage before.

    The choice of a stage is the cheapest candidate that loses at most ``drop`` against the best score of the stage.

    Args:
        recipes: Whole grid of compression recipes.
        drop: Loss against the best that a choice may have, in the first score.
        normalize: Function from a candidate to its normalized objectives, ``[M]``.
        score: Function that returns a candidate's first score, larger is better.
        cost_column: Column of the first cost in the normalized objectives.

    Attributes:
        immediate_recipes: Recipes that every complete trial gets at once: only the uncompressed model.
        later_epochs: Estimated epochs of the later stages, for which trials leave time. A step that trains nothing
            counts as one epoch: it calibrates and scores.
    """

    immediate_recipes = (CompressionRecipe(),)

    def __init__(
        self,
        recipes: Sequence[CompressionRecipe],
        drop: float,
        normalize: Callable[[Candidate], Vector],
        score: Callable[[Candidate], float],
        cost_column: int,
    ) -> None:
        self._prunings = list(dict.fromkeys(recipe.prune for recipe in recipes if recipe.prune is not None))
        self._quantizations = list(dict.fromkeys(recipe.quantize for recipe in recipes if recipe.quantize is not None))
        steps = [CompressionRecipe(prune) for prune in self._prunings]
        steps += [CompressionRecipe(quantize=quantize) for quantize in self._quantizations]
        self.later_epochs = sum(max(1.0, count_recipe_epochs(step)) for step in steps)
        self._drop = drop
        self._normalize = normalize
        self._score = score
        self._cost_column = cost_column
        self._float_candidates: list[Candidate] = []
        self._started_jobs: list[Job] = []
        self._finished_jobs: set[int] = set()
        self._trials_ended = False

    def record_training(self, epochs: float) -> None:
        """Do nothing: the stages have no budget of epochs."""

    def end_trials(self) -> None:
        """Begin the second stage: no trial will follow."""
        self._trials_ended = True

    def record_start(self, job: Job) -> None:
        """Record a refinement job that was handed out."""
        # A resumed search is in the second stage if one of its jobs had started.
        self._trials_ended = True
        self._started_jobs.append(job)

    def record_result(self, number: int, candidates: Sequence[Candidate], gain: float) -> None:
        """Record the result of a trial or refinement job.

        Args:
            number: Job number.
            candidates: Candidates of the job; empty if it failed.
            gain: Normalized hypervolume that they added to the front; not used here.
        """
        self._finished_jobs.add(number)
        self._float_candidates += [
            candidate for candidate in candidates if candidate.config.quantize is None and candidate.checkpoint
        ]

    def select_job(self, front: Vector, owners: Sequence[str], number: int) -> Job | None:
        """Return the next job of the stage; ``None`` while the stage before is running, and after the last stage.

        Args:
            front: Normalized objectives of the front, ``[N, M]``; not used here.
            owners: Checkpoint of each point of the front; not used here.
            number: Number of the new job.
        """
        if not self._trials_ended or not self._float_candidates:
            return None
        pruning_jobs = [job for job in self._started_jobs if job.recipes[0].quantize is None]
        if not self._started_jobs and self._prunings:
            return self._make_job(self._choose_architecture(), CompressionRecipe(self._prunings[0]), number)
        if len(pruning_jobs) < len(self._prunings):
            architecture = self._find_checkpoint(pruning_jobs[0])
            return self._make_job(architecture, CompressionRecipe(self._prunings[len(pruning_jobs)]), number)
        quantization_count = len(self._started_jobs) - len(pruning_jobs)
        is_pruning = any(job.number not in self._finished_jobs for job in pruning_jobs)
        if quantization_count == len(self._quantizations) or is_pruning:
            return None
        pruned = self._choose_pruning()
        recipe = CompressionRecipe(pruned.config.prune, self._quantizations[quantization_count])
        return self._make_job(pruned, recipe, number)

    def _choose_architecture(self) -> Candidate:
        return self._choose_cheapest([option for option in self._float_candidates if option.config.prune is None])

    def _choose_pruning(self) -> Candidate:
        """Return the choice among the prunings of the architecture; itself among them, for a pruning may fail."""
        if not self._started_jobs:
            return self._choose_architecture()
        training = self._find_checkpoint(self._started_jobs[0]).config.training
        return self._choose_cheapest(
            [option for option in self._float_candidates if option.config.training == training]
        )

    def _choose_cheapest(self, options: Sequence[Candidate]) -> Candidate:
        best = max(self._score(candidate) for candidate in options)
        near_best = [candidate for candidate in options if self._score(candidate) >= best - self._drop]
        # By name where costs are equal, so that the choice is the same after a resume.
        return min(near_best, key=lambda candidate: (self._normalize(candidate)[self._cost_column], candidate.id))

    def _find_checkpoint(self, job: Job) -> Candidate:
        """Return the float candidate whose checkpoint a refinement job compresses."""
        name = "" if job.base is None else job.base.checkpoint
        return next(candidate for candidate in self._float_candidates if candidate.checkpoint == name)

    def _make_job(self, candidate: Candidate, recipe: CompressionRecipe, number: int) -> Job:
        base = BaseCheckpoint(candidate.checkpoint, candidate.config.prune, candidate.epochs)
        return Job(number, candidate.config.training, (recipe,), base=base)


# Smallest predicted gain that counts, in normalized hypervolume: less is noise.
MIN_GAIN = 1e-4
# Number of recent checkpoints that are considered beside those on the front. A checkpoint behind the front may come to
# lie on it once it is compressed.
RECENT_CHECKPOINTS = 32
# Number of latest trials whose gain per compute cost a refinement has to exceed.
LATEST_TRIALS = 3


@dataclass
class Checkpoint:
    """Weights of a complete trial, and the points of the candidates made from them so far.

    Attributes:
        name: Name of the weights in the store.
        training: Training configuration.
        prune: Pruning of the weights, or ``None``.
        epochs: Number of epochs of the training.
        epoch_cost: Compute cost of one epoch.
        points: Quantization to the candidate's normalized objectives, ``[M]``; ``None`` is the float model.
    """

    name: str
    training: CompressionConfig
    prune: Part | None
    epochs: int
    epoch_cost: float
    points: dict[Part | None, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class RefinementStep:
    """A compression step that trains: pruning of an unpruned model, or quantization of any model.

    Attributes:
        prune: Pruning, or ``None``.
        quantize: Quantization, or ``None``; exactly one of the two is set.
        epochs: Number of passes over the training split.
    """

    prune: Part | None
    quantize: Part | None
    epochs: float

    @property
    def method(self) -> str:
        """Name of the method, whatever its settings."""
        part = self.prune or self.quantize
        return "" if part is None else part.name


class Refinement:
    """Selects refinement jobs by predicted hypervolume per compute cost.

    Args:
        recipes: Whole grid of compression recipes.
        share: Epochs that refinements may use, as a share of the epochs of all trials.
        normalize: Function from a candidate to its normalized objectives, ``[M]``, not clipped.
        estimate_costs: Function that returns the costs of recipes of a training; without it, each setting of a method
            is tried once in order to learn its effect.

    Attributes:
        immediate_recipes: Recipes that train nothing, which every complete trial gets at once.
        later_epochs: Epochs for which trials leave time: none, as refinements compete with trials.
    """

    later_epochs = 0.0

    def __init__(
        self,
        recipes: Sequence[CompressionRecipe],
        share: float,
        normalize: Callable[[Candidate], Vector],
        estimate_costs: CostEstimator | None = None,
    ) -> None:
        immediate_recipes, self._steps = split_recipes(recipes)
        self.immediate_recipes = tuple(immediate_recipes)
        # A model that was pruned and recovered is quantized in each of these ways.
        self._quantizations = tuple(
            dict.fromkeys(recipe.quantize for recipe in immediate_recipes if recipe.prune is None)
        )
        self._share = share
        self._normalize = normalize
        self._estimate_costs = estimate_costs
        self._first_parent: Candidate | None = None
        self._savings: dict[RefinementStep, Vector | None] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._unpruned: dict[CompressionConfig, Checkpoint] = {}
        self._started: set[tuple[str, RefinementStep]] = set()
        self._started_steps: set[RefinementStep] = set()
        self._shifts: dict[RefinementStep, list[Vector]] = {}
        # Cache of predicted gains by checkpoint, valid while the front and the predicted shifts are the same
        # (`_gains_key`): each gain costs one hypervolume, and most results leave most gains as they were.
        self._gains: dict[str, dict[RefinementStep, float]] = {}
        self._gains_key: tuple[bytes | None, ...] = ()
        self._trial_epochs = 0.0
        self._refinement_epochs = 0.0
        self._refinement_jobs: set[int] = set()
        self._trial_gain_rates: list[float] = []
        self._trials_ended = False

    def list_steps(self, recipe: CompressionRecipe) -> list[RefinementStep]:
        """Return the steps of a recipe that train, in their order."""
        parts = ((recipe.prune, None), (None, recipe.quantize))
        return [step for step in self._steps if (step.prune, step.quantize) in parts]

    # -- what has happened --------------------------------------------------------------------

    def record_training(self, epochs: float) -> None:
        """Record epochs that trials have trained."""
        self._trial_epochs += epochs

    def end_trials(self) -> None:
        """Record that no trial competes with refinements any more."""
        self._trials_ended = True

    def record_start(self, job: Job) -> None:
        """Record a refinement job that was handed out."""
        assert job.base is not None
        self._refinement_jobs.add(job.number)
        for recipe in job.recipes:
            for step in self.list_steps(recipe):
                if (job.base.checkpoint, step) not in self._started:
                    self._started.add((job.base.checkpoint, step))
                    self._started_steps.add(step)
                    self._refinement_epochs += step.epochs

    def record_result(self, number: int, candidates: Sequence[Candidate], gain: float) -> None:
        """Record the result of a trial or refinement job; only candidates of complete trials count.

        Args:
            number: Job number.
            candidates: Candidates of the job; empty if it failed.
            gain: Normalized hypervolume that they added to the front.
        """
        unpruned = [candidate for candidate in candidates if candidate.complete and candidate.config.prune is None]
        if unpruned and number not in self._refinement_jobs:
            parent = unpruned[0]
            self._trial_gain_rates.append(gain / max(parent.epochs, 1) / candidate_epoch_cost(parent))
        for candidate in candidates:
            if not candidate.complete or not candidate.checkpoint:
                continue
            config = candidate.config
            checkpoint = self._checkpoints.get(candidate.checkpoint) or self._add_checkpoint(candidate)
            if config.prune is None:
                self._unpruned.setdefault(config.training, checkpoint)
            checkpoint.points[config.quantize] = self._normalize(candidate)
            self._gains.pop(checkpoint.name, None)
            if self._first_parent is None and config.prune is None and config.quantize is None:
                self._first_parent = candidate
        # Only now, as a shift is the difference to another candidate, which may come later in the list.
        for candidate in candidates:
            self._record_shift(candidate)

    def _add_checkpoint(self, candidate: Candidate) -> Checkpoint:
        config, epoch_cost = candidate.config, candidate_epoch_cost(candidate)
        checkpoint = Checkpoint(candidate.checkpoint, config.training, config.prune, candidate.epochs, epoch_cost)
        self._checkpoints[candidate.checkpoint] = checkpoint
        return checkpoint

    def _record_shift(self, candidate: Candidate) -> None:
        """Record by how much a refinement step has moved the point of a candidate."""
        config = candidate.config
        checkpoint = self._checkpoints.get(candidate.checkpoint)
        if checkpoint is None:
            return
        after = checkpoint.points[config.quantize]
        for step in self._steps:
            before: Vector | None = None
            if step.prune is not None and step.prune == config.prune and config.quantize is None:
                parent = self._unpruned.get(config.training)
                before = None if parent is None else parent.points.get(None)
            elif step.quantize is not None and step.quantize == config.quantize:
                before = checkpoint.points.get(None)
            if before is not None:
                self._shifts.setdefault(step, []).append(after - before)

    # -- selection ----------------------------------------------------------------------------

    def select_job(self, front: Vector, owners: Sequence[str], number: int) -> Job | None:
        """Return the refinement job with the largest predicted gain per compute cost; ``None`` if none is worth it.

        Args:
            front: Normalized objectives of the front, ``[N, M]``.
            owners: Checkpoint of each point of the front, length ``N``.
            number: Number of the new job.
        """
        if not self._steps or self._refinement_epochs >= self._share * self._trial_epochs:
            return None
        untried = self._find_untried_step(owners)
        if untried is not None:
            return self._make_job(*untried, number)
        best_rate, best_step = self._minimum_gain_rate(), None
        for checkpoint, step, gain in self._predict_gains(front, owners):
            rate = gain / step.epochs / checkpoint.epoch_cost
            if gain > MIN_GAIN and rate > best_rate:
                best_rate, best_step = rate, (checkpoint, step)
        return None if best_step is None else self._make_job(*best_step, number)

    def make_step_job(self, training: CompressionConfig, step: RefinementStep, number: int) -> Job | None:
        """Return the job that applies a step to the checkpoint of a complete trial; ``None`` if there is no such job.

        Args:
            training: Training configuration of the trial.
            step: Step of the grid; one that has started on this checkpoint is not started again.
            number: Number of the new job.
        """
        checkpoint = self._unpruned.get(training)
        if checkpoint is None or (checkpoint.name, step) in self._started:
            return None
        return self._make_job(checkpoint, step, number)

    def _minimum_gain_rate(self) -> float:
        """Return the gain per compute cost that a refinement must exceed: the mean of the latest trials."""
        latest = self._trial_gain_rates[-LATEST_TRIALS:]
        return 0.0 if self._trials_ended or not latest else sum(latest) / len(latest)

    def _find_untried_step(self, owners: Sequence[str]) -> tuple[Checkpoint, RefinementStep] | None:
        """Return a step whose effect cannot be predicted yet, on the checkpoint that holds most of the front.

        An effect can be predicted after one run of the step, or after one of another setting of the same method when
        the costs of this setting are known.
        """
        started_methods = {step.method for step in self._started_steps}
        for step in self._steps:
            if step in self._started_steps or step in self._shifts:
                continue
            if step.method in started_methods and self._predict_saving(step) is not None:
                continue
            unpruned = [name for name in owners if name in self._checkpoints and self._checkpoints[name].prune is None]
            if unpruned:
                name = max(dict.fromkeys(unpruned), key=lambda owner: (unpruned.count(owner), owner))
                return self._checkpoints[name], step
        return None

    def _predict_gains(
        self, front: Vector, owners: Sequence[str]
    ) -> Iterator[tuple[Checkpoint, RefinementStep, float]]:
        """Yield every step that can still run, with the hypervolume that it is predicted to add to the front."""
        front = np.clip(front, 0.0, 1.0)
        hypervolume = moocore.Hypervolume(ref=np.ones(front.shape[1]))
        before = float(hypervolume(front))
        shifts = {step: self._predict_shift(step) for step in self._steps}
        key = (front.tobytes(), *(None if shift is None else shift.tobytes() for shift in shifts.values()))
        if key != self._gains_key:
            self._gains_key, self._gains = key, {}
        for checkpoint, step in self._open_steps(owners):
            gains = self._gains.setdefault(checkpoint.name, {})
            if step not in gains:
                points = np.clip(self._predict_points(checkpoint, step, shifts[step]), 0.0, 1.0)
                is_dominated = np.asarray((front[None] <= points[:, None]).all(axis=2)).any(axis=1)
                points = points[~is_dominated]
                gains[step] = float(hypervolume(np.vstack([front, points]))) - before if len(points) else 0.0
            yield checkpoint, step, gains[step]

    def _open_steps(self, owners: Sequence[str]) -> Iterator[tuple[Checkpoint, RefinementStep]]:
        """Yield the steps that were not started yet, on the checkpoints of the front and the recent ones."""
        names = dict.fromkeys([*owners, *list(self._checkpoints)[-RECENT_CHECKPOINTS:]])
        for name in names:
            checkpoint = self._checkpoints.get(name)
            if checkpoint is None:
                continue
            for step in self._steps:
                # A pruned model is not pruned again.
                is_applicable = checkpoint.prune is None or step.prune is None
                if is_applicable and (name, step) not in self._started:
                    yield checkpoint, step

    def _predict_points(self, checkpoint: Checkpoint, step: RefinementStep, shift: Vector | None) -> Vector:
        """Return the predicted points of a checkpoint after a step, ``[K, M]``; the reference point if unknown."""
        if shift is None or (step.prune is None and None not in checkpoint.points):
            return np.ones((1, len(next(iter(checkpoint.points.values())))))
        if step.prune is None:
            return checkpoint.points[None][None] + shift
        # A pruned model is quantized in the same ways as its parent.
        return np.stack(list(checkpoint.points.values())) + shift

    def _predict_shift(self, step: RefinementStep) -> Vector | None:
        """Return the predicted shift of a point by a step, ``[M]``: its median shift so far.

        A setting that never ran is predicted to lose as much score as the other settings of its method (the median),
        and to save the costs that are computed for it.
        """
        if step in self._shifts:
            return np.asarray(np.median(np.stack(self._shifts[step]), axis=0))
        same_method = [
            shift for other, shifts in self._shifts.items() if other.method == step.method for shift in shifts
        ]
        saving = self._predict_saving(step) if same_method else None
        if saving is None:
            return None
        return np.where(saving != 0, saving, np.median(np.stack(same_method), axis=0))

    def _predict_saving(self, step: RefinementStep) -> Vector | None:
        """Return the shift of the normalized costs by a step, ``[M]``, computed on the first trial; 0 for scores."""
        if step not in self._savings and self._estimate_costs is not None and self._first_parent is not None:
            costs = self._estimate_costs(
                self._first_parent.config.training, [CompressionRecipe(step.prune, step.quantize)]
            )
            compressed = [replace(self._first_parent, costs=step_costs) for step_costs in costs]
            before = self._normalize(self._first_parent)
            self._savings[step] = self._normalize(compressed[0]) - before if compressed else None
        return self._savings.get(step)

    def _make_job(self, checkpoint: Checkpoint, step: RefinementStep, number: int) -> Job:
        if step.prune is None:
            recipes: tuple[CompressionRecipe, ...] = (CompressionRecipe(checkpoint.prune, step.quantize),)
        else:
            recipes = tuple(CompressionRecipe(step.prune, quantize) for quantize in self._quantizations)
        base = BaseCheckpoint(checkpoint.name, checkpoint.prune, checkpoint.epochs)
        return Job(number, checkpoint.training, recipes, base=base)


def split_recipes(recipes: Sequence[CompressionRecipe]) -> tuple[list[CompressionRecipe], list[RefinementStep]]:
    """Return the recipes that train nothing, and the refinement steps of the others.

    A pruning with recovery is one step: the pruned model is then quantized in every way that trains nothing.
    """
    immediate_recipes = [recipe for recipe in recipes if not count_recipe_epochs(recipe)]
    prunings = dict.fromkeys(recipe.prune for recipe in recipes)
    quantizations = dict.fromkeys(recipe.quantize for recipe in recipes)
    steps = [
        RefinementStep(prune, None, epochs)
        for prune in prunings
        if (epochs := count_recipe_epochs(CompressionRecipe(prune)))
    ]
    steps += [
        RefinementStep(None, quantize, epochs)
        for quantize in quantizations
        if (epochs := count_recipe_epochs(CompressionRecipe(quantize=quantize)))
    ]
    return immediate_recipes, steps


def make_refinement(
    mode: Mode,
    recipes: Sequence[CompressionRecipe],
    share: float,
    max_drop: float,
    archive: Archive,
    objectives: Sequence[ObjectiveSpec],
    estimate_costs: CostEstimator | None,
) -> Refinement | SequentialRefinement:
    """Return the refinement of a search mode.

    Args:
        mode: Search mode.
        recipes: Whole grid of compression recipes.
        share: Epochs that refinements may use, as a share of the epochs of all trials.
        max_drop: Score that the choices of the mode ``sequential`` may lose against the best one.
        archive: Archive that reads the objectives of candidates.
        objectives: Objectives of the run.
        estimate_costs: Function that returns the costs of recipes of a training, or ``None``.
    """
    if not mode.stages:
        return Refinement(recipes, share, archive.normalize, estimate_costs)
    cost, score = primary_objectives(objectives)
    sign = 1.0 if score.is_maximized else -1.0
    return SequentialRefinement(
        recipes,
        max_drop,
        archive.normalize,
        lambda candidate: sign * archive.objective_value(candidate, score.name),
        [objective.name for objective in objectives].index(cost.name),
    )
