import shlex
import sys
import time
from pathlib import Path

import pytest

from autocompress.errors import ArtifactError, UsageError
from autocompress.targets import make_target

MODEL = b"the content of a model"


def command(code: str) -> str:
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{model}} {{seconds}}"


def test_the_command_gets_the_file_and_prints_milliseconds() -> None:
    code = "import sys; print('log'); print(len(open(sys.argv[1], 'rb').read()) + float(sys.argv[2]))"
    assert make_target("command", {"run": command(code)}).measure(MODEL, 0.5) == len(MODEL) + 0.5
    row = make_target("command", {"run": command("""print('{"latency_ms": 1.25}')""")})
    assert row.measure(MODEL, 0.5) == 1.25


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(60)", r"did not end within 0\.5 s and was killed"),
        ("raise SystemExit('no such device')", r"failed \(no such device\)"),
        ("print('fast')", "must print milliseconds in its last line.*'fast'"),
        ("print(-1)", "must print milliseconds"),
        ("print('nan')", "must print milliseconds"),
    ],
)
def test_a_device_that_hangs_fails_or_prints_nonsense_is_an_error(code: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        make_target("command", {"run": command(code), "timeout": 0.5 if "sleep" in code else 30}).measure(MODEL, 0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_what_a_device_command_started_is_killed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = f"import subprocess as s; p = s.Popen(['sleep', '60']); open({str(path)!r}, 'w').write(str(p.pid)); p.wait()"
    with pytest.raises(ArtifactError, match="was killed"):
        make_target("command", {"run": command(code), "timeout": 1}).measure(MODEL, 0.1)
    state = Path(f"/proc/{path.read_text()}/stat")
    end = time.monotonic() + 20
    # A process that was killed and is not yet collected is a zombie.
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be run"):
        make_target("command", {"run": f"{tmp_path}/nothing {{model}}"}).measure(MODEL, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "ssh pi bench"}, r"must contain \{model\}"),
        ({"run": "ssh pi 'bench {model}"}, "cannot be divided into words .No closing quotation"),
        ({"run": "x {model}", "timeout": 0}, "timeout"),
        ({"run": "x {model}", "kernels": [8]}, "pairs of bits"),
        ({"run": "x {model}", "kernels": [[8, 8]]}, "floating point"),
        ({"run": "x {model}", "weight_type": "int4"}, "weight_type"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_target("command", options)


def test_the_description_holds_the_options() -> None:
    target = make_target("command", {"run": "ssh pi {model}", "kernels": [[8, 8], [32, 32]], "stored": [4, 8, 32]})
    info = target.describe()
    assert info.precisions.stored == (4, 8, 32)
    assert make_target("command", info.options).describe() == info
