from autocompress.report.recipe_view import MAX_ROWS, format_order, report_tables

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
