"""Several tasks in one model against one model each: names, and interactions with a recommender.

The single models are compared twice: as wide as the joint model, which takes about as many times its operations
together as there are tasks, and narrower, with about as many operations together as the joint model (names), or as many
parameters (recommendation, whose embedding tables are the model).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.core.task import Split, Splits, Task
from autocompress.measure import Subject, measure
from autocompress.measure.cost import count_flops, count_parameters, layer_costs
from autocompress.tasks.recommendation import Recommendation
from autocompress.tasks.text import LangIdKind
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.common import append_row, load_rows
from benchmarks.comparison import format_gain, format_header, format_mean, wrap_paragraph

COSTS = ("flops", "parameters", "training_flops")


def _select_targets(parts: Splits, heads: Mapping[str, int], inputs: int) -> Splits:
    """Return splits with the targets of some heads and the first of their inputs."""
    return Splits(
        **{
            name: Split(part.inputs[:inputs], {head: part.targets[head] for head in heads})
            for name, part in parts.items()
        }
    )


class SelectedNames(LangIdKind):
    """The names with some of their heads, on the splits of both heads.

    Args:
        heads: Names of the heads.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(views=2)
        self.heads = {head: LangIdKind.heads[head] for head in heads}

    def splits(self, seed: int) -> Splits:
        """Return the splits of both heads, stratified by language, with the targets of these heads."""
        return _select_targets(LangIdKind(views=2).splits(seed), self.heads, 1)


class SelectedInteractions(Recommendation):
    """The recommender data with some of its heads, on the same rows; without a ranking there are no candidates.

    Args:
        heads: Names of the heads.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        is_ranking = "item" in heads
        # Views differ by their candidates.
        super().__init__(views=6 if is_ranking else 1)
        self.heads = {head: self.heads[head] for head in heads}
        if not is_ranking:
            self.inputs = self.inputs[:2]

    def splits(self, seed: int) -> Splits:
        """Return the splits of all heads with the targets of these."""
        return _select_targets(super().splits(seed), self.heads, len(self.inputs))


@dataclass(frozen=True)
class Case:
    """One model of the comparison.

    Attributes:
        name: Name of the model.
        heads: Names of its heads; all of the study if empty.
        student: Architecture settings that replace those of the joint model.
        fit: Training settings that replace those of the joint model.
    """

    name: str
    heads: tuple[str, ...] = ()
    student: Mapping[str, Leaf] = field(default_factory=dict)
    fit: Mapping[str, Leaf] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Several tasks on the same data.

    Attributes:
        name: Name of the data.
        about: Sentence on the data for the page.
        load: Function of the names of the heads that returns the task.
        metrics: Head to the score that is compared, larger is better; the first that the task can measure.
        student: Architecture of the joint model.
        fit: Training of all models.
        narrow: Architecture settings of the narrow single models.
        equal: What the narrow single models have in common with the joint model, as a title.
        joint: The joint models.
    """

    name: str
    about: str
    load: Callable[[Sequence[str]], Task]
    metrics: Mapping[str, str]
    student: Part
    fit: Part
    narrow: Mapping[str, Leaf]
    equal: str
    joint: tuple[Case, ...]

    @property
    def single(self) -> Mapping[str, tuple[Case, ...]]:
        """The single models by what they have in common with the joint model."""
        return {
            "equal width": tuple(Case(f"{head} alone", (head,)) for head in self.metrics),
            self.equal: tuple(Case(f"{head} alone, narrow", (head,), self.narrow) for head in self.metrics),
        }

    @property
    def cases(self) -> tuple[Case, ...]:
        """All models."""
        return (*self.joint, *(case for cases in self.single.values() for case in cases))


NAMES = Study(
    "names",
    "Language and kind of a name (Babel's locale data), accuracy.",
    SelectedNames,
    {"language": "accuracy", "kind": "accuracy"},
    Part.of("text_cnn", embedding=12, width=24, depth=1, kernel=3, block="residual", pooling="max"),
    Part.of("adamw", epochs=4, learning_rate=1e-2, batch_size=128),
    {"embedding": 8, "width": 16},
    "equal operations",
    (
        Case("joint, fixed weights"),
        Case("joint, uncertainty weights", fit={"head_weights": "uncertainty"}),
    ),
)
INTERACTIONS = Study(
    "recommendation",
    "Generated interactions of 600 users with 1,000 items: interest (NDCG@10 among 20 candidates), click (AUC), rating "
    "(R2).",
    SelectedInteractions,
    {"item": "ndcg_at_10", "click": "auc", "rating": "r2"},
    Part.of("two_tower", embedding=24, depth=0, tower=24),
    Part.of("adamw", epochs=8, learning_rate=1e-2, weight_decay=0.08, batch_size=256),
    {"embedding": 8, "tower": 8},
    "equal parameters",
    (
        Case("shared bottom, fixed weights"),
        Case("shared bottom, uncertainty weights", fit={"head_weights": "uncertainty"}),
        Case("shared middle, fixed weights", student={"sharing": "shared_middle"}),
        Case("mixture, fixed weights", student={"sharing": "mixture"}),
    ),
)
STUDIES = (NAMES, INTERACTIONS)


@lru_cache(maxsize=8)
def load_data(name: str, heads: tuple[str, ...]) -> tuple[Task, Splits]:
    """Return the task of a study with these heads, and its splits."""
    (study,) = (study for study in STUDIES if study.name == name)
    task = study.load(heads)
    return task, task.splits(0)


def run_case(study: Study, case: Case, seed: int) -> dict[str, float]:
    """Train one model and return the score of each head on the test split, FLOPs, parameters and training FLOPs."""
    task, splits = load_data(study.name, case.heads or tuple(study.metrics))
    optimizer = Part.of(study.fit.name, **{**study.fit.values, **case.fit})
    torch.manual_seed(seed)
    model = task.build(Part.of(study.student.name, **{**study.student.values, **case.student}))
    fit(model, FitRequest(task, splits.train, optimizer, seed=seed))
    logits = predict(model, task, splits.test)
    scores = {}
    for head in task.heads:
        # One head at a time: some metrics are means over all heads that they apply to.
        subject = Subject({head: logits[head]}, {head: splits.test.targets[head]}, heads={head: task.heads[head]})
        scores[head] = 100 * measure(subject, [study.metrics[head]])[study.metrics[head]]
    layers = layer_costs(model, task.example())
    flops, epochs = float(count_flops(layers)), float(str(optimizer.values["epochs"]))
    return {
        **scores,
        "flops": flops,
        "parameters": float(count_parameters(layers)),
        # Forward and backward pass take about three times the forward pass.
        "training_flops": 3 * flops * epochs * len(splits.train),
    }


Rows = Mapping[tuple[str, str, int], Mapping[str, float]]


def format_table(study: Study, rows: Rows, seeds: int) -> list[str]:
    """Return the lines of the section of one study."""
    columns = (
        "joint model",
        "single models",
        "head",
        "joint",
        "single",
        "gain",
        "FLOPs",
        "parameters",
        "training FLOPs",
    )
    lines = [f"## {study.name}", "", wrap_paragraph(f"{study.about} {study.fit.values['epochs']} epochs."), ""]
    lines += format_header(columns)
    for joint in study.joint:
        for title, cases in study.single.items():
            for case in cases:
                (head,) = case.heads
                ours, single = (
                    [rows[study.name, entry.name, seed][head] for seed in range(seeds)] for entry in (joint, case)
                )
                cells = [joint.name, title, head, format_mean(ours), format_mean(single), format_gain(ours, single)]
                for cost in COSTS:
                    total = sum(rows[study.name, entry.name, 0][cost] for entry in cases)
                    cells.append(f"{rows[study.name, joint.name, 0][cost] / total:.2f}")
                lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def format_page(rows: Rows, seeds: int) -> str:
    """Return the Markdown page."""
    lines = [
        "# Several tasks in one model against one model each",
        "",
        wrap_paragraph(
            f"""Scores on the test split in hundredths, mean and standard error over {seeds} seeds; the gain is paired
            by seed, and a star marks one beyond two standard errors. The last three columns are the ratios of
            the joint model to all single models together."""
        ),
        "",
    ]
    return "\n".join(lines + [line for study in STUDIES for line in format_table(study, rows, seeds)])


def run_section(seeds: int, results_file: Path) -> str:
    """Run the benchmark and return its page; stored results are not computed again."""
    rows = {(row["study"], row["case"], row["seed"]): row["values"] for row in load_rows(results_file)}
    with reproducible_torch():
        for study in STUDIES:
            for case in study.cases:
                for seed in range(seeds):
                    key = (study.name, case.name, seed)
                    if key not in rows:
                        rows[key] = run_case(study, case, seed)
                        row = {"study": study.name, "case": case.name, "seed": seed, "values": rows[key]}
                        append_row(results_file, row)
    return format_page(rows, seeds)
