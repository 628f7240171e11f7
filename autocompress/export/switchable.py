"""Several models of one task in one folder, between which a program switches: widths of a supernet, or bit-widths.

What one model can derive from another is stored once (:mod:`autocompress.export.shared_tensors`). Each model is bit for
bit the one of its own artifact. The folder holds ``model.safetensors``, ``switchable.json`` and ``manifest.json``; the
ONNX graphs stay in the artifacts.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.atomic import require_writable
from autocompress.core.untrusted import is_name
from autocompress.errors import ArtifactError, UnknownNameError, UsageError, did_you_mean
from autocompress.export.architecture import (
    LARGEST_MODEL,
    LARGEST_SHRINKAGE,
    Architecture,
    check_description_size,
)
from autocompress.export.artifact import check_model_size, locate_values, read_tensors, rebuild_module
from autocompress.export.folder import read_files, write_files
from autocompress.export.shared_tensors import ModelTensors, Shared, restore_tensors, share_tensors
from autocompress.measure.tensor_storage import Packed, count_stored_bytes, pack_tensors, unpack_tensors

TENSORS, DESCRIPTION = "model.safetensors", "switchable.json"

logger = logging.getLogger(__name__)


class SwitchableArchitecture(BaseModel):
    """The content of switchable.json.

    Attributes:
        models: Architecture of each model, as in architecture.json but without forms and aliases of tensors.
        shared: Model to tensor to the derivation from an earlier model.
        packed: Forms of the tensors of model.safetensors that are not dense.
        aliases: Names of tensors that share another one's values.
    """

    # An unknown entry or a value of another type is an error: the file is damaged or of another version.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal[1] = 1
    models: Annotated[dict[str, Architecture], Field(min_length=1, max_length=256)]
    shared: dict[str, dict[str, Shared]]
    packed: dict[str, Packed]
    aliases: dict[str, str]


@dataclass(frozen=True)
class JoinedArtifact:
    """A folder of several models.

    Attributes:
        folder: Path of the folder.
        tensor_bytes: Bytes of the tensors of all models together.
        separate_tensor_bytes: Model name to the bytes of its tensors in its own artifact.
        file_bytes: Bytes of model.safetensors and switchable.json.
        separate_file_bytes: Bytes of model.safetensors and architecture.json of all artifacts.
    """

    folder: Path
    tensor_bytes: int
    separate_tensor_bytes: Mapping[str, int]
    file_bytes: int
    separate_file_bytes: int

    def __str__(self) -> str:
        total = sum(self.separate_tensor_bytes.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.separate_tensor_bytes.items())
        return (
            f"tensors of {len(self.separate_tensor_bytes)} models: {self.tensor_bytes:,} bytes instead of {total:,} "
            f"({parts}); with their descriptions {self.file_bytes:,} instead of {self.separate_file_bytes:,}"
        )


class SwitchableModel(nn.Module):
    """Several models of one task, one of which is active.

    Args:
        models: Model by name; the first one is active.

    Example:
        >>> model = SwitchableModel({"wide": nn.Linear(4, 2), "narrow": nn.Linear(4, 2, bias=False)})
        >>> model.switch("narrow").active
        'narrow'
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(models)
        self.models = nn.ModuleList(models.values())
        self.active = self.names[0]

    def switch(self, name: str) -> "SwitchableModel":
        """Make another model the active one, and return this object.

        Raises:
            UnknownNameError: There is no such model.
        """
        self._find(name)
        self.active = name
        return self

    def get_model(self, name: str) -> nn.Module:
        """Return one of the models.

        Raises:
            UnknownNameError: There is no such model.
        """
        return self.models[self._find(name)]

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs of the active model."""
        return self.get_model(self.active)(*inputs)

    def _find(self, name: str) -> int:
        if name not in self.names:
            raise UnknownNameError(f"there is no model '{name}': {did_you_mean(name, self.names)}")
        return self.names.index(name)


def join_artifacts(artifacts: Sequence[Path | str], out: Path | str) -> JoinedArtifact:
    """Write several artifacts of one task as one folder, atomically.

    The models are named like the folders of the artifacts. Every tensor and the outputs on one example are compared
    with those of the artifacts before the folder gets its name.

    Args:
        artifacts: Folders of the artifacts; the first one is active after loading.
        out: Path of the new folder.

    Raises:
        UsageError: There are fewer than two artifacts, two of one name, or they have other inputs or heads.
        ArtifactError: A folder is no artifact, or ``out`` exists and is no artifact.
        StorageError: No space is left, or the folder cannot be written.
    """
    folders = [Path(artifact).absolute() for artifact in artifacts]
    names = [folder.name for folder in folders]
    if len(folders) < 2:
        raise UsageError("joining needs at least two artifacts")
    for name in names:
        if names.count(name) > 1 or not is_name(name):
            raise UsageError(
                "the artifact folders need distinct names of letters, digits, '.', '_' and '-', with a letter or digit "
                f"first: '{name}'"
            )
    require_writable(Path(out).parent)
    contents = {folder.name: read_tensors(folder) for folder in folders}
    architectures = {name: architecture for name, (architecture, _) in contents.items()}
    _check_interfaces(architectures)
    separate = {name: count_stored_bytes(tensors) for name, (_, tensors) in contents.items()}
    models = [ModelTensors(name, tensors, *locate_values(*contents[name])) for name, (_, tensors) in contents.items()]
    # Others are derived from the model with most bits, which is stored whole.
    stored, shared = share_tensors(sorted(models, key=lambda model: -separate[model.name]))
    tensors, packed, aliases = pack_tensors(stored)
    # The forms and aliases of the artifacts do not describe this file.
    slim = {name: entry.model_copy(update={"packed": {}, "aliases": {}}) for name, entry in architectures.items()}
    description = SwitchableArchitecture(models=slim, shared=shared, packed=packed, aliases=aliases)
    files = {TENSORS: save(tensors), DESCRIPTION: description.model_dump_json().encode()}
    write_files(Path(out), files, lambda written: _check_joined(written, contents))
    separate_files = [folder / name for folder in folders for name in (TENSORS, "architecture.json")]
    joined = JoinedArtifact(
        Path(out),
        count_stored_bytes(stored),
        separate,
        sum(map(len, files.values())),
        sum(path.stat().st_size for path in separate_files),
    )
    logger.info("%s: wrote %s", out, joined)
    return joined


def load_switchable(folder: Path | str, *, key: Path | str | None = None) -> SwitchableModel:
    """Return the models of a folder that :func:`join_artifacts` wrote, ready for inference.

    Every file is checked against the manifest before any is read, and none is unpickled.

    Args:
        folder: The folder.
        key: PEM file of the public key that must have signed the folder; None for no check of a signature.

    Raises:
        ArtifactError: The folder is none of several models, a file was changed, the signature is not the key's, or a
            model cannot be rebuilt here.
    """
    description, tensors = _read_joined(Path(folder), key)
    return SwitchableModel(
        {name: rebuild_module(architecture, tensors[name]) for name, architecture in description.models.items()}
    )


def _read_joined(
    folder: Path, key: Path | str | None = None
) -> tuple[SwitchableArchitecture, dict[str, dict[str, Tensor]]]:
    files = read_files(folder, (TENSORS, DESCRIPTION), key=key)
    try:
        description = SwitchableArchitecture.model_validate_json(check_description_size(files, DESCRIPTION))
        stored = unpack_tensors(load(files[TENSORS]), description.packed, description.aliases)
    except ValidationError as error:
        raise ArtifactError(f"{DESCRIPTION}: {error.errors()[0]['msg']}") from error
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{TENSORS} cannot be read ({error})") from error
    if set(description.models) != set(description.shared):
        raise ArtifactError(f"{DESCRIPTION}: its models and its derivations have other names")
    tensors = restore_tensors(stored, description.shared)
    nbytes = sum(check_model_size(architecture, tensors[name]) for name, architecture in description.models.items())
    # Each model may share the tensors of one, and takes memory of its own.
    if nbytes > max(LARGEST_MODEL, LARGEST_SHRINKAGE * len(files[TENSORS])):
        raise ArtifactError(
            f"{DESCRIPTION} describes models of {nbytes:,} bytes, and {TENSORS} has {len(files[TENSORS]):,}: they do "
            "not belong together"
        )
    return description, tensors


def _check_interfaces(architectures: Mapping[str, Architecture]) -> None:
    (first, expected), *others = architectures.items()
    for name, architecture in others:
        for part in ("task", "inputs", "heads"):
            if getattr(architecture, part) != getattr(expected, part):
                raise UsageError(f"'{name}' and '{first}' have different {part}: a program cannot switch between them")


def _check_joined(folder: Path, contents: Mapping[str, tuple[Architecture, Mapping[str, Tensor]]]) -> None:
    """Check that the models of a written folder equal those of the artifacts bit for bit."""
    _, restored = _read_joined(folder)
    switchable = load_switchable(folder)
    for name, (architecture, tensors) in contents.items():
        different = [
            tensor
            for tensor, values in tensors.items()
            if tensor not in restored[name] or not _are_equal(values, restored[name][tensor])
        ]
        expected, example = rebuild_module(architecture, tensors), architecture.example()
        with torch.inference_mode():
            outputs = expected(*example), switchable.switch(name)(*example)
        pairs = zip(*(_list_outputs(output) for output in outputs), strict=True)
        if different or len(tensors) != len(restored[name]) or not all(torch.equal(*pair) for pair in pairs):
            raise ArtifactError(f"'{name}' differs from its artifact: {', '.join(different[:3])}")


def _are_equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _list_outputs(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output.values())
