import importlib.util

import pytest
from optuna.samplers import RandomSampler, TPESampler

from autocompress.engine.sampler import optuna as samplers
from benchmarks.time_to_hypervolume import BOTORCH, CONTENDERS, OURS, PLAIN, _replace_sampler, make_proposer


def test_only_the_plain_study_and_foreign_samplers_replace_the_one_of_a_search() -> None:
    assert type(make_proposer(PLAIN, 3)) is TPESampler
    foreign = [name for name in CONTENDERS if name.startswith(BOTORCH)]
    assert [name for name in CONTENDERS if name not in foreign and make_proposer(name, 3) is not None] == [PLAIN]
    with _replace_sampler(OURS):
        own = samplers.make_sampler("random", 1)
    with _replace_sampler(PLAIN):
        plain = samplers.make_sampler("random", 1)
    assert (type(own), type(plain)) == (RandomSampler, TPESampler)


def test_a_missing_package_ends_a_contender_with_its_name() -> None:
    if importlib.util.find_spec("optuna_integration"):
        pytest.skip("optuna-integration is installed")
    with pytest.raises(ImportError, match="optuna_integration"):
        make_proposer(BOTORCH, 0)
