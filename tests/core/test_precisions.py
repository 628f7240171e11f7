import json

import pytest

from autocompress.core.precisions import COMMON, UNRESTRICTED, Precisions, describe_widths

RUNTIME = Precisions(((8, 8), (32, 32)), (2, 4, 8, 32), decodes_tables=True, weight_type="int8")


@pytest.mark.parametrize(
    ("weight", "activation", "expected"),
    [
        (8, 8, []),
        (4, 8, []),
        (4, 32, []),
        (32, 32, []),
        (3, 8, ["3-bit weights"]),
        (5, 6, ["5-bit weights", "6-bit activations"]),
        (4, 6, ["6-bit activations"]),
        (32, 8, ["8-bit activations of 32-bit weights"]),
    ],
)
def test_a_layer_runs_where_its_weights_are_stored_and_a_kernel_takes_its_inputs(
    weight: int, activation: int, expected: list[str]
) -> None:
    assert RUNTIME.list_simulated(weight, activation) == expected
    assert RUNTIME.runs(weight, activation) == (not expected)


@pytest.mark.parametrize(
    ("bits", "computed"),
    [((8, 8), (8, 8)), ((4, 8), (8, 8)), ((3, 5), (8, 8)), ((4, 32), (32, 32)), ((32, 8), (32, 32))],
)
def test_a_layer_is_computed_by_the_narrowest_kernel_that_holds_it(
    bits: tuple[int, int], computed: tuple[int, int]
) -> None:
    assert RUNTIME.computed_bits(*bits) == computed


def test_without_a_restriction_every_width_runs_as_it_is() -> None:
    assert not UNRESTRICTED.restricts
    assert UNRESTRICTED.runs(3, 5)
    assert UNRESTRICTED.computed_bits(3, 5) == (3, 5)


def test_precisions_survive_a_round_trip() -> None:
    for precisions in (RUNTIME, COMMON):
        assert Precisions.from_json(json.loads(json.dumps(precisions.to_json()))) == precisions
    assert Precisions.from_json({}) == UNRESTRICTED


def test_widths_are_described_in_words() -> None:
    assert describe_widths(RUNTIME).startswith("it stores weights at 2, 4 or 8 bits and computes at 8 x 8 bits")
    assert describe_widths(Precisions(((32, 32),), (32,))) == (
        "it stores weights in floating point and computes in floating point"
    )
