"""Exported candidates on targets: score, agreement, bytes and latency beside the teacher and the own float file.

    python -m benchmarks.targets reports/digits reports/ratings --targets onnxruntime openvino > table.md
    python -m benchmarks.targets --blocks

Every candidate of the front of each run is exported for each target and run on the test split. Latencies are measured
in turns with the teacher's file and the candidate's own float file, in one process with one thread; a target that
measures itself (onnxruntime-web, a device) does so file by file. ``--blocks`` compares the stored forms of weights
alone: four linear layers of 2,048, and an embedding table.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from autocompress.core.knobs import Leaf
from autocompress.core.method import Context
from autocompress.core.precisions import HALF_BITS
from autocompress.core.registry import QUANTIZE
from autocompress.core.run_info import TargetInfo
from autocompress.errors import ArtifactError
from autocompress.export.artifact import Deployable, export_float_graph
from autocompress.export.candidate import export_teacher_graphs, rebuild_candidate, select_metric
from autocompress.export.graph_choice import GraphRequest, choose_graph
from autocompress.export.onnx import export_float, trace_quantized
from autocompress.store.run_store import RunStore
from autocompress.targets import Model, Target, make_target
from autocompress.targets.base import Array
from autocompress.targets.timing import time_rounds
from autocompress.trial.pipeline import TrialPipeline, reproducible_torch

BATCH = 256
# What a verified export may differ from the searched model: lost score, and equal predictions.
TOLERANCE, AGREEMENT = 0.005, 0.99
SIZE, ROWS, COLUMNS_OF_TABLE = 2048, 20_000, 32
#: Settings of weights alone.
FORMS: dict[str, dict[str, Leaf]] = {
    "4 bits, groups of 32": {"weight_bits": 4, "granularity": "per_group"},
    "4 bits": {"weight_bits": 4},
    "8 bits": {"weight_bits": 8},
    "2 bits": {"weight_bits": 2},
    "16 bits": {"weight_bits": 16},
}
COLUMNS = (
    "run",
    "candidate",
    "target",
    "graph",
    "searched",
    "exported",
    "agreement",
    "bytes",
    "ms",
    "p95 ms",
    "own float ms",
    "teacher ms",
)


@dataclass(frozen=True)
class Row:
    """One candidate on one target.

    Attributes:
        run: Name of the run.
        candidate: Id of the candidate.
        target: Name of the target.
        graph: Form of the exported graph.
        scores: Searched and exported score on the test split.
        agreement: Share of equal predictions.
        size: Bytes of the exported file.
        milliseconds: Median and 95th percentile of the exported file, medians of the own float and the teacher's file.
    """

    run: str
    candidate: str
    target: str
    graph: str
    scores: tuple[float, float]
    agreement: float
    size: int
    milliseconds: tuple[float, ...]

    def cells(self) -> list[str]:
        """Return the cells of a Markdown row."""
        texts = [self.run, self.candidate, self.target, self.graph, *(f"{score:.4f}" for score in self.scores)]
        return [*texts, f"{self.agreement:.2%}", f"{self.size:,}", *(f"{value:.4f}" for value in self.milliseconds)]


def measure_run(run: Path, targets: Sequence[Target], candidates: Sequence[str], seconds: float) -> Iterator[Row]:
    """Yield a row for each candidate of a run and each target."""
    with RunStore.read(run) as store:
        info = store.run_info()
    teacher = export_teacher_graphs(run).content
    for identity in candidates or list(dict.fromkeys([*(info.front or ()), info.recommended])):
        rebuilt = rebuild_candidate(run, identity)
        for target in targets:
            try:
                yield _measure(run.name, identity, rebuilt.deployable, rebuilt.pipeline, target, teacher, seconds)
            except ArtifactError as error:
                print(f"{run.name} {identity} on {target.name}: {error}")


def _measure(
    run: str,
    identity: str,
    deployable: Deployable,
    pipeline: TrialPipeline,
    target: Target,
    teacher: bytes,
    seconds: float,
) -> Row:
    info = TargetInfo(target.name, dict(target.options()), precisions=target.precisions())
    split = pipeline.splits.test
    logits = pipeline.predict(deployable.model, split)
    metric = select_metric(pipeline, logits, split.targets)
    searched = metric.overall(logits, split.targets)
    # As an export does: where layers in floating point round less than the searched model, none is used.
    for exact in (False, True):
        content, form = _export(replace(deployable, target=info, exact=exact), target)
        exported = _predict(_load(target, content), pipeline)
        score = metric.overall(exported, split.targets)
        same = [(logits[head].argmax(-1) == exported[head].argmax(-1)).double().mean() for head in logits]
        if metric.loss_against(score, searched) <= TOLERANCE + 1e-9 and min(same) >= AGREEMENT:
            break
    files = {"candidate": content, "float": export_float_graph(deployable), "teacher": teacher}
    models = {name: _load(target, file) for name, file in files.items()}
    times = _time(target, files, models, [tensor.numpy() for tensor in deployable.example], seconds)
    return Row(
        run,
        identity,
        target.name,
        form,
        (searched, score),
        float(torch.stack(same).min()),
        sum(map(len, target.convert(content).values())),
        times,
    )


@lru_cache(maxsize=8)
def _load(target: Target, content: bytes) -> Model:
    """Return a model, converted once: some converters take seconds for each file."""
    return target.load(content)


def _time(
    target: Target, files: dict[str, bytes], models: dict[str, Model], inputs: Sequence[Array], seconds: float
) -> tuple[float, ...]:
    """Return median and 95th percentile of the candidate, and the medians of the others."""
    if target.measure(files["candidate"], 0.01) is not None:
        measured = [target.measure(file, seconds) or 0.0 for file in files.values()]
        # Such a target reports one number.
        return (measured[0], float("nan"), *measured[1:])
    times = time_rounds(models, inputs, seconds, runs=1)
    medians = [float(np.median(values)) for values in times.values()]
    return (medians[0], float(np.percentile(times["candidate"], 95)), *medians[1:])


def _export(deployable: Deployable, target: Target) -> tuple[bytes, str]:
    state = deployable.quantize_state
    if state is None:
        return export_float_graph(deployable), "float"
    request = GraphRequest(deployable.model, state, deployable.example, deployable.heads, deployable.batches)
    chosen = choose_graph(request, target, deployable.target.precisions, exact=deployable.exact)
    return chosen.content, chosen.form


def _predict(model: Model, pipeline: TrialPipeline) -> dict[str, torch.Tensor]:
    parts = [model([t.numpy() for t in batch.inputs]) for batch in pipeline.splits.test.batches(BATCH)]
    heads = zip(pipeline.task.heads, zip(*parts, strict=True), strict=True)
    return {head: torch.from_numpy(np.concatenate(values)) for head, values in heads}


def compare_forms(seconds: float) -> Iterator[list[str]]:
    """Yield a row for each form of four linear layers and of an embedding table: bytes, median and 95th percentile."""
    torch.manual_seed(0)
    linear = torch.nn.Sequential(*[torch.nn.Linear(SIZE, SIZE) for _ in range(4)]).eval()
    table = torch.nn.Embedding(ROWS, COLUMNS_OF_TABLE)
    examples = {"linear": torch.randn(16, SIZE), "table": torch.randint(ROWS, (16,))}
    for kind, model in (("linear", linear), ("table", table)):
        example = examples[kind]
        heads = {"y": SIZE if kind == "linear" else COLUMNS_OF_TABLE}
        graphs = {"float": bytes(export_float(model, (example[:1],), heads).SerializeToString())}
        for name, settings in FORMS.items():
            graphs |= {f"{name}, {form}": graph for form, graph in _build_forms(model, example, heads, settings)}
        models = {name: make_target("onnxruntime", {}).load(graph) for name, graph in graphs.items()}
        times = time_rounds(models, [example[:1].numpy()], seconds, runs=1)
        for name, values in times.items():
            cells = (float(np.median(values)), float(np.percentile(values, 95)))
            yield [kind, name, f"{len(graphs[name]):,}", *(f"{value:.4f}" for value in cells)]


def _build_forms(
    model: torch.nn.Module, example: torch.Tensor, heads: dict[str, int], settings: dict[str, Leaf]
) -> Iterator[tuple[str, bytes]]:
    """Yield the graph that decodes weights at load, or unpacks rows, and the one with packed operators."""
    method = QUANTIZE.get("post_training")
    # The search for the best clipping would take minutes on 16 million weights, and changes no time.
    config = method.config.of(
        {"activation_bits": 32, "weight_observer": "minmax", "bias_correction": False, **settings}
    )
    quantized, state = method.apply(model, config, Context((example[:1],), ((example,),)))
    request = GraphRequest(quantized, state, (example[:1],), heads)
    forms = {"decoded": False, "packed": True} if settings["weight_bits"] != HALF_BITS else {"float16": False}
    for name, in_blocks in forms.items():
        traced = trace_quantized(quantized, state, (example[:1],), heads, block_tables=in_blocks)
        proto = traced.build(request.float_layers, request.encode_blocks() if in_blocks else {})
        yield name, bytes(proto.SerializeToString())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--targets", nargs="+", default=["onnxruntime"])
    parser.add_argument("--candidates", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--web-folder", default=".", help="folder with node_modules of onnxruntime-web")
    options = parser.parse_args()
    if options.blocks:
        print("| model | weights | bytes | ms | p95 ms |\n|---|---|---|---|---|")
        for cells in compare_forms(options.seconds):
            print(f"| {' | '.join(cells)} |", flush=True)
        return
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS))
    with reproducible_torch():
        for run in options.runs:
            settings = {"onnxruntime-web": {"folder": options.web_folder}}
            targets = [make_target(name, settings.get(name, {})) for name in options.targets]
            for row in measure_run(run, targets, options.candidates, options.seconds):
                print(f"| {' | '.join(row.cells())} |", flush=True)


if __name__ == "__main__":
    main()
