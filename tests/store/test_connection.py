import os
from pathlib import Path

import pytest

from autocompress.errors import RunFolderError, StorageError
from autocompress.store.connection import DATABASE, acquire_lock, existing_run_error, open_database, require_run
from autocompress.store.schema import seal_of


def test_a_database_is_durable_and_computes_seals(tmp_path: Path) -> None:
    connection = open_database(tmp_path / DATABASE)
    try:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("SELECT seal_of('a', 1)").fetchone() == (seal_of("a", 1),)
    finally:
        connection.close()


def test_files_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        open_database(tmp_path / "missing" / DATABASE)
    (tmp_path / DATABASE).write_bytes(b"plain text " * 200)
    with pytest.raises(RunFolderError, match="is not a study"):
        open_database(tmp_path / DATABASE)


def test_a_folder_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        require_run(tmp_path / "missing")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        require_run(tmp_path)
    (tmp_path / DATABASE).touch()
    require_run(tmp_path)
    assert "--resume" in str(existing_run_error(tmp_path))


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path)
    assert (tmp_path / ".driver").read_text() == str(os.getpid())
    with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        acquire_lock(tmp_path)
    lock.release()
    acquire_lock(tmp_path).release()
