"""What the page says in sentences: the verdict, how sure it is, how the search went, and what to be honest about."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from autocompress.analysis.latency import KEPT as LATENCY, NAME as LATENCY_MS, RECORD, TEACHER
from autocompress.analysis.pareto import Objective, axes
from autocompress.analysis.selection import Pick
from autocompress.analysis.simulated import simulated
from autocompress.core.formatting import compare, duration, finite, gap, label, plural, show
from autocompress.report.figure_data import hypervolume_data


def verdict(candidates: pd.DataFrame, trials: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None) -> str:
    """Return the run's outcome in one sentence.

    For example ``99.1x fewer effective FLOPs than the teacher for 0.8 points of accuracy.``
    """
    if picked is None:
        return _nothing(candidates, trials)
    cost, score = axes(meta["objectives"])
    ours, quality = picked.row[cost["name"]], picked.row[score["name"]]
    teacher = meta.get("teacher") or {}
    theirs = teacher.get("costs", {}).get(cost["name"])
    best = teacher.get("scores", {}).get("select_val", {}).get(score["name"])
    if not (finite(theirs) and finite(best)):
        return f"{show(quality, score)} {label(score['name'])} at {show(ours, cost)}."
    saving = compare(ours, theirs, cost["name"])
    joint = "as" if saving.startswith("as ") else "than"
    return f"{_capital(saving)} {joint} the teacher {_price(quality, best, score)}."


def lede(candidates: pd.DataFrame, trials: pd.DataFrame, meta: Mapping[str, Any], picked: Pick | None) -> str:
    """Return the sentence below the verdict: what was picked out of how much."""
    trained = int((trials["state"] == "complete").sum()) if "state" in trials else 0
    took = f" in {duration(meta['seconds'])}" if finite(meta.get("seconds")) else ""
    source = (
        f"{plural(len(candidates), 'candidate')}, cut from {plural(len(trials), 'trial')} ({trained:,} ran to the end)"
    )
    if picked is None:
        return f"The search looked at {source}{took}." if len(trials) else "No trial has been run."
    return f"Candidate {picked.id} was picked out of {source}{took}."


def convergence(trials: pd.DataFrame) -> str:
    """Return in a sentence whether the search was still finding better fronts when it ended."""
    curve = hypervolume_data(trials)
    if len(curve) < 2:
        return ""
    last = float(curve["hypervolume"].iloc[-1])
    improved = curve[curve["hypervolume"].diff().fillna(1.0) > 1e-6]
    end = int((trials["role"] == "search").sum()) if "role" in trials else len(trials)
    before = curve[curve["trial"] <= end * 2 / 3]["hypervolume"]
    gained = (last - float(before.iloc[-1])) / last if len(before) and last else 1.0
    judgement = "it has all but converged" if gained < 0.01 else "more trials would probably still improve it"
    return (
        f"The front fills {last:.1%} of the declared box. Its last improvement came with trial "
        f"{int(improved['trial'].iloc[-1])} of {end}; the last third of the trials added {gained:.1%}: {judgement}."
    )


def honesty(candidates: pd.DataFrame, trials: pd.DataFrame, meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader must know before believing the page: (term, text) pairs."""
    environment = meta.get("environment") or {}
    versions = environment.get("versions") or {}
    splits = meta.get("splits") or {}
    facts = {
        "Processor": f"{environment.get('processor', 'unknown')}, {environment.get('cores', '?')} cores",
        "Threads": f"{environment.get('threads_per_worker', '?')} per worker; results differ between thread counts",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Data": f"fingerprint {environment.get('data', 'unknown')}",
        "Splits": ", ".join(f"{name} {size:,}" for name, size in splits.items()) + " examples, disjoint",
        "Notices": "; ".join(meta.get("notices") or []),
        "Use of splits": f"search_val steers the search, select_val makes front and pick; {_readings(meta)}",
    }
    if "state" in trials:
        counts = trials["state"].value_counts()
        facts["Trials"] = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    marks = sum(bool(text) for text in simulated(candidates))
    if marks:
        facts["Simulated"] = (
            f"{marks:,} of {len(candidates):,} candidates use bit-widths or quantizers without a native kernel; their "
            "scores are those of the rounded arithmetic, their speed depends on a device that has one"
        )
    seeds = candidates["seed"].nunique() if "seed" in candidates else 0
    if seeds <= 1:
        facts["Seeds"] = "one: differences between single trainings include luck"
    facts["Costs"] = "FLOPs are 2 x multiply-accumulates and say nothing about latency, which each device decides"
    facts["Latency"] = _timed(meta)
    return [(term, text) for term, text in facts.items() if text]


def pick_latency(row: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """Return in a sentence how long a candidate took as it was exported; empty where it was not timed."""
    milliseconds = row.get(LATENCY_MS)
    if milliseconds is None or not finite(milliseconds):
        return ""
    teachers = (meta.get("teacher") or {}).get("costs", {}).get(LATENCY_MS)
    beside = f", the teacher {show(teachers, RECORD)}" if finite(teachers) else ""
    return f"Exported, it took {show(milliseconds, RECORD)}{beside}: {_conditions(meta[LATENCY])}."


def _timed(meta: Mapping[str, Any]) -> str:
    latency = meta.get(LATENCY) or {}
    rows = latency.get("rows") or {}
    if not rows:
        return ""
    teacher = ", the teacher's among them," if TEACHER in rows else ""
    return f"the median of {plural(len(rows), 'exported model')}{teacher} {_conditions(latency)}"


def _conditions(latency: Mapping[str, Any]) -> str:
    return (
        f"at batch {latency['batch']} with {plural(latency['threads'], 'thread')} by onnxruntime {latency['runtime']} "
        f"on {latency['processor']}"
    )


def losses(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Return why trials did not run to the end, the most frequent reason first."""
    if not {"state", "reason"} <= set(trials.columns):
        return []
    ended = trials[trials["state"].isin(["failed", "infeasible", "stopped"])]
    counts = Counter(zip(ended["state"].tolist(), ended["reason"].tolist(), strict=True))
    return [{"state": state, "reason": reason, "count": count} for (state, reason), count in counts.most_common()]


def split_scores(row: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """Return the score on the three splits beside the teacher's, and the gap from select_val to test in words."""
    score = axes(meta["objectives"])[1]
    name = score["name"]
    teacher = (meta.get("teacher") or {}).get("scores", {})
    ours = {
        split: row.get(f"{name}{end}")
        for split, end in (("search_val", "_search"), ("select_val", ""), ("test", "_test"))
    }
    rows = [
        {"split": split, "ours": show(value, score), "teacher": show(teacher.get(split, {}).get(name), score)}
        for split, value in ours.items()
    ]
    chosen, tested = ours["select_val"], ours["test"]
    if not (finite(chosen) and finite(tested)):
        return rows, "The test split was not read for this candidate."
    change = float(tested or 0.0) - float(chosen or 0.0)
    if change == 0:
        return rows, "From select_val to test nothing changes."
    words = "higher" if change > 0 else "lower"
    return rows, f"On test the {label(name)} is {gap(change, score)} {words} than on select_val."


def _readings(meta: Mapping[str, Any]) -> str:
    read = meta.get("test_reads", 1)
    return "test is read once, after that" if read == 1 else f"test was read {plural(int(read), 'time')}"


def _nothing(candidates: pd.DataFrame, trials: pd.DataFrame) -> str:
    if not len(trials):
        return "Nothing has been searched yet."
    if len(candidates):
        return "No candidate can be recommended."
    reasons = losses(trials)
    most = f", most often for this reason: {reasons[0]['reason']}" if reasons and reasons[0]["reason"] else ""
    return f"No trial produced a candidate{most}."


def _price(ours: float, theirs: float, score: Objective) -> str:
    change = (ours - theirs) * (1 if score["direction"] == "maximize" else -1)
    words = gap(change, score)
    if words.startswith("0.0 ") or change == 0:
        return f"at the same {label(score['name'])}"
    return (
        f"for {words} of {label(score['name'])}" if change < 0 else f"and a gain of {words} of {label(score['name'])}"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
