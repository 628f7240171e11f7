"""What a search gives on each task: `python -m benchmarks.tasks [--spaces digits mnist1d] [--plugin my_task.py]`.

Each search space that ships is searched as it is, its recommended candidate is exported and verified, and both the
teacher and the pick are timed side by side. One row a task: score and cost of both on the test split, the ratios, and
the wall-clock of the search. Rows are kept beside the table, so that spaces can be run one after the other.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import autocompress
from autocompress.config import CompressionConfig, Part
from autocompress.export.artifact import Deployable, write_artifact
from autocompress.export.bench import bench
from autocompress.export.candidate import export_candidate
from autocompress.front import axes
from autocompress.lab import Setup, lab, settled
from autocompress.plugins import load_plugin
from autocompress.storage import write_atomic
from autocompress.words import duration, human, times

DEFAULT = ("digits", "mnist1d", "langid", "langid_kind", "ratings", "ranking")


@dataclass(frozen=True)
class Row:
    """One task: its teacher, the recommended pick, and what the search took."""

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

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [
            self.space,
            f"{self.score} {self.teacher_score:.4f}",
            f"{self.pick} {self.pick_score:.4f}",
            f"{human(self.teacher_flops)} → {human(self.pick_flops)} ({times(self.teacher_flops / self.pick_flops)})",
            f"{human(self.teacher_bytes)} → {human(self.pick_bytes)} ({times(self.teacher_bytes / self.pick_bytes)})",
            f"{self.teacher_ms:.3f} → {self.pick_ms:.3f} ({times(self.teacher_ms / self.pick_ms)})",
            duration(self.seconds),
            f"{self.agreement:.2%}",
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
)


def run(space: str, runs: Path, overrides: list[str]) -> Row:
    """Search a space, export its pick, and time both models."""
    front = autocompress.search(space, name=space, runs=runs, overrides=overrides)
    _, score = axes(front.meta["objectives"])
    picked, teacher = front.pick(), front.meta["teacher"]
    exported = export_candidate(front.folder, picked.id)
    assert exported.verification is not None
    return Row(
        space=space,
        score=score["name"],
        teacher_score=teacher["scores"]["test"][score["name"]],
        pick=picked.id,
        pick_score=picked.row[f"{score['name']}_test"],
        teacher_flops=teacher["costs"]["effective_flops"],
        pick_flops=picked.row["effective_flops"],
        teacher_bytes=teacher["costs"]["bytes"],
        pick_bytes=picked.row["bytes"],
        teacher_ms=_teacher_latency(Setup.from_json(front.meta["setup"])),
        pick_ms=bench(exported.folder)[0].median_ms,
        seconds=front.meta["seconds"],
        agreement=min(exported.verification.agreement.values()),
    )


def _teacher_latency(setup: Setup) -> float:
    with settled(), TemporaryDirectory() as folder:
        place = lab(setup)
        model = place.teacher.model
        config = CompressionConfig(setup.teacher.student, (Part("none"),), setup.teacher.fit)
        deployable = Deployable(
            config,
            place.task.name,
            setup.task.values,
            place.task.labels,
            dict(place.task.heads),
            place.task.inputs,
            place.task.example(),
            model,
            model,
            None,
            None,
        )
        return bench(write_artifact(Path(folder) / "teacher", deployable, {}))[0].median_ms


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=list(DEFAULT))
    parser.add_argument("--plugin", type=Path, help="a file that brings a model, for the space `module`")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change keys of every spec")
    parser.add_argument("--runs", type=Path, default=Path("reports"))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/tasks.md"))
    asked = parser.parse_args()
    if asked.plugin is not None:
        load_plugin(asked.plugin)
    kept = asked.out.with_suffix(".jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    for space in asked.spaces:
        row = run(space, asked.runs, asked.set)
        with kept.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
    # The last row of a task counts.
    rows = {row["space"]: Row(**row) for row in map(json.loads, kept.read_text().splitlines())}
    lines = [
        "# What a search gives on each task",
        "",
        "Scores on the test split; latency of one example in onnxruntime on one thread, teacher and pick in turn.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(row.cells())} |" for row in rows.values()),
        "",
    ]
    text = "\n".join(lines)
    write_atomic(asked.out, text)
    print(text)


if __name__ == "__main__":
    main()
