"""Predictions of an exported model for raw input: an image, a text, ids, a series or a row.

    python pipeline.py INPUT ...                                    prints one line of JSON for each input
    from pipeline import load; load("folder").predict(INPUT)        returns the same as a dictionary

This file is copied into every artifact. It needs numpy and onnxruntime, and pillow for images. How an input becomes a
tensor and what an output means stands in preprocess.json; manifest.json has the SHA-256 of both files that are read.
"""

import argparse
import hashlib
import io
import json
import math
import os
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

# onnxruntime writes a device id and queues events unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

FORMAT = 1
METADATA = "autocompress.preprocess"
BATCH = 256
# Pixels of an image before it is decoded, 192 MB in RGB.
LARGEST_IMAGE = 2**26
# Formats that Pillow decodes by itself; for others it starts programs, such as Ghostscript for PostScript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Numbers in one input of an example, which bounds what a changed preprocess.json makes of a short text.
LARGEST_INPUT = 2**26
# The only options of a session that an export writes.
SESSION_OPTIONS = frozenset({("session.disable_quant_qdq", "1")})
# Candidates that one call scores, which bounds the memory of a ranking over a large catalogue.
LARGEST_LIST = 2**16
# A word, as the texts of the training were divided: an apostrophe, straight or typographic, may occur inside it.
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
Array = np.ndarray[Any, np.dtype[Any]]
Record = Mapping[str, Any]
# Raw value and tensor of each input.
Values = Mapping[str, tuple[Any, Array]]


class PipelineError(ValueError):
    """An input, or a file of the artifact, that cannot be used; the message says what is wrong with it."""


def load(folder: str | Path = Path(__file__).parent, threads: int = 1) -> "Pipeline":
    """Return the pipeline of an artifact.

    Args:
        folder: The exported folder; by default the one of this file. Nothing is written to it.
        threads: Number of threads of onnxruntime.

    Raises:
        PipelineError: A file is missing or was changed.
    """
    folder = Path(folder)
    specification, model = _read_files(folder, ("preprocess.json", "model.onnx"))
    record = _read_tokenizers(folder, _parse_specification(folder / "preprocess.json", specification))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    # Errors only: warnings of the optimizer do not concern users of the model.
    options.log_severity_level = 3
    for name, value in record["session"].items():
        options.add_session_config_entry(name, value)
    try:
        # A retry with the same provider would print the error, which may contain names from the file.
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common root
        raise PipelineError(f"onnxruntime cannot load {folder / 'model.onnx'}: {str(error).splitlines()[0]}") from error
    # A folder whose files come from two exports has hashes that fit, but another specification in its model.
    if session.get_modelmeta().custom_metadata_map.get(METADATA) != specification.decode():
        raise PipelineError(f"{folder}: model.onnx was exported with another preprocess.json; export it again")
    try:
        return Pipeline(record, session)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, PipelineError):
            raise
        raise PipelineError(f"{folder / 'preprocess.json'} was changed ({error!r}); export it again") from error


class Pipeline:
    """An exported model with the encoding of its inputs and the meaning of its outputs.

    Args:
        record: Content of preprocess.json.
        session: Session of model.onnx.

    Attributes:
        record: Content of preprocess.json.
    """

    def __init__(self, record: Record, session: "onnxruntime.InferenceSession") -> None:
        for entry in record["inputs"]:
            # Lengths of texts and shapes of everything else that has one size.
            sizes = entry.get("shape", [entry.get("length", 1)])
            if not 0 < math.prod(sizes) <= LARGEST_INPUT or min(sizes, default=1) < 1:
                raise PipelineError(f"preprocess.json declares the size {sizes}, not 1 to {LARGEST_INPUT:,} numbers")
        self.record, self._session = record, session
        self._encoders = {entry["name"]: ENCODERS[entry["kind"]](entry) for entry in record["inputs"]}
        self._tensors = {entry["name"]: entry["tensor"] for entry in record["inputs"]}
        self._heads = [entry["head"] for entry in record["outputs"]]
        self._rankings = {entry["head"] for entry in record["outputs"] if entry["kind"] == "ranking"}
        self._sizes = {entry.name: entry.shape for entry in session.get_inputs()}

    def predict(self, example: Any) -> dict[str, Any]:
        """Return the prediction of each head for one raw example.

        Args:
            example: A path, the bytes or an array of an image; a text; a series; or, for a model with several inputs, a
                mapping of their names to such values.

        Returns:
            Head to ``class``, ``probability`` and ``probabilities``, also ``value`` where classes are numbers; to
            ``labels`` and ``probabilities``; to ``classes``, one for each position; to ``values`` by name; to
            ``boxes``, best first, each with ``class``, ``score`` and ``box``: left, top, right and bottom in pixels of
            the image; to ``outputs`` as the model returns them; or to ``ids`` and ``scores``, best first, of the given
            candidates or of the whole catalogue.

        Raises:
            PipelineError: The example is of the wrong kind or size, or an id is unknown and has no row.
        """
        return self.predict_batch([example])[0]

    def predict_batch(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the predictions of several raw examples, each as :meth:`predict` returns it.

        Raises:
            PipelineError: An example cannot be used; the message has its position.
        """
        predictions: list[dict[str, Any]] = []
        for batch in self._divide(examples):
            predictions += map(self.decode, batch, self.run(batch))
        return predictions

    def compute_outputs(self, examples: Sequence[Any]) -> dict[str, Array]:
        """Return what the model returns for raw examples, ``{head: [N, C]}``, before its meaning is applied.

        Raises:
            PipelineError: An example cannot be used; the message has its position.
        """
        rows = [row for batch in self._divide(examples) for row in self.run(batch)]
        return {head: np.stack([row[head] for row in rows]) for head in self._heads}

    def encode(self, examples: Sequence[Any]) -> list[Values]:
        """Return the raw value and the tensor of each input, for each raw example; models of one run share them.

        Raises:
            PipelineError: An example cannot be used; the message has its position.
        """
        return [self._encode(row, self._name_values(row, example)) for row, example in enumerate(examples)]

    def run(self, batch: Sequence[Values]) -> list[dict[str, Array]]:
        """Return the outputs of each encoded example, by head; examples of equal shapes run together."""
        shapes = {tuple(tensor.shape for _, tensor in values.values()) for values in batch}
        if len(shapes) > 1:
            return [row for values in batch for row in self.run([values])]
        tensors = {name: np.stack([values[name][1] for values in batch]) for name in self._encoders}
        lists = [name for name, encoder in self._encoders.items() if isinstance(encoder, CandidatesEncoder)]
        outputs = self._run_lists(tensors, lists[0]) if lists else self._run_tensors(tensors)
        return [{head: values[row] for head, values in outputs.items()} for row in range(len(batch))]

    def decode(self, values: Values, outputs: Mapping[str, Array]) -> dict[str, Any]:
        """Return the prediction of each head from an encoded example and its outputs, as :meth:`predict` returns it."""
        return {
            entry["head"]: DECODERS[entry["kind"]](entry, outputs[entry["head"]], values)
            for entry in self.record["outputs"]
        }

    def recommend(self, example: Record, count: int = 10, exclude: Iterable[Any] = ()) -> list[tuple[str, float]]:
        """Return the best ids of the catalogue with their scores, best first.

        Args:
            example: Inputs except the candidates, ``{"user": "17"}``.
            count: Number of ids.
            exclude: Ids to leave out, such as those that the user has already.

        Raises:
            PipelineError: The model ranks nothing, or an id is unknown and has no row.
        """
        if not self._rankings:
            raise PipelineError("this model ranks nothing: it has no candidates among its inputs")
        excluded = {str(name) for name in exclude}
        ranked = self.predict(self._fill_first(example))[min(self._rankings)]
        pairs = zip(ranked["ids"], ranked["scores"], strict=True)
        return list(islice((pair for pair in pairs if pair[0] not in excluded), count))

    def _fill_first(self, example: Record) -> Record:
        """Return an example with an id before the candidates: any id of the catalogue, which is ranked once."""
        if not isinstance(example, Mapping):
            return example
        firsts = {
            encoder.first: encoder.catalogue[0]
            for encoder in self._encoders.values()
            if isinstance(encoder, CandidatesEncoder) and encoder.first
        }
        return {**firsts, **example}

    def _divide(self, examples: Sequence[Any]) -> Iterator[list[Values]]:
        """Yield batches of examples as the raw value and the tensor of each input; each example is read once."""
        for start in range(0, len(examples), BATCH):
            rows = range(start, min(start + BATCH, len(examples)))
            yield [self._encode(row, self._name_values(row, examples[row])) for row in rows]

    def _name_values(self, row: int, example: Any) -> dict[str, Any]:
        """Return an example by the names of the inputs; a ranking without candidates is one of the whole catalogue."""
        names = list(self._encoders)
        # Each input picks its columns of the same row of a table, or its tensor of the same text.
        shared = NumbersEncoder | CategoriesEncoder | TokenizerEncoder
        if all(isinstance(encoder, shared) for encoder in self._encoders.values()):
            return dict.fromkeys(names, example)
        if len(names) == 1:
            is_named = isinstance(example, Mapping) and set(example) == set(names)
            return dict(example) if is_named else {names[0]: example}
        if not isinstance(example, Mapping):
            raise PipelineError(f"example {row} is {_name_type(example)}; give a mapping with {', '.join(names)}")
        values = dict(example)
        for name, encoder in self._encoders.items():
            if isinstance(encoder, CandidatesEncoder) and values.get(name) is None:
                values[name] = encoder.catalogue
        unknown = sorted(set(map(str, values)) - set(names))
        missing = [name for name in names if name not in values]
        if missing or unknown:
            problem = f"lacks {', '.join(missing)}" if missing else f"has the unknown input {unknown[0]}"
            raise PipelineError(f"example {row} {problem}; the inputs are {', '.join(names)}")
        return values

    def _encode(self, row: int, values: Record) -> Values:
        """Return the raw value of each input and its tensor, without the batch axis."""
        encoded = {}
        for name, encoder in self._encoders.items():
            try:
                with np.errstate(over="ignore"):
                    tensor = encoder(values[name])
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise PipelineError("a value is too large for single precision")
                encoded[name] = values[name], tensor
            except PipelineError as error:
                raise PipelineError(f"example {row}, {name}: {error}") from error
        return encoded

    def _run_lists(self, tensors: Mapping[str, Array], name: str) -> dict[str, Array]:
        """Return the outputs for candidate lists; long ones are divided, because each candidate has its own score."""
        rows, count = tensors[name].shape
        size = self._sizes[self._tensors[name]][1]
        if isinstance(size, int) and size != count:
            raise PipelineError(f"{name}: this model was exported for lists of {size} ids, not of {count}")
        step = max(1, LARGEST_LIST // rows)
        parts = [
            self._run_tensors({**tensors, name: tensors[name][:, start : start + step]})
            for start in range(0, count, step)
        ]
        encoder = self._encoders[name]
        # The id before the candidates is scored in each part.
        skipped = int(bool(isinstance(encoder, CandidatesEncoder) and encoder.first))
        joined = {
            head: np.concatenate([parts[0][head], *(part[head][:, skipped:] for part in parts[1:])], axis=1)
            for head in self._rankings
        }
        return {head: joined[head] if head in joined else parts[0][head] for head in self._heads}

    def _run_tensors(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        inputs = {self._tensors[name]: tensor for name, tensor in tensors.items()}
        return dict(zip(self._heads, self._session.run(self._heads, inputs), strict=True))


class ImageEncoder:
    """Encoder of images: upright, in grey or RGB, resized if the task does so, and normalized."""

    def __init__(self, entry: Record) -> None:
        # Models without images do not need pillow.
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise PipelineError("this model takes images, which need pillow: pip install pillow") from error
        self.image: Any = Image
        self.operations: Any = ImageOps
        self.shape, self.resize, self.white = tuple(entry["shape"]), entry["resize"], entry["white"]
        self.scale = np.float32(entry["scale"])
        # Artifacts of earlier versions have none of them.
        self.background, self.peak = entry.get("background", "white"), entry.get("peak", 65535.0)
        self.stretch = entry.get("stretch", False)
        self.mean, self.std = (np.asarray(entry[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))

    def __call__(self, value: Any) -> Array:
        """Return the normalized pixels, ``[C, H, W]``."""
        try:
            # An image of the caller is not closed.
            with nullcontext(value) if isinstance(value, self.image.Image) else self._open(value) as picture:
                pixels = self._read_pixels(picture)
        except (OSError, SyntaxError, EOFError, self.image.DecompressionBombError) as error:
            raise PipelineError(f"the image cannot be read ({' '.join(str(error).split())})") from error
        if self.white != 255:
            # The nearest whole number on the scale of the training images.
            pixels = np.rint(pixels * (self.white / 255))
        return (pixels.astype(np.float32) / self.scale - self.mean) / self.std

    def _open(self, value: Any) -> Any:
        """Return a Pillow image."""
        if isinstance(value, bytes):
            return self.image.open(io.BytesIO(value), formats=FORMATS)
        if isinstance(value, str | Path):
            return self.image.open(value, formats=FORMATS)
        array = _as_array(value)
        if array.dtype == object or array.dtype.kind not in "uif" or array.ndim not in (2, 3):
            raise PipelineError(f"it is {_name_type(value)}; give a path, bytes, a Pillow image or an array [H, W, C]")
        if array.ndim == 3 and array.shape[2] not in (1, 3):
            raise PipelineError(f"the array has the shape {list(array.shape)}; give [H, W], [H, W, 1] or [H, W, 3]")
        # Comparisons are false for NaN.
        if not ((array >= 0) & (array <= self.white) & (array == np.rint(array))).all():
            raise PipelineError(f"the array has other values than the whole numbers from 0 (black) to {self.white}")
        squeezed = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
        return self.image.fromarray(np.ascontiguousarray(np.rint(squeezed * (255 / self.white)).astype(np.uint8)))

    def _read_pixels(self, picture: Any) -> Array:
        """Return the bytes of a Pillow image, ``[C, H, W]``; the steps are those of the training images."""
        # The size stands in the header: nothing is decoded yet.
        if picture.width * picture.height > LARGEST_IMAGE:
            raise PipelineError(f"the image has {picture.width}x{picture.height} pixels, more than {LARGEST_IMAGE:,}")
        channels, height, width = self.shape
        mode = "L" if channels == 1 else "RGB"
        if self.resize:
            # JPEG decodes at half, a quarter or an eighth of the size.
            picture.draft(mode, (width, height))
        picture = self.operations.exif_transpose(picture)
        if picture.mode == "F" or picture.mode.startswith("I"):
            # Pillow would clip the values to 255 instead of scaling them.
            values = np.nan_to_num(np.asarray(picture, np.float64)).clip(0, self.peak)
            picture = self.image.fromarray(np.rint(values * (255 / self.peak)).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = self.image.alpha_composite(self.image.new("RGBA", picture.size, self.background), picture)
        picture = picture.convert(mode)
        if self.resize and self.stretch:
            picture = picture.resize((width, height), self.image.Resampling.BILINEAR)
        elif self.resize:
            picture = self.operations.fit(picture, (width, height), method=self.image.Resampling.BILINEAR)
        elif picture.size != (width, height):
            raise PipelineError(f"the image is {picture.width}x{picture.height}; the model takes {width}x{height}")
        return np.asarray(picture, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


class TextEncoder:
    """Encoder of texts as token indices: bytes, characters or hashed words; 0 is padding."""

    def __init__(self, entry: Record) -> None:
        self.length, self.vocabulary = entry["length"], entry["vocabulary"]
        self.collapse, self.unicode_form = entry["whitespace"] == "collapse", entry["unicode_form"]
        self.indices = {character: index for index, character in enumerate(entry["alphabet"], 1)}
        tokenizers: Mapping[str, Callable[[str], Iterator[int]]] = {
            "bytes": self._encode_bytes,
            "characters": self._encode_characters,
            "words": self._encode_words,
            "tokens": self._encode_tokens,
        }
        self.encode = tokenizers[entry["encoding"]]

    def __call__(self, value: Any) -> Array:
        """Return the tokens, ``[T]``."""
        if not isinstance(value, str):
            raise PipelineError(f"it is {_name_type(value)}; give a text")
        text = " ".join(value.split()) if self.collapse else value.strip()
        text = unicodedata.normalize(self.unicode_form, text) if self.unicode_form else text
        try:
            tokens = list(islice(self.encode(text), self.length))
        except UnicodeEncodeError as error:
            raise PipelineError(f"the text has no form in UTF-8 ({error.reason})") from error
        if not tokens:
            raise PipelineError("the text is empty, or has no word")
        return np.pad(np.asarray(tokens, np.int64), (0, self.length - len(tokens)))

    def _encode_bytes(self, text: str) -> Iterator[int]:
        return (byte + 1 for byte in text.encode())

    def _encode_characters(self, text: str) -> Iterator[int]:
        # All other characters share the last token.
        return (self.indices.get(character, self.vocabulary - 1) for character in text)

    def _encode_tokens(self, text: str) -> Iterator[int]:
        return (zlib.crc32(token.encode()) % (self.vocabulary - 1) + 1 for token in text.split())

    def _encode_words(self, text: str) -> Iterator[int]:
        words = (match.group().lower().encode() for match in WORD.finditer(text))
        return (zlib.crc32(word) % (self.vocabulary - 1) + 1 for word in words)


class TokenizerEncoder:
    """Encoder of texts by a tokenizer of Hugging Face: token ids, or the mask of those that are no padding."""

    def __init__(self, entry: Record) -> None:
        # Models without a tokenizer do not need the package.
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise PipelineError("this model has a tokenizer, which needs tokenizers: pip install tokenizers") from error
        length, padding = entry["length"], entry["padding"]
        self.tokenizer: Any = _call_tokenizer(Tokenizer.from_str, entry["tokenizer"])
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(
            direction=entry["side"],
            pad_id=padding,
            pad_token=self.tokenizer.id_to_token(padding) or "",
            length=length,
        )
        self.is_mask = entry["name"] == "attention_mask"

    def __call__(self, value: Any) -> Array:
        """Return the token ids or the mask, ``[T]``."""
        if not isinstance(value, str):
            raise PipelineError(f"it is {_name_type(value)}; give a text")
        if not value.strip():
            raise PipelineError("the text is empty")
        encoding = _call_tokenizer(self.tokenizer.encode, value)
        return np.asarray(encoding.attention_mask if self.is_mask else encoding.ids, np.int64)


def _call_tokenizer(function: Callable[[str], Any], text: str) -> Any:
    """Return what a function of tokenizers returns."""
    try:
        return function(text)
    except BaseException as error:
        # A panic of its Rust code is no Exception, and would end the thread that answers requests.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise PipelineError(f"the tokenizer fails ({' '.join(str(error).split())[:200]})") from error
        raise


class SeriesEncoder:
    """Encoder of series: numbers, normalized by channel, and filled with zeros where their length may be any."""

    def __init__(self, entry: Record) -> None:
        self.shape = tuple(entry["shape"])
        # Artifacts of earlier versions have one length.
        self.is_padded = entry.get("is_padded", False)
        self.mean, self.std = (np.asarray(entry[name], np.float32).reshape(-1, 1) for name in ("mean", "std"))

    def __call__(self, value: Any) -> Array:
        """Return the normalized series, ``[C, L]``."""
        channels, length = len(self.mean), self.shape[1]
        size = None if self.is_padded else length
        accepted = [(channels, size), (size,)] if channels == 1 else [(channels, size)]
        array = _read_numbers(value, accepted).astype(np.float32)
        series: Array = (array.reshape(channels, -1)[:, :length] - self.mean) / self.std
        if not self.is_padded:
            return series
        missing = length - series.shape[1]
        mask = np.ones_like(series[:1])
        return np.pad(np.concatenate([series, mask]), ((0, 0), (0, missing)))


class RowEncoder:
    """Encoder of named numbers, each normalized."""

    def __init__(self, entry: Record) -> None:
        self.columns = entry["columns"]
        self.mean, self.std = (np.asarray(entry[name], np.float32) for name in ("mean", "std"))

    def __call__(self, value: Any) -> Array:
        """Return the normalized row, ``[F]``."""
        if isinstance(value, Mapping):
            missing, unknown = set(self.columns) - set(value), set(map(str, value)) - set(self.columns)
            if missing or unknown:
                problem = f"lacks '{min(missing)}'" if missing else f"has the unknown name '{min(unknown)}'"
                raise PipelineError(f"the row {problem}; the names are {', '.join(self.columns)}")
            value = [value[name] for name in self.columns]
        row = _read_numbers(value, [(len(self.columns),)]).astype(np.float32)
        return (row - self.mean) / self.std


class NumbersEncoder:
    """Encoder of the numbers of a row of a table: scaled, 0 where one is missing, with flags of missing values."""

    def __init__(self, entry: Record) -> None:
        self.columns, self.knots, self.scores = entry["columns"], entry["knots"], entry["scores"]
        self.mean, self.std = (np.asarray(entry[name], np.float64) for name in ("mean", "std"))
        self.flagged = [self.columns.index(column) for column in entry["flagged"]]

    def __call__(self, value: Any) -> Array:
        """Return the scaled numbers and the flags, ``[F]``."""
        row = _select_cells(value, self.columns)
        numbers = np.asarray([self._read_number(name, cell) for name, cell in row.items()], np.float64)
        scaled = (numbers - self.mean) / self.std
        for column, (knots, scores) in enumerate(zip(self.knots, self.scores, strict=True)):
            if knots:
                scaled[column] = np.interp(numbers[column], knots, scores)
        is_missing = np.isnan(numbers)
        scaled[is_missing] = 0.0
        return np.concatenate([scaled, is_missing[self.flagged]]).astype(np.float32)

    def _read_number(self, column: str, cell: Any) -> float:
        if _name_category(cell) == "":
            return float("nan")
        try:
            number = float(cell)
        except (TypeError, ValueError) as error:
            raise PipelineError(
                f"'{column}' is {str(cell)[:30]!r}; give a number, or null where it is missing"
            ) from error
        if np.isinf(number):
            raise PipelineError(f"'{column}' is infinite; give a number, or null where it is missing")
        return number


class CategoriesEncoder:
    """Encoder of the categories of a row of a table, as rows of one table of embeddings."""

    def __init__(self, entry: Record) -> None:
        self.columns = entry["columns"]
        self.rows: list[tuple[int, Mapping[str, int]]] = []
        first = 0
        for names in entry["names"]:
            self.rows.append((first, {name: first + index for index, name in enumerate(names, 1)}))
            first += len(names) + 1

    def __call__(self, value: Any) -> Array:
        """Return the rows, ``[K]``; an unknown category has the first row of its column."""
        cells = _select_cells(value, self.columns).values()
        names = map(_name_category, cells)
        rows = [rows.get(name, unknown) for name, (unknown, rows) in zip(names, self.rows, strict=True)]
        return np.asarray(rows, np.int64)


class IdEncoder:
    """Encoder of an id as a row of an embedding table."""

    def __init__(self, entry: Record) -> None:
        self.rows = {name: row for row, name in enumerate(entry["ids"], entry["first_row"]) if name is not None}
        self.unknown = entry["unknown_row"]

    def __call__(self, value: Any) -> Array:
        """Return the row, ``[]``."""
        return np.asarray(self._find_row(value), np.int64)

    def _find_row(self, value: Any) -> int:
        # An id from a table of numbers is often a NumPy integer.
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
            raise PipelineError(f"it is {_name_type(value)}; an id is a text or a whole number")
        row = self.rows.get(str(value).strip(), self.unknown)
        if row is None:
            raise PipelineError(f"the id {str(value)!r} is unknown, and the model has no row for unknown ids")
        return int(row)


class CandidatesEncoder(IdEncoder):
    """Encoder of a list of ids."""

    def __init__(self, entry: Record) -> None:
        super().__init__(entry)
        self.catalogue = list(self.rows)
        self.first = entry.get("first", "")

    def __call__(self, value: Any) -> Array:
        """Return the rows, ``[K]``."""
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise PipelineError(f"it is {_name_type(value)}; give a list of ids")
        rows = [self._find_row(name) for name in value]
        if not rows:
            raise PipelineError("the list of candidates is empty; leave it out to rank the whole catalogue")
        return np.asarray(rows, np.int64)


class TensorEncoder:
    """Check of an array that the model takes as it is."""

    def __init__(self, entry: Record) -> None:
        self.shape, self.dtype, self.vocabulary = tuple(entry["shape"]), entry["dtype"], entry["vocabulary"]

    def __call__(self, value: Any) -> Array:
        """Return the array."""
        array = _read_numbers(value, [self.shape])
        if self.vocabulary and not ((array >= 0) & (array < self.vocabulary) & (array == np.rint(array))).all():
            raise PipelineError(f"the array has other values than the whole numbers from 0 to {self.vocabulary - 1}")
        return array.astype(self.dtype)


def _select_cells(value: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Return the cells of a row in the order of the columns; cells of other columns are left out."""
    # A row of a pandas table has the method, too.
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(value, Mapping):
        raise PipelineError(f"it is {_name_type(value)}; give a row as a mapping of column names to values")
    lacking = [column for column in columns if column not in value]
    if lacking:
        raise PipelineError(f"the row lacks '{lacking[0]}'; give null where a value is missing")
    return {column: value[column] for column in columns}


def _name_category(cell: Any) -> str:
    """Return a cell as the name of a category: 1 and 1.0 are one, and a missing value is empty."""
    if cell is None or cell != cell or type(cell).__name__ == "NAType":
        return ""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def _decode_classes(entry: Record, logits: Array, values: Values) -> dict[str, Any]:
    """Return the most probable class, and the probability of each."""
    probabilities = _softmax(logits)
    # From the outputs themselves: rounding can make two probabilities equal.
    best = int(probabilities[1] > entry["threshold"]) if "threshold" in entry else int(logits.argmax())
    return {
        "class": entry["classes"][best],
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(entry["classes"], probabilities.tolist(), strict=True)),
    }


def _decode_levels(entry: Record, logits: Array, values: Values) -> dict[str, Any]:
    """Return the mean of the classes, which are numbers, and what :func:`_decode_classes` returns."""
    return {"value": float(_softmax(logits) @ np.asarray(entry["levels"])), **_decode_classes(entry, logits, values)}


def _decode_binary(entry: Record, logits: Array, values: Values) -> dict[str, Any]:
    """Return the class of one logit, whose sigmoid is the probability of the second class."""
    probability = float(_sigmoid(logits.reshape(-1))[0])
    both = [1 - probability, probability]
    best = int(probability > entry["threshold"])
    return {
        "class": entry["classes"][best],
        "probability": both[best],
        "probabilities": dict(zip(entry["classes"], both, strict=True)),
    }


def _decode_labels(entry: Record, logits: Array, values: Values) -> dict[str, Any]:
    """Return the labels whose probability exceeds the threshold, and the probability of each."""
    probabilities = dict(zip(entry["classes"], _sigmoid(logits).tolist(), strict=True))
    chosen = [name for name, probability in probabilities.items() if probability > entry["threshold"]]
    return {"labels": chosen, "probabilities": probabilities}


def _decode_positions(entry: Record, logits: Array, values: Values) -> dict[str, Any]:
    """Return the class of each position: of a pixel with the classes on axis 0, of a token with them on the last."""
    classes = np.asarray(entry["classes"])[logits.argmax(entry["axis"])]
    if entry["kind"] != "tags":
        return {"classes": classes.tolist()}
    raw, tokens = next(iter(values.values()))
    # Padding has no class; a text has its tokens at the front.
    classes = classes[: int((tokens != 0).sum())].tolist()
    return _decode_words(raw, classes, entry["units"]) if "units" in entry else {"classes": classes}


def _decode_words(text: str, classes: Sequence[str], units: str) -> dict[str, Any]:
    """Return the words of a text, the tag of each at its first token, and the entities that the tags write."""
    words = text.split()
    # The space after a word is a token of its own, where characters or bytes are.
    sizes = [len(word.encode()) + 1 if units == "bytes" else len(word) + 1 for word in words]
    sizes = [1] * len(words) if units in ("words", "tokens") else sizes
    tags: list[str | None] = []
    position = 0
    for size in sizes:
        # Words beyond the length of the model have no tag.
        tags.append(classes[position] if position < len(classes) else None)
        position += size
    entities: list[dict[str, Any]] = []
    before = ""
    for word, tag in zip(words, tags, strict=True):
        prefix, _, kind = (tag or "O").partition("-")
        if kind and prefix in "IEL" and before == kind:
            entities[-1]["text"] += f" {word}"
        elif kind:
            entities.append({"type": kind, "text": word})
        before = kind if prefix not in "ESLU" else ""
    return {"words": words, "tags": tags, "entities": entities}


def _decode_numbers(entry: Record, outputs: Array, values: Values) -> dict[str, Any]:
    """Return the predicted numbers by name."""
    return {"values": dict(zip(entry["classes"], outputs.reshape(-1).astype(float).tolist(), strict=True))}


def _decode_boxes(entry: Record, maps: Array, values: Values) -> dict[str, Any]:
    """Return class, score and box of each object, best first; the box in pixels of the upright image."""
    maps = maps.astype(np.float64)
    count, (height, width) = len(entry["classes"]), maps.shape[1:]
    cells = maps.reshape(len(maps), -1)
    classes = cells[:count].argmax(0)
    scores = np.sqrt(_sigmoid(cells[:count].max(0)) * _sigmoid(cells[count]))
    columns, rows = np.tile(np.arange(width), height) + 0.5, np.repeat(np.arange(height), width) + 0.5
    centers = np.stack([cells[-4] + columns, cells[-3] + rows])
    # The softplus in a form that does not overflow.
    halves = (np.log1p(np.exp(-np.abs(cells[-2:]))) + np.maximum(cells[-2:], 0)) / 2
    grid = np.array([[width], [height]])
    boxes = np.concatenate([(centers - halves) / grid, (centers + halves) / grid]).T
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= entry["least_score"]][: entry["compared"]]
    selected: list[int] = []
    for cell in order:
        rivals = [other for other in selected if classes[other] == classes[cell]]
        if not rivals or _measure_overlap(boxes[cell], boxes[rivals]).max() <= entry["overlap"]:
            selected.append(int(cell))
    size = _read_size(next(iter(values.values()))[0])
    pixels = np.clip(boxes, 0, 1) * np.array([*size, *size])
    return {
        "boxes": [
            {"class": entry["classes"][classes[cell]], "score": float(scores[cell]), "box": pixels[cell].tolist()}
            for cell in selected[: entry["most"]]
        ]
    }


def _measure_overlap(box: Array, others: Array) -> Array:
    """Return the intersection over union of a box ``[4]`` with others ``[N, 4]``, ``[N]``."""
    inner = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    overlap: Array = inner / np.maximum(areas - inner, 1e-12)
    return overlap


def _read_size(value: Any) -> tuple[int, int]:
    """Return width and height of a raw image, upright; of a file, only the header is read."""
    from PIL import Image

    if not isinstance(value, bytes | str | Path | Image.Image):
        height, width = _as_array(value).shape[:2]
        return width, height
    opened: Any = io.BytesIO(value) if isinstance(value, bytes) else value
    with nullcontext(value) if isinstance(value, Image.Image) else Image.open(opened, formats=FORMATS) as picture:
        # EXIF's orientations from 5 on exchange width and height.
        is_turned = picture.getexif().get(0x0112, 1) >= 5
        width, height = picture.size
    return (height, width) if is_turned else (width, height)


def _decode_outputs(entry: Record, outputs: Array, values: Values) -> dict[str, Any]:
    """Return the raw outputs as nested lists."""
    return {"outputs": outputs.astype(float).tolist()}


def _decode_ranking(entry: Record, scores: Array, values: Values) -> dict[str, Any]:
    """Return the candidates and their scores, best first; equal scores keep the order of the candidates."""
    candidates = [str(name) for name in values[entry["candidates"]][0]]
    if len(scores) > len(candidates):
        # The id before the candidates is often one of them.
        first = str(values[entry["first"]][0]).strip()
        scores = scores[[0, *(at + 1 for at, name in enumerate(candidates) if name.strip() != first)]]
        candidates = [first, *(name for name in candidates if name.strip() != first)]
    order = np.argsort(-scores, kind="stable")
    return {"ids": [candidates[at] for at in order], "scores": scores[order].astype(float).tolist()}


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: Array = exponentials / exponentials.sum()
    return probabilities


def _sigmoid(logits: Array) -> Array:
    # This form overflows for no logit.
    sigmoid: Array = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return sigmoid


ENCODERS: Mapping[str, Callable[[Record], Callable[[Any], Array]]] = {
    "image": ImageEncoder,
    "text": TextEncoder,
    "tokens": TokenizerEncoder,
    "series": SeriesEncoder,
    "row": RowEncoder,
    "numbers": NumbersEncoder,
    "categories": CategoriesEncoder,
    "id": IdEncoder,
    "candidates": CandidatesEncoder,
    "tensor": TensorEncoder,
}
DECODERS: Mapping[str, Callable[[Record, Array, Values], dict[str, Any]]] = {
    "classes": _decode_classes,
    "levels": _decode_levels,
    "binary": _decode_binary,
    "multilabel": _decode_labels,
    "dense": _decode_positions,
    "tags": _decode_positions,
    "regression": _decode_numbers,
    "detection": _decode_boxes,
    "custom": _decode_outputs,
    "ranking": _decode_ranking,
}


def _read_files(folder: Path, names: Sequence[str]) -> list[bytes]:
    """Return the content of files, each compared with the SHA-256 of manifest.json."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())["files"]
        contents = [(folder / name).read_bytes() for name in names]
        hashes = [manifest[name]["sha256"] for name in names]
    except OSError as error:
        raise PipelineError(f"{folder} is no artifact: {error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{folder / 'manifest.json'} was changed, or lists no {names[0]}; export it again"
        ) from error
    for name, content, expected in zip(names, contents, hashes, strict=True):
        if hashlib.sha256(content).hexdigest() != expected:
            raise PipelineError(f"{folder / name} was changed: its SHA-256 is not the manifest's; export it again")
    return contents


def _parse_specification(path: Path, content: bytes) -> Record:
    """Return the content of preprocess.json.

    Raises:
        PipelineError: The format is another version, or names a kind that this file does not know.
    """
    try:
        record: Record = json.loads(content)
        if record["format"] != FORMAT:
            raise PipelineError(f"{path} has the format {record['format']!r}, this pipeline.py reads {FORMAT}")
        kinds = {entry["kind"] for entry in record["inputs"]} - set(ENCODERS)
        kinds |= {entry["kind"] for entry in record["outputs"]} - set(DECODERS)
        if not all((name, value) in SESSION_OPTIONS for name, value in record["session"].items()):
            raise PipelineError(f"{path} has options of a session that this pipeline.py does not know")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, PipelineError):
            raise
        raise PipelineError(f"{path} was changed; export it again") from error
    if kinds:
        raise PipelineError(f"{path} has the unknown kind {min(kinds)!r}; use the pipeline.py of the same folder")
    return record


def _read_tokenizers(folder: Path, record: Record) -> Record:
    """Return the content of preprocess.json with the content of the file of a tokenizer in the place of its name."""
    inputs = []
    for entry in record["inputs"]:
        if entry["kind"] == "tokens":
            (content,) = _read_files(folder, (entry["tokenizer"],))
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise PipelineError(f"{folder}: preprocess.json was exported with another tokenizer; export it again")
            entry = {**entry, "tokenizer": content.decode()}
        inputs.append(entry)
    return {**record, "inputs": inputs}


def _as_array(value: Any) -> Array:
    """Return an array of nested lists."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise PipelineError("its rows have different lengths") from error


def _read_numbers(value: Any, shapes: Sequence[tuple[int | None, ...]]) -> Array:
    """Return an array of finite numbers from an array, nested lists, or a path of a .npy, .csv or .txt file.

    None in a shape stands for any size above 0.
    """
    if isinstance(value, str | Path):
        value = _read_number_file(Path(value))
    array = _as_array(value)
    if array.dtype.kind not in "uifb":
        raise PipelineError(f"its values are of the type {array.dtype}; give numbers")
    if not any(_fits_shape(array.shape, shape) for shape in shapes):
        shown = " or ".join(str([size or "any" for size in shape]).replace("'", "") for shape in shapes)
        raise PipelineError(f"it has the shape {list(array.shape)}; give {shown}")
    if not np.isfinite(array).all():
        raise PipelineError("a value is missing or not finite")
    return array


def _fits_shape(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size > 0 if expected is None else size == expected for size, expected in zip(shape, wanted, strict=True)
    )


def _read_number_file(path: Path) -> Array:
    try:
        # Pickled arrays could run code.
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        return np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise PipelineError(f"{path} cannot be read as numbers ({' '.join(str(error).split())})") from error


def _name_type(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with the shape {list(value.shape)}"
    return f"of the type {type(value).__name__}"


def _parse_argument(pipeline: Pipeline, argument: str) -> Any:
    """Return a raw example from an argument: JSON where numbers or several inputs are needed, otherwise the text."""
    entries = pipeline.record["inputs"]
    is_plain = len(entries) == 1 and entries[0]["kind"] in ("image", "text", "id")
    is_plain = is_plain or all(entry["kind"] == "tokens" for entry in entries)
    if is_plain or (len(entries) == 1 and argument.endswith((".npy", ".csv", ".txt"))):
        return argument
    try:
        return json.loads(argument)
    except ValueError as error:
        is_table = all(entry["kind"] in ("row", "numbers", "categories") for entry in entries)
        keys = entries[0]["columns"][:2] if is_table else [entry["name"] for entry in entries]
        names = ", ".join(f'"{key}": ...' for key in keys)
        is_list = len(entries) == 1 and not is_table
        needed = "a list of numbers or a .npy or .csv file" if is_list else f"{{{names}}}"
        raise PipelineError(f"{argument!r} is no JSON; give {needed}") from error


def _shorten(prediction: Mapping[str, Any], top: int) -> dict[str, Any]:
    """Return a prediction with the most probable classes, or the best ids or boxes, alone."""
    shortened: dict[str, Any] = {}
    for head, values in prediction.items():
        shortened[head] = dict(values)
        for name in ("ids", "scores", "boxes"):
            if name in values:
                shortened[head][name] = values[name][:top]
        if "probabilities" in values:
            largest = sorted(values["probabilities"].items(), key=lambda pair: -pair[1])
            shortened[head]["probabilities"] = dict(largest[:top])
    return shortened


def _writes_unicode(stream: Any) -> bool:
    # A name that the encoding of the terminal lacks would end the program after its first lines.
    return str(getattr(stream, "encoding", "")).lower().replace("-", "").startswith("utf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the prediction for each argument, or for each line of standard input, as JSON; return the exit code."""
    parser = argparse.ArgumentParser(description="Predictions of the model in the folder of this file.")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="an image file, a text, numbers, or JSON")
    parser.add_argument("--top", type=int, default=10, help="number of classes, ranked ids or boxes to print")
    options = parser.parse_args(arguments)
    try:
        pipeline = load()
        for argument in options.inputs or (line.rstrip("\n") for line in sys.stdin):
            prediction = pipeline.predict(_parse_argument(pipeline, argument))
            print(json.dumps(_shorten(prediction, options.top), ensure_ascii=not _writes_unicode(sys.stdout)))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
