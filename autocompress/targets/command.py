"""A device behind a command of the user, such as ssh or adb: it measures the latency, under a time limit."""

import json
import math
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autocompress.core.commands import run_command
from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.errors import ArtifactError, UsageError
from autocompress.targets.base import Model, Target

MODEL, SECONDS = "{model}", "{seconds}"


@TARGETS.register("command")
class CommandTarget(Target):
    """Runs a command that measures an ONNX file and prints milliseconds in its last line.

    The line is a number, or a JSON object with ``latency_ms``. Scores are computed here, under onnxruntime.

    Args:
        run: The command; ``{model}`` stands for the path of the ONNX file, ``{seconds}`` for the time to measure.
        timeout: Seconds after which the command is killed.
        kernels: Pairs of weight and input bits that the device has kernels for.
        stored: Bits of weights that the device can keep.
        weight_type: Type of 8-bit weights: ``int8`` or ``uint8``.
        reduce_range: Whether 8-bit weights use 7 bits.

    Raises:
        UsageError: The command does not name the model or has an open quotation, or a setting is no number of its kind.
    """

    name = "command"

    def __init__(
        self,
        run: str,
        timeout: float = 120.0,
        kernels: Sequence[Sequence[int]] = ((8, 8), (32, 32)),
        stored: Sequence[int] = (8, 32),
        weight_type: str = "int8",
        reduce_range: bool = True,
    ) -> None:
        if not isinstance(run, str) or MODEL not in run:
            raise UsageError(f"target.command.run must contain {MODEL}, the path of the file to measure, got {run!r}")
        try:
            shlex.split(run)
        except ValueError as error:
            raise UsageError(f"target.command.run cannot be divided into words ({error}): {run!r}") from None
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise UsageError(f"target.command.timeout must be a number of seconds above 0, got {timeout!r}")
        if weight_type not in ("int8", "uint8"):
            raise UsageError(f"target.command.weight_type must be int8 or uint8, got {weight_type!r}")
        try:
            pairs = tuple((int(weight), int(activation)) for weight, activation in kernels)
            widths = tuple(int(bits) for bits in stored)
        except (TypeError, ValueError):
            raise UsageError(
                "target.command.kernels must be pairs of bits such as [[8, 8], [32, 32]], and stored a list of bits"
            ) from None
        if (32, 32) not in pairs or 32 not in widths:
            raise UsageError("target.command: a device computes in floating point too: add [32, 32] and 32")
        self._command, self._timeout = run, float(timeout)
        self._precisions = Precisions(pairs, widths, False, bool(reduce_range), weight_type)

    def options(self) -> Mapping[str, Any]:
        """Return the options, as JSON values."""
        precisions = self._precisions
        return {
            "run": self._command,
            "timeout": self._timeout,
            "kernels": [list(pair) for pair in precisions.kernels],
            "stored": list(precisions.stored),
            "weight_type": precisions.weight_type,
            "reduce_range": precisions.reduce_range,
        }

    def list_programs(self) -> Sequence[str]:
        """Return the command."""
        return (self._command,)

    def precisions(self) -> Precisions:
        """Return the widths that the options name."""
        return self._precisions

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return the model under onnxruntime on this machine, for its scores."""
        from autocompress.targets.onnxruntime import OnnxRuntime

        return OnnxRuntime().load(model, threads)

    def measure(self, model: bytes, seconds: float) -> float:
        """Return the milliseconds that the command prints for a model.

        Raises:
            ArtifactError: The command fails, exceeds its time limit, or prints no positive number.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model)
            # Split before the path is put in, which may contain spaces.
            words = shlex.split(self._command)
            command = [word.replace(MODEL, str(path)).replace(SECONDS, f"{seconds:g}") for word in words]
            try:
                done = run_command(command, self._timeout)
            except subprocess.TimeoutExpired:
                raise ArtifactError(
                    f"the device command did not end within {self._timeout:g} s and was killed: {self._command}"
                ) from None
            except OSError as error:
                raise ArtifactError(f"the device command cannot be run ({error.strerror}): {self._command}") from None
        if done.failure:
            raise ArtifactError(f"the device command failed ({done.failure}): {self._command}")
        return _parse_milliseconds(done.output, self._command)


def _parse_milliseconds(output: str, command: str) -> float:
    # Tools print progress before their result.
    line = (output.strip().splitlines() or [""])[-1]
    try:
        value = json.loads(line)
        milliseconds = float(value["latency_ms"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError):
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise ArtifactError(
            f"the device command must print milliseconds in its last line, a number or "
            f'{{"latency_ms": 1.5}}; it printed {line[:80]!r}: {command}'
        )
    return milliseconds
