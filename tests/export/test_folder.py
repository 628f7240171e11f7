import json
import os
from pathlib import Path

import pytest

from autocompress.errors import ArtifactError, StorageError
from autocompress.export.folder import MANIFEST, REQUIRED, read_files, write_files

# The first bytes of a safetensors file are the size of its header.
FILES = {name: f"content of {name}".encode() * 3 for name in REQUIRED} | {"model.safetensors": bytes(60)}
NEWER = dict.fromkeys(REQUIRED, b"newer") | {"model.safetensors": bytes(9)}


def accept(_: Path) -> None:
    return None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path / "t1c2", FILES, accept)
    return tmp_path / "t1c2"


def test_files_come_back_and_nothing_else_is_left(folder: Path) -> None:
    assert read_files(folder) == FILES
    assert sorted(path.name for path in folder.iterdir()) == sorted([*REQUIRED, MANIFEST])
    assert [path.name for path in folder.parent.iterdir()] == ["t1c2"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_one_more_file_is_allowed_where_it_is_known(tmp_path: Path) -> None:
    write_files(tmp_path / "a", FILES | {"model_float.onnx": b"x"}, accept)
    assert read_files(tmp_path / "a")["model_float.onnx"] == b"x"


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    flips = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        step = max(1, len(content) // 60)
        for offset in [*range(0, len(content), step), len(content) - 1]:
            for bit in (0, 3, 5, 7):
                changed = bytearray(content)
                changed[offset] ^= 1 << bit
                path.write_bytes(changed)
                with pytest.raises(ArtifactError):
                    read_files(folder)
                flips += 1
        path.write_bytes(content)
    assert flips > 500
    assert read_files(folder) == FILES


def test_a_longer_a_shorter_and_an_empty_file_are_noticed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for changed in (content + b" ", content[:-1], b""):
            path.write_bytes(changed)
            with pytest.raises(ArtifactError, match=path.name):
                read_files(folder)
        path.write_bytes(content)


@pytest.mark.parametrize("name", [*REQUIRED, MANIFEST])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        read_files(folder)


def test_a_folder_that_is_none_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(ArtifactError, match="is not an artifact"):
            read_files(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"format": 1}',
        json.dumps(
            {"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}, "format": 1, "sha256": ""}
        ).encode(),
        json.dumps({"files": {"model.onnx": {"bytes": -1, "sha256": "0" * 64}}, "format": 1, "sha256": ""}).encode(),
        json.dumps({"files": {"model.onnx": {"bytes": 1, "sha256": "zz"}}, "format": 1, "sha256": ""}).encode(),
        json.dumps({"files": {}, "format": 2, "sha256": ""}).encode(),
        b" " * 70_000,
    ],
)
def test_a_manifest_of_another_form_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_files(folder)


def test_a_manifest_of_a_newer_format_says_so(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"files": {}, "format": 2, "sha256": "", "signed_by": "x"}))
    with pytest.raises(ArtifactError, match="made by a newer version of autocompress"):
        read_files(folder)


def test_a_text_file_of_any_size_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.export.folder.LARGEST_TEXT", 10)
    with pytest.raises(ArtifactError, match=r"architecture\.json|config\.yaml|card\.md"):
        read_files(folder)


@pytest.mark.parametrize("text", ["[" + "[]," * 20 + "1]", "[" + "1," * 20 + "1]"])
def test_json_that_takes_far_more_memory_than_its_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("autocompress.core.untrusted.LARGEST_CONTAINERS", 10)
    monkeypatch.setattr("autocompress.core.untrusted.LARGEST_VALUES", 10)
    # The same text in a file that is no JSON is fine.
    write_files(tmp_path / "a", {**FILES, "card.md": text.encode(), "architecture.json": b"{}"}, accept)
    read_files(tmp_path / "a")
    write_files(tmp_path / "a", {**FILES, "architecture.json": text.encode()}, accept)
    with pytest.raises(ArtifactError, match=r"architecture\.json cannot be read: it has more than 10 (lists|values)"):
        read_files(tmp_path / "a")


def test_tensors_that_take_far_more_memory_than_their_file_are_not_read(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {**FILES, "model.safetensors": (2**30).to_bytes(8, "little")}, accept)
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read: it has a header of"):
        read_files(tmp_path / "a")


def test_a_manifest_must_list_what_loading_needs(tmp_path: Path) -> None:
    write_files(tmp_path / "a", dict.fromkeys(REQUIRED[1:], b"x"), accept)
    with pytest.raises(ArtifactError, match=r"does not list model\.onnx"):
        read_files(tmp_path / "a")


def test_an_artifact_is_replaced_whole(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    write_files(folder, NEWER, accept)
    assert read_files(folder) == NEWER
    assert not (folder / "__pycache__").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["t1c2"]


def test_a_folder_that_fails_its_check_leaves_the_old_one(folder: Path) -> None:
    def refuse(aside: Path) -> None:
        assert aside != folder
        assert read_files(aside)["card.md"] == b"newer"
        raise ArtifactError("no good")

    with pytest.raises(ArtifactError, match="no good"):
        write_files(folder, NEWER, refuse)
    assert read_files(folder) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["t1c2"]


def test_a_failed_renaming_puts_the_old_one_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == folder and self.name != "old":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match="no space left"):
        write_files(folder, NEWER, accept)
    assert read_files(folder) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["t1c2"]


def test_what_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    (tmp_path / "note").write_text("a file")
    (tmp_path / "link").symlink_to(thesis)
    for path in (thesis, tmp_path / "note", tmp_path / "link"):
        with pytest.raises(ArtifactError, match="is not an artifact; choose another folder"):
            write_files(path, FILES, accept)
    assert (thesis / "chapter.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write_files(tmp_path / "empty", FILES, accept)
    assert read_files(tmp_path / "empty") == FILES


@pytest.mark.parametrize("manifest", [b"", b"{}", b'{"name": "my web app", "start_url": "/"}'])
def test_a_manifest_of_something_else_does_not_make_a_folder_ours(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(manifest)
    (tmp_path / "app.js").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artifact; choose another folder"):
        write_files(tmp_path, FILES, accept)
    assert (tmp_path / "app.js").read_text() == "years of work"


def test_a_file_of_the_user_in_an_artifact_is_not_removed(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"also holds notes\.txt"):
        write_files(folder, FILES, accept)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_regular_file_is_refused(folder: Path, kind: str) -> None:
    path = folder / "card.md"
    content = path.read_bytes()
    path.unlink()
    if kind == "link":
        (folder.parent / "elsewhere").write_bytes(content)
        path.symlink_to(folder.parent / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(ArtifactError, match=r"card\.md"):
        read_files(folder)


def test_no_space_is_a_storage_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_files(tmp_path / "a", FILES, accept)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_is_written_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(Path("picks/t1c2"), FILES, accept)
    assert read_files(tmp_path / "picks" / "t1c2") == FILES
