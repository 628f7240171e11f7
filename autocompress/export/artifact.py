"""The deployable folder: an ONNX graph, and the module's architecture and tensors, without pickle.

model.onnx, model_float.onnx (only where model.onnx is quantized), the files of a target that does not read ONNX,
preprocess.json and pipeline.py that run model.onnx on raw input, model.safetensors, architecture.json, config.yaml,
card.md, manifest.json.
"""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self, cast

import torch
import yaml
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.knobs import Leaf, Settings
from autocompress.core.method import Method, MethodState
from autocompress.core.preprocessing import CandidatesInput, Preprocessing
from autocompress.core.registry import PRUNE, QUANTIZE, STUDENTS, TASKS, Registry
from autocompress.core.run_info import TargetInfo
from autocompress.core.task import InputSpec, Task, logits_by_head
from autocompress.errors import ArtifactError, AutocompressError
from autocompress.export.architecture import (
    LARGEST_MODEL,
    LARGEST_SHRINKAGE,
    Adaptation,
    Architecture,
    SavedState,
    dump_state,
    method_state,
    read_architecture_file,
)
from autocompress.export.card import Card, render_card
from autocompress.export.folder import read_files, write_files
from autocompress.export.graph_choice import (
    CHOICE_SECONDS,
    FLOAT,
    INTEGER,
    ChosenGraph,
    GraphRequest,
    choose_float_graph,
    choose_graph,
)
from autocompress.export.onnx import export_float, export_quantized
from autocompress.export.preprocess_file import (
    PIPELINE,
    PREPROCESS,
    complete_preprocessing,
    embed_preprocess,
    list_tokenizer_files,
    read_pipeline,
    render_preprocess,
)
from autocompress.measure.tensor_storage import pack_tensors, unpack_tensors
from autocompress.models.base import build_family_model
from autocompress.models.from_teacher import NAME as FROM_TEACHER
from autocompress.prune.expansion import ChannelMap, OriginalPositions
from autocompress.quantize.conversion import original_state
from autocompress.quantize.folding import (
    estimate_unfolded_statistics,
    find_folded_pairs,
    fold_batch_norm,
    fold_structure,
    unfold_batch_norm,
)
from autocompress.targets import open_stored_target
from autocompress.targets.onnx_session import is_weights_only
from autocompress.trial.pipeline import PruningStep, RebuiltCandidate, list_restored_tensors, list_stored_tensors

logger = logging.getLogger(__name__)

# A method does not validate its history, so a malformed one raises any of these errors.
REBUILD_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Deployable:
    """One candidate with everything that its artifact holds.

    Attributes:
        config: Config of the candidate, compression included.
        task_name: The task's registered name.
        task_options: The task's options, JSON values.
        labels: Head name to the name of each class; empty where they have none.
        heads: Head name to number of classes.
        inputs: The model's positional arguments.
        example: A batch of one, as the model's positional arguments.
        float_model: Pruned, 32-bit, in evaluation mode.
        model: Quantized, or the same as ``float_model``.
        prune_state: State of the pruning method; None if nothing was pruned.
        quantize_state: State of the quantization method; None if nothing was quantized.
        start: Pruning steps applied before training.
        preprocessing: How a raw example becomes each input; empty if the model takes tensors.
        adapted: Record of an adaptation to recent data; None for a model as it was searched.
        target: The device or runtime that the artifact is made for; without a name, integer kernels are used wherever
            possible, in a form that every processor computes exactly.
        batches: Batches of inputs on which graphs for the target are compared with the model.
        origin: Run and candidate, with its scores and costs; empty for a model that no search has made.
        exact: Whether every layer that can run on integer kernels does, so that the graph computes what was searched.
    """

    config: CompressionConfig
    task_name: str
    task_options: Mapping[str, JsonValue]
    labels: Mapping[str, Sequence[str]]
    heads: Mapping[str, int]
    inputs: tuple[InputSpec, ...]
    example: tuple[Tensor, ...]
    float_model: nn.Module
    model: nn.Module
    prune_state: MethodState | None
    quantize_state: MethodState | None
    start: tuple[PruningStep, ...] = ()
    preprocessing: Preprocessing = ()
    adapted: Adaptation | None = None
    target: TargetInfo = field(default_factory=TargetInfo)
    batches: tuple[tuple[Tensor, ...], ...] = ()
    exact: bool = False
    origin: Mapping[str, JsonValue] = field(default_factory=dict)

    @classmethod
    def from_task(cls, task: Task, seed: int, config: CompressionConfig, models: RebuiltCandidate) -> Self:
        """Return a model of a task, whose options are the default ones.

        Args:
            task: The task.
            seed: Seed of the splits.
            config: Config of the candidate, compression included.
            models: Float and quantized model, with the states of their methods.
        """
        return cls(
            config,
            task.name,
            {},
            task.labels,
            dict(task.heads),
            task.inputs,
            task.example(),
            models.float_model,
            models.model,
            models.prune,
            models.quantize,
            models.start,
            task.specify_preprocessing(seed),
        )

    @property
    def lists(self) -> tuple[int, ...]:
        """Positions of the inputs that are lists of any length."""
        return tuple(at for at, entry in enumerate(self.preprocessing) if isinstance(entry, CandidatesInput))


def write_artifact(
    folder: Path | str, deployable: Deployable, card: Card, check: Callable[[Path], object] = str
) -> Path:
    """Write an artifact atomically and return its path; an earlier artifact at that path is replaced.

    The folder is loaded again and compared with the model before it is renamed to its final path.

    Args:
        folder: Path of the new artifact.
        deployable: Candidate to write.
        card: Sections of the card besides the config: ``title``, ``summary``, ``scores``, ``costs`` and more sections.
        check: Further check of the folder before it is renamed; an exception discards the folder.

    Raises:
        ArtifactError: The model cannot be exported or rebuilt, or the path exists and is not an artifact.
        StorageError: No space is left, or the folder cannot be written.
    """
    folder = Path(folder)
    # Before the graphs, whose export takes seconds.
    complete_preprocessing(deployable)
    architecture, tensors = _build_architecture(deployable)
    files = _export_graphs(deployable)
    weights_only = is_weights_only(files["model.onnx"])
    converted, facts = _convert_graph(deployable, files["model.onnx"])
    preprocess = render_preprocess(deployable, weights_only)
    files = {name: embed_preprocess(graph, preprocess) for name, graph in files.items()}
    files |= {**converted, PREPROCESS: preprocess, PIPELINE: read_pipeline()}
    files |= list_tokenizer_files(deployable.preprocessing)
    files["model.safetensors"] = save(tensors)
    files["architecture.json"] = architecture.model_dump_json().encode()
    files["config.yaml"] = yaml.safe_dump(deployable.config.to_json(), allow_unicode=True).encode()
    sizes = {name: len(content) for name, content in files.items()}
    # The card lists the sizes of the other files.
    files["card.md"] = render_card(architecture, {**card, **facts}, sizes, weights_only).encode()

    def check_written(written: Path) -> None:
        _check_rebuilt(deployable, load_artifact(written))
        check(written)

    write_files(folder, files, check_written)
    logger.info("%s: wrote %s", folder, ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes.items()))
    return folder


def load_artifact(folder: Path | str, *, key: Path | str | None = None) -> nn.Module:
    """Return the module of an artifact, ready for inference.

    Every file is checked against the manifest before any is read, and none is unpickled.

    Args:
        folder: The artifact.
        key: PEM file of the public key that must have signed the artifact; None for no check of a signature.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, the signature is not the key's, or the module
            cannot be rebuilt here.
    """
    return rebuild_module(*read_tensors(Path(folder), key=key))


def expand_artifact(folder: Path | str, *, key: Path | str | None = None) -> nn.Module:
    """Return the float module of an artifact in the shapes before pruning, with zeros where channels were removed.

    The shapes are those of the teacher for a student made from it, and those of the trained student otherwise. Kept
    channels have their original indices, see :attr:`Architecture.channels`; dropped blocks come back with zeros.
    Quantized weights are dequantized, and activations are not rounded. Batch normalizations that the artifact holds
    folded come back as the affine map that is left of them, with mean 0 and variance 1: fine-tune with these layers in
    evaluation mode. An artifact without removed channels and blocks is returned as :func:`load_artifact` returns it.

    Args:
        folder: The artifact.
        key: PEM file of the public key that must have signed the artifact; None for no check of a signature.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, the artifact was written without a channel map,
            or the module cannot be expanded.
    """
    architecture, tensors = read_tensors(Path(folder), key=key)
    module = rebuild_module(architecture, tensors)
    if architecture.prune is None and not architecture.start:
        return module
    if architecture.channels is None:
        raise ArtifactError(
            f"{folder}: architecture.json has no channel map: an earlier version wrote it, or the pruning method does "
            "more than removing channels; export the candidate again: autocompress export RUN --candidate ID"
        )
    if not architecture.channels:
        return module
    with _explain_errors("expanded"):
        original = _build_initial_model(architecture, architecture.compression.student)
        positions = OriginalPositions(original, partial(_restore_pruning, architecture, tensors))
        if positions.list_channels() != architecture.channels:
            raise ArtifactError(
                f"{folder}: the channel map of architecture.json differs from its pruning history; export it again"
            )
        pruned = _restore_pruning(architecture, tensors, copy.deepcopy(original))
        unfold_batch_norm(pruned, module)
        return positions.expand(pruned, _draw_example(architecture))


def read_candidate(
    folder: Path | str, reference: Iterable[tuple[Tensor, ...]]
) -> tuple[Architecture, RebuiltCandidate]:
    """Return the architecture and the candidate of an artifact, to be trained further.

    An artifact holds batch normalizations folded into the layers before them, and quantized weights. The float model
    has the dequantized weights, and its batch normalizations again: their statistics are those of the reference data,
    and its outputs are those of the artifact without rounded activations. Batch normalizations without weights stay
    folded.

    Args:
        folder: The artifact.
        reference: Batches of the data that the model was trained on, as positional arguments.

    Raises:
        ArtifactError: The folder is no artifact, a file was changed, or the module cannot be rebuilt here.
    """
    architecture, tensors = read_tensors(Path(folder))
    module = rebuild_module(architecture, tensors)
    with _explain_errors("trained further"):
        float_model = _restore_pruning(
            architecture, tensors, _build_initial_model(architecture, architecture.compression.student)
        ).eval()
        unfold_batch_norm(float_model, module)
        norms = [norm for _, norm in architecture.folded]
        if not estimate_unfolded_statistics(float_model, norms, reference):
            fold_structure(float_model, architecture.folded)
            expected = float_model.state_dict()
            # The values of input and output quantizers have no place in a float model.
            float_model.load_state_dict({name: t for name, t in original_state(module).items() if name in expected})
    prune, quantize = (_stage_state(architecture, stage, tensors) for stage in ("prune", "quantize"))
    start = tuple(PruningStep(Part.from_json(step.part), method_state(step.state, {})) for step in architecture.start)
    return architecture, RebuiltCandidate(float_model.eval(), module, prune, quantize, start)


def _draw_example(architecture: Architecture) -> tuple[Tensor, ...]:
    """Return a batch of one with random indices where an input has a vocabulary, and zeros elsewhere."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(entry.vocabulary, tensor.shape, generator=generator).to(tensor) if entry.vocabulary else tensor
        for entry, tensor in zip(architecture.inputs, architecture.example(), strict=True)
    )


def read_tensors(folder: Path, *, key: Path | str | None = None) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the architecture and the unpacked tensors of an artifact.

    Raises:
        ArtifactError: The folder is no artifact, or a file was changed.
    """
    # Reads every file once, so that the checked bytes are the bytes that are used.
    files = read_files(folder, key=key)
    architecture = read_architecture_file(files)
    try:
        stored = load(files["model.safetensors"])
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"model.safetensors cannot be read ({error})") from error
    tensors = unpack_tensors(stored, architecture.packed, architecture.aliases)
    check_model_size(architecture, tensors)
    return architecture, tensors


def read_architecture(folder: Path | str) -> Architecture:
    """Return the architecture of an artifact: task, heads, labels, config, bits.

    Raises:
        ArtifactError: The folder is no artifact, or a file was changed.
    """
    return read_architecture_file(read_files(Path(folder)))


def _build_architecture(deployable: Deployable) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the architecture and the tensors of model.safetensors."""
    tensors = list_stored_tensors(deployable.model, deployable.prune_state, deployable.quantize_state)
    stored, packed, aliases = pack_tensors(tensors)
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
            "format": 2,
            "task": deployable.task_name,
            # The round trip turns tuples into lists, as they are when the file is read.
            "options": json.loads(json.dumps(dict(deployable.task_options))),
            "config": deployable.config.to_json(),
            "heads": dict(deployable.heads),
            "labels": {head: list(names) for head, names in deployable.labels.items()} or None,
            "inputs": inputs,
            "folded": list(find_folded_pairs(deployable.model)),
            "start": [{"part": step.part.to_json(), "state": dump_state(step.state)} for step in deployable.start],
            "prune": dump_state(deployable.prune_state),
            "quantize": dump_state(deployable.quantize_state),
            "packed": packed,
            "aliases": aliases,
            "versions": _library_versions(),
            "adapted": deployable.adapted,
        }
    )
    return architecture.model_copy(update={"channels": _map_channels(architecture, tensors)}), stored


def locate_values(
    architecture: Architecture, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Return the flat positions of a pruned model's values in the model before pruning, and the shapes there, by name.

    Both are empty for a model that is not pruned, and for a pruning that does more than removing channels and blocks.
    """
    if architecture.prune is None and not architecture.start:
        return {}, {}
    try:
        original = _build_initial_model(architecture, architecture.compression.student)
        positions = OriginalPositions(original, partial(_restore_pruning, architecture, tensors)).list_positions()
    except (AutocompressError, *REBUILD_ERRORS) as error:
        logger.info("no positions: %s", error)
        return {}, {}
    return positions, {name: tuple(tensor.shape) for name, tensor in original.state_dict().items()}


def _map_channels(architecture: Architecture, tensors: Mapping[str, Tensor]) -> ChannelMap | None:
    """Return the channel map; None for a pruning that does more than removing channels and blocks."""
    if architecture.prune is None and not architecture.start:
        return {}
    try:
        original = _build_initial_model(architecture, architecture.compression.student)
        return OriginalPositions(original, partial(_restore_pruning, architecture, tensors)).list_channels()
    except (AutocompressError, *REBUILD_ERRORS) as error:
        # Such a model is exported all the same. If it cannot be rebuilt, the check of the written folder says so.
        logger.info("no channel map: %s", error)
        return None


def export_graph(deployable: Deployable) -> bytes:
    """Return the content of ``model.onnx``.

    Raises:
        ArtifactError: The model cannot be exported.
    """
    return export_chosen_graph(deployable).content


def export_chosen_graph(deployable: Deployable, seconds: float = CHOICE_SECONDS) -> ChosenGraph:
    """Return the graph of ``model.onnx``, with the graph of the same weights in floating point beside it.

    Args:
        deployable: The model.
        seconds: Seconds to time the graphs among which a target chooses.

    Raises:
        ArtifactError: The model cannot be exported.
    """
    state = _quantization_state(deployable)
    if state is None:
        content = export_float_graph(deployable)
        if not deployable.target.precisions.restricts:
            return ChosenGraph(content, FLOAT, {}, content)
        target = open_stored_target(deployable.target)
        return choose_float_graph(content, target, deployable.example, seconds)
    if deployable.target.precisions.restricts:
        request = GraphRequest(
            deployable.model, state, deployable.example, deployable.heads, deployable.batches, deployable.lists
        )
        target = open_stored_target(deployable.target)
        # Probed again: an artifact may be exported on another processor than the search ran on.
        return choose_graph(request, target, target.precisions(), exact=deployable.exact, seconds=seconds)
    proto = export_quantized(deployable.model, state, deployable.example, deployable.heads, deployable.lists)
    return ChosenGraph(bytes(proto.SerializeToString()), INTEGER, {}, export_float_graph(deployable))


def export_float_graph(deployable: Deployable) -> bytes:
    """Return the content of ``model_float.onnx``: the pruned model in floating point.

    Raises:
        ArtifactError: The model cannot be exported.
    """
    folded = fold_batch_norm(deployable.float_model, deployable.example)
    return bytes(export_float(folded, deployable.example, deployable.heads, deployable.lists).SerializeToString())


def _quantization_state(deployable: Deployable) -> MethodState | None:
    """Return the state of the quantization method; None if every layer stays at 32 bits."""
    state = deployable.quantize_state
    if state is None or all(bits.weight == bits.activation == 32 for bits in state.bits.values()):
        return None
    return state


def _export_graphs(deployable: Deployable) -> dict[str, bytes]:
    graphs = {"model.onnx": export_graph(deployable)}
    # Without quantization both graphs would be the same.
    if _quantization_state(deployable) is not None:
        graphs["model_float.onnx"] = export_float_graph(deployable)
    return graphs


def _convert_graph(deployable: Deployable, graph: bytes) -> tuple[dict[str, bytes], Card]:
    """Return the files that the target loads instead of the ONNX file, and sections of the card about them.

    Both are empty for targets that read ONNX.
    """
    if not deployable.target.precisions.restricts:
        return {}, {}
    target = open_stored_target(deployable.target)
    files = {name: content for name, content in target.convert(graph).items() if name != "model.onnx"}
    memory = target.plan_memory(files) if files else None
    if memory is None:
        return files, {}
    return files, {"Working memory": f"{memory:,} bytes for the tensors between layers (arena), beside the weights."}


def rebuild_module(architecture: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the module of an architecture and its unpacked tensors, in evaluation mode.

    Raises:
        ArtifactError: The module cannot be rebuilt here.
    """
    config = architecture.compression
    states = {stage: _stage_state(architecture, stage, tensors) for stage in ("prune", "quantize")}
    with _explain_errors("rebuilt"):
        # The order of the trial: each method restores the structure that it was applied to.
        model = _restore_pruning(architecture, tensors, _build_initial_model(architecture, config.student))
        fold_structure(model, architecture.folded)
        model = _restore_method(QUANTIZE, config.quantize, states["quantize"], model)
        _load_tensors(
            model,
            _select_prefix("model", tensors),
            list_restored_tensors(states["prune"]) | list_restored_tensors(states["quantize"]),
        )
    return model.eval()


@contextmanager
def _explain_errors(result: str) -> Iterator[None]:
    """Turn the errors of the body into one that says that the module cannot be ``result``."""
    try:
        yield
    except ArtifactError:
        raise
    except AutocompressError as error:
        raise ArtifactError(f"the module cannot be {result}: {error}") from error
    except REBUILD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"the module cannot be {result}: {type(error).__name__}: {reason}") from error


def _build_initial_model(architecture: Architecture, student: Part) -> nn.Module:
    """Return the module before training. A registered family is built without the task, so its data is not needed."""
    if student.name in STUDENTS and student.name != FROM_TEACHER:
        return build_family_model(student, architecture.specs, architecture.heads)
    if architecture.task not in TASKS:
        raise ArtifactError(
            f"the module belongs to the task '{architecture.task}', which is not registered; "
            "load its plugin first: autocompress.load_plugin('my_task.py')"
        )
    # JSON values; the constructor of the task checks them.
    options = cast("dict[str, Leaf]", architecture.options)
    model: nn.Module = TASKS.get(architecture.task)(**options).build(student)
    return model


def check_model_size(architecture: Architecture, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that a module and its example take, before either is built: a small file may declare any width.

    A module of a task is not checked: its size does not depend on the artifact.

    Raises:
        ArtifactError: They take too much for the tensors of the artifact, or the module cannot be built.
    """
    student = architecture.compression.student
    nbytes: int = sum(math.prod(entry.shape) * getattr(torch, entry.dtype).itemsize for entry in architecture.inputs)
    if student.name in STUDENTS and student.name != FROM_TEACHER:
        with _explain_errors("rebuilt"), torch.device("meta"):
            model = build_family_model(student, architecture.specs, architecture.heads)
        nbytes += sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    stored = sum(tensor.nbytes for tensor in tensors.values())
    if nbytes > max(LARGEST_MODEL, LARGEST_SHRINKAGE * stored):
        raise ArtifactError(
            f"architecture.json describes a module of {nbytes:,} bytes, and model.safetensors has {stored:,}: they do "
            "not belong together"
        )
    return nbytes


def _restore_pruning(architecture: Architecture, tensors: Mapping[str, Tensor], model: nn.Module) -> nn.Module:
    """Repeat the pruning before and after the training on a fresh model."""
    for step in architecture.start:
        model = _restore_method(PRUNE, Part.from_json(step.part), method_state(step.state, {}), model.eval())
    state = _stage_state(architecture, "prune", tensors)
    return _restore_method(PRUNE, architecture.compression.prune, state, model.eval())


def _stage_state(
    architecture: Architecture, stage: Literal["prune", "quantize"], tensors: Mapping[str, Tensor]
) -> MethodState | None:
    saved: SavedState | None = getattr(architecture, stage)
    return None if saved is None else method_state(saved, _select_prefix(stage, tensors))


def _restore_method(
    registry: Registry[Method[Settings]], part: Part | None, state: MethodState | None, model: nn.Module
) -> nn.Module:
    if state is None:
        return model
    if part is None:
        raise ArtifactError("architecture.json holds the history of a method that its config does not name")
    method = registry.get(part.name)
    restored: nn.Module = method.restore(model, method.config.of(part.values), state)
    return restored


def _load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], restored_names: set[str]) -> None:
    try:
        # Not strict: tensors that a method has restored are not among those of the model.
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ArtifactError(f"the tensors do not fit the module: {' '.join(str(error).split())}") from error
    missing = sorted(set(missing) - restored_names)
    if missing or unexpected:
        names = ", ".join([*missing, *unexpected][:3])
        raise ArtifactError(f"the tensors do not fit the module: {names}")


def _check_rebuilt(deployable: Deployable, rebuilt: nn.Module) -> None:
    """Check that the rebuilt module equals the exported one bit for bit."""
    exported_state, rebuilt_state = deployable.model.state_dict(), rebuilt.state_dict()
    different = [
        name
        for name, tensor in exported_state.items()
        if name not in rebuilt_state or not torch.equal(tensor, rebuilt_state[name])
    ]
    with torch.inference_mode():
        outputs = [
            logits_by_head(model(*deployable.example), deployable.heads) for model in (deployable.model, rebuilt)
        ]
    # Equal tensors can still be wired differently, so the outputs are compared too.
    different += [head for head in deployable.heads if not torch.equal(outputs[0][head], outputs[1][head])]
    if different or len(exported_state) != len(rebuilt_state):
        raise ArtifactError(f"the rebuilt module differs from the exported one: {', '.join(different[:3])}")


def _select_prefix(stage: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{stage}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("autocompress", "torch", "onnx", "onnxruntime")}
