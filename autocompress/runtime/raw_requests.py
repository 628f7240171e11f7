"""Raw examples in the bodies of HTTP requests: images and texts as they are, everything else as JSON.

The pipeline also takes paths of files. A request must not: it would read files of the server. So a text in the place of
an image is base64, and in the place of numbers it is refused.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence

from autocompress.errors import AutocompressError

Record = Mapping[str, object]


class RequestError(AutocompressError):
    """A request that cannot be answered, with the HTTP status that says why.

    Args:
        status: HTTP status.
        message: Reason and remedy.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_examples(body: bytes, media_type: str, inputs: Sequence[Record], largest: int) -> tuple[list[object], bool]:
    """Return the raw examples of a body, and whether it was a single one.

    Args:
        body: The body of the request.
        media_type: Media type without parameters, such as ``application/json``.
        inputs: Entries of the inputs in ``preprocess.json``.
        largest: Largest number of examples.

    Raises:
        RequestError: The body is of the wrong kind for this model.
    """
    kinds = [str(entry["kind"]) for entry in inputs]
    # All tensors of a tokenizer are made of one text.
    kinds = ["text"] if set(kinds) == {"tokens"} else kinds
    if media_type == "application/json":
        return _read_json(body, inputs, largest)
    if kinds == ["image"] and (media_type.startswith("image/") or media_type == "application/octet-stream"):
        return [body], True
    if kinds == ["text"] and media_type == "text/plain":
        return [_decode_text(body)], True
    accepted = {"image": ", or the bytes of an image as image/*", "text": ", or a text as text/plain"}
    also = accepted.get(kinds[0], "") if len(kinds) == 1 else ""
    raise RequestError(415, f"the media type is '{media_type}'; send application/json{also}")


def _decode_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(400, "the text is not in UTF-8") from error


def _read_json(body: bytes, inputs: Sequence[Record], largest: int) -> tuple[list[object], bool]:
    try:
        # NaN and Infinity are no JSON, and no input of a model.
        content = json.loads(_decode_text(body), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON ({' '.join(str(error).split())})") from error
    names = ("input", "inputs")
    if not isinstance(content, dict) or len(content) != 1 or next(iter(content)) not in names:
        raise RequestError(400, 'give {"input": EXAMPLE} or {"inputs": [EXAMPLE, ...]}')
    if "input" in content:
        return [_convert(content["input"], inputs)], True
    examples = content["inputs"]
    if not isinstance(examples, list) or not 1 <= len(examples) <= largest:
        size = f"it has {len(examples)}" if isinstance(examples, list) else "it is no list"
        raise RequestError(400, f'"inputs" is a list of 1 to {largest} examples; {size}')
    return [_convert(example, inputs) for example in examples], False


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not allowed")


def _convert(example: object, inputs: Sequence[Record]) -> object:
    """Return an example with the values of its inputs in the form that the pipeline takes."""
    by_name = {str(entry["name"]): entry for entry in inputs}
    if isinstance(example, dict) and (len(inputs) > 1 or set(example) == set(by_name)):
        # Names that the model does not have are refused by the pipeline.
        return {
            name: _convert_value(value, by_name[name]) if name in by_name else value for name, value in example.items()
        }
    return _convert_value(example, inputs[0]) if len(inputs) == 1 else example


def _convert_value(value: object, entry: Record) -> object:
    kind = entry["kind"]
    if not isinstance(value, str) or kind in ("text", "tokens", "id"):
        return value
    if kind != "image":
        raise RequestError(422, f"{entry['name']}: it is a text; give numbers or ids as JSON")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"{entry['name']}: the text is not the base64 of an image file") from error
