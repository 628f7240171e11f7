import json
from typing import Any

import pytest
import torch

from autocompress.core.method import LayerBits, MethodState
from autocompress.errors import ArtifactError
from autocompress.export.architecture import (
    dump_state,
    method_state,
    parse_architecture,
)

GOOD: dict[str, Any] = {
    "format": 1,
    "task": "digits",
    "options": {},
    "config": {
        "student": {"cnn": {"width": 8}},
        "distill": {},
        "fit": {"adamw": {}},
        "prune": None,
        "quantize": None,
        "seed": 0,
    },
    "heads": {"label": 10},
    "labels": None,
    "inputs": [{"shape": [1, 1, 8, 8], "dtype": "float32"}],
    "folded": [["stem.0", "stem.1"]],
    "prune": None,
    "quantize": {"history": {"layers": []}, "bits": {"stem.0": [4, 8]}},
    "packed": {"quantize/stem.0.weight_codes": {"bits": 4, "offset": -7, "shape": [8, 9], "dtype": "int8"}},
    "aliases": {},
    "versions": {"torch": "2.13.0"},
}


def test_a_good_one_is_read() -> None:
    found = parse_architecture(json.dumps(GOOD).encode())
    assert found.compression.student.name == "cnn"
    assert found.folded == [("stem.0", "stem.1")]
    assert [tuple(tensor.shape) for tensor in found.example()] == [(1, 1, 8, 8)]
    assert parse_architecture(found.model_dump_json().encode()) == found


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 3}, "format"),
        ({"task": 7}, "task"),
        ({"heads": {"label": 0}}, "heads"),
        ({"heads": {"label": "10"}}, "heads"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"shape": [1, -1], "dtype": "float32"}]}, "inputs"),
        ({"inputs": [{"shape": [1] * 9, "dtype": "float32"}]}, "inputs"),
        ({"inputs": [{"shape": [2**40], "dtype": "float32"}]}, "inputs"),
        ({"inputs": [{"shape": [1], "dtype": "object"}]}, "inputs"),
        ({"inputs": [{"shape": [1], "dtype": "float32", "more": 1}]}, "more"),
        ({"folded": [["a"]]}, "folded"),
        ({"prune": {"history": {}, "bits": {}, "code": "import os"}}, "code"),
        ({"quantize": {"history": {}, "bits": {"a": [4, 4, 4]}}}, "bits"),
        ({"quantize": {"history": {}, "bits": {"a": [0, 4]}}}, "bits"),
        ({"packed": {"a": {"bits": 9, "offset": 0, "shape": [1], "dtype": "int8"}}}, "packed"),
        ({"packed": {"a": {"bits": 4, "offset": 0, "shape": [1], "dtype": "float32"}}}, "packed"),
        ({"aliases": {"a": 1}}, "aliases"),
    ],
)
def test_what_is_unknown_mistyped_or_out_of_bounds_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ArtifactError, match=f"architecture.json: .*{where}"):
        parse_architecture(json.dumps(GOOD | change).encode())


def test_a_newer_format_says_so() -> None:
    content = json.dumps({**GOOD, "format": 3, "sparsity": "of a later version"}).encode()
    with pytest.raises(ArtifactError, match="made by a newer version of autocompress"):
        parse_architecture(content)


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ArtifactError, match=missing):
        parse_architecture(json.dumps({name: value for name, value in GOOD.items() if name != missing}).encode())


@pytest.mark.parametrize("content", [b"", b"null", b"\xff", b"{" * 10, b"[" * 100_000, b"\x80\x04K\x01."])
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"architecture\.json"):
        parse_architecture(content)


@pytest.mark.parametrize("config", [{}, {"student": 3}, GOOD["config"] | {"student": {"a": {}, "b": {}}}])
def test_a_config_of_another_form_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="config"):
        _ = parse_architecture(json.dumps(GOOD | {"config": config}).encode()).compression


def test_a_methods_state_survives() -> None:
    state = MethodState(history={"layers": [1, "a"]}, bits={"a": LayerBits(3, 5)}, report={"left": "out"})
    saved = dump_state(state)
    assert saved is not None
    back = method_state(saved, {"a.codes": torch.ones(1)})
    assert back.history == state.history
    assert back.bits == state.bits
    assert list(back.tensors) == ["a.codes"]
    assert dump_state(None) is None
