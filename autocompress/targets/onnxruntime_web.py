"""onnxruntime-web, the WebAssembly build of onnxruntime for browsers, run under node.

It needs node and the npm package: ``npm install onnxruntime-web`` in the current folder, or in one that the option
``folder`` names. A process of node runs the model, and times it without the transfer of tensors.
"""

import json
import shutil
import statistics
import struct
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.errors import ArtifactError, UsageError
from autocompress.targets.base import Array, Model, Target, make_inputs
from autocompress.targets.onnxruntime import STORED_BITS

PACKAGE = "onnxruntime-web"
SCRIPT = Path(__file__).with_suffix(".mjs")


@TARGETS.register(PACKAGE)
class OnnxRuntimeWeb(Target):
    """onnxruntime in WebAssembly, as a browser runs it.

    Args:
        folder: Folder with ``node_modules``.
        node: The program node.

    Raises:
        UsageError: An option is no text.
    """

    name = PACKAGE
    operators = frozenset({"MatMulNBits", "GatherBlockQuantized"})

    def __init__(self, folder: str = ".", node: str = "node") -> None:
        if not isinstance(folder, str) or not isinstance(node, str):
            raise UsageError(f"target.{PACKAGE}: folder and node must be texts, got {folder!r} and {node!r}")
        self._folder, self._node = folder, node

    @classmethod
    def describe_installation(cls) -> str:
        """Return the command that installs the npm package."""
        return f"npm install {PACKAGE}"

    def options(self) -> Mapping[str, Any]:
        """Return the options, as JSON values."""
        return {"folder": self._folder, "node": self._node}

    def list_programs(self) -> Sequence[str]:
        """Return the program node and the folder of its packages, unless they are the default ones."""
        return () if (self._folder, self._node) == (".", "node") else (self._node, str(Path(self._folder).absolute()))

    def check_installed(self) -> str:
        """Return the version of the npm package.

        Raises:
            UsageError: node or the package is missing; the message says how to install it.
        """
        if shutil.which(self._node) is None:
            raise UsageError(f"the target '{PACKAGE}' needs node, and there is no program {self._node!r}; install node")
        try:
            described = json.loads((Path(self._folder) / "node_modules" / PACKAGE / "package.json").read_text())
        except (OSError, ValueError):
            raise UsageError(
                f"the target '{PACKAGE}' needs its npm package in {Path(self._folder).resolve()}; run `npm install "
                f"{PACKAGE}` there, or name the folder: target: {{{PACKAGE}: {{folder: PATH}}}}"
            ) from None
        return str(described["version"])

    def precisions(self) -> Precisions:
        """Return its widths: 7-bit weights, because instructions of some browsers sum products in 16 bits."""
        return Precisions(((8, 8), (32, 32)), STORED_BITS, decodes_tables=True, reduce_range=True, weight_type="int8")

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run, in a process of its own.

        Raises:
            UsageError: node or the package is missing.
            ArtifactError: onnxruntime-web cannot load the model; the message names the operator.
        """
        return self._start(model, threads).run

    def measure(self, model: bytes, seconds: float) -> float:
        """Return the median milliseconds of a run of one example, measured by node.

        Args:
            model: Content of an ONNX file.
            seconds: Seconds to measure.

        Raises:
            ArtifactError: onnxruntime-web cannot run the model.
        """
        return statistics.median(self._start(model, 1).time(make_inputs(model), seconds))

    def _start(self, model: bytes, threads: int) -> "_NodeProcess":
        self.check_installed()
        process = _NodeProcess([self._node, str(SCRIPT), self._folder])
        process.exchange({"kind": "load", "threads": threads}, [np.frombuffer(model, np.uint8)])
        return process


class _NodeProcess:
    """A process of node with one model; it ends with this object.

    Args:
        command: The command.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, _end_process, self._process)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the outputs of the model."""
        header, parts = self.exchange({"kind": "run", "inputs": _describe(inputs)}, inputs)
        return [
            # A copy can be written to, as the outputs of other runtimes.
            np.frombuffer(part, output["type"]).reshape(output["dims"]).copy()
            for output, part in zip(header["outputs"], parts, strict=True)
        ]

    def time(self, inputs: Sequence[Array], seconds: float) -> list[float]:
        """Return the milliseconds of each run."""
        header, _ = self.exchange({"kind": "time", "inputs": _describe(inputs), "seconds": seconds}, inputs)
        return [float(value) for value in header["times"]]

    def exchange(self, header: Mapping[str, Any], arrays: Sequence[Array]) -> tuple[dict[str, Any], list[bytes]]:
        """Send a message and return header and parts of the answer.

        Raises:
            ArtifactError: The script failed, or node ended.
        """
        contents = [np.ascontiguousarray(array).tobytes() for array in arrays]
        text = json.dumps({**header, "sizes": [len(content) for content in contents]}).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<I", len(text)) + text + b"".join(contents))
            self._process.stdin.flush()
        except OSError:
            raise ArtifactError(f"{PACKAGE}: node ended before it had read the model") from None
        answer = json.loads(self._read(struct.unpack("<I", self._read(4))[0]))
        if "error" in answer:
            raise ArtifactError(f"{PACKAGE} cannot run the model: {answer['error'].splitlines()[0]}")
        return answer, [self._read(size) for size in answer["sizes"]]

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(size)
        if len(content) < size:
            raise ArtifactError(f"{PACKAGE}: node ended while it ran the model")
        return content


def _describe(inputs: Sequence[Array]) -> list[dict[str, Any]]:
    return [{"type": array.dtype.name, "dims": list(array.shape)} for array in inputs]


def _end_process(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    # Closes its pipes, too.
    process.communicate()
