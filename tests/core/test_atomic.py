import ast
import errno
import fcntl
import os
from pathlib import Path

import pytest

import autocompress
from autocompress.core.atomic import (
    cache_folder,
    compute_file_sha256,
    compute_sha256,
    create_temporary_folder,
    make_lock,
    open_cache,
    require_writable,
    storage_errors,
    write_atomic,
)
from autocompress.errors import StorageError


def test_a_file_is_replaced_whole_and_nothing_lies_about(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=r"deep cannot be written \(Read-only file system\)"):
        require_writable(tmp_path / "new" / "deep")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose another folder"), storage_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_folder_or_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "report.html", tmp_path / "file" / "report.html", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match="cannot be written"):
            write_atomic(path, "page")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "report.html"]


def test_the_cache_lies_where_the_environment_says_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AUTOCOMPRESS_CACHE")
    assert cache_folder().name == "autocompress"


def test_a_folder_of_the_cache_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "deep" / "cache"))
    folder = open_cache("teachers")
    assert folder == tmp_path / "deep" / "cache" / "teachers"
    assert folder.stat().st_mode & 0o777 == 0o700
    # Earlier versions created it with the permissions of any folder.
    folder.chmod(0o755)
    assert open_cache("teachers").stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o707, 0o777):
        folder.chmod(mode)
        with pytest.raises(StorageError, match="other users may write to"):
            open_cache("teachers")
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(StorageError, match="belongs to another user"):
        open_cache("teachers")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_of_the_cache_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    (tmp_path / "other").mkdir()
    if kind == "file":
        (tmp_path / "teachers").touch()
    else:
        (tmp_path / "teachers").symlink_to(tmp_path / "other")
    with pytest.raises(StorageError, match=r"is no folder|is a link"):
        open_cache("teachers")


def test_a_file_has_the_digest_of_its_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert compute_file_sha256(tmp_path / "file") == compute_sha256(content)


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "1")
        folder = create_temporary_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == file_mode
    assert folder.stat().st_mode & 0o777 == folder_mode


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"has no locks \(.+\), so two processes could write"):
        make_lock(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_held_does_not_keep_another_from_being_made(tmp_path: Path) -> None:
    first, second = make_lock(tmp_path / ".lock"), make_lock(tmp_path / ".lock")
    with first:
        assert first.is_locked
        assert not second.is_locked
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_no_duration_is_measured_with_a_clock_that_may_jump() -> None:
    # MLflow wants the time of day of a run.
    allowed = {"export/mlflow_export.py"}
    package, users = Path(autocompress.__file__).parent, set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "time.time",
                "datetime.now",
                "datetime.utcnow",
            ):
                users.add(path.relative_to(package).as_posix())
    assert users == allowed
