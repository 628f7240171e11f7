"""Results of a search on each task: `python -m benchmarks.tasks [--spaces digits mnist1d] [--plugin my_task.py]`.

Each shipped search space is searched unchanged, its recommended candidate is exported and verified, and the latency of
teacher and candidate is measured in turn. The table has one row per task: score and costs of both on the test split,
their ratios, and the wall-clock time of the search. Rows are stored next to the table, so that spaces can run one after
the other. A space for your own data needs the path of the data, and a name for its row:

    python -m benchmarks.tasks --spaces images --name "my flowers" --set task.images.path=data/flowers
"""

import argparse
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

import autocompress
from autocompress.analysis.pareto import primary_objectives
from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import format_count, format_duration, format_factor
from autocompress.core.registry import load_plugin
from autocompress.core.run_info import RunInfo
from autocompress.export.bench import bench, bench_graph
from autocompress.export.candidate import export_candidate, export_teacher_graphs
from benchmarks.common import append_row, load_rows

DEFAULT = ("digits", "mnist1d", "langid", "langid_kind", "ratings", "ranking")


@dataclass(frozen=True)
class Row:
    """Results on one task: teacher, recommended candidate and duration of the search; ``space`` is the row's name."""

    space: str
    score: str
    teacher_score: float
    pick: str
    pick_score: float
    teacher_flops: float
    pick_flops: float
    teacher_bytes: float
    pick_bytes: float
    teacher_ms: float
    pick_ms: float
    seconds: float
    agreement: float
    command: str = ""
    tenth: str = "–"

    def cells(self) -> list[str]:
        """Return the cells of the row."""
        return [
            self.space,
            f"{self.score} {self.teacher_score:.4f}",
            f"{self.pick} {self.pick_score:.4f}",
            _format_change(self.teacher_flops, self.pick_flops),
            _format_change(self.teacher_bytes, self.pick_bytes),
            f"{self.teacher_ms:.3f} → {self.pick_ms:.3f} ({format_factor(self.teacher_ms / self.pick_ms)})",
            format_duration(self.seconds),
            f"{self.agreement:.2%}",
            self.tenth,
        ]


def _format_change(before: float, after: float) -> str:
    return f"{format_count(before)} → {format_count(after)} ({format_factor(before / after)})"


COLUMNS = (
    "task",
    "teacher, test",
    "pick, test",
    "effective FLOPs",
    "bytes",
    "latency, ms",
    "search",
    "export agrees",
    "best at a tenth of both",
)


def build_command(space: str, name: str, overrides: list[str]) -> str:
    """Return the command that reproduces a row, without the paths of data on this machine.

    Example:
        >>> command("images", "my flowers", ["task.images.path=/data/f"])
        "python -m benchmarks.tasks --spaces images --name 'my flowers' --set task.images.path=FOLDER"
    """
    shown = [re.sub(r"^(task\.\w+\.(?:path|test))=.*", _hide_path, override) for override in overrides]
    name_options = [] if name == space else ["--name", name]
    return shlex.join(
        ["python", "-m", "benchmarks.tasks", "--spaces", space, *name_options, *(["--set", *shown] if shown else [])]
    )


def _hide_path(override: re.Match[str]) -> str:
    _, _, path = override[0].partition("=")
    return f"{override[1]}={'FILE' if Path(path).suffix else 'FOLDER'}"


def run(space: str, name: str, runs: Path, overrides: list[str]) -> Row:
    """Search a space, export the recommended candidate and measure the latency of both models.

    Args:
        space: Name of a shipped search space, or a file.
        name: Name of the row.
        runs: Folder of the runs.
        overrides: Changes of the spec, ``key=value``.
    """
    folder = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") if name != space else space
    front = autocompress.search(space, name=folder, runs=runs, overrides=overrides)
    _, score = primary_objectives(front.info.objectives)
    selected, teacher = front.pick(), front.info.teacher
    exported = export_candidate(front.folder, selected.id)
    assert exported.verification is not None
    return Row(
        space=name,
        score=score.name,
        teacher_score=teacher.scores["test"][score.name],
        pick=selected.id,
        pick_score=selected.row[f"{score.name}_test"],
        teacher_flops=teacher.costs["effective_flops"],
        pick_flops=selected.row["effective_flops"],
        teacher_bytes=teacher.costs["bytes"],
        pick_bytes=selected.row["bytes"],
        teacher_ms=_teacher_latency(front.folder),
        pick_ms=bench(exported.folder)[0].median_ms,
        seconds=front.info.seconds or 0.0,
        agreement=min(exported.verification.agreement.values()),
        tenth=best_at_a_tenth(front.to_pandas(), front.info),
        command=build_command(space, name, overrides),
    )


def best_at_a_tenth(rows: pd.DataFrame, info: RunInfo) -> str:
    """Return the best candidate with at most a tenth of the teacher's effective FLOPs and bytes, and its test score.

    It is selected on the selection split (select_val).
    """
    _, score = primary_objectives(info.objectives)
    costs = info.teacher.costs
    eligible = rows[(rows["effective_flops"] <= costs["effective_flops"] / 10) & (rows["bytes"] <= costs["bytes"] / 10)]
    if not len(eligible):
        return "none"
    order = eligible.sort_values(score.name, ascending=not score.is_maximized, kind="stable")
    best = order.iloc[0]
    return f"{best['id']} {best[f'{score.name}_test']:.4f}"


def format_table(rows: Iterable[Row]) -> str:
    """Return the page: the commands of the rows and the table."""
    rows = list(rows)
    return "\n".join(
        [
            "# Search results by task",
            "",
            "Scores on the test split; latency of one example in onnxruntime on one thread, measured in turn.",
            "Last column: the front candidate with the best score on the selection split and at most a tenth of",
            "the teacher's effective FLOPs and bytes, and its score on the test split.",
            "A row is made by `python -m benchmarks.tasks --spaces TASK`; rows with more options are made by:",
            "",
            *(f"- {row.space}: `{row.command}`" for row in rows if "--set" in row.command or "--name" in row.command),
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
            *(f"| {' | '.join(row.cells())} |" for row in rows),
            "",
            "The page resnet20.md shows a user's own model with its weights on all of CIFAR-10: ResNet-20.",
            "",
        ]
    )


def _teacher_latency(run: Path) -> float:
    graphs = export_teacher_graphs(run)
    return bench_graph(graphs.content, graphs.inputs, batch=1, threads=1, seconds=1.0).median_ms


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=list(DEFAULT))
    parser.add_argument("--name", help="name of the row of a single space; the space's name by default")
    parser.add_argument("--plugin", type=Path, help="file that registers a model, for the space `module`")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="change every spec")
    parser.add_argument("--runs", type=Path, default=Path("reports"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/tasks.md"))
    arguments = parser.parse_args()
    if arguments.name is not None and (len(arguments.spaces) != 1 or not arguments.name.strip()):
        parser.error("--name is the name of one row: it must not be empty, and --spaces must name a single space")
    if arguments.plugin is not None:
        load_plugin(arguments.plugin)
    file = arguments.out.with_suffix(".jsonl")
    for space in arguments.spaces:
        row = run(space, arguments.name or space, arguments.runs, arguments.set)
        append_row(file, asdict(row))
    # A later row of a task replaces an earlier one.
    rows = {row["space"]: Row(**row) for row in load_rows(file)}
    text = format_table(rows.values())
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
