"""Slices through the hyperparameters."""

from dataclasses import replace

import pandas as pd
import pytest

from autocompress.analysis.importance import Dependence
from autocompress.analysis.pareto import full_fidelity
from autocompress.analysis.selection import select_candidate
from autocompress.report.exploration import explore_hyperparameters
from autocompress.report.exploration_figures import draw_parallel, draw_slice
from autocompress.report.slices import MAX_POINTS, build_slices, select_slices, tabulate_dependence
from tests.report.factory import OBJECTIVES, Run

RATE, WIDTH, KIND = "fit.adamw.learning_rate", "student.cnn.width", "student"
TEMPERATURE = "distill.soft_target.temperature"


def test_the_temperature_has_a_panel_even_if_it_is_not_important(run: Run) -> None:
    assert TEMPERATURE in select_slices([WIDTH], run.candidates)
    assert select_slices(["missing", WIDTH], run.candidates)[0] == WIDTH


def test_a_panel_has_the_candidates_that_have_its_hyperparameter(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info, candidate=str(front["id"].iloc[0]))
    panels = build_slices(run.candidates, front, run.info, None, [RATE, KIND, TEMPERATURE], picked)
    rate, kind, temperature = panels[:3]
    whole = full_fidelity(run.candidates)
    assert rate.total == rate.shown == len(whole)
    assert kind.is_category
    assert not rate.is_category
    assert temperature.total == whole[TEMPERATURE].notna().sum() < len(whole)
    assert set(rate.groups["front"].ids) == set(front["id"]) - {picked.id}
    assert list(rate.groups["pick"].ids) == [picked.id]
    many = pd.concat(
        [run.candidates.assign(id=[f"{name}x{turn}" for name in run.candidates["id"]]) for turn in range(9)]
    )
    (crowded,) = build_slices(many, front, run.info, None, [RATE])[:1]
    assert crowded.shown <= MAX_POINTS < crowded.total


def test_dependence_is_drawn_with_its_interval(run: Run, front: pd.DataFrame) -> None:
    numbers = Dependence([1.0, 2.0], [0.5, 0.75], [0.25, 0.5], [0.75, 1.0])
    panel = build_slices(run.candidates, front, run.info, None, [RATE])[0]
    traces = draw_slice(panel, "rate", OBJECTIVES[0]).data
    assert [trace.meta for trace in traces] == ["other", "front", "pick"]
    band, line = draw_slice(replace(panel, dependence=numbers), "rate", OBJECTIVES[0]).data[3:]
    assert list(band.y) == [0.25, 0.5, 1.0, 0.75]
    assert list(line.y) == [0.5, 0.75]
    texts = replace(panel, is_category=True, dependence=replace(numbers, values=["a", "b"]))
    (marks,) = draw_slice(texts, "kind", OBJECTIVES[0]).data[3:]
    assert list(marks.error_y.array) == list(marks.error_y.arrayminus) == [0.25, 0.25]
    assert tabulate_dependence(numbers, OBJECTIVES[0])[0] == {"value": "1", "score": "50.0% [25.0%, 75.0%]"}


def test_without_a_front_there_are_no_slices(run: Run, front: pd.DataFrame) -> None:
    content: dict[str, object] = {"mattering": None}
    none = run.candidates.assign(complete=False)
    assert explore_hyperparameters(content, none, front.head(0), run.info, None, None) == {"slices": "[]"}
    assert content["has_hyperparameters"] is False


def test_parallel_coordinates_have_all_candidates_and_missing_values_below(run: Run) -> None:
    figure = draw_parallel(run.candidates, [(KIND, "student"), (TEMPERATURE, "temperature")], OBJECTIVES[::-1])
    kind, temperature, cost, score = figure.data[0].dimensions
    assert all(len(axis["values"]) == len(run.candidates) for axis in (kind, temperature, cost, score))
    assert set(kind["ticktext"]) == set(run.candidates[KIND])
    missing = run.candidates[TEMPERATURE].isna().to_numpy()
    values = pd.Series(temperature["values"])
    assert temperature["ticktext"][0] == "none"
    assert set(values[missing]) == {temperature["tickvals"][0]}
    assert values[~missing].min() > temperature["tickvals"][0]
    # Costs span several powers of ten.
    assert max(cost["values"]) < 12
    assert list(score["values"]) == pytest.approx(run.candidates["accuracy"].tolist(), abs=1e-4)
