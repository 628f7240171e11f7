"""Size and speed of sparse weights: `python -m benchmarks.sparsity`.

The tables show the bytes of a sparse weight in each format, and the speed of torch's CSR linear layer relative to the
dense layer, on one thread. CSR is faster below the highest measured density from which on it is always faster.
"""

import argparse
from pathlib import Path

import torch

from autocompress.core.atomic import write_atomic
from autocompress.measure.tensor_storage import pack_tensors
from autocompress.prune.sparse_linear import csr_speed_threshold, measure_linear_speed
from autocompress.trial.pipeline import reproducible_torch

SHAPES = ((64, 64), (256, 256), (1024, 1024), (4096, 1024))
BATCHES = (1, 32)
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


def format_storage_table() -> list[str]:
    """Return the table of bytes for a layer of 256 x 256."""
    lines = ["| density | dense | stored | form |", "|---|---|---|---|"]
    for density in (1.0, 0.9, *DENSITIES):
        generator = torch.Generator().manual_seed(0)
        is_kept = torch.rand(256, 256, generator=generator) < density
        weight = torch.randn(256, 256, generator=generator) * is_kept
        stored, packed, _ = pack_tensors({"weight": weight})
        form = packed["weight"].form if packed else "dense"
        size = sum(part.nbytes for part in stored.values())
        lines.append(f"| {float(is_kept.float().mean()):.2f} | {weight.nbytes:,} | {size:,} | {form} |")
    return lines


def format_speed_table(repeats: int) -> list[str]:
    """Return the table of speeds relative to the dense layer."""
    densities = " | ".join(f"{density:g}" for density in DENSITIES)
    lines = [f"| layer | batch | {densities} | faster below |", "|---|---|" + "---|" * (len(DENSITIES) + 1)]
    for outputs, inputs in SHAPES:
        for batch in BATCHES:
            rows = measure_linear_speed(outputs, inputs, batch, DENSITIES, repeats)
            ratios = " | ".join(f"{row.dense_ms / row.csr_ms:.2f}" for row in rows)
            lines.append(f"| {outputs} x {inputs} | {batch} | {ratios} | {csr_speed_threshold(rows) or 'never'} |")
    return lines


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/sparsity.md"))
    arguments = parser.parse_args()
    with reproducible_torch():
        text = "\n".join(
            [
                "# Sparse weights: bytes, and speed relative to the dense layer",
                "",
                "Bytes of a linear layer 256 x 256 in single precision:",
                "",
                *format_storage_table(),
                "",
                f"Speed of torch's CSR linear layer by density; median of {arguments.repeats} calls, one thread, "
                f"{torch.backends.cpu.get_cpu_capability()}:",
                "",
                *format_speed_table(arguments.repeats),
                "",
            ]
        )
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
