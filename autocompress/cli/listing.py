"""The rows of ``autocompress list``, kept in the cache: reading them from the code takes seconds and imports torch."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

import autocompress
from autocompress.cli.terminal import make_console, print_text
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


def listing_table(rows: Sequence[Mapping[str, str]], width: int | None = None) -> Table:
    """Return rows as a table for the terminal, in which every word stays whole if the width suffices.

    Args:
        rows: Rows of the listing, each column name to text.
        width: Cells of the terminal. Where the words do not fit, hyperparameters stand below ``section.method``.
    """
    names = list(rows[0]) if rows else []
    # Rows of hyperparameters follow their method and do not repeat its name.
    cells = [
        ["" if row.get("hyperparameter") and name in _LEADING_COLUMNS else value for name, value in row.items()]
        for row in rows
    ]
    if width is not None and "hyperparameter" in names and sum(_word_widths(names, cells)) + _gaps(names) > width:
        names = names[len(_LEADING_COLUMNS) :]
        cells = [_merge_leading(row) for row in cells]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, cell_width in zip(names, _share_width(names, cells, width), strict=True):
        # A name that is wider than its column goes on in the next line, and is not cut off.
        table.add_column(name, overflow="fold", width=cell_width)
    for row in cells:
        table.add_row(*map(escape, row))
    return table


def print_listing(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows as a table that fits the terminal; in a pipe, each row is one line without blanks at its end."""
    console = make_console()
    if console.is_terminal:
        console.print(listing_table(rows, console.width))
        return
    with console.capture() as captured:
        console.print(listing_table(rows))
    print_text("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _gaps(names: Sequence[str]) -> int:
    return 2 * (len(names) - 1)


def _share_width(names: Sequence[str], cells: Sequence[Sequence[str]], width: int | None) -> list[int | None]:
    """Return the width of each column: that of its longest word and a share of what is left; None leaves it to rich."""
    least, whole = _word_widths(names, cells), _word_widths(names, cells, are_whole=True)
    left = 0 if width is None else width - _gaps(names) - sum(least)
    wanted = sum(whole) - sum(least)
    if width is None or left < 0 or wanted <= left:
        return [None] * len(names)
    return [low + left * (high - low) // wanted for low, high in zip(least, whole, strict=True)]


def _word_widths(names: Sequence[str], cells: Sequence[Sequence[str]], *, are_whole: bool = False) -> list[int]:
    """Return the width of the longest word of each column, or of its longest text; first columns hold whole texts."""
    columns = zip(*cells, strict=True) if cells else [()] * len(names)
    return [
        max(
            cell_len(word)
            for text in (name, *column)
            for word in ([text] if are_whole or not number else text.split() or [""])
        )
        for number, (name, column) in enumerate(zip(names, columns, strict=True))
    ]


def _merge_leading(row: Sequence[str]) -> list[str]:
    section, method, hyperparameter, *rest = row
    return [f"  {hyperparameter}" if hyperparameter else f"{section}.{method}", *rest]


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
