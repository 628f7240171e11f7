from autocompress.cli.catalogue import LISTINGS
from autocompress.cli.options import Kind


def test_every_kind_has_a_listing_with_rows_of_equal_columns() -> None:
    assert set(LISTINGS) == {kind.value for kind in Kind}
    for list_names in LISTINGS.values():
        rows = list_names()
        assert rows
        assert all(list(row) == list(rows[0]) for row in rows)
