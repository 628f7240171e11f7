"""Pruning and quantization together against each alone, at equal bytes and at equal latency, on four tasks.

Each candidate has the same number of epochs: the student of a pruned one is trained for fewer epochs and fine-tuned for
the rest. Of each family, the candidate with the best score on the selection split among those within the budget is
compared on the test split, as a search would choose it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.core.method import Context
from autocompress.core.records import CompressionRecipe
from autocompress.core.registry import OBJECTIVES, PRUNE, QUANTIZE, TASKS
from autocompress.core.task import Task
from autocompress.export.onnx import export_float, export_quantized
from autocompress.quantize import fold_batch_norm
from autocompress.targets.onnx_session import create_session
from benchmarks.benchmark_tasks import DIGITS, LANGID, MNIST1D, build_reviews
from benchmarks.common import append_row, load_rows
from benchmarks.comparison import format_gain, format_header, format_mean, wrap_paragraph
from benchmarks.variants import BenchmarkTask, Measurements, ResultKey, Variant, run_all

RATIOS = (0.5, 0.7)
BITS = (8, 4, 3)
ROUNDS = 400


@dataclass(frozen=True)
class JointTask:
    """A benchmark task with the epochs that fine-tuning takes from the training.

    Attributes:
        benchmark: The task, with the epochs of training and fine-tuning together.
        recovery: Epochs of fine-tuning after pruning.
    """

    benchmark: BenchmarkTask
    recovery: int


def build_tasks(reviews: Path | None) -> list[JointTask]:
    """Return the tasks; their students are wide enough to be pruned."""
    tasks = [(DIGITS, 16, 16, 5), (MNIST1D, 16, 8, 2), (LANGID, 32, 3, 1)]
    if reviews is not None:
        tasks.append((build_reviews(reviews), 24, 3, 1))
    result = []
    for base, width, epochs, recovery in tasks:
        student = Part.of(base.student.name, **{**base.student.values, "width": width})
        fit = Part.of(base.fit.name, **{**base.fit.values, "epochs": epochs})
        # Nothing is distilled, so the teacher is an untrained student.
        teacher = (student, Part.of("adamw", epochs=0))
        result.append(JointTask(replace(base, student=student, fit=fit, teacher=teacher), recovery))
    return result


def build_cuts(recovery: int, learning_rate: Leaf) -> dict[str, dict[str, CompressionRecipe]]:
    """Return the recipes of each family by name: ``pruned``, ``quantized`` and ``both``."""
    prunes = {
        ratio: Part.of(
            "structured", pruning_ratio=ratio, recovery_epochs=recovery, recovery_learning_rate=learning_rate
        )
        for ratio in RATIOS
    }
    quantizers = {
        bits: Part.of(
            "post_training",
            weight_bits=bits,
            activation_bits=8,
            observer="mse",
            weight_observer="mse",
            bias_correction=True,
        )
        for bits in BITS
    }
    return {
        "pruned": {f"{ratio:g}": CompressionRecipe(prune=part) for ratio, part in prunes.items()},
        "quantized": {f"{bits}": CompressionRecipe(quantize=part) for bits, part in quantizers.items()},
        "both": {
            f"{ratio:g} {bits}": CompressionRecipe(part, quantizer)
            for ratio, part in prunes.items()
            for bits, quantizer in quantizers.items()
        },
    }


def build_variants(task: JointTask) -> list[Variant]:
    """Return two trials: all epochs for quantization alone, and fewer before pruning and fine-tuning."""
    epochs = int(str(task.benchmark.fit.values["epochs"]))
    cuts = build_cuts(task.recovery, task.benchmark.fit.values["learning_rate"])
    pruned = {f"{family} {name}": cut for family in ("pruned", "both") for name, cut in cuts[family].items()}
    quantized = {f"quantized {name}": cut for name, cut in cuts["quantized"].items()}
    return [
        Variant("whole", {"": CompressionRecipe(), **quantized}),
        Variant("pruned", pruned, fit={"epochs": epochs - task.recovery}),
    ]


def build_graph(task: Task, student: Part, cut: CompressionRecipe) -> bytes:
    """Return the ONNX graph of an untrained student after compression: latency depends on shapes and bits alone."""
    model = task.build(student).eval()
    example = task.example()
    if cut.prune is not None:
        method = PRUNE.get(cut.prune.name)
        model, _ = method.apply(model, method.config.of(cut.prune.values), Context(example))
        model.eval()
    if cut.quantize is None:
        return bytes(export_float(fold_batch_norm(model, example), example, task.heads).SerializeToString())
    batches = (task.splits(0).calibration.take(slice(0, 64)).inputs,)
    quantizer = QUANTIZE.get(cut.quantize.name)
    settings = quantizer.config.of({**cut.quantize.values, "bias_correction": False})
    model, state = quantizer.apply(model, settings, Context(example, batches))
    return bytes(export_quantized(model, state, example, task.heads).SerializeToString())


def measure_latencies(benchmark: BenchmarkTask, cuts: Mapping[str, CompressionRecipe]) -> dict[str, float]:
    """Return the smallest latency of one example in microseconds by name, on one thread, all models in turn."""
    task: Task = TASKS.get(benchmark.task.name)(**benchmark.task.values)
    sessions = {name: create_session(build_graph(task, benchmark.student, cut)) for name, cut in cuts.items()}
    values = [tensor.numpy() for tensor in task.example()]
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            feed = {entry.name: value for entry, value in zip(session.get_inputs(), values, strict=True)}
            started = time.perf_counter()
            session.run(None, feed)
            # The smallest of many: other work on the machine only adds to a latency.
            best[name] = min(best[name], 1e6 * (time.perf_counter() - started))
    return best


def select_within(
    rows: Mapping[str, Mapping[str, float]], cost: str, budget: float, is_maximized: bool
) -> Mapping[str, float] | None:
    """Return the candidate with the best score on the selection split whose cost is within the budget, if any."""
    eligible = [row for row in rows.values() if row[cost] <= budget]
    best = max if is_maximized else min
    return best(eligible, key=lambda row: row["select_val"]) if eligible else None


class JointResults:
    """The candidates of one task, by seed and family, with their latency.

    Args:
        task: The task.
        results: Results of all trials.
        seeds: Number of seeds.
        latencies: Latency by name of the candidate; candidates without a measured latency cannot meet a limit on it.
    """

    def __init__(
        self,
        task: JointTask,
        results: Mapping[ResultKey, Measurements],
        seeds: int,
        latencies: Mapping[str, float],
    ) -> None:
        self.benchmark = task.benchmark
        self.is_maximized = OBJECTIVES.get(self.benchmark.metric).direction == "maximize"
        self.latencies = latencies
        self._candidates = []
        for seed in range(seeds):
            rows = {}
            for variant in ("whole", "pruned"):
                for name, row in results[self.benchmark.name, variant, seed].items():
                    rows[name] = {**row, "latency": latencies.get(name, float("inf"))}
            self._candidates.append(rows)

    def score_family(self, family: str, cost: str, anchor: str) -> list[float | None]:
        """Return the test score of a family's choice for each seed, within the cost of the candidate ``anchor``."""
        scores: list[float | None] = []
        for rows in self._candidates:
            members = {name: row for name, row in rows.items() if name.startswith(family)}
            chosen = select_within(members, cost, rows[anchor][cost], self.is_maximized)
            scores.append(None if chosen is None else self.benchmark.unit * chosen[self.benchmark.metric])
        return scores

    def format_row(self, cost: str, anchor: str) -> str:
        """Return a row of the table: the scores of the three families and the gains of both together."""
        scores = {family: self.score_family(family, cost, anchor) for family in ("both", "pruned", "quantized")}
        complete = {
            family: [value for value in values if value is not None]
            for family, values in scores.items()
            if None not in values
        }
        cells = [self.benchmark.name, f"{cost} of {anchor}, {self._format_budget(cost, anchor)}"]
        cells += [format_mean(complete[family]) if family in complete else "none" for family in scores]
        for family in ("pruned", "quantized"):
            is_comparable = "both" in complete and family in complete
            cells.append(format_gain(complete["both"], complete[family], self.is_maximized) if is_comparable else "–")
        return f"| {' | '.join(cells)} |"

    def _format_budget(self, cost: str, anchor: str) -> str:
        value = self._candidates[0][anchor][cost]
        return f"{value:.1f} µs" if cost == "latency" else f"{value:,.0f}"


ANCHORS = (
    ("bytes", "quantized 8"),
    ("bytes", "quantized 4"),
    ("bytes", "quantized 3"),
    ("latency", "quantized 8"),
    ("latency", "pruned 0.5"),
)


def format_table(tasks: Sequence[JointResults], seeds: int) -> list[str]:
    """Return the lines of the Markdown table."""
    columns = ("task", "budget", "both", "pruned alone", "quantized alone", "both over pruned", "both over quantized")
    return [
        "# Pruned and quantized together against each alone",
        "",
        wrap_paragraph(
            f"""Primary score on the test split times 100, mean and standard error over {seeds} seeds; gains are paired
            by seed, positive is better, a star marks one beyond two standard errors. Each row names a
            candidate whose bytes or latency are the budget; each cell is the family's candidate within
            that budget that is best on the selection split. All candidates have the same epochs,
            fine-tuning included. Pruning ratios {", ".join(map(str, RATIOS))} (channels, structured),
            weight bits {", ".join(map(str, BITS))} with 8-bit activations (post-training, tuned).
            Latency: the smallest of {ROUNDS} runs of one example in onnxruntime on one thread, all
            models in turn; only candidates of 32 or 8 bits have kernels. "none": no candidate of the
            family is within the budget."""
        ),
        "",
        *format_header(columns),
        *(
            results.format_row(cost, anchor)
            for results in tasks
            for cost, anchor in ANCHORS
            if cost != "latency" or results.latencies
        ),
    ]


def run_section(reviews: Path | None, seeds: int, results_file: Path, workers: int) -> str:
    """Run the benchmark and return its page; the reviews are left out without their file."""
    tasks = build_tasks(reviews)
    by_name = {task.benchmark.name: task for task in tasks}
    benchmarks = [task.benchmark for task in tasks]
    results = run_all(
        benchmarks, lambda benchmark: build_variants(by_name[benchmark.name]), seeds, results_file, workers
    )
    latencies = load_latencies(results_file.with_stem(f"{results_file.stem}_latency"), tasks)
    tables = [JointResults(task, results, seeds, latencies[task.benchmark.name]) for task in tasks]
    return "\n".join([*format_table(tables, seeds), ""])


def load_latencies(file: Path, tasks: Sequence[JointTask]) -> dict[str, dict[str, float]]:
    """Return the latency of each candidate by task; stored ones are not measured again."""
    latencies = {row["task"]: row["values"] for row in load_rows(file)}
    for task in tasks:
        name = task.benchmark.name
        if name not in latencies:
            cuts = {title: cut for variant in build_variants(task) for title, cut in variant.cuts.items()}
            # Weights of 4 and 3 bits have no kernel of their own.
            timed = {title: cut for title, cut in cuts.items() if cut.quantize is None or title.endswith(" 8")}
            latencies[name] = measure_latencies(task.benchmark, timed)
            append_row(file, {"task": name, "values": latencies[name]})
    return latencies
