import pandas as pd
import pytest

from autocompress.core.run_info import ObjectiveSpec
from autocompress.report import figure_data
from autocompress.report.figure_data import FrontData, Marks, escape_text, hypervolume_data, select_points, step_line
from tests.report.factory import Run

COST = ObjectiveSpec("bytes", "minimize", kind="cost")


@pytest.mark.parametrize(
    ("direction", "expected"),
    [("maximize", [(1.0, 0.5), (3.0, 0.9)]), ("minimize", [(1.0, 0.5), (2.0, 0.4)])],
)
def test_the_step_line_skips_points_dominated_on_its_axes(direction: str, expected: list[tuple[float, float]]) -> None:
    score = ObjectiveSpec("score", "maximize" if direction == "maximize" else "minimize")
    marks = Marks("abcd", {"bytes": [3.0, 1.0, 2.0, None], "score": [0.9, 0.5, 0.4, 1.0]})
    assert step_line(FrontData({"front": marks}, [COST], [score], (0.0, 1.0))) == expected


def test_a_group_without_points_has_empty_columns_and_names_are_escaped() -> None:
    assert Marks().column("bytes") == []
    assert escape_text("<b>&'") == "&lt;b&gt;&amp;'"


def test_the_hypervolume_counts_trials_without_one() -> None:
    trials = pd.DataFrame({"elapsed": [3.0, 1.0, 2.0], "hypervolume": [0.5, 0.2, None]})
    assert hypervolume_data(trials).to_numpy().tolist() == [[1, 1.0, 0.2], [3, 3.0, 0.5]]
    assert hypervolume_data(trials[["elapsed"]]).empty


def test_the_front_stays_when_points_are_left_out(
    run: Run, front: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = set(front["id"]) | set(run.candidates.loc[run.candidates["role"] != "search", "id"])
    monkeypatch.setattr(figure_data, "MAX_POINTS", len(always) + 1)
    rows = select_points(run.candidates, front, run.info)
    assert len(rows) == len(always) + 1
    assert always <= set(run.candidates["id"].iloc[rows])
