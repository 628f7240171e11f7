"""The deployable folder: an ONNX graph, and the module's architecture and tensors, without pickle.

model.onnx, model_float.onnx (only where model.onnx is quantized), model.safetensors, architecture.json,
config.yaml, card.md, manifest.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.method import MethodState
from autocompress.core.registry import PRUNE, QUANTIZE, STUDENTS, TASKS
from autocompress.core.task import InputSpec, logits_by_head
from autocompress.errors import ArtifactError, AutocompressError
from autocompress.export.architecture import Architecture, compact, expand, method_state, parse, saved_state
from autocompress.export.card import render
from autocompress.export.folder import read_files, write_files
from autocompress.export.onnx import export_float, export_quantized
from autocompress.export.runtime import is_weights_only
from autocompress.models.base import family_model
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.quantize.folding import find_folded_pairs, fold_batch_norm, fold_structure
from autocompress.trial.pipeline import PruningStep


@dataclass(frozen=True)
class Deployable:
    """One candidate, ready to be written.

    Attributes:
        config: The whole tuple it was made from.
        task_name: The task's registered name.
        task_options: The task's options, JSON values.
        labels: Head name to the name of each class; empty where they have none.
        heads: Head name to number of classes.
        inputs: The model's positional arguments.
        example: A batch of one, as the model's positional arguments.
        float_model: Pruned, 32-bit, in evaluation mode.
        model: Quantized, or the same as ``float_model``.
        prune_state: What pruning did.
        quantize_state: What quantization did.
        start: What was cut before the training.
    """

    config: CompressionConfig
    task_name: str
    task_options: Mapping[str, Any]
    labels: Mapping[str, Sequence[str]]
    heads: Mapping[str, int]
    inputs: tuple[InputSpec, ...]
    example: tuple[Tensor, ...]
    float_model: nn.Module
    model: nn.Module
    prune_state: MethodState | None
    quantize_state: MethodState | None
    start: tuple[PruningStep, ...] = ()


def write_artifact(folder: Path | str, deployable: Deployable, card: Mapping[str, Any]) -> Path:
    """Write the folder whole or not at all, and return it; an artifact that was there is replaced.

    Before it gets its name, the folder is loaded again and compared with the model.

    Args:
        folder: Where it goes.
        deployable: What to write.
        card: What the card says beside the config: ``title``, ``summary``, ``scores``, ``costs`` and more sections.

    Raises:
        ArtifactError: The model cannot be exported or rebuilt, or something else than an artifact is there.
        StorageError: No space is left, or the folder cannot be written.
    """
    folder = Path(folder)
    architecture, tensors = _describe(deployable)
    files = _graphs(deployable)
    files["model.safetensors"] = save(tensors)
    files["architecture.json"] = architecture.model_dump_json().encode()
    files["config.yaml"] = yaml.safe_dump(deployable.config.to_json(), allow_unicode=True).encode()
    sizes = {name: len(content) for name, content in files.items()}
    files["card.md"] = render(architecture, card, sizes, is_weights_only(files["model.onnx"])).encode()

    def check(aside: Path) -> None:
        _compare(deployable, load_artifact(aside))

    write_files(folder, files, check)
    return folder


def load_artifact(folder: Path | str) -> nn.Module:
    """Return the module of an artifact, ready for inference.

    Every file is checked against the manifest before any is read, and none is unpickled.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, or the module cannot be rebuilt here.
    """
    files = read_files(Path(folder))
    architecture = parse(files["architecture.json"])
    try:
        stored = load(files["model.safetensors"])
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"model.safetensors cannot be read ({error})") from error
    return _rebuild(architecture, expand(stored, architecture.packed, architecture.aliases))


def read_architecture(folder: Path | str) -> Architecture:
    """Return what an artifact holds: task, heads, labels, config, bits.

    Raises:
        ArtifactError: The folder is no artifact, or a file was changed.
    """
    return parse(read_files(Path(folder))["architecture.json"])


def _describe(deployable: Deployable) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the architecture and the tensors of model.safetensors."""
    by_itself = _restored(deployable.quantize_state) | _restored(deployable.prune_state)
    model = {name: tensor for name, tensor in deployable.model.state_dict().items() if name not in by_itself}
    tensors = _prefixed("model", model)
    for stage, state in (("prune", deployable.prune_state), ("quantize", deployable.quantize_state)):
        tensors |= _prefixed(stage, {} if state is None else state.tensors)
    stored, packed, aliases = compact(tensors)
    inputs = [
        {
            "shape": tuple(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "vocabulary": spec.vocabulary,
            "missing": spec.missing,
        }
        for spec, tensor in zip(deployable.inputs, deployable.example, strict=True)
    ]
    architecture = Architecture.model_validate(
        {
            "format": 1,
            "task": deployable.task_name,
            "options": json.loads(json.dumps(dict(deployable.task_options))),
            "config": deployable.config.to_json(),
            "heads": dict(deployable.heads),
            "labels": {head: list(names) for head, names in deployable.labels.items()} or None,
            "inputs": inputs,
            "folded": list(find_folded_pairs(deployable.model)),
            "start": [{"part": step.part.to_json(), "state": saved_state(step.state)} for step in deployable.start],
            "prune": saved_state(deployable.prune_state),
            "quantize": saved_state(deployable.quantize_state),
            "packed": packed,
            "aliases": aliases,
            "versions": _versions(),
        }
    )
    return architecture, stored


def deployed(deployable: Deployable) -> bytes:
    """Return what ``model.onnx`` holds.

    Raises:
        ArtifactError: The model cannot be exported.
    """
    state = _rounding(deployable)
    if state is None:
        return _in_floating_point(deployable)
    proto = export_quantized(deployable.model, state, deployable.example, deployable.heads)
    return bytes(proto.SerializeToString())


def _in_floating_point(deployable: Deployable) -> bytes:
    folded = fold_batch_norm(deployable.float_model, deployable.example)
    return bytes(export_float(folded, deployable.example, deployable.heads).SerializeToString())


def _rounding(deployable: Deployable) -> MethodState | None:
    """Return how the model was quantized, if any layer of it was."""
    state = deployable.quantize_state
    if state is None or all(bits.weight == bits.activation == 32 for bits in state.bits.values()):
        return None
    return state


def _graphs(deployable: Deployable) -> dict[str, bytes]:
    twin = {} if _rounding(deployable) is None else {"model_float.onnx": _in_floating_point(deployable)}
    return {"model.onnx": deployed(deployable), **twin}


def _rebuild(architecture: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    config = architecture.compression
    states = {
        stage: None if saved is None else method_state(saved, _under(stage, tensors))
        for stage, saved in (("prune", architecture.prune), ("quantize", architecture.quantize))
    }
    try:
        model = _untrained(architecture, config.student)
        for step in architecture.start:
            model = _restore(PRUNE, Part.from_json(step.part), method_state(step.state, {}), model.eval())
        model = _restore(PRUNE, config.prune, states["prune"], model.eval())
        fold_structure(model, architecture.folded)
        model = _restore(QUANTIZE, config.quantize, states["quantize"], model)
        _fill(model, _under("model", tensors), _restored(states["prune"]) | _restored(states["quantize"]))
    except ArtifactError:
        raise
    except AutocompressError as error:
        raise ArtifactError(f"the module cannot be rebuilt: {error}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # A history or an option of another form: a method may trip over it anywhere.
        reason = " ".join(str(error).split())
        raise ArtifactError(f"the module cannot be rebuilt: {type(error).__name__}: {reason}") from error
    return model.eval()


def _untrained(architecture: Architecture, student: Part) -> nn.Module:
    """Return the module as it was before training; a registered family needs no task, and so no data."""
    if student.name in STUDENTS and student.name != FROM_TEACHER:
        return family_model(student, architecture.specs, architecture.heads)
    if architecture.task not in TASKS:
        raise ArtifactError(
            f"the module is of the task '{architecture.task}', which is not known here; "
            "load its plugin first: autocompress.load_plugin('my_task.py')"
        )
    model: nn.Module = TASKS.get(architecture.task)(**architecture.options).build(student)
    return model


def _restore(registry: Any, part: Any, state: MethodState | None, model: nn.Module) -> nn.Module:
    if state is None:
        return model
    if part is None:
        raise ArtifactError("architecture.json: a method's history stands beside a config without that method")
    method = registry.get(part.name)
    restored: nn.Module = method.restore(model, method.config.of(part.values), state)
    return restored


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], by_itself: set[str]) -> None:
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ArtifactError(f"the tensors do not fit the module: {' '.join(str(error).split())}") from error
    missing = sorted(set(missing) - by_itself)
    if missing or unexpected:
        names = ", ".join([*missing, *unexpected][:3])
        raise ArtifactError(f"the tensors do not fit the module: {names}")


def _compare(deployable: Deployable, rebuilt: nn.Module) -> None:
    """Make sure that the rebuilt module is the one that was written, to the last bit."""
    ours, theirs = deployable.model.state_dict(), rebuilt.state_dict()
    different = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    with torch.inference_mode():
        outputs = [logits_by_head(model(*deployable.example), deployable.heads) for model in (deployable.model, rebuilt)]
    different += [head for head in deployable.heads if not torch.equal(outputs[0][head], outputs[1][head])]
    if different or len(ours) != len(theirs):
        raise ArtifactError(f"the rebuilt module is another one than was exported: {', '.join(different[:3])}")


def _restored(state: MethodState | None) -> set[str]:
    """Return the names in the ``state_dict`` that a method's ``restore`` fills by itself."""
    return set() if state is None else set(state.history.get("restored", []))


def _prefixed(stage: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{stage}/{name}": tensor for name, tensor in tensors.items()}


def _under(stage: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{stage}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("autocompress", "torch", "onnx", "onnxruntime")}
