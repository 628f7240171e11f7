"""Parts of configs, which a store holds once: the rows of trials and candidates refer to them by number.

Most candidates of a run share their training settings, and all those of a recipe share its settings. Written out in
every row, configs were nine tenths of a store.
"""

import hashlib
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.untrusted import parse_json

#: JSON form of a section of a config: ``{name: {setting: value}}``.
Section: TypeAlias = Mapping[str, Any]

SECTIONS = ("student", "distill", "fit", "prune", "quantize")
# Characters of configs that one read may write out, besides so many for each byte of the file. Configs of a run take
# less than its file does; a part of a megabyte to which a million rows refer would not fit into memory.
LARGEST_EXPANSION, EXPANSION_RATIO = 2**26, 20
# Parts whose numbers a writer remembers, the last used ones. One that comes back later is stored once more.
REMEMBERED = 1024


def dump_compact(value: object) -> str:
    """Return JSON text without spaces.

    Example:
        >>> dump_compact({"a": [1, None]})
        '{"a":[1,null]}'
    """
    return json.dumps(value, separators=(",", ":"))


class PartTable:
    """The table ``ac_parts`` of an open store.

    Rows of earlier formats have the sections themselves where later ones have numbers; both are read.

    Args:
        connection: The store.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # By a digest of the text, which takes a fraction of the memory. Read when the first part is written.
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._next_number = 0
        self._unwritten: dict[int, str] = {}
        # Size and JSON form of the parts that were read.
        self._sections: dict[int, tuple[int, Section]] = {}
        self._expanded = 0

    # -- writing ------------------------------------------------------------------------------

    def shorten_config(self, config: CompressionConfig) -> str:
        """Return the JSON text of a config with numbers in the place of its sections."""
        data = config.to_json()
        return dump_compact({**data, **{name: self._shorten(data[name]) for name in SECTIONS}})

    def shorten_part(self, part: Part | None) -> int | None:
        """Return the number of a part; ``None`` for none."""
        return self._shorten(None if part is None else part.to_json())

    def write_new_parts(self) -> None:
        """Insert the parts to which no stored row refers yet; called at the end of each transaction."""
        self._connection.executemany("INSERT INTO ac_parts (number, part) VALUES (?, ?)", [*self._unwritten.items()])

    def forget_new_parts(self) -> None:
        """Note that the transaction of :meth:`write_new_parts` was committed."""
        self._unwritten.clear()

    def _shorten(self, section: Section | None) -> int | None:
        if section is None:
            return None
        if not self._next_number:
            self._read_numbers()
        text = dump_compact(section)
        digest = _compute_digest(text)
        number = self._numbers.pop(digest, None)
        if number is None:
            number = self._next_number
            self._next_number += 1
            self._unwritten[number] = text
        self._remember(digest, number)
        return number

    def _remember(self, digest: bytes, number: int) -> None:
        self._numbers[digest] = number
        if len(self._numbers) > REMEMBERED:
            self._numbers.popitem(last=False)

    def _read_numbers(self) -> None:
        self._next_number = 1
        for number, text in self._connection.execute("SELECT number, part FROM ac_parts ORDER BY number"):
            self._remember(_compute_digest(text), number)
            self._next_number = max(self._next_number, number + 1)

    # -- reading ------------------------------------------------------------------------------

    def begin_read(self) -> None:
        """Begin to count what one read of a table writes out."""
        self._expanded = 0

    def expand_config(self, text: str) -> dict[str, Any]:
        """Return the JSON form of a config from the text of a row.

        Raises:
            KeyError: There is no such part.
            ValueError: The configs of a read take far more memory than the file.
        """
        data: dict[str, Any] = parse_json(text)
        return {**data, **{name: self.expand_section(data[name]) for name in SECTIONS}}

    def expand_section(self, value: int | Section | None) -> Section | None:
        """Return a section from its number; a section of an earlier format, or none, as it is.

        Raises:
            KeyError: There is no such part.
            ValueError: The configs of a read take far more memory than the file.
        """
        if value is None or isinstance(value, Mapping):
            return value
        size, section = self._sections.get(value) or self._read_section(value)
        self._expanded += size
        if self._expanded > LARGEST_EXPANSION and self._expanded > LARGEST_EXPANSION + EXPANSION_RATIO * self._bytes:
            raise ValueError(f"its configs have more than {self._expanded:,} characters, far more than the file")
        return section

    @property
    def _bytes(self) -> int:
        """Size of the store in bytes."""
        (count,) = self._connection.execute("PRAGMA page_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int(count * size)

    def _read_section(self, number: int) -> tuple[int, Section]:
        row = self._connection.execute("SELECT part FROM ac_parts WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(f"part {number}")
        self._sections[number] = len(row[0]), parse_json(row[0])
        return self._sections[number]


def _compute_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
