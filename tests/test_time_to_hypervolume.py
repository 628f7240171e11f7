import importlib.util

import pytest
from optuna.samplers import RandomSampler, TPESampler

from autocompress.engine.sampler import optuna as samplers
from benchmarks.time_to_hypervolume import BOTORCH, CONTENDERS, OURS, PLAIN, SMAC, _replace_sampler, make_proposer


def test_only_the_plain_study_and_foreign_samplers_replace_the_one_of_a_search() -> None:
    assert type(make_proposer(PLAIN, 3)) is TPESampler
    foreign = [name for name in CONTENDERS if name.startswith((BOTORCH, SMAC))]
    assert [name for name in CONTENDERS if name not in foreign and make_proposer(name, 3) is not None] == [PLAIN]
    with _replace_sampler(OURS):
        own = samplers.make_sampler("random", 1)
    with _replace_sampler(PLAIN):
        plain = samplers.make_sampler("random", 1)
    assert (type(own), type(plain)) == (RandomSampler, TPESampler)


@pytest.mark.parametrize(("contender", "package"), [(BOTORCH, "optuna_integration"), (SMAC, "ConfigSpace")])
def test_a_missing_package_ends_a_contender_with_its_name(contender: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ImportError, match=package):
        make_proposer(contender, 0)
