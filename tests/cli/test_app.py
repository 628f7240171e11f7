import csv
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from autocompress.cli import app as cli
from autocompress.core.run_info import RunInfo
from autocompress.store.run_store import RunStore
from autocompress.tasks.images import Digits
from tests.conftest import SMALL_SEARCH


class Completed:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Completed:
        monkeypatch.setattr(sys, "argv", ["autocompress", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        caught = capsys.readouterr()
        return Completed(code, caught.out, caught.err)

    return call


def small(*words: str) -> list[str]:
    return ["search", "digits", *words, *(word for setting in SMALL_SEARCH for word in ("--set", setting))]


def test_pause_and_resume_leave_and_take_away_a_request(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with RunStore.create(tmp_path / "reports" / "mine", RunInfo(name="mine")):
        done = run("pause", "mine")
        assert done.code == 0
        assert "continue with: autocompress resume mine" in done.out
        assert done.err == ""
        assert "paused: continue it with `autocompress resume reports/mine`" in run("status", "mine").out
        assert run("resume", "mine").code == 0
        again = run("resume", "mine")
    assert (again.code, again.err) == (2, "error: reports/mine is not paused\n")


def test_data_that_memory_cannot_hold_is_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def read() -> None:
        raise MemoryError("Unable to allocate 4.00 TiB")

    monkeypatch.setattr(cli, "app", read)
    done = run("front")
    message = "error: the memory of this machine does not suffice (Unable to allocate 4.00 TiB); give less data"
    assert (done.code, " ".join(done.err.split())) == (1, message)


def test_what_the_system_refuses_is_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number), "page")

    for number, code in ((errno.ENOSPC, 3), (errno.EMFILE, 1)):
        monkeypatch.setattr(cli, "app", partial(fail, number))
        done = run("front")
        assert (done.code, done.err) == (code, f"error: page: {os.strerror(number)}\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize(("streams", "code"), [(">/dev/full", 3), (">/dev/full 2>&1", 3), (">&- 2>&- <&-", 0)])
def test_output_that_goes_nowhere_ends_a_command_without_a_traceback(streams: str, code: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m autocompress list tasks {streams}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        # Buffered, as in a shell of a user: the last part is written when the command ends.
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr


@pytest.mark.slow
def test_search_prints_front_pick_page_and_next_command(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run(*small("--name", "mine", "--trials", "2", "--seed", "5"))
    assert done.code == 0, done.err
    assert "2 of 2 trials done" in done.err
    assert "page: reports/mine/report.html" in done.out
    assert "next: autocompress export reports/mine --candidate t" in done.out
    folder = tmp_path / "reports" / "mine"
    assert {path.name for path in folder.iterdir()} >= {
        "study.db",
        "spec.yaml",
        "environment.json",
        "trials.csv",
        "candidates.csv",
        "front.csv",
        "front.json",
        "report.html",
        "checkpoints",
        "teacher",
    }
    again = run(*small("--name", "mine"))
    assert again.code == 2
    assert again.err == ("error: reports/mine already holds a run; add --resume to continue it, or --name another\n")
    changed = run(*small("--name", "mine", "--resume", "--seed", "6"))
    assert changed.code == 2
    assert "search.seed (5 then, 6 now) differs" in changed.err
    more = run(*small("--name", "mine", "--resume", "--seed", "5", "--trials", "3"))
    assert more.code == 0, more.err
    with RunStore.read(folder) as study:
        trials = study.trial_table()
        assert ((trials["role"] == "search") & ~trials["further"]).sum() == 3
        assert "complete" in set(trials["state"])
        assert set(trials["state"]) <= {"complete", "stopped"}
        assert study.run_info().test_reads == 2


def test_dry_run_prints_the_search_space_and_writes_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("search", "digits", "--dry-run", "--trials", "7")
    assert done.code == 0
    assert "distill.logit_standardized.temperature: 1..2" in done.out
    assert "candidates are made from each trial" in done.out
    assert "budget: 7 trials" in done.out
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_required_terms(run) -> None:  # type: ignore[no-untyped-def]
    done = run("search", "digits", "--dry-run", "--set", "distill.relational={required: true}")
    assert done.code == 0
    assert "distill.relational: in every trial\n" in done.out
    assert "relational: False, True" not in done.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["search", "digit"], 2, "did you mean 'digits'"),
        (["search", "digits", "--set", "searc.trials=3"], 2, "did you mean 'search'"),
        (["search", "digits", "--set", "task=digit"], 2, "did you mean 'digits'"),
        (["search", "digits", "--set", "task={digits: {side: 3}}"], 2, "does not take these options"),
        (["search", "digits", "--set", "objectives=[acuracy, bytes]"], 2, "did you mean 'accuracy'"),
        (["search", "digits", "--set", "objectives=[accuracy, f1_macro]"], 2, "one score"),
        (["search", "digits", "--set", "limits={bites: {max: 3}}"], 2, "did you mean 'bytes'"),
        (["search", "digits", "--set", "quantize.post_training.weight_bits=[1]"], 2, "1 is outside the range"),
        (["search", "digits", "--set", "prune.structurd={}"], 2, "did you mean 'structured'"),
        (["search", "digits", "--backend", "locl"], 2, "did you mean 'local'"),
        (["search", "digits", "--address", "host:6379"], 2, "search.backend=ray does"),
        (
            ["search", "digits", "--backend", "ray", "--address", "127.0.0.1:1"],
            2,
            "no Ray cluster answers at 127.0.0.1:1",
        ),
        (["search", "digits", "--set", "teacher.student={cnn: {width: 1}}"], 2, "width"),
        (["search", "missing.yaml"], 2, "missing.yaml cannot be read: No such file"),
        (["search", "digits", "--trials", "0"], 2, "trials"),
        (["pick", "nothing"], 2, "no run 'nothing'"),
        (["pick", "."], 2, ". is not a run folder: it has no study.db"),
        (["report", "nothing"], 2, "no run 'nothing'"),
        (["init", "--task", "digit"], 2, "did you mean 'digits'"),
        (["export", "nothing", "--to", "coreml"], 2, "the only format is onnx"),
        (["adapt", "nothing", "--data", "recent.npz"], 2, "no run 'nothing'"),
        (["adapt", "nothing"], 2, "--data"),
        (["join", "nothing", "--out", "joined"], 2, "joining needs at least two artifacts"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_wrong_use_prints_one_line_and_exits_with_two(run, words: list[str], code: int, message: str) -> None:  # type: ignore[no-untyped-def]
    done = run(*words)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    if done.err.startswith("error:"):
        assert done.err.count("\n") == 1


@pytest.mark.slow
def test_pick_prints_its_reason_and_exits_with_three_if_nothing_satisfies_the_limits(run, small_run: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("pick", str(small_run))
    assert done.code == 0
    assert "next: autocompress export" in done.out
    limited = run("pick", str(small_run), "--min", "accuracy=0.3", "--prefer", "bytes", "--json")
    assert json.loads(limited.out)["row"]["accuracy"] >= 0.3
    impossible = run("pick", str(small_run), "--max", "effective_flops=1")
    assert impossible.code == 3
    assert "effective_flops" in impossible.err
    assert impossible.err.count("\n") == 1
    assert run("pick", str(small_run), "--max", "effective_flops").code == 2
    assert run("pick", str(small_run), "--max", "bites=3").code == 2


@pytest.mark.slow
def test_front_prints_table_json_and_csv(run, small_run: Path) -> None:  # type: ignore[no-untyped-def]
    assert "effective FLOPs" in run("front", str(small_run)).out
    rows = json.loads(run("front", str(small_run), "-f", "json", "--all").out)
    assert len(rows) > len(json.loads(run("front", str(small_run), "-f", "json").out)) > 0
    text = run("front", str(small_run), "-f", "csv", "--where", "accuracy >= 0.3").out
    assert text.startswith("id,")
    assert run("front", str(small_run), "--where", "accuracy > 2").code == 3
    assert run("front", str(small_run), "--where", "__import__('os')").code == 2


@pytest.mark.slow
def test_adapt_writes_a_version_and_join_one_folder_of_both(run, small_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    test = Digits().splits(0).test
    images, labels = (3 * test.inputs[0] + 5).numpy(), test.targets["label"].numpy()
    np.savez(tmp_path / "recent.npz", input=images, label=labels)
    np.savez(tmp_path / "cut.npz", input=images[:, :, :7], label=labels)
    copy = shutil.copytree(small_run, tmp_path / "small")
    refused = run("adapt", str(copy), "--data", str(tmp_path / "cut.npz"))
    assert refused.code == 2
    assert "examples of shape [1, 7, 8]" in refused.err
    assert not list(copy.glob("picks/*"))
    done = run("adapt", str(copy), "--data", str(tmp_path / "recent.npz"), "--minutes", "0")
    assert done.code == 0, done.err
    assert "recent data, held out: accuracy unchanged" in done.out
    first, second = sorted((copy / "picks").iterdir())
    assert done.out.startswith(f"{second}\n")
    joined = run("join", str(first), str(second), "--out", str(tmp_path / "joined"))
    assert joined.code == 0, joined.err
    assert "tensors of 2 models" in joined.out
    assert (tmp_path / "joined" / "switchable.json").is_file()
    row = json.loads(run("join", str(first), str(second), "--out", str(tmp_path / "again"), "--json").out)
    assert row["folder"] == str(tmp_path / "again")
    assert set(row["separate_tensor_bytes"]) == {first.name, second.name}
    options = ("--data", str(tmp_path / "recent.npz"), "--minutes", "0", "--json")
    row = json.loads(run("adapt", str(copy), *options).out)
    assert "unchanged" in row["record"]["scores"]
    assert Path(row["folder"]) not in {first, second}


@pytest.mark.slow
def test_export_verifies_and_bench_times_the_files(run, small_run: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("export", str(small_run), "--verify")
    assert done.code == 0, done.err
    assert "verified on the test split: label: accuracy" in done.out
    (folder,) = (small_run / "picks").iterdir()
    row = json.loads(run("export", str(small_run), "--json", "--integer").out)
    assert row["folder"] == str(folder)
    assert row["verification"]["agreement"]["label"] >= 0.99
    timed = run("bench", str(folder), "--seconds", "0.05", "--batch", "4")
    assert timed.code == 0, timed.err
    assert "model.onnx" in timed.out
    assert "batch 4, 1 thread" in timed.out
    rows = json.loads(run("bench", str(folder), "--seconds", "0.02", "-f", "json").out)
    assert rows[0]["file"] == "model.onnx"
    assert rows[0]["median_ms"] > 0
    (folder / "model.onnx").write_bytes(b"changed")
    broken = run("bench", str(folder))
    assert broken.code == 1
    assert "model.onnx" in broken.err
    shutil.rmtree(folder)


@pytest.mark.slow
def test_bench_of_a_run_times_its_front_and_writes_the_page(run, small_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(small_run, tmp_path / "mine")
    chosen = json.loads(run("pick", str(folder), "--json").out)["id"]
    done = run("bench", str(folder), "--candidate", chosen, "--seconds", "0.02", "--threads", "2")
    assert done.code == 0, done.err
    assert "timed 2 of 2 models" in done.err
    assert chosen in done.out
    assert "faster than the teacher" in done.out
    assert "batch 1, 2 threads, onnxruntime on this processor" in done.out
    assert json.loads(run("pick", str(folder), "--json").out)["row"]["latency_ms"] > 0
    again = run("bench", str(folder), "--candidate", chosen, "--seconds", "0.02", "-f", "json")
    assert chosen in {row["id"] for row in json.loads(again.out)}
    assert run("bench", str(folder), "--candidate", "t99c9").code == 2
    assert run("bench", str(tmp_path / "nothing")).code == 2


@pytest.mark.slow
def test_report_shows_another_run_as_reference(run, small_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mine, other = (shutil.copytree(small_run, tmp_path / name) for name in ("mine", "dice"))
    done = run("report", str(mine), "--reference", str(other))
    assert done.code == 0, done.err
    assert "The reference run dice reached 0." in (mine / "report.html").read_text()
    # The reference stays when the page is written again.
    assert run("report", str(mine)).code == 0
    assert "The reference run dice reached 0." in (mine / "report.html").read_text()
    assert run("report", str(mine), "--reference", "nowhere").code == 2


@pytest.mark.slow
def test_confirm_prints_intervals_and_the_front_on_the_test_split(run, small_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(small_run, tmp_path / "mine")
    done = run("confirm", str(folder), "--top", "1", "--seeds", "1")
    assert done.code == 0, done.err
    assert "repeated 1 of 1 trainings" in done.err
    assert "pigeonhole bootstrap" in done.out
    assert "On the test split, " in done.out
    assert "The pick has " in done.out
    # The repeats are stored, and nothing is trained again.
    (row,) = json.loads(run("confirm", str(folder), "--top", "1", "--seeds", "1", "-f", "json").out)
    assert row["test_low"] <= row["test"] <= row["test_high"]
    assert run("confirm", str(folder), "--candidate", "t99c9").code == 2


def test_status_counts_states_and_prints_reasons(run, small_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "complete" in run("status", str(small_run), "--watch").out
    broken = tmp_path / "broken"
    shutil.copytree(small_run, broken)
    with RunStore.open(broken) as study, study._transaction():
        study._connection.execute("UPDATE ac_trials SET state = 'failed', reason = 'no luck' WHERE number = 0")
    assert "1 failed: no luck" in run("status", str(broken)).out
    rows = json.loads(run("status", str(broken), "-f", "json").out)
    assert {"role": "search", "state": "failed", "reason": "no luck", "trials": 1} in rows
    with RunStore.open(broken) as study:
        study._connection.execute("DELETE FROM ac_meta WHERE key = 'front'")
    (broken / ".driver").write_text("gone")
    watched = run("status", str(broken), "--watch")
    assert "the search is not running: continue it with `autocompress search ... --resume`" in watched.out


def test_report_writes_the_page_and_opens_it_on_request(run, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    done = run("report", str(small_run), "--open")
    assert done.out.strip() == str(small_run / "report.html")
    assert opened == [(small_run / "report.html").resolve().as_uri()]


def test_init_prints_a_valid_spec(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.yaml").write_text(run("init").out)
    done = run("search", "mine.yaml", "--dry-run")
    assert done.code == 0
    assert "mine.yaml is valid" in done.out


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("tasks", ["digits"]),
        ("methods", ["soft_target", "structured", "post_training", "temperature", "1..10 (log)"]),
        ("objectives", ["effective_flops", "maximize"]),
        ("modes", ["supernet", "one after the other", "sampled"]),
        ("spaces", ["digits.yaml"]),
    ],
)
def test_list_prints_names_for_a_spec(run, kind: str, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    done = run("list", kind)
    assert all(name in done.out for name in names)
    rows = json.loads(run("list", kind, "-f", "json").out)
    text = run("list", kind, "-f", "csv").out
    assert list(csv.DictReader(text.splitlines())) == rows
    assert all(name in text for name in names)


def test_doctor_prints_faults_with_their_fixes(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("autocompress.cli.doctor.try_ray", lambda: pytest.fail("started without being asked"))
    done = run("doctor")
    assert done.code == 0, done.out
    assert "ready to search" in done.out
    assert {check["state"] for check in json.loads(run("doctor", "--json").out)} <= {"ok", "warning"}
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", "/proc/no")
    done = run("doctor")
    assert done.code == 1
    assert "fix: set AUTOCOMPRESS_CACHE to a folder that can be written" in done.out


@pytest.mark.slow
def test_the_package_is_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autocompress", "list", "modes", "-f", "csv"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mode,meaning\n")


def test_the_schema_is_json(run) -> None:  # type: ignore[no-untyped-def]
    assert json.loads(run("schema").out)["title"] == "Spec"


@pytest.mark.slow
def test_ctrl_c_keeps_results_and_prints_how_to_continue(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autocompress.engine.driver import Driver

    tell = Driver.tell

    def interrupted(self: Driver, job: object, result: object) -> None:
        tell(self, job, result)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Driver, "tell", interrupted)
    done = run(*small("--name", "cut"))
    assert done.code == 130
    assert "--resume" in done.err
    assert (tmp_path / "reports/cut/report.html").is_file()
    monkeypatch.setattr(Driver, "tell", tell)
    # Without a terminal, the error names the command that continues the run.
    words = small("--name", "cut")
    offered = run(*words)
    assert offered.code == 2
    assert f"continue it with: autocompress {shlex.join(words)} --resume (or give a new one a --name)" in offered.err
    monkeypatch.setattr("autocompress.cli.terminal.is_interactive", lambda: True)
    questions = []
    monkeypatch.setattr("typer.confirm", lambda question, default: questions.append((question, default)))
    declined = run(*words)
    assert (declined.code, declined.err) == (2, "error: nothing was changed; give the new run a --name\n")
    assert questions == [("reports/cut holds the same search, unfinished, with 1 trial. Continue it?", True)]
    monkeypatch.setattr("typer.confirm", lambda question, default: True)
    again = run(*words)
    assert again.code == 0, again.err
    with RunStore.read(tmp_path / "reports/cut") as study:
        trials = study.trial_table()
        assert ((trials["role"] == "search") & ~trials["further"]).sum() == 3


@pytest.mark.slow
def test_a_search_in_which_every_trial_fails_exits_with_one_and_writes_a_page(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: object, setup: object) -> None:
        raise RuntimeError("no luck at all")

    monkeypatch.setattr("autocompress.trial.runner.run_trial", broken)
    done = run(*small("--name", "bad", "--trials", "30", "--quiet"))
    assert done.code == 1
    assert done.err == "error: every trial failed; the most frequent reason: RuntimeError: no luck at all\n"
    assert (tmp_path / "reports/bad/report.html").is_file()
    with RunStore.read(tmp_path / "reports/bad") as study:
        assert len(study.trial_table()) == 10
