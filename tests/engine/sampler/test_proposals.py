from random import Random

from hypothesis import given, strategies as st

from autocompress.engine.sampler.encoding import MUTATION_RATE, MutationTrial
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec

TEXT = "task: digits\nstudent: {cnn: {width: {low: 4, high: 64}, depth: [1, 2], block: [plain, residual]}}"
PARENT = {"student.cnn.width": 16, "student.cnn.depth": 2, "student.cnn.block": "residual"}


@given(st.integers(0, 1000), st.booleans(), st.floats(1.0, 3.0))
def test_numbers_stay_in_their_range(seed: int, log: bool, value: float) -> None:
    for parent in ({}, {"x": value}):
        trial = MutationTrial(parent, Random(seed))
        assert 1.0 <= trial.suggest_float("x", 1.0, 3.0, log=log) <= 3.0 + 1e-12
        assert trial.suggest_int("x", 1, 3, log=log) in (1, 2, 3)


def test_mutations_keep_most_hyperparameters() -> None:
    space = open_space(parse_spec(TEXT, "x"))
    random = Random(0)
    students = [
        space.suggest_config(MutationTrial(PARENT, random), with_compression=False)[0].student.values
        for _ in range(400)
    ]
    same = sum(student["block"] == "residual" for student in students) / 400
    # Half of what changes draws the same again.
    assert abs(same - (1 - MUTATION_RATE / 2)) < 0.08
    widths = [int(student["width"]) for student in students]  # type: ignore[arg-type]
    assert 0.5 < widths.count(16) / 400 < 0.9
    assert len(set(widths)) > 10
    assert sum(8 <= width <= 32 for width in widths) > 380 * 0.8


def test_without_a_parent_all_is_random_and_wide_ranges_are_logarithmic() -> None:
    space = open_space(parse_spec(TEXT, "x"))
    random = Random(0)
    students = [
        space.suggest_config(MutationTrial({}, random), with_compression=False)[0].student.values for _ in range(400)
    ]
    below = sum(int(student["width"]) < 16 for student in students)  # type: ignore[arg-type]
    assert 150 < below < 250
    assert {student["block"] for student in students} == {"plain", "residual"}
