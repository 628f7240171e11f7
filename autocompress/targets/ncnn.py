"""ncnn on the CPU, in floating point; installed by ``pip install 'autocompress[ncnn]'``.

The converter pnnx translates ONNX files to the two files of ncnn, a text of layers and their weights. Neither knows a
batch: examples run one after the other.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from autocompress.core.precisions import Precisions
from autocompress.core.registry import TARGETS
from autocompress.errors import ArtifactError, UsageError
from autocompress.targets.base import Array, Model, Target, check_outputs, make_inputs

LAYERS, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
# Largest relative difference of ncnn's outputs for random inputs from those of the ONNX file.
TOLERANCE = 1e-3
CONVERSION_SECONDS = 300
TYPES = {"float32": "f32", "int64": "i64", "int32": "i32"}


@TARGETS.register("ncnn")
class Ncnn(Target):
    """ncnn, in floating point: its wheel has no tool that calibrates integers."""

    name = "ncnn"
    library = "ncnn"
    extra = "ncnn"

    def precisions(self) -> Precisions:
        """Return its widths: weights and inputs of 32 bits."""
        return Precisions(((32, 32),), (32,))

    def check_installed(self) -> str:
        """Return the version of ncnn.

        Raises:
            UsageError: ncnn or its converter pnnx is not installed.
        """
        installed = super().check_installed()
        if find_spec("pnnx") is None:
            raise UsageError(
                "the target 'ncnn' needs the package pnnx; install it with pip install 'autocompress[ncnn]'"
            )
        return installed

    def convert(self, model: bytes) -> dict[str, bytes]:
        """Return the files of ncnn, by name.

        Raises:
            ArtifactError: pnnx cannot translate the model, ncnn lacks a layer, or computes other outputs; the message
                names the operator or output.
        """
        self.check_installed()
        with TemporaryDirectory() as folder:
            (Path(folder) / "model.onnx").write_bytes(model)
            shapes = [
                f"[{','.join(map(str, array.shape))}]{TYPES.get(array.dtype.name, array.dtype.name)}"
                for array in make_inputs(model)
            ]
            command = [_find_converter(), "model.onnx", f"inputshape={','.join(shapes)}", "fp16=0"]
            try:
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=CONVERSION_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                raise ArtifactError(f"pnnx did not convert the model within {CONVERSION_SECONDS} s") from None
            try:
                files = {name: (Path(folder) / name).read_bytes() for name in (LAYERS, WEIGHTS)}
            except OSError:
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise ArtifactError(f"pnnx cannot convert the model for ncnn: {reason}") from None
        _check_layers(files[LAYERS].decode())
        # pnnx translates some shapes wrongly without a word.
        check_outputs("ncnn", model, _load_files(files, 1), TOLERANCE)
        return files

    def load(self, model: bytes, threads: int = 1) -> Model:
        """Return a model ready to run.

        Raises:
            ArtifactError: ncnn cannot run the model; see :meth:`convert`.
        """
        return _load_files(self.convert(model), threads)


def _find_converter() -> str:
    """Return the path of the program pnnx, which its package contains."""
    specification = find_spec("pnnx")
    assert specification is not None
    assert specification.origin is not None
    return str(Path(specification.origin).with_name("pnnx.exe" if sys.platform == "win32" else "pnnx"))


def _load_files(files: Mapping[str, bytes], threads: int) -> Model:
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    # 16-bit formats would compute other numbers than the search.
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    with TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(files[WEIGHTS])
        if network.load_param_mem(files[LAYERS].decode()) or network.load_model(str(path)):
            missing = ", ".join(_find_missing_layers(files[LAYERS].decode())) or "a layer with other settings"
            raise ArtifactError(f"ncnn cannot load the converted model: it lacks {missing}; change the model")
    outputs = network.output_names()

    def run_example(arrays: Sequence[Array]) -> list[Array]:
        extractor = network.create_extractor()
        for name, array in zip(network.input_names(), arrays, strict=True):
            # ncnn reads indices as 32-bit integers.
            values = array.astype(np.int32) if array.dtype.kind == "i" else array
            extractor.input(name, ncnn.Mat(np.ascontiguousarray(values)).clone())
        return [np.array(extractor.extract(name)[1]) for name in outputs]

    def run(arrays: Sequence[Array]) -> list[Array]:
        rows = [run_example(example) for example in zip(*arrays, strict=True)]
        return [np.stack(values) for values in zip(*rows, strict=True)]

    return run


def _find_missing_layers(text: str) -> list[str]:
    """Return the layers that pnnx knows and ncnn does not, such as look-ups of rows."""
    import ncnn

    kinds = {line.split()[0]: line.split()[1] for line in text.splitlines()[2:]}
    # A graph of one layer without settings loads unless the layer does not exist.
    return [
        f"{kind} ('{name}')"
        for kind, name in kinds.items()
        if ncnn.Net().load_param_mem(f"7767517\n1 1\n{kind} {name} 0 1 out\n")
    ]


def _check_layers(text: str) -> None:
    """Check that pnnx translated every operator to a layer of ncnn; those that it could not keep their names."""
    for line in text.splitlines()[2:]:
        kind, name = line.split()[:2]
        if "::" in kind or "." in kind:
            raise ArtifactError(f"ncnn has no layer for the operator {kind} ('{name}'); change the model")
