"""preprocess.json: how raw input becomes the tensors of a model, and what its outputs mean.

``pipeline.py`` of the same folder reads it. Its text is also in the metadata of the ONNX graph, so that the graph alone
describes itself and a file of another export is detected.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING

import onnx

from autocompress.core.boxes import MOST_BOXES, MOST_COMPARED, OVERLAP
from autocompress.core.heads import Detection, as_head
from autocompress.core.preprocessing import (
    CandidatesInput,
    Preprocessing,
    RawInput,
    TensorInput,
    TextInput,
    TokenizerInput,
    check_preprocessing,
    dump_input,
    load_input,
)
from autocompress.core.untrusted import check_json_size
from autocompress.errors import ArtifactError, UsageError
from autocompress.export.card import input_names
from autocompress.export.pipeline import FORMAT, METADATA

if TYPE_CHECKING:
    from autocompress.export.artifact import Deployable

PREPROCESS, PIPELINE, TOKENIZER = "preprocess.json", "pipeline.py", "tokenizer.json"
# Options of an onnxruntime session for a model of which only the weights are quantized: they are decoded once.
DECODE_ONCE = {"session.disable_quant_qdq": "1"}
MEANINGS = {
    "classes": "logits; their softmax is the probability of each class",
    "levels": "logits; their softmax is the probability of each level, and the mean of the levels the expected value",
    "binary": "one logit; its sigmoid is the probability of the second class",
    "multilabel": "logits; the sigmoid of each is the probability of its label",
    "dense": "logits of each position; their softmax is the probability of each class",
    "tags": "logits of each token; their softmax is the probability of each class",
    "regression": "numbers in the unit of the targets",
    "detection": "maps of a grid: logits of the classes, logit of the overlap, center and size of the box of each cell",
    "custom": "raw outputs of the model",
    "ranking": "scores of the candidates; only their order has a meaning",
}
# What a kind of head needs besides its names: a threshold of probabilities, the axis of the classes of one example, or
# how boxes are selected.
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "binary": {"threshold": 0.5},
    "multilabel": {"threshold": 0.5},
    "dense": {"axis": 0},
    "tags": {"axis": -1},
    "detection": {"overlap": OVERLAP, "compared": MOST_COMPARED, "most": MOST_BOXES},
}


def render_preprocess(deployable: "Deployable", weights_only: bool) -> bytes:
    """Return the content of preprocess.json.

    Args:
        deployable: Candidate to export.
        weights_only: Whether only weights are quantized, which needs a session option.

    Raises:
        ArtifactError: The task's specification does not fit the inputs of the model.
    """
    preprocessing = complete_preprocessing(deployable)
    names = input_names(len(preprocessing))
    candidates = [entry for entry in preprocessing if isinstance(entry, CandidatesInput)]
    content = {
        "format": FORMAT,
        "task": deployable.task_name,
        "inputs": [_dump_entry(tensor, entry) for tensor, entry in zip(names, preprocessing, strict=True)],
        "outputs": [
            _describe_output(head, classes, deployable, candidates) for head, classes in deployable.heads.items()
        ],
        "session": DECODE_ONCE if weights_only else {},
        # Artifacts that no search has made have no origin.
        **({"origin": dict(deployable.origin)} if deployable.origin else {}),
    }
    # NaN is no JSON; a specification with one would be read differently by other programs.
    try:
        return (json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()
    except ValueError as error:
        raise ArtifactError(f"task '{deployable.task_name}': its specification cannot be stored ({error})") from error


def complete_preprocessing(deployable: "Deployable") -> Preprocessing:
    """Return the task's specification; without one, the model takes tensors.

    Raises:
        ArtifactError: The specification does not fit the inputs of the model.
    """
    tensors = [(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")) for tensor in deployable.example]
    if not deployable.preprocessing:
        return tuple(
            TensorInput(name, shape, dtype, spec.vocabulary)
            for name, (shape, dtype), spec in zip(input_names(len(tensors)), tensors, deployable.inputs, strict=True)
        )
    try:
        check_preprocessing(deployable.task_name, deployable.preprocessing, [shape for shape, _ in tensors])
    except UsageError as error:
        raise ArtifactError(str(error)) from error
    return deployable.preprocessing


def embed_preprocess(graph: bytes, preprocess: bytes) -> bytes:
    """Return an ONNX graph with the text of preprocess.json in its metadata."""
    proto = onnx.load_from_string(graph)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, preprocess.decode()
    return bytes(proto.SerializeToString())


def list_tokenizer_files(preprocessing: Preprocessing) -> dict[str, bytes]:
    """Return the file of the tokenizer of a model, by name; none for models without one."""
    entries = [entry for entry in preprocessing if isinstance(entry, TokenizerInput)]
    # All inputs of a model are made by one tokenizer.
    return {TOKENIZER: entries[0].tokenizer.encode()} if entries else {}


def _dump_entry(tensor: str, entry: RawInput) -> dict[str, object]:
    """Return the entry of an input in preprocess.json; a tokenizer is named by its file and the hash of its content."""
    values = {"tensor": tensor, **dump_input(entry)}
    if isinstance(entry, TokenizerInput):
        values |= {"tokenizer": TOKENIZER, "sha256": hashlib.sha256(entry.tokenizer.encode()).hexdigest()}
    return values


def read_preprocessing(content: bytes, tokenizer: bytes = b"") -> Preprocessing:
    """Return the records of a preprocess.json; none if it describes tensors.

    Args:
        content: Content of preprocess.json.
        tokenizer: Content of tokenizer.json of the same artifact; empty without one.

    Raises:
        ArtifactError: It cannot be read.
    """
    try:
        check_json_size(content)
        entries = [load_input(entry) for entry in json.loads(content)["inputs"]]
        text = tokenizer.decode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise ArtifactError(f"{PREPROCESS} cannot be read ({error})") from error
    if any(isinstance(entry, TensorInput) for entry in entries):
        return ()
    return tuple(replace(entry, tokenizer=text) if isinstance(entry, TokenizerInput) else entry for entry in entries)


def read_pipeline() -> bytes:
    """Return the content of pipeline.py."""
    return resources.files("autocompress.export").joinpath(PIPELINE).read_bytes()


def _describe_output(
    head: str, size: int, deployable: "Deployable", candidates: Sequence[CandidatesInput]
) -> Mapping[str, object]:
    """Return the entry of a head."""
    kind = as_head(size).kind
    # With a single head, the classes of a task with candidates are the candidates.
    if candidates and (kind == "candidates" or len(deployable.heads) == 1):
        kind = "ranking"
    levels = list(getattr(size, "levels", ()))
    # Scores of candidates that the task does not name: their positions are the classes.
    kind = "classes" if kind == "candidates" else kind
    entry: dict[str, object] = {"head": head, "kind": kind, "meaning": MEANINGS[kind]}
    if kind == "ranking":
        before = {"first": candidates[0].first} if candidates[0].first else {}
        return {**entry, "candidates": candidates[0].name, **before}
    if kind == "custom":
        # Values of an unknown meaning have no names.
        return entry
    count = 2 if kind == "binary" else int(size)
    entry["classes"] = _distinguish_names(list(deployable.labels.get(head) or map(str, range(count))))
    threshold = as_head(size).threshold
    chosen = {} if threshold is None else {"threshold": threshold}
    first = deployable.preprocessing[0] if deployable.preprocessing else None
    if kind == "tags" and isinstance(first, TextInput):
        entry["units"] = first.encoding
    if isinstance(size, Detection):
        entry["least_score"] = size.least_score
    return {**entry, **({"levels": levels} if levels else {}), **SETTINGS.get(kind, {}), **chosen}


def _distinguish_names(names: Sequence[str]) -> list[str]:
    """Return names with a number where a name occurs more than once: classes of close levels may round to one.

    Example:
        >>> _distinguish_names(["1", "1", "2"])
        ['1 (0)', '1 (1)', '2']
    """
    counts = Counter(names)
    return [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]
