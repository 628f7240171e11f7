import base64
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from autocompress.export.pipeline import Pipeline, PipelineError
from autocompress.runtime.raw_requests import RequestError, read_examples
from tests.runtime.artifacts import ROW

IMAGE = {
    "kind": "image",
    "name": "image",
    "tensor": "input",
    "shape": [1, 2, 2],
    "resize": False,
    "white": 255,
    "scale": 255,
    "mean": [0.0],
    "std": [1.0],
}
TEXT = {
    "kind": "text",
    "name": "text",
    "tensor": "input",
    "length": 5,
    "vocabulary": 9,
    "whitespace": "collapse",
    "unicode_form": None,
    "alphabet": "a",
    "encoding": "characters",
}
SERIES = {"kind": "series", "name": "series", "tensor": "input", "shape": [1, 3], "mean": [0.0], "std": [1.0]}
TENSOR = {"kind": "tensor", "name": "input", "tensor": "input", "shape": [2], "dtype": "int64", "vocabulary": 3}
USER = {"kind": "id", "name": "user", "tensor": "input_0", "ids": ["7"], "first_row": 0, "unknown_row": None}
ITEMS = {**USER, "kind": "candidates", "name": "items", "tensor": "input_1"}
JSON = "application/json"


def read(content: object, *inputs: dict[str, Any], media_type: str = JSON) -> tuple[list[object], bool]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_examples(body, media_type, inputs, largest=3)


def encode(example: object, *inputs: dict[str, Any]) -> None:
    examples, _ = read({"input": example}, *inputs)
    Pipeline({"inputs": inputs, "outputs": []}, SimpleNamespace(get_inputs=list)).encode(examples)


def test_images_and_texts_are_sent_as_they_are_or_in_json() -> None:
    assert read(b"\x89PNG", IMAGE, media_type="image/png") == ([b"\x89PNG"], True)
    assert read(b"\x89PNG", IMAGE, media_type="application/octet-stream") == ([b"\x89PNG"], True)
    assert read({"input": base64.b64encode(b"\x89PNG").decode()}, IMAGE) == ([b"\x89PNG"], True)
    assert read({"inputs": [[[0, 1], [2, 3]]]}, IMAGE) == ([[[0, 1], [2, 3]]], False)
    assert read("grün".encode(), TEXT, media_type="text/plain") == (["grün"], True)
    assert read({"inputs": ["a", "b"]}, TEXT) == (["a", "b"], False)


def test_rows_ids_and_several_inputs_are_json() -> None:
    row = {"a": 1, "b": 2, "c": 3, "d": 4}
    assert read({"input": row}, dict(ROW)) == ([row], True)
    ranked = {"user": "7", "items": ["7"]}
    assert read({"input": ranked}, USER, ITEMS) == ([ranked], True)


@pytest.mark.parametrize("inputs", [(IMAGE,), (SERIES,), (TENSOR,), (dict(ROW),), (USER, IMAGE)])
def test_a_text_is_never_a_path_of_the_server(inputs: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    # The pipeline would read these files: an image, and a series of three numbers.
    path = tmp_path / "secret.csv"
    path.write_text("1,2,3\n")
    name = inputs[-1]["name"]
    for example in (str(path), {name: str(path)}, {"user": "7", name: str(path)}):
        # What is passed on is refused by the pipeline, which has several inputs here.
        with pytest.raises((RequestError, PipelineError)):
            encode(example, *inputs)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"\xff", 400, "not in UTF-8"),
        (b'{"input": NaN}', 400, "NaN is not allowed"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[1]", 400, 'give {"input"'),
        (b'{"input": 1, "inputs": [1]}', 400, 'give {"input"'),
        (b'{"inputs": 5}', 400, "it is no list"),
        (b'{"inputs": []}', 400, "it has 0"),
        (b'{"inputs": [1, 1, 1, 1]}', 400, "1 to 3 examples; it has 4"),
        (b'{"input": "?"}', 422, "no.* base64"),
    ],
)
def test_a_body_of_the_wrong_form_is_refused_with_its_status(body: bytes, status: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        read(body, IMAGE)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("entry", "media_type", "accepted"),
    [(IMAGE, "text/plain", "image/"), (TEXT, "image/png", "text/plain"), (dict(ROW), "", "application/json")],
)
def test_another_media_type_is_refused_with_the_accepted_ones(
    entry: dict[str, Any], media_type: str, accepted: str
) -> None:
    with pytest.raises(RequestError, match=accepted) as refused:
        read(b"1", entry, media_type=media_type)
    assert refused.value.status == 415


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image", "text", "series", "input", "user", "items", "a"]), children, max_size=3
        )
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("inputs", [(IMAGE,), (TEXT,), (SERIES,), (TENSOR,), (dict(ROW),), (USER,), (USER, ITEMS)])
@settings(max_examples=20)
@given(example=ANYTHING)
def test_whatever_json_is_sent_it_is_encoded_or_refused_with_a_reason(
    inputs: tuple[dict[str, Any], ...], example: object
) -> None:
    # Any other exception fails: the service would answer it with status 500.
    with suppress(RequestError, PipelineError):
        encode(example, *inputs)


@pytest.mark.parametrize(
    ("entry", "example"),
    [
        (SERIES, [0, 0, 3.5e38]),
        ({**SERIES, "std": [0.1]}, [0, 0, 1e38]),
        (dict(ROW), {"a": 1, "b": 2, "c": 3, "d": 1e39}),
    ],
)
def test_a_number_that_single_precision_does_not_hold_is_refused(entry: dict[str, Any], example: object) -> None:
    with pytest.raises(PipelineError, match="a value is too large for single precision"):
        encode(example, entry)
