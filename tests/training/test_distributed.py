import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.core.task import Split
from autocompress.errors import TrialError
from autocompress.models import CNN, CNNConfig
from autocompress.training import fit as parallel
from autocompress.training.fit import FitRequest, fit, fit_parallel
from autocompress.training.trainer import Trainer
from tests.training.light import Faulty, Light, Wide, examples, network

# Two processes make shares of 26 and 25 of 51 examples.
SETTINGS = {"epochs": 6, "learning_rate": 3e-2, "batch_size": 51, "l1_weights": 1e-4, "patience": 4}
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def children() -> set[int]:
    """Processes started by this one, read from the kernel."""
    actual = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(number) for file in actual for number in file.read_text().split()}


def listening(process: int) -> set[str]:
    """Addresses at which a process waits for connections, as the kernel writes them."""
    sockets = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        # The process may close a file between the listing and the look.
        with suppress(FileNotFoundError):
            link = os.readlink(entry)
            if link.startswith("socket:["):
                sockets.add(link[8:-1])
    actual = set()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]]
        actual |= {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}
    return actual


@pytest.mark.slow
@LINUX
def test_two_processes_end_where_one_does_talk_over_loopback_and_leave_nothing() -> None:
    terms = [Part.of("soft_target", alpha=0.5, temperature=2.0), Part.of("hint", weight=0.1)]
    alone, together = network(), network()
    curve = fit(alone, FitRequest(Light(), examples(), Part.of("adamw", **SETTINGS), terms=terms, teacher=Wide())).curve
    before = children()
    rows: list[dict[str, float]] = []
    addresses: set[str] = set()

    def watch(row: dict[str, float]) -> None:
        rows.append(row)
        for child in children() - before:
            addresses.update(listening(child))

    part = Part.of("adamw", **SETTINGS, processes=2)
    shared = fit(together, FitRequest(Light(), examples(), part, terms=terms, teacher=Wide(), on_epoch=watch)).curve
    assert rows == shared
    for one, other in zip(curve, shared, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    for (name, one), other in zip(alone.named_parameters(), together.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4), name
        assert (other - network().get_parameter(name)).abs().max() > 0.01
    assert not together.training
    # 127.0.0.1 in the kernel's byte order.
    assert addresses == {"0100007F"}
    assert children() == before


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("dies", r"process . of 2 of this fit died \(exit code -9\)"),
        ("raises", "process . of 2 of this fit failed: ZeroDivisionError: on purpose"),
    ],
)
def test_a_process_that_fails_ends_the_fit_with_its_reason(fault: str, message: str, tmp_path: Path) -> None:
    before = children()
    with pytest.raises(TrialError, match=message):
        fit_parallel(
            network(), FitRequest(Faulty(tmp_path / "mark", fault), examples(), Part.of("adamw", epochs=1, processes=2))
        )
    assert children() == before


def test_what_cannot_work_is_refused_before_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_supervise_processes", lambda *args: pytest.fail("a process was started"))
    for group in ({"processes": 4}, {"shards": 4}, {"processes": 2, "shards": 2}):
        with pytest.raises(TrialError, match="4 processes cannot share batches of 3"):
            fit(network(), FitRequest(Light(), examples(), Part.of("adamw", batch_size=3, **group)))
    unpicklable = network()
    unpicklable.hook = lambda x: x  # type: ignore[assignment]
    with pytest.raises(TrialError, match=r"set fit\.processes to 1$"):
        fit(unpicklable, FitRequest(Light(), examples(), Part.of("adamw", processes=2)))


@dataclass(frozen=True)
class Fixed:
    """A teacher without cached logits."""

    model: nn.Module

    def view(self, index: int) -> Mapping[str, torch.Tensor]:
        raise AssertionError("a live teacher has no cached logits")


class Images(Light):
    """Three classes of small images, without augmentation."""

    views = 1

    def view(self, split: Split, index: int) -> Split:
        return split


def images() -> Split:
    x = torch.randn(121, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Split((x,), {"label": (x.mean((1, 2, 3)) * 8).round().clamp(-1, 1).long() + 1})


def convolutional(width: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CNN(CNNConfig(width=width, depth=1, stages=2, block="residual"), 1, {"label": 3})


def request_images(until: int | None = None, paused: bytes = b"", **group: int) -> FitRequest:
    """Return a fit with batch norms, a live teacher, an adapter, penalties and a held-out split."""
    part = Part.of("sgd", epochs=4, learning_rate=0.05, batch_size=31, patience=4, l1_batch_norm=1e-3, **group)
    terms = [Part.of("soft_target", temperature=2.0), Part.of("hint", weight=0.1)]
    teacher = Fixed(convolutional(12, seed=3).eval())
    return FitRequest(Images(), images(), part, terms=terms, teacher=teacher, until=until, paused=paused)


def assert_equal_results(one: nn.Module, other: nn.Module) -> None:
    """Check that two models have the weights and batch-norm statistics of each other, and not their initial ones."""
    assert other.state_dict().keys() == one.state_dict().keys()
    for name, expected in one.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], expected, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert type(other.state_dict()[name]) is torch.Tensor
    start = convolutional()
    assert max((a - b).abs().max().item() for a, b in zip(one.parameters(), start.parameters(), strict=True)) > 0.01


@pytest.mark.slow
@LINUX
def test_shards_end_where_one_process_does_and_each_stores_a_part() -> None:
    """Also the batch norms: their statistics are those of the whole batch in every process."""
    alone, together = convolutional(), convolutional()
    expected = fit(alone, request_images())
    actual = fit(together, request_images(shards=2))
    assert_equal_results(alone, together)
    assert [row["loss"] for row in actual.curve] == pytest.approx([row["loss"] for row in expected.curve], rel=1e-5)
    assert [row["held_out_loss"] for row in actual.curve] == pytest.approx(
        [row["held_out_loss"] for row in expected.curve], rel=1e-4
    )
    (whole,), shards = expected.memory, actual.memory
    assert len(shards) == 2
    for name in ("weights", "gradients", "optimizer"):
        parts = [getattr(memory, name) for memory in shards]
        assert sum(parts) == getattr(whole, name) > 0
        # Small tensors are divided unevenly.
        assert max(parts) < 0.55 * getattr(whole, name)


@pytest.mark.exhaustive
@pytest.mark.slow
@LINUX
def test_a_parallel_fit_pauses_and_resumes_in_any_number_of_processes() -> None:
    alone, together = convolutional(), convolutional()
    curve = fit(alone, request_images()).curve
    # Data-parallel processes, then shards, then one process alone.
    first = fit(together, request_images(until=1, processes=2))
    assert len(first.curve) == 1
    assert first.paused
    second = fit(together, request_images(until=3, paused=first.paused, shards=2))
    assert len(second.curve) == 3
    last = fit(together, request_images(paused=second.paused))
    assert not last.paused
    assert [row["loss"] for row in last.curve] == pytest.approx([row["loss"] for row in curve], rel=1e-5)
    assert_equal_results(alone, together)


SCRIPT = """
from pathlib import Path
import torch
from tests.training.light import Light, examples, network
from autocompress.core.config import Part
from autocompress.training.fit import fit_parallel
from autocompress.training.trainer import FitRequest

class Mine(Light):
    pass

{guard}
    with Path("started").open("a") as file:
        file.write("x")
    part = Part.of("adamw", epochs=1000, processes=2)
    request = FitRequest(Mine(), examples(), part, on_epoch=lambda row: print("epoch", flush=True))
    fit_parallel(network(), request)
"""


def script(folder: Path, guard: str) -> list[str]:
    """Write a script that fits a task of its own by two processes, and return how it is run."""
    (folder / "script.py").write_text(SCRIPT.format(guard=guard))
    return [sys.executable, str(folder / "script.py")]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    command = script(tmp_path, "if True:")
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "behind `if __name__ == '__main__':`" in done.stderr
    assert len((tmp_path / "started").read_text()) == 3


@pytest.mark.slow
@LINUX
def test_a_task_of_a_script_travels_and_a_killed_parent_leaves_no_process(tmp_path: Path) -> None:
    command = script(tmp_path, "if __name__ == '__main__':")
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "epoch\n"
        tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
        started = [int(number) for file in tasks for number in file.read_text().split()]
        assert len(started) == 2
        assert all(running(number) for number in started)
        parent.kill()
    deadline = time.monotonic() + 300
    while any(running(number) for number in started):
        assert time.monotonic() < deadline, "a process outlives its parent"
        time.sleep(0.05)
    assert len((tmp_path / "started").read_text()) == 1


def running(number: int) -> bool:
    """Whether a process still runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_belongs_to_one_process_stays_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "autocompress.training.fit.fit_parallel", lambda *args, **kwargs: pytest.fail("processes were started")
    )
    part, steps = Part.of("adamw", epochs=1, processes=2, shards=2), []
    fit(network(), FitRequest(Light(), examples(), part, after_step=lambda: steps.append(1)))
    assert steps
    parametrized = network()
    nn.utils.parametrizations.weight_norm(parametrized[2])
    fit(parametrized, FitRequest(Light(), examples(), part))


def test_the_loop_alone_is_the_fit() -> None:
    one, other = network(), network()
    part = Part.of("adamw", epochs=1)
    fit(one, FitRequest(Light(), examples(), part))
    Trainer(other, FitRequest(Light(), examples(), part)).run()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
