import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from autocompress.core.config import CompressionConfig, Part
from autocompress.store import parts as module
from autocompress.store.parts import PartTable
from autocompress.store.schema import SCHEMA, seal_of

CONFIG = CompressionConfig(
    Part.of("cnn", width=8), (Part.of("soft_target", temperature=4.0),), Part("adamw"), quantize=Part("q"), seed=1
)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.create_function("seal_of", -1, seal_of, deterministic=True)
        connection.executescript(SCHEMA)
        yield connection


def test_equal_parts_are_stored_once_also_after_the_store_was_opened_again(connection: sqlite3.Connection) -> None:
    first = PartTable(connection)
    text = first.shorten_config(CONFIG)
    assert text == '{"student":1,"distill":2,"fit":3,"prune":null,"quantize":4,"seed":1}'
    first.write_new_parts()
    second = PartTable(connection)
    assert second.shorten_config(CONFIG) == text
    assert second.shorten_part(Part.of("cnn", width=8)) == 1
    # 1, 1.0 and True are equal in Python, but not in a config.
    numbers = [second.shorten_part(Part.of("q", bits=bits)) for bits in (1, 1.0, True)]
    assert numbers == [5, 6, 7]
    second.write_new_parts()
    assert connection.execute("SELECT count(*) FROM ac_parts").fetchone() == (7,)
    assert CompressionConfig.from_json(PartTable(connection).expand_config(text)) == CONFIG


def test_parts_of_a_transaction_that_failed_are_written_with_the_next(connection: sqlite3.Connection) -> None:
    parts = PartTable(connection)
    for ending in ("ROLLBACK", "COMMIT"):
        connection.execute("BEGIN")
        number = parts.shorten_part(Part("q"))
        parts.write_new_parts()
        connection.execute(ending)
        if ending == "COMMIT":
            parts.forget_new_parts()
    assert PartTable(connection).expand_section(number) == {"q": {}}
    parts.write_new_parts()


def test_a_writer_remembers_the_parts_that_it_used_last(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    parts = PartTable(connection)
    numbers = [parts.shorten_part(Part(name)) for name in "abacab"]
    assert numbers == [1, 2, 1, 3, 1, 4]
    parts.write_new_parts()
    assert parts.expand_section(2) == parts.expand_section(4) == {"b": {}}


def test_sections_of_earlier_formats_are_read_as_they_are(connection: sqlite3.Connection) -> None:
    parts = PartTable(connection)
    assert parts.expand_section({"q": {"bits": 4}}) == {"q": {"bits": 4}}
    assert parts.expand_section(None) is None
    with pytest.raises(KeyError, match="part 7"):
        parts.expand_section(7)


def test_one_read_writes_out_no_more_than_the_file_explains(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_EXPANSION", 5_000)
    parts = PartTable(connection)
    number = parts.shorten_part(Part.of("q", name="x" * 100_000))
    parts.write_new_parts()
    for _ in range(2):
        parts.begin_read()
        with pytest.raises(ValueError, match="far more than the file"):
            _ = [parts.expand_section(number) for _ in range(200)]
