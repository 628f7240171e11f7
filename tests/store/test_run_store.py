import json
import multiprocessing
import shutil
import sqlite3
import struct
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import autocompress
from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import CompressionRecipe, Job, Role, Segment, State, TrialResult
from autocompress.core.run_info import RunInfo
from autocompress.errors import RunFolderError, SearchFailedError, StorageError, UsageError
from autocompress.store.parts import PartTable
from autocompress.store.run_store import FORMAT, RunStore
from autocompress.store.schema import open_database
from tests.fakes import fake_result

CUTS = (CompressionRecipe(), CompressionRecipe(quantize=Part.of("post_training", weight_bits=4)))


def job(number: int = 0, role: Role = Role.SEARCH) -> Job:
    training = CompressionConfig(
        Part.of("cnn", width=8), (Part.of("soft_target", temperature=4.0),), Part("adamw"), seed=1
    )
    return Job(number, training, CUTS, role)


def filled(folder: Path) -> RunStore:
    study = RunStore.create(folder, RunInfo(name="x"))
    study.add_job(job(), 0)
    result = replace(fake_result(job()), checkpoints={"t0p0": b"weights"})
    study.record_result(result, elapsed=2.0, hypervolume=0.5)
    return study


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    with filled(tmp_path):
        pass
    with RunStore.read(tmp_path) as study:
        (stored,) = study.read_trials()
        assert stored.job == job()
        assert stored.state is State.COMPLETE
        assert tuple(study.read_trial_candidates(0)) == fake_result(job()).candidates
        assert study.read_candidate("t0c1") == fake_result(job()).candidates[1]
        assert study.checkpoint_path("t0p0").read_bytes() == b"weights"
        assert study.run_info().name == "x"
        assert study.run_info().seconds is None


def test_the_tables_are_flat_and_name_the_splits(tmp_path: Path) -> None:
    with filled(tmp_path) as study:
        study.add_scores({"t0c1": {"test": {"accuracy": 0.25}}})
        table = study.candidate_table().set_index("id")
        trials = study.trial_table()
    assert table.loc["t0c0", "student.cnn.width"] == 8
    assert table.loc["t0c0", "distill.soft_target.temperature"] == 4.0
    assert table.loc["t0c1", "quantize.post_training.weight_bits"] == 4
    assert list(table["quantize"]) == ["none", "post_training"]
    assert {"accuracy", "accuracy_search", "accuracy_test", "effective_flops"} <= set(table)
    assert table.loc["t0c1", "accuracy_test"] == 0.25
    assert table["accuracy_test"].isna().sum() == 1
    assert trials.loc[0, "hypervolume"] == 0.5
    assert trials.loc[0, "curve"] == [{"epoch": epoch + 1.0, "loss": 0.5} for epoch in range(15)]


def test_candidates_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    many = replace(
        job(), recipes=tuple(CompressionRecipe(quantize=Part.of("q", weight_bits=bits)) for bits in range(1, 13))
    )
    with RunStore.create(tmp_path, RunInfo()) as study:
        study.add_job(many, 0)
        study.record_result(fake_result(many), elapsed=0, hypervolume=0)
        assert list(study.candidate_table()["id"]) == [f"t0c{n}" for n in range(12)]


def test_an_unknown_candidate_is_a_usage_error(tmp_path: Path) -> None:
    with filled(tmp_path) as study, pytest.raises(UsageError, match="ids look like t12c7"):
        study.read_candidate("t9c9")


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with pytest.raises(RunFolderError, match="--resume"):
        RunStore.create(tmp_path, RunInfo())
    with RunStore.read(tmp_path) as study:
        assert len(study.candidate_table()) == 2


def test_a_store_that_was_not_created_to_its_end_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(store: RunStore, info: RunInfo) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "update_run_info", kill)
        with pytest.raises(Killed):
            RunStore.create(tmp_path, RunInfo())
    assert not (tmp_path / "study.db").exists()
    with filled(tmp_path):
        pass
    assert not list(tmp_path.glob("study.db.new*"))
    with RunStore.read(tmp_path) as study:
        assert len(study.read_trials()) == 1


def _hold(folder: str, ready: "multiprocessing.connection.Connection") -> None:
    study = RunStore.open(Path(folder))
    ready.send(True)
    ready.recv()
    study.close()


@pytest.mark.slow
def test_a_second_writer_is_refused_and_told_the_process_id_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    filled(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(str(tmp_path), theirs))
    other.start()
    assert ours.poll(30)
    with pytest.raises(RunFolderError, match=f"in use by process {other.pid}"):
        RunStore.open(tmp_path)
    with RunStore.read(tmp_path) as study:
        assert len(study.candidate_table()) == 2
    other.kill()
    other.join()
    RunStore.open(tmp_path).close()


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        RunStore.read(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"has no study\.db"):
        RunStore.read(tmp_path)
    (tmp_path / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RunFolderError, match="not a study"):
        RunStore.read(tmp_path)


def test_another_sqlite_file_and_a_newer_format_are_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "study.db").close()
    (tmp_path / "study.db").write_bytes(b"")
    with pytest.raises(RunFolderError, match="recover"):
        RunStore.read(tmp_path)
    with RunStore.create(tmp_path / "new", RunInfo()) as study:
        study.update_run_info(replace(study.run_info(), format=99))
    with pytest.raises(RunFolderError, match="newer version"):
        RunStore.open(tmp_path / "new")
    RunStore.create(tmp_path / "other", RunInfo()).close()


BAD_STORES = {
    "no database": b"not a database" * 100,
    "no tables": b"",
    "a newer format": "UPDATE ac_meta SET value = '99' WHERE key = 'format'",
    "an older format": "UPDATE ac_meta SET value = '3' WHERE key = 'format'",
    "a changed value": "UPDATE ac_meta SET seal = ''",
    "a view": "CREATE VIEW more AS SELECT * FROM ac_meta",
}


@pytest.mark.parametrize("bad", BAD_STORES.values(), ids=BAD_STORES)
def test_a_store_that_is_refused_is_closed(tmp_path: Path, open_connections: set[int], bad: str | bytes) -> None:
    filled(tmp_path).close()
    assert not open_connections
    if isinstance(bad, bytes):
        (tmp_path / "study.db").write_bytes(bad)
    else:
        with closing(open_database(tmp_path / "study.db")) as connection:
            connection.execute(bad)
    for attempt in (RunStore.open, RunStore.read, lambda folder: RunStore.create(folder, RunInfo())):
        # An older format can be read.
        with suppress(RunFolderError):
            attempt(tmp_path).close()
        assert not open_connections
    with pytest.raises(RunFolderError):
        RunStore.open(tmp_path)


def test_a_value_that_takes_far_more_memory_than_its_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path) as store:
        store._connection.execute("UPDATE ac_candidates SET details = ?", ("[" + "[]," * 200 + "[]]",))
    monkeypatch.setattr("autocompress.core.untrusted.LARGEST_CONTAINERS", 200)
    with RunStore.read(tmp_path) as store:
        for read in (
            store.candidate_table,
            lambda: store.read_trial_candidates(0),
            lambda: store.read_candidate("t0c0"),
        ):
            with pytest.raises(RunFolderError, match="more than 200 lists and mappings"):
                read()


def test_a_store_whose_file_vanishes_while_it_is_opened_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_connections: set[int]
) -> None:
    filled(tmp_path).close()
    monkeypatch.setattr("autocompress.store.run_store.require_run", lambda folder: (folder / "study.db").unlink())
    with pytest.raises(FileNotFoundError):
        RunStore.open(tmp_path)
    assert not open_connections


def test_a_full_disk_is_named_and_what_was_stored_stays(tmp_path: Path) -> None:
    study = filled(tmp_path)
    study._connection.execute("PRAGMA max_page_count = 30")
    big = replace(fake_result(job(1)), reason="x" * 1_000_000)
    study.add_job(job(1), 1)
    with pytest.raises(StorageError, match="free some space"):
        study.record_result(big, elapsed=3, hypervolume=0)
    study.close()
    with RunStore.read(tmp_path) as again:
        assert [trial.state for trial in again.read_trials()] == [State.COMPLETE, State.RUNNING]


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    study = filled(tmp_path)
    with pytest.raises(TypeError):
        study.add_scores({"t0c0": {"test": {"accuracy": 0.1}}, "missing": {"test": {"accuracy": 1.0}}})
    assert "test" not in study.read_candidate("t0c0").scores
    study.record_result(TrialResult(0, State.FAILED), elapsed=1, hypervolume=0)
    study.close()


def test_notes_are_written_with_the_next_transaction_or_never(tmp_path: Path) -> None:
    study = filled(tmp_path)
    study.add_note('{"op": 1}')
    study.add_note('{"op": 2}')
    assert list(study.read_notes()) == []
    with pytest.raises(sqlite3.IntegrityError):
        study.add_job(job(0), 0)
    assert list(study.read_notes()) == []
    study.add_job(job(1), 1)
    study.add_note('{"op": 3}')
    study.close()
    with RunStore.read(tmp_path) as again:
        assert list(again.read_notes()) == [{"op": 1}, {"op": 2}]


def remove_segments(folder: Path) -> None:
    """Turn a run into one of format 4, which has no table of segments."""
    with RunStore.open(folder) as store:
        store._connection.execute("DROP TABLE ac_segments")
        store.update_run_info(replace(store.run_info(), format=4))


def test_segments_are_read_back_and_a_run_without_them_gets_them_when_it_is_continued(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        assert store.trial_table()["segments"].tolist() == [[]]
    remove_segments(tmp_path)
    with RunStore.read(tmp_path) as old:
        assert old.run_info().format == 4
        assert old.trial_table()["segments"].tolist() == [[]]
    with RunStore.open(tmp_path) as store:
        assert store.run_info().format == FORMAT
        store.add_job(job(1), 1)
        segments = [Segment(2, 0.5, 1.5), Segment(1, 2.0, 4.0)]
        for segment in segments:
            store.record_result(fake_result(job(1)), elapsed=segment.end, hypervolume=0.5, segment=segment)
    with RunStore.read(tmp_path) as again:
        assert again.trial_table()["segments"].tolist() == [[], [asdict(segment) for segment in segments]]


@pytest.mark.parametrize("version", [2, 3])
def test_a_run_of_a_version_before_is_read_and_not_continued(tmp_path: Path, version: int) -> None:
    with filled(tmp_path) as study:
        study.update_run_info(replace(study.run_info(), format=version))
    with RunStore.read(tmp_path) as old:
        assert len(old.candidate_table()) == 2
    with pytest.raises(RunFolderError, match="can be read, but not continued"):
        RunStore.open(tmp_path)


# Tables of format 2, which has neither seals nor notes.
FORMAT_2 = """
CREATE TABLE ac_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE ac_trials (
    number INTEGER PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL, config TEXT NOT NULL, cuts TEXT NOT NULL,
    rung INTEGER, until INTEGER, base TEXT,
    optuna INTEGER, attempts INTEGER NOT NULL DEFAULT 1, reason TEXT NOT NULL DEFAULT '', seconds REAL,
    elapsed REAL, hypervolume REAL, curve TEXT NOT NULL DEFAULT '[]');
CREATE TABLE ac_candidates (
    id TEXT PRIMARY KEY, trial INTEGER NOT NULL REFERENCES ac_trials (number), epochs INTEGER NOT NULL,
    config TEXT NOT NULL, scores TEXT NOT NULL, costs TEXT NOT NULL, details TEXT NOT NULL, checkpoint TEXT,
    complete INTEGER NOT NULL DEFAULT 1);
CREATE INDEX ac_candidates_trial ON ac_candidates (trial);
"""


def write_out_parts(database: Path) -> None:
    """Write the parts of configs into the rows that refer to them, as formats before 5 did."""
    connection = open_database(database)
    parts = PartTable(connection)
    for number, config, cuts in connection.execute("SELECT number, config, cuts FROM ac_trials").fetchall():
        sections = [[parts.expand_section(part) for part in cut] for cut in json.loads(cuts)]
        values = json.dumps(parts.expand_config(config)), json.dumps(sections), number
        connection.execute("UPDATE ac_trials SET config = ?, cuts = ? WHERE number = ?", values)
    for number, base in connection.execute("SELECT number, base FROM ac_trials WHERE base IS NOT NULL").fetchall():
        checkpoint, prune, epochs = json.loads(base)
        values = json.dumps([checkpoint, parts.expand_section(prune), epochs]), number
        connection.execute("UPDATE ac_trials SET base = ? WHERE number = ?", values)
    for identity, config in connection.execute("SELECT id, config FROM ac_candidates").fetchall():
        values = json.dumps(parts.expand_config(config)), identity
        connection.execute("UPDATE ac_candidates SET config = ? WHERE id = ?", values)
    connection.execute("DROP TABLE ac_parts")
    connection.close()


def run_of_format(run: Path, folder: Path, version: int) -> Path:
    """Copy a finished run with its rows in the tables of an earlier format."""
    shutil.copytree(run, folder)
    with RunStore.open(folder) as store:
        store.update_run_info(replace(store.run_info(), format=version))
    write_out_parts(folder / "study.db")
    if version > 2:
        return folder
    (folder / "study.db").rename(folder / "finished.db")
    for name in ("study.db", "study.db-wal", "study.db-shm"):
        (folder / name).unlink(missing_ok=True)
    old = sqlite3.connect(folder / "study.db")
    old.executescript(FORMAT_2)
    old.execute("ATTACH DATABASE ? AS finished", (str(folder / "finished.db"),))
    for table in ("ac_meta", "ac_trials", "ac_candidates"):
        columns = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
        old.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM finished.{table}")
    # Entries that were added later.
    old.execute("DELETE FROM main.ac_meta WHERE key IN ('plugins', 'heads', 'notices', 'all_objectives')")
    old.commit()
    old.close()
    (folder / "finished.db").unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", [2, 3])
def test_a_finished_run_of_an_earlier_format_opens_reports_picks_and_exports(
    small_run: Path, tmp_path: Path, version: int
) -> None:
    front = autocompress.load(run_of_format(small_run, tmp_path / "old", version))
    now = autocompress.load(small_run)
    assert front.info.format == version
    assert front.to_pandas()["id"].tolist() == now.to_pandas()["id"].tolist()
    assert front.pick().id == now.pick().id
    assert "</html>" in front.report().read_text(encoding="utf-8")
    assert (front.export() / "manifest.json").is_file()
    with pytest.raises(RunFolderError, match="can be read, but not continued"):
        RunStore.open(front.folder)


def test_a_run_of_the_format_without_parts_is_read_and_continued(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with filled(run) as study:
        expected = study.candidate_table().to_json(), study.trial_table().to_json(), study.read_trials()
    old = run_of_format(run, tmp_path / "old", 4)
    with RunStore.read(old) as study:
        assert study.run_info().format == 4
        assert (study.candidate_table().to_json(), study.trial_table().to_json(), study.read_trials()) == expected
    with RunStore.open(old) as study:
        study.add_job(job(1), 1)
        study.record_result(fake_result(job(1)), elapsed=2.0, hypervolume=0.5)
    with RunStore.read(old) as study:
        assert study.run_info().format == 5
        assert [trial.job for trial in study.read_trials()] == [job(0), job(1)]
        assert study.read_candidate("t0c1").config.quantize == study.read_candidate("t1c1").config.quantize


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE ac_candidates SET scores = replace(scores, '0.', '0.9') WHERE id = 't0c1'", "candidates t0c1"),
        ("UPDATE ac_trials SET hypervolume = 0.75", "trials 0"),
        ("UPDATE ac_meta SET value = '\"y\"' WHERE key = 'name'", "meta name"),
    ],
)
def test_a_value_that_was_changed_on_disk_is_never_read(tmp_path: Path, change: str, named: str) -> None:
    filled(tmp_path).close()
    disk = sqlite3.connect(tmp_path / "study.db")
    # As a flipped byte would: no trigger sees it.
    for (trigger,) in disk.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        disk.execute(f"DROP TRIGGER {trigger}")
    disk.execute(change)
    disk.commit()
    disk.close()
    for attempt in (RunStore.read, RunStore.open):
        with pytest.raises(RunFolderError, match=f"{named} changed since written.*recover"):
            attempt(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE ac_candidates SET epochs = '; touch x' WHERE id = 't0c1'", "candidates 't0c1'"),
        ("UPDATE ac_candidates SET complete = x'00' WHERE id = 't0c1'", "candidates 't0c1'"),
        ("UPDATE ac_trials SET seconds = 'a'", "trials '0'"),
        ("UPDATE ac_trials SET curve = x'5b5d'", "trials '0'"),
        ("UPDATE ac_trials SET rung = 0.5", "trials '0'"),
        ("UPDATE ac_meta SET value = x'2278' WHERE key = 'name'", "meta 'name'"),
    ],
)
def test_a_value_of_another_type_is_damage_although_its_seal_fits(tmp_path: Path, change: str, named: str) -> None:
    filled(tmp_path).close()
    connection = open_database(tmp_path / "study.db")
    connection.execute(change)
    connection.close()
    for attempt in (RunStore.read, RunStore.open):
        with pytest.raises(RunFolderError, match=f"{named} has a value of another type.*recover"):
            attempt(tmp_path)


@pytest.mark.parametrize("kind", ["deleted", "moved", "replaced"])
def test_a_run_folder_that_vanishes_is_noticed_at_the_next_result(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    study = filled(run)
    if kind == "deleted":
        shutil.rmtree(run)
    else:
        run.rename(tmp_path / "moved")
    if kind == "replaced":
        filled(run).close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SearchFailedError, match="was deleted, moved or replaced"):
        study.record_result(replace(fake_result(job()), checkpoints={"t0p1": b"x"}), elapsed=2.0, hypervolume=0.5)
    with pytest.raises(SearchFailedError, match="was deleted, moved or replaced"):
        study.add_job(job(1), 1)
    # Nothing was created in its place.
    assert sorted(tmp_path.rglob("*")) == before
    study.close()


HOSTILE_NAMES = [
    ("UPDATE ac_candidates SET id = '../../../my-web-app' WHERE id = 't0c1'", "candidate id"),
    ("UPDATE ac_candidates SET id = char(27) || '[2J' WHERE id = 't0c1'", "candidate id"),
    ("UPDATE ac_candidates SET id = '; rm -rf ~' WHERE id = 't0c1'", "candidate id"),
    ("UPDATE ac_candidates SET checkpoint = '/dev/zero' WHERE id = 't0c1'", "name of a checkpoint"),
    ("UPDATE ac_meta SET value = '\"../x\"' WHERE key = 'name'", "name of a run"),
]


@pytest.mark.parametrize(("change", "kind"), HOSTILE_NAMES)
def test_a_run_with_a_name_that_is_none_is_not_opened(tmp_path: Path, change: str, kind: str) -> None:
    # The seals are renewed: they detect damage, and anyone can compute them.
    with filled(tmp_path) as study:
        study._connection.execute(change)
    for attempt in (RunStore.read, RunStore.open):
        with pytest.raises(RunFolderError, match=f"is no {kind}") as refusal:
            attempt(tmp_path)
        assert str(refusal.value).isprintable()


FOREIGN_SCHEMAS = [
    "CREATE VIEW extra AS SELECT 1",
    "CREATE TRIGGER mine AFTER UPDATE ON ac_trials BEGIN DELETE FROM ac_candidates; END",
    "CREATE VIRTUAL TABLE extra USING fts5(text)",
    "DROP TRIGGER ac_meta_insert; CREATE TRIGGER ac_meta_insert AFTER INSERT ON ac_meta BEGIN SELECT 1; END",
    "DROP INDEX ac_candidates_trial; CREATE INDEX ac_candidates_trial ON ac_candidates (upper(id))",
    "ALTER TABLE ac_notes RENAME TO real; CREATE VIEW ac_notes AS SELECT * FROM real",
]


@pytest.mark.parametrize("change", FOREIGN_SCHEMAS)
def test_a_view_or_trigger_of_someone_else_is_refused(tmp_path: Path, change: str) -> None:
    study = filled(tmp_path)
    study._connection.executescript(change)
    study.close()
    for attempt in (RunStore.read, RunStore.open):
        with pytest.raises(RunFolderError, match="is not one that autocompress writes"):
            attempt(tmp_path)


MALFORMED_ROWS = [
    'UPDATE ac_candidates SET scores = \'{"select_val": {"id": 1}}\'',
    'UPDATE ac_candidates SET scores = \'{"unknown split": {"accuracy": 1}}\'',
    "UPDATE ac_candidates SET costs = '[]'",
    'UPDATE ac_candidates SET costs = \'{"effective_flops": "fast"}\'',
    f"UPDATE ac_candidates SET costs = '{{\"effective_flops\": {10**400}}}'",
    "UPDATE ac_candidates SET config = '{\"seed\": 1}'",
    "UPDATE ac_candidates SET details = replace(hex(zeroblob(5000)), '00', '[')",
    "UPDATE ac_trials SET curve = '{'",
    "UPDATE ac_trials SET seconds = 'long'",
]


@pytest.mark.parametrize("change", MALFORMED_ROWS)
def test_a_row_of_another_form_is_damage(tmp_path: Path, change: str) -> None:
    study = filled(tmp_path)
    study._connection.execute(change)
    study.close()
    with pytest.raises(RunFolderError, match="is damaged"), RunStore.read(tmp_path) as again:
        assert [again.candidate_table(), again.trial_table()]
    if "costs" in change:
        with pytest.raises(RunFolderError, match="is damaged"), RunStore.read(tmp_path) as again:
            again.read_trial_candidates(0)


def test_a_check_that_takes_more_steps_than_its_file_explains_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path).close()
    monkeypatch.setattr("autocompress.store.schema.LARGEST_STEPS", -(2**40))
    monkeypatch.setattr("autocompress.store.schema.STEPS_PER_CALL", 1)
    with pytest.raises(RunFolderError, match="interrupted"):
        RunStore.read(tmp_path)


@pytest.mark.parametrize("name", ["study.db", "study.db-shm", ".lock", "checkpoints"])
def test_a_link_in_a_run_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    filled(run).close()
    path = run / name
    if path.is_dir():
        path.rename(other)
    else:
        other.write_bytes(path.read_bytes() if path.exists() else b"a file of the user")
        path.unlink(missing_ok=True)
    path.symlink_to(other)
    before = other.read_bytes() if other.is_file() else sorted(other.iterdir())
    with pytest.raises(RunFolderError, match=r"is no regular file|is a link"), RunStore.open(run) as study:
        study.record_result(replace(fake_result(job()), checkpoints={"t0p1": b"weights"}), elapsed=2.0, hypervolume=0.5)
    assert (other.read_bytes() if other.is_file() else sorted(other.iterdir())) == before


def test_a_rollback_journal_that_names_a_file_of_the_user_removes_nothing(tmp_path: Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "thesis.txt"
    filled(run).close()
    victim.write_text("a file of the user")
    pages, name = (run / "study.db").stat().st_size // 4096, str(victim).encode()
    # An empty journal with the name of a super-journal, which SQLite removes after it has applied the journal.
    magic, page = bytes.fromhex("d9d505f920a163d7"), struct.pack(">I", 2**30 // 4096 + 1)
    header = (magic + struct.pack(">IIIII", 0, 0, pages, 512, 4096)).ljust(512, b"\0")
    tail = page + name + struct.pack(">II", len(name), sum(name)) + magic
    (run / "study.db-journal").write_bytes(header + tail)
    for attempt in (RunStore.read, RunStore.open):
        with pytest.raises(RunFolderError, match=r"study\.db-journal is no file of a store"):
            attempt(run)
    assert victim.exists()


def test_a_schema_that_is_no_text_any_more_is_damage(tmp_path: Path) -> None:
    filled(tmp_path).close()
    file = tmp_path / "study.db"
    intact = file.read_bytes()
    assert b"CREATE TABLE ac_meta" in intact
    file.write_bytes(intact.replace(b"CREATE TABLE ac_meta", b"CR\xe9ATE TABLE ac_meta"))
    for begin in (RunStore.read, RunStore.open):
        with pytest.raises(RunFolderError, match=r"damaged .*\.recover"):
            begin(tmp_path)


def test_a_deleted_checkpoint_is_none_and_another_kind_of_file_an_error(tmp_path: Path) -> None:
    with filled(tmp_path) as study:
        assert study.read_checkpoint("t9p0") is None
        (tmp_path / "checkpoints" / "t9p0.safetensors").mkdir()
        with pytest.raises(RunFolderError, match=r"t9p0\.safetensors cannot be read"):
            study.read_checkpoint("t9p0")
