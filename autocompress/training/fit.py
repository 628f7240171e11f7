"""Fits of models, in this process or data-parallel: several processes share one fit through DistributedDataParallel.

Teachers, students, recovery after pruning and quantization-aware training are all trained by :func:`fit`.

The processes find each other through a file and communicate over the loopback interface only. Each process exits when
its parent does, however the parent ends.

Gradients are averaged over each global batch, and batch norms use the statistics of the whole batch, so the result
equals that of one process up to rounding, with these exceptions: terms that relate the examples of a batch see only a
process's own share, and dropout, attacks with a random start and mixup draw their own random numbers in each process.

With ``fit.shards`` above 1, the processes also divide the model: each stores a part of weights, gradients and optimizer
state, and of a teacher that runs live (:mod:`autocompress.training.sharding`). The job and the paused state reach the
processes as files that they map, so that no process reads the parts of the others into memory.
"""

import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import spawn
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.core.commands import python_command
from autocompress.core.config import Part
from autocompress.errors import AutocompressError, TrialError
from autocompress.training.device import CPU, ProcessGroup, choose_precision
from autocompress.training.optimizers import FitConfig
from autocompress.training.sharding import ProcessMemory, gather_state
from autocompress.training.trainer import CurveRow, FitRequest, FitResult, Trainer, hold_out, predict

__all__ = ["FitRequest", "FitResult", "fit", "predict"]

logger = logging.getLogger(__name__)


def fit(model: nn.Module, request: FitRequest) -> FitResult:
    """Train ``model`` in place and return its curve and, if the fit pauses, the state from which it resumes.

    A paused and resumed fit gives bit for bit what an uninterrupted one gives. With ``fit.processes`` or ``fit.shards``
    above 1, several processes of this machine share the batches; it may resume with another number of processes.

    Args:
        model: The model, left in evaluation mode. When a paused fit resumes, its weights are replaced.
        request: Task, data, optimizer, losses and length of the fit.

    Raises:
        TrialError: The loss is no longer finite, a term needs a teacher and there is none, a layer that a term reads
            does not exist, or the paused state is damaged or of another model.

    Example:
        >>> from autocompress.core.config import Part
        >>> from autocompress.tasks.images import Digits
        >>> task = Digits()
        >>> student = task.build(Part.of("cnn", width=4, depth=1))
        >>> result = fit(student, FitRequest(task, task.splits(0).train, Part.of("adamw", epochs=2)))
        >>> len(result.curve)
        2
    """
    size = request.config.group_size
    if size > 1:
        reason = _find_single_process_reason(model, request)
        if not reason:
            return fit_parallel(model, request)
        logger.info("The fit runs in one process instead of %d: %s", size, reason)
    return Trainer(model, request).run()


def _find_single_process_reason(model: nn.Module, request: FitRequest) -> str:
    """Return why a fit cannot be shared by several processes; empty if it can."""
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        return "the layers of the model are parametrized"
    if request.after_step is not None:
        return "a callback follows each step"
    if request.auxiliary_loss is not None:
        return "an auxiliary loss belongs to one process"
    return "" if request.device == CPU else "one process uses the GPU"


# The first message is the preparation data that multiprocessing gives its own children: search path, main module,
# working folder.
_CHILD = """
import pickle, sys
from multiprocessing import spawn
spawn.prepare(pickle.load(sys.stdin.buffer))
from autocompress.training.fit import run_process
run_process(sys.stdin.buffer)
"""
_CHILD_VARIABLE = "AUTOCOMPRESS_FIT_PROCESS"
# Seconds in which the other processes may report their reason after the first one has failed: the failure of one
# process breaks the connections of the others, and the first report is not always the cause.
_REPORT_SECONDS = 1.0
_EXIT_SECONDS = 10.0

Child = subprocess.Popen[bytes]


@dataclass(frozen=True)
class _Job:
    """The part of a fit that every process receives."""

    model: nn.Module
    request: FitRequest
    threads: int
    flush_denormal: bool


class _Position(NamedTuple):
    """The position of a process: its rank, the number of processes, and the folder with the files of the fit."""

    rank: int
    size: int
    folder: str


class _Message(NamedTuple):
    """A message of a process: ``epoch`` with a row, ``done`` with its memory, ``failed`` with a reason, or ``died``."""

    rank: int
    kind: str
    content: object


class _Result(NamedTuple):
    """The result of the process of rank 0, which it writes to a file."""

    curve: list[CurveRow]
    weights: Mapping[str, Tensor]
    paused: bytes


# Files of a fit in the folder that its processes share.
_JOB, _PAUSED, _RESULT, _MEETING = "job", "paused", "result", "meeting"


def fit_parallel(model: nn.Module, request: FitRequest) -> FitResult:
    """Train ``model`` in place with ``fit.processes`` times ``fit.shards`` processes and return its curve.

    Args:
        model: The model, left in evaluation mode.
        request: The fit; each process gets a copy of its task and takes its share of each batch. The request has
            neither an auxiliary loss nor a callback after each step.

    Raises:
        TrialError: As in one process; or the batch is smaller than the number of processes, the model or the task
            cannot be sent to another process, or one of them died.
    """
    if _CHILD_VARIABLE in os.environ:
        # A child that imports an unguarded script would start processes of its own, without end.
        raise TrialError("a script that fits by several processes runs them behind `if __name__ == '__main__':`")
    config = request.config
    batch_size = min(config.batch_size, len(hold_out(request.train, config, request.seed)[0]))
    size = config.group_size
    if batch_size < size:
        raise TrialError(f"{size} processes cannot share batches of {batch_size}; raise fit.batch_size")
    with TemporaryDirectory(prefix="autocompress-fit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _write_job(model, _fix_precision(model, request, batch_size), folder)
        logger.debug("The fit runs in %d processes", size)
        memory = _supervise_processes(config, folder, request.on_epoch)
        # The file is of a child of this process, in a folder that only this user can read.
        result: _Result = torch.load(folder / _RESULT, mmap=True, weights_only=False)
        model.load_state_dict(result.weights)
    model.eval()
    return FitResult(result.curve, result.paused, memory)


def _fix_precision(model: nn.Module, request: FitRequest, batch_size: int) -> FitRequest:
    """Return the request with the precision chosen here: probes could choose differently in each process."""
    optimizer = request.optimizer
    if request.config.precision != "auto":
        return request
    probe = request.train.take(slice(0, batch_size))
    is_bfloat16 = choose_precision("auto", model, request.task, probe).is_bfloat16
    values = {**optimizer.values, "precision": "bfloat16" if is_bfloat16 else "float32"}
    return replace(request, optimizer=Part.of(optimizer.name, **values))


def _write_job(model: nn.Module, request: FitRequest, folder: Path) -> None:
    """Write the job, and the paused state from which it resumes, to files."""
    if request.paused and isinstance(request.paused, bytes):
        (folder / _PAUSED).write_bytes(request.paused)
        request = replace(request, paused=folder / _PAUSED)
    # Callbacks stay in this process and need not be picklable.
    request = replace(request, terms=tuple(request.terms), on_epoch=None, after_step=None)
    try:
        # The processes map the tensors of the file: pages that none of them changes are in memory once.
        torch.save(_Job(model, request, torch.get_num_threads(), _is_flushing_denormals()), folder / _JOB)
    except Exception as reason:  # A user's class may raise anything when it is pickled.
        raise TrialError(f"this fit cannot be sent to other processes ({reason}); set fit.processes to 1") from reason


def _supervise_processes(
    config: FitConfig, folder: Path, on_epoch: Callable[[CurveRow], None] | None
) -> tuple[ProcessMemory, ...]:
    """Run the processes to their end and return their memory by rank."""
    size = config.group_size
    # By default glibc keeps freed tensors of up to 32 MB for later; the gathered weights would pile up in there.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if config.shards > 1 else {}
    # The processes end with this context, also after an error or an interrupt.
    with _start_processes(size, folder, environment) as children:
        messages: queue.Queue[_Message] = queue.Queue()
        for rank, child in enumerate(children):
            # A thread for each pipe: reading one must not block the messages of the other processes.
            threading.Thread(target=_forward_messages, args=(rank, child, messages), daemon=True).start()
        for rank, child in enumerate(children):
            _send_position(child, _Position(rank, size, str(folder)))
        memory: dict[int, ProcessMemory] = {}
        while len(memory) < size:
            message = messages.get()
            if message.kind == "epoch":
                if on_epoch is not None:
                    on_epoch(cast(CurveRow, message.content))
            elif message.kind == "done":
                memory[message.rank] = cast(ProcessMemory, message.content)
            elif message.rank not in memory:
                raise _explain_failure([message, *_collect_messages(messages)], children, folder)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_EXIT_SECONDS)
        return tuple(memory[rank] for rank in range(size))


@contextmanager
def _start_processes(size: int, folder: Path, variables: Mapping[str, str]) -> Iterator[list[Child]]:
    """Start the processes; at the end none of them is left."""
    # Gloo is configured by the name of a network interface alone; other machines cannot reach the loopback interface.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, **variables, "GLOO_SOCKET_IFNAME": loopback, _CHILD_VARIABLE: "1"}
    command = [*python_command(), "-c", _CHILD]
    pipe = subprocess.PIPE
    children: list[Child] = []
    try:
        for rank in range(size):
            with (folder / f"stderr-{rank}").open("wb") as errors:
                children.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=environment))
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                with suppress(OSError):
                    if stream is not None:
                        stream.close()


def _build_preparation(job: Path) -> dict[str, object]:
    data = spawn.get_preparation_data("fit")
    # The key cannot be pickled, and nothing here authenticates by it.
    data.pop("authkey", None)
    with zipfile.ZipFile(job) as archive:
        # The file of torch.save has the pickled objects in one entry and each tensor in an entry of its own.
        pickled = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    if b"__main__" not in pickled and b"__mp_main__" not in pickled:
        # The main script is imported again only if the job contains a class that it defines.
        data.pop("init_main_from_path", None)
        data.pop("init_main_from_name", None)
    return data


def _send_position(child: Child, position: _Position) -> None:
    """Send preparation data and the position in the process group to a process."""
    assert child.stdin is not None
    # The end of its output reports that a process died meanwhile.
    with suppress(BrokenPipeError):
        preparation = _build_preparation(Path(position.folder) / _JOB)
        child.stdin.write(pickle.dumps(preparation) + pickle.dumps(position))
        child.stdin.flush()


def _forward_messages(rank: int, child: Child, messages: "queue.Queue[_Message]") -> None:
    """Put the messages of one process into a queue, and ``died`` at their end."""
    assert child.stdout is not None
    # The last message of a killed process may be incomplete.
    with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
        while True:
            messages.put(_Message(rank, *pickle.load(child.stdout)))
    messages.put(_Message(rank, "died", None))


def _collect_messages(messages: "queue.Queue[_Message]") -> list[_Message]:
    """Return the messages that arrive shortly after a failure."""
    rest = []
    deadline = time.monotonic() + _REPORT_SECONDS
    with suppress(queue.Empty):
        while True:
            rest.append(messages.get(timeout=max(deadline - time.monotonic(), 0)))
    return rest


def _explain_failure(messages: Sequence[_Message], children: Sequence[Child], folder: Path) -> Exception:
    """Return the error that explains most: a named error, else a process that died, else the first exception."""
    failures = [message for message in messages if message.kind == "failed"]
    for failure in failures:
        if isinstance(failure.content, AutocompressError):
            return failure.content
    reported = {failure.rank for failure in failures}
    for rank, kind, _ in messages:
        if kind == "died" and rank not in reported:
            lines = (folder / f"stderr-{rank}").read_text(errors="replace").strip().splitlines()
            why = f": {lines[-1]}" if lines else ""
            code = children[rank].wait()
            return TrialError(f"process {rank} of {len(children)} of this fit died (exit code {code}){why}")
    return TrialError(f"process {failures[0].rank} of {len(children)} of this fit failed: {failures[0].content}")


def run_process(stream: IO[bytes]) -> None:
    """Run one process of a fit.

    Args:
        stream: Input from which the process reads its position; messages go to the standard output.
    """
    # Ctrl-C reaches the whole process group; the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "wb")
    # The output of a task's own print calls must not mix with the messages.
    os.dup2(2, 1)

    def send_message(kind: str, content: object) -> None:
        channel.write(pickle.dumps((kind, content)))
        channel.flush()

    try:
        position: _Position = pickle.load(stream)
        threading.Thread(target=_exit_with_parent, args=(stream.fileno(),), daemon=True).start()
        # Written by the parent of this process, in a folder that only this user can read.
        job: _Job = torch.load(Path(position.folder) / _JOB, mmap=True, weights_only=False)
        on_epoch = (lambda row: send_message("epoch", row)) if position.rank == 0 else None
        request = replace(job.request, on_epoch=on_epoch)
        send_message("done", _run_fit(replace(job, request=request), position))
    except AutocompressError as error:
        send_message("failed", error)
    except Exception as error:
        send_message("failed", f"{type(error).__name__}: {error}")


def _run_fit(job: _Job, position: _Position) -> ProcessMemory:
    """Run this process's share of a fit and return its memory; rank 0 writes the result to a file."""
    rank, size, folder = position
    group = ProcessGroup(rank, size, job.request.config.shards)
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(job.flush_denormal)
    # Dropout draws other numbers for each share of a batch.
    torch.manual_seed(job.request.seed + group.rank)
    # Gloo is torch's backend for tensors on the CPU.
    dist.init_process_group("gloo", init_method=f"file://{folder}/{_MEETING}", rank=rank, world_size=size)
    try:
        result = Trainer(job.model, job.request, group).run()
        weights = gather_state(job.model.state_dict()) if group.shards > 1 else job.model.state_dict()
        if rank == 0:
            torch.save(
                _Result(result.curve, cast(Mapping[str, Tensor], weights), result.paused), Path(folder) / _RESULT
            )
    finally:
        dist.destroy_process_group()
    return result.memory[0]


def _exit_with_parent(descriptor: int) -> None:
    """End this process when the other end of its input is closed.

    Args:
        descriptor: File descriptor of the input.
    """
    while os.read(descriptor, 1):
        pass
    # Called from a thread, where sys.exit would end the thread alone.
    os._exit(1)


def _is_flushing_denormals() -> bool:
    return bool(torch.tensor(torch.finfo(torch.float32).tiny).div(2) == 0)
