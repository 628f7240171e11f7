import json

import pytest

from autocompress.cli.options import TableFormat, bounds, kept, offer, print_rows
from autocompress.errors import UnfinishedRunError, UsageError

ROWS = [{"id": "t0c0", "accuracy": 0.5}, {"id": "t0,c1", "accuracy": None}]


def test_limits_are_read_and_what_is_none_is_said() -> None:
    assert bounds(["bytes=2e4", " accuracy = .5"]) == {"bytes": 2e4, "accuracy": 0.5}
    assert bounds(None) == {}
    for wrong in ("bytes", "bytes=", "bytes=many", "=3="):
        with pytest.raises(UsageError, match="write NAME=NUMBER"):
            bounds([wrong])


def test_rows_are_printed_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, TableFormat.json)
    assert json.loads(capsys.readouterr().out) == ROWS
    print_rows(ROWS, TableFormat.csv)
    assert capsys.readouterr().out == 'id,accuracy\nt0c0,0.5\n"t0,c1",\n'
    print_rows([], TableFormat.csv)
    assert capsys.readouterr().out.strip() == ""


def test_only_options_that_were_given_are_passed_on() -> None:
    assert kept({"a": 0, "b": None, "c": ""}) == {"a": 0, "c": ""}


@pytest.mark.parametrize(("answer", "goes_on"), [(True, True), (False, False)])
def test_an_unfinished_run_is_offered_to_somebody(monkeypatch: pytest.MonkeyPatch, answer: bool, goes_on: bool) -> None:
    asked: list[str] = []

    def confirm(question: str, default: bool) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr("autocompress.cli.signals.somebody_is_there", lambda: True)
    monkeypatch.setattr("typer.confirm", confirm)
    found = UnfinishedRunError("reports/digits did not end (3 of 40 trials); continue it with --resume")
    if goes_on:
        offer(found)
    else:
        with pytest.raises(UsageError, match="nothing was changed"):
            offer(found)
    assert asked == ["reports/digits did not end (3 of 40 trials). Continue it?"]


def test_where_nobody_is_there_the_run_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.cli.signals.somebody_is_there", lambda: False)
    found = UnfinishedRunError("reports/digits did not end; continue it with --resume")
    with pytest.raises(UnfinishedRunError) as refused:
        offer(found)
    assert refused.value is found
