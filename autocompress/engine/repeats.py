"""Repeats: the trials behind the front of an earlier run, which a warm start runs first.

Each is trained with the seed that it had, so that it gives the same model again where task, data, teacher and software
are those of the earlier run. Few trials make up most of a front. They are selected one by one, by the hypervolume that
they add to those selected before, per compute cost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import CompressionConfig, fingerprint
from autocompress.core.records import Candidate, CompressionRecipe, Job
from autocompress.engine.refinement import RefinementStep
from autocompress.engine.sampler.acquisition import EarlierTrial, ExpectedHypervolumeImprovement
from autocompress.engine.sampler.encoding import Encoding, MutationTrial
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost, count_fit_epochs
from autocompress.engine.space import Space, trial_key

Vector = NDArray[np.float64]
#: Function from a recipe to its compression steps that train.
ListSteps = Callable[[CompressionRecipe], Sequence[RefinementStep]]
#: Function from candidates to their normalized objectives, ``[K, M]``, not clipped.
Normalize = Callable[[Sequence[Candidate]], Vector]

# Share of the hypervolume of the earlier front that a repeat has to add. The trials that add less are many, and the
# surrogate knows their scores.
MIN_SHARE = 1e-4


@dataclass(frozen=True)
class Repeat:
    """A trial of an earlier front, or a compression step of its checkpoint.

    Attributes:
        training: Training configuration, with the seed of the earlier trial.
        step: Compression step that trains; None for the trial itself.
    """

    training: CompressionConfig
    step: RefinementStep | None = None


class Repeats:
    """Queue of the repeats that have not started.

    Args:
        trials: Trials of the earlier run.
        space: Search space of the new search.
        list_steps: Function from a recipe to its compression steps that train.
        normalize: Function from candidates to their normalized objectives, ``[K, M]``, not clipped.
    """

    def __init__(
        self, trials: Sequence[EarlierTrial], space: Space, list_steps: ListSteps, normalize: Normalize
    ) -> None:
        options = [option for trial in trials if trial.is_on_front for option in _list_options(trial, list_steps)]
        encoding = Encoding(space)
        self._queue = [
            replace(repeat, training=move_into_space(repeat.training, space, encoding))
            for repeat in _select_repeats(options, normalize)
        ]
        # Two trials may differ in a hyperparameter that the new space lacks: the first one counts.
        self._seeds = {_make_key(repeat.training): repeat.training.seed for repeat in reversed(self._queue)}

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Repeat]:
        return iter(tuple(self._queue))

    def __contains__(self, repeat: Repeat) -> bool:
        return repeat in self._queue

    def remove(self, repeat: Repeat) -> None:
        """Remove a repeat that has started, or never can."""
        self._queue.remove(repeat)

    def find_seed(self, training: CompressionConfig) -> int | None:
        """Return the seed of the earlier trial with a configuration, whatever its own seed; None if there is none."""
        return self._seeds.get(_make_key(training))


@dataclass(frozen=True)
class _Option:
    """Candidates of a repeat, and its compute cost without that of the training before it."""

    repeat: Repeat
    candidates: tuple[Candidate, ...]
    cost: float


def _list_options(trial: EarlierTrial, list_steps: ListSteps) -> Iterator[_Option]:
    """Yield the training of a trial of the front, and each step that compressed its checkpoint."""
    complete = [candidate for candidate in trial.rungs[-1] if candidate.complete]
    training, epoch_cost = complete[0].config.training, candidate_epoch_cost(complete[0])
    groups: dict[tuple[RefinementStep, ...], list[Candidate]] = {(): []}
    for candidate in complete:
        recipe = CompressionRecipe(candidate.config.prune, candidate.config.quantize)
        groups.setdefault(tuple(list_steps(recipe)), []).append(candidate)
    for steps, candidates in groups.items():
        # Two steps in a row are left to the refinement, which judges the second one by the result of the first.
        if len(steps) <= 1:
            epochs = steps[0].epochs if steps else count_fit_epochs(training.fit)
            yield _Option(Repeat(training, *steps), tuple(candidates), epochs * epoch_cost)


def _select_repeats(options: Sequence[_Option], normalize: Normalize) -> list[Repeat]:
    """Return the repeats with the largest gain per compute cost first; a training comes before its steps."""
    if not options:
        return []
    points = {option.repeat: normalize(option.candidates) for option in options}
    least = MIN_SHARE * _compute_gain([], list(points.values()))
    selected = _order_options(options, points, least)
    # Later repeats may cover what an earlier one of low cost was selected for.
    for option in sorted(selected, key=lambda option: -option.cost):
        others = [other for other in selected if other != option]
        is_needed = any(other.repeat.training == option.repeat.training for other in others if not option.repeat.step)
        if not is_needed and _compute_gain([points[other.repeat] for other in others], [points[option.repeat]]) < least:
            selected = others
    return [option.repeat for option in _order_options(selected, points, least)]


def _order_options(options: Sequence[_Option], points: Mapping[Repeat, Vector], least: float) -> list[_Option]:
    """Return the options that add more than the least gain, those with the largest gain per compute cost first."""
    trainings = {option.repeat.training: option for option in options if option.repeat.step is None}
    ordered: list[_Option] = []
    left = list(options)
    while left:
        front = [points[option.repeat] for option in ordered]
        # A step needs the checkpoint of its training.
        bundles = [
            [*([before] if (before := trainings[option.repeat.training]) != option and before in left else []), option]
            for option in left
        ]
        gains = [_compute_gain(front, [points[option.repeat] for option in bundle]) for bundle in bundles]
        rates = [
            gain / sum(option.cost for option in bundle) if gain > least else 0.0
            for gain, bundle in zip(gains, bundles, strict=True)
        ]
        best = int(np.argmax(rates))
        if not rates[best] > 0:
            break
        ordered += bundles[best]
        left = [option for option in left if option not in bundles[best]]
    return ordered


def _compute_gain(front: Sequence[Vector], points: Sequence[Vector]) -> float:
    """Return the hypervolume that points add to those of a front."""
    new = np.vstack(points)
    ehvi = ExpectedHypervolumeImprovement(np.vstack([new[:0], *front]))
    return float(ehvi.compute_improvements(new[None])[0])


def move_into_space(training: CompressionConfig, space: Space, encoding: Encoding) -> CompressionConfig:
    """Return the configuration of a space that is nearest to one of another space, with its seed."""
    # Hyperparameters that the earlier space lacks are drawn at random, and the same at each start.
    random = Random(fingerprint(training.to_json()))
    draw = MutationTrial(encoding.sampler_values(training), random, mutation_rate=0.0)
    config, _ = space.suggest_config(draw, with_compression=False)
    return replace(config, seed=training.seed)


def _make_key(training: CompressionConfig) -> str:
    return trial_key(Job(0, training, ()), amortized=True)
