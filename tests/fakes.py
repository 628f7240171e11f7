"""Trials that cost nothing: scores and costs are made up from the config, as a real training would repeat them."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.core.records import Candidate, Job, State, TrialResult
from autocompress.core.run_info import ObjectiveSpec

OBJECTIVES = (
    ObjectiveSpec("accuracy", "maximize", "", "score", (0.1, 1.0)),
    ObjectiveSpec("effective_flops", "minimize", "FLOPs", "cost", (1e6, 1e2)),
)


def fake_result(job: Job) -> TrialResult:
    """Return a result that depends on the config and the seed alone."""
    width = float(job.training.student.values["width"])  # type: ignore[arg-type]
    candidates = []
    total = int(job.training.fit.values.get("epochs", 15))
    epochs = job.until or total
    complete = epochs == total
    rung = "" if complete else f"r{job.rung}"
    for number, cut in enumerate(job.recipes):
        bits = 32 if cut.quantize is None else int(cut.quantize.values["weight_bits"])  # type: ignore[arg-type]
        score = 1 - 0.5 / width - 0.1 / bits - (job.training.seed % 1000) * 1e-6 - 0.3 * (1 - epochs / total)
        costs = {"effective_flops": width**2 * bits * 32}
        config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
        ratio = 0.0 if cut.prune is None else float(cut.prune.values["pruning_ratio"])  # type: ignore[arg-type]
        score -= 0.05 * ratio
        costs = {name: cost * (1 - ratio) ** 2 for name, cost in costs.items()}
        pruned = job.base is None or cut.prune != job.base.prune
        checkpoint = "" if not complete else f"t{job.number}p{ratio}" if pruned else job.base.checkpoint  # type: ignore[union-attr]
        scores = {split: {"accuracy": score} for split in ("search_val", "select_val")}
        name = f"t{job.number}{rung}c{number}"
        candidates.append(
            Candidate(name, job.number, config, epochs, scores, costs, checkpoint=checkpoint, complete=complete)
        )
    state = State.COMPLETE if complete else State.PAUSED
    curve = tuple({"epoch": epoch + 1.0, "loss": 0.5} for epoch in range(epochs))
    paused = b"" if complete else f"after {epochs}".encode()
    checkpoints = {each.checkpoint: b"weights" for each in candidates if each.checkpoint}
    return TrialResult(job.number, state, tuple(candidates), 0.01, curve=curve, checkpoints=checkpoints, paused=paused)


class CutOff:
    """Kills its process while it is sent: half of the message is in the pipe, the rest never comes."""

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        threading.Thread(target=self._kill, daemon=True).start()
        return bytes, (b"",)

    @staticmethod
    def _kill() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FakeTrials:
    """Runs jobs by number; every execution leaves a line in ``log``.

    Some jobs raise, kill their worker (always, or the first time), hang and start a process that hangs along, take
    more memory than there is, or kill their worker while it sends the result.
    """

    log: Path
    raising: tuple[int, ...] = ()
    dying: tuple[int, ...] = ()
    dying_once: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    hoarding: tuple[int, ...] = ()
    cut_off: tuple[int, ...] = ()

    def prepare(self) -> None:
        with self.log.open("a") as file:
            file.write(f"prepared {os.getpid()}\n")

    def __call__(self, job: Job) -> TrialResult:
        with self.log.open("a") as file:
            file.write(f"{job.number}\n")
        if job.number in self.raising:
            raise RuntimeError("a fault of the trial")
        if job.number in self.dying or (job.number in self.dying_once and self.executed().count(job.number) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.number in self.hanging:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            with self.log.open("a") as file:
                file.write(f"child {child.pid}\n")
            time.sleep(60)
        if job.number in self.hoarding:
            bytearray(8 << 30)
        found = fake_result(job)
        if job.number in self.cut_off:
            # Longer than any pipe holds, so that a part of it is sent when the process ends.
            return replace(found, checkpoints={"end": CutOff(), "large": bytes(1 << 28)})  # type: ignore[dict-item]
        return found

    def children(self) -> list[int]:
        """Return the processes that hanging jobs have started."""
        return [int(line.split()[1]) for line in self.log.read_text().splitlines() if line.startswith("child")]

    def executed(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split("\n") if line.isdigit()]
