"""Causes of the loss from soft targets at high temperatures on the digits.

Each case changes one condition: the weight of the teacher, logits from teachers that have not seen the example, the
learning rate or the number of epochs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import TrialPipeline, load_pipeline, reproducible_torch
from benchmarks.benchmark_tasks import DIGITS
from benchmarks.common import append_row, load_rows
from benchmarks.comparison import format_gain, format_header, format_mean, wrap_paragraph
from benchmarks.variants import mean_and_error

FOLDS = 3
ALPHA = 0.9


def soft_target(temperature: float, alpha: float = ALPHA) -> Part:
    """Return the term of soft targets."""
    return Part.of("soft_target", temperature=temperature, alpha=alpha)


@dataclass(frozen=True)
class Case:
    """A distillation of the digits under one condition.

    Attributes:
        name: Title of the row.
        term: Distillation term.
        condition: Name of the condition; a gain is relative to the case without distillation of the same condition.
        fit: Training settings that replace those of the benchmark task.
        is_held_out: Whether the logits come from teachers that were trained without the example.
    """

    name: str
    term: Part
    condition: str = "20 epochs, learning rate 0.01"
    fit: Mapping[str, Leaf] = field(default_factory=dict)
    is_held_out: bool = False

    @property
    def key(self) -> str:
        """Name and condition."""
        return f"{self.condition}: {self.name}"


def list_cases() -> list[Case]:
    """Return all cases, the baseline of each condition first."""
    cases = [
        Case("none", Part("none")),
        *(Case(f"T = {value:g}", soft_target(value)) for value in (1.0, 4.0, 10.0)),
        Case("T = 4, alpha 0.3", soft_target(4.0, 0.3)),
        Case("T = 4, held-out logits", soft_target(4.0), is_held_out=True),
        *(
            Case(f"logit_standardized, T = {value:g}", Part.of("logit_standardized", temperature=value))
            for value in (1.0, 4.0)
        ),
    ]
    conditions: Sequence[tuple[str, Mapping[str, Leaf]]] = (
        ("learning rate 0.03", {"learning_rate": 3e-2}),
        ("40 epochs", {"epochs": 40}),
    )
    for condition, settings in conditions:
        for name, term in (("none", Part("none")), ("T = 4", soft_target(4.0))):
            cases.append(Case(name, term, condition, settings))
    return cases


@dataclass(frozen=True)
class TeacherLogits:
    """A teacher with logits on each augmented view, as the training loop reads them.

    Attributes:
        model: The teacher.
        views: Logits by view, then by head ``[N, C]``.
    """

    model: nn.Module
    views: Sequence[Mapping[str, Tensor]]

    def view(self, index: int) -> Mapping[str, Tensor]:
        """Return the logits on one view, ``{head: [N, C]}``."""
        return self.views[index]


class Laboratory:
    """The digits with their teacher, and the logits of teachers that have not seen the example."""

    def __init__(self) -> None:
        self.pipeline: TrialPipeline = load_pipeline(DIGITS.build_setup())

    def build_teacher(self, is_held_out: bool) -> TeacherLogits:
        """Return the teacher with its own logits, or with those of teachers trained without the example."""
        teacher, task = self.pipeline.teacher, self.pipeline.task
        views = self._held_out_views if is_held_out else [teacher.view(index) for index in range(task.views)]
        return TeacherLogits(teacher.model, views)

    @cached_property
    def _held_out_views(self) -> list[dict[str, Tensor]]:
        """Train one teacher for each fold on all other folds, and predict each fold by its own."""
        task, train = self.pipeline.task, self.pipeline.splits.train
        student, optimizer = task.teacher()
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        views = [
            {head: torch.zeros(len(train), classes) for head, classes in task.heads.items()} for _ in range(task.views)
        ]
        for fold in range(FOLDS):
            rows = order[fold::FOLDS]
            is_other = torch.ones(len(train), dtype=torch.bool)
            is_other[rows] = False
            torch.manual_seed(0)
            model = task.build(student)
            fit(model, FitRequest(task, train.take(is_other), optimizer))
            for index, logits in enumerate(views):
                for head, values in predict(model, task, task.view(train, index).take(rows)).items():
                    logits[head][rows] = values
        return views

    def run_case(self, case: Case, seed: int) -> dict[str, float]:
        """Train a student and return its accuracy and the scale of its logits on the test and the training split."""
        pipeline, (head,) = self.pipeline, self.pipeline.task.heads
        optimizer = Part.of(DIGITS.fit.name, **{**DIGITS.fit.values, **case.fit})
        torch.manual_seed(seed)
        model = pipeline.task.build(DIGITS.student)
        request = FitRequest(
            pipeline.task,
            pipeline.splits.train,
            optimizer,
            terms=(case.term,),
            teacher=self.build_teacher(case.is_held_out),
            seed=seed,
        )
        loss = fit(model, request).curve[-1]["loss"]
        row = {"loss": loss}
        for name, split in (("test", pipeline.splits.test), ("train", pipeline.splits.train)):
            logits = pipeline.predict(model, split)[head]
            row[name] = 100 * float((logits.argmax(1) == split.targets[head]).float().mean())
            row[f"{name}_scale"] = float(logits.std(1).mean())
        return row

    def describe_teachers(self) -> str:
        """Return one sentence on the accuracy and the scale of the teachers' logits on training and test images."""
        (head,) = self.pipeline.task.heads
        train, test = self.pipeline.splits.train, self.pipeline.splits.test
        parts = []
        for name, logits, targets in (
            ("on training images", self.pipeline.teacher.view(0)[head], train.targets[head]),
            ("on held-out folds", self._held_out_views[0][head], train.targets[head]),
            ("on test images", self.pipeline.predict(self.pipeline.teacher.model, test)[head], test.targets[head]),
        ):
            accuracy = 100 * float((logits.argmax(1) == targets).float().mean())
            confidence = 100 * float(logits.softmax(1).amax(1).mean())
            parts.append(
                f"{name} {accuracy:.1f}% correct, mean confidence {confidence:.1f}%, standard deviation of the logits "
                f"{float(logits.std(1).mean()):.1f}"
            )
        return f"Teacher: {'; '.join(parts)}."


def format_table(rows: Mapping[tuple[str, int], Mapping[str, float]], seeds: int, teachers: str) -> list[str]:
    """Return the lines of the Markdown page."""
    columns = ("condition", "loss", "test", "gain over none", "training split", "scale of the student's logits")
    lines = [
        "# Soft targets at high temperatures, digits",
        "",
        wrap_paragraph(
            f"""Accuracy in percent, mean and standard error over {seeds} seeds; the gain over no distillation under the
            same condition is paired by seed, and a star marks one beyond two standard errors. Alpha
            {ALPHA:g} unless said. Held-out logits: {FOLDS} teachers, each trained without the fold that
            it predicts, on all augmented views."""
        ),
        "",
        wrap_paragraph(teachers),
        "",
        *format_header(columns),
    ]
    baselines = {case.condition: case for case in list_cases() if case.name == "none"}
    for case in list_cases():
        values, base = ([rows[entry.key, seed] for seed in range(seeds)] for entry in (case, baselines[case.condition]))
        test, train = ([row[name] for row in values] for name in ("test", "train"))
        gain = "–" if case.name == "none" else format_gain(test, [row["test"] for row in base])
        scale = mean_and_error([row["test_scale"] for row in values])[0]
        cells = (case.condition, case.name, format_mean(test), gain, format_mean(train), f"{scale:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def run_section(seeds: int, results_file: Path) -> str:
    """Run all cases and return the page; stored cases are not run again."""
    stored = load_rows(results_file)
    rows = {(row["case"], row["seed"]): row["values"] for row in stored if "case" in row}
    teachers = next((row["teachers"] for row in stored if "teachers" in row), "")
    with reproducible_torch():
        laboratory = Laboratory()
        for case in list_cases():
            for seed in range(seeds):
                if (case.key, seed) not in rows:
                    rows[case.key, seed] = laboratory.run_case(case, seed)
                    append_row(results_file, {"case": case.key, "seed": seed, "values": rows[case.key, seed]})
        if not teachers:
            teachers = laboratory.describe_teachers()
            append_row(results_file, {"teachers": teachers})
    return "\n".join([*format_table(rows, seeds, teachers), ""])
