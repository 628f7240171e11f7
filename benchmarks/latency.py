"""Predicted against measured latency, and recommended candidates as files beside the teacher and their float files.

    python -m benchmarks.latency order --spaces digits mnist1d langid --candidates 60
    python -m benchmarks.latency picks reports/digits-0 reports/digits-1

`order` draws random students with random compression from a shipped search space, predicts the latency of each, exports
it untrained (latency does not depend on the values of weights) and times all of them in turns with one thread. `picks`
exports the recommended candidate of finished runs and times its files in turns with the teacher's.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from scipy.stats import kendalltau

import autocompress
from autocompress.core.latency_model import LatencyModel, LayerWork
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.engine.initial_design import RandomTrial
from autocompress.engine.runner import Plan, make_plan
from autocompress.engine.spec import load_spec
from autocompress.export.candidate import export_teacher_graphs
from autocompress.export.channel_padding import pad_channels
from autocompress.export.graph_choice import GraphRequest, list_mixtures
from autocompress.export.latency_students import STUDENTS, Variant, calibrate_students
from autocompress.export.onnx import export_float, trace_quantized
from autocompress.measure import layer_costs
from autocompress.measure.cost import count_effective_flops, list_layer_work
from autocompress.quantize.folding import fold_batch_norm
from autocompress.targets import make_target
from autocompress.targets.timing import compare_rounds, time_in_turns, time_rounds
from autocompress.trial.pipeline import list_computed_bits, reproducible_torch

EXAMPLES = 64
# A low quantile of the rounds: other processes only ever add time.
QUICK_SHARE = 0.2


@dataclass(frozen=True)
class Student:
    """A random candidate.

    Attributes:
        works: Its layers, for the prediction.
        effective_flops: Its effective FLOPs.
        graphs: Graphs among which an export chooses the fastest.
    """

    works: Sequence[LayerWork]
    effective_flops: float
    graphs: Sequence[bytes]


def draw_variants(plan: Plan, first: int, count: int) -> list[Variant]:
    """Return random students with random compression; those of other seeds are others."""
    configs = [plan.space.suggest_config(RandomTrial(first + at), with_compression=True) for at in range(count)]
    return [(training.student, recipe) for training, recipe in configs]


def build_student(plan: Plan, variant: Variant) -> Student:
    """Return an untrained student, compressed."""
    student, recipe = variant
    task, precisions = plan.task, plan.target.precisions
    example = task.example()
    context = Context(example, (plan.splits.calibration.take(slice(0, EXAMPLES)).inputs,))
    model = task.build(student).eval()
    if recipe.prune is not None:
        method = PRUNE.get(recipe.prune.name)
        model, _ = method.apply(model, method.config.of(recipe.prune.values), context)
    folded = fold_batch_norm(model.eval(), example)
    layers = layer_costs(folded, example)
    if recipe.quantize is None:
        proto = export_float(folded, example, task.heads)
        return Student(list_layer_work(layers, {}), count_effective_flops(layers, {}), list_forms([proto], plan))
    quantizer = QUANTIZE.get("post_training")
    widths = {name: recipe.quantize.values[name] for name in ("weight_bits", "activation_bits")}
    quantized, state = quantizer.apply(folded, quantizer.config.of(widths), context)
    bits = list_computed_bits(state, precisions)
    request = GraphRequest(quantized, state, example, task.heads)
    signed = precisions.weight_type == "int8" and not precisions.reduce_range
    traced = trace_quantized(quantized, state, example, task.heads, signed=signed)
    choices = [(), *list_mixtures(request).values(), request.integer_layers]
    # The one in floating point comes last.
    protos = [traced.build([*names, *request.float_layers]) for names in choices]
    return Student(list_layer_work(layers, bits), count_effective_flops(layers, bits), list_forms(protos, plan))


def list_forms(protos: Sequence[ModelProto], plan: Plan) -> list[bytes]:
    """Return the graphs among which an export chooses; the last one is in floating point, and is padded, too."""
    multiple = make_target(plan.target.name, plan.target.options).channel_multiple
    padded = pad_channels(protos[-1], multiple) if multiple > 1 else None
    return [bytes(proto.SerializeToString()) for proto in [*protos, *([] if padded is None else [padded])]]


def time_students(plan: Plan, students: Sequence[Student], seconds: float) -> list[float]:
    """Return the milliseconds of the fastest graph of each student; all graphs are timed in turns."""
    target = make_target(plan.target.name, plan.target.options)
    models = {
        f"{at} {form}": target.load(graph) for at, s in enumerate(students) for form, graph in enumerate(s.graphs)
    }
    times = time_in_turns(models, [tensor.numpy() for tensor in plan.task.example()], seconds, QUICK_SHARE)
    return [min(times[f"{at} {form}"] for form in range(len(s.graphs))) for at, s in enumerate(students)]


def compare_order(space: str, count: int, seconds: float) -> list[str]:
    """Return the cells of one search space."""
    plan = make_plan(load_spec(space))
    try:
        started = time.perf_counter()
        model: LatencyModel = calibrate_students(
            plan.task, plan.splits.calibration, draw_variants(plan, 0, STUDENTS), plan.target
        )
        calibration = time.perf_counter() - started
        with reproducible_torch():
            students = [build_student(plan, variant) for variant in draw_variants(plan, 1000, count)]
    finally:
        plan.backend.shutdown()
    measured, again = (np.array(time_students(plan, students, seconds)) for _ in range(2))
    predicted = np.array([model.predict(student.works) for student in students])
    flops = [student.effective_flops for student in students]
    taus = [kendalltau(values, measured).statistic for values in (predicted, again, flops)]
    error = np.median(np.abs(predicted / measured - 1))
    span = f"{measured.min():.4f} to {measured.max():.4f}"
    return [space, str(count), span, *(f"{tau:.3f}" for tau in taus), f"{error:.1%}", f"{calibration:.1f}"]


def time_picks(runs: Sequence[Path], seconds: float) -> Iterator[list[str]]:
    """Yield the cells of each run: milliseconds of the files, and the ratios of the same rounds."""
    for run in runs:
        front = autocompress.load(run)
        identity = front.pick().id
        folder = front.export(identity, verify=False)
        target = make_target(front.info.target.name, front.info.target.options)
        teacher = export_teacher_graphs(run)
        in_float = folder / "model_float.onnx"
        contents = {"teacher": teacher.content, "file": (folder / "model.onnx").read_bytes()}
        contents["float"] = in_float.read_bytes() if in_float.exists() else contents["file"]
        inputs = [np.zeros(shape, dtype) for shape, dtype in teacher.inputs]
        models = {name: target.load(content) for name, content in contents.items()}
        rounds = time_rounds(models, inputs, seconds)
        beside_teacher, beside_float = (compare_rounds(rounds, name) for name in ("teacher", "float"))
        milliseconds = [float(np.median(rounds[name])) for name in ("teacher", "float", "file")]
        faster, slower = 1 / beside_teacher["file"], beside_float["file"]
        yield [run.name, identity, *(f"{value:.4f}" for value in milliseconds), f"{faster:.2f}", f"{slower:.2f}"]


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a Markdown table at once."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    order = commands.add_parser("order")
    order.add_argument("--spaces", nargs="+", default=["digits", "mnist1d", "langid"])
    order.add_argument("--candidates", type=int, default=60)
    order.add_argument("--seconds", type=float, default=10.0)
    picks = commands.add_parser("picks")
    picks.add_argument("runs", nargs="+", type=Path)
    picks.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "order":
        names = ["predicted", "measured again", "effective FLOPs"]
        columns = ["space", "candidates", "ms", *(f"tau, {name}" for name in names), "error", "calibration, s"]
        rows: Iterator[list[str]] = (
            compare_order(space, options.candidates, options.seconds) for space in options.spaces
        )
    else:
        columns = ["run", "candidate", "teacher, ms", "float file, ms", "file, ms", "times faster", "file / float"]
        rows = time_picks(options.runs, options.seconds)
    print_row(columns)
    print_row(["---"] * len(columns))
    for row in rows:
        print_row(row)


if __name__ == "__main__":
    main()
