"""The files of an artifact: written to a temporary folder and renamed, verified by size and SHA-256 when read."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autocompress.core.atomic import compute_sha256, create_temporary_folder, storage_errors
from autocompress.errors import ArtifactError

MANIFEST = "manifest.json"
REQUIRED = ("model.onnx", "model.safetensors", "architecture.json", "config.yaml", "card.md")
# Artifacts of earlier versions have no preprocess.json and no pipeline.py.
KNOWN = (
    *REQUIRED,
    "model_float.onnx",
    "model.ncnn.param",
    "model.ncnn.bin",
    "switchable.json",
    "preprocess.json",
    "pipeline.py",
    "tokenizer.json",
)
# Far above the size of a manifest of these files; no larger file is read into memory.
LARGEST_MANIFEST = 2**16


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    files: dict[
        Literal[
            "model.onnx",
            "model_float.onnx",
            "model.ncnn.param",
            "model.ncnn.bin",
            "model.safetensors",
            "architecture.json",
            "config.yaml",
            "card.md",
            "switchable.json",
            "preprocess.json",
            "pipeline.py",
            "tokenizer.json",
        ],
        _Entry,
    ]
    format: Literal[1]
    sha256: str


def write_files(folder: Path, files: Mapping[str, bytes], check: Callable[[Path], None]) -> None:
    """Write the files and their manifest atomically; an earlier artifact at the path is replaced.

    Args:
        folder: Path of the artifact.
        files: Name to content.
        check: Callback that gets the finished folder under its temporary name; an exception discards the folder.

    Raises:
        ArtifactError: The path exists and is not an artifact.
        StorageError: No space is left, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.is_symlink() or (folder.exists() and not _is_artifact(folder)):
        raise ArtifactError(f"{folder} exists and is not an artifact; choose another folder")
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # In the same parent folder, so that renaming stays within one file system.
        temporary = create_temporary_folder(folder)
        try:
            for name, content in {**files, MANIFEST: _build_manifest(files)}.items():
                with open(temporary / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _sync_folder(temporary)
            check(temporary)
            _replace_folder(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # The new name is durable only after its parent folder is synchronized.
        _sync_folder(folder.parent)


def read_files(folder: Path, required: Sequence[str] = REQUIRED) -> dict[str, bytes]:
    """Return the content of every file of an artifact, each checked against the manifest.

    Args:
        folder: Path of the artifact.
        required: Names of the files that it must have.

    Raises:
        ArtifactError: The folder is no artifact, or a file is missing or was changed.
    """
    manifest = _read_manifest(folder, required)
    files: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            # The size first: a truncated file is detected without reading it.
            if path.stat().st_size != entry.bytes:
                raise ArtifactError(f"{path} has {path.stat().st_size} bytes instead of {entry.bytes}; export it again")
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror}); export it again") from error
        if compute_sha256(content) != entry.sha256:
            raise ArtifactError(f"{path} was changed: its SHA-256 is not the manifest's; export it again")
        files[name] = content
    return files


def _build_manifest(files: Mapping[str, bytes]) -> bytes:
    entries = {name: {"bytes": len(content), "sha256": compute_sha256(content)} for name, content in files.items()}
    return _manifest_text({"files": entries, "format": 1, "sha256": compute_sha256(_canonical_json(entries))})


def _read_manifest(folder: Path, required: Sequence[str]) -> _Manifest:
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        raise ArtifactError(f"{folder} is not an artifact: {MANIFEST} cannot be read ({error.strerror})") from error
    try:
        manifest = _Manifest.model_validate_json(content)
        data = manifest.model_dump()
    except ValidationError as error:
        raise ArtifactError(f"{path} was changed: {error.errors()[0]['msg']}; export it again") from error
    # The text is compared byte for byte, so that a flipped bit in the manifest itself is detected.
    if _manifest_text(data) != content or compute_sha256(_canonical_json(data["files"])) != data["sha256"]:
        raise ArtifactError(f"{path} was changed; export it again")
    missing = [name for name in required if name not in data["files"]]
    if missing:
        raise ArtifactError(f"{path} does not list {', '.join(missing)}; export it again")
    return manifest


def _canonical_json(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _manifest_text(data: object) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def _is_artifact(folder: Path) -> bool:
    # An empty folder may be used; any other folder without a manifest may hold the user's files.
    return folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder``; an earlier folder is removed, or restored if renaming fails."""
    if not folder.exists():
        temporary.rename(folder)
        return
    # A folder that is not empty cannot be replaced by a rename, so the earlier one is moved aside.
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    folder.rename(old / "old")
    try:
        temporary.rename(folder)
    except BaseException:
        (old / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
