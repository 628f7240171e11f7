"""Trials that train nothing, in workers that start at once: what they come to follows from their configuration.

Light on purpose: a worker imports this module and no torch.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.core.records import Candidate, Job, State, TrialResult

#: What goes wrong in a trial.
FAULTS = ("kill", "kill once", "hang", "hoard", "raise")


def outcome(job: Job, weights: int = 7) -> TrialResult:
    """Return what a real training would: the same for the same job, candidates at rungs, weights at the end."""
    width = float(job.training.student.values["width"])  # type: ignore[arg-type]
    total = int(job.training.fit.values.get("epochs", 15))  # type: ignore[arg-type]
    epochs = job.until or total
    complete = epochs == total
    found = []
    for number, cut in enumerate(job.cuts):
        bits = 32 if cut.quantize is None else int(cut.quantize.values["weight_bits"])  # type: ignore[arg-type]
        score = 1 - 0.5 / width - 0.1 / bits - (job.training.seed % 1000) * 1e-5 - 0.3 * (1 - epochs / total)
        config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
        found.append(
            Candidate(
                f"t{job.number}{'' if complete else f'r{job.rung}'}c{number}",
                job.number,
                config,
                epochs,
                {split: {"accuracy": score} for split in ("search_val", "select_val")},
                {"effective_flops": width**2 * bits * 32},
                checkpoint=f"t{job.number}p0" if complete else "",
                complete=complete,
            )
        )
    state = State.COMPLETE if complete else State.PAUSED
    content = {f"t{job.number}p0": bytes(weights)} if complete else {}
    return TrialResult(
        job.number,
        state,
        tuple(found),
        0.01,
        checkpoints=content,
        paused=b"" if complete else f"after {epochs}".encode(),
    )


@dataclass(frozen=True)
class Pretend:
    """Runs jobs that do nothing for some seconds; some of them are faulty.

    Attributes:
        log: Gets a line for each worker and for each execution.
        seconds: Of a job.
        faults: Number of a job to one of ``FAULTS``.
    """

    log: Path
    seconds: float = 0.02
    faults: Mapping[int, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Leave a line."""
        self._say(f"worker {os.getpid()}")

    def __call__(self, job: Job) -> TrialResult:
        """Run a job, or do what it is there for."""
        self._say(f"job {job.number} {job.rung}")
        fault = self.faults.get(job.number, "")
        if fault == "kill" or (fault == "kill once" and self.executions().count(f"{job.number} {job.rung}") == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            self._say(f"worker {child.pid}")
            time.sleep(600)
        if fault == "hoard":
            bytearray(64 << 30)
        if fault == "raise":
            raise RuntimeError("this trial is there to fail")
        time.sleep(self.seconds)
        return outcome(job)

    def executions(self) -> list[str]:
        """Return number and rung of each execution."""
        return [line.partition(" ")[2] for line in self._lines() if line.startswith("job")]

    def alive(self) -> list[int]:
        """Return the processes that are still there."""
        return [int(line.split()[1]) for line in self._lines() if line.startswith("worker") and _lives(line.split()[1])]

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _say(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")


def _lives(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
