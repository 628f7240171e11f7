import json
from pathlib import Path

import pytest

from autocompress.cli.options import (
    TableFormat,
    confirm_resume,
    drop_unset,
    parse_limits,
    prepare_signature,
    print_rows,
)
from autocompress.errors import UnfinishedRunError, UsageError

ROWS = [{"id": "t0c0", "accuracy": 0.5}, {"id": "t0,c1", "accuracy": None}]


def test_limits_are_parsed_and_invalid_ones_are_refused() -> None:
    assert parse_limits(["bytes=2e4", " accuracy = .5"], "--max") == {"bytes": 2e4, "accuracy": 0.5}
    assert parse_limits(["accuracy=97%", "f1_macro = 96.5 %"], "--min") == {"accuracy": 0.97, "f1_macro": 0.965}
    assert parse_limits(None, "--min") == {}
    assert parse_limits(["bytes=30KB", "effective_flops=1.5 MFLOPs", "latency_ms=2ms"], "--max") == {
        "bytes": 3e4,
        "effective_flops": 1.5e6,
        "latency_ms": 2.0,
    }
    for wrong in ("bytes", "bytes=", "bytes=many", "=3=", "=3", "bytes=%", "bytes=3 ms", "latency_ms=2KB"):
        with pytest.raises(UsageError, match=r"[Ww]rite for example --max bytes=30KB"):
            parse_limits([wrong], "--max")


def test_the_message_for_an_invalid_limit_shows_the_option() -> None:
    with pytest.raises(UsageError) as refused:
        parse_limits(["accuracy=high"], "--min")
    assert str(refused.value) == (
        "--min accuracy=high: 'high' is no number such as 2e6, 97% or 30KB; write for example --min accuracy=97%"
    )


def test_rows_are_printed_as_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, TableFormat.json)
    assert json.loads(capsys.readouterr().out) == ROWS
    print_rows(ROWS, TableFormat.csv)
    assert capsys.readouterr().out == 'id,accuracy\nt0c0,0.5\n"t0,c1",\n'
    print_rows([], TableFormat.csv)
    assert capsys.readouterr().out.strip() == ""


def test_options_without_a_value_are_dropped() -> None:
    assert drop_unset({"a": 0, "b": None, "c": ""}) == {"a": 0, "c": ""}


@pytest.mark.parametrize(("answer", "is_continued"), [(True, True), (False, False)])
def test_an_unfinished_run_is_offered_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, answer: bool, is_continued: bool
) -> None:
    questions: list[str] = []

    def confirm(question: str, default: bool) -> bool:
        questions.append(question)
        return answer

    monkeypatch.setattr("autocompress.cli.terminal.is_interactive", lambda: True)
    monkeypatch.setattr("typer.confirm", confirm)
    error = UnfinishedRunError("reports/digits did not end (3 of 40 trials); continue it with --resume")
    if is_continued:
        confirm_resume(error)
    else:
        with pytest.raises(UsageError, match="nothing was changed"):
            confirm_resume(error)
    assert questions == ["reports/digits did not end (3 of 40 trials). Continue it?"]


def test_without_a_terminal_an_unfinished_run_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.cli.terminal.is_interactive", lambda: False)
    error = UnfinishedRunError("reports/digits did not end; continue it with --resume")
    with pytest.raises(UnfinishedRunError) as refused:
        confirm_resume(error)
    assert refused.value is error


def test_the_key_of_a_signature_is_read_before_anything_is_written(tmp_path: Path) -> None:
    prepare_signature(None)(tmp_path)
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("cryptography")
    with pytest.raises(UsageError, match=r"the key .* cannot be read"):
        prepare_signature(tmp_path / "absent")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tests.export.test_signing import write_keys

    add_signature = prepare_signature(write_keys(tmp_path / "keys", Ed25519PrivateKey.generate()))
    (tmp_path / "manifest.json").write_text("{}")
    add_signature(tmp_path)
    assert len((tmp_path / "manifest.sig").read_bytes()) == 64
