"""Filter and selection under limits: the page's scripts do what Python does, letter for letter."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autocompress.analysis.certification import VALIDATION
from autocompress.analysis.selection import select_candidate
from autocompress.cli.options import parse_limits
from autocompress.core.example_scores import ExampleScores
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TargetInfo
from autocompress.errors import AutocompressError
from autocompress.report.page import read_asset
from autocompress.report.selection_data import rule_data, table_data
from autocompress.report.uncertainty import describe_ties
from tests.analysis.test_query import SHARED, TABLE
from tests.report.factory import Run

_COLUMNS = (
    ObjectiveSpec("accuracy", "maximize"),
    ObjectiveSpec("rmse", "minimize"),
    ObjectiveSpec("macro_auc", "maximize"),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost"),
    ObjectiveSpec("bytes", "minimize", "B", "cost"),
    ObjectiveSpec("parameters", "minimize", kind="cost"),
    ObjectiveSpec("latency_ms", "minimize", "ms", "cost"),
    ObjectiveSpec("accuracy@star rating", "maximize"),
)
_QUANTITIES = {
    "accuracy": ["97%", "0.95", "90 %", "85%", "99.95%", "0.5"],
    "accuracy@star rating": ["50%", "0.7"],
    "macro_auc": ["0.5", "62.5%"],
    "rmse": ["0.5", "1.125", "0.8", "2"],
    "effective_flops": ["30KFLOPs", "2.5 MFLOPs", "12.3K", "1e6", "40", "1e-3"],
    "bytes": ["30KB", "2 KiB", "2e4", "1 GB"],
    "parameters": ["2K", "12500", "300"],
    "latency_ms": ["2 ms", "0.125", "0.03ms"],
    "epochs": ["9", "27"],
}


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """Return a tab with the scripts, and without a page."""
    tab = browser.new_page()
    for name in ("formatting.js", "query.js", "selection.js"):
        # A const of a script is no property of the window, but later scripts see it.
        tab.add_script_tag(content=read_asset(name))
    yield tab
    tab.close()


def _make_run(rng: np.random.Generator) -> tuple[pd.DataFrame, RunInfo]:
    """Return a table with ties, gaps, baselines and stopped trials, and a description with random objectives."""
    size = int(rng.integers(1, 40))
    table = pd.DataFrame({"id": [f"t{rng.integers(0, 12)}c{index}" for index in range(size)]})
    table["role"] = rng.choice(["search", "baseline", "repeat"], size, p=[0.85, 0.1, 0.05])
    table["complete"] = rng.random(size) < 0.9
    table["epochs"] = np.where(table["complete"], 27, 9)
    table["quantize.post_training.weight_bits"] = rng.choice([4.0, 8.0, np.nan], size)
    table["quantize.post_training.activation_bits"] = rng.choice([8.0, np.nan], size)
    for record in _COLUMNS:
        if record.kind == "score":
            # Few distinct values make ties.
            values = np.round(rng.random(size) * 24) / 24 * (1 if record.is_maximized else 3)
        else:
            values = np.round(10.0 ** rng.uniform(-1, 6, size), int(rng.integers(0, 3)))
        table[record.name] = np.where(rng.random(size) < 0.05, np.nan, values)
    scores = [record for record in _COLUMNS if record.kind == "score"]
    costs = [record for record in _COLUMNS if record.kind == "cost"]
    score, cost = scores[rng.integers(len(scores))], costs[rng.integers(len(costs))]
    bounds = (0.1, 1.0) if score.is_maximized else (2.8, 0.0)
    objectives = [ObjectiveSpec(score.name, score.direction, score.unit, "score", bounds), cost]
    objectives += [record for record in _COLUMNS if rng.random() < 0.1 and record.name not in (score.name, cost.name)]
    # Examples of one head, of two heads, of none; few of them make ties and differences.
    heads = [[], ["star rating"], ["star rating", "other"]][rng.integers(3)]
    examples = int(rng.integers(1, 20))
    if heads:
        shares = table["accuracy"].fillna(0.5)
        table["details"] = [
            {"right": {head: pack_correct(rng.random(examples) < share) for head in heads}} for share in shares
        ]
        if rng.random() < 0.2:
            table.loc[0, "details"] = None
    target = TargetInfo("mock", precisions=Precisions(kernels=((8, 8), (32, 32)), stored=(8, 32)))
    labels = dict.fromkeys(table["id"][table["role"] == "baseline"], "without distillation")
    info = RunInfo(
        objectives=tuple(objectives),
        all_objectives=_COLUMNS,
        limits={"bytes": {"max": 2e5}} if rng.random() < 0.3 else {},
        baselines=labels,
        target=target if rng.random() < 0.4 else TargetInfo(),
        splits={"select_val": examples} if rng.random() < 0.8 else {},
    )
    return table, info


def pack_correct(correct: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    """Return correct examples ``[N]`` as a candidate's details hold them."""
    return f"{len(correct)}:{base64.b64encode(np.packbits(correct).tobytes()).decode()}"


def _make_limits(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Return (column, sign, quantity) of one to three limits, most of them in the direction that makes sense."""
    limits = []
    directions = {record.name: record.is_maximized for record in _COLUMNS}
    for name in rng.choice(list(_QUANTITIES), int(rng.integers(1, 4))):
        is_least = directions.get(name, False) != (rng.random() < 0.1)
        limits.append((str(name), ">=" if is_least else "<=", str(rng.choice(_QUANTITIES[name]))))
    # Two bounds on one column: a range, or limits that exclude each other.
    if rng.random() < 0.2:
        name, sign, _ = limits[0]
        limits.append((name, "<=" if sign == ">=" else ">=", str(rng.choice(_QUANTITIES[name]))))
    return limits


def _select(table: pd.DataFrame, info: RunInfo, limits: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Return what ``autocompress pick`` selects or answers."""
    pairs: dict[str, list[str]] = {"<=": [], ">=": []}
    for name, sign, text in limits:
        pairs[sign].append(f"{name}={text}")
    try:
        most, least = parse_limits(pairs["<="], "--max"), parse_limits(pairs[">="], "--min")
        pick = select_candidate(table, info, max=most, min=least)
    except AutocompressError as error:
        return {"error": str(error)}
    neighbours = [{"kind": neighbour.kind, "id": neighbour.id, "text": neighbour.text} for neighbour in pick.neighbours]
    return {
        "id": pick.id,
        "reason": pick.reason,
        "neighbours": neighbours,
        "binding": list(pick.binding),
        "alternatives": list(pick.alternatives),
        "ties": ""
        if pick.ties is None
        else f"{describe_ties(pick, pick.ties, table, info).removesuffix('.')} ({pick.ties.method})",
        "simulated": pick.simulated,
    }


@pytest.mark.parametrize("tables", [60, pytest.param(500, marks=pytest.mark.exhaustive)])
@pytest.mark.slow
def test_limits_select_on_the_page_as_on_the_command_line(tab: Any, tables: int) -> None:
    rng = np.random.default_rng(25)
    cases, expected = [], []
    for _ in range(tables):
        table, info = _make_run(rng)
        limits = _make_limits(rng)
        # The page sorts its rows in another way than the table.
        shown = table.sample(frac=1, random_state=int(rng.integers(1000)))
        run = {name: json.loads(text) for name, text in table_data(shown).items()}
        run["rule"] = rule_data(shown, info, "reports/my run")
        cases.append({"run": run, "text": " and ".join(f"{name} {sign} {text}" for name, sign, text in limits)})
        expected.append(_select(table, info, limits))
    answers = tab.evaluate(
        """(cases) => JSON.parse(cases).map(({ run, text }) => {
          const limits = query.readLimits(text, query.prepare(run));
          try {
            const { row, certificate, ...chosen } = selection.select(run, limits);
            return chosen;
          } catch (problem) {
            if (problem instanceof selection.SelectionError) return { error: problem.message };
            throw problem;
          }
        })""",
        # As one text: playwright converts nested values one by one.
        json.dumps(cases),
    )
    for case, answer, wanted in zip(cases, answers, expected, strict=True):
        assert answer == wanted, case["text"]
    # Every branch was taken.
    kinds = ["error" if "error" in wanted else "pick" for wanted in expected]
    assert min(kinds.count("error"), kinds.count("pick")) > tables // 10
    texts = " ".join(json.dumps(wanted) for wanted in expected)
    for piece in (
        "excludes the best",
        "exclude each other",
        "no candidate has",
        "together",
        "without it",
        "has no kernel",
        "4-bit weights",
        "is statistically tied",
        "are statistically tied",
        "No other front candidate",
        "McNemar's exact test on the same",
        "paired z test on the mean of 2 heads",
        "unpaired binomial test",
    ):
        assert piece in texts


def test_the_command_of_limits_is_quoted_for_the_shell(tab: Any) -> None:
    command = tab.evaluate(
        """() => selection.writeCommand({ rule: { command: "autocompress pick runs/a" } }, [
          { column: "accuracy@star rating", bound: "min", typed: "97%" },
          { column: "bytes", bound: "max", typed: "30KB" },
        ])"""
    )
    assert command == "autocompress pick runs/a --max bytes=30KB --min 'accuracy@star rating=97%'"


def test_filters_select_on_the_page_as_on_the_command_line(tab: Any) -> None:
    run = {name: json.loads(text) for name, text in table_data(TABLE).items()}
    answers = tab.evaluate(
        """([json, filters]) => {
          const run = JSON.parse(json);
          query.prepare(run);
          return filters.map((text) => {
            try {
              return { rows: query.selectRows(text, run).flatMap((holds, row) => (holds ? [row] : [])) };
            } catch (problem) {
              if (!(problem instanceof query.FilterError)) throw problem;
              const count = (end) => [...text.slice(0, end)].length;
              return { error: problem.message, start: count(problem.start), end: count(problem.end) };
            }
          });
        }""",
        [json.dumps(run), [case["filter"] for case in SHARED["cases"]]],
    )
    for case, answer in zip(SHARED["cases"], answers, strict=True):
        assert answer == {name: value for name, value in case.items() if name != "filter"}, case["filter"]


def test_numbers_are_written_as_in_python(tab: Any) -> None:
    rng = np.random.default_rng(3)
    values = [
        *10.0 ** rng.uniform(-9, 17, 300),
        0.125,
        1.125,
        2.5,
        0.25,
        1e-5,
        0.0001,
        999.5,
        999500.0,
        1e21,
        0.0,
        -3.25,
    ]
    general = tab.evaluate(
        "(values) => values.map((value) => [3, 6, 1].map((digits) => formatting.toGeneral(value, digits)))", values
    )
    assert general == [[f"{value:.3g}", f"{value:.6g}", f"{value:.1g}"] for value in values]


@pytest.mark.parametrize(
    ("text", "message", "start"),
    [
        ("bytes < 3", "write <= or >=: a limit includes its bound", 6),
        ("bytes <= 3 or accuracy >= 1", "write 'and' before 'or': all limits must hold", 11),
        ("byts <= 3", "did you mean 'bytes'?", 0),
        ("bytes <= x", "a number is missing, such as 2e6, 97% or 30KB", 9),
        ("bytes <= 2 ms", "'2 ms' is in ms, and bytes in B", 9),
        ("3 <= bytes", "a limit begins with a column, as in bytes <= 30KB", 0),
        ("bytes <= 1e999", "the number '1e999' is too large", 9),
        ("bytes <=", "a number is missing, such as 2e6, 97% or 30KB", 8),
    ],
)
def test_a_limit_that_cannot_be_read_says_where(tab: Any, text: str, message: str, start: int) -> None:
    run = {name: json.loads(value) for name, value in table_data(TABLE).items()}
    answer = tab.evaluate(
        """([run, text]) => {
          try {
            query.readLimits(text, query.prepare(run));
          } catch (problem) {
            return [problem.message, problem.start];
          }
        }""",
        [run, text],
    )
    assert message in answer[0]
    assert answer[1] == start


def test_the_front_has_its_certified_losses(run: Run, front: pd.DataFrame) -> None:
    assert rule_data(run.candidates, run.info, "reports/digits")["certificates"] == {}
    right = ExampleScores("bits", 100, np.ones(100)).pack()
    examples = dict.fromkeys(VALIDATION, right)
    info = replace(run.info, teacher=replace(run.info.teacher, examples=examples), confidence=0.9)
    stored = run.candidates.assign(details=[{"examples": examples}] * len(run.candidates))
    rule = rule_data(stored, info, "reports/digits", total=10_000)
    picked = select_candidate(stored, info, max={"effective_flops": 30e3})
    assert picked.certificate is not None
    assert rule["certificates"][picked.id] == picked.certificate.describe(info.objectives[0])
    assert set(rule["certificates"]) == set(front["id"])
    assert rule["exact"]["accuracy"] == run.candidates["accuracy"].tolist()
    assert "considers all 10,000" in rule["scopeNotice"]
