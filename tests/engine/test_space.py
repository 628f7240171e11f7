from dataclasses import dataclass, replace
from typing import Any

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.knobs import Choice, FloatRange, IntRange, Settings, knob
from autocompress.core.records import CompressionRecipe, Job
from autocompress.core.registry import DISTILL
from autocompress.distill.base import Term
from autocompress.engine.archive import Archive
from autocompress.engine.refinement import Refinement, SequentialRefinement, make_refinement
from autocompress.engine.space import (
    MODES,
    SUBNETWORK_RATIOS,
    Space,
    check_teacher_settings,
    derive_seed,
    open_space,
    trial_key,
)
from autocompress.engine.spec import parse_spec
from autocompress.errors import SpecError
from tests.fakes import OBJECTIVES

HEAD = "task: digits\n"


class First:
    """Suggests the low end, or the first choice, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requested: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.requested[name] = (low, high, log)
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.requested[name] = (low, high, log)
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.requested[name] = list(choices)
        return choices[0]


def space(text: str) -> Space:
    return open_space(parse_spec(HEAD + text, "x"))


def test_settings_fix_list_narrow_or_open_a_knob() -> None:
    result = dict(
        space(
            "student: {cnn: {width: {low: 4, high: 8}, depth: [1, 2], kernel: 5, block: {}}}\n"
            "distill: {soft_target: {temperature: {low: 2, high: 4, log: false}, alpha: {high: 0.5}}}"
        ).dimensions()
    )
    assert result["student.cnn.width"] == IntRange(4, 8, log=True)
    assert result["student.cnn.depth"] == Choice((1, 2))
    assert isinstance(result["student.cnn.block"], Choice)
    assert result["distill.soft_target.temperature"] == FloatRange(2.0, 4.0)
    assert result["distill.soft_target.alpha"] == FloatRange(0.0, 0.5)
    assert "student.cnn.kernel" not in result


def test_suggest_config_samples_only_what_varies_of_the_chosen_method() -> None:
    trial = First()
    config, cut = space(
        "student: {cnn: {width: [4, 8]}}\ndistill: [none, soft_target]\n"
        "prune: {structured: {pruning_ratio: [0.3, 0.5]}}"
    ).suggest_config(trial, with_compression=False)
    assert trial.requested == {"student.cnn.width": [4, 8], "distill": ["none", "soft_target"]}
    assert config.distill == (Part("none"),)
    assert config.student.values["width"] == 4
    assert cut == CompressionRecipe()


def test_with_compression_samples_the_recipe_and_removes_identities() -> None:
    trial = First()
    _, cut = space(
        "student: {cnn: {}}\nprune: {structured: {pruning_ratio: {low: 0, high: 0.5}}}\n"
        "quantize: {post_training: {weight_bits: [4, 8], activation_bits: 8}}"
    ).suggest_config(trial, with_compression=True)
    assert cut.prune is None
    assert cut.quantize is not None
    assert cut.quantize.values["weight_bits"] == 4
    assert set(trial.requested) == {"prune.structured.pruning_ratio", "quantize.post_training.weight_bits"}


def test_compression_grid_has_no_repeats_and_begins_with_the_empty_recipe() -> None:
    cuts = space(
        "student: {cnn: {}}\nprune: {none: {}, structured: {pruning_ratio: [0.0, 0.5]}}\n"
        "quantize: {none: {}, post_training: {weight_bits: [4, 32], activation_bits: [8, 32]}}"
    ).compression_grid()
    assert cuts[0] == CompressionRecipe()
    # Ratio 0 is the parent, and 32/32 bits is the float model: {none, 0.5} x {32/32, 4/8, 4/32, 32/8}.
    assert len(cuts) == len(set(cuts)) == 8


def test_range_has_evenly_spaced_grid_points() -> None:
    cuts = space("student: {cnn: {}}\nprune: {structured: {pruning_ratio: {low: 0.3, high: 0.9}}}").compression_grid()
    ratios = [cut.prune.values["pruning_ratio"] for cut in cuts if cut.prune is not None]
    assert ratios == pytest.approx([0.3, 0.5, 0.7, 0.9])


def test_default_values_follow_the_teacher_within_the_space() -> None:
    values = space(
        "student: {cnn: {width: {low: 4, high: 16}, depth: [1, 2], block: [plain, separable]}}\n"
        "distill: {none: {}, soft_target: {temperature: {low: 2, high: 10}}}\n"
        "prune: {none: {}, structured: {pruning_ratio: [0.3, 0.5]}}"
    ).default_values(Part.of("cnn", width=32, depth=2, block="residual"))
    assert values == {
        "student.cnn.width": 16,
        "student.cnn.depth": 2,
        "student.cnn.block": "plain",
        "distill": "soft_target",
        "distill.soft_target.temperature": 4.0,
        "prune": "none",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student: {cnnn: {}}", r"x:2: student.cnnn: unknown student 'cnnn': did you mean 'cnn'"),
        ("student: {cnn: {widht: 3}}", r"x:2: student.cnn.widht: unknown hyperparameter; did you mean 'width'"),
        ("student: {cnn: {width: 1000}}", r"x:2: student.cnn.width: 1000 is outside the range 2..128"),
        ("student: {cnn: {width: [4, 1000]}}", "1000 is outside"),
        ("student: {cnn: {width: []}}", "empty list"),
        ("student: {cnn: {width: {low: 8, high: 4}}}", "low 8 is not below high 4"),
        ("student: {cnn: {width: {low: 8, hihg: 9}}}", "did you mean 'high'"),
        ("student: {cnn: {block: {low: 1}}}", "list the values"),
        ("student: {cnn: {width: {log: 3}}}", "must be true or false"),
        (
            "student: {cnn: {}}\ndistill: {soft_target: {temperature: {low: 0.5, high: 2}}}",
            "x:3: .*outside the range 1..10",
        ),
        (
            "student: {cnn: {}}\nquantize: {post_training: {weight_bits: [1, 8]}}",
            "x:3: quantize.post_training.weight_bits: 1 is outside",
        ),
        ("student: {cnn: {}}\nprune: {structured: {pruning_ratio: 1.0}}", "1.0 is outside"),
        ("student: {cnn: {}}\nfit: {adam: {}}", "did you mean 'adamw'"),
        ("student: {cnn: {}}\nfit: {adamw: {weight_decay: {low: 0, high: 0.1, log: true}}}", "low above 0"),
        ("student: {cnn: {}}\nprune: {none: {pruning_ratio: 1}}", "unknown hyperparameter"),
        (
            "student: {cnn: {}}\ndistill:\n  none:\n  relational:\n    required: 1",
            "x:6: distill.relational.required: must be true or false, got 1",
        ),
        ("student: {cnn: {}}\ndistill: {none: , relational: {required: }}", "must be true or false, got None"),
        ("student: {cnn: {}}\ndistill: {none: , relational: {required: [true]}}", "must be true or false"),
        (
            "student: {cnn: {}}\ndistill:\n  none: {required: true}\n  soft_target:",
            "x:4: distill.none.required: none is the absence of distillation; remove `required`",
        ),
        (
            "student: {cnn: {}}\ndistill:\n  dist: {required: true}\n  soft_target: {required: true}",
            "x:5: distill.soft_target.required: .* dist is required, too; remove `required` from one of them",
        ),
        (
            "student: {cnn: {}}\nprune: {none: , structured: {required: true}}",
            "x:3: prune.structured.required: only terms of distill .* list structured alone",
        ),
        ("student: {cnn: {required: true}}", "x:2: student.cnn.required: only terms of distill"),
        ("student: {cnn: {}}\ndistill: {none: , relational: {requird: true}}", "did you mean 'required'"),
        (
            "student: {cnn: {}}\ndistill: {relational: {required: true}}",
            "x:3: distill: name at least one term on logits",
        ),
    ],
)
def test_errors_name_line_key_and_correction(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        space(text)


REQUIRED = (
    "student: {cnn: {}}\n"
    "distill: {none: , soft_target: , relational: , attention: {weight: {low: 1e-3, high: 1}, required: true}}"
)


def test_required_term_is_part_of_every_trial_and_no_hyperparameter() -> None:
    result = space(REQUIRED)
    assert [name for name, _ in result.dimensions()] == ["distill", "distill.relational", "distill.attention.weight"]
    config, _ = result.suggest_config(First(), with_compression=False)
    assert [part.name for part in config.distill] == ["attention", "none"]
    assert "required" not in config.distill[0].values
    assert CompressionConfig.from_json(config.to_json()) == config


def test_default_values_include_the_hyperparameters_of_required_terms() -> None:
    assert space(REQUIRED).default_values(Part("cnn")) == {
        "distill": "soft_target",
        "distill.relational": False,
        "distill.attention.weight": 0.01,
    }


def test_required_false_leaves_the_term_a_choice() -> None:
    text = "student: {cnn: {}}\ndistill: {none: {required: false}, relational: {}}"
    assert space(text.replace("relational: {}", "relational: {required: false}")) == space(text)


def test_required_term_on_logits_replaces_the_alternatives() -> None:
    result = space("student: {cnn: {}}\ndistill: {none: , dist: {required: true}, soft_target: , relational: }")
    assert [name for name, _ in result.dimensions()] == ["distill.relational"]
    config, _ = result.suggest_config(First(), with_compression=False)
    assert [part.name for part in config.distill] == ["dist"]


def test_term_with_a_hyperparameter_named_required_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class AmbiguousConfig(Settings):
        required: bool = knob(False, Choice((False, True)))

    class Ambiguous(Term[AmbiguousConfig]):
        name = "ambiguous"
        kind = "feature"
        config = AmbiguousConfig

    monkeypatch.setitem(DISTILL._objects, "ambiguous", Ambiguous())
    with pytest.raises(SpecError, match=r"x:3: distill.ambiguous: the term has a hyperparameter named `required`"):
        space("student: {cnn: {}}\ndistill: {none: , ambiguous: }")


SINGLE = "student: {cnn: {}}\ndistill: {none: , soft_target: , hint: , attention: {weight: {low: 1, high: 10}}}\n"


def test_single_trial_uses_every_listed_term_on_features() -> None:
    result = space(SINGLE + "search: {trials: 1}")
    assert [name for name, _ in result.dimensions()] == ["distill", "distill.attention.weight"]
    config, _ = result.suggest_config(First(), with_compression=False)
    assert [part.name for part in config.distill] == ["attention", "hint", "none"]


def test_several_trials_keep_the_choice_of_terms_on_features() -> None:
    names = {name for name, _ in space(SINGLE + "search: {trials: 2}").dimensions()}
    assert {"distill.hint", "distill.attention"} < names


TRAINING = CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw"))
JOB = Job(3, TRAINING, (CompressionRecipe(),))


def test_seeds_depend_on_the_search_and_the_number_alone() -> None:
    assert derive_seed(0, 3) == derive_seed(0, 3)
    assert len({derive_seed(search, number) for search in range(5) for number in range(50)}) == 250


def test_the_recipe_is_part_of_the_key_only_where_a_trial_is_one_candidate() -> None:
    quantized = replace(
        JOB, number=4, training=replace(TRAINING, seed=9), recipes=(CompressionRecipe(quantize=Part("post_training")),)
    )
    assert trial_key(JOB, amortized=True) == trial_key(quantized, amortized=True)
    assert trial_key(JOB, amortized=False) != trial_key(quantized, amortized=False)
    wider = replace(JOB, training=replace(TRAINING, student=Part.of("cnn", width=9)))
    assert trial_key(JOB, amortized=True) != trial_key(wider, amortized=True)


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


def test_no_distillation_removes_required_terms_and_other_modes_keep_them() -> None:
    for mode in MODES:
        result = MODES[mode].restrict_space(space(REQUIRED + "\nquantize: {post_training: }"))
        assert result.required == (() if mode == "no_distillation" else ("attention",))


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


def test_an_unknown_hyperparameter_of_the_teacher_has_its_line() -> None:
    text = "task: digits\nstudent: {cnn: {}}\nteacher:\n  fit:\n    adamw: {epochz: 3}"
    with pytest.raises(SpecError, match=r"^x:5: teacher.fit.adamw.epochz: unknown hyperparameter; .* 'epochs'"):
        check_teacher_settings(parse_spec(text, "x"))
    check_teacher_settings(parse_spec(text.replace("epochz", "epochs"), "x"))
    # An unknown method is refused where the teacher is built.
    check_teacher_settings(parse_spec(text.replace("adamw", "adamv"), "x"))
