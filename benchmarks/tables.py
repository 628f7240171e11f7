"""Small public tables: `python -m benchmarks.tables [--tables wine diabetes] [--seeds 3] [--trials 12]`.

Gradient boosting of scikit-learn and the default network of the task `tabular` are fitted on the training split. Each
is then the teacher of a search of the shipped space `tabular`, and the recommended candidate is scored on the test
split, which neither has seen. A seed is that of splits, training and search. Bytes are those that are stored: of the
network's weights, of the pickled trees, and of the candidate. Means over seeds with their standard error; differences
are paired by seed; sizes are medians.

`wine`, `breast_cancer` and `diabetes` are tables of scikit-learn; `fair` (a survey of 6,366 marriages; whether there
was an affair) is read where statsmodels is installed.
"""

import argparse
import pickle
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

import autocompress
from autocompress.core.atomic import write_atomic
from benchmarks.common import append_row, build_parser, describe_benchmark, load_rows
from benchmarks.variants import mean_and_error

NETWORK, BOOSTING = "network", "gradient boosting"
TABLES = ("wine", "breast_cancer", "fair", "diabetes")
TARGET = "target"


def read_table(name: str) -> pd.DataFrame:
    """Return a table with the column to predict as ``target``; empty if the package that holds it is absent."""
    if name != "fair":
        table: pd.DataFrame = getattr(datasets, f"load_{name}")(as_frame=True).frame
        return table
    try:
        from statsmodels.datasets import fair
    except ImportError:
        return pd.DataFrame()
    survey: pd.DataFrame = fair.load_pandas().data
    return survey.drop(columns="affairs").assign(**{TARGET: np.where(survey["affairs"] > 0, "yes", "no")})


@dataclass(frozen=True)
class TableRow:
    """One search.

    Attributes:
        table: Name of the table.
        teacher: Kind of the teacher.
        seed: Seed of splits, training and search.
        metric: Name of the score.
        boosting: Score of gradient boosting on the test split.
        own: Score of the teacher there.
        pick: Score of the recommended candidate there.
        own_bytes: Bytes of the teacher.
        pick_bytes: Bytes of the candidate.
    """

    table: str
    teacher: str
    seed: int
    metric: str
    boosting: float
    own: float
    pick: float
    own_bytes: float
    pick_bytes: float


def measure_table(name: str, teacher: str, seed: int, options: argparse.Namespace) -> TableRow:
    """Search a table with one kind of teacher."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.csv"
        read_table(name).to_csv(path, index=False)
        data = autocompress.Tabular(path)
        is_number = not data.labels
        model = (HistGradientBoostingRegressor if is_number else HistGradientBoostingClassifier)(random_state=seed)
        rows = data.select_training_rows(seed)
        model.fit(rows.drop(columns=TARGET), rows[TARGET])
        metric = "r2" if is_number else "accuracy"
        overrides = [
            f"split_seed={seed}",
            f"teacher.seed={seed}",
            f"search.workers={options.workers}",
        ]
        overrides += ["search.minutes=null", "search.timing_seconds=0", *options.set]
        overrides += ["objectives=[r2, bytes]", "pick.max_drop=0.02"] if is_number else []
        given: dict[str, Any] = {"teacher": model, "data": data} if teacher == BOOSTING else {"spec": "tabular"}
        if teacher == NETWORK:
            overrides += [f"task.tabular.path={path}", f"task.tabular.target={TARGET}"]
        front = autocompress.search(
            **given, overrides=overrides, trials=options.trials, seed=seed, name=name, runs=Path(folder) / "runs"
        )
        pick = front.pick().row
        own = front.info.teacher
        test = data.splits(seed).test.keys.rows
        unseen = data.select_rows([] if test is None else test.tolist())
        boosting = model.score(unseen.drop(columns=TARGET), unseen[TARGET])
        size = len(pickle.dumps(model)) if teacher == BOOSTING else own.costs["bytes"]
        scores = own.scores["test"][metric], float(str(pick[f"{metric}_test"]))
        return TableRow(name, teacher, seed, metric, boosting, *scores, size, float(str(pick["bytes"])))


def format_table(rows: Sequence[TableRow]) -> str:
    """Return the results as a table, a line for each table and kind of teacher."""
    lines = [
        "| table | teacher | seeds | gradient boosting | teacher | teacher, difference | pick | pick, difference | "
        "teacher, bytes | pick, bytes | bytes, ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, teacher in dict.fromkeys((row.table, row.teacher) for row in rows):
        group = [row for row in rows if (row.table, row.teacher) == (name, teacher)]
        scale = 1 if group[0].metric == "r2" else 100
        digits = 3 if scale == 1 else 1
        columns = [
            [scale * row.boosting for row in group],
            [scale * row.own for row in group],
            [scale * (row.own - row.boosting) for row in group],
            [scale * row.pick for row in group],
            [scale * (row.pick - row.own) for row in group],
        ]
        cells = [_format_mean(values, digits, has_sign=at in (2, 4)) for at, values in enumerate(columns)]
        sizes = [[row.own_bytes for row in group], [row.pick_bytes for row in group]]
        sizes.append([row.own_bytes / row.pick_bytes for row in group])
        medians = " | ".join(f"{statistics.median(values):,.0f}" for values in sizes)
        title = f"{name} ({'R2' if scale == 1 else 'accuracy, %'})"
        lines.append(f"| {title} | {teacher} | {len(group)} | {' | '.join(cells)} | {medians} |")
    return "\n".join(lines) + "\n"


def _format_mean(values: Sequence[float], digits: int, *, has_sign: bool) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:{'+' if has_sign else ''}.{digits}f} ± {error:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the searches that have no row yet, and write the table."""
    parser = build_parser(__doc__, "reports/benchmarks/tables.md", seeds=3)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--teachers", nargs="+", default=[NETWORK, BOOSTING], choices=[NETWORK, BOOSTING])
    parser.add_argument("--trials", type=int, default=12)
    options = parser.parse_args(arguments)
    stored = options.out.with_suffix(".jsonl")
    for name in (name for name in options.tables if len(read_table(name))):
        for seed in range(options.seeds):
            for teacher in options.teachers:
                key = {"table": name, "teacher": teacher, "seed": seed}
                if not any(key.items() <= row.items() for row in load_rows(stored)):
                    append_row(stored, vars(measure_table(name, teacher, seed, options)))
    rows = [TableRow(**row) for row in load_rows(stored)]
    order = sorted(rows, key=lambda row: (TABLES.index(row.table), row.teacher == BOOSTING, row.seed))
    command = f"python -m benchmarks.tables --seeds {options.seeds} --trials {options.trials}"
    text = f"# Tables\n\n`{command}`\n\n{describe_benchmark(__doc__)}\n\n{format_table(order)}"
    write_atomic(options.out, text)


if __name__ == "__main__":
    main()
