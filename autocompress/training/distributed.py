"""Data-parallel fitting: one fit by several processes of this machine, through torch's DistributedDataParallel.

The processes find each other by a file and talk over the loopback interface only. Each one ends when its parent
does, however that ends.

Gradients are averaged over each global batch, so that the result is that of one process up to rounding, with these
exceptions. Batch norms take the statistics of a process's own share (the synchronised kind exists on GPUs only), and
so do terms that relate the examples of a batch; attacks with a random start and mixup draw their own numbers.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.task import Split, Task
from autocompress.distill.base import TeacherSource
from autocompress.errors import AutocompressError, TrialError
from autocompress.training import trainer as loop
from autocompress.training.optimizers import fit_config
from autocompress.training.precision import choose_precision
from autocompress.training.process_group import Team

# The first message is what multiprocessing gives its own children: search path, main module, working folder.
_CHILD = """
import pickle, sys
from multiprocessing import spawn
spawn.prepare(pickle.load(sys.stdin.buffer))
from autocompress.training.distributed import serve
serve(sys.stdin.buffer)
"""
_INSIDE = "AUTOCOMPRESS_FIT_PROCESS"
# How long the others may say why after the first has failed.
_GRACE = 1.0
_LEAVE = 10.0


@dataclass(frozen=True)
class _Job:
    """What every process is given."""

    model: nn.Module
    task: Task
    train: Split
    part: Part
    terms: tuple[Part, ...]
    teacher: TeacherSource | None
    seed: int
    threads: int
    flush_denormal: bool


def fit_parallel(
    model: nn.Module,
    task: Task,
    train: Split,
    part: Part,
    *,
    terms: Sequence[Part] = (Part("none"),),
    teacher: TeacherSource | None = None,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place by ``fit.processes`` processes and return its curve, one row an epoch.

    Args:
        model: Trained in place and left in evaluation mode.
        task: Gives the views and the loss; each process gets a copy.
        train: The training split; each process takes its share of each batch of ``fit.batch_size``.
        part: The optimizer with its settings.
        terms: Distillation terms: exactly one on logits, any number on features.
        teacher: The teacher with its cached logits.
        seed: Seeds the order of the examples; attacks and mixup draw differently in each process.
        on_epoch: Called in this process with each row of the curve.

    Raises:
        TrialError: As in one process; or the batch is smaller than the number of processes, the model or the task
            cannot be sent to another process, or one of them died.
    """
    if _INSIDE in os.environ:
        raise TrialError("a script that fits by several processes runs them behind `if __name__ == '__main__':`")
    config = fit_config(part)
    batch = min(config.batch_size, len(loop.hold_out(train, config, seed)[0]))
    if batch < config.processes:
        raise TrialError(f"{config.processes} processes cannot share batches of {batch}; raise fit.batch_size")
    if config.precision == "auto":
        # The probe could differ between processes.
        low = choose_precision("auto", model, task, train.take(slice(0, batch))).low
        part = Part.of(part.name, **{**part.values, "precision": "bfloat16" if low else "float32"})
    job = _Job(model, task, train, part, tuple(terms), teacher, seed, torch.get_num_threads(), _flushes_denormals())
    try:
        packed = pickle.dumps(job)
    except Exception as reason:  # Whatever a user's class raises when it is pickled.
        raise TrialError(f"this fit cannot be sent to other processes ({reason}); set fit.processes to 1") from reason
    with TemporaryDirectory(prefix="autocompress-fit-", ignore_cleanup_errors=True) as folder:
        curve, weights = _supervise(packed, config.processes, Path(folder), on_epoch)
    model.load_state_dict(weights)
    model.eval()
    return curve


def _supervise(
    packed: bytes, size: int, folder: Path, on_epoch: Callable[[dict[str, float]], None] | None
) -> tuple[list[dict[str, float]], Mapping[str, Tensor]]:
    with _crew(size, folder) as crew:
        messages: queue.Queue[tuple[int, str, Any]] = queue.Queue()
        for rank, child in enumerate(crew):
            threading.Thread(target=_listen, args=(rank, child, messages), daemon=True).start()
        for rank, child in enumerate(crew):
            _send(child, _preparation(packed), (rank, size, str(folder / "meeting")), packed)
        done: dict[int, Any] = {}
        while len(done) < size:
            rank, kind, content = messages.get()
            if kind == "epoch":
                if on_epoch is not None:
                    on_epoch(content)
            elif kind == "done":
                done[rank] = content
            elif rank not in done:
                raise _failure([(rank, kind, content), *_last_words(messages)], crew, folder)
        for child in crew:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_LEAVE)
        curve, weights = done[0]
        return curve, weights


@contextmanager
def _crew(size: int, folder: Path) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Start the processes; at the end none of them is left."""
    # The interface's name is all that gloo can be told; the loopback one keeps strangers out.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, _INSIDE: "1"}
    crew: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(size):
            with (folder / f"stderr-{rank}").open("wb") as errors:
                crew.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _CHILD],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env=environment,
                    )
                )
        yield crew
    finally:
        for child in crew:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _preparation(packed: bytes) -> dict[str, Any]:
    data = spawn.get_preparation_data("fit")
    # It cannot be pickled, and nothing here authenticates by it.
    data.pop("authkey", None)
    if b"__main__" not in packed and b"__mp_main__" not in packed:
        # The script that started all this is run again only where a class of it travels.
        data.pop("init_main_from_path", None)
        data.pop("init_main_from_name", None)
    return data


def _send(child: "subprocess.Popen[bytes]", preparation: dict[str, Any], place: tuple[Any, ...], packed: bytes) -> None:
    assert child.stdin is not None
    # A child that died meanwhile says so by the end of its output.
    with suppress(BrokenPipeError):
        child.stdin.write(pickle.dumps(preparation) + pickle.dumps(place) + packed)
        child.stdin.flush()


def _listen(rank: int, child: "subprocess.Popen[bytes]", messages: "queue.Queue[tuple[int, str, Any]]") -> None:
    """Pass on what one process says, and that it says no more."""
    assert child.stdout is not None
    with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
        while True:
            messages.put((rank, *pickle.load(child.stdout)))
    messages.put((rank, "died", None))


def _last_words(messages: "queue.Queue[tuple[int, str, Any]]") -> list[tuple[int, str, Any]]:
    found = []
    deadline = time.monotonic() + _GRACE
    with suppress(queue.Empty):
        while True:
            found.append(messages.get(timeout=max(deadline - time.monotonic(), 0)))
    return found


def _failure(said: list[tuple[int, str, Any]], crew: "list[subprocess.Popen[bytes]]", folder: Path) -> Exception:
    """Return the error that explains most: a named one, else a process that died, else what the first one met."""
    for _, kind, content in said:
        if kind == "failed" and isinstance(content, AutocompressError):
            return content
    spoken = {rank for rank, kind, _ in said if kind == "failed"}
    for rank, kind, _ in said:
        if kind == "died" and rank not in spoken:
            lines = (folder / f"stderr-{rank}").read_text(errors="replace").strip().splitlines()
            why = f": {lines[-1]}" if lines else ""
            return TrialError(f"process {rank} of {len(crew)} of this fit died (exit code {crew[rank].wait()}){why}")
    rank, content = next((rank, content) for rank, kind, content in said if kind == "failed")
    return TrialError(f"process {rank} of {len(crew)} of this fit failed: {content}")


def serve(stream: IO[bytes]) -> None:
    """Run one process of a fit; its part comes from ``stream``, what it finds goes to the standard output."""
    # Ctrl-C reaches the whole process group; the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "wb")
    # Whatever a task prints must not mix with the messages.
    os.dup2(2, 1)

    def say(kind: str, content: Any) -> None:
        channel.write(pickle.dumps((kind, content)))
        channel.flush()

    try:
        rank, size, meeting = pickle.load(stream)
        job: _Job = pickle.load(stream)
        threading.Thread(target=_leave_with_parent, args=(stream.fileno(),), daemon=True).start()
        say("done", _work(job, rank, size, meeting, say))
    except AutocompressError as error:
        say("failed", error)
    except Exception as error:
        say("failed", f"{type(error).__name__}: {error}")


def _work(
    job: _Job, rank: int, size: int, meeting: str, say: Callable[[str, Any], None]
) -> tuple[list[dict[str, float]], Mapping[str, Tensor]] | None:
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(job.flush_denormal)
    torch.manual_seed(job.seed + rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        curve = loop.run(
            job.model,
            job.task,
            job.train,
            job.part,
            terms=job.terms,
            teacher=job.teacher,
            seed=job.seed,
            on_epoch=(lambda row: say("epoch", row)) if rank == 0 else None,
            team=Team(rank, size),
        ).curve
    finally:
        dist.destroy_process_group()
    return (curve, job.model.state_dict()) if rank == 0 else None


def _leave_with_parent(descriptor: int) -> None:
    """End this process when the other end of its input is gone."""
    while os.read(descriptor, 1):
        pass
    os._exit(1)


def _flushes_denormals() -> bool:
    return bool(torch.tensor(torch.finfo(torch.float32).tiny).div(2) == 0)
