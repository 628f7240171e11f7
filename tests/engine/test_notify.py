"""The command that runs at the end of a search."""

import logging
import shlex
import sys
from pathlib import Path

import pytest

from autocompress.core.run_info import RunInfo
from autocompress.engine import notify
from autocompress.engine.notify import check_notify, run_notify
from autocompress.engine.spec import load_spec, parse_spec
from autocompress.errors import SpecError
from autocompress.store.run_store import RunStore

SPEC = "task: digits\nstudent: {cnn: {}}\nsearch:\n  notify: notify-send '{run} {state}'\n"
WRITE = "import os, sys; open(sys.argv[1], 'w').write(f\"{sys.argv[2]} {os.environ['AUTOCOMPRESS_STATE']}\")"


def test_the_command_gets_run_and_state_and_no_shell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "a run; exit 1"
    run.mkdir()
    run_notify(f"{sys.executable} -c {shlex.quote(WRITE)} {{run}}/note.txt 'it has {{state}}'", run, "interrupted")
    assert (run / "note.txt").read_text() == "it has interrupted interrupted"
    run_notify(None, run, "finished")
    assert not caplog.records


def test_a_command_that_fails_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT", 0.2)
    # Other tests may have configured the logs of the package by now.
    monkeypatch.setattr(notify, "logger", logging.getLogger("tests.notify"))
    for command in ("no-such-program {run}", "ls /no/such/folder", "sleep 5"):
        run_notify(command, tmp_path, "finished")
    reasons = ("cannot be run (No such file or directory)", "failed (ls:", "did not end within 0.2 s and was killed")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    for record, reason in zip(caplog.records, reasons, strict=True):
        assert reason in record.getMessage()


def test_a_run_folder_never_names_a_command(tmp_path: Path) -> None:
    source = parse_spec(SPEC, "x.yaml")
    check_notify(source)
    # The folder of a run is read by others, so the command is not stored in it, nor is it a part of the results.
    assert "notify" not in source.spec.to_yaml()
    assert source.spec.immutable_content() == parse_spec(SPEC.partition("search")[0], "x.yaml").spec.immutable_content()
    RunStore.create(tmp_path, RunInfo(name="x")).close()
    (tmp_path / "spec.yaml").write_text(SPEC)
    with pytest.raises(SpecError, match=r"spec.yaml:4: search.notify: a run folder may not name a command"):
        check_notify(load_spec(tmp_path / "spec.yaml"))


def test_a_command_that_cannot_be_split_is_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search.notify: no closing quotation"):
        parse_spec(SPEC.replace("notify-send '{run} {state}'", "'\"notify-send'"), "x.yaml")
    with pytest.raises(SpecError, match=r"search.notify: must name a program"):
        parse_spec(SPEC.replace("notify-send '{run} {state}'", "' '"), "x.yaml")
