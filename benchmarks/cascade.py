"""Confidence cascades against single models of equal expected cost: `python -m benchmarks.cascade [--seeds 5]`.

For each seed, models of one family are trained on the same data, whose costs grow by steps of about 1.6. Pair and
threshold of the cascade are chosen on select_val as in `autocompress cascade`: the largest gain over the best single
model whose cost is at most the expected cost of the cascade, among cascades within two points of the best model. Both
are then scored on test. "next model" is the cheapest single model that costs more than the cascade: it stands for the
models between the widths that were trained. Errors are standard errors of paired differences over the seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.analysis.cascade import (
    ScoredModel,
    SingleModel,
    combine_outputs,
    compute_confidence,
    list_cascades,
    select_cascade,
)
from autocompress.core.atomic import write_atomic
from autocompress.core.config import Part
from autocompress.core.heads import as_head
from autocompress.core.registry import TASKS
from autocompress.core.task import Split, Task
from autocompress.measure.cost import count_effective_flops, layer_costs
from autocompress.quantize import fold_batch_norm
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.adapt import format_mean
from benchmarks.common import append_row, describe_benchmark, load_rows
from benchmarks.variants import mean_and_error

OUT = Path("reports/benchmarks/cascade.md")
#: Largest loss of a cascade that counts against the best single model, on select_val.
LARGEST_LOSS = 0.02
Outputs = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Case:
    """A task with models of several widths.

    Attributes:
        students: The models, the cheapest first.
        fit: Their training.
    """

    students: tuple[Part, ...]
    fit: Part


CASES: Mapping[str, Case] = {
    "mnist1d": Case(
        tuple(Part.of("cnn1d", width=width, depth=1, stages=3) for width in (3, 4, 5, 6, 8, 10, 13, 16, 20)),
        Part.of("adamw", epochs=15, learning_rate=2e-2, batch_size=256),
    ),
    "langid": Case(
        tuple(
            Part.of("text_cnn", embedding=width, width=2 * width, depth=1) for width in (2, 3, 4, 5, 6, 8, 10, 13, 16)
        ),
        Part.of("adamw", epochs=4, learning_rate=1e-2, batch_size=512),
    ),
    "digits": Case(
        tuple(Part.of("cnn", width=width, depth=1, stages=2) for width in (2, 3, 4, 5, 6, 8, 10, 13, 16)),
        Part.of("adamw", epochs=15, learning_rate=1e-2, batch_size=128),
    ),
}


@dataclass(frozen=True)
class Row:
    """Figures of one seed on the test split.

    Attributes:
        task: Name of the task.
        seed: Seed of splits and training.
        share: Share of the examples that the larger model answers.
        cost: Mean cost of the cascade.
        score: Accuracy of the cascade.
        single: Accuracy of the best single model of at most the expected cost.
        single_cost: Its cost.
        following: Accuracy of the cheapest single model that costs more than the cascade.
        following_cost: Its cost.
        largest: Accuracy of the most expensive model.
        largest_cost: Its cost.
    """

    task: str
    seed: int
    share: float
    cost: float
    score: float
    single: float
    single_cost: float
    following: float
    following_cost: float
    largest: float
    largest_cost: float


def measure_seed(name: str, seed: int) -> Row | None:
    """Return the figures of one seed; None if no cascade gains on select_val."""
    case = CASES[name]
    task = TASKS.get(name)()
    splits = task.splits(seed)
    models = []
    for student in case.students:
        torch.manual_seed(seed)
        model = task.build(student)
        fit(model, FitRequest(task, splits.train, case.fit, seed=seed))
        models.append(model.eval())
    example = task.example()
    costs = [count_effective_flops(layer_costs(fold_batch_norm(model, example), example), {}) for model in models]
    chosen = [_score_models(models, costs, task, split) for split in (splits.select_val, splits.test)]
    selected = [SingleModel(model.id, model.cost, model.score) for model in chosen[0]]
    points = list_cascades(chosen[0], lambda outputs: _score(outputs, splits.select_val))
    best = max(model.score for model in selected)
    chosen_pair = select_cascade(points, selected, is_maximized=True, least=best - LARGEST_LOSS)
    if chosen_pair is None:
        return None
    point, single = chosen_pair
    tested = {model.id: model for model in chosen[1]}
    outputs, share = combine_outputs(tested[point.small], tested[point.large], point.threshold)
    following = min((model for model in chosen[1] if model.cost > point.cost), key=lambda model: model.cost)
    largest = chosen[1][-1]
    return Row(
        name,
        seed,
        share,
        tested[point.small].cost + share * tested[point.large].cost,
        _score(outputs, splits.test),
        tested[single.id].score,
        single.cost,
        following.score,
        following.cost,
        largest.score,
        largest.cost,
    )


def _score_models(
    models: Sequence[torch.nn.Module], costs: Sequence[float], task: Task, split: Split
) -> list[ScoredModel]:
    kinds = {head: as_head(size).kind for head, size in task.heads.items()}
    scored = []
    for number, (model, cost) in enumerate(zip(models, costs, strict=True)):
        outputs = {head: values.numpy() for head, values in predict(model, task, split).items()}
        scored.append(
            ScoredModel(str(number), cost, _score(outputs, split), outputs, compute_confidence(outputs, kinds))
        )
    return scored


def _score(outputs: Outputs, split: Split) -> float:
    ((head, values),) = outputs.items()
    return float((values.argmax(1) == split.targets[head].numpy()).mean())


def format_table(rows: Sequence[Row]) -> list[str]:
    """Return the table in Markdown: means with standard errors over seeds, in points where scores differ."""
    lines = [
        "| task | seeds | cascade | best single of equal cost | gain, points | standard errors | gain over next model, "
        "points | cost of cascade / single / next / largest | answered by the larger | largest model |",
        "|" + "---|" * 10,
    ]
    for name in CASES:
        group = [row for row in rows if row.task == name]
        if not group:
            continue
        gains = [100 * (row.score - row.single) for row in group]
        mean, error = mean_and_error(gains)
        over_next = mean_and_error([100 * (row.score - row.following) for row in group])
        kinds = ("", "single_", "following_", "largest_")
        costs = [np.mean([getattr(row, f"{kind}cost") for row in group]) for kind in kinds]
        lines.append(
            f"| {name} | {len(group)} | {format_mean([row.score for row in group])} | "
            f"{format_mean([row.single for row in group])} | {mean:+.2f} ± {error:.2f} | "
            f"{mean / error if error > 0 else float('inf'):.1f} | {over_next[0]:+.2f} ± {over_next[1]:.2f} | "
            f"{' / '.join(f'{cost:,.0f}' for cost in costs)} | {np.mean([row.share for row in group]):.0%} | "
            f"{format_mean([row.largest for row in group])} |"
        )
    return lines


def main() -> None:
    """Run what is not stored yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    with reproducible_torch():
        for seed in range(arguments.seeds):
            for name in arguments.tasks:
                if not any((row["task"], row["seed"]) == (name, seed) for row in load_rows(file)):
                    row = measure_seed(name, seed)
                    empty: dict[str, Any] = {"task": name, "seed": seed}
                    append_row(file, empty if row is None else asdict(row))
                    print(row, flush=True)
    stored = load_rows(file)
    without = [row for row in stored if "score" not in row]
    rows = [Row(**row) for row in stored if "score" in row]
    note = "; ".join(f"{row['task']}, seed {row['seed']}" for row in without) or "none"
    lines = ["# Confidence cascades", "", describe_benchmark(__doc__), "", *format_table(rows), ""]
    lines += [f"Seeds in which no cascade gained on select_val, which the table leaves out: {note}.", ""]
    write_atomic(arguments.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
