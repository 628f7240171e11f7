"""What a search gives on each task: `python -m benchmarks.tasks [--spaces digits mnist1d] [--plugin my_task.py]`.

Each search space that ships is searched as it is, its recommended candidate is exported and verified, and both the
teacher and the pick are timed side by side. One row a task: score and cost of both on the test split, the ratios, and
the wall-clock of the search. Rows are kept beside the table, so that spaces can be run one after the other. A space for
data of one's own needs to be told where that is, and its row what to be called:

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
from autocompress.analysis.pareto import axes
from autocompress.core.atomic import write_atomic
from autocompress.core.formatting import format_count, format_duration, format_factor
from autocompress.core.plugins import load_plugin
from autocompress.core.run_info import RunInfo
from autocompress.export.bench import bench, bench_graph
from autocompress.export.candidate import export_candidate, teacher_as_deployed
from benchmarks.keeping import keep, kept

DEFAULT = ("digits", "mnist1d", "langid", "langid_kind", "ratings", "ranking")


@dataclass(frozen=True)
class Row:
    """One task: its teacher, the recommended pick, and what the search took; ``space`` is what the row is called."""

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
        """Return the row of the table."""
        return [
            self.space,
            f"{self.score} {self.teacher_score:.4f}",
            f"{self.pick} {self.pick_score:.4f}",
            f"{format_count(self.teacher_flops)} → {format_count(self.pick_flops)} ({format_factor(self.teacher_flops / self.pick_flops)})",
            f"{format_count(self.teacher_bytes)} → {format_count(self.pick_bytes)} ({format_factor(self.teacher_bytes / self.pick_bytes)})",
            f"{self.teacher_ms:.3f} → {self.pick_ms:.3f} ({format_factor(self.teacher_ms / self.pick_ms)})",
            format_duration(self.seconds),
            f"{self.agreement:.2%}",
            self.tenth,
        ]


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


def command(space: str, name: str, overrides: list[str]) -> str:
    """Return what makes a row again, without the places where data is on this machine.

    Example:
        >>> command("images", "my flowers", ["task.images.path=/data/f"])
        "python -m benchmarks.tasks --spaces images --name 'my flowers' --set task.images.path=FOLDER"
    """
    told = [re.sub(r"^(task\.\w+\.(?:path|test))=.*", _place, override) for override in overrides]
    named = [] if name == space else ["--name", name]
    return shlex.join(
        ["python", "-m", "benchmarks.tasks", "--spaces", space, *named, *(["--set", *told] if told else [])]
    )


def _place(override: re.Match[str]) -> str:
    _, _, place = override[0].partition("=")
    return f"{override[1]}={'FILE' if Path(place).suffix else 'FOLDER'}"


def run(space: str, name: str, runs: Path, overrides: list[str]) -> Row:
    """Search a space, export its pick, and time both models.

    Args:
        space: A search space that ships, or a file.
        name: What the row is called.
        runs: The folder that holds runs.
        overrides: Changes of the spec, ``key=value``.
    """
    folder = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") if name != space else space
    front = autocompress.search(space, name=folder, runs=runs, overrides=overrides)
    _, score = axes(front.info.objectives)
    picked, teacher = front.pick(), front.info.teacher
    exported = export_candidate(front.folder, picked.id)
    assert exported.verification is not None
    return Row(
        space=name,
        score=score.name,
        teacher_score=teacher.scores["test"][score.name],
        pick=picked.id,
        pick_score=picked.row[f"{score.name}_test"],
        teacher_flops=teacher["costs"]["effective_flops"],
        pick_flops=picked.row["effective_flops"],
        teacher_bytes=teacher["costs"]["bytes"],
        pick_bytes=picked.row["bytes"],
        teacher_ms=_teacher_latency(front.folder),
        pick_ms=bench(exported.folder)[0].median_ms,
        seconds=front.info.seconds or 0.0,
        agreement=min(exported.verification.agreement.values()),
        tenth=best_at_a_tenth(front.to_pandas(), front.info),
        command=command(space, name, overrides),
    )


def best_at_a_tenth(rows: pd.DataFrame, info: RunInfo) -> str:
    """Return who of a front scores best with a tenth of the teacher's effective FLOPs and bytes, and its test score.

    Chosen on select_val, as every pick is.
    """
    _, score = axes(info.objectives)
    costs = info.teacher.costs
    able = rows[(rows["effective_flops"] <= costs["effective_flops"] / 10) & (rows["bytes"] <= costs["bytes"] / 10)]
    if not len(able):
        return "none"
    order = able.sort_values(score.name, ascending=not score.is_maximized, kind="stable")
    best = order.iloc[0]
    return f"{best['id']} {best[f'{score.name}_test']:.4f}"


def table(rows: Iterable[Row]) -> str:
    """Return the page: how each row was made, and the table."""
    rows = list(rows)
    return "\n".join(
        [
            "# What a search gives on each task",
            "",
            "Scores on the test split; latency of one example in onnxruntime on one thread, teacher and pick in turn.",
            "Last column: who of the front scores best on the selection split with at most a tenth of the teacher's",
            "effective FLOPs and of its bytes, and its score on the test split.",
            "A row is made by `python -m benchmarks.tasks --spaces TASK`, and where more was said by:",
            "",
            *(f"- {row.space}: `{row.command}`" for row in rows if "--set" in row.command or "--name" in row.command),
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
            *(f"| {' | '.join(row.cells())} |" for row in rows),
            "",
            "A model of one's own, with its weights, on all of CIFAR-10: ResNet-20, on a page of its own.",
            "",
        ]
    )


def _teacher_latency(run: Path) -> float:
    content, inputs = teacher_as_deployed(run)
    return bench_graph(content, inputs, batch=1, threads=1, seconds=1.0).median_ms


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=list(DEFAULT))
    parser.add_argument("--name", help="what the row of a single space is called; the space's name by default")
    parser.add_argument("--plugin", type=Path, help="a file that brings a model, for the space `module`")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="change every spec")
    parser.add_argument("--runs", type=Path, default=Path("reports"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/tasks.md"))
    asked = parser.parse_args()
    if asked.name is not None and (len(asked.spaces) != 1 or not asked.name.strip()):
        parser.error("--name is what one row is called: give it a name, and --spaces a single space")
    if asked.plugin is not None:
        load_plugin(asked.plugin)
    file = asked.out.with_suffix(".jsonl")
    for space in asked.spaces:
        row = run(space, asked.name or space, asked.runs, asked.set)
        keep(file, asdict(row))
    # The last row of a task counts.
    rows = {row["space"]: Row(**row) for row in kept(file)}
    text = table(rows.values())
    write_atomic(asked.out, text)
    print(text)


if __name__ == "__main__":
    main()
