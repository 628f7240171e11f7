"""Files that someone else wrote to do harm: artifacts, search spaces, run folders, names on the page."""

import json
import pickle
import random
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.faults.injection import FaultResult
from benchmarks.fuzz import (
    FuzzResult,
    Watch,
    dump_json,
    read_artifact,
    read_peak_memory,
    read_store,
    replace_file,
    write_base_artifact,
    write_base_run,
)

#: A list that takes some gigabytes in memory.
WIDE = b"[" + b"[]," * 20_000_000 + b"[]]"
#: A change of a folder, by what it does.
Damage = Callable[[Path], None]
GIGABYTE = 2**30


class _Touch:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def _set_entry(name: str, change: Callable[[dict[str, Any]], None]) -> Damage:
    """Return a change of a JSON file of an artifact, with checksums that fit."""

    def apply(folder: Path) -> None:
        document = json.loads((folder / name).read_bytes())
        change(document)
        _write(folder, name, dump_json(document))

    return apply


def _set_file(name: str, content: Callable[[Path], bytes]) -> Damage:
    return lambda folder: _write(folder, name, content(folder))


def _replace_file(name: str, kind: int) -> Damage:
    """Return a change that puts a link, device, pipe, folder or sparse file in the place of a file."""
    return lambda folder: replace_file(folder / name, (0, 0, kind, 0))


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file of an artifact and the manifest again, as someone who means harm would."""
    from autocompress.export.folder import read_files, write_files

    files = {**read_files(folder), name: content}
    shutil.rmtree(folder)
    write_files(folder, files, lambda written: None)


def _pickle_touch(folder: Path) -> bytes:
    return pickle.dumps(_Touch(folder.parent / "touched"))


def _torch_touch(folder: Path) -> bytes:
    import io

    import torch

    file = io.BytesIO()
    torch.save({"weight": _Touch(folder.parent / "touched")}, file)
    return file.getvalue()


def _point_outside(folder: Path) -> bytes:
    """Return the ONNX file with a weight that lies in a file outside of the folder."""
    import onnx

    model = onnx.load_from_string((folder / "model.onnx").read_bytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside/canary")
    content: bytes = model.SerializeToString()
    return content


def _list_model_damages() -> dict[str, Damage]:
    """Return changes of an artifact that aim at code, at files elsewhere, or at the reader."""
    safetensors = "model.safetensors"
    huge_header = struct.pack("<Q", 2**60) + b"{}"
    outside = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    kinds = {"a link": 0, "a device": 1, "a pipe": 2, "a folder": 3, "a sparse file": 4}
    return {
        "pickle as weights": _set_file(safetensors, _pickle_touch),
        "torch.save as weights": _set_file(safetensors, _torch_touch),
        "pickle as ONNX": _set_file("model.onnx", _pickle_touch),
        "pickle as architecture": _set_file("architecture.json", _pickle_touch),
        "torch.save as .pt2": _set_file("model.pt2", _torch_touch),
        "code as pipeline.py": _set_file(
            "pipeline.py", lambda folder: f"open({str(folder.parent / 'touched')!r}, 'w')\n".encode()
        ),
        "ONNX data outside": _set_file("model.onnx", _point_outside),
        "header of 2^60 bytes": _set_file(safetensors, lambda folder: huge_header),
        "tensor beyond its file": _set_file(safetensors, lambda folder: struct.pack("<Q", len(outside)) + outside),
        "nesting of 100,000": _set_file("architecture.json", lambda folder: b"[" * 100_000),
        "a number of 100,000 digits": _set_file(
            "architecture.json", lambda folder: b'{"format": ' + b"9" * 100_000 + b"}"
        ),
        **{
            f"{name} as {file}": _replace_file(file, kind)
            for name, kind in kinds.items()
            for file in ("architecture.json", safetensors)
        },
    }


def _list_size_damages() -> dict[str, Damage]:
    """Return changes of an artifact whose declared sizes exceed its files, or that repeats work, by far."""

    def declare_heads(document: dict[str, Any]) -> None:
        document["heads"] = {f"h{number}": 2**24 for number in range(16)}

    def declare_constants(document: dict[str, Any]) -> None:
        document["constants"] = {f"c{number}": {"shape": [2**26], "value": 0} for number in range(60)}

    def widen(document: dict[str, Any]) -> None:
        document["config"]["student"]["cnn"]["width"] = 2**20

    def enlarge_input(document: dict[str, Any]) -> None:
        document["inputs"][0]["shape"] = [1, 2**15, 2**15]

    def enlarge_vocabulary(document: dict[str, Any]) -> None:
        document["inputs"][0] |= {"shape": [8], "vocabulary": 2**40}

    def repeat_history(document: dict[str, Any]) -> None:
        document["quantize"]["history"]["layers"] *= 100

    def add_wide_list(folder: Path) -> bytes:
        return (folder / "preprocess.json").read_bytes().replace(b"{", b'{"extra": ' + WIDE + b",", 1)

    def name_many_tensors(folder: Path) -> bytes:
        content = (folder / "model.safetensors").read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        tensor = {"dtype": "U8", "shape": [0], "data_offsets": [len(content) - end] * 2}
        header = json.dumps({**json.loads(content[8:end]), **{f"{n:x}": tensor for n in range(1_200_000)}}).encode()
        return struct.pack("<Q", len(header)) + header + content[end:]

    changes = (declare_heads, declare_constants, widen, enlarge_input, enlarge_vocabulary, repeat_history)
    damages = {change.__name__: _set_entry("architecture.json", change) for change in changes}
    damages[add_wide_list.__name__] = _set_file("preprocess.json", add_wide_list)
    return {**damages, name_many_tensors.__name__: _set_file("model.safetensors", name_many_tensors)}


def _read_damaged(
    root: Path, base: Path, damages: dict[str, Damage], read: Callable[[Path], Iterator[Callable[[], object]]]
) -> tuple[FuzzResult, list[str], list[str]]:
    """Read a copy of a folder after each change; return the counts, and the changes that no function refused."""
    from autocompress.errors import AutocompressError

    (root / "outside").mkdir()
    canary = root / "outside" / "canary"
    canary.write_text("a file of the user")
    watch, result, accepted, messages = Watch(), FuzzResult(""), [], []
    # Libraries that a reader imports lazily count neither as code nor as time of the first case.
    for call in read(base):
        call()
    for name, damage in damages.items():
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        damage(folder)
        started, refusals = time.perf_counter(), 0
        for call in read(folder):
            try:
                with watch.observe(folder, result):
                    call()
            except AutocompressError as error:
                refusals += 1
                messages.append(str(error))
            except Exception as error:
                result.tracebacks[f"{name}: {type(error).__name__}: {error!s:.60}"] += 1
        if not refusals:
            accepted.append(name)
        result.cases += 1
        result.refused += bool(refusals)
        result.longest = max(result.longest, time.perf_counter() - started)
        if (root / "touched").exists() or not canary.exists() or canary.read_text() != "a file of the user":
            result.code.append(name)
            canary.write_text("a file of the user")
    return result, accepted, messages


def _describe(result: FuzzResult) -> str:
    troubles = [*result.code, *result.outside, *result.tracebacks]
    return (
        f"{result.refused} of {result.cases} refused, code run in {len(result.code)}, "
        f"{len(result.outside)} writes outside, {sum(result.tracebacks.values())} other exceptions, "
        f"longest {result.longest:.2f} s" + (f"; {troubles[:3]}" if troubles else "")
    )


def load_hostile_models(root: Path) -> FaultResult:
    """Row 16: artifacts with pickles, code, links, devices, and ONNX data outside of the folder."""
    base = write_base_artifact(root / "base")
    damages = _list_model_damages()
    result, accepted, _ = _read_damaged(root, base, damages, read_artifact)
    # A file that no function reads changes nothing.
    # `pipeline.py` is for other programs: autocompress runs its own.
    allowed = {"torch.save as .pt2", "code as pipeline.py"}
    measured = _describe(result) + (f"; without effect: {', '.join(accepted)}" if accepted else "")
    held = result.passed and set(accepted) <= allowed and result.longest < 1
    return FaultResult("refused before anything is unpickled; 0 code run; under 1 s each", measured, held)


def load_declared_sizes(root: Path) -> FaultResult:
    """Row 26: artifacts whose declared sizes exceed their files."""
    # In a process of its own, whose peak memory is that of these cases.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        result, accepted, before = pool.submit(_measure_sizes, root).result()
    measured = f"{_describe(result)}; peak memory {(result.peak - before) / 2**20:,.0f} MiB above that of a valid one"
    held = result.passed and not accepted and result.peak - before < GIGABYTE and result.longest < 2
    return FaultResult("refused before anything is built; peak memory below 1 GiB", measured, held)


def _measure_sizes(root: Path) -> tuple[FuzzResult, list[str], int]:
    from autocompress.backends.workers import limit_memory, memory_in_use

    base = write_base_artifact(root / "base")
    for call in read_artifact(base):
        call()
    before = read_peak_memory()
    # Far above what is allowed, and far below what some of these files declare.
    limit_memory(memory_in_use() + 3 * GIGABYTE)
    result, accepted, _ = _read_damaged(root, base, _list_size_damages(), read_artifact)
    result.peak = read_peak_memory()
    return result, accepted, before


def flip_artifact_bytes(root: Path, flips: int = 100) -> FaultResult:
    """Row 19: a byte of an artifact's files is flipped."""
    from autocompress.errors import AutocompressError
    from autocompress.export.artifact import load_artifact

    base = write_base_artifact(root / "base")
    files = sorted(path for path in base.rglob("*") if path.is_file())
    draw, refused = random.Random(0), 0
    for _ in range(flips):
        path = draw.choice(files)
        intact = path.read_bytes()
        at = draw.randrange(len(intact))
        path.write_bytes(intact[:at] + bytes([intact[at] ^ (1 << draw.randrange(8))]) + intact[at + 1 :])
        with suppress(AutocompressError):
            load_artifact(base)
            refused -= 1
        refused += 1
        path.write_bytes(intact)
    load_artifact(base)
    return FaultResult(
        f"{flips} of {flips} refused", f"{refused} of {flips} refused, in {len(files)} files", refused == flips
    )


SPECS = {
    "a tag that runs code": "task: !!python/object/apply:os.system ['touch canary']\n",
    "a tag of a class": "task: !!python/name:os.system\n",
    "an alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntask: *c\n",
    "an alias": "task: digits\nstudent: {cnn: {width: 8}}\nsearch: {seed: &a 8, trials: *a}\n",
    "a recursive alias": "task: &a [*a]\n",
    "a name outside": "task: digits\nname: ../../outside/canary\nstudent: {cnn: {width: 8}}\n",
    "an absolute name": "task: digits\nname: /tmp/canary\nstudent: {cnn: {width: 8}}\n",
    "NUL": "task: digits\0\n",
    "an escape sequence": 'task: "\\e[2Jdigits"\n',
    "10 MB": "task: digits\nstudent: {cnn: {width: 8}}\n# " + "x" * 10_000_000 + "\n",
    "nesting": "task: " + "[" * 20_000 + "\n",
    "a long number": "search: {seed: " + "9" * 50_000 + "}\n",
    "a merge key": "task: digits\n<<: {student: {cnn: {width: 8}}}\n",
    "two documents": "task: digits\n---\ntask: digits\n",
    "a key that is a list": "? [a, b]\n: c\n",
    "no text": "\ud800",
}


def read_hostile_specs(root: Path) -> FaultResult:
    """Row 17: search spaces with tags, alias bombs, names outside, NUL and 10 MB."""
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import load_spec, parse_spec
    from autocompress.errors import AutocompressError

    open_space(parse_spec("task: digits\nstudent: {cnn: {width: 8}}\n", "x"))
    watch, result, lines, longest_message = Watch(), FuzzResult(""), 0, 0
    for name, text in SPECS.items():
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "space.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        started = time.perf_counter()
        try:
            with watch.observe(folder, result):
                open_space(load_spec(folder / "space.yaml"))
        except AutocompressError as error:
            result.refused += error.exit_code == 2
            lines += "space.yaml:" in str(error)
            longest_message = max(longest_message, len(str(error)))
        except Exception as error:
            result.tracebacks[f"{name}: {type(error).__name__}"] += 1
        result.cases += 1
        result.longest = max(result.longest, time.perf_counter() - started)
    measured = f"{_describe(result)}; {lines} messages name the line, the longest has {longest_message} characters"
    held = result.passed and result.refused == result.cases and lines >= result.cases - 3 and longest_message < 500
    return FaultResult("exit 2 with the line; nothing written outside", measured, held)


def show_hostile_names(root: Path) -> FaultResult:
    """Row 18: names with scripts, formulas and marks that reorder text, on the page and in the tables."""
    import csv

    from autocompress.analysis.selection import select_candidate
    from autocompress.report.data_files import write_tables
    from autocompress.report.page import write_page
    from tests.report.factory import make_run

    expected = "shown as text: 0 scripts run, 0 requests; -0.5 stays a number"
    run = make_run(12, 8, hostile=True)
    run.candidates["shift"] = -0.5
    pick = select_candidate(run.candidates, run.info)
    page = write_page(root / "report.html", run.candidates, run.trials, run.info, pick)
    write_tables(root, run.candidates, run.trials, run.candidates)
    with (root / "candidates.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = sum(row["shift"] == "-0.5" for row in rows)
    formulas = sum(
        value[:1] in tuple("=+-@") and not _is_number(value) for row in rows for value in row.values() if value
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        return FaultResult(expected, "not measured: Chromium is not installed", False)
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        # The script in the names would change the language, and the image would ask for a file.
        language, images = tab.locator("html").get_attribute("lang"), tab.locator("img").count()
        browser.close()
    others = [url for url in requests if url != page.as_uri() and not url.startswith(("blob:", "data:"))]
    measured = (
        f"language '{language}', {images} images, {len(others)} requests; {formulas} cells of {len(rows)} rows are "
        f"formulas, -0.5 is a number in {numbers}"
    )
    held = language == "en" and not images and not others and not formulas and numbers == len(rows)
    return FaultResult(expected, measured, held)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _change_rows(statement: str, *values: object) -> Damage:
    """Return a change of a store by SQL, with seals that fit."""

    def apply(folder: Path) -> None:
        from autocompress.store.schema import DATABASE, open_database

        connection = open_database(folder / DATABASE)
        connection.create_function("os_system", 1, lambda text: None)
        with suppress(sqlite3.IntegrityError):
            connection.execute(statement, values)
        connection.close()

    return apply


def _enlarge_value(folder: Path) -> None:
    """Store a value of 80 MB, with a seal that takes no time to compute."""
    from autocompress.store.schema import DATABASE

    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    connection.create_function("seal_of", -1, lambda *values: "")
    connection.execute("UPDATE ac_candidates SET details = zeroblob(80000000) WHERE id = 't0c0'")
    connection.close()


def _add_rollback_journal(folder: Path) -> None:
    """Add a journal without pages that names the canary as its super-journal, which SQLite removes with the journal."""
    from autocompress.store.schema import DATABASE

    name, magic = str(folder.parent / "outside" / "canary").encode(), bytes.fromhex("d9d505f920a163d7")
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    pages = (folder / DATABASE).stat().st_size // 4096
    header = (magic + struct.pack(">IIIII", 0, 0, pages, 512, 4096)).ljust(512, b"\0")
    tail = struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    (folder / f"{DATABASE}-journal").write_bytes(header + tail)


def open_hostile_runs(root: Path) -> FaultResult:
    """Row 25: run folders with ids that are paths, escapes or commands, with views, triggers and deep JSON."""
    base = write_base_run(root / "base")
    rename = "UPDATE ac_candidates SET id = ? WHERE id = (SELECT min(id) FROM ac_candidates)"
    names = ("../../../outside/canary", "\x1b[2J\x1b[1;1Hok", "t0c0; touch x", "-rf", "a" * 10_000, "", "t0c0\n")
    damages = {f"id {name[:20]!r}": _change_rows(rename, name) for name in names}
    damages |= {
        "checkpoint outside": _change_rows("UPDATE ac_candidates SET checkpoint = '../../outside/canary'"),
        "name of the run": _change_rows("UPDATE ac_meta SET value = '\"../../x\"' WHERE key = 'name'"),
        "a view": _change_rows("CREATE VIEW more AS SELECT * FROM ac_meta"),
        "a trigger": _change_rows("CREATE TRIGGER more AFTER INSERT ON ac_meta BEGIN DELETE FROM ac_candidates; END"),
        "a virtual table": _change_rows("CREATE VIRTUAL TABLE more USING fts5(x)"),
        "wide JSON": _change_rows("UPDATE ac_candidates SET details = ? WHERE id = 't0c0'", f"[{'[],' * 2**21}[]]"),
        "deep JSON": _change_rows("UPDATE ac_candidates SET details = ?", "[" * 100_000),
        "a large value": _enlarge_value,
        "a rollback journal": _add_rollback_journal,
        "a loop of rows": _change_rows(
            "INSERT INTO ac_notes (notes) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3) "
            "SELECT '{' FROM n"
        ),
    }
    result, accepted, messages = _read_damaged(root, base, damages, read_store)
    escapes = sum(any(ord(letter) < 32 for letter in message) for message in messages)
    measured = f"{_describe(result)}; control characters in {escapes} of {len(messages)} messages"
    measured += f"; not refused: {', '.join(accepted)}" if accepted else ""
    held = result.passed and not accepted and not escapes and result.longest < 2
    return FaultResult("nothing outside changes, nothing runs, output neutralized, under 2 s each", measured, held)
