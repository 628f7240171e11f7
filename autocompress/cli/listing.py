"""The rows of ``autocompress list``, kept in the cache: reading them from the code takes seconds and imports torch."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.table import Table

import autocompress
from autocompress.core.atomic import open_cache, write_atomic
from autocompress.core.config import fingerprint
from autocompress.core.untrusted import read_regular_file
from autocompress.errors import StorageError

logger = logging.getLogger(__name__)

#: Kind of listing to its rows, each column name to text.
Listings = dict[str, list[dict[str, str]]]
_LISTINGS = TypeAdapter(Listings)
CACHE = "catalogue"
_LEADING_COLUMNS = ("section", "method")


def read_listing(kind: str) -> list[dict[str, str]]:
    """Return the rows of one kind; the first call after a change of the package or its plugins imports all parts.

    Args:
        kind: Key of :data:`autocompress.cli.catalogue.LISTINGS`.
    """
    try:
        path = open_cache(CACHE) / f"{fingerprint(list(_list_sources()))}.json"
    except StorageError as error:
        logger.info("%s", error)
        return _make_listings()[kind]
    try:
        # Anything odd in the file is a reason to make it again.
        return _LISTINGS.validate_json(read_regular_file(path))[kind]
    except (OSError, KeyError, ValidationError):
        listings = _make_listings()
    try:
        for other in path.parent.glob("*.json"):
            other.unlink(missing_ok=True)
        write_atomic(path, _LISTINGS.dump_json(listings))
    except (OSError, StorageError) as error:
        logger.info("the listing is not cached: %s", error)
    return listings[kind]


def listing_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return rows as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        # A name that is wider than its column goes on in the next line, and is not cut off.
        table.add_column(name, overflow="fold")
    for row in rows:
        # Rows of hyperparameters follow their method and do not repeat its name.
        cells = ("" if row.get("hyperparameter") and name in _LEADING_COLUMNS else value for name, value in row.items())
        table.add_row(*cells)
    return table


def _make_listings() -> Listings:
    # Imports every part of the package.
    from autocompress.cli.catalogue import LISTINGS

    return {kind: make_rows() for kind, make_rows in LISTINGS.items()}


def _list_sources() -> Iterator[tuple[str | int, ...]]:
    """Yield what the rows depend on: files of the package and its search spaces, and plugins of other packages."""
    package = Path(autocompress.__file__).parent
    files = [*package.rglob("*.py"), *package.rglob("*.yaml"), *(package.parent / "search_spaces").glob("*.yaml")]
    for path in sorted(files):
        status = path.stat()
        yield str(path), status.st_size, status.st_mtime_ns
    points = entry_points()
    for group in sorted(name for name in points.groups if name.startswith("autocompress.")):
        for entry in sorted(points.select(group=group), key=lambda entry: entry.name):
            yield group, entry.name, entry.value, "" if entry.dist is None else entry.dist.version
