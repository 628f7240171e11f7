"""What commands print, and the options -v and -q before and after the name of a command."""

import ast
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from autocompress.cli import app as cli
from autocompress.cli.terminal import (
    PACKAGE,
    StopSignals,
    configure_logging,
    make_console,
    print_prose,
    print_text,
    progress_console,
    replace_unprintable,
)

LOGGER = logging.getLogger(PACKAGE)


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Restore the logger of the package, which every command configures."""
    handlers, level, propagate = LOGGER.handlers, LOGGER.level, LOGGER.propagate
    yield
    LOGGER.handlers, LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["autocompress", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (["status", "RUN"], logging.WARNING),
        (["-v", "status", "RUN"], logging.INFO),
        (["status", "RUN", "--verbose"], logging.INFO),
        (["status", "RUN", "-vv"], logging.DEBUG),
        (["-v", "status", "-v", "RUN"], logging.DEBUG),
        (["status", "RUN", "-vvvv"], logging.DEBUG),
        (["-q", "status", "RUN"], logging.ERROR),
        (["status", "RUN", "--quiet"], logging.ERROR),
    ],
)
def test_the_level_follows_the_options(
    words: list[str], level: int, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word.replace("RUN", str(small_run)) for word in words]
    assert run_command(monkeypatch, *words) == 0
    assert LOGGER.level == level
    assert len(LOGGER.handlers) == 1


@pytest.mark.parametrize(
    "words", [["-v", "list", "modes", "-q"], ["-q", "list", "modes", "-v"], ["list", "modes", "-vq"]]
)
def test_verbose_and_quiet_exclude_each_other(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, *words) == 2
    assert capsys.readouterr().err == "error: --verbose and --quiet exclude each other\n"


def test_records_are_written_to_standard_error_at_their_level(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger(f"{PACKAGE}.test")
    for verbosity, shown in ((-1, ["e"]), (0, ["w", "e"]), (1, ["i", "w", "e"]), (2, ["d", "i", "w", "e"])):
        configure_logging(verbosity)
        for write, name in ((log.debug, "d"), (log.info, "i"), (log.warning, "w"), (log.error, "e")):
            write("record-%s", name)
        printed = capsys.readouterr()
        assert [line.rpartition("record-")[2].strip() for line in printed.err.splitlines()] == shown
        assert printed.out == ""


@pytest.mark.slow
def test_verbose_logs_the_page_that_report_writes(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "report", str(small_run), "--out", str(tmp_path), "-v") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'report.html'}\n"
    assert "INFO" in printed.err
    assert "page" in printed.err
    assert run_command(monkeypatch, "report", str(small_run), "--out", str(tmp_path)) == 0
    assert capsys.readouterr().err == ""


def test_quiet_hides_progress_and_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(-1)
    progress_console().print("progress")
    assert capsys.readouterr().err == ""
    logging.getLogger(f"{PACKAGE}.test").error("disk full")
    assert "disk full" in capsys.readouterr().err


def test_progress_and_logs_share_a_console() -> None:
    configure_logging(1)
    (handler,) = LOGGER.handlers
    assert isinstance(handler, RichHandler)
    assert progress_console() is handler.console
    LOGGER.handlers = []
    assert progress_console().stderr


@pytest.mark.parametrize("command", ["search", "export", "confirm", "bench"])
def test_the_help_of_a_command_lists_both_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out
    assert "--verbose" in text
    assert "--quiet" in text


def test_a_pipe_has_a_fixed_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_console().width == 2000


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_interrupts_and_sets_the_exit_code(name: str, code: int) -> None:
    before = signal.getsignal(getattr(signal, name))
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), getattr(signal, name))
        assert signals.exit_code == code
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_second_signal_lets_the_page_be_written_and_a_third_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert "page of the results so far is being written" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.exit_code == 143
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp936", "utf-8"])
def test_a_character_that_the_encoding_lacks_is_replaced(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    replace_unprintable(stream)
    stream.write("0.5 – 0.7 → \u2713")
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)
    assert written.replace("–", "-").replace("→", "->").startswith("0.5 - 0.7 -> ")


def test_prose_is_wrapped_at_words_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "  loses one-third of /some/very/long/path/name"
    print_prose(text)
    assert capsys.readouterr().out == text + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_prose(text)
    assert capsys.readouterr().out == "  loses one-third of\n    /some/very/long/path/name\n"


HOSTILE = "t0c0\x1b]0;title\x07\x1b[2J\r\u202e\x9b"


def test_controls_in_a_text_are_shown_and_not_sent_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(HOSTILE)
    make_console().print(Table(HOSTILE, title=HOSTILE), Text(HOSTILE), HOSTILE, markup=False)
    configure_logging()
    LOGGER.warning("%s", HOSTILE)
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    assert shown.count("x1b") >= 6
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_a_console_still_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = make_console()
    console.file = io.StringIO()
    console.print("word", style="red")
    assert console.file.getvalue().startswith("\x1b[31mword")


def test_commands_print_in_one_way() -> None:
    folder = Path(cli.__file__).parent
    for path in sorted(folder.glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "Console")]
        # `print_text` itself prints.
        assert len(printing) == (path.stem == "terminal"), path
