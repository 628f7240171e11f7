"""Memory of a fit whose processes divide the model: `python -m benchmarks.sharding`.

A transformer with random weights learns random texts for a few steps: alone, with data-parallel processes, and with
processes that divide weights, gradients and optimizer state (`fit.shards`); then with a teacher of the same size that
runs live. Stored bytes are those of one process between two steps (the largest of all processes); peak memory is the
resident memory of one process less that of the same fit with a tiny model. Losses are compared with those of one
process.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.tasks.base import Supervised
from autocompress.training.fit import FitRequest, FitResult, fit_parallel

LENGTH, VOCABULARY, CLASSES, EXAMPLES, BATCH = 16, 512, 8, 64, 16
INPUTS = (InputSpec((LENGTH,), vocabulary=VOCABULARY),)
HEADS = {"label": CLASSES}
LARGE = {"layers": 8, "attention_heads": 8, "head_size": 64, "feed_forward": 4}
TINY = {"layers": 1, "attention_heads": 1, "head_size": 4}
SETTINGS = {"epochs": 2, "batch_size": BATCH, "learning_rate": 1e-3}


class RandomTexts(Supervised):
    """Random texts with random labels."""

    name = "random_texts"
    inputs: tuple[InputSpec, ...] = INPUTS
    heads: Mapping[str, int] = HEADS

    def splits(self, seed: int) -> Splits:
        """Return the same texts as every split."""
        return Splits(*[draw_texts()] * 5)

    def teacher(self) -> tuple[Part, Part]:
        """Return the default teacher."""
        return Part.of("transformer", **LARGE), Part("adamw")


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher without cached logits."""

    model: nn.Module

    def view(self, index: int) -> dict[str, Tensor]:
        """Return no logits: the terms of this benchmark run the model."""
        return {}


def draw_texts() -> Split:
    """Return random texts."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(0, VOCABULARY, (EXAMPLES, LENGTH), generator=generator)
    return Split((texts,), {"label": torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)})


def run_fit(shape: dict[str, int], with_teacher: bool, **group: int) -> FitResult:
    """Train a transformer of this shape in processes of its own."""
    torch.manual_seed(0)
    task = RandomTexts()
    model = task.build(Part.of("transformer", **shape))
    teacher = LiveTeacher(task.build(Part.of("transformer", **shape)).eval()) if with_teacher else None
    terms = [Part("none"), Part("attention")] if with_teacher else [Part("none")]
    optimizer = Part.of("adamw", **SETTINGS, **group)
    return fit_parallel(model, FitRequest(task, draw_texts(), optimizer, terms=terms, teacher=teacher))


def format_row(label: str, result: FitResult, alone: FitResult, base: FitResult) -> str:
    """Return one row of the table.

    Args:
        label: Text of the first column.
        result: The fit of the row.
        alone: The same fit in one process.
        base: The fit of a tiny model.
    """
    largest = max(result.memory, key=lambda memory: memory.total)
    peak = max(memory.peak for memory in result.memory) - max(memory.peak for memory in base.memory)
    difference = max(
        abs(row["loss"] - other["loss"]) / other["loss"] for row, other in zip(result.curve, alone.curve, strict=True)
    )
    sizes = " | ".join(f"{size / 1e6:.1f}" for size in (largest.weights, largest.gradients, largest.optimizer))
    ratio = largest.total / alone.memory[0].total
    return f"| {label} | {sizes} | {ratio:.2f} | {peak / 1e6:.0f} | {difference:.1e} |"


def format_table(base: FitResult, with_teacher: bool, sizes: list[int]) -> list[str]:
    """Return the table without or with a live teacher."""
    lines = [
        "| processes | weights, MB | gradients, MB | optimizer, MB | stored, share | peak, MB | difference of loss |",
        "|---|---|---|---|---|---|---|",
    ]
    alone = run_fit(LARGE, with_teacher, processes=1)
    lines.append(format_row("1", alone, alone, base))
    print(lines[-1], flush=True)
    for name in ("processes", "shards"):
        for size in sizes:
            result = run_fit(LARGE, with_teacher, **{name: size})
            lines.append(format_row(f"{size}, `{name}`", result, alone, base))
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Run the benchmark, print its tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2])
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/sharding.md"))
    arguments = parser.parse_args()
    parameters = sum(value.numel() for value in RandomTexts().build(Part.of("transformer", **LARGE)).parameters())
    base = run_fit(TINY, False, shards=2)
    text = "\n".join(
        [
            "# Memory of a process when the processes divide the model",
            "",
            f"A transformer of {parameters / 1e6:.1f} million parameters (8 layers, width 512), AdamW, gloo on CPUs,",
            f"batches of {BATCH} texts of {LENGTH} tokens. Stored bytes: the largest process. Peak: resident memory",
            "beyond that of the fit of a tiny model. Difference of loss: relative to one process.",
            "",
            *format_table(base, False, arguments.sizes),
            "",
            "With a teacher of the same size that runs live:",
            "",
            *format_table(base, True, arguments.sizes[:1]),
            "",
        ]
    )
    print(text)
    write_atomic(arguments.out, text.encode())


if __name__ == "__main__":
    main()
