"""The benchmarks name what exists: a typo must not cost half an hour."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.registry import DISTILL, FITS, PRUNE, QUANTIZE, STUDENTS
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo
from autocompress.engine.scheduler.compute_cost import candidate_epoch_cost
from autocompress.engine.spec import load_spec
from autocompress.tasks.detection import DetectionTask
from autocompress.tasks.segmentation import Segmentation
from benchmarks import calibration, class_weights, detection, gpu, promise, segmentation, teachers, warm_start
from benchmarks.common import geometric_mean
from benchmarks.methods import COMPARISONS, DIGITS, MNIST1D, build_variants, format_tables
from benchmarks.pretrained import (
    CASES as PRETRAINED,
    PretrainedRow,
    draw_tones,
    encode_file,
    score_pitch,
    write_table,
)
from benchmarks.raw_input import CASES, format_table as raw_input_table
from benchmarks.tables import BOOSTING, NETWORK, TARGET, TableRow, format_table as tables_table, read_table
from benchmarks.tasks import COLUMNS, Row, best_at_a_tenth, build_command, format_table as tasks_table, main
from benchmarks.variants import BenchmarkTask, fingerprint_job, mean_and_error, run_all
from tests.analysis.test_certification import make_run
from tests.engine.driving import EARLY_STOPPING, REFINEMENTS, build_driver, close_store, fake_costly_result

BENCHMARK_TASKS = [pytest.param(benchmark, id=benchmark.name) for benchmark in (DIGITS, MNIST1D)]


@pytest.mark.parametrize("benchmark", BENCHMARK_TASKS)
def test_every_variant_and_cut_is_a_config(benchmark: BenchmarkTask) -> None:
    for variant in build_variants(benchmark):
        training = variant.build_config(benchmark, 0)
        parts = [(STUDENTS, training.student), (FITS, training.fit), *((DISTILL, part) for part in training.distill)]
        for cut in variant.cuts.values():
            parts += [(PRUNE, cut.prune)] * (cut.prune is not None)
            parts += [(QUANTIZE, cut.quantize)] * (cut.quantize is not None)
        for registry, part in parts:
            assert registry.get(part.name).config.of(part.values)


def test_every_comparison_names_a_variant_and_a_cut() -> None:
    names = {(variant.name, cut) for variant in build_variants(DIGITS) for cut in variant.cuts}
    for comparison in COMPARISONS:
        assert comparison.ours in names, comparison.title
        assert comparison.plain in names, comparison.title
    assert len({comparison.title for comparison in COMPARISONS}) == len(COMPARISONS)


def test_a_table_pairs_by_seed_and_marks_what_lies_beyond_two_errors() -> None:
    row = {"effective_flops": 2.0, "bytes": 3.0, "accuracy": 0.5, "pgd_accuracy": 0.5}
    results = {
        (DIGITS.name, variant.name, seed): {
            cut: {**row, "accuracy": 0.5 + 0.01 * seed + (0.1 + 0.001 * seed) * (variant.name == "dist")}
            for cut in variant.cuts
        }
        for variant in build_variants(DIGITS)
        for seed in range(3)
    }
    text = format_tables(results, [DIGITS], 3)
    assert "| digits | dist over none | 61.1 ± 0.6 | 51.0 ± 0.6 | +10.1 ± 0.1 * | 1.00 |" in text
    assert "| digits | hint over none | 51.0 ± 0.6 | 51.0 ± 0.6 | +0.0 ± 0.0 | 1.00 |" in text


def test_jobs_are_told_apart_by_all_that_they_depend_on() -> None:
    some = build_variants(DIGITS)
    names = {fingerprint_job(DIGITS, variant, seed) for variant in some for seed in range(2)}
    # `soft_target` at its own temperature of 4 is also a point of the curve, but is measured under attack too.
    assert len(names) == 2 * len(some)


def test_what_is_known_is_not_run_again(tmp_path: Path) -> None:
    few = [variant for variant in build_variants(DIGITS) if variant.name in ("dist", "dkd")]
    results_file = tmp_path / "kept.jsonl"
    lines = [{"job": fingerprint_job(DIGITS, variant, 0), "found": {"": {"accuracy": 0.25}}} for variant in few]
    results_file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    results = run_all([DIGITS], lambda _: few, 1, results_file)
    assert results == {("digits", name, 0): {"": {"accuracy": 0.25}} for name in ("dkd", "dist")}


def test_means() -> None:
    assert mean_and_error([1.0, 2.0, 3.0])[0] == 2.0
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_a_task_is_one_row_of_scores_costs_and_ratios() -> None:
    row = Row(
        "digits", "accuracy", 0.994, "t1c2", 0.978, 9e6, 900.0, 7e5, 1e3, 0.5, 0.1, 150.0, 1.0, tenth="t1c9 0.9861"
    )
    assert row.cells() == [
        "digits",
        "accuracy 0.9940",
        "t1c2 0.9780",
        "9 M → 900 (10,000x)",
        "700 K → 1 K (700x)",
        "0.500 → 0.100 (5x)",
        "2 min 30 s",
        "100.00%",
        "t1c9 0.9861",
    ]
    assert len(row.cells()) == len(COLUMNS)


def test_who_scores_best_at_a_tenth_of_both_costs() -> None:
    rows = pd.DataFrame(
        {
            "id": ["t0c0", "t0c1", "t0c2"],
            "effective_flops": [99.0, 9.0, 1.0],
            "bytes": [5.0, 11.0, 9.0],
            "accuracy": [0.9, 0.8, 0.7],
            "accuracy_test": [0.91, 0.79, 0.72],
        }
    )
    objectives = (
        ObjectiveSpec("effective_flops", "minimize", unit="FLOPs", kind="cost"),
        ObjectiveSpec("accuracy", "maximize"),
    )

    def best(effective_flops: float, size: float) -> str:
        teacher = TeacherInfo(costs={"effective_flops": effective_flops, "bytes": size})
        return best_at_a_tenth(rows, RunInfo(objectives=objectives, teacher=teacher))

    assert best(100.0, 100.0) == "t0c2 0.7200"
    assert best(1000.0, 1000.0) == "t0c0 0.9100"
    assert best(1.0, 1.0) == "none"


def test_a_row_says_how_it_was_made_and_not_where_the_data_was() -> None:
    overrides = ["task.images.path=/somewhere/cifar10", "task.images.limit=500", "search.workers=1"]
    generated = build_command("images", "CIFAR-10 (5,000)", overrides)
    shown = "--set task.images.path=FOLDER task.images.limit=500 search.workers=1"
    assert generated == f"python -m benchmarks.tasks --spaces images --name 'CIFAR-10 (5,000)' {shown}"
    assert "task.text.path=FILE" in build_command("reviews", "reviews", ["task.text.path=/somewhere/reviews.csv.gz"])
    assert build_command("digits", "digits", []) == "python -m benchmarks.tasks --spaces digits"
    row = Row("CIFAR-10 (5,000)", "accuracy", 0.8, "t1c2", 0.79, 9e6, 9e4, 7e5, 1e3, 0.5, 0.1, 150.0, 1.0, generated)
    page = tasks_table([row, replace(row, space="digits", command=build_command("digits", "digits", []))])
    assert f"- CIFAR-10 (5,000): `{generated}`" in page
    assert "- digits:" not in page
    assert page.count("| accuracy 0.8000 |") == 2


@pytest.mark.parametrize(
    "options", [["--spaces", "digits", "mnist1d", "--name", "x"], ["--spaces", "digits", "--name", ""]]
)
def test_a_name_is_for_one_row(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tasks", *options])
    with pytest.raises(SystemExit):
        main()
    assert "--name is the name of one row" in capsys.readouterr().err


def test_raw_input_is_measured_for_every_shipped_space() -> None:
    spaces = {path.stem for path in (Path(__file__).parent.parent / "search_spaces").glob("*.yaml")}
    # The artifact of several recommender tasks at once takes tensors.
    assert set(CASES) == spaces
    for case in CASES.values():
        assert case.student.name in STUDENTS
        assert FITS.get(case.fit.name).config.of(case.fit.values)
    rows = [
        {
            "case": "digits",
            "seed": seed,
            "examples": 359,
            "raw": 1 - seed / 100,
            "onnx": 1.0,
            "accuracy": 0.8 + seed / 5,
        }
        for seed in range(2)
    ]
    assert "| digits | 2 | 359 | 99.00% | 100.00% | 0.900 |" in raw_input_table(rows)


def test_promises_are_judged_by_the_population() -> None:
    """The first candidate truly loses nothing, the second one three points; a rule that promises two must tell."""
    size = 5000
    teacher = np.ones(size, dtype=bool)
    hits = np.ones((2, size), dtype=bool)
    hits[1, : size * 3 // 100] = False
    table, info = make_run({"t0c0": (0, 0), "t0c1": (0, 0)}, max_drop=0.02)
    table = table.rename(columns={"bytes": "effective_flops"})
    info = replace(info, objectives=(info.objectives[0], replace(info.objectives[1], name="effective_flops")))
    population = promise.Population(table, info, hits, teacher)
    assert population.losses.tolist() == pytest.approx([0.0, 0.03])
    rows = []
    for seed in range(20):
        drawn, described = promise.draw_splits(population, np.random.default_rng(seed))
        rows += promise.judge_rules(population, drawn, described, is_corrected=False)
    kept = {rule: [row["kept"] for row in rows if row["rule"] == rule and row["promises"]] for rule in promise.RULES}
    before, default, guarantee = kept.values()
    # The cheaper candidate looks good enough on some of the splits by its observed loss.
    assert sum(before) < sum(default)
    assert len(guarantee) == sum(guarantee) == 20
    assert all(row["ratio"] == 1.0 for row in rows if row["rule"] == promise.RULES[2])
    assert "100%" in promise.summarize_rows([row for row in rows if row["rule"] == promise.RULES[2]])[2]


def test_a_teacher_is_compared_with_the_best_baseline_of_its_task() -> None:
    def row(model: str, seed: int, validation: float, test: float, is_maximized: bool = True) -> teachers.Row:
        return teachers.Row("some", model, "abc", seed, "accuracy", is_maximized, validation, test, 1.0)

    rows = [row("teacher", 0, 0.8, 0.7), row("teacher", 1, 0.9, 0.7), row("constant", 0, 0.1, 0.1)]
    text = teachers.format_page([*rows, row("linear", 0, 0.8, 0.75)], "command")
    expected = (
        "| some | accuracy | 0.8500 ± 0.0707 | 0.7000 ± 0.0000 | 2 | 0.8000 | 0.7500 | constant 0.1000 | 0.1000 |"
    )
    assert f"{expected} +0.0500 / **-0.0500** |" in text
    # A smaller error is better.
    text = teachers.format_page([row("teacher", 0, 0.8, 0.7, False), row("biases", 0, 0.9, 0.6, False)], "command")
    assert "| – | – | biases 0.9000 | 0.6000 | +0.1000 / **-0.1000** |" in text


def test_sources_write_data_that_their_overrides_name(tmp_path: Path) -> None:
    for name in ("wine", "diabetes", "signals"):
        folder = tmp_path / name
        folder.mkdir()
        overrides = dict(change.split("=", 1) for change in teachers.SOURCES[name].write(folder))
        (path,) = (value for key, value in overrides.items() if key.endswith(".path"))
        assert Path(path).stat().st_size > 1000
        assert overrides.get("objectives", "[accuracy").startswith("[r2" if name == "diabetes" else "[accuracy")


def test_class_weights_are_paired_by_seed() -> None:
    results = {
        (weights, threshold): [dict.fromkeys(class_weights.SCORES, 0.5 + gain + seed / 100) for seed in range(3)]
        for gain, (weights, threshold) in ((0.0, ("none", "0.5")), (0.1, ("balanced", "0.5")))
    }
    text = class_weights.format_table(results)
    assert "| none | 0.5 | 51.0 ± 0.6 |" in text
    assert "| balanced | 0.5 | 61.0 ± 0.6 (+10.0 ± 0.0) |" in text


@pytest.mark.parametrize("name", list(PRETRAINED))
def test_a_pretrained_model_has_a_valid_search_space(name: str) -> None:
    # Only a teacher with layers can be pruned.
    student = "text_ngrams" if name == "magika" else "from_teacher"
    assert list(load_spec("module", PRETRAINED[name].changes).spec.student) == [student]


def test_the_pitch_of_a_tone_is_right_within_fifty_cents() -> None:
    frames, cents = draw_tones(4)
    assert frames.shape == (4, 1024)
    bins = ((cents - 1997.38) / 20).round().long().clamp(0, 359)
    exact = torch.nn.functional.one_hot(bins, 360).float()
    assert score_pitch(exact, cents).tolist() == [1, 1, 1, 1]
    assert score_pitch(exact.roll(5, 1), cents).tolist() == [0, 0, 0, 0]


def test_a_row_of_a_pretrained_model_shows_shares_of_the_teacher(tmp_path: Path) -> None:
    shares = {"flops": 0.125, "bytes": 0.1}
    row = PretrainedRow("bert", "accuracy", 0.7, 0.69, 9, shares, "int8", "a rival", True, "", 60)
    write_table({"bert": row}, tmp_path / "table.md")
    line = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert line == "| bert | 9 | accuracy | 0.700 | 0.690 | 1/8.0 | 1/10.0 | - | int8 | verified | 60 | a rival |"


def test_magika_reads_the_first_and_the_last_bytes_of_a_file() -> None:
    values = encode_file(b"  abc ")
    assert (len(values), values[:4], values[-4:]) == (2048, [97, 98, 99, 32], [32, 97, 98, 99])
    longer = encode_file(bytes(range(33, 133)) * 50)
    assert (longer[:2], longer[-1], 256 in longer) == ([33, 34], 132, False)


def test_rows_of_tables_are_means_over_seeds_and_differences_by_seed() -> None:
    rows = [
        TableRow("wine", NETWORK, seed, "accuracy", 0.9, 0.9 + seed / 100, 0.89 + seed / 100, 2000.0 + seed, 100.0)
        for seed in range(3)
    ]
    rows.append(TableRow("diabetes", BOOSTING, 0, "r2", 0.4, 0.4, 0.45, 5000, 500.0))
    lines = tables_table(rows).splitlines()
    assert lines[2] == (
        "| wine (accuracy, %) | network | 3 | 90.0 ± 0.0 | 91.0 ± 0.6 | +1.0 ± 0.6 | 90.0 ± 0.6 | -1.0 ± 0.0 | "
        "2,001 | 100 | 20 |"
    )
    assert lines[3].startswith("| diabetes (R2) | gradient boosting | 1 | 0.400 ± nan | 0.400")
    assert TARGET in read_table("wine")


def test_a_warm_start_is_compared_by_compute_cost_and_seconds(tmp_path: Path) -> None:
    overrides = (*REFINEMENTS, *EARLY_STOPPING)
    driver = build_driver(tmp_path, *overrides)
    spent = 0.0
    while (job := driver.ask()) is not None:
        result = fake_costly_result(job)
        spent += driver._scheduler.count_job_epochs(job) * candidate_epoch_cost(result.candidates[0])
        driver.tell(job, result)
    close_store(driver)
    cold = warm_start.read_history(tmp_path)
    # Segments up to each rung and refinements are counted as the driver counts them.
    assert cold[-1][0] == pytest.approx(spent)
    assert cold[-1][2] == driver._archive.hypervolume
    costs = [cost for cost, _, _ in cold]
    assert costs == sorted(costs)
    half = [(cost / 2, 3 * seconds, volume) for cost, seconds, volume in cold]
    page = warm_start.render([warm_start.compare("digits", 4, cold, half)])
    for share in ("99.0", "99.5", "100.0"):
        assert re.search(rf"\| digits \| 4 \| .* \| {share}% \| 0.50 \| 3.00 \|", page)
    lower = [(cost, seconds, 0.9 * volume) for cost, seconds, volume in cold]
    page = warm_start.render([warm_start.compare("digits", 4, cold, lower)])
    assert re.search(r"\| digits \| 4 \| .* \| 99.0% \| not reached \| not reached \|", page)


def test_calibration_sets_are_averaged_over_draws_before_seeds() -> None:
    rows = [
        calibration.Row(task="digits", seed=seed, draw=draw, size=size, bits=list(bits), float=0.9, accuracy=accuracy)
        for seed, draw, accuracy in ((0, 0, 0.8), (0, 1, 0.9), (1, 0, 0.87))
        for size in (*calibration.SIZES, 0)
        for bits in calibration.BITS
    ]
    page = "\n".join(calibration.format_table(rows))
    assert "The float student has 90.00 ± 0.00% on test." in page
    # -5 points in one seed and -3 in the other.
    assert "| 16 | -4.00 ± 1.00 | -4.00 ± 1.00 | -4.00 ± 1.00 |" in page
    assert "| calibration split | -4.00 ± 1.00" in page


def test_drawn_shapes_fill_their_boxes_and_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    task = DetectionTask(detection.write_shapes(tmp_path / "data", 20, seed=3))
    assert task.labels["boxes"] == list(detection.SHAPES)
    assert task.notices == ()
    for boxes in task._parts["train"].boxes:
        assert 1 <= len(boxes) <= 4
        corners = (boxes[:, 1:] * detection.SIDE).round().long().tolist()
        covered = torch.zeros(detection.SIDE, detection.SIDE, dtype=torch.long)
        for left, top, right, bottom in corners:
            assert 12 <= min(right - left, bottom - top) <= max(right - left, bottom - top) <= 40
            covered[top:bottom, left:right] += 1
        assert int(covered.max()) == 1


def test_masks_have_the_shapes_of_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    task = Segmentation(segmentation.write_masks(tmp_path / "data", 40, seed=3))
    assert task.heads["mask"] == 1 + len(detection.SHAPES)
    split = task.splits(0).train.take(slice(None))
    for image, mask in zip(split.inputs[0], split.targets["mask"], strict=True):
        shapes = [image[0][mask == kind] for kind in mask.unique() if kind]
        # Shapes of one kind have up to four greys, and the noise around them has hundreds.
        assert shapes
        assert all(len(values.unique()) <= 4 for values in shapes)
        assert len(image[0][mask == 0].unique()) > 100


def test_a_row_of_drawn_shapes_shows_what_is_saved_and_lost() -> None:
    row = {"seed": 0, "images": 9, "teacher": 0.6, "teacher_second": 0.9, "teacher_macs": 4e6, "teacher_bytes": 8e4}
    row |= {"id": "t1c2", "bits": "8/8", "score": 0.595, "score_second": 0.89, "macs": 2e6, "bytes": 1e4}
    table = detection.format_table(segmentation.SEGMENTATION, [row | {"agreement": 1.0, "seconds": 60}]).splitlines()
    assert "| teacher: mean IoU (accuracy) | candidate |" in table[0]
    assert table[-1].startswith("| 0 | 9 | 0.6000 (0.9000) | t1c2 | 8/8 | 0.5950 (0.8900) | -0.0050 | 4 M → 2 M (")
    assert table[-1].endswith(" | 100.00% | 1 min 0 s |")


def test_a_device_is_measured_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"images": Part.of("cnn", width=4, depth=1, stages=1)}
    monkeypatch.setattr(gpu, "STUDENTS", {name: (gpu.IMAGES, student) for name, student in small.items()})
    # The compiler takes most of a minute.
    monkeypatch.setattr(gpu.Training, "run_compiled", lambda *_: 1 / 0)
    searched: list[tuple[object, ...]] = []

    def search(name: str, device: str, workers: int, *_: object) -> dict[str, object]:
        searched.append((name, device, workers))
        return {"kind": "search", "student": name, "device": device, "workers": workers, "trials an hour": 9}

    monkeypatch.setattr(gpu, "measure_search", search)
    page = tmp_path / "gpu.md"
    arguments = ["gpu", "--device", "cpu", "--seconds", "0.01", "--examples", "256", "--out", str(page)]
    monkeypatch.setattr("sys.argv", arguments)
    gpu.main()
    training, agreement, *searches = [json.loads(line) for line in page.with_suffix(".jsonl").read_text().splitlines()]
    assert training["float32"] > 0
    assert training["bfloat16"] > 0
    assert training["compiled"] == "ZeroDivisionError"
    # The processor agrees with itself.
    assert agreement["equal predictions"] == 1
    assert agreement["difference of outputs"] == 0
    assert searched == [("images", "cpu", workers) for workers in (0, 1, 2, 4, 8)]
    assert len(searches) == 5
    assert "| images | cpu | 8 | 9 |" in page.read_text()
    # What is stored is not measured again.
    gpu.main()
    assert len(searched) == 5


def test_texts_and_images_have_a_pattern_for_each_class() -> None:
    images, labels = gpu.draw_examples(gpu.IMAGES, 200)
    means = torch.stack([images[labels == label].mean(0) for label in range(gpu.CLASSES)])
    assert images.shape == (200, 3, 32, 32)
    assert float(means.std()) > 0.8
    texts, labels = gpu.draw_examples(gpu.TEXTS, 200)
    assert texts.shape == (200, gpu.LENGTH)
    assert int(texts.min()) >= 1
    assert int(texts.max()) < gpu.LETTERS
    counts = [(texts[labels == label] == label + 1).float().mean() for label in range(gpu.CLASSES)]
    assert min(counts) > 0.1
