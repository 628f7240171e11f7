import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from autocompress.core import untrusted
from autocompress.core.untrusted import (
    LARGEST_CONTAINERS,
    LARGEST_HEADER,
    LARGEST_VALUES,
    check_data_file,
    check_json_size,
    check_name,
    escape_controls,
    is_name,
    join_inside,
    parse_json,
    read_json_file,
    read_regular_file,
    require_regular,
)
from autocompress.errors import RunFolderError

PATHS = ["", ".", "..", "../x", "a/b", "/etc", "a\0b"]
HOSTILE = [*PATHS, "-rf", ".hidden", "a\nb", "\x1b[2J", "a b", "$(id)", "a" * 129, 7]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_could_lead_elsewhere_is_refused_and_shown_harmless(name: object) -> None:
    assert not is_name(name)
    with pytest.raises(RunFolderError, match="is no candidate id") as refusal:
        check_name(name, "candidate id")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["t0c0", "t12r0c7", "t3p0.5", "digits-2", "A" * 128])
def test_a_name_of_ours_passes(name: str) -> None:
    assert check_name(name, "name") == name


@pytest.mark.parametrize("item", ["[]", "{}", "1", '"a"'])
def test_json_of_a_million_containers_or_some_million_values_is_not_read(tmp_path: Path, item: str) -> None:
    most = LARGEST_CONTAINERS if item in "[]{}" else LARGEST_VALUES
    text = "[" + f"{item}," * (most - 1) + f"{item}]"
    for content in (text, text.encode()):
        with pytest.raises(ValueError, match="more than") if item in "[]{}" else nullcontext():
            check_json_size(content)
        with pytest.raises(ValueError, match="more than"):
            parse_json(content[:1] + content[1:-1] * 2 + content[-1:])
    (tmp_path / "record.json").write_text("[" + f"{item}," * (most + 1) + f"{item}]")
    with pytest.raises(RunFolderError, match=r"is damaged .*more than"):
        read_json_file(tmp_path / "record.json", list)


def test_a_safetensors_file_that_names_too_many_tensors_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for size in (LARGEST_HEADER, LARGEST_HEADER + 1):
        path.write_bytes(size.to_bytes(8, "little") + b"{}")
        with pytest.raises(ValueError, match="a header of") if size > LARGEST_HEADER else nullcontext():
            check_data_file(path)
    # The same bytes mean nothing in another file.
    path.rename(tmp_path / "table.csv")
    check_data_file(tmp_path / "table.csv")


@pytest.mark.parametrize("name", PATHS)
def test_a_path_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="is no name of a file"):
        join_inside(tmp_path, "picks", name)


def test_no_link_below_a_folder_is_followed_but_the_folder_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "picks").symlink_to(tmp_path / "other")
    with pytest.raises(RunFolderError, match="picks is a link"):
        join_inside(tmp_path / "run", "picks", "t0c0")
    (tmp_path / "mine").symlink_to(tmp_path / "run")
    assert join_inside(tmp_path / "mine", "checkpoints", ".x") == tmp_path / "mine" / "checkpoints" / ".x"


def test_a_file_of_data_may_be_a_link_but_no_pipe_and_no_hole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    check_data_file(tmp_path / "link")
    assert read_regular_file(tmp_path / "link", follows_links=True) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 2**40)
    (tmp_path / "other").symlink_to("pipe")
    for name in ("pipe", "hole", "other", "."):
        with pytest.raises(OSError, match=r"not a regular file|sparse file|directory"):
            check_data_file(tmp_path / name)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    file.write_bytes(b"abc")
    link.symlink_to(file)
    os.mkfifo(pipe)
    assert read_regular_file(file, 3) == b"abc"
    with pytest.raises(OSError, match="larger than 2 bytes"):
        read_regular_file(file, 2)
    # A pipe would wait for a writer and a device would never end.
    for path in (link, pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"symbolic|not a regular file|directory"):
            read_regular_file(path)
    require_regular([file, tmp_path / "absent"])
    for path in (link, pipe, tmp_path):
        with pytest.raises(RunFolderError, match="is no regular file"):
            require_regular([path])


def test_a_sparse_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "bomb", "wb") as file:
        file.write(b"x")
        file.truncate(2**40)
    with pytest.raises(OSError, match="sparse"):
        read_regular_file(tmp_path / "bomb")
    # Without holes, a large file is read.
    monkeypatch.setattr(untrusted, "SMALL_FILE", 10)
    (tmp_path / "whole").write_bytes(b"x" * 100)
    assert len(read_regular_file(tmp_path / "whole")) == 100


@pytest.mark.parametrize("mark", ["\x1b[31m", "\r", "\x9b2J", "\u202e", "\u2066", "\x07", "\x7f", "\u2028"])
def test_controls_and_marks_that_reorder_are_shown(mark: str) -> None:
    shown = escape_controls(f"a{mark}b\n\u00e9\u4e2d")
    assert mark not in shown
    assert shown.startswith("a\\")
    assert shown.endswith("b\n\u00e9\u4e2d")
