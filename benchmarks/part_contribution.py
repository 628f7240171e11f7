"""What one part of the space adds to the fronts of finished searches: `python -m benchmarks.part_contribution RUN ...`.

A part is a column of candidates.csv, `prune` by default. For each run: how many candidates use the part, how many of
the front's, and the hypervolume of the candidates without it relative to that of all. The search would have spent the
time of the candidates left out on others, so the gain is an upper bound.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import autocompress
from autocompress.analysis.pareto import compute_hypervolume, full_fidelity, pareto_front
from autocompress.core.atomic import write_atomic
from benchmarks.comparison import format_header, wrap_paragraph
from benchmarks.variants import mean_and_error

COLUMNS = ("run", "candidates", "with it", "on the front", "with it", "hypervolume without it / of all", "recommended")


def measure_run(folder: Path, part: str) -> tuple[list[str], float]:
    """Return the cells of one run, and the ratio of the hypervolumes."""
    front = autocompress.load(folder)
    table = full_fidelity(front.candidates)
    table = table[table["role"] == "search"]
    objectives = front.info.objectives
    is_used = table[part] != "none"
    best = pareto_front(table, objectives)
    ratio = compute_hypervolume(table[~is_used], objectives) / compute_hypervolume(table, objectives)
    pick = table.set_index("id").loc[front.pick().id, part]
    used_on_front = int((best[part] != "none").sum())
    counts = [len(table), int(is_used.sum()), len(best), used_on_front]
    return [folder.name, *map(str, counts), f"{ratio:.3f}", str(pick)], ratio


def format_page(folders: Sequence[Path], part: str) -> str:
    """Return the Markdown page."""
    rows = [measure_run(folder, part) for folder in folders]
    mean, error = mean_and_error([ratio for _, ratio in rows])
    about = " ".join((__doc__ or "").split("\n\n")[1].split())
    lines = [f"# What `{part}` adds to the front", "", wrap_paragraph(about), "", *format_header(COLUMNS)]
    lines += [f"| {' | '.join(cells)} |" for cells, _ in rows]
    return "\n".join([*lines, "", f"Mean of the ratio: {mean:.3f} ± {error:.3f}.", ""])


def main() -> None:
    """Print the page, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--part", default="prune", help="column of candidates.csv")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/part_contribution.md"))
    arguments = parser.parse_args()
    text = format_page(arguments.runs, arguments.part)
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
