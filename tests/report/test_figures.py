"""The plots: every point stands in its group with the right values, and the menus move all of them."""

import html
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from autocompress.analysis.latency import describe_simulation
from autocompress.analysis.pareto import full_fidelity, pareto_front
from autocompress.analysis.selection import select_candidate
from autocompress.core.precisions import Precisions
from autocompress.core.run_info import ObjectiveSpec, TargetInfo, TeacherInfo
from autocompress.report import figure_data as points
from autocompress.report.figure_data import front_data, hypervolume_data, select_points, step_line
from autocompress.report.figures import draw_front, front_figure, hypervolume_figure, plotly_source
from tests.report.factory import HOSTILE, Run, make_run


def test_every_candidate_is_drawn_once(run: Run, front: pd.DataFrame) -> None:
    data = front_data(run.candidates, front, run.info)
    groups = ("early", "infeasible", "dominated", "front", "baseline")
    ids = [name for group in groups for name in data.marks[group].ids]
    assert sorted(ids) == sorted(run.candidates["id"])


def test_the_values_are_those_of_the_table(run: Run, front: pd.DataFrame) -> None:
    table = run.candidates.set_index("id")
    for name, marks in front_data(run.candidates, front, run.info).marks.items():
        if name != "teacher":
            for column in ("accuracy", "bytes"):
                expected = table.loc[list(marks.ids), column].tolist()
                assert marks.column(column) == pytest.approx(expected, rel=1e-5)


def test_knee_pick_teacher_and_baselines_are_marked(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    marks = front_data(run.candidates, front, run.info, picked).marks
    assert marks["pick"].ids == [picked.id]
    assert marks["knee"].ids == [select_candidate(run.candidates, run.info, knee=True).id]
    assert marks["teacher"].column("accuracy") == [0.981]
    # A label on the plot is short.
    expected = {name: text.replace("the student without", "without") for name, text in run.info.baselines.items()}
    assert dict(zip(marks["baseline"].ids, marks["baseline"].labels, strict=True)) == expected


def test_points_without_kernels_on_the_target_are_hollow(run: Run, front: pd.DataFrame) -> None:
    info = replace(run.info, target=TargetInfo("runtime", precisions=Precisions(((8, 8), (32, 32)), (8, 32))))
    data = front_data(run.candidates, front, info)
    marks = data.marks["front"]
    expected = [bool(text) for text in describe_simulation(front, info.target.precisions)]
    assert list(marks.hollow) == expected
    assert any(expected)
    traces = {trace.meta: trace for trace in draw_front(data).data}
    symbols = ["circle-open" if hollow else "circle" for hollow in expected]
    assert list(traces["front"].marker.symbol) == symbols
    # Without a target all are filled, as in earlier versions.
    assert not any(front_data(run.candidates, front, run.info).marks["front"].hollow)


def test_hovers_have_at_most_eight_lines_and_tell_the_knobs(run: Run, front: pd.DataFrame) -> None:
    marks = front_data(run.candidates, front, run.info, select_candidate(run.candidates, run.info)).marks
    hovers = [hover for group in marks.values() for hover in group.hover]
    assert max(hover.count("<br>") for hover in hovers) == 7
    row = front.iloc[-1]
    hover = marks["front"].hover[-1]
    assert f"<b>{row['id']}</b> on the front" in hover
    scores = f"search_val {row['accuracy_search']:.1%}, test {row['accuracy_test']:.1%}"
    assert f"accuracy {row['accuracy']:.1%} ({scores})" in hover
    assert "x fewer effective FLOPs than the teacher" in hover
    assert f"width {row[f'student.{row.student}.width']:.0f}" in hover


def test_hostile_names_are_text_in_hovers_and_labels() -> None:
    run = make_run(8, 6, hostile=True)
    front = pareto_front(full_fidelity(run.candidates), run.info.objectives)
    marks = front_data(run.candidates, front, run.info).marks
    everything = "".join(text for group in marks.values() for text in (*group.hover, *group.labels))
    tags = set(everything.replace("<br>", "").replace("<b>", "").replace("</b>", ""))
    assert "<" not in tags
    assert html.escape(HOSTILE[2], quote=False) in everything
    assert "\u202e" not in everything
    assert "\\u202e" in everything


def test_axes_offer_what_was_measured_the_declared_ones_first(run: Run, front: pd.DataFrame) -> None:
    data = front_data(run.candidates.assign(macs=np.nan).drop(columns="kl"), front, run.info)
    assert [item.name for item in data.costs] == ["effective_flops", "flops", "bops", "parameters", "bytes"]
    assert [item.name for item in data.scores] == ["accuracy", "f1_macro", "agreement", "retention", "loss"]


def test_menus_move_every_trace_to_the_chosen_column(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    data = front_data(run.candidates, front, run.info, picked)
    figure = draw_front(data)
    cost, score, scale = figure.layout.updatemenus
    assert [button.label for button in scale.buttons] == ["logarithmic cost", "linear cost"]
    (button,) = [item for item in cost.buttons if item.name == "bytes"]
    columns = button.args[0]["x"]
    assert len(columns) == len(figure.data)
    for trace, column in zip(figure.data[1:], columns[1:], strict=True):
        assert list(column) == data.marks[trace.meta].column("bytes")
    assert [len(item.args[0]["x"][0]) > 0 for item in cost.buttons] == [True] + [False] * (len(cost.buttons) - 1)
    (loss,) = [item for item in score.buttons if item.name == "loss"]
    assert loss.args[1]["yaxis.autorange"] == "reversed"


def test_the_first_view_is_logarithmic_and_holds_the_whole_front(run: Run, front: pd.DataFrame) -> None:
    figure = front_figure(run.candidates, front, run.info)
    assert figure.layout.xaxis.type == "log"
    low, high = figure.layout.yaxis.range
    assert low < front["accuracy"].min()
    assert high > max(front["accuracy"].max(), 0.981)


def test_a_front_that_reaches_chance_opens_on_the_best_quarter(run: Run, front: pd.DataFrame) -> None:
    cheapest = front["id"].iloc[0]
    table = run.candidates.copy()
    table.loc[table["id"] == cheapest, "accuracy"] = 0.12
    low, high = front_data(table, front, run.info).window
    quarter = 0.981 - (0.981 - 0.1) / 4
    assert low == pytest.approx(quarter, abs=0.02)
    assert high > 0.981


def test_a_minimised_score_hangs_upside_down_so_that_up_is_better(run: Run, front: pd.DataFrame) -> None:
    loss = ObjectiveSpec("loss", "minimize", "nats", "score", (2.3, 0.0))
    info = replace(run.info, objectives=[loss, run.info.objectives[1]])
    front = pareto_front(full_fidelity(run.candidates), info.objectives)
    data = front_data(run.candidates, front, info)
    bottom, top = data.window
    assert bottom > front["loss"].max() > front["loss"].min() > top
    assert [point[1] for point in step_line(data)] == sorted((point[1] for point in step_line(data)), reverse=True)


def test_the_step_line_skips_what_a_third_objective_keeps_on_the_front(run: Run) -> None:
    objectives = [*run.info.objectives, replace(run.info.all_objectives[-1], bounds=(1e7, 1e2))]
    info = replace(run.info, objectives=objectives)
    front = pareto_front(full_fidelity(run.candidates), objectives)
    line = step_line(front_data(run.candidates, front, info))
    assert len(line) < len(front)
    assert line == sorted(line)
    assert [y for _, y in line] == sorted({y for _, y in line})


def test_beyond_the_limit_the_nearest_are_drawn_and_the_front_always(
    run: Run, front: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "MAX_POINTS", 60)
    retained = select_points(run.candidates, front, run.info)
    ids = set(run.candidates.iloc[retained]["id"])
    assert len(retained) == 60
    assert retained == sorted(retained)
    assert ids >= set(front["id"]) | set(run.info.baselines)
    data = front_data(run.candidates, front, run.info)
    assert {name for marks in data.marks.values() for name in marks.ids} == ids | {"teacher"}


def test_an_empty_front_and_a_run_without_teacher_are_drawn(run: Run, front: pd.DataFrame) -> None:
    figure = front_figure(run.candidates, front.head(0), replace(run.info, teacher=TeacherInfo(), baselines={}))
    by_name = {trace.meta: trace for trace in figure.data}
    assert not by_name["front"].x
    assert not by_name["knee"].x
    assert not by_name["teacher"].x
    json.loads(figure.to_json())


def test_hypervolume_counts_the_trials_of_the_search_in_the_order_told() -> None:
    trials = pd.DataFrame(
        {
            "number": [0, 1, 2, 3, 4],
            "role": ["search", "search", "search", "search", "baseline"],
            "elapsed": [5.0, 3.0, 9.0, float("nan"), 10.0],
            "hypervolume": [0.2, 0.1, float("nan"), 0.9, 0.8],
        }
    )
    curve = hypervolume_data(trials)
    assert curve["trial"].tolist() == [1, 2]
    assert curve["seconds"].tolist() == [3.0, 5.0]
    assert curve["hypervolume"].tolist() == [0.1, 0.2]


def test_the_hypervolume_figure_shows_trials_and_seconds(run: Run) -> None:
    left, right = hypervolume_figure(run.trials).data
    curve = hypervolume_data(run.trials)
    assert list(left.x) == curve["trial"].tolist()
    assert list(right.x) == pytest.approx(curve["seconds"].tolist())
    assert list(left.y) == list(right.y) == pytest.approx(curve["hypervolume"].tolist(), abs=1e-6)


def test_no_trials_make_an_empty_hypervolume_figure() -> None:
    assert [len(trace.x) for trace in hypervolume_figure(pd.DataFrame()).data] == [0, 0]


def test_plotly_comes_with_the_package() -> None:
    assert "plotly.js (scatter, bar, parcoords; strict - minified) v" in plotly_source()[:200]


def test_an_axis_has_ticks_however_wide_its_range(run: Run) -> None:
    """With a tick at powers of ten alone, latencies from 0.012 to 0.055 ms had none."""
    latency = ObjectiveSpec("latency_ms", "minimize", "ms", "cost")
    candidates = run.candidates.assign(latency_ms=np.linspace(0.012, 0.055, len(run.candidates)))
    info = replace(run.info, all_objectives=[*run.info.all_objectives, latency])
    front = pareto_front(full_fidelity(candidates), run.info.objectives)
    figure = front_figure(candidates, front, info)
    assert figure.layout.xaxis.dtick is None
    (costs,) = [menu for menu in figure.layout.updatemenus if menu.name == "cost"]
    formats = {button.name: button.args[1]["xaxis.tickformat"] for button in costs.buttons}
    assert formats["effective_flops"] == "~s"
    assert formats["latency_ms"] == "~g"


def test_a_third_objective_is_the_colour_of_candidates(run: Run) -> None:
    size = ObjectiveSpec("bytes", "minimize", "B", "cost", (1e6, 1e2))
    info = replace(run.info, objectives=(*run.info.objectives, size))
    front = pareto_front(full_fidelity(run.candidates), info.objectives, info.limits)
    figure = front_figure(run.candidates, front, info)
    traces = {trace.meta: trace for trace in figure.data}
    # Colours of costs are logarithmic.
    assert list(traces["front"].marker.color) == pytest.approx(np.log10(front["bytes"]), abs=1e-5)
    scale = figure.layout.coloraxis
    assert scale.cmin <= min(traces["front"].marker.color) < max(traces["front"].marker.color) <= scale.cmax
    assert scale.colorbar.title.text == "bytes"
    assert all(text.endswith("B") for text in scale.colorbar.ticktext)
    # Tooltips have the third objective, too.
    assert all(" KB" in text or " B" in text for text in traces["front"].hovertext)
    plain = front_figure(run.candidates, front, run.info)
    assert plain.layout.coloraxis.colorbar.title.text is None
