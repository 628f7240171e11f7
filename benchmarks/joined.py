"""Bytes of several models in one folder: `python -m benchmarks.joined [--seeds 3]`.

A supernet on digits is trained once per seed. Its widths and bit-widths are exported one by one and joined in groups.
Each joined model equals its own artifact bit for bit, which `join_artifacts` checks. Compared are the bytes of all
tensors in one folder with their sum over the separate artifacts, without descriptions and graphs.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from autocompress.core.atomic import write_atomic
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.registry import TASKS
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.export.switchable import JoinedArtifact, join_artifacts
from autocompress.quantize import fold_batch_norm
from autocompress.trial.pipeline import Setup, TrialPipeline, load_pipeline, reproducible_torch
from autocompress.trial.supernet import subnetwork_pruning
from autocompress.trial.teacher import TeacherRecipe
from benchmarks.common import describe_benchmark
from benchmarks.variants import mean_and_error

OUT = Path("reports/benchmarks/joined.md")
#: Name to the share of channels that is left out, and the bits of the weights.
VARIANTS: Mapping[str, tuple[float, int]] = {
    "float": (0.0, 32),
    "int8": (0.0, 8),
    "4-bit": (0.0, 4),
    "2-bit": (0.0, 2),
    "int8-75": (0.25, 8),
    "int8-50": (0.5, 8),
    "float-50": (0.5, 32),
}
GROUPS = {
    "bit-widths 32, 8": ("float", "int8"),
    "bit-widths 32, 8, 4, 2": ("float", "int8", "4-bit", "2-bit"),
    "bit-widths 8, 4": ("int8", "4-bit"),
    "bit-widths 8, 4, 2": ("int8", "4-bit", "2-bit"),
    "widths 100%, 75%, 50% at 8 bits": ("int8", "int8-75", "int8-50"),
    "widths 100%, 50% in floating point": ("float", "float-50"),
    "all of them": tuple(VARIANTS),
}
STUDENT = Part.of("cnn", width=16, depth=1, stages=2)
FIT = Part.of("adamw", epochs=8, learning_rate=1e-2, sandwich=0.5)


def join_groups(seed: int, folder: Path) -> dict[str, JoinedArtifact]:
    """Train a supernet, export its variants into a folder, and join each group."""
    task = Part("digits")
    student, fit = TASKS.get(task.name)().teacher()
    distill = (Part.of("soft_target", temperature=2.0, alpha=0.5),)
    training = CompressionConfig(STUDENT, distill, FIT, seed=seed)
    with reproducible_torch():
        pipeline = load_pipeline(Setup(task, 0, TeacherRecipe(student, fit, 0), ("accuracy",), ("bytes",)))
        model = pipeline.train(training).model
        for name in VARIANTS:
            deployable = build_variant(pipeline, training, model, *VARIANTS[name])
            write_artifact(folder / name, deployable, {})
    return {
        group: join_artifacts([folder / name for name in names], folder / "joined") for group, names in GROUPS.items()
    }


def build_variant(
    pipeline: TrialPipeline, training: CompressionConfig, model: nn.Module, ratio: float, bits: int
) -> Deployable:
    """Return a sub-network of a supernet with quantized weights.

    Args:
        pipeline: Task, splits and teacher.
        training: Config of the supernet.
        model: The supernet.
        ratio: Share of the channels that is left out.
        bits: Bits of the weights.
    """
    task = pipeline.task
    prune = subnetwork_pruning(ratio) if ratio else None
    quantize = Part.of("post_training", weight_bits=bits, activation_bits=8) if bits < 32 else None
    pruned, prune_state = pipeline.prune(model, training, prune)
    quantized, state = pipeline.quantize(pruned, training, quantize)
    if state is None:
        quantized = fold_batch_norm(pruned, task.example())
    return Deployable(
        replace(training, prune=prune, quantize=quantize),
        task.name,
        {},
        {},
        task.heads,
        task.inputs,
        task.example(),
        pruned,
        quantized,
        prune_state,
        state,
    )


def format_table(results: Mapping[str, list[JoinedArtifact]]) -> list[str]:
    """Return the table in Markdown: means over seeds, and the ratio with its standard error."""
    lines = ["| models | separate, bytes | joined, bytes | ratio |", "|---|---|---|---|"]
    for group, joined in results.items():
        separate = [sum(entry.separate_tensor_bytes.values()) for entry in joined]
        together = [entry.tensor_bytes for entry in joined]
        ratio, error = mean_and_error([a / b for a, b in zip(together, separate, strict=True)])
        means = [sum(values) / len(values) for values in (separate, together)]
        lines.append(f"| {group} | {means[0]:,.0f} | {means[1]:,.0f} | {ratio:.3f} ± {error:.3f} |")
    return lines


def main() -> None:
    """Join the groups for every seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    results: dict[str, list[JoinedArtifact]] = {group: [] for group in GROUPS}
    for seed in range(arguments.seeds):
        with TemporaryDirectory() as folder:
            for group, joined in join_groups(seed, Path(folder)).items():
                results[group].append(joined)
    text = "\n".join(
        [
            "# Several models in one folder",
            "",
            describe_benchmark(__doc__),
            f"Mean over {arguments.seeds} seeds, and standard error of the ratio.",
            "",
            *format_table(results),
            "",
        ]
    )
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
