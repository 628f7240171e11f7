"""The still pictures: pixels are where the values are, labels do not cover each other."""

import re

import pandas as pd
import pytest

from autocompress.analysis.selection import select_candidate
from autocompress.report.figure_data import front_data
from autocompress.report.static_figure import Frame, front_picture, interval_picture, place_labels, sparkline
from autocompress.report.uncertainty import pick_confidence
from tests.report.factory import HOSTILE, Run, make_run

FRAME = Frame((900.0, 400.0), (50.0, 50.0, 0.0, 0.0), (1e2, 1e6), (0.5, 1.0))


def test_a_frame_maps_logarithms_of_cost_and_flips_the_score() -> None:
    assert FRAME.pixel(1e2, 1.0) == (50.0, 0.0)
    assert FRAME.pixel(1e6, 0.5) == (850.0, 400.0)
    assert FRAME.pixel(1e4, 0.75) == (450.0, 200.0)


@pytest.mark.parametrize("point", [(None, 0.7), (1e3, None), (0.0, 0.7), (-1.0, 0.7), (1e3, 0.49), (1e3, 1.01)])
def test_what_cannot_be_drawn_has_no_pixel(point: tuple[float | None, float | None]) -> None:
    assert FRAME.pixel(*point) is None


def test_labels_of_neighbours_stand_apart() -> None:
    places = place_labels([(400.0, 200.0), (404.0, 200.0), (408.0, 200.0)], ["a long label"] * 3, [], FRAME)
    assert len(set(places)) == 3


def test_a_label_at_the_edge_stays_inside() -> None:
    assert place_labels([(895.0, 200.0)], ["a label of some length"], [], FRAME)[0].endswith("left")


def test_the_picture_holds_every_front_point_as_a_dot(run: Run, front: pd.DataFrame) -> None:
    picked = select_candidate(run.candidates, run.info)
    picture = front_picture(front_data(run.candidates, front, run.info, picked))
    assert picture["clouds"]["front"].count("M") == len(front)
    assert picture["line"].count("H") == front["accuracy"].nunique() - 1
    texts = {mark["text"] for mark in picture["marks"]}
    assert "the student without distillation" in run.info.baselines.values()
    assert {f"pick {picked.id}", "teacher", "int8 only", "without distillation"} <= texts
    left, top, right, bottom = picture["box"]
    for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", picture["clouds"]["dominated"]):
        assert left <= float(x) <= right
        assert top <= float(y) <= bottom


def test_ticks_do_not_repeat_a_label(run: Run, front: pd.DataFrame) -> None:
    picture = front_picture(front_data(run.candidates, front, run.info))
    for ticks in (picture["xticks"], picture["yticks"]):
        labels = [text for _, text in ticks]
        assert len(labels) >= 3
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("cost", [5e-324, 1.5e308])
def test_a_cost_at_the_end_of_floats_is_drawn(run: Run, front: pd.DataFrame, cost: float) -> None:
    name = front_data(run.candidates, front, run.info).costs[0].name
    table = run.candidates.assign(
        **{name: run.candidates[name].where(run.candidates["id"] != front["id"].iloc[0], cost)}
    )
    picture = front_picture(front_data(table, table[table["id"].isin(front["id"])], run.info))
    assert len(picture["xticks"]) > 3


def test_labels_are_plain_text_that_the_template_escapes() -> None:
    run = make_run(6, 4, hostile=True)
    picture = front_picture(front_data(run.candidates, run.candidates.head(0), run.info))
    assert HOSTILE[2] in {mark["text"] for mark in picture["marks"]}


def test_intervals_are_drawn_to_scale(run: Run, front: pd.DataFrame) -> None:
    summary = interval_picture(pick_confidence(front, run.info, select_candidate(run.candidates, run.info)))
    assert summary is not None
    for row in summary["rows"]:
        assert row["from"] < row["x"] < row["to"]
    shares = [(row["share"], row["x"]) for row in summary["rows"]]
    assert [x for _, x in sorted(shares)] == sorted(x for _, x in shares)
    assert interval_picture(None) is None


def test_a_sparkline_spans_its_box_and_needs_two_points() -> None:
    line = sparkline([(1, 2.0), (2, 1.0), (3, 0.5)], 100.0, 50.0)
    assert line is not None
    assert line["path"] == "M4 4L50 32L96 46"
    assert (line["first"], line["last"], line["to"]) == (2.0, 0.5, 3.0)
    assert sparkline([(1, 2.0)], 100.0, 50.0) is None
    flat = sparkline([(1, 2.0), (2, 2.0)], 100.0, 50.0)
    assert flat is not None
    assert flat["path"] == "M4 46L96 46"
