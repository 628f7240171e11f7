"""The files of an artifact: written to a temporary folder and renamed, verified by size and SHA-256 when read."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autocompress.core.atomic import compute_sha256, create_temporary_folder, storage_errors, sync_folder
from autocompress.core.untrusted import check_json_size, check_tensor_header, is_newer, read_regular_file
from autocompress.errors import ArtifactError
from autocompress.export.signing import SIGNATURE, check_signature

MANIFEST = "manifest.json"
REQUIRED = ("model.onnx", "model.safetensors", "architecture.json", "config.yaml", "card.md")
# Artifacts of earlier versions have no preprocess.json and no pipeline.py.
FileName: TypeAlias = Literal[
    "model.onnx",
    "model_float.onnx",
    "model.ncnn.param",
    "model.ncnn.bin",
    "model.pte",
    "model.tflite",
    "model.safetensors",
    "architecture.json",
    "config.yaml",
    "card.md",
    "switchable.json",
    "preprocess.json",
    "pipeline.py",
    "tokenizer.json",
]
KNOWN: tuple[FileName, ...] = get_args(FileName)
MANIFEST_FORMAT = 1
# Far above the size of a manifest of these files, and of the files that are no weights; no larger one is read.
LARGEST_MANIFEST, LARGEST_TEXT = 2**16, 2**26
WEIGHTS = tuple(name for name in KNOWN if name.startswith("model"))


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    files: dict[FileName, _Entry]
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
    _require_replaceable(folder)
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
            sync_folder(temporary)
            check(temporary)
            _replace_folder(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # The new name is durable only after its parent folder is synchronized.
        sync_folder(folder.parent)


def read_files(folder: Path, required: Sequence[str] = REQUIRED, *, key: Path | str | None = None) -> dict[str, bytes]:
    """Return the content of every file of an artifact, each checked against the manifest.

    Args:
        folder: Path of the artifact.
        required: Names of the files that it must have.
        key: PEM file of the public key that must have signed it; None for no check of a signature.

    Raises:
        ArtifactError: The folder is no artifact, a file is missing or was changed, or the signature is not the key's.
        UsageError: The key cannot be used.
    """
    manifest, content = _read_manifest(folder, required)
    if key is not None:
        check_signature(folder, content, Path(key))
    files: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            # The size first: a truncated file is detected without reading it.
            size = path.lstat().st_size
            if size != entry.bytes:
                raise ArtifactError(f"{path} has {size} bytes instead of {entry.bytes}; export it again")
            content = read_regular_file(path, None if name in WEIGHTS else LARGEST_TEXT)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror}); export it again") from error
        if compute_sha256(content) != entry.sha256:
            raise ArtifactError(f"{path} was changed: its SHA-256 is not the manifest's; export it again")
        try:
            _check_form(name, content)
        except ValueError as error:
            raise ArtifactError(f"{path} cannot be read: it has {error}") from error
        files[name] = content
    return files


def _check_form(name: str, content: bytes) -> None:
    """Check that a file takes no more memory than its size explains.

    Raises:
        ValueError: It would take far more.
    """
    if name.endswith(".json"):
        check_json_size(content)
    elif name.endswith(".safetensors"):
        check_tensor_header(content)


def _build_manifest(files: Mapping[str, bytes]) -> bytes:
    entries = {name: {"bytes": len(content), "sha256": compute_sha256(content)} for name, content in files.items()}
    return _manifest_text(
        {"files": entries, "format": MANIFEST_FORMAT, "sha256": compute_sha256(_canonical_json(entries))}
    )


def _read_manifest(folder: Path, required: Sequence[str]) -> tuple[_Manifest, bytes]:
    """Return the manifest and its text."""
    path = folder / MANIFEST
    try:
        content = read_regular_file(path, LARGEST_MANIFEST)
    except OSError as error:
        raise ArtifactError(f"{folder} is not an artifact: {MANIFEST} cannot be read ({error.strerror})") from error
    try:
        manifest = _Manifest.model_validate_json(content)
        data = manifest.model_dump()
    except ValidationError as error:
        if is_newer(content, MANIFEST_FORMAT):
            raise ArtifactError(f"{path} was made by a newer version of autocompress; update it") from error
        raise ArtifactError(f"{path} was changed: {error.errors()[0]['msg']}; export it again") from error
    # The text is compared byte for byte, so that a flipped bit in the manifest itself is detected.
    if _manifest_text(data) != content or compute_sha256(_canonical_json(data["files"])) != data["sha256"]:
        raise ArtifactError(f"{path} was changed; export it again")
    missing = [name for name in required if name not in data["files"]]
    if missing:
        raise ArtifactError(f"{path} does not list {', '.join(missing)}; export it again")
    return manifest, content


def _canonical_json(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _manifest_text(data: object) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def _require_replaceable(folder: Path) -> None:
    """Check that a path is free, an empty folder, or an artifact without files of the user.

    Raises:
        ArtifactError: Something else is there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ArtifactError(f"{folder} exists and is not an artifact; choose another folder")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not present:
        return
    try:
        manifest, _ = _read_manifest(folder, ())
    except ArtifactError as error:
        raise ArtifactError(
            f"{folder} exists and is not an artifact; choose another folder, or move it away ({error})"
        ) from error
    # Python writes the last one when pipeline.py is imported.
    others = present - {*manifest.files, *KNOWN, MANIFEST, SIGNATURE, "__pycache__"}
    if others:
        raise ArtifactError(f"{folder} also holds {sorted(others)[0]}, which an export would remove; move it away")


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
