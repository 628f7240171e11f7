"""Every command and every example of the README runs."""

import re
import runpy
from pathlib import Path

import pytest

from autocompress.cli import app as cli
from autocompress.core.registry import TASKS
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from tests.examples import blocks, commands, run, small_command, small_python

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = [line for block in blocks(README, "sh") for line in commands(block)]


@pytest.mark.slow
def test_the_commands_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    assert len(COMMANDS) >= 4
    for line in COMMANDS:
        run(small_command(line), monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_python_examples_run(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # A model that is brought is forgotten afterwards.
    monkeypatch.setattr(TASKS, "_objects", {name: TASKS.get(name) for name in TASKS})
    script = tmp_path / "example.py"
    script.write_text(small_python(block))
    runpy.run_path(str(script), run_name="__main__")
    assert "effective_flops" in capsys.readouterr().out


@pytest.mark.parametrize("block", blocks(README, "yaml"))
def test_the_specs_are_sound(block: str) -> None:
    assert open_space(parse_spec(block, "README.md")).compression_grid()


def test_every_verb_of_the_table_exists_and_every_verb_is_in_the_table() -> None:
    table = (Path(__file__).parent.parent / "docs" / "commands.md").read_text()
    named = set(re.findall(r"^\| `autocompress (\w+)", table, flags=re.MULTILINE))
    assert named == {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_the_test_command_is_what_ci_runs() -> None:
    runner = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert blocks(README, "sh")[-1].strip() in runner
