"""Learning curves and rungs of the trials, as data for figures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pandas as pd

from autocompress.analysis.pareto import numeric_column, primary_objectives
from autocompress.core.formatting import DASH, format_value, is_finite
from autocompress.core.run_info import RunInfo

#: Groups of trials in the order of the legend, with their labels.
STATES = {
    "complete": "ran to the end",
    "stopped": "stopped early",
    "failed": "failed",
    "unfinished": "not finished",
}
#: State of a job that compresses an earlier checkpoint with a step that trains.
REFINEMENT = "refinement"
#: Stopped trials that are listed one by one.
MAX_STOPPED = 200
#: More curves make a browser slow, and cannot be told apart.
MAX_CURVES = 300
#: Points of one curve.
MAX_EPOCHS = 40


@dataclass(frozen=True)
class Curve:
    """Values of one trial over its epochs."""

    trial: int
    epochs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class LearningCurves:
    """Curves of the trials of a search.

    Attributes:
        groups: State, a key of ``STATES``, to the curves of its trials.
        rungs: Epochs after which trials paused, in ascending order.
        total: Number of trials with a curve; at most ``MAX_CURVES`` are in the groups.
    """

    groups: Mapping[str, Sequence[Curve]]
    rungs: Sequence[int]
    total: int

    @property
    def shown(self) -> int:
        """Number of curves in the groups."""
        return sum(map(len, self.groups.values()))


class RungRow(TypedDict):
    """One row of the table of rungs, as texts."""

    epochs: str
    reached: str
    stopped: str
    failed: str
    score: str


@dataclass(frozen=True)
class Bar:
    """The time that one part of a trial took a worker, in seconds of search."""

    trial: int
    worker: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each worker did when.

    Attributes:
        groups: State of the trial, a key of ``STATES`` or ``REFINEMENT``, to its bars.
        workers: Number of workers.
        busy: Share of the time of all workers, from the first start to the last end, in which they had a job.
    """

    groups: Mapping[str, Sequence[Bar]]
    workers: int
    busy: float


class StoppedRow(TypedDict):
    """One trial that was stopped early, as texts."""

    trial: str
    epochs: str
    score: str
    reason: str


def read_timeline(trials: pd.DataFrame) -> Timeline | None:
    """Return what each worker did when; None for a run of an earlier version, which has not stored it."""
    if not {"segments", "state"} <= set(trials.columns):
        return None
    further = trials["further"] if "further" in trials else pd.Series(False, index=trials.index)
    groups: dict[str, list[Bar]] = {name: [] for name in (*STATES, REFINEMENT)}
    for number, state, is_refinement, parts in zip(
        trials["number"], trials["state"], further, trials["segments"], strict=True
    ):
        group = REFINEMENT if is_refinement else str(state) if state in STATES else "unfinished"
        groups[group] += [Bar(int(number), int(part["worker"]), part["start"], part["end"]) for part in parts]
    bars = [bar for group in groups.values() for bar in group]
    if not bars:
        return None
    workers = max(bar.worker for bar in bars)
    span = max(bar.end for bar in bars) - min(bar.start for bar in bars)
    busy = sum(bar.end - bar.start for bar in bars) / (workers * span) if span > 0 else 1.0
    return Timeline(groups, workers, busy)


def tabulate_stopped(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo) -> list[StoppedRow]:
    """Return a row for each trial that was stopped early, with its last score on search_val and the reason."""
    search = _select_trainings(trials)
    if not {"state", "reason", "curve"} <= set(search.columns) or not info.objectives:
        return []
    last = _score_points(candidates, info).drop_duplicates("trial", keep="last").set_index("trial")["score"]
    score = primary_objectives(info.objectives)[1]
    stopped = search[search["state"] == "stopped"].head(MAX_STOPPED)
    return [
        StoppedRow(
            trial=str(number),
            epochs=f"{len(curve or []):,}",
            score=format_value(float(last[number]), score) if number in last.index else DASH,
            reason=str(reason) or DASH,
        )
        for number, curve, reason in zip(stopped["number"], stopped["curve"], stopped["reason"], strict=True)
    ]


def read_loss_curves(candidates: pd.DataFrame, trials: pd.DataFrame) -> LearningCurves:
    """Return the training loss of each trial over its epochs."""
    search = _select_trainings(trials)
    curves = []
    for number, stored in zip(search["number"], search.get("curve", []), strict=False):
        rows = [row for row in stored or [] if is_finite(row.get("epoch")) and is_finite(row.get("loss"))]
        curves.append(Curve(int(number), [row["epoch"] for row in rows], [row["loss"] for row in rows]))
    return _group_curves(curves, search, find_rungs(candidates))


def read_score_curves(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo) -> LearningCurves:
    """Return the score of each trial's uncompressed student at each rung and at the end, on search_val."""
    search = _select_trainings(trials)
    points = _score_points(candidates, info)
    curves = [
        Curve(int(rows["trial"].iloc[0]), rows["epochs"].tolist(), rows["score"].tolist())
        for _, rows in points.groupby("trial")
    ]
    return _group_curves(curves, search, find_rungs(candidates))


def find_rungs(candidates: pd.DataFrame) -> list[int]:
    """Return the epochs after which trials paused to be compared, in ascending order."""
    if not {"complete", "epochs"} <= set(candidates.columns):
        return []
    paused = candidates[~candidates["complete"].astype(bool)]
    return sorted(int(epoch) for epoch in paused["epochs"].unique())


def tabulate_rungs(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo) -> list[RungRow]:
    """Return a row for each rung and one for the end of training; empty without rungs.

    ``failed`` counts the trials that failed after the rung before and up to this one.
    """
    rungs, search = find_rungs(candidates), _select_trainings(trials)
    if not rungs or "state" not in search or not info.objectives:
        return []
    lengths = {int(number): len(curve or []) for number, curve in zip(search["number"], search["curve"], strict=True)}
    states = dict(zip(search["number"].astype(int), search["state"], strict=True))
    points = _score_points(candidates, info)
    # Trials that compress an earlier checkpoint pass no rung.
    points = points[points["trial"].isin(lengths)]
    score, rows, before = primary_objectives(info.objectives)[1], [], 0
    last = max([*lengths.values(), *points["epochs"].astype(int)])
    for epochs in sorted({*rungs, last}):
        here = points[points["epochs"] == epochs]
        ended = [number for number, length in lengths.items() if before < length <= epochs or length == before == 0]
        rows.append(
            RungRow(
                epochs=f"{epochs:,}",
                reached=f"{here['trial'].nunique():,}",
                stopped=f"{sum(states[number] == 'stopped' and lengths[number] > 0 for number in ended):,}",
                failed=f"{sum(states[number] == 'failed' for number in ended):,}",
                score=format_value(float(here["score"].median()), score) if len(here) else DASH,
            )
        )
        before = epochs
    return rows


def _select_trainings(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of the search that train; those that compress an earlier checkpoint do not."""
    rows = trials[trials["role"] == "search"] if "role" in trials else trials
    return rows[~rows["further"].astype(bool)] if "further" in rows else rows


def _score_points(candidates: pd.DataFrame, info: RunInfo) -> pd.DataFrame:
    """Return ``trial``, ``epochs`` and ``score`` of the least compressed candidate of each trial at each rung."""
    empty = pd.DataFrame({"trial": [], "epochs": [], "score": []}, dtype="float64")
    if not len(candidates) or not info.objectives or not {"trial", "epochs"} <= set(candidates.columns):
        return empty
    name = primary_objectives(info.objectives)[1].name
    column = f"{name}_search" if f"{name}_search" in candidates else name
    rows = candidates[candidates["role"] == "search"] if "role" in candidates else candidates
    steps = sum((rows[section] != "none").astype(int) for section in ("prune", "quantize") if section in rows)
    table = pd.DataFrame(
        {"trial": rows["trial"], "epochs": rows["epochs"], "score": numeric_column(rows, column), "steps": steps}
    )
    table = table[np.isfinite(table["score"])].sort_values(["trial", "epochs", "steps"], kind="stable")
    points: pd.DataFrame = table.drop_duplicates(["trial", "epochs"])[["trial", "epochs", "score"]]
    return points


def _group_curves(curves: Sequence[Curve], trials: pd.DataFrame, rungs: Sequence[int]) -> LearningCurves:
    """Return the curves by the state of their trials; of too many, an evenly spaced part."""
    states = dict(zip(trials["number"].astype(int), trials["state"], strict=True)) if len(trials) else {}
    present = [curve for curve in curves if curve.values and curve.trial in states]
    step = max(1, -(-len(present) // MAX_CURVES))
    groups: dict[str, list[Curve]] = {name: [] for name in STATES}
    for curve in present[::step]:
        state = str(states[curve.trial])
        groups[state if state in STATES else "unfinished"].append(_thin_curve(curve))
    return LearningCurves(groups, rungs, len(present))


def _thin_curve(curve: Curve) -> Curve:
    """Return a curve of at most ``MAX_EPOCHS`` points, the first and the last one included."""
    if len(curve.epochs) <= MAX_EPOCHS:
        return curve
    rows = np.linspace(0, len(curve.epochs) - 1, MAX_EPOCHS).round().astype(int).tolist()
    return Curve(curve.trial, [curve.epochs[row] for row in rows], [curve.values[row] for row in rows])
