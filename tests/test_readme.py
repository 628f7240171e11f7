"""Every command and every example of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress import cli
from autocompress.engine.space import open_space
from autocompress.engine.spec import parse_spec
from tests.conftest import SMALL_SEARCH

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [part.strip() for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    return [line for line in lines if line.startswith("autocompress ")]


def test_the_commands_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    assert len(commands()) >= 4
    for line in commands():
        words = shlex.split(line)
        if words[1] == "search":
            # The same command at a size that takes seconds.
            words += [word for setting in SMALL_SEARCH for word in ("--set", setting)]
        if words[1] == "pick":
            words = [word.replace("=2000", "=200000") for word in words]
        if words[1] == "confirm":
            words = ["1" if word == "5" else word for word in words]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_examples_run(block: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block.replace("trials=10", f"trials=2, overrides={SMALL_SEARCH}").replace("5000", "500000"))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "effective_flops" in done.stdout


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_specs_are_sound(block: str) -> None:
    assert open_space(parse_spec(block, "README.md")).cuts()


def test_every_verb_of_the_table_exists_and_every_verb_is_in_the_table() -> None:
    named = set(re.findall(r"^\| `autocompress (\w+)", README, flags=re.MULTILINE))
    assert named == {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }


def test_the_test_command_is_what_ci_runs() -> None:
    runner = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert blocks("sh")[-1].strip() in runner
