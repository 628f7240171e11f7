"""SMAC3 (Lindauer et al. 2022, JMLR 23(54)) as a sampler of Optuna, for comparison with other samplers."""

import tempfile
from collections.abc import Sequence
from typing import Any

import ConfigSpace
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from smac import HyperparameterOptimizationFacade, Scenario
from smac.multi_objective.parego import ParEGO
from smac.runhistory import TrialInfo, TrialValue

#: Complete trials before SMAC proposes; they are drawn at random.
STARTUP = 8
#: SMAC wants a number of trials, which bounds its random forests and nothing else here.
TRIALS = 10_000


class SMACSampler(BaseSampler):
    """SMAC's random forest with ParEGO over the hyperparameters that all trials have; others are drawn at random.

    Args:
        seed: Seed of the proposals.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = RandomSampler(seed)
        self._spaces = IntersectionSearchSpace()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the hyperparameters that all complete trials have and that have more than one value."""
        spaces = self._spaces.calculate(study)
        return {name: distribution for name, distribution in spaces.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return what SMAC proposes after all complete trials; nothing while these are few."""
        complete = [past for past in study.get_trials(deepcopy=False) if past.state is TrialState.COMPLETE]
        if len(complete) < STARTUP or not search_space:
            return {}
        space = ConfigSpace.ConfigurationSpace(seed=self._seed + trial.number)
        space.add([_convert(name, distribution) for name, distribution in search_space.items()])
        names = [f"objective {number}" for number in range(len(study.directions))]
        with tempfile.TemporaryDirectory() as folder:
            scenario = Scenario(
                space,
                deterministic=True,
                n_trials=TRIALS,
                objectives=names,
                seed=self._seed + trial.number,
                output_directory=folder,
            )
            # The study is the state, as it has trials that SMAC did not propose; a new optimizer is told all of them.
            # An initial design cannot be empty, and SMAC skips a configuration that it knows.
            first = _make_config(space, search_space, complete[0])
            smac = HyperparameterOptimizationFacade(
                scenario,
                _refuse,
                initial_design=HyperparameterOptimizationFacade.get_initial_design(
                    scenario, n_configs=0, additional_configs=[first]
                ),
                multi_objective_algorithm=ParEGO(scenario),
                logging_level=False,
                overwrite=True,
            )
            for past in complete:
                config = _make_config(space, search_space, past)
                smac.tell(TrialInfo(config, seed=0), TrialValue(cost=_list_costs(study, past)), save=False)
            proposal = smac.ask().config
        return {name: _read(proposal[name], distribution) for name, distribution in search_space.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _refuse(config: ConfigSpace.Configuration, seed: int = 0) -> float:
    raise AssertionError("trials are evaluated by the search")


def _convert(name: str, distribution: BaseDistribution) -> ConfigSpace.hyperparameters.Hyperparameter:
    if isinstance(distribution, CategoricalDistribution):
        # By their numbers, because values may be None and lists.
        return ConfigSpace.CategoricalHyperparameter(name, list(range(len(distribution.choices))))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    kind = (
        ConfigSpace.UniformIntegerHyperparameter
        if isinstance(distribution, IntDistribution)
        else ConfigSpace.UniformFloatHyperparameter
    )
    return kind(name, distribution.low, distribution.high, log=distribution.log)


def _make_config(
    space: ConfigSpace.ConfigurationSpace, distributions: dict[str, BaseDistribution], trial: FrozenTrial
) -> ConfigSpace.Configuration:
    values = {}
    for name, distribution in distributions.items():
        value = trial.params[name]
        is_category = isinstance(distribution, CategoricalDistribution)
        values[name] = int(distribution.to_internal_repr(value)) if is_category else value
    return ConfigSpace.Configuration(space, values)


def _list_costs(study: Study, trial: FrozenTrial) -> Sequence[float]:
    return [
        -value if direction is StudyDirection.MAXIMIZE else value
        for value, direction in zip(trial.values, study.directions, strict=True)
    ]


def _read(value: Any, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(value)]
    return int(value) if isinstance(distribution, IntDistribution) else float(value)
