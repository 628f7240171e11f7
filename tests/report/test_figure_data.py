import pandas as pd
import pytest

from autocompress.core.run_info import ObjectiveSpec
from autocompress.report import figure_data
from autocompress.report.figure_data import (
    GROUPS,
    FrontData,
    Marks,
    classify_candidates,
    describe_simulation,
    escape_hidden,
    escape_text,
    hypervolume_data,
    join_methods,
    method_texts,
    rank_rows,
    select_points,
    step_line,
)
from tests.report.factory import OBJECTIVES, Run

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


def test_every_candidate_is_in_exactly_the_group_it_belongs_to(run: Run, front: pd.DataFrame) -> None:
    table = run.candidates
    groups = classify_candidates(table, front, run.info)
    assert set(groups) <= set(GROUPS)
    assert set(table[groups == "front"]["id"]) == set(front["id"])
    assert (table[groups == "baseline"]["role"] == "baseline").all()
    assert (table[groups == "early"]["epochs"] < 27).all()
    assert (table[groups == "infeasible"]["effective_flops"] > 4e6).all()
    dominated = table[groups == "dominated"]
    assert ((dominated["epochs"] == 27) & (dominated["effective_flops"] <= 4e6)).all()
    assert {"front", "baseline", "early", "infeasible", "dominated"} == set(groups)


def test_a_candidate_without_a_finite_objective_is_not_measured(run: Run, front: pd.DataFrame) -> None:
    table = run.candidates.copy()
    victim = table[(table["role"] == "search") & (table["epochs"] == 27)].index[0]
    table.loc[victim, "accuracy"] = float("inf")
    assert classify_candidates(table, front, run.info)[victim] == "unmeasured"


def test_the_front_is_ranked_first_and_every_group_by_score(run: Run, front: pd.DataFrame) -> None:
    groups = classify_candidates(run.candidates, front, run.info)
    order = rank_rows(run.candidates, groups, OBJECTIVES[0], "effective_flops")
    ranked = run.candidates.iloc[order]
    assert sorted(order) == list(range(len(run.candidates)))
    assert set(ranked["id"].head(len(front))) == set(front["id"])
    assert list(dict.fromkeys(groups.iloc[order])) == [name for name in GROUPS if name in set(groups)]
    for _, scores in ranked["accuracy"].groupby(groups.iloc[order].to_numpy(), sort=False):
        assert scores.is_monotonic_decreasing


def table(**columns: list[object]) -> pd.DataFrame:
    names = {"student": "cnn", "distill": "dist + hint", "prune": "none", "quantize": "post_training"}
    return pd.DataFrame({**names, **columns}, index=range(2))


def test_recipes_tell_the_knobs_that_vary() -> None:
    rows = table(**{"student.cnn.width": [16.0, 8.0], "student.cnn.kernel": [3, 3], "distill.hint.weight": [0.5, None]})
    texts = method_texts(rows)
    assert texts["student"] == [[("cnn", ["width 16"])], [("cnn", ["width 8"])]]
    assert join_methods(texts["distill"][0]) == "hint"
    assert join_methods(texts["prune"][0]) == "none"
    assert join_methods(texts["fit"][0]) == "none"
    assert method_texts(rows.head(1), rows)["student"] == [[("cnn", ["width 16"])]]
    assert method_texts(rows.head(1))["distill"] == [[("hint", [])]]


def test_recipes_always_tell_bits_ratio_and_temperature_and_those_first() -> None:
    rows = table(
        **{
            "quantize.post_training.observer": ["minmax", "mse"],
            "quantize.post_training.activation_bits": [8, 8],
            "quantize.post_training.weight_bits": [4, 4],
            "distill.dist.temperature": [4.56789, 4.56789],
            "distill.hint.weight": [0.5, 0.25],
        }
    )
    assert (
        join_methods(method_texts(rows)["quantize"][1])
        == "post_training (4-bit weights, 8-bit activations, observer mse)"
    )
    assert join_methods(method_texts(rows)["distill"][0]) == "dist (temperature 4.57) + hint (weight 0.5)"


@pytest.mark.parametrize(
    ("weight", "activation", "quantizer", "layers", "expected"),
    [
        (8, 8, "linear_symmetric", [], ""),
        (32, 8, "linear_asymmetric", [], ""),
        (4, 8, "linear_symmetric", [], "4-bit weights"),
        (3, 6, "linear_symmetric", [], "3-bit weights, 6-bit activations"),
        (8, 8, "power_of_two", [], "power_of_two quantizer"),
        (3, 8, "linear", [{"weight_bits": 4, "activation_bits": 8}], "4-bit weights"),
        (8, 8, "linear", [{"weight_bits": 8}, {"weight_bits": 5}, {"weight_bits": 5}, {}], "5-bit weights"),
        (float("nan"), float("nan"), None, None, ""),
    ],
)
def test_only_what_has_no_native_kernel_is_simulated(weight, activation, quantizer, layers, expected) -> None:
    table = pd.DataFrame(
        {
            "quantize.post_training.weight_bits": [weight],
            "quantize.post_training.activation_bits": [activation],
            "quantize.post_training.quantizer": [quantizer],
            "details": [{"layers": layers}],
        }
    )
    assert describe_simulation(table) == [expected]


def test_details_may_be_absent_or_empty() -> None:
    assert describe_simulation(pd.DataFrame({"details": [{}, None, float("nan")]})) == ["", "", ""]
    assert describe_simulation(pd.DataFrame({"id": ["a"]})) == [""]


def test_hidden_characters_are_spelled_out() -> None:
    assert escape_hidden("a\u202egpj.exe\x00\u200b") == "a\\u202egpj.exe\\u0000\\u200b"
    assert escape_hidden("plain – text\n\tßé漢") == "plain – text\n\tßé漢"
    assert escape_hidden("\ud800") == "\\ud800"
