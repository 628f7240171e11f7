"""Hostile artifacts, search spaces, stores and pages: `python -m benchmarks.fuzz`.

Hypothesis changes a small valid artifact, search space or run folder (also a `preprocess.json` of each kind of raw
input and prediction, with models that carry it, and the `cascade.json` and `warm_start.json` of a run): JSON entries
are replaced, deleted, nested or repeated, bytes are flipped, and files become links, pipes, folders and sparse files.
Checksums and seals are renewed, as someone who means harm would. Each changed input is read by every function that
reads such inputs. Counted are programs that were started and objects that were unpickled (by an audit hook), writes
outside of the folder, exceptions that are no message of autocompress, seconds and processor time of the longest case,
and the peak memory of the process while it reads, libraries included.
"""

import argparse
import ctypes
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

from benchmarks.common import describe_benchmark

#: Cases in one process.
BLOCK = 250
#: Entries of a list that is repeated.
LONGEST = 20_000
#: Bytes of a JSON text that is changed further.
LARGEST_CHANGED = 2**20
#: Stands for nesting that is too deep for `json.dumps`.
DEEP = "@deep@"
HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**24, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), -0.5),
    *("", "..", "../../outside/canary", "/dev/zero", "\x1b[2J\r", "; touch canary", "__import__", "a" * 100_000),
    *([], {}, [[]], [1, 2, 3], {"a": 1}, {"": None}, [None] * 1000, [2**31] * 8, DEEP),
)
FRAGMENTS = (
    *("a: &x [1]\nb: *x\n", "x: !!python/object/apply:os.system ['touch canary']\n", "\0", "[" * 20_000),
    *("name: ../../outside\n", "name: '\x1b[2J'\n", "9" * 5000, "0x" + "f" * 5000, "a: " + "y" * 90_000 + "\n"),
    *("? [a, b]\n: c\n", "<<: {a: 1}\n", "- - - - -\n", "{" * 500, "---\n", "\x85", "\ud800", "task: [digits]\n"),
    *(
        "seed: 1e400\n",
        "search: {trials: -1}\n",
        "student: {cnn: {width: []}}\n",
        "- x\n" * 20_000,
        "\t",
        "%YAML 9.9\n",
    ),
)
#: JSON files of a run folder.
RUN_FILES = ("cascade.json", "warm_start.json")
SCHEMA_CHANGES = (
    "CREATE VIEW more AS SELECT * FROM ac_meta",
    "CREATE TRIGGER more AFTER INSERT ON ac_meta BEGIN DELETE FROM ac_candidates; END",
    "CREATE VIRTUAL TABLE more USING fts5(x)",
    "DROP TABLE ac_notes",
    "ALTER TABLE ac_candidates ADD COLUMN more TEXT DEFAULT 'x'",
    "DELETE FROM ac_meta",
    "DELETE FROM ac_trials",
)
# A change: what is changed, where, how, and to which value; the numbers are taken modulo what there is.
NUMBERS = st.integers(0, 2**32)
CHANGES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4)
Change = tuple[int, int, int, int]

CODE_EVENTS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect"}
)
PATH_EVENTS = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
)


@dataclass
class FuzzResult:
    """Counts of one kind of input.

    Attributes:
        kind: Kind of the input.
        cases: Number of cases.
        refused: Cases that some function refused by a message.
        code: Names of audit events of programs and pickles.
        outside: Paths outside of the case's folder that were written.
        tracebacks: Exception and place to the number of cases.
        longest: Seconds of the longest case.
        processor: Seconds of processor time of the most expensive case; on a busy machine, a case mostly waits.
        costliest: Changes of the most expensive case, which make it again from the same base.
        peak: Peak memory of the process in bytes while it read a case; making a case is not counted.
    """

    kind: str
    cases: int = 0
    refused: int = 0
    code: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    tracebacks: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    processor: float = 0.0
    costliest: list[Change] = field(default_factory=list)
    peak: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing ran, nothing was written outside, and nothing but messages was raised."""
        return not (self.code or self.outside or self.tracebacks)

    def format_row(self) -> str:
        """Return the row of the table."""
        return (
            f"| {self.kind} | {self.cases:,} | {self.refused:,} | {len(self.code)} | {len(self.outside)} | "
            f"{sum(self.tracebacks.values())} | {self.longest:.2f} | {self.processor:.2f} | {self.peak / 2**20:,.0f} |"
        )

    def add(self, other: "FuzzResult") -> None:
        """Add the counts of other cases of the same kind."""
        self.cases, self.refused = self.cases + other.cases, self.refused + other.refused
        self.code, self.outside = [*self.code, *other.code], [*self.outside, *other.outside]
        self.tracebacks += Counter(other.tracebacks)
        self.longest = max(self.longest, other.longest)
        if other.processor >= self.processor:
            self.processor, self.costliest = other.processor, other.costliest
        self.peak = max(self.peak, other.peak)


class Watch:
    """An audit hook that notes programs, pickles and writes outside of a folder while it is active."""

    def __init__(self) -> None:
        self.result: FuzzResult | None = None
        self.root = ""
        sys.addaudithook(self._notice)

    @contextmanager
    def observe(self, root: Path, result: FuzzResult) -> Iterator[None]:
        """Observe the body; writes below ``root`` are allowed."""
        self.root, self.result = os.path.realpath(root), result
        try:
            yield
        finally:
            self.result = None

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.result is None:
            return
        if event in CODE_EVENTS:
            self.result.code.append(f"{event} {arguments!r:.80}")
        is_write = event in PATH_EVENTS or (event == "open" and _is_write(arguments))
        if is_write and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.path.dirname(os.fsdecode(arguments[0])) or ".")
            if not f"{path}/".startswith(f"{self.root}/") and not path.startswith("/dev"):
                self.result.outside.append(f"{event} {os.fsdecode(arguments[0])}")


def _is_write(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def change_json(document: Any, change: Change) -> Any:
    """Return a JSON document with one entry replaced, deleted, renamed, nested or repeated."""
    _, where, how, value = change
    places = list(_list_places(document))
    if not places:
        return HOSTILE[value % len(HOSTILE)]
    parent, key = places[where % len(places)]
    hostile = HOSTILE[value % len(HOSTILE)]
    match how % 6:
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(hostile)[:2000]] = parent[key]
        case 2:
            parent[key] = [parent[key]]
        case 3 if isinstance(parent[key], list) and len(json.dumps(parent[key])) < 5000:
            parent[key] = (parent[key] * LONGEST)[:LONGEST]
        case _:
            parent[key] = hostile
    return document


def _list_places(node: Any) -> Iterator[tuple[Any, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in pairs:
        yield node, key
        yield from _list_places(child)


def dump_json(document: Any) -> bytes:
    """Return JSON text, with nesting of a hundred thousand levels where a value asks for it."""
    return json.dumps(document).replace(json.dumps(DEEP), "[" * 100_000).encode()


def change_text(content: bytes, change: Change) -> bytes:
    """Return JSON text with a change; an earlier one may have made it large, or no JSON any more."""
    # To change a large document again takes more memory and time than any reader of it.
    if len(content) <= LARGEST_CHANGED:
        with suppress(ValueError, RecursionError):
            return dump_json(change_json(json.loads(content), change))
    return content


def flip_bytes(content: bytes, change: Change) -> bytes:
    """Return content with a byte changed, or a part left out, or one repeated."""
    _, where, how, value = change
    at = where % max(len(content), 1)
    if how % 3 == 0:
        return content[:at] + bytes([value % 256]) + content[at + 1 :]
    return content[:at] + (content[at // 2 :] if how % 3 == 1 else content[at + value % 64 :])


def replace_file(path: Path, change: Change) -> None:
    """Put a link, a pipe, a folder or a sparse file in the place of a file."""
    # An earlier change of the same case may have put a folder there.
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    match change[2] % 5:
        case 0:
            path.symlink_to(path.parent.parent / "outside" / "canary")
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            os.mkfifo(path)
        case 3:
            path.mkdir()
        case _:
            with path.open("wb") as file:
                file.truncate(2**36)


def write_base_artifact(folder: Path, weight_bits: int = 4) -> Path:
    """Write a quantized network without training, and return its folder."""
    import torch

    from autocompress.core.config import CompressionConfig, Part
    from autocompress.core.method import Context
    from autocompress.core.registry import QUANTIZE
    from autocompress.core.task import InputSpec
    from autocompress.export.artifact import Deployable, write_artifact
    from autocompress.models.base import build_family_model

    torch.manual_seed(0)
    student, quantize = (
        Part.of("cnn", width=4, depth=1),
        Part.of("post_training", weight_bits=weight_bits, activation_bits=8),
    )
    inputs, heads = (InputSpec((1, 8, 8)),), {"label": 3}
    model = build_family_model(student, inputs, heads).eval()
    batch = (torch.rand(32, 1, 8, 8),)
    method = QUANTIZE.get(quantize.name)
    example = (batch[0][:1],)
    quantized, state = method.apply(model, method.config.of(quantize.values), Context(example, (batch,)))
    config = CompressionConfig(student, (), Part("adamw"), None, quantize)
    labels = {"label": ["a", "b", "c"]}
    deployable = Deployable(
        config, "digits", {}, labels, heads, inputs, example, model, quantized, None, state, exact=True
    )
    return write_artifact(folder, deployable, {"title": "base", "summary": "A network for fuzzing."})


def write_base_run(folder: Path) -> Path:
    """Write a run of mock trials with objectives and a front, and return its folder."""
    from dataclasses import replace

    from autocompress.analysis.cascade import CASCADE, CascadePoint, CascadeSearch, CascadeTest, SingleModel
    from autocompress.analysis.pareto import full_fidelity, pareto_front
    from autocompress.core.run_info import TeacherInfo
    from autocompress.engine.sampler.acquisition import EarlierTrial
    from autocompress.engine.warm_start import WarmStart, write_warm_start
    from autocompress.store.run_store import RunStore
    from benchmarks.faults.injection import OBJECTIVES, search_in_process

    list(search_in_process(folder, 6))
    with RunStore.open(folder) as store:
        front = tuple(pareto_front(full_fidelity(store.candidate_table()), OBJECTIVES, {})["id"])
        scores = {split: {"accuracy": 0.99} for split in ("search_val", "select_val", "test")}
        teacher = TeacherInfo(scores, {"effective_flops": 1e6})
        store.update_run_info(
            replace(
                store.run_info(),
                content={"task": "digits"},
                task="digits",
                heads={"label": 3},
                objectives=tuple(OBJECTIVES),
                all_objectives=tuple(OBJECTIVES),
                teacher=teacher,
                front=front,
                seconds=1.0,
            )
        )
        trials = [store.read_trial_candidates(trial.job.number) for trial in store.read_trials()]
    write_warm_start(folder, WarmStart(tuple(EarlierTrial((tuple(rung),), True) for rung in trials if rung), "none"))
    point = CascadePoint("t0c0", "t0c1", 0.5, 0.25, 1e5, 0.98)
    single, test = SingleModel("t0c1", 1e5, 0.9), CascadeTest(0.98, 0.9, 0.08, 0.01, 0.25, 1e5)
    search = CascadeSearch("x", "accuracy", "maximize", "effective_flops", (point,), point, single, test)
    (folder / CASCADE).write_text(search.to_json())
    return folder


def write_base_pipelines(folder: Path) -> Path:
    """Write an artifact for each kind of raw input and of prediction, whose model adds up its first input."""
    from autocompress.core.preprocessing import (
        CandidatesInput,
        CategoriesInput,
        IdInput,
        NumbersInput,
        RowInput,
        SeriesInput,
        TensorInput,
        TextInput,
        dump_input,
    )

    names, ids = ["a", "b", "c"], ("x", "y", None)
    numbers = NumbersInput(("a", "b"), (0.0, 0.0), (1.0, 1.0), ("b",), ((0.0, 1.0), ()), ((-1.0, 1.0), ()))
    inputs: dict[str, tuple[Any, ...]] = {
        "text": (TextInput("characters", 8, 30, "abc"),),
        "series": (SeriesInput((1, 8), (0.0,), (1.0,)),),
        "row": (RowInput(("a", "b"), (0.0, 0.0), (1.0, 1.0)),),
        "table": (numbers, CategoriesInput(("k",), (("u", "v"),))),
        "ranking": (IdInput("user", ids, 0, 0), CandidatesInput("items", ids, 1)),
        "tensor": (TensorInput("tokens", (8,), "int64", 30),),
    }
    outputs: dict[str, dict[str, Any]] = {
        "levels": {"head": "label", "kind": "levels", "classes": names, "levels": [1, 2, 3], "threshold": 0.5},
        "binary": {"head": "label", "kind": "binary", "classes": names[:2], "threshold": 0.5},
        "multilabel": {"head": "label", "kind": "multilabel", "classes": names, "threshold": 0.5},
        "tags": {"head": "label", "kind": "tags", "classes": ["O", "B-P", "I-P"], "axis": -1, "units": "characters"},
        "regression": {"head": "label", "kind": "regression", "classes": names},
        "ranking": {"head": "label", "kind": "ranking", "candidates": "items"},
    }
    shapes = {"binary": (1,), "tags": (8, 3), "ranking": (2,)}
    pairs = [(kind, {"text": "tags", "ranking": "ranking"}.get(kind, "levels")) for kind in inputs]
    pairs += [("row", kind) for kind in ("binary", "multilabel", "regression")]
    score = {"accuracy": {"value": 0.5, "direction": "maximize"}}
    origin = {"run": "r", "fingerprint": "f", "candidate": "t0c0", "metric": "accuracy", "scores": score}
    for kind, output in pairs:
        entries = [{"tensor": entry.name, **dump_input(entry)} for entry in inputs[kind]]
        record = {"format": 1, "task": "rows", "inputs": entries, "outputs": [outputs[output]], "session": {}}
        write_pipeline(folder / f"{kind}-{output}", {**record, "origin": origin}, shapes.get(output, (3,)))
    return folder


def write_pipeline(folder: Path, record: Any, shape: Sequence[int]) -> None:
    """Write an artifact of preprocess.json and a model of its inputs, with outputs of a shape."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from autocompress.export.folder import write_files
    from autocompress.export.pipeline import METADATA

    sizes: dict[str, list[Any]] = {"id": [], "candidates": ["items"], "text": [8], "tensor": [8], "series": [1, 8]}
    is_float = {"series", "row", "numbers"}
    values = [
        helper.make_tensor_value_info(
            entry["tensor"],
            TensorProto.FLOAT if entry["kind"] in is_float else TensorProto.INT64,
            ["batch", *sizes.get(entry["kind"], [f"n{at}"])],
        )
        for at, entry in enumerate(record["inputs"])
    ]
    head = record["outputs"][0]["head"]
    constants = {
        "end": np.array([-1, *[1] * len(shape)]),
        "zero": np.zeros((1, *shape), np.float32),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Flatten", [record["inputs"][0]["tensor"]], ["flat"], axis=1),
        helper.make_node("Cast", ["flat"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float", "axis"], ["sum"]),
        helper.make_node("Reshape", ["sum", "end"], ["column"]),
        helper.make_node("Add", ["column", "zero"], [head]),
    ]
    output = helper.make_tensor_value_info(head, TensorProto.FLOAT, ["batch", *shape])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sum", values, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    preprocess = dump_json(record)
    helper.set_model_props(model, {METADATA: preprocess.decode()})
    files = {"preprocess.json": preprocess, "model.onnx": model.SerializeToString()}
    write_files(folder, files, lambda written: None)


def change_pipelines(base: Path, folder: Path, changes: Sequence[Change]) -> None:
    """Write a changed copy of one of several artifacts, with a model that carries the changed preprocess.json."""
    import onnx
    from onnx import helper

    from autocompress.export.folder import read_files, write_files
    from autocompress.export.pipeline import METADATA

    bases = sorted(base.iterdir())
    files = read_files(bases[changes[0][0] % len(bases)], required=())
    for change in changes:
        files["preprocess.json"] = change_text(files["preprocess.json"], change)
    model = onnx.load_from_string(files["model.onnx"])
    helper.set_model_props(model, {METADATA: files["preprocess.json"].decode()})
    write_files(folder, {**files, "model.onnx": model.SerializeToString()}, lambda written: None)


def read_pipelines(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield every function that reads the raw input of an artifact, and one that serves it."""
    from autocompress.export.folder import read_files
    from autocompress.export.origin import read_origin
    from autocompress.export.preprocess_file import read_preprocessing
    from autocompress.runtime.models import build_levels, load_models

    yield lambda: read_preprocessing((folder / "preprocess.json").read_bytes())
    yield lambda: read_origin(read_files(folder, required=())["preprocess.json"])
    yield lambda: build_levels(load_models([folder]))


def write_base_joined(folder: Path) -> Path:
    """Write two networks of one file, and return its folder."""
    from autocompress.export.switchable import join_artifacts

    parts = [write_base_artifact(folder / f"bits{bits}", bits) for bits in (4, 8)]
    return join_artifacts(parts, folder / "joined").folder


def change_artifact(base: Path, folder: Path, changes: Sequence[Change]) -> None:
    """Write a changed copy of an artifact, with a manifest that fits."""
    names = ["architecture.json"] * 6 + ["preprocess.json"] * 3 + ["model.safetensors", "model.onnx", "config.yaml"]
    _change_files(base, folder, changes, names)


def change_joined(base: Path, folder: Path, changes: Sequence[Change]) -> None:
    """Write a changed copy of networks of one file, with a manifest that fits."""
    _change_files(base, folder, changes, ["switchable.json"] * 4 + ["model.safetensors"])


def read_joined(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield the function that reads networks of one file."""
    from autocompress.export.switchable import load_switchable

    yield lambda: load_switchable(folder)


def _change_files(base: Path, folder: Path, changes: Sequence[Change], names: Sequence[str]) -> None:
    from autocompress.export.folder import MANIFEST, read_files, write_files

    files, kinds = read_files(base, required=()), []
    for change in changes:
        name = names[change[0] % len(names)]
        files[name] = (change_text if name.endswith(".json") else flip_bytes)(files[name], change)
        if change[0] % 7 == 0:
            kinds.append((name if change[1] % 4 else MANIFEST, change))
    write_files(folder, files, lambda written: None)
    for name, change in kinds:
        replace_file(folder / name, change)


def read_artifact(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield every function that reads an artifact."""
    from autocompress.export.artifact import expand_artifact, load_artifact
    from autocompress.runtime.models import load_model

    yield lambda: load_artifact(folder)
    yield lambda: expand_artifact(folder)
    yield lambda: load_model(folder)


def change_spec(base: Path, folder: Path, changes: Sequence[Change]) -> None:
    """Write a search space with lines that were inserted, replaced, doubled or cut."""
    folder.mkdir()
    texts = sorted(base.glob("*.yaml"))
    lines = texts[changes[0][0] % len(texts)].read_text(encoding="utf-8").splitlines(keepends=True)
    for kind, where, how, value in changes:
        at, fragment = where % (len(lines) or 1), FRAGMENTS[value % len(FRAGMENTS)]
        match kind % 4:
            case 0:
                lines.insert(at, fragment)
            case 1 if lines:
                lines[at] = lines[at].partition(":")[0] + ": " + str(HOSTILE[how % len(HOSTILE)])[:5000] + "\n"
            case 2 if lines:
                lines[at] = lines[at][: how % (len(lines[at]) + 1)] + fragment
            case _:
                lines = lines[:at] + lines[max(at - how % 3, 0) :]
    (folder / "space.yaml").write_bytes("".join(lines).encode("utf-8", "surrogatepass"))


def read_spec(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield every function that reads a search space before its data is loaded."""
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import load_spec

    yield lambda: open_space(load_spec(folder / "space.yaml"))


def change_store(base: Path, folder: Path, changes: Sequence[Change]) -> None:
    """Write a changed copy of a run folder, with seals that fit."""
    from autocompress.store.schema import CANDIDATE_COLUMNS, DATABASE, TRIAL_COLUMNS, open_database

    shutil.copytree(base, folder)
    for at, name in enumerate(RUN_FILES):
        if changes[0][3] % (4 * len(RUN_FILES)) == at:
            content = change_text((folder / name).read_bytes(), changes[0])
            (folder / name).write_bytes(flip_bytes(content, changes[0]) if changes[0][1] % 5 == 0 else content)
    connection = open_database(folder / DATABASE)
    tables = (
        ("ac_candidates", CANDIDATE_COLUMNS),
        ("ac_trials", TRIAL_COLUMNS),
        ("ac_meta", ("key", "value", "value")),
        ("ac_parts", ("number", "part", "part")),
    )
    for change in changes:
        table, columns = tables[change[0] % len(tables)]
        column = columns[change[2] % len(columns)]
        with suppress(sqlite3.Error, OverflowError):
            if change[0] % 23 == 0:
                connection.executescript(SCHEMA_CHANGES[change[1] % len(SCHEMA_CHANGES)])
                continue
            rows = connection.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid").fetchall()
            if not rows:
                # An earlier change has deleted them.
                continue
            row, value = rows[change[1] % len(rows)]
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (_change_cell(value, change), row))
    connection.close()
    if changes[0][0] % 11 == 0:
        (folder / DATABASE).write_bytes(flip_bytes((folder / DATABASE).read_bytes(), changes[0]))
    if changes[0][0] % 13 == 0:
        names = (DATABASE, f"{DATABASE}-wal", ".lock", *RUN_FILES)
        replace_file(folder / names[changes[0][1] % len(names)], changes[0])


def _change_cell(value: object, change: Change) -> object:
    document = None
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            document = json.loads(value)
    if isinstance(document, dict | list):
        return dump_json(change_json(document, change)).decode()
    hostile = HOSTILE[change[3] % len(HOSTILE)]
    return hostile if hostile is None or isinstance(hostile, str | float | int) else json.dumps(hostile)


def read_store(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield every function that reads a run folder, but for the page."""
    from autocompress.analysis.cascade import CascadeSearch
    from autocompress.engine.space import open_space
    from autocompress.engine.spec import parse_spec
    from autocompress.engine.warm_start import load_warm_start, read_warm_start
    from autocompress.front import Front
    from autocompress.store.run_store import RunStore
    from benchmarks.faults.injection import OBJECTIVES, SPEC

    def start_from_run() -> None:
        task: Any = SimpleNamespace(name="digits", heads={"label": 3})
        read_warm_start(folder, open_space(parse_spec(SPEC, "x")), task, OBJECTIVES)

    def read_trials() -> None:
        with RunStore.read(folder) as store:
            for trial in store.read_trials():
                store.read_trial_candidates(trial.job.number)
            list(store.read_notes())

    yield read_trials
    yield lambda: Front(folder).to_pandas()
    yield lambda: Front(folder).pick()
    yield lambda: CascadeSearch.read(folder)
    yield lambda: load_warm_start(folder)
    yield start_from_run


def read_page(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield the function that writes the page and the tables of a run folder."""
    from autocompress.front import Front

    yield lambda: Front(folder).report(folder / "page")


Kind = tuple[
    Callable[[Path], Path],
    Callable[[Path, Path, Sequence[Change]], None],
    Callable[[Path], Iterator[Callable[[], object]]],
]


def _list_spaces(folder: Path) -> Path:
    from autocompress.engine.spec import list_shipped_spaces

    return next(iter(list_shipped_spaces().values())).parent


KINDS: dict[str, Kind] = {
    "artifacts": (write_base_artifact, change_artifact, read_artifact),
    "joined models": (write_base_joined, change_joined, read_joined),
    "pipelines": (write_base_pipelines, change_pipelines, read_pipelines),
    "search spaces": (_list_spaces, change_spec, read_spec),
    "stores": (write_base_run, change_store, read_store),
    "pages": (write_base_run, change_store, read_page),
}


def fuzz(
    kind: str, cases: int, root: Path, base: Path | None = None, watch: Watch | None = None, block: int = 0
) -> FuzzResult:
    """Read changed inputs of one kind, and return what happened.

    Args:
        kind: Key of ``KINDS``.
        cases: Number of cases.
        root: An empty folder.
        base: The valid input; written if it is not given.
        watch: The audit hook, which cannot be removed from a process; a new one by default.
        block: Seed of the changes.
    """
    from autocompress.errors import AutocompressError

    make, change, read = KINDS[kind]
    os.environ["AUTOCOMPRESS_CACHE"] = str(root / "cache")
    base = base or make(root / "base")
    (root / "outside").mkdir(parents=True)
    canary = root / "outside" / "canary"
    canary.write_text("a file of the user")
    watch, result = watch or Watch(), FuzzResult(kind)
    # Libraries that readers import are no time of the first case.
    change(base, root / "case", [(0, 0, 0, 0)])
    for call in read(root / "case"):
        with suppress(AutocompressError):
            call()

    @seed(block)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(CHANGES)
    def run_case(changes: list[Change]) -> None:
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        change(base, folder, changes)
        result.cases += 1
        reset_peak_memory()
        started, processor, refusals = time.perf_counter(), time.process_time(), 0
        for call in read(folder):
            try:
                with watch.observe(folder, result):
                    call()
            except AutocompressError:
                refusals += 1
            except Exception as error:
                result.tracebacks[_describe_error(error)] += 1
        result.refused += bool(refusals)
        result.longest = max(result.longest, time.perf_counter() - started)
        result.peak = max(result.peak, read_peak_memory())
        if (spent := time.process_time() - processor) > result.processor:
            result.processor, result.costliest = spent, changes
        if canary.read_text() != "a file of the user" or len(list(canary.parent.iterdir())) != 1:
            result.outside.append(f"{canary}: {changes}")

    run_case()
    return result


def reset_peak_memory() -> None:
    """Give freed memory back to the system, and let the peak memory of this process be what it uses now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def read_peak_memory() -> int:
    """Return the peak memory of this process in bytes since :func:`reset_peak_memory`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def _describe_error(error: Exception) -> str:
    """Return an exception with its last place in this package."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "/autocompress/" in frame.filename]
    place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:60]!r}"


def _fuzz_in_process(kind: str, cases: int, block: int) -> FuzzResult:
    with tempfile.TemporaryDirectory() as folder:
        return fuzz(kind, cases, Path(folder), block=block)


def fuzz_in_blocks(kind: str, cases: int, done: Path | None) -> FuzzResult:
    """Fuzz one kind in blocks, each in a process of its own; blocks that a file lists are not run again.

    Args:
        kind: Key of ``KINDS``.
        cases: Number of cases.
        done: File to which each block is added as a line of JSON; ``None`` keeps none.
    """
    lines = done.read_text().splitlines() if done is not None and done.exists() else []
    blocks = {
        entry["block"]: FuzzResult(**entry["result"]) for entry in map(json.loads, lines) if entry["kind"] == kind
    }
    total = FuzzResult(kind)
    for block in range(-(-cases // BLOCK)):
        if block not in blocks:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                size = min(BLOCK, cases - block * BLOCK)
                blocks[block] = pool.submit(_fuzz_in_process, kind, size, block).result()
            if done is not None:
                with done.open("a") as file:
                    file.write(json.dumps({"kind": kind, "block": block, "result": vars(blocks[block])}) + "\n")
        total.add(blocks[block])
    return total


def main() -> None:
    """Fuzz every kind, print one line each and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--done", type=Path, help="file of finished blocks: a run that was stopped goes on")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/fuzz.md"))
    arguments = parser.parse_args()
    lines = ["# Fuzzing", "", describe_benchmark(__doc__), "", "`python -m benchmarks.fuzz`", ""]
    lines += [
        "| input | cases | refused | code run | writes outside | tracebacks | longest, s | processor, s "
        "| peak memory, MiB |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for kind in arguments.kinds:
        result = fuzz_in_blocks(kind, arguments.cases, arguments.done)
        lines.append(result.format_row())
        print(lines[-1], flush=True)
        costliest = [f"most expensive: {result.costliest}"]
        for text in [*result.code[:5], *result.outside[:5], *map(str, result.tracebacks.most_common(20)), *costliest]:
            print(f"  {text}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
