"""What the page shows of single candidates."""

import json
import shlex
from dataclasses import replace

import pandas as pd
import yaml

from autocompress.analysis.selection import select_candidate
from autocompress.core.run_info import TeacherInfo
from autocompress.report.cards import (
    MAX_ROWS,
    as_yaml,
    build_cards,
    card_data,
    export_command,
    format_order,
    pick_card,
    report_tables,
    table_columns,
    table_rows,
)
from autocompress.report.figure_data import classify_candidates
from tests.report.factory import HOSTILE, Run


def test_the_picks_card_tells_why_what_and_at_which_cost(run: Run) -> None:
    picked = select_candidate(run.candidates, run.info)
    card = pick_card(run.candidates, run.trials, run.info, picked)
    assert card["reason"] == picked.reason
    name, value, note = card["tiles"][0]
    goal = run.info.teacher.score("accuracy", "test")
    assert (name, value) == ("accuracy on test", f"{picked.row['accuracy_test']:.1%}")
    assert note == f"teacher {goal:.1%}"
    assert [tile[0] for tile in card["tiles"]] == ["accuracy on test", "effective FLOPs", "bytes", "parameters"]
    untested = replace(picked, row={**picked.row, "accuracy_test": float("nan")})
    (name, value, note), *_ = pick_card(run.candidates, run.trials, run.info, untested)["tiles"]
    assert (name, value, note) == ("accuracy on select_val", f"{picked.row['accuracy']:.1%}", "teacher 98.1%")
    assert card["tiles"][1][2].endswith("x fewer than the teacher")
    assert [item["id"] for item in card["neighbours"]] == [item.id for item in picked.neighbours]


def test_a_teacher_without_costs_leaves_the_comparison_out(run: Run) -> None:
    picked = select_candidate(run.candidates, run.info)
    card = pick_card(run.candidates, run.trials, replace(run.info, teacher=TeacherInfo()), picked)
    assert [tile[2] for tile in card["tiles"]] == ["teacher –", "", "", ""]


def test_cards_hold_config_scores_classes_layers_and_curve(run: Run) -> None:
    table = run.candidates[run.candidates["details"].map(bool)].head(3)
    for card, (_, row) in zip(build_cards(table, run.candidates, run.trials, run.info), table.iterrows(), strict=True):
        assert card["id"] == row["id"]
        assert yaml.safe_load(card["yaml"])["student"] == json.loads(row["config"])["student"]
        assert len(card["classes"]["label"]) == 10
        assert [line["split"] for line in card["scores"]] == ["search_val", "select_val", "test"]
        assert card["measured"][0][1] == f"{row['accuracy']:.1%}"
        assert [point[0] for point in card["curve"]] == list(range(1, row["epochs"] + 1))


def test_a_card_shows_each_head_of_several(run: Run) -> None:
    heads = {"accuracy@language": 0.91, "accuracy@kind": 0.72}
    tests = {"accuracy@language_test": 0.9, "accuracy@kind_test": 0.7, "accuracy_worst": 0.72}
    table = run.candidates.head(1).assign(**heads, **tests)
    scores = [replace(run.info.objectives[0], name=name) for name in (*heads, "accuracy_worst")]
    info = replace(run.info, all_objectives=[*run.info.all_objectives, *scores])
    measured = build_cards(table, table, run.trials, info)[0]["measured"]
    assert ("accuracy (language)", "91.0%", "90.0%") in measured
    assert ("accuracy (kind)", "72.0%", "70.0%") in measured
    assert any(line[:2] == ("accuracy (worst head)", "72.0%") for line in measured)


def test_details_and_curves_may_be_absent(run: Run) -> None:
    table = run.candidates.head(2).assign(details=[float("nan"), None], config=None)
    for card in build_cards(table, run.candidates, pd.DataFrame(), run.info):
        assert (card["classes"], card["layers"], card["curve"], card["yaml"]) == ({}, [], [], "")


def test_zeros_that_no_runtime_exploits_are_told(run: Run) -> None:
    table = run.candidates.head(1)
    assert (
        build_cards(table.assign(prune="unstructured"), run.candidates, run.trials, run.info)[0]["sparse"]
        == "unstructured"
    )
    assert build_cards(table.assign(prune="structured"), run.candidates, run.trials, run.info)[0]["sparse"] == ""


def test_rows_have_a_cell_for_every_column(run: Run, front: pd.DataFrame) -> None:
    groups = classify_candidates(run.candidates, front, run.info)
    rows = table_rows(run.candidates, groups, run.info, {"t0c0": "pick"})
    columns = table_columns(run.candidates, run.info)
    assert [row["id"] for row in rows] == run.candidates["id"].tolist()
    assert {1 + len(row["cells"]) + len(row["recipe"]) for row in rows} == {len(columns)}
    assert [column["name"] for column in columns[:3]] == ["id", "accuracy", "accuracy_test"]
    assert next(row for row in rows if row["id"] == "t0c0")["mark"] == "pick"


def test_a_missing_value_is_a_dash(run: Run, front: pd.DataFrame) -> None:
    table = run.candidates.assign(bytes=float("nan"))
    rows = table_rows(table, classify_candidates(table, front, run.info), run.info, {})
    # After the scores on select_val and test, and the first cost.
    assert {row["cells"][3] for row in rows} == {"–"}


def test_the_parts_of_configurations_are_stored_once_and_make_them_up(run: Run) -> None:
    configs = [*run.candidates["config"][:-2], "{broken", float("nan")]
    data = card_data(run.candidates.assign(config=configs), run.info, str)
    texts = ["\n".join(data["parts"][number] for number in numbers) for numbers in data["configs"]]
    assert texts == [as_yaml(config) for config in configs]
    assert len(set(data["parts"])) == len(data["parts"]) < len(configs)


def test_yaml_reads_back_and_damage_is_shown_as_it_is() -> None:
    config = {"student": {"cnn": {"width": 8, "norm": "batch"}}, "distill": {}, "prune": None, "seed": 0}
    assert yaml.safe_load(as_yaml(json.dumps(config))) == {**config, "prune": "none"}
    assert as_yaml("{broken") == "{broken"
    assert as_yaml(float("nan")) == ""


def test_a_hostile_run_name_cannot_break_out_of_the_command() -> None:
    command = export_command(f"reports/{HOSTILE[1]}; rm -rf .", "t0c0")
    assert shlex.split(command)[2] == f"reports/{HOSTILE[1]}; rm -rf ."
    assert export_command("reports/digits", "t12c7") == (
        "autocompress export reports/digits --candidate t12c7 --to onnx --verify"
    )
    assert export_command("reports/digits", "t12c7", ["/home/me/my task.py"]).endswith("--plugin '/home/me/my task.py'")


PATH = [{"pruning_ratio": 0.0, "score": 0.91234, "kept": True}, {"pruning_ratio": 0.15, "score": None, "kept": False}]


def test_the_order_is_one_line() -> None:
    assert format_order({"order": ["train 3 epochs", "prune (depth)", "tune 2 epochs"]}) == (
        "train 3 epochs → prune (depth) → tune 2 epochs"
    )
    assert format_order({}) == format_order({"order": 3}) == ""


def test_a_path_becomes_a_table_of_texts() -> None:
    (result,) = report_tables({"prune": {"path": PATH}})
    assert result["title"] == "Path, step by step (pruning)"
    assert result["columns"] == ["pruning ratio", "score", "kept"]
    assert result["rows"] == [["0", "0.9123", "yes"], ["0.15", "–", "no"]]
    assert result["hidden"] == 0


def test_every_section_that_reports_has_its_own() -> None:
    titles = [result["title"] for result in report_tables({"start": {"adaptive": {"sensitivity": PATH}}, "path": PATH})]
    assert titles == ["Sensitivity of each layer (pruning of the teacher)", "Path, step by step (quantization)"]


def test_long_tables_are_cut_and_nested_columns_left_out() -> None:
    (result,) = report_tables({"sensitivity": [{"layer": f"l{n}", "drops": {"a": 1}} for n in range(MAX_ROWS + 5)]})
    assert result["columns"] == ["layer"]
    assert len(result["rows"]) == MAX_ROWS
    assert result["hidden"] == 5


def test_other_forms_are_ignored() -> None:
    assert report_tables({"path": "x", "sensitivity": [1, 2], "prune": 3, "start": [4]}) == []
