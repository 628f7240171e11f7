from rich.console import Console

from autocompress.cli.catalogue import LISTINGS, list_methods, listing_table
from autocompress.cli.options import Kind


def test_every_kind_has_a_listing_with_rows_of_equal_columns() -> None:
    assert set(LISTINGS) == {kind.value for kind in Kind}
    for list_names in LISTINGS.values():
        rows = list_names()
        assert rows
        assert all(list(row) == list(rows[0]) for row in rows)


def test_rows_of_hyperparameters_do_not_repeat_their_method() -> None:
    rows = [row for row in list_methods() if row["method"] == "soft_target"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(listing_table(rows))
    assert capture.get().count("soft_target") == 1
    assert {row["hyperparameter"] for row in rows} >= {"", "temperature", "alpha"}
