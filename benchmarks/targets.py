"""Exported candidates on targets: score, agreement, bytes and latency beside the teacher and the own float file.

    python -m benchmarks.targets reports/digits reports/ratings --targets onnxruntime openvino > table.md

Every candidate of the front of each run is exported for each target and run on the test split. Latencies are measured
in turns with the teacher's file and the candidate's own float file, in one process with one thread.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autocompress.core.run_info import TargetInfo
from autocompress.errors import ArtifactError
from autocompress.export.artifact import Deployable, export_float_graph
from autocompress.export.candidate import export_teacher_graphs, rebuild_candidate, select_metric
from autocompress.export.graph_choice import GraphRequest, choose_graph
from autocompress.store.run_store import RunStore
from autocompress.targets import Model, Target, make_target
from autocompress.targets.timing import time_in_turns
from autocompress.trial.pipeline import TrialPipeline, reproducible_torch

BATCH = 256
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
        milliseconds: Median of the exported, the own float and the teacher's file.
    """

    run: str
    candidate: str
    target: str
    graph: str
    scores: tuple[float, float]
    agreement: float
    size: int
    milliseconds: tuple[float, float, float]

    def cells(self) -> list[str]:
        """Return the cells of a Markdown row."""
        texts = [self.run, self.candidate, self.target, self.graph, *(f"{score:.4f}" for score in self.scores)]
        return [*texts, f"{self.agreement:.2%}", f"{self.size:,}", *(f"{value:.4f}" for value in self.milliseconds)]


def measure_run(run: Path, targets: Sequence[str], candidates: Sequence[str], seconds: float) -> Iterator[Row]:
    """Yield a row for each candidate of a run and each target."""
    with RunStore.read(run) as store:
        info = store.run_info()
    teacher = export_teacher_graphs(run).content
    for identity in candidates or list(dict.fromkeys([*(info.front or ()), info.recommended])):
        rebuilt = rebuild_candidate(run, identity)
        for name in targets:
            target = make_target(name, {})
            try:
                yield _measure(run.name, identity, rebuilt.deployable, rebuilt.pipeline, target, teacher, seconds)
            except ArtifactError as error:
                print(f"{run.name} {identity} on {name}: {error}")


def _measure(
    run: str,
    identity: str,
    deployable: Deployable,
    pipeline: TrialPipeline,
    target: Target,
    teacher: bytes,
    seconds: float,
) -> Row:
    info = TargetInfo(target.name, precisions=target.precisions())
    content, form = _export(replace(deployable, target=info), target)
    models = {
        "candidate": target.load(content),
        "float": target.load(export_float_graph(deployable)),
        "teacher": target.load(teacher),
    }
    split = pipeline.splits.test
    logits = pipeline.predict(deployable.model, split)
    exported = _predict(models["candidate"], pipeline)
    metric = select_metric(pipeline, logits, split.targets)
    same = [(logits[head].argmax(-1) == exported[head].argmax(-1)).double().mean() for head in logits]
    times = time_in_turns(models, [tensor.numpy() for tensor in deployable.example], seconds)
    return Row(
        run,
        identity,
        target.name,
        form,
        (metric.overall(logits, split.targets), metric.overall(exported, split.targets)),
        float(torch.stack(same).min()),
        len(content),
        (times["candidate"], times["float"], times["teacher"]),
    )


def _export(deployable: Deployable, target: Target) -> tuple[bytes, str]:
    state = deployable.quantize_state
    if state is None:
        return export_float_graph(deployable), "float"
    request = GraphRequest(deployable.model, state, deployable.example, deployable.heads, deployable.batches)
    chosen = choose_graph(request, target, deployable.target.precisions)
    return chosen.content, chosen.form


def _predict(model: Model, pipeline: TrialPipeline) -> dict[str, torch.Tensor]:
    parts = [model([t.numpy() for t in batch.inputs]) for batch in pipeline.splits.test.batches(BATCH)]
    heads = zip(pipeline.task.heads, zip(*parts, strict=True), strict=True)
    return {head: torch.from_numpy(np.concatenate(values)) for head, values in heads}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--targets", nargs="+", default=["onnxruntime"])
    parser.add_argument("--candidates", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS))
    with reproducible_torch():
        for run in options.runs:
            for row in measure_run(run, options.targets, options.candidates, options.seconds):
                print(f"| {' | '.join(row.cells())} |", flush=True)


if __name__ == "__main__":
    main()
