"""Default teachers beside trivial baselines: `python -m benchmarks.teachers [--spaces digits langid] [--seeds 5]`.

The default teacher of each task is trained as a search trains it, and scored beside the baselines of the task: on both
validation splits together, and on the test split. A teacher that trains in less than 30 seconds is trained with every
seed, for mean and standard deviation over seeds; a slower one once. Rows are stored next to the table at once, so that
a run can be resumed, and another recipe is a row of its own.

A space for your own data needs its path:

    python -m benchmarks.teachers --spaces text --set task.text.path=data/texts.csv

`breast_cancer`, `wine` and `diabetes` are tables of scikit-learn, and `signals` reads the curves of MNIST-1D from a
file. `reviews` and `images` need `AUTOCOMPRESS_TEST_DATA`: a folder with `clothing_reviews.csv.gz` (the columns of
Women's E-Commerce Clothing Reviews) and `cifar10_jpeg.zip` (CIFAR-10 in class folders), of which 150 images of each
class are read. `messages` are translations of 12 catalogs of Django into 21 languages, by language and catalog, where
that package is installed.
"""

import argparse
import csv
import gettext
import importlib.util
import os
import statistics
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from autocompress.core.atomic import write_atomic
from autocompress.core.config import fingerprint
from autocompress.core.registry import BASELINES
from autocompress.core.task import Split, Splits, Task
from autocompress.engine.runner import Plan, make_plan
from autocompress.engine.spec import load_spec
from autocompress.measure.heads import get_objective
from autocompress.measure.objectives import Subject
from autocompress.tasks.mnist1d import generate_mnist1d
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.trial.pipeline import reproducible_torch
from benchmarks.common import append_row, build_parser, describe_benchmark, load_rows

DATA = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", ""))
REVIEWS, IMAGES = DATA / "clothing_reviews.csv.gz", DATA / "cifar10_jpeg.zip"
# Images of each class and part: all of them would take hours.
IMAGES_OF_CLASS = 150
LANGUAGES, MESSAGES_OF_LANGUAGE = 21, 300


@dataclass(frozen=True)
class Source:
    """Data of a shipped space for a user's own data.

    Attributes:
        space: Name of the search space.
        write: Function of an empty folder that returns changes of the spec; it may write the data there.
    """

    space: str
    write: Callable[[Path], list[str]]


def _write_table(load: Callable[..., Any], score: str) -> Callable[[Path], list[str]]:
    """Return a function that writes a table of scikit-learn, whose column to predict is called ``target``."""

    def write(folder: Path) -> list[str]:
        path = folder / "table.csv"
        load(as_frame=True).frame.to_csv(path, index=False)
        return [f"task.tabular.path={path}", "task.tabular.target=target", f"objectives=[{score}, effective_flops]"]

    return write


def _write_curves(folder: Path) -> list[str]:
    """Write the curves of MNIST-1D as a file of series."""
    curves, digits = generate_mnist1d()
    np.savez(folder / "curves.npz", x=curves, y=digits)
    return [f"task.signals.path={folder / 'curves.npz'}"]


def _write_messages(folder: Path) -> list[str]:
    """Write translated messages of Django: of 21 languages, at most 300 of each, and from which of 12 catalogs."""
    (root,) = locate_django()
    texts: dict[str, list[tuple[str, str]]] = {}
    for file in sorted(root.glob("**/locale/*/LC_MESSAGES/*.mo")):
        # conf/locale/... has the messages of the core, and contrib/NAME/locale/... those of an application.
        catalog = file.parents[3].name
        with file.open("rb") as content:
            # The catalog itself has no public name.
            messages = vars(gettext.GNUTranslations(content))["_catalog"]
        language = texts.setdefault(file.parents[1].name, [])
        language += [
            (text, catalog) for key, text in messages.items() if key and isinstance(text, str) and text.strip()
        ]
    # Without the variants of a country or a script.
    names = sorted((name for name in texts if len(name) == 2), key=lambda name: (-len(texts[name]), name))[:LANGUAGES]
    random = np.random.default_rng(0)
    with (folder / "messages.csv").open("w", newline="", encoding="utf-8") as output:
        table = csv.writer(output)
        table.writerow(["text", "language", "catalog"])
        for name in names:
            for row in random.permutation(len(texts[name]))[:MESSAGES_OF_LANGUAGE]:
                text, catalog = texts[name][row]
                table.writerow([text, name, catalog])
    return [
        f"task.text.path={folder / 'messages.csv'}",
        "task.text.labels=language, catalog",
        "task.text.encoding=characters",
        "objectives=[mean_score, effective_flops]",
    ]


def locate_django() -> list[Path]:
    """Return the folder of the package django; empty if it is not installed."""
    spec = importlib.util.find_spec("django")
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()][:1]


def _extract_images(folder: Path) -> list[str]:
    """Extract a part of CIFAR-10."""
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(IMAGES) as archive:
        for name in archive.namelist():
            parent = os.path.dirname(name)
            counts[parent] += 1
            if counts[parent] <= IMAGES_OF_CLASS:
                archive.extract(name, folder)
    return [f"task.images.path={folder / 'cifar10'}", "task.images.size=32"]


SOURCES: Mapping[str, Source] = {
    "signals": Source("signals", _write_curves),
    "breast_cancer": Source("tabular", _write_table(datasets.load_breast_cancer, "accuracy")),
    "wine": Source("tabular", _write_table(datasets.load_wine, "accuracy")),
    "diabetes": Source("tabular", _write_table(datasets.load_diabetes, "r2")),
    "reviews": Source("reviews", lambda folder: [f"task.text.path={REVIEWS}"]),
    "images": Source("images", _extract_images),
    **({"messages": Source("text", _write_messages)} if locate_django() else {}),
}
GENERATED = ("digits", "mnist1d", "langid", "langid_kind", "entities", "ratings", "ranking", "recommendation")
SPACES = (*GENERATED, *SOURCES)
# A slower teacher is trained with one seed.
QUICK_SECONDS = 30.0
VALIDATION = ("search_val", "select_val")
COLUMNS = (
    "task",
    "score",
    "teacher, validation",
    "teacher, test",
    "seeds",
    "linear model, validation",
    "linear model, test",
    "best other baseline, validation",
    "test",
    "gain over the best baseline, validation / test",
)


@dataclass(frozen=True)
class Row:
    """The scores of one teacher with one seed, or of one baseline.

    Attributes:
        space: Name of the search space.
        model: ``teacher``, or the name of the baseline.
        recipe: Fingerprint of the data and of the recipe of the teacher.
        seed: Seed of the teacher; 0 for a baseline.
        score: Name of the primary score.
        is_maximized: Whether a larger score is better.
        validation: Score on both validation splits, weighted by their examples.
        test: Score on the test split.
        seconds: Duration of the training.
    """

    space: str
    model: str
    recipe: str
    seed: int
    score: str
    is_maximized: bool
    validation: float
    test: float
    seconds: float


def build_plan(space: str, overrides: Sequence[str], folder: Path) -> Plan:
    """Return the checked plan of a search space.

    Args:
        space: Name of a shipped search space, or one of :data:`SOURCES`.
        overrides: Changes of the spec, ``key=value``.
        folder: Folder that data may be written into.
    """
    source = SOURCES.get(space)
    # A path that is given replaces the data of the benchmark.
    if source is not None and not any(".path=" in override for override in overrides):
        return make_plan(load_spec(source.space, [*source.write(folder), *overrides]))
    return make_plan(load_spec(space, list(overrides)))


def train_teacher(plan: Plan, seed: int) -> tuple[Mapping[str, Mapping[str, Tensor]], float]:
    """Return the outputs of the default teacher by split, and the seconds of its training."""
    recipe = plan.setup.teacher
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = plan.task.build(recipe.student)
    fit(model, FitRequest(plan.task, plan.splits.train, recipe.fit, seed=seed))
    seconds = time.perf_counter() - started
    splits = dict(plan.splits.items())
    return {name: predict(model, plan.task, splits[name]) for name in (*VALIDATION, "test")}, seconds


def score_outputs(
    name: str, task: Task, splits: Splits, outputs: Mapping[str, Mapping[str, Tensor]]
) -> tuple[float, float]:
    """Return a score on both validation splits, weighted by their examples, and on the test split."""
    values, parts = {}, dict(splits.items())
    for split, logits in outputs.items():
        part: Split = parts[split]
        groups = task.resampling_groups(part)
        subject = Subject(logits, part.targets, heads=task.heads, labels=task.labels, groups=groups)
        values[split] = float(get_objective(name).measure(subject))
    sizes = [len(parts[split]) for split in VALIDATION]
    weighted = sum(size * values[split] for size, split in zip(sizes, VALIDATION, strict=True))
    return weighted / sum(sizes), values["test"]


def measure_space(space: str, seeds: int, overrides: Sequence[str], file: Path, quick: float = QUICK_SECONDS) -> str:
    """Train the teacher and the baselines of a space, store their rows, and return the fingerprint of the recipe.

    Args:
        space: Name of a space.
        seeds: Number of seeds of a teacher.
        overrides: Changes of the spec, ``key=value``.
        file: File of the rows.
        quick: Seconds of training above which a teacher is trained with one seed.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = build_plan(space, overrides, Path(folder))
    task, splits, teacher = plan.task, plan.splits, plan.setup.teacher
    recipe = fingerprint({"teacher": teacher.fingerprint(task, splits), "space": space})
    done = {(row["model"], row["seed"]): row for row in load_rows(file) if row["recipe"] == recipe}
    score = get_objective(plan.setup.primary)
    template = Row(space, "teacher", recipe, 0, score.name, score.direction == "maximize", 0.0, 0.0, 0.0)
    for name in BASELINES:
        started = time.perf_counter()
        predictor = None if (name, 0) in done else BASELINES.get(name)(task, splits.train)
        if predictor is None or set(task.heads) - set(predictor(splits.test.take(slice(0, 2)))):
            continue
        parts = dict(splits.items())
        outputs = {split: predictor(parts[split]) for split in (*VALIDATION, "test")}
        values = score_outputs(score.name, task, splits, outputs)
        append_row(file, asdict(_fill(template, name, 0, values, time.perf_counter() - started)))
    for seed in range(seeds):
        if ("teacher", seed) not in done:
            logits, seconds = train_teacher(plan, seed)
            row = _fill(template, "teacher", seed, score_outputs(score.name, task, splits, logits), seconds)
            append_row(file, asdict(row))
            done["teacher", seed] = asdict(row)
        if done["teacher", seed]["seconds"] > quick:
            break
    return recipe


def _fill(template: Row, model: str, seed: int, values: tuple[float, float], seconds: float) -> Row:
    return replace(template, model=model, seed=seed, validation=values[0], test=values[1], seconds=round(seconds, 2))


def format_page(rows: Iterable[Row], command: str) -> str:
    """Return the page: one line for each space, with its teacher and its best baselines."""
    spaces: dict[str, list[Row]] = {}
    for row in rows:
        spaces.setdefault(row.space, []).append(row)
    return "\n".join(
        [
            "# Default teachers beside trivial baselines",
            "",
            f"`{command}`",
            "",
            describe_benchmark(__doc__),
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
            *(_format_space(name, group) for name, group in spaces.items()),
            "",
        ]
    )


def _format_space(name: str, rows: Sequence[Row]) -> str:
    """Return the line of one space."""
    teachers = [row for row in rows if row.model == "teacher"]
    sign = 1.0 if rows[0].is_maximized else -1.0
    baselines = sorted((row for row in rows if row.model != "teacher"), key=lambda row: -sign * row.validation)
    linear = [row for row in baselines if row.model == "linear"]
    others = [row for row in baselines if row.model != "linear"]
    validation, test = ([getattr(row, part) for row in teachers] for part in ("validation", "test"))
    verdict = "–"
    if baselines:
        gains = [
            sign * (statistics.fmean(values) - getattr(baselines[0], part))
            for values, part in ((validation, "validation"), (test, "test"))
        ]
        verdict = " / ".join(f"{gain:+.4f}" if gain > 0 else f"**{gain:+.4f}**" for gain in gains)
    cells = [
        name,
        rows[0].score,
        _format_values(validation),
        _format_values(test),
        str(len(teachers)),
        *_format_baseline(linear, named=False),
        *_format_baseline(others, named=True),
        verdict,
    ]
    return f"| {' | '.join(cells)} |"


def _format_values(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _format_baseline(rows: Sequence[Row], *, named: bool) -> tuple[str, str]:
    """Return the cells of the best of some baselines: its score on the validation splits and on the test split."""
    if not rows:
        return "–", "–"
    name = f"{rows[0].model.replace('_', ' ')} " if named else ""
    return f"{name}{rows[0].validation:.4f}", f"{rows[0].test:.4f}"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = build_parser(__doc__, "reports/benchmarks/teachers.md", seeds=5)
    parser.set_defaults(spaces=[name for name in SPACES if DATA.name or name not in ("reviews", "images")])
    parser.add_argument("--quick-seconds", type=float, default=QUICK_SECONDS, help="slower teachers get a single seed")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments = parser.parse_args()
    file = arguments.out.with_suffix(".jsonl")
    recipes = {}
    with reproducible_torch():
        for space in arguments.spaces:
            recipes[space] = measure_space(space, arguments.seeds, arguments.set, file, arguments.quick_seconds)
    # Of earlier runs, spaces that this one does not name keep their latest recipe.
    latest = {row["space"]: row["recipe"] for row in load_rows(file)} | recipes
    rows = [Row(**row) for row in load_rows(file) if latest[row["space"]] == row["recipe"]]
    text = format_page(rows, "python -m benchmarks.teachers")
    write_atomic(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
