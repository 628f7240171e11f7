"""Mock trials: their results are computed from the configuration, without training.

The module imports no torch, so that workers start fast.
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

#: Faults of a trial.
FAULTS = ("kill", "kill once", "hang", "stop", "exhaust memory", "raise")


def mock_result(job: Job, weights: int = 7) -> TrialResult:
    """Return a result like that of a real trial: deterministic, with candidates at rungs and weights at the end."""
    width = float(job.training.student.values["width"])  # type: ignore[arg-type]
    total = int(job.training.fit.values.get("epochs", 15))  # type: ignore[arg-type]
    epochs = job.until or total
    complete = epochs == total
    candidates = []
    for number, cut in enumerate(job.recipes):
        bits = 32 if cut.quantize is None else int(cut.quantize.values["weight_bits"])  # type: ignore[arg-type]
        score = 1 - 0.5 / width - 0.1 / bits - (job.training.seed % 1000) * 1e-5 - 0.3 * (1 - epochs / total)
        config = replace(job.training, prune=cut.prune, quantize=cut.quantize)
        candidates.append(
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
        tuple(candidates),
        0.01,
        checkpoints=content,
        paused=b"" if complete else f"after {epochs}".encode(),
    )


@dataclass(frozen=True)
class MockEvaluator:
    """Evaluates jobs by a mock result after some seconds; some jobs have faults.

    Attributes:
        log: File with a line per worker and per execution.
        seconds: Duration of a job.
        faults: Fault, one of ``FAULTS``, by number of the job.
        weights: Bytes of the weights in a result.
    """

    log: Path
    seconds: float = 0.02
    faults: Mapping[int, str] = field(default_factory=dict)
    weights: int = 7

    def prepare(self) -> None:
        """Log the start of a worker."""
        self._log(f"worker {os.getpid()}")

    def __call__(self, job: Job) -> TrialResult:
        """Evaluate a job, or cause its fault."""
        self._log(f"job {job.number} {job.rung}")
        fault = self.faults.get(job.number, "")
        if fault == "kill" or (fault == "kill once" and self.executions().count(f"{job.number} {job.rung}") == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            self._log(f"worker {child.pid}")
            time.sleep(600)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "exhaust memory":
            bytearray(64 << 30)
        if fault == "raise":
            raise RuntimeError("this mock trial fails")
        time.sleep(self.seconds)
        return mock_result(job, self.weights)

    def executions(self) -> list[str]:
        """Return number and rung of each execution."""
        return [line.partition(" ")[2] for line in self._read_lines() if line.startswith("job")]

    def living_processes(self) -> list[int]:
        """Return the logged processes that are still running."""
        return [
            int(line.split()[1])
            for line in self._read_lines()
            if line.startswith("worker") and _is_running(line.split()[1])
        ]

    def _read_lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _log(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")


def _is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
