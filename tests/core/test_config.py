import json
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from autocompress.core.config import CompressionConfig, Part, fingerprint
from autocompress.errors import UsageError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
PARTS = st.builds(lambda name, values: Part.of(name, **values), NAMES, st.dictionaries(NAMES.map("k".__add__), LEAVES))
CONFIGS = st.builds(
    CompressionConfig,
    student=PARTS,
    distill=st.lists(PARTS, min_size=1, max_size=3, unique_by=lambda part: part.name).map(
        lambda parts: tuple(sorted(parts, key=lambda part: part.name))
    ),
    fit=PARTS,
    prune=st.none() | PARTS,
    quantize=st.none() | PARTS,
    seed=st.integers(0, 2**31),
)


@pytest.mark.slow
@given(CONFIGS)
def test_json_round_trip_keeps_the_config_and_its_fingerprint(config: CompressionConfig) -> None:
    again = CompressionConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert again.fingerprint == config.fingerprint
    assert len(config.fingerprint) == 12


@pytest.mark.slow
@given(CONFIGS)
def test_a_training_drops_the_cut_and_only_the_cut(config: CompressionConfig) -> None:
    training = config.training
    assert training.prune is None
    assert training.quantize is None
    assert replace(config, prune=None, quantize=None) == training


def test_the_seed_counts_in_the_fingerprint_but_not_for_duplicates() -> None:
    one = CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw"), seed=1)
    two = replace(one, seed=2)
    assert one.fingerprint != two.fingerprint
    assert one.to_json_without_seed() == two.to_json_without_seed()


def test_settings_are_sorted_so_order_does_not_matter() -> None:
    assert Part.of("cnn", width=8, depth=2) == Part.of("cnn", depth=2, width=8)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


@pytest.mark.parametrize("data", [{}, {"a": {}, "b": {}}])
def test_a_part_is_exactly_one_name(data: dict[str, dict[str, int]]) -> None:
    with pytest.raises(UsageError, match="one name"):
        Part.from_json(data)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(UsageError, match="'student'"):
        CompressionConfig.from_json({})


def test_values_that_are_no_settings_are_refused() -> None:
    config = CompressionConfig(Part("cnn"), (), Part("adamw"), None, None).to_json()
    with pytest.raises(UsageError, match="a value of a list is a mapping"):
        CompressionConfig.from_json({**config, "student": {"cnn": {"width": [[{"a": 1}]]}}})
    with pytest.raises(UsageError, match="the seed of a config is"):
        CompressionConfig.from_json({**config, "seed": {}})
