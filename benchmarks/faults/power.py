"""Power loss: the driver's system calls are recorded, and replayed up to an instant.

What was not synced may be on the disk or not, in any order. So each instant is tried without any of it, with all of
it, and with a random choice for each file and folder.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.injection import FaultResult, search_in_process

ACKNOWLEDGED, PAGE = "acknowledged", "page.html"
CALLS = "openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"
_CALL = re.compile(r"(\w+)\((.*)\) += (\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"^(\d+)<([^>]*)>")


@dataclass
class Inode:
    """A file: its content now, and its content that was synced."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Disk:
    """Files under a folder, as system calls leave them; folders themselves are always durable.

    Attributes:
        names: Path to file, now.
        synced_names: The same for entries whose folder was synced.
        offsets: Descriptor to its position.
    """

    names: dict[str, Inode] = field(default_factory=dict)
    synced_names: dict[str, Inode] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)

    def sync_folder(self, folder: str) -> None:
        """Make the entries of a folder durable."""
        for name in [name for name in self.synced_names if os.path.dirname(name) == folder]:
            del self.synced_names[name]
        self.synced_names |= {name: node for name, node in self.names.items() if os.path.dirname(name) == folder}

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Write at a position; a gap is filled with zeros."""
        content = self.names.setdefault(path, Inode()).content
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    def apply(self, call: str, text: str, result: int) -> None:
        """Apply a system call of the trace."""
        strings = [bytes.fromhex(match[1].replace("\\x", "")) for match in _TEXT.finditer(text)]
        match = _DESCRIPTOR.match(text)
        number, path = (int(match[1]), _decode(match[2])) if match else (-1, "")
        numbers = [int(word) for word in re.findall(r", (\d+)", text)]
        if call == "openat":
            name = os.fsdecode(strings[0])
            if "O_CREAT" in text:
                self.names.setdefault(name, Inode())
            if "O_TRUNC" in text and name in self.names:
                self.names[name].content.clear()
            is_appended = "O_APPEND" in text and name in self.names
            self.offsets[result] = len(self.names[name].content) if is_appended else 0
        elif call == "write":
            self.write(path, strings[0][:result], self.offsets.get(number, 0))
            self.offsets[number] = self.offsets.get(number, 0) + result
        elif call == "pwrite64":
            self.write(path, strings[0][:result], numbers[-1])
        elif call == "ftruncate":
            content = self.names[path].content
            size = numbers[-1]
            content[size:] = bytes(max(0, size - len(content)))
        elif call in ("fsync", "fdatasync"):
            if path in self.names:
                self.names[path].synced = bytes(self.names[path].content)
            else:
                self.sync_folder(path)
        elif call.startswith("rename"):
            self.names[os.fsdecode(strings[1])] = self.names.pop(os.fsdecode(strings[0]))
        elif call.startswith("unlink"):
            self.names.pop(os.fsdecode(strings[-1]), None)

    def restore(self, root: str, folder: Path, keeps: Callable[[], bool]) -> None:
        """Write what a power loss leaves to a folder.

        Args:
            root: The recorded folder.
            folder: An empty folder.
            keeps: Function that returns whether the unsynced part of the next file or folder is on the disk.
        """
        left = dict(self.synced_names)
        for parent in sorted({os.path.dirname(name) for name in {*self.names, *self.synced_names}}):
            if keeps():
                left = {name: node for name, node in left.items() if os.path.dirname(name) != parent}
                left |= {name: node for name, node in self.names.items() if os.path.dirname(name) == parent}
        for name, node in left.items():
            path = folder / os.path.relpath(name, root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(node.content) if keeps() else node.synced)


def record_search(folder: Path, trials: int) -> None:
    """Search with mock trials in this process; append the ids of each stored result to a file once it is stored."""
    from autocompress.core.atomic import write_atomic

    acknowledged = os.open(folder / ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for result in search_in_process(folder / "run", trials):
        os.write(acknowledged, (json.dumps([candidate.id for candidate in result.candidates]) + "\n").encode())
        # A file that is replaced again and again.
        write_atomic(folder / "run" / PAGE, f"{result.number:06d}" * 1000)


def lose_power(root: Path, points: int = 50, trials: int = 10) -> FaultResult:
    """Row 29: power loss at random instants: what was not synced is dropped or kept, entries of folders too."""
    expected = "what was stored is there, once and whole; files are old or new"
    if shutil.which("strace") is None:
        return FaultResult(expected, "not measured: strace is not installed", False)
    (root / "recorded").mkdir()
    recorded, trace = (root / "recorded").resolve(), root / "trace"
    arguments = f"Path({str(recorded)!r}), {trials}"
    code = f"from pathlib import Path; from benchmarks.faults.power import record_search; record_search({arguments})"
    options = ["-qq", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    subprocess.run(["strace", *options, sys.executable, "-c", code], check=True)
    calls = list(_read_calls(trace, str(recorded)))
    # Before the first acknowledgement nothing can be lost.
    mark = f"/{ACKNOWLEDGED}".encode().hex()
    first = next(at for at, (call, text, _) in enumerate(calls) if call == "write" and mark in text.replace("\\x", ""))
    draw = random.Random(0)
    instants = {*draw.sample(range(first + 1, len(calls) + 1), min(points, len(calls) - first))}
    # A file that is emptied in its place is half-written for an instant, which a random one seldom meets.
    emptied = [at + 1 for at in range(first, len(calls)) if calls[at][0] == "openat" and "O_TRUNC" in calls[at][1]]
    instants |= {*emptied[:points]}
    counts = {"lost": 0, "without their file": 0, "files half-written": 0, "stores that cannot be read": 0}
    disk, done = Disk(), 0
    for instant in sorted(instants):
        for call in calls[done:instant]:
            disk.apply(*call)
        done = instant
        lines = bytes(disk.names[str(recorded / ACKNOWLEDGED)].content).decode().splitlines()
        acknowledged = [name for line in lines for name in json.loads(line)]
        for keeps in (lambda: False, lambda: True, lambda: draw.random() < 0.5):
            shutil.rmtree(root / "after", ignore_errors=True)
            disk.restore(str(recorded), root / "after", keeps)
            for name, count in _count_losses(root / "after" / "run", acknowledged):
                counts[name] += count
    measured = ", ".join(f"{count} {name}" for name, count in counts.items())
    return FaultResult(
        expected,
        f"{len(instants)} instants of {len(calls)} calls, three disks each: {measured}",
        not any(counts.values()),
    )


def _count_losses(run: Path, acknowledged: list[str]) -> Iterator[tuple[str, int]]:
    from autocompress.errors import AutocompressError
    from autocompress.store.run_store import RunStore

    if (run / PAGE).exists():
        page = (run / PAGE).read_text()
        # Every version repeats its number a thousand times.
        yield "files half-written", int(len(page) != 6000 or page != page[:6] * 1000)
    try:
        with RunStore.read(run) as store:
            table = store.candidate_table()
            checkpoints = {
                identity: store.read_candidate(identity).checkpoint for identity in set(table["id"]) & {*acknowledged}
            }
            missing = [name for name in checkpoints.values() if name and not _is_whole(store.checkpoint_path(name))]
    except (AutocompressError, OSError, KeyError):
        yield "stores that cannot be read", 1
        return
    yield "lost", len({*acknowledged} - {*checkpoints})
    yield "without their file", len(missing)


def _is_whole(path: Path) -> bool:
    # A mock trial stores seven bytes.
    return path.is_file() and len(path.read_bytes()) == 7


def _read_calls(trace: Path, root: str) -> Iterator[tuple[str, str, int]]:
    """Yield name, arguments and result of each successful call on a path below a folder."""
    with trace.open() as lines:
        for line in lines:
            # Paths are written in hexadecimal like every text.
            match = _CALL.match(line) if root.encode().hex() in line.replace("\\x", "") else None
            if match:
                yield match[1], match[2], int(match[3])


def _decode(path: str) -> str:
    return os.fsdecode(bytes.fromhex(path.replace("\\x", ""))) if path.startswith("\\x") else path
