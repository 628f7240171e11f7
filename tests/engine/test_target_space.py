import pytest

from autocompress.core.knobs import Choice
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import TargetInfo
from autocompress.engine.space import Space, open_space
from autocompress.engine.spec import parse_spec
from autocompress.engine.target_space import narrow_to_target
from autocompress.errors import SpecError

PRECISIONS = Precisions(((8, 8), (32, 32)), (2, 4, 8, 32), decodes_tables=True, weight_type="int8")
TARGET = TargetInfo("runtime", precisions=PRECISIONS)


def narrow(quantize: str, rest: str = "", target: TargetInfo = TARGET) -> tuple[Space, tuple[str, ...]]:
    source = parse_spec(f"task: digits\nstudent: {{cnn: {{}}}}\nquantize: {quantize}\n{rest}", "x")
    return narrow_to_target(source, open_space(source), target)


def bits(space: Space) -> set[tuple[object, object]]:
    parts = (recipe.quantize for recipe in space.compression_grid() if recipe.quantize is not None)
    return {(part.values["weight_bits"], part.values["activation_bits"]) for part in parts}


def test_bits_without_a_kernel_are_left_out_with_a_notice() -> None:
    space, notices = narrow("{none: , post_training: {weight_bits: [8, 6, 4], activation_bits: [8, 6]}}")
    assert bits(space) == {(8, 8)}
    settings = space.sections["quantize"]["post_training"]
    assert (settings["weight_bits"], settings["activation_bits"]) == (8, 8)
    (notice,) = notices
    assert "weight bits 6, 4 and activation bits 6 are left out" in notice
    assert "target runtime" in notice
    assert not any(name.startswith("quantize.") for name, _ in space.dimensions())


def test_bits_that_only_save_bytes_stay_where_bytes_count() -> None:
    quantize = "{none: , post_training: {weight_bits: [8, 5, 4], activation_bits: [32, 8]}}"
    kept = {(8, 32), (4, 32), (8, 8), (4, 8)}
    assert bits(narrow(quantize, "objectives: [accuracy, bytes]")[0]) == kept
    assert bits(narrow(quantize, "limits: {bytes: {max: 5000}}")[0]) == kept
    assert bits(narrow(quantize)[0]) == {(8, 32), (8, 8)}


def test_pairs_that_do_not_run_together_are_no_candidates() -> None:
    space, _ = narrow(
        "{post_training: {weight_bits: [32, 8], activation_bits: [32, 8]}}", "objectives: [accuracy, bytes]"
    )
    # Rounded inputs of floating-point weights have no kernel; both widths stay because other pairs use them.
    assert bits(space) == {(8, 32), (8, 8)}
    assert space.sections["quantize"]["post_training"]["weight_bits"] == Choice((32, 8))


def test_a_method_without_any_kernel_is_left_out_and_the_last_one_is_an_error() -> None:
    space, notices = narrow("{none: , lsq: {weight_bits: [3, 2], activation_bits: [4, 3]}}")
    assert list(space.sections["quantize"]) == ["none"]
    assert "quantize.lsq: all listed bits are left out" in notices[0]
    with pytest.raises(SpecError, match=r"x:3: quantize: no method has bit-widths .*target: none"):
        narrow("{lsq: {weight_bits: [3, 2], activation_bits: [4, 3]}}")


def test_wider_weights_of_another_method_take_the_place_of_narrow_ones() -> None:
    both = "{post_training: {weight_bits: 8, activation_bits: 8}, lsq: {weight_bits: 4, activation_bits: 8}}"
    assert bits(narrow(both)[0]) == {(8, 8)}
    # Alone, they run, and nothing else does.
    assert bits(narrow("{lsq: {weight_bits: 4, activation_bits: 8}}")[0]) == {(4, 8)}


def test_without_a_restriction_nothing_changes() -> None:
    space, notices = narrow("{post_training: {weight_bits: [8, 3], activation_bits: 8}}", target=TargetInfo("none"))
    assert bits(space) == {(8, 8), (3, 8)}
    assert notices == ()
