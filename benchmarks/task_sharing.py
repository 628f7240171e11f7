"""Several tasks in one model against one model each, on text: language and kind of a name.

The single models are compared twice: as wide as the joint model, which takes about twice its operations together, and
narrower, which takes about as many operations together as the joint model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from autocompress.core.config import Part
from autocompress.core.knobs import Leaf
from autocompress.core.task import Split, Splits
from autocompress.measure.cost import count_flops, count_parameters, layer_costs
from autocompress.measure.quality import accuracy
from autocompress.tasks.text import LangIdKind
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.common import append_row, load_rows
from benchmarks.comparison import format_gain, format_header, format_mean, wrap_paragraph

STUDENT: Mapping[str, Leaf] = {
    "embedding": 12,
    "width": 24,
    "depth": 1,
    "kernel": 3,
    "block": "residual",
    "pooling": "max",
}
FIT: Mapping[str, Leaf] = {"epochs": 4, "learning_rate": 1e-2, "batch_size": 128}
NARROW: Mapping[str, Leaf] = {"embedding": 8, "width": 16}
HEADS = ("language", "kind")


class SelectedHeads(LangIdKind):
    """The names with some of their heads, on the splits of both heads.

    Args:
        heads: Names of the heads.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__(views=2)
        self.heads = {head: LangIdKind.heads[head] for head in heads}

    def splits(self, seed: int) -> Splits:
        """Return the splits of both heads, stratified by language, with the targets of these heads."""
        parts = LangIdKind(views=2).splits(seed).items()
        targets = {name: {head: part.targets[head] for head in self.heads} for name, part in parts}
        return Splits(**{name: Split(part.inputs, targets[name]) for name, part in parts})


@dataclass(frozen=True)
class Case:
    """One model of the comparison.

    Attributes:
        name: Name of the model.
        heads: Names of its heads.
        student: Architecture settings that replace those of the joint model.
        fit: Training settings that replace those of the joint model.
    """

    name: str
    heads: tuple[str, ...] = HEADS
    student: Mapping[str, Leaf] = field(default_factory=dict)
    fit: Mapping[str, Leaf] = field(default_factory=dict)


JOINT = (
    Case("joint, fixed weights"),
    Case("joint, uncertainty weights", fit={"head_weights": "uncertainty"}),
)
SINGLE = {
    "equal width": tuple(Case(f"{head} alone", (head,)) for head in HEADS),
    "equal operations": tuple(Case(f"{head} alone, narrow", (head,), NARROW) for head in HEADS),
}
CASES = (*JOINT, *(case for cases in SINGLE.values() for case in cases))


@lru_cache(maxsize=4)
def load_data(heads: tuple[str, ...]) -> tuple[SelectedHeads, Splits]:
    """Return the task with these heads and its splits."""
    task = SelectedHeads(heads)
    return task, task.splits(0)


def run_case(case: Case, seed: int) -> dict[str, float]:
    """Train one model and return the accuracy of each head on the test split, FLOPs, parameters and training FLOPs."""
    task, splits = load_data(case.heads)
    optimizer = Part.of("adamw", **{**FIT, **case.fit})
    torch.manual_seed(seed)
    model = task.build(Part.of("text_cnn", **{**STUDENT, **case.student}))
    fit(model, FitRequest(task, splits.train, optimizer, seed=seed))
    logits = predict(model, task, splits.test)
    layers = layer_costs(model, task.example())
    flops, epochs = float(count_flops(layers)), float(str(optimizer.values["epochs"]))
    return {
        **{head: 100 * accuracy(logits[head], splits.test.targets[head]) for head in case.heads},
        "flops": flops,
        "parameters": float(count_parameters(layers)),
        # Forward and backward pass take about three times the forward pass.
        "training_flops": 3 * flops * epochs * len(splits.train),
    }


Rows = Mapping[tuple[str, int], Mapping[str, float]]


def format_table(rows: Rows, seeds: int) -> list[str]:
    """Return the lines of the Markdown page."""
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
    lines = [
        "# Two tasks in one model against one model each",
        "",
        wrap_paragraph(
            f"""Language and kind of a name (Babel's locale data); test accuracy in percent, mean and standard error
            over {seeds} seeds; the gain is paired by seed, and a star marks one beyond two standard errors.
            The last three columns are the ratios of the joint model to both single models together. All
            models have {FIT["epochs"]} epochs."""
        ),
        "",
        *format_header(columns),
    ]
    for joint in JOINT:
        for title, cases in SINGLE.items():
            for case in cases:
                (head,) = case.heads
                ours, single = ([rows[entry.name, seed][head] for seed in range(seeds)] for entry in (joint, case))
                cells = [joint.name, title, head, format_mean(ours), format_mean(single), format_gain(ours, single)]
                for cost in ("flops", "parameters", "training_flops"):
                    total = sum(rows[entry.name, 0][cost] for entry in cases)
                    cells.append(f"{rows[joint.name, 0][cost] / total:.2f}")
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def run_section(seeds: int, results_file: Path) -> str:
    """Run the benchmark and return its page; stored results are not computed again."""
    rows = {(row["case"], row["seed"]): row["values"] for row in load_rows(results_file)}
    with reproducible_torch():
        for case in CASES:
            for seed in range(seeds):
                if (case.name, seed) not in rows:
                    rows[case.name, seed] = run_case(case, seed)
                    append_row(results_file, {"case": case.name, "seed": seed, "values": rows[case.name, seed]})
    return "\n".join([*format_table(rows, seeds), ""])
