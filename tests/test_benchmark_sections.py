"""The sections of `benchmarks.methods` name what exists, choose on the selection split, and pair by seed."""

from pathlib import Path

import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.registry import DISTILL, FITS, PRUNE, QUANTIZE, STUDENTS
from autocompress.core.task import InputSpec
from autocompress.models.base import build_family_model
from benchmarks import attention, distillation, joint_compression, task_sharing, temperature, training_efficiency
from benchmarks.benchmark_tasks import DIGITS, LANGID, RANKING, RATINGS
from benchmarks.comparison import Pairing, format_gain, format_mean, format_pairings
from benchmarks.joint_compression import JointResults, build_tasks, select_within
from benchmarks.methods import SECTIONS, build_argument_parser
from benchmarks.variants import BenchmarkTask, Variant

VARIANTS: list[tuple[BenchmarkTask, Variant]] = [
    *((task, variant) for task in (RATINGS, RANKING, LANGID) for variant in distillation.build_variants(task)),
    *((task, variant) for task in attention.build_tasks() for variant in attention.build_variants(task)),
    *(
        (task.benchmark, variant)
        for task in joint_compression.build_tasks(None)
        for variant in joint_compression.build_variants(task)
    ),
]


@pytest.mark.parametrize(
    ("benchmark", "variant"), [pytest.param(*pair, id=f"{pair[0].name}-{pair[1].name}") for pair in VARIANTS]
)
def test_every_variant_is_a_config(benchmark: BenchmarkTask, variant: Variant) -> None:
    training = variant.build_config(benchmark, 0)
    parts = [(STUDENTS, training.student), (FITS, training.fit), *((DISTILL, part) for part in training.distill)]
    for cut in variant.cuts.values():
        parts += [(PRUNE, cut.prune)] * (cut.prune is not None)
        parts += [(QUANTIZE, cut.quantize)] * (cut.quantize is not None)
    for registry, part in parts:
        assert registry.get(part.name).config.of(part.values)


def test_every_case_is_a_config_and_has_a_baseline_of_its_condition() -> None:
    cases = temperature.list_cases()
    assert len({case.key for case in cases}) == len(cases)
    assert {case.condition for case in cases} == {case.condition for case in cases if case.name == "none"}
    for case in cases:
        assert DISTILL.get(case.term.name).config.of(case.term.values)
        assert FITS.get("adamw").config.of({**DIGITS.fit.values, **case.fit})
    for efficiency in training_efficiency.CASES:
        assert FITS.get("adamw").config.of({**training_efficiency.FIT, **efficiency.fit})
    for study in task_sharing.STUDIES:
        for sharing in study.cases:
            assert STUDENTS.get(study.student.name).config.of({**study.student.values, **sharing.student})
            assert FITS.get("adamw").config.of({**study.fit.values, **sharing.fit})


def test_every_section_is_an_option() -> None:
    parser = build_argument_parser()
    assert parser.parse_args(["--sections", *SECTIONS]).sections == list(SECTIONS)
    assert parser.parse_args([]).sections == ["methods"]


def test_a_gain_is_positive_if_the_score_improves() -> None:
    assert format_gain([2.0, 3.1], [1.0, 2.0]) == "+1.05 ± 0.05 *"
    assert format_gain([2.0, 3.1], [1.0, 2.0], is_maximized=False) == "-1.05 ± 0.05 *"
    assert format_gain([1.0, 3.0], [2.0, 1.0]) == "+0.50 ± 1.50"
    assert format_mean([1.0, 2.0, 3.0]) == "2.00 ± 0.58"


def test_a_lower_error_is_a_gain_and_costs_are_ratios() -> None:
    results = {
        (RATINGS.name, variant, seed): {"": {"rmse": rmse + 0.01 * seed, "bytes": size}}
        for variant, rmse, size in (("ours", 0.7, 1.0), ("plain", 0.8, 4.0))
        for seed in range(2)
    }
    (row,) = format_pairings(results, RATINGS, [Pairing("x", ("ours", ""), ("plain", ""), ("bytes",))], 2)
    assert row == "| ratings | rmse | x | 70.50 ± 0.50 | 80.50 ± 0.50 | +10.00 ± 0.00 * | 0.25 |"


def test_a_choice_is_made_on_the_selection_split_within_the_budget() -> None:
    rows = {
        "large": {"bytes": 9.0, "select_val": 0.9, "accuracy": 0.9},
        "lucky": {"bytes": 3.0, "select_val": 0.6, "accuracy": 0.8},
        "chosen": {"bytes": 3.0, "select_val": 0.7, "accuracy": 0.7},
    }
    assert select_within(rows, "bytes", 5.0, is_maximized=True) == rows["chosen"]
    assert select_within(rows, "bytes", 5.0, is_maximized=False) == rows["lucky"]
    assert select_within(rows, "bytes", 1.0, is_maximized=True) is None


def test_families_are_compared_within_the_cost_of_a_candidate() -> None:
    task = build_tasks(None)[0]
    sizes = {"": 32.0, "quantized 8": 8.0, "quantized 3": 3.0, "pruned 0.5": 8.0, "both 0.5 8": 2.0}
    scores = {"": 0.99, "quantized 8": 0.98, "quantized 3": 0.7, "pruned 0.5": 0.95, "both 0.5 8": 0.94}
    rows = {name: {"bytes": size, "select_val": scores[name], "accuracy": scores[name]} for name, size in sizes.items()}
    whole = {name: row for name, row in rows.items() if not name.startswith(("pruned", "both"))}
    pruned = {name: row for name, row in rows.items() if name.startswith(("pruned", "both"))}
    results = {
        (task.benchmark.name, variant, seed): candidates
        for variant, candidates in (("whole", whole), ("pruned", pruned))
        for seed in range(2)
    }
    joint = JointResults(task, results, 2, {"pruned 0.5": 12.0, "both 0.5 8": 9.0, "quantized 8": 20.0})
    assert joint.score_family("both", "bytes", "quantized 3") == [94.0, 94.0]
    assert joint.score_family("quantized", "bytes", "quantized 3") == [70.0, 70.0]
    assert joint.score_family("pruned", "bytes", "quantized 3") == [None, None]
    assert "| none | 70.00 ± 0.00 | – | +24.00 ± 0.00 * |" in joint.format_row("bytes", "quantized 3")
    # A candidate without a measured latency cannot meet a limit on it.
    assert joint.score_family("quantized", "latency", "pruned 0.5") == [None, None]
    assert joint.score_family("both", "latency", "pruned 0.5") == [94.0, 94.0]


def test_single_models_have_the_splits_of_the_joint_model() -> None:
    for study, head in ((task_sharing.NAMES, "kind"), (task_sharing.INTERACTIONS, "click")):
        joint, single = (task_sharing.load_data(study.name, heads)[1] for heads in (tuple(study.metrics), (head,)))
        for (_, ours), (_, theirs) in zip(joint.items(), single.items(), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours.inputs, theirs.inputs, strict=False))
            assert list(theirs.targets) == [head]
            assert torch.equal(ours.targets[head], theirs.targets[head])


def test_a_batched_step_computes_the_gradients_of_each_student() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 3
    part = Part.of("cnn", width=4, depth=1, stages=2, block="plain")
    models = [build_family_model(part, (InputSpec((3, 8, 8)),), {"label": 3}).train() for _ in range(2)]
    stacked = training_efficiency.compute_stacked_gradients(models)(images, labels)
    for index, model in enumerate(models):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stacked[name][index], parameter.grad, rtol=1e-3, atol=1e-5)


def test_epochs_to_a_score() -> None:
    assert training_efficiency.count_epochs_to([30.0, 41.0, 40.0], 40.0) == 2
    assert training_efficiency.count_epochs_to([30.0], 40.0) is None
    curves = {
        (case.name, seed): {"accuracy": [30.0, 40.0 + index], "seconds": [1.0, 2.0]}
        for index, case in enumerate(training_efficiency.CASES)
        for seed in range(2)
    }
    lines = training_efficiency.format_cases(curves, 2, examples=100)
    assert lines[2] == "| plain | 40.00 ± 0.00 | – | 2 of 2 | 2.0 | 200 | 2.0 |"
    assert lines[3].startswith("| one-cycle schedule | 41.00 ± 0.00 | +1.00 ± 0.00 * | 2 of 2 |")


def test_reviews_are_read_as_the_shipped_space_reads_them(tmp_path: Path) -> None:
    values = distillation.build_reviews(tmp_path / "r.csv").task.values
    assert values["labels"] == "Rating, Recommended IND, Department Name"
    assert values["text"] == "Review Text"
