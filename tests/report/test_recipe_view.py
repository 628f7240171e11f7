from autocompress.report.recipe_view import ROWS, order, tables

PATH = [{"pruning_ratio": 0.0, "score": 0.91234, "kept": True}, {"pruning_ratio": 0.15, "score": None, "kept": False}]


def test_the_order_is_one_line() -> None:
    assert order({"order": ["train 3 epochs", "prune (depth)", "tune 2 epochs"]}) == (
        "train 3 epochs → prune (depth) → tune 2 epochs"
    )
    assert order({}) == order({"order": 3}) == ""


def test_a_path_becomes_a_table_of_texts() -> None:
    (found,) = tables({"prune": {"path": PATH}})
    assert found["title"] == "Path, step by step (pruning)"
    assert found["columns"] == ["pruning ratio", "score", "kept"]
    assert found["rows"] == [["0", "0.9123", "yes"], ["0.15", "–", "no"]]
    assert found["hidden"] == 0


def test_every_section_that_reports_has_its_own() -> None:
    titles = [found["title"] for found in tables({"start": {"adaptive": {"sensitivity": PATH}}, "path": PATH})]
    assert titles == ["Sensitivity of each layer (cut of the teacher)", "Path, step by step (quantization)"]


def test_long_tables_are_cut_and_nested_columns_left_out() -> None:
    (found,) = tables({"sensitivity": [{"layer": f"l{n}", "drops": {"a": 1}} for n in range(ROWS + 5)]})
    assert found["columns"] == ["layer"]
    assert len(found["rows"]) == ROWS
    assert found["hidden"] == 5


def test_other_forms_are_ignored() -> None:
    assert tables({"path": "x", "sensitivity": [1, 2], "prune": 3, "start": [4]}) == []
