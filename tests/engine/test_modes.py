"""What each mode leaves of a space, and who chooses its further cuts."""

import pytest

from autocompress.core.knobs import Choice
from autocompress.engine.archive import Archive
from autocompress.engine.modes import MODES, SUBNETWORK_RATIOS
from autocompress.engine.refinement import Refinement, SequentialRefinement, make_refinement
from autocompress.engine.space import Space, open_space
from autocompress.engine.spec import parse_spec
from tests.fakes import OBJECTIVES

SPEC = """\
task: digits
student: {cnn: {width: {low: 4, high: 64}, depth: [1, 2]}}
distill: {none: {}, soft_target: {temperature: {low: 1, high: 10}}}
prune: {none: {}, structured: {pruning_ratio: 0.5, recovery_epochs: 3}}
quantize: {none: {}, post_training: {weight_bits: [4, 8]}}
"""


def narrowed(mode: str) -> Space:
    return MODES[mode].restrict_space(open_space(parse_spec(SPEC, "x", [])))


@pytest.mark.parametrize("mode", ["amortized", "sampled", "random", "sequential"])
def test_most_modes_keep_the_space(mode: str) -> None:
    assert narrowed(mode) == open_space(parse_spec(SPEC, "x", []))


def test_no_distillation_keeps_only_the_labels() -> None:
    assert set(narrowed("no_distillation").sections["distill"]) == {"none"}


def test_uniform_int8_keeps_one_quantization_and_no_pruning() -> None:
    cuts = narrowed("uniform_int8").compression_grid()
    assert {cut.prune for cut in cuts} == {None}
    (rounded,) = [cut.quantize for cut in cuts if cut.quantize is not None]
    assert (rounded.values["weight_bits"], rounded.values["activation_bits"]) == (8, 8)


def test_supernet_trains_the_widest_students_and_prunes_to_the_others() -> None:
    space = narrowed("supernet")
    assert space.sections["student"]["cnn"]["width"] == 64
    (pruning,) = [knobs for name, knobs in space.sections["prune"].items() if name != "none"]
    assert pruning["pruning_ratio"] == Choice(SUBNETWORK_RATIOS)
    assert {knobs["sandwich"] for knobs in space.sections["fit"].values()} == {SUBNETWORK_RATIOS[-1]}


@pytest.mark.parametrize("mode", MODES)
def test_only_the_sequential_mode_refines_in_stages(mode: str) -> None:
    refinement = make_refinement(
        MODES[mode], narrowed(mode).compression_grid(), 0.5, 0.01, Archive(OBJECTIVES), OBJECTIVES, None
    )
    assert isinstance(refinement, SequentialRefinement if mode == "sequential" else Refinement)
