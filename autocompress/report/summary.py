"""Sentences of the page: the result, the convergence of the search, and the conditions of the measurements.

A run may store a copy of another run's hypervolume curve for reference, so that its page needs no other folder.
"""

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from autocompress.analysis.certification import describe_loss, describe_test_loss, estimate_interval
from autocompress.analysis.correction import estimate_corrected_loss
from autocompress.analysis.latency import (
    IN_FLOAT,
    NAME as LATENCY_MS,
    RECORD,
    SOURCE,
    TEACHER,
    describe_measured_savings,
    describe_simulation,
)
from autocompress.analysis.pareto import primary_objectives
from autocompress.analysis.selection import Pick, select_rankable
from autocompress.core.formatting import (
    compare_costs,
    format_difference,
    format_duration,
    format_plural,
    format_value,
    is_finite,
    label_column,
)
from autocompress.core.run_info import LatencyInfo, ReferenceRun, RunInfo
from autocompress.errors import UsageError
from autocompress.report.comparison import RunTables, check_comparable
from autocompress.report.figure_data import format_with_interval, hypervolume_data


def reference_of(run: RunTables, other: RunTables) -> ReferenceRun:
    """Return what is kept of another run.

    Raises:
        UsageError: The runs have another task, other data, objectives or reference points, or ``other`` has no results.
    """
    check_comparable(run, other)
    bounds = [{objective.name: objective.bounds for objective in one.info.objectives} for one in (run, other)]
    if bounds[0] != bounds[1]:
        raise UsageError(
            f"{run.name} and {other.name} have different reference points (objectives: in the spec), so their "
            "hypervolumes are not comparable; autocompress compare computes both with one reference point"
        )
    curve = hypervolume_data(other.trials)
    if curve.empty:
        raise UsageError(f"{other.name} has no hypervolume yet")
    rows = curve.round({"seconds": 3, "hypervolume": 6}).to_numpy().tolist()
    return ReferenceRun(other.name, tuple(map(tuple, rows)))


def reference_data(info: RunInfo) -> pd.DataFrame:
    """Return the columns ``trial``, ``seconds`` and ``hypervolume`` of the reference run; empty if there is none."""
    rows = [] if info.reference is None else info.reference.rows
    return pd.DataFrame(rows, columns=["trial", "seconds", "hypervolume"], dtype="float64")


def compare_with_reference(trials: pd.DataFrame, info: RunInfo) -> str:
    """Return in a sentence which run reached the smaller final hypervolume first; empty without a reference.

    For example ``The reference run random reached 0.931 after 48 s; this search reached that value after 6 s.``
    """
    curve, other = hypervolume_data(trials), reference_data(info)
    if info.reference is None or curve.empty or other.empty:
        return ""
    name, theirs, ours = info.reference.name, float(other["hypervolume"].max()), float(curve["hypervolume"].max())
    after = format_duration(float(other["seconds"].max()))
    first, goal = (curve, theirs) if ours >= theirs else (other, ours)
    there = format_duration(float(first[first["hypervolume"] >= goal]["seconds"].min()))
    lead = f"The reference run {name} reached {theirs:.3f} after {after}"
    if ours >= theirs:
        return f"{lead}; this search reached that value after {there}."
    return f"{lead}, and the value of this search after {there}."


def summarize_result(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo, picked: Pick | None) -> str:
    """Return the result of the run in one sentence: measured speed, size or cost, and the loss on the test split.

    For example ``4.9x faster and 311x smaller than the teacher; loses 0.8 points of accuracy on test [-0.1, 1.9].``
    Without a test score, it is the loss on the validation splits, corrected for the selection where that is possible.
    """
    if picked is None:
        return _explain_missing_pick(candidates, trials)
    cost, score = primary_objectives(info.objectives)
    ours, quality = picked.row[cost.name], picked.row[score.name]
    best = info.teacher.score(score.name)
    if not (is_finite(info.teacher.costs.get(cost.name)) and is_finite(best)):
        return f"{format_value(quality, score)} {label_column(score.name)} at {format_value(ours, cost)}."
    saving = describe_measured_savings(picked.row, info) or _describe_saved_cost(picked.row, info)
    tested = describe_test_loss(picked.row, info)
    if tested:
        return f"{_capitalize(saving)}; {tested}."
    return f"{_capitalize(saving)}; {_describe_untested_loss(candidates, info, picked)}."


def _describe_saved_cost(row: Mapping[str, object], info: RunInfo) -> str:
    cost, costs = primary_objectives(info.objectives)[0], info.teacher.costs
    saving = compare_costs(float(str(row[cost.name])), costs[cost.name], cost.name)
    return f"{saving} {'as' if saving.startswith('as ') else 'than'} the teacher"


def _describe_untested_loss(candidates: pd.DataFrame, info: RunInfo, picked: Pick) -> str:
    """Return the loss on the validation splits, where the test split was not read for the pick."""
    score = primary_objectives(info.objectives)[1]
    name = label_column(score.name)
    corrected = None
    # The correction repeats the default selection, so it does not apply to others.
    if picked.certificate is not None and picked.certificate.promised is not None:
        corrected = estimate_corrected_loss(select_rankable(candidates, info.objectives), info)
    if corrected is not None:
        size = describe_loss(corrected.loss, score)
        return f"loses {size} of {name}, corrected for the selection; the test split was not read"
    change = (picked.row[score.name] - float(info.teacher.score(score.name) or 0.0)) * (1 if score.is_maximized else -1)
    words = format_difference(change, score)
    if words == format_difference(0.0, score):
        return f"the same {name} on the selection split; the test split was not read"
    verb = "loses" if change < 0 else "gains"
    return f"{verb} {words} of {name} on the selection split; the test split was not read"


def summarize_search(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo, picked: Pick | None) -> str:
    """Return the sentence below the result: the number of trials and candidates, and the pick."""
    trained = int((trials["state"] == "complete").sum()) if "state" in trials else 0
    took = f" in {format_duration(info.seconds)}" if is_finite(info.seconds) else ""
    source = (
        f"{format_plural(len(candidates), 'candidate')}, made from {format_plural(len(trials), 'trial')} "
        f"({trained:,} ran to the end)"
    )
    if picked is None:
        return f"The search evaluated {source}{took}." if len(trials) else "No trial has run yet."
    return f"Candidate {picked.id} was selected from {source}{took}."


def describe_convergence(trials: pd.DataFrame) -> str:
    """Return the final hypervolume and its improvement in the last third of the trials."""
    curve = hypervolume_data(trials)
    if len(curve) < 2:
        return ""
    last = float(curve["hypervolume"].iloc[-1])
    improved = curve[curve["hypervolume"].diff().fillna(1.0) > 1e-6]
    end = int((trials["role"] == "search").sum()) if "role" in trials else len(trials)
    before = curve[curve["trial"] <= end * 2 / 3]["hypervolume"]
    gained = (last - float(before.iloc[-1])) / last if len(before) and last else 1.0
    return (
        f"Normalized hypervolume: {last:.3f}. It improved by {gained:.1%} in the last third of the trials; the last "
        f"improvement was trial {int(improved['trial'].iloc[-1])} of {end}."
    )


def list_conditions(candidates: pd.DataFrame, trials: pd.DataFrame, info: RunInfo) -> list[tuple[str, str]]:
    """Return the conditions of the measurements: (term, text) pairs."""
    environment = info.environment
    splits = info.splits
    facts = {
        "Processor": f"{environment.processor or 'unknown'}, {environment.cores or '?'} cores",
        "Threads": f"{environment.threads_per_worker or '?'} per worker; results differ between thread counts",
        "Versions": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
        "Data": f"fingerprint {environment.data or 'unknown'}",
        "Splits": ", ".join(f"{name} {size:,}" for name, size in splits.items()) + " examples, disjoint",
        "Notices": "; ".join(info.notices),
        "Use of splits": f"search_val for the search, select_val for front and pick; {_describe_test_reads(info)}",
    }
    if "state" in trials:
        counts = trials["state"].value_counts()
        facts["Trials"] = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    marks = sum(bool(text) for text in describe_simulation(candidates, info.target.precisions))
    if marks:
        facts["Simulated"] = (
            f"{marks:,} of {len(candidates):,} candidates use bit-widths or quantizers without a kernel on this "
            "target; their scores are exact, a speed-up needs hardware with such a kernel"
        )
    # With one seed, the spread between trials of the same configuration is unknown.
    seeds = candidates["seed"].nunique() if "seed" in candidates else 0
    if seeds <= 1:
        facts["Seeds"] = "one: differences between single trials include chance"
    facts["Costs"] = "FLOPs are 2 x multiply-accumulates; latency depends on the device and is measured separately"
    facts["Latency"] = _describe_latency(info)
    return [(term, text) for term, text in facts.items() if text]


#: Ratio of two latencies that repeated measurements do not tell apart.
NOISE = 1.05


def pick_latency(row: Mapping[str, object], info: RunInfo) -> str:
    """Return the measured latency of an exported candidate in a sentence; empty if it was not measured."""
    milliseconds = row.get(LATENCY_MS)
    if milliseconds is None or not is_finite(milliseconds):
        return ""
    teacher = info.teacher.costs.get(LATENCY_MS)
    comparison = f", teacher {format_value(teacher, RECORD)}" if is_finite(teacher) else ""
    conditions = "" if info.latency is None else f" ({_latency_conditions(info.latency)})"
    # A search for latency has predictions of what it did not time.
    kind = "Predicted" if row.get(SOURCE) == "predicted" else "Measured"
    text = f"{kind} latency of the exported model: {format_value(milliseconds, RECORD)}{comparison}{conditions}."
    in_float = row.get(IN_FLOAT)
    if is_finite(in_float) and in_float < milliseconds / NOISE:
        text += (
            f" In floating point (model_float.onnx) it takes {format_value(in_float, RECORD)}; integer kernels are "
            "exported because the rounding of its inputs changes more than 1% of its predictions."
        )
    return text


def _describe_latency(info: RunInfo) -> str:
    latency = info.latency
    if latency is None or not latency.rows:
        return ""
    rows = latency.rows
    teacher = ", including the teacher," if TEACHER in rows else ""
    models = format_plural(len(rows), "exported model")
    return f"{models}{teacher} timed in turns, the median ratio to the teacher, {_latency_conditions(latency)}"


def _latency_conditions(latency: LatencyInfo) -> str:
    runtime = f"{latency.target} {latency.runtime}"
    return (
        f"at batch {latency.batch} with {format_plural(latency.threads, 'thread')} by {runtime} on {latency.processor}"
    )


def count_unfinished_trials(trials: pd.DataFrame) -> list[dict[str, object]]:
    """Return the number of failed and stopped trials by state and reason, the most frequent first."""
    if not {"state", "reason"} <= set(trials.columns):
        return []
    ended = trials[trials["state"].isin(["failed", "infeasible", "stopped"])]
    counts = Counter(zip(ended["state"].tolist(), ended["reason"].tolist(), strict=True))
    return [{"state": state, "reason": reason, "count": count} for (state, reason), count in counts.most_common()]


def split_scores(row: Mapping[str, object], info: RunInfo) -> tuple[list[dict[str, str]], str]:
    """Return candidate and teacher scores on each split, and the difference from select_val to test in words."""
    score = primary_objectives(info.objectives)[1]
    name = score.name
    teacher = info.teacher.scores
    ours = {
        split: row.get(f"{name}{end}")
        for split, end in (("search_val", "_search"), ("select_val", ""), ("folds", "_folds"), ("test", "_test"))
        # Only finalists of cross-fitting have out-of-fold scores.
        if split != "folds" or is_finite(row.get(f"{name}{end}"))
    }
    rows = [
        {
            "split": split,
            "ours": format_with_interval(value, estimate_interval(row, split), score),
            "teacher": format_value(teacher.get(split, {}).get(name), score),
        }
        for split, value in ours.items()
    ]
    chosen, tested = ours["select_val"], ours["test"]
    if not (is_finite(chosen) and is_finite(tested)):
        return rows, "The test split was not read for this candidate."
    change = float(tested or 0.0) - float(chosen or 0.0)
    against = describe_test_loss(row, info)
    against = f" Against the teacher, it {against}." if against else ""
    # Compared as they are shown, so that no difference reads as 0.0 points.
    if format_difference(change, score) == format_difference(0.0, score) or change == 0:
        return rows, f"The scores on select_val and test are equal.{against}"
    difference = f"{format_difference(change, score)} {'higher' if change > 0 else 'lower'}"
    return rows, f"On the test split, the {label_column(name)} is {difference} than on select_val.{against}"


def _describe_test_reads(info: RunInfo) -> str:
    read = info.test_reads or 1
    return "test was read once, after the choice" if read == 1 else f"test was read {format_plural(int(read), 'time')}"


def _explain_missing_pick(candidates: pd.DataFrame, trials: pd.DataFrame) -> str:
    if not len(trials):
        return "The search has no results yet."
    if len(candidates):
        return "No candidate can be recommended."
    reasons = count_unfinished_trials(trials)
    most = f"; the most frequent reason: {reasons[0]['reason']}" if reasons and reasons[0]["reason"] else ""
    return f"No trial produced a candidate{most}."


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
