"""Whether promises are kept: ``python -m benchmarks.promise [--searches 4] [--resamples 40] [--out FILE]``.

Small searches of shipped spaces with different seeds. Candidates and teacher predict a population: fresh curves for
mnist1d (50,000 by default), all examples outside of training for the other tasks. Each rule selects a candidate by the
validation splits of the search, and again by splits drawn from the population; the loss of its selection on the
population decides whether the promise is kept. Where the finalists are trained in folds, the default rule selects by
their out-of-fold predictions, which no drawn split can replace.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn.datasets
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

import autocompress
from autocompress.analysis.certification import list_rows, read_loss, select_certified, select_guaranteed
from autocompress.analysis.correction import estimate_corrected_loss
from autocompress.analysis.pareto import full_fidelity, sort_by_cost
from autocompress.analysis.selection import SLACK, select_rankable
from autocompress.core.example_scores import ExampleScores
from autocompress.core.formatting import format_plural
from autocompress.core.run_info import RunInfo
from autocompress.core.task import Split
from autocompress.store.run_store import RunStore
from autocompress.tasks.mnist1d import generate_mnist1d
from autocompress.trial.pipeline import Setup, load_pipeline, reproducible_torch
from benchmarks.common import describe_benchmark

CONFIDENCE = 0.9
# Candidates that lose more on select_val are left out.
NEAR = 0.1
# The published curves have the seed 42.
FRESH_SEED = 4_243
RULES = ("observed loss on each split (before)", "certified (default)", "--guarantee 0.9")


@dataclass(frozen=True)
class Study:
    """A small search and the loss that its selections may have.

    Attributes:
        space: Name of the shipped space.
        drops: Allowed losses; the searches have the first one, which only decides what they recommend.
        fresh: Number of fresh examples of the population; 0 for the examples outside of training.
        overrides: Changes of the spec that make the search small.
        table: Name of the data set of scikit-learn that the search reads as a table; empty if the space names its data.
        folds: Number of folds in which the finalists are trained; 0 for none.
    """

    space: str
    drops: tuple[float, ...]
    fresh: int
    overrides: tuple[str, ...]
    table: str = ""
    folds: int = 0


_QUANTIZE = "quantize={none: , post_training: {weight_bits: [8, 6, 4, 3], activation_bits: [8, 4]}}"
_PRUNE = "prune={none: , structured: {pruning_ratio: [0.25, 0.5], recovery_epochs: 3}}"
_TABLE = Study(
    "tabular", (0.02, 0.03), 0,
    (
        "search.trials=8", "target=none", "fit.adamw.epochs=15", "teacher.fit.adamw.epochs=30",
        "distill={soft_target: }", _QUANTIZE,
    ),
    table="breast_cancer",
)  # fmt: skip
STUDIES = {
    "mnist1d": Study(
        "mnist1d", (0.02,), 50_000,
        (
            "search.trials=8", "target=none", "fit.adamw.epochs=9",
            "teacher.fit={adamw: {epochs: 12, learning_rate: 5e-3}}", "distill={soft_target: {temperature: 4.0}}",
            "student.cnn1d.block=plain", _PRUNE, _QUANTIZE,
        ),
    ),
    "digits": Study(
        "digits", (0.02,), 0,
        (
            "search.trials=8", "target=none", "fit.adamw.epochs=9", "distill={soft_target: {temperature: 4.0}}",
            "student.cnn.block=plain", _PRUNE, _QUANTIZE,
        ),
    ),
    "langid": Study(
        "langid", (0.02,), 0,
        (
            "search.trials=2", "target=none", "fit={adamw: {epochs: 3}}", "teacher.fit={adamw: {epochs: 3}}",
            "prune={none: }", _QUANTIZE,
        ),
    ),
    "tabular": _TABLE,
    "tabular_folds": replace(_TABLE, folds=5),
}  # fmt: skip


@dataclass(frozen=True)
class Population:
    """A finished search and the correct predictions of its models on a population.

    Attributes:
        table: Candidates that may be selected, with their stored examples.
        info: Description of the run.
        hits: Correct predictions of each candidate, ``[K, N]``.
        teacher: Correct predictions of the teacher, ``[N]``.
    """

    table: pd.DataFrame
    info: RunInfo
    hits: NDArray[np.bool_]
    teacher: NDArray[np.bool_]

    @property
    def losses(self) -> NDArray[np.float64]:
        """True loss of each candidate, ``[K]``."""
        losses: NDArray[np.float64] = self.teacher.mean() - self.hits.mean(axis=1)
        return losses


def run_study(name: str, study: Study, seed: int, folder: Path, most: int) -> Population:
    """Search a space, and return the predictions of at most ``most`` candidates, spread evenly over the costs.

    Finalists that were trained in folds are among them.
    """
    name = f"{name}-{seed}"
    if not (folder / name / "report.html").exists():
        overrides = [*study.overrides, "search.backend=serial", f"search.seed={seed}", f"split_seed={seed}"]
        overrides += _write_table(study.table, folder) if study.table else []
        overrides += [f"splits={{folds: {study.folds}}}"] if study.folds else []
        overrides += ["search.minutes=null", f"pick={{max_drop: {study.drops[0]}, confidence: {CONFIDENCE}}}"]
        autocompress.search(study.space, name=name, runs=folder, overrides=overrides, resume=(folder / name).exists())
    cached = folder / f"{name}.npz"
    with RunStore.read(folder / name) as store:
        info, table = store.run_info(), store.candidate_table()
        rows = select_rankable(full_fidelity(table), info.objectives).sort_values("effective_flops")
        # No rule selects a candidate that loses far more on validation, so it needs no predictions.
        rows = rows[rows["accuracy"] >= (info.teacher.score("accuracy") or 0.0) - NEAR]
        spread = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
        finalists = np.flatnonzero(rows["accuracy_folds"].notna()).tolist() if study.folds else []
        kept = np.union1d(spread, finalists).astype(int)
        rows = rows.iloc[kept].reset_index(drop=True)
        ids = [str(identity) for identity in rows["id"]]
        if not cached.exists() or np.load(cached)["ids"].tolist() != ids:
            with reproducible_torch():
                hits, teacher = _predict_population(store, study, info, ids)
            np.savez_compressed(cached, ids=ids, hits=np.packbits(hits, axis=1), teacher=teacher)
    stored = np.load(cached)
    count = len(stored["teacher"])
    return Population(rows, info, np.unpackbits(stored["hits"], axis=1, count=count).astype(bool), stored["teacher"])


def _write_table(name: str, folder: Path) -> list[str]:
    """Write a data set of scikit-learn as CSV, and return the changes of the spec that read it."""
    path = folder / f"{name}.csv"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = getattr(sklearn.datasets, f"load_{name}")(as_frame=True)
        data.frame.to_csv(path, index=False)
    return [f"task.tabular.path={path}", "task.tabular.target=target"]


def _predict_population(
    store: RunStore, study: Study, info: RunInfo, ids: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    pipeline = load_pipeline(Setup.from_json(info.setup))
    if study.fresh:
        curves, digits = generate_mnist1d(study.fresh, FRESH_SEED)
        inputs = torch.tensor(curves, dtype=torch.float32).unsqueeze(1)
        split = Split((inputs,), {"label": torch.tensor(digits)})
    else:
        parts = [pipeline.splits.search_val, pipeline.splits.select_val, pipeline.splits.test]
        (head,) = parts[0].targets
        split = Split(
            tuple(torch.cat(tensors) for tensors in zip(*(part.inputs for part in parts), strict=True)),
            {head: torch.cat([part.targets[head] for part in parts])},
        )
    ((head, targets),) = split.targets.items()

    def find_hits(model: torch.nn.Module) -> NDArray[np.bool_]:
        return (pipeline.predict(model, split)[head].argmax(1) == targets).numpy()

    hits = []
    for identity in ids:
        candidate = store.read_candidate(identity)
        content = store.checkpoint_path(candidate.checkpoint).read_bytes()
        hits.append(find_hits(pipeline.rebuild(candidate.config, content).model))
    return np.stack(hits), find_hits(pipeline.teacher.model)


def draw_splits(population: Population, generator: np.random.Generator) -> tuple[pd.DataFrame, RunInfo]:
    """Return table and description with validation splits drawn from the population, with replacement."""
    table, info = population.table.copy(), population.info
    scores: dict[str, Mapping[str, float]] = {}
    examples: dict[str, str] = {}
    packed: list[dict[str, str]] = [{} for _ in range(len(table))]
    for split, suffix in (("search_val", "_search"), ("select_val", "")):
        size = info.splits[split]
        index = generator.integers(0, len(population.teacher), size)
        own = population.hits[:, index].astype(np.float64)
        goal = population.teacher[index].astype(np.float64)
        scores[split] = {"accuracy": float(goal.mean())}
        examples[split] = ExampleScores("bits", size, goal).pack()
        table[f"accuracy{suffix}"] = own.mean(axis=1)
        for texts, values in zip(packed, own, strict=True):
            texts[split] = ExampleScores("bits", size, values).pack()
    table["details"] = pd.Series([{"examples": texts} for texts in packed], index=table.index, dtype=object)
    teacher = replace(info.teacher, scores={**info.teacher.scores, **scores}, examples=examples)
    return table, replace(info, teacher=teacher)


Rule = Callable[[pd.DataFrame, RunInfo], tuple[str, float] | None]


def select_observed(table: pd.DataFrame, info: RunInfo) -> tuple[str, float] | None:
    """Return the selection of the rule before certificates, the cheapest within the allowed loss on both splits.

    Without such a candidate, that rule says so and promises nothing.
    """
    drop = info.max_drop or 0.0
    near = table
    for split, suffix in (("search_val", "_search"), ("select_val", "")):
        near = near[(info.teacher.score("accuracy", split) or 0.0) - near[f"accuracy{suffix}"] <= drop + SLACK]
    return (str(sort_by_cost(near, info.objectives)["id"].iloc[0]), drop) if len(near) else None


def select_by_default(table: pd.DataFrame, info: RunInfo) -> tuple[str, float] | None:
    """Return the default selection and what it promises: the allowed loss, else the certified one."""
    drop = info.max_drop or 0.0
    selected = select_certified(table, info, drop, CONFIDENCE)
    if selected is None:
        return None
    row, loss = selected
    return str(row["id"]), max(drop, loss.upper_bound(CONFIDENCE))


def select_by_guarantee(table: pd.DataFrame, info: RunInfo) -> tuple[str, float] | None:
    """Return the guaranteed selection; None where nothing is guaranteed."""
    selected = select_guaranteed(table, info, info.max_drop or 0.0, CONFIDENCE)
    return None if selected is None or selected.row is None else (str(selected.row["id"]), info.max_drop or 0.0)


SELECTORS: Mapping[str, Rule] = dict(zip(RULES, (select_observed, select_by_default, select_by_guarantee), strict=True))


def judge_rules(
    population: Population, table: pd.DataFrame, info: RunInfo, *, is_corrected: bool
) -> Iterator[dict[str, Any]]:
    """Yield a row for each rule: its promise, the true loss, the cost beside the oracle's, and the corrected loss."""
    losses, ids = population.losses, [str(name) for name in table["id"]]
    costs = table["effective_flops"].to_numpy(dtype=np.float64)
    good = losses <= (info.max_drop or 0.0)
    oracle = float(costs[good].min()) if good.any() else float("nan")
    for name, select in SELECTORS.items():
        selected = select(table, info)
        row: dict[str, Any] = {"rule": name, "promises": selected is not None}
        if selected is not None:
            position = ids.index(selected[0])
            row |= {"kept": bool(losses[position] <= selected[1] + 1e-9), "loss": float(losses[position])}
            row["within"] = selected[1] <= (info.max_drop or 0.0) + 1e-9
            row["ratio"] = float(costs[position]) / oracle
            measured = read_loss(list_rows(table.iloc[[position]])[0], info)
            row["observed"] = float("nan") if measured is None else measured.observed
            if is_corrected and name == RULES[1]:
                corrected = estimate_corrected_loss(table, info)
                row["corrected"] = float("nan") if corrected is None else corrected.loss
        yield row


def summarize_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the cells of a table row: selections, promises kept with interval, cost, and bias of the score."""
    promised = [row for row in rows if row["promises"]]
    if not promised:
        return [str(len(rows)), "0", *["–"] * 5]
    kept = sum(row["kept"] for row in promised)
    low, high = binomtest(kept, len(promised)).proportion_ci(0.95, method="exact")
    ratios = [row["ratio"] for row in promised if np.isfinite(row["ratio"])]
    bias = 100 * statistics.fmean(row["loss"] - row["observed"] for row in promised)
    corrected = [row for row in promised if np.isfinite(row.get("corrected", float("nan")))]
    corrected_bias = (
        f"{100 * statistics.fmean(row['loss'] - row['corrected'] for row in corrected):+.2f}" if corrected else "–"
    )
    return [
        str(len(rows)),
        f"{len(promised)} ({sum(row['within'] for row in promised)} within max_drop)",
        f"{kept / len(promised):.0%} [{low:.0%}, {high:.0%}]",
        f"{100 * max(row['loss'] for row in promised):.1f}",
        f"{statistics.median(ratios):.2f}" if ratios else "–",
        f"{bias:+.2f}",
        corrected_bias,
    ]


def judge_searches(
    populations: Sequence[Population], study: Study, drop: float, resamples: int, corrected: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Judge the rules on the own splits of each search, and on splits drawn from its population.

    Args:
        populations: Finished searches of the study.
        study: The study.
        drop: Allowed loss.
        resamples: Number of drawn splits of each search.
        corrected: Of these, the number with a corrected loss.
    """
    own: list[dict[str, Any]] = []
    drawn: list[dict[str, Any]] = []
    for seed, population in enumerate(populations):
        info = replace(population.info, max_drop=drop, confidence=CONFIDENCE)
        population = replace(population, info=info)
        # The other rules do not read the folds, so that their rows would be those of the same study without.
        own += [
            row
            for row in judge_rules(population, population.table, info, is_corrected=True)
            if not study.folds or row["rule"] == RULES[1]
        ]
        generator = np.random.default_rng([FRESH_SEED, seed])
        for draw in range(resamples):
            table, described = draw_splits(population, generator)
            drawn += judge_rules(population, table, described, is_corrected=draw < corrected)
    return own, drawn


def run_default_search(space: str, seed: int, folder: Path) -> dict[str, Any]:
    """Search a shipped space as a user does, with another seed, and return what its pick promised and lost on test."""
    name = f"default-{space}-{seed}"
    if not (folder / name / "report.html").exists():
        overrides = [f"search.seed={seed}", f"split_seed={seed}"]
        autocompress.search(space, name=name, runs=folder, overrides=overrides, resume=(folder / name).exists())
    front = autocompress.Front(folder / name)
    pick = front.pick()
    lost = read_loss(pick.row, front.info, ["test"])
    if lost is None or pick.certificate is None:
        raise RuntimeError(f"{name}: the pick has no stored examples")
    promise = max(pick.certificate.promised or 0.0, pick.certificate.certified)
    speed = front.info.teacher.costs["effective_flops"] / float(pick.row["effective_flops"])
    return {"seed": seed, "pick": pick.id, "promise": promise, "lost": lost.observed, "speed": speed}


def format_default_runs(space: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of default searches: promised and lost points of the pick by seed."""
    kept = sum(row["lost"] <= row["promise"] + 1e-9 for row in rows)
    lines = [
        "",
        f"## Default searches of {space}: the promise is kept on test in {kept} of {len(rows)}",
        "",
        "| seed | promised: loses at most, points | loses on test, points | kept | effective FLOPs, teacher / pick |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        is_kept = "yes" if row["lost"] <= row["promise"] + 1e-9 else "no"
        cells = [
            row["seed"],
            f"{100 * row['promise']:.1f}",
            f"{100 * row['lost']:.1f}",
            is_kept,
            f"{row['speed']:,.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def write_page(
    results: Mapping[str, list[dict[str, Any]]], out: Path, notes: Sequence[str], appendix: Sequence[str]
) -> None:
    """Write the Markdown file: a row for each task, kind of splits and rule, and the appendix below."""
    heading = ["task, splits", "rule", "selections", "promises", "kept [95% interval]", "largest loss, points"]
    heading += ["cost / oracle's, median", "loss minus observed, points", "loss minus corrected, points"]
    lines = [
        "# Promises kept",
        "",
        f"`python -m benchmarks.promise {' '.join(sys.argv[1:])}`",
        "",
        describe_benchmark(__doc__),
        "",
        *notes,
        "",
    ]
    lines += ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for name, rows in results.items():
        for rule in RULES:
            judged = [row for row in rows if row["rule"] == rule]
            lines += ["| " + " | ".join([name, rule, *summarize_rows(judged)]) + " |"] if judged else []
    out.write_text("\n".join([*lines, *appendix]) + "\n")


def main() -> None:
    """Run the searches that are not stored yet, judge every rule, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument(
        "--searches", type=int, nargs="+", default=[4], help="number of searches, for all or for each study"
    )
    parser.add_argument("--candidates", type=int, default=60, help="largest number of candidates of a search")
    parser.add_argument("--resamples", type=int, default=40, help="number of drawn splits of each search")
    parser.add_argument("--corrected", type=int, default=10, help="number of drawn splits with a corrected score")
    parser.add_argument("--fresh", type=int, default=50_000, help="number of fresh examples of mnist1d")
    parser.add_argument("--default-runs", type=int, default=0, help="number of default searches of digits")
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "promise")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/promise.md"))
    arguments = parser.parse_args()
    counts = arguments.searches * (len(arguments.studies) if len(arguments.searches) == 1 else 1)
    results: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for name, count in zip(arguments.studies, counts, strict=True):
        study = STUDIES[name]
        study = replace(study, fresh=arguments.fresh if study.fresh else 0)
        populations = [run_study(name, study, seed, arguments.runs, arguments.candidates) for seed in range(count)]
        # No drawn split can replace out-of-fold predictions.
        resamples = 0 if study.folds else arguments.resamples
        for drop in study.drops:
            task = f"{name} within {100 * drop:g} points"
            own, drawn = judge_searches(populations, study, drop, resamples, arguments.corrected)
            results[f"{task}, own splits"] = own
            results |= {f"{task}, drawn splits": drawn} if resamples else {}
            print(task, flush=True)
        sizes = [len(population.table) for population in populations]
        notes.append(
            f"- {name}: {format_plural(count, 'search', 'searches')} with {min(sizes)} to {max(sizes)} candidates, "
            f"{resamples} drawn splits each, a population of {len(populations[0].teacher):,}."
        )
    defaults = [run_default_search("digits", seed, arguments.runs) for seed in range(arguments.default_runs)]
    write_page(results, arguments.out, notes, format_default_runs("digits", defaults) if defaults else [])


if __name__ == "__main__":
    main()
