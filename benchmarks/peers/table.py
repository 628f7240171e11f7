"""The page of the peers: what each tool made, and the differences at matched costs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import describe_benchmark
from benchmarks.peers import problem, tools
from benchmarks.variants import mean_and_error

OURS = "autocompress"
COSTS = {"bytes": "bytes", "effective_flops": "effective FLOPs", "latency": "latency"}
#: Functions that a user of each tool writes, beside the training that all of them share.
WRITTEN: dict[str, tuple[Callable[..., Any] | type, ...]] = {
    OURS: (tools.run_autocompress,),
    "Optuna script": (tools.run_optuna_script, tools.SmallNetwork, tools._quantize_static, problem.fine_tune),
    "Torch-Pruning": (tools.run_torch_pruning, tools._prune_and_tune, problem.fine_tune),
    "Torch-Pruning, onnxruntime int8": (
        *(tools.run_torch_pruning_onnxruntime, tools._prune_and_tune, tools._quantize_static),
        problem.fine_tune,
    ),
    "onnxruntime int8": (tools.run_onnxruntime, tools._quantize_static),
    "NNCF": (tools.run_nncf,),
    "Neural Compressor": (tools.run_neural_compressor, tools._fold_constants),
    "Olive": (tools.run_olive, tools.Examples),
    "FastNAS": (tools.run_fastnas, problem.fine_tune),
    "torchao": (tools.run_torchao,),
}


def count_lines(parts: Sequence[Callable[..., Any] | type]) -> int:
    """Return the number of lines of code, without blank lines and docstrings."""
    total = 0
    for part in parts:
        text = inspect.getsource(part)
        lines = [line for line in text.splitlines() if line.strip()]
        total += len(lines) - len([line for line in (inspect.getdoc(part) or "").splitlines() if line.strip()])
    return total


def compare_at_cost(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], cost: str) -> list[float]:
    """Return the difference of test accuracy for each file of the other tool than which a file of ours costs no more.

    Args:
        ours: Files of autocompress of one seed.
        theirs: Files of the other tool of the same seed.
        cost: Name of the cost that is matched.
    """
    differences = []
    for model in theirs:
        eligible = [own for own in ours if own[cost] <= model[cost]]
        if eligible:
            # Chosen on the validation splits, and compared on the test split.
            best = max(eligible, key=lambda own: own["val"])
            differences.append(best["test"] - model["test"])
    return differences


def format_page(rows: Sequence[Mapping[str, Any]], document: str | None) -> str:
    """Return the page in Markdown.

    Args:
        rows: Stored rows, one for each space, seed and tool.
        document: Docstring of the benchmark.
    """
    lines = ["# Other tools", "", describe_benchmark(document), ""]
    for space in dict.fromkeys(row["space"] for row in rows):
        own = [row for row in rows if row["space"] == space]
        seeds = len({row["seed"] for row in own})
        lines += [
            f"## {space}, {seeds} seed{'s' * (seeds > 1)}, {own[0]['budget']:.0f} s for each tool",
            "",
            "| tool | files | seconds | lines | best test accuracy | ours more accurate by, points, at equal "
            + " | at equal ".join(COSTS.values())
            + " | remark |",
            "|" + "---|" * (6 + len(COSTS)),
        ]
        by_tool = {tool: [row for row in own if row["tool"] == tool] for tool in dict.fromkeys(r["tool"] for r in own)}
        lines += [_format_tool(tool, group, by_tool.get(OURS, [])) for tool, group in by_tool.items()]
        lines.append("")
    lines.append(
        "`*` marks a difference beyond two standard errors over the seeds. *Not*: files that cost less than each "
        "file of autocompress, over all seeds."
    )
    return "\n".join(lines) + "\n"


def _format_tool(tool: str, rows: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> str:
    files = [len(row["models"]) for row in rows]
    best = [max(row["models"], key=lambda m: m["val"])["test"] for row in rows if row["models"]]
    cells = [
        tool,
        f"{min(files)} to {max(files)}" if min(files) != max(files) else str(files[0]),
        f"{sum(row['seconds'] for row in rows) / len(rows):.0f}",
        str(count_lines(WRITTEN[tool])),
        _format_mean(best, 100, "{:.1f}"),
    ]
    own = {row["seed"]: row["models"] for row in ours}
    for cost in COSTS:
        values = [compare_at_cost(own.get(row["seed"], []), row["models"], cost) for row in rows]
        means = [sum(differences) / len(differences) for differences in values if differences]
        cells.append("" if tool == OURS else _format_mean(means, 100, "{:+.1f}"))
        if unmatched := sum(files) - sum(map(len, values)):
            cells[-1] += f", {unmatched} of {sum(files)} not" if tool != OURS else ""
    errors = dict.fromkeys(row["error"] for row in rows if row["error"])
    return f"| {' | '.join([*cells, '; '.join(errors).replace('|', '/')])} |"


def _format_mean(values: Sequence[float], factor: float, form: str) -> str:
    if not values:
        return "-"
    mean, error = mean_and_error([factor * value for value in values])
    mark = " *" if form.startswith("{:+") and len(values) > 1 and abs(mean) > 2 * error else ""
    # One seed has no spread.
    return f"{form.format(mean)} ± {error:.1f}{mark}" if len(values) > 1 else form.format(mean)
