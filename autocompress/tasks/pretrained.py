"""Text classifiers of Hugging Face from a local folder, with their tokenizer.

A folder holds ``config.json``, weights as safetensors, and ``tokenizer.json``. Texts become token ids and an attention
mask; an exported pipeline holds the tokenizer and takes texts.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.duplicates import digest_texts
from autocompress.core.preprocessing import Preprocessing, RawExample, TokenizerInput
from autocompress.core.task import InputSpec
from autocompress.core.untrusted import LARGEST_JSON, read_regular_file
from autocompress.errors import UsageError, did_you_mean
from autocompress.tasks.base import locate_test_rows
from autocompress.tasks.mapped_arrays import label_split
from autocompress.tasks.tensors import ONLY_HEAD, Tensors
from autocompress.tasks.text_encoding import UNTRUNCATED_SHARE
from autocompress.tasks.text_files import read_texts

CLASSIFIER = "ForSequenceClassification"
MOST_LAYERS = 1_000
SHORTEST, LONGEST = 8, 512
# Kinds of heads by the problem type in config.json.
KINDS = {"regression": "regression", "multi_label_classification": "multilabel"}
# Model families whose positions start behind the padding's number.
SHIFTED_POSITIONS = ("roberta", "camembert", "longformer", "mpnet")
IDS, MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class PretrainedClassifier:
    """A text classifier and its tokenizer, read from a folder by :func:`from_pretrained`.

    Attributes:
        folder: The folder.
        model: The classifier, in evaluation mode.
        tokenizer: Content of ``tokenizer.json``.
        padding: Token id of padding.
        side: Side of a text on which padding is added, ``right`` or ``left``.
        longest: Largest number of tokens of a text, special tokens included.
        vocabulary: Number of token ids of the model.
        classes: Names of the classes, or of the numbers that a regression predicts.
        kind: Kind of the head: ``classes``, ``multilabel`` or ``regression``.
    """

    folder: Path
    model: nn.Module
    tokenizer: str = field(repr=False)
    padding: int
    side: str
    longest: int
    vocabulary: int
    classes: tuple[str, ...]
    kind: str = "classes"

    def encode(
        self,
        data: object,
        *,
        test: object = None,
        val: object = None,
        text: str = "text",
        label: str = "label",
        length: int | None = None,
        groups: object = None,
        times: object = None,
    ) -> "PretrainedTexts":
        """Return texts with their labels as data for a search, ``autocompress.search(teacher=..., data=...)``.

        Args:
            data: Pair ``(texts, labels)``, or a ``.csv`` or ``.tsv`` file. Labels are names of the model's classes, or
                their numbers; for other kinds of heads, arrays as :class:`~autocompress.Tensors` takes them.
            test: Test split in one of these forms; by default it is taken out of ``data``.
            val: Texts of both validation splits in one of these forms, which the classifier was not trained on; by
                default they are taken out of ``data``.
            text: Column of the texts in a file.
            label: Column of the labels in a file.
            length: Number of tokens of a text; by default the smallest that truncates at most 5% of the texts.
            groups: Group of each text, see :class:`~autocompress.Tensors`.
            times: Time of each text, see there.

        Raises:
            UsageError: A file or a label cannot be used, or the length is out of bounds.
        """
        parts = {part: value for part, value in (("train", data), ("val", val), ("test", test)) if value is not None}
        columns = (text, label)
        read = {part: self._read_part(part, value, columns) for part, value in parts.items()}
        return PretrainedTexts(self, read, length, groups=groups, times=times)

    def _read_part(self, part: str, data: object, columns: tuple[str, str]) -> tuple[list[str], Any]:
        """Return the texts and the targets of one part of the data."""
        if isinstance(data, str | Path):
            rows = read_texts(Path(data).expanduser(), columns[0], [columns[1]], "bytes")
            labels: Any = list(rows.labels[columns[1]])
            if self.kind == "regression":
                labels = _read_numbers(labels, rows.format_location)
            return list(rows.texts), labels if self.kind == "regression" else self._index_classes(part, labels)
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise UsageError(f"data '{part}' is {type(data).__name__}; give (texts, labels), or a .csv or .tsv file")
        texts, targets = list(data[0]), data[1]
        wrong = next((row for row, value in enumerate(texts) if not isinstance(value, str) or not value.strip()), None)
        if wrong is not None:
            problem = "an empty text" if isinstance(texts[wrong], str) else f"a {type(texts[wrong]).__name__}"
            raise UsageError(f"data '{part}': example {wrong} is {problem}; each example needs a text")
        return texts, self._index_classes(part, list(targets)) if self.kind == "classes" else targets

    def _index_classes(self, part: str, labels: Sequence[Any]) -> list[int]:
        """Return class numbers for names of classes; numbers are checked."""
        indices = {name: index for index, name in enumerate(self.classes)}
        numbers = []
        for row, label in enumerate(labels):
            index = indices.get(label) if isinstance(label, str) else None
            # A file has numbers as texts.
            if index is None and (not isinstance(label, str) or label.isdecimal()):
                index = int(label)
            if index is None or not 0 <= index < len(self.classes):
                raise UsageError(
                    f"data '{part}': example {row} has the class {label!r}, which {self.folder} does not have (numbers "
                    f"are from 0 to {len(self.classes) - 1}); {did_you_mean(str(label), self.classes)}"
                )
            numbers.append(index)
        return numbers


class PretrainedTexts(Tensors):
    """Texts as token ids and an attention mask, with the tokenizer of a pretrained classifier.

    Args:
        classifier: The classifier.
        parts: ``train``, and ``val`` and ``test`` if they are given, to texts and targets.
        length: Number of tokens of a text; None for the smallest that truncates at most 5% of the training texts.
        groups: Group of each text, see :class:`~autocompress.Tensors`.
        times: Time of each text, see there.

    Raises:
        UsageError: The length is out of bounds, or a target does not fit the classifier.
    """

    name = "pretrained_texts"

    def __init__(
        self,
        classifier: PretrainedClassifier,
        parts: Mapping[str, tuple[Sequence[str], Any]],
        length: int | None = None,
        *,
        groups: object = None,
        times: object = None,
    ) -> None:
        self._classifier = classifier
        self._texts = {part: list(texts) for part, (texts, _) in parts.items()}
        encodings = {part: _load_tokenizer(classifier).encode_batch(texts) for part, texts in self._texts.items()}
        if length is None:
            counts = sorted(len(encoding.ids) for encoding in encodings["train"])
            length = min(max(counts[ceil(UNTRUNCATED_SHARE * len(counts)) - 1], SHORTEST), classifier.longest)
        if not 1 <= length <= classifier.longest:
            raise UsageError(f"length is {length}; {classifier.folder} takes texts of 1 to {classifier.longest} tokens")
        self.length = length
        self._truncated = sum(len(encoding.ids) > length for encoding in encodings["train"])
        self._takes_mask = MASK in inspect.signature(classifier.model.forward).parameters
        pairs = {part: self._make_pair(*pair) for part, pair in parts.items()}
        super().__init__(
            pairs["train"],
            pairs.get("test"),
            val=pairs.get("val"),
            labels=() if classifier.kind == "regression" else classifier.classes[: self._count_classes(parts)],
            missing={IDS: classifier.padding},
            kinds=classifier.kind,
            groups=groups,
            times=times,
        )
        # Texts that differ in case or white space alone are duplicates, whatever their tokens.
        for part, texts in self._texts.items():
            split = self._read[part]
            self._read[part] = label_split(split, keys=replace(split.keys, contents=digest_texts(texts)))
        self._read_heads({})

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data, and on truncated texts."""
        share = self._truncated / len(self._texts["train"])
        truncated = [f"{share:.0%} of the texts are longer than {self.length} tokens and lose their end"]
        return (*super().notices, *(truncated if self._truncated else []))

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the tokenizer, for each of its tensors."""
        source = self._classifier
        return tuple(
            TokenizerInput(source.tokenizer, self.length, source.padding, spec.vocabulary, name, source.side)
            for name, spec in zip(self.names, self.inputs, strict=True)
        )

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the texts of the test split."""
        strata = self._make_strata()
        part, rows = locate_test_rows(self._parts, seed, strata, at_random=strata is None)
        return [self._texts[part][row] for row in rows]

    def _count_classes(self, parts: Mapping[str, tuple[Sequence[str], Any]]) -> int | None:
        """Return the number of classes of the data, which may be fewer than those of the model."""
        if self._classifier.kind != "classes":
            return None
        return 1 + max(int(max(targets)) for _, targets in parts.values())

    def _make_pair(self, texts: Sequence[str], targets: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        tokens = _load_tokenizer(self._classifier, self.length).encode_batch(texts)
        inputs = {IDS: torch.tensor([encoding.ids for encoding in tokens])}
        if self._takes_mask:
            inputs[MASK] = torch.tensor([encoding.attention_mask for encoding in tokens])
        return inputs, {ONLY_HEAD: torch.as_tensor(targets)}

    def _input_spec(self, position: int, missing: Mapping[str | int, int]) -> InputSpec:
        spec = super()._input_spec(position, missing)
        # The vocabulary of the model, and not the largest token of the data.
        return replace(spec, vocabulary=self._classifier.vocabulary if position == 0 else 2)


def from_pretrained(folder: Path | str) -> PretrainedClassifier:
    """Return the text classifier and the tokenizer of a local Hugging Face folder; nothing is downloaded.

    It needs ``pip install 'autocompress[transformers]'``. Weights are read from safetensors, never from pickle, and no
    code of the folder is run.

    Args:
        folder: Folder with ``config.json``, ``model.safetensors`` (or its parts and their index) and
            ``tokenizer.json``, as ``save_pretrained`` of a model and of a fast tokenizer writes them.

    Raises:
        UsageError: A file is missing or damaged, or the model is no sequence classifier.

    Example:
        >>> import autocompress
        >>> classifier = autocompress.from_pretrained("my-bert")  # doctest: +SKIP
        >>> autocompress.search(teacher=classifier.model, data=classifier.encode("reviews.csv"))  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    config = _read_config(folder)
    _require_weights(folder)
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    tokenizer = _read_tokenizer(folder)
    model = _load_model(folder)
    text_config = model.config
    padding = _find_padding(folder, tokenizer, config, settings)
    count = int(text_config.num_labels)
    names = {int(index): str(name) for index, name in (text_config.id2label or {}).items()}
    problem = text_config.problem_type or ("regression" if count == 1 else "")
    return PretrainedClassifier(
        folder,
        model.eval(),
        tokenizer,
        padding,
        "left" if settings.get("padding_side") == "left" else "right",
        _find_longest(text_config, settings, padding),
        int(text_config.vocab_size),
        tuple(names.get(index, str(index)) for index in range(count)),
        KINDS.get(problem, "classes"),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a classifier.

    Raises:
        UsageError: It is missing, or the model is another one or has code of its own.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give one that save_pretrained wrote (nothing is downloaded)")
    config = _read_json(folder / "config.json")
    if "auto_map" in config:
        raise UsageError(
            f"{folder}: the model has code of its own, which is not run; build it, and bring it as a module"
        )
    names = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith(CLASSIFIER) for name in names):
        kind = names[0] if names else "of no named architecture"
        raise UsageError(
            f"{folder / 'config.json'}: the model is {kind}; from_pretrained takes text classifiers (...{CLASSIFIER}): "
            "fine-tune it as one and save it, or bring another model as a module"
        )
    for key, value in config.items():
        # transformers would load a kernel of this name, which is code, from a hub.
        if key.endswith("_implementation") and "/" in str(value):
            raise UsageError(f"{folder / 'config.json'}: {key} names code of another place, which is not run")
        # Modules are made before their weights are looked for.
        if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise UsageError(f"{folder / 'config.json'}: {key} is {value}, more than {MOST_LAYERS:,}")
    return config


def _require_weights(folder: Path) -> None:
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    pickled = next(
        (name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).is_file()), ""
    )
    if pickled:
        raise UsageError(
            f"{folder} has its weights in {pickled}, a pickled file that may run code; save it with "
            "save_pretrained(..., safe_serialization=True) where you trust it"
        )
    raise UsageError(f"{folder} has no weights: model.safetensors is missing; save the model with save_pretrained")


def _read_tokenizer(folder: Path) -> str:
    """Return the content of tokenizer.json, which is checked."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no tokenizer.json; save a fast tokenizer: AutoTokenizer(...).save_pretrained")
    _read_json(path)
    content = _read_content(path).decode()
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("from_pretrained needs pip install 'autocompress[transformers]'") from error
    try:
        Tokenizer.from_str(content).encode("a")
    except BaseException as error:  # tokenizers raises plain exceptions, and panics that are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UsageError(f"{path} is no tokenizer ({' '.join(str(error).split())})") from error
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_content(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON ({error}); save the model again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no JSON object; save the model again")
    return content


def _read_content(path: Path) -> bytes:
    try:
        # Caches of models consist of links.
        return read_regular_file(path, LARGEST_JSON, follows_links=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); save the model with save_pretrained") from error


def _load_model(folder: Path) -> Any:
    """Return the model with its weights.

    Raises:
        UsageError: transformers is not installed or cannot load the folder, or a weight is missing.
    """
    try:
        from transformers import AutoModelForSequenceClassification
    except ImportError as error:
        raise UsageError("from_pretrained needs pip install 'autocompress[transformers]'") from error
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and torch raise exceptions of many kinds
        raise UsageError(f"{folder} cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    lacking = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind, ())]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UsageError(
            f"{folder}: the weights lack {sorted(lacking)[0]}{more}, which would be random; fine-tune the model as a "
            "classifier, and save it"
        )
    # The cache of keys and values is for generated texts; a classifier reads each text once.
    model.config.use_cache = False
    return model


def _find_padding(folder: Path, tokenizer: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Return the token id of padding."""
    number = config.get("pad_token_id")
    if number is None and settings.get("pad_token"):
        token = settings["pad_token"]
        from tokenizers import Tokenizer

        number = Tokenizer.from_str(tokenizer).token_to_id(token["content"] if isinstance(token, dict) else token)
    if number is None:
        raise UsageError(f"{folder}: neither config.json nor the tokenizer has a padding token; set pad_token_id")
    return int(number)


def _find_longest(config: Any, settings: Mapping[str, Any], padding: int) -> int:
    """Return the largest number of tokens that model and tokenizer take, at most ``LONGEST``."""
    limits = [LONGEST]
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        is_shifted = any(name in config.model_type for name in SHIFTED_POSITIONS)
        limits.append(int(positions) - (padding + 1 if is_shifted else 0))
    if isinstance(settings.get("model_max_length"), int):
        limits.append(settings["model_max_length"])
    return min(limits)


def _load_tokenizer(classifier: PretrainedClassifier, length: int | None = None) -> Any:
    """Return the tokenizer; with a length it truncates and fills texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(classifier.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if length is not None:
        tokenizer.enable_truncation(length)
        pad = tokenizer.id_to_token(classifier.padding) or ""
        tokenizer.enable_padding(direction=classifier.side, pad_id=classifier.padding, pad_token=pad, length=length)
    return tokenizer


def _read_numbers(labels: Sequence[str], locate: Any) -> list[float]:
    """Return the numbers of a column."""
    numbers = []
    for row, label in enumerate(labels):
        try:
            numbers.append(float(label))
        except ValueError:
            raise UsageError(f"{locate(row)}: {label!r} is no number, which the model predicts") from None
    return numbers
