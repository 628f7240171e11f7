import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.heads import KINDS, Levels
from autocompress.core.preprocessing import CandidatesInput, IdInput, ImageInput, Preprocessing
from autocompress.core.task import InputSpec
from autocompress.errors import ArtifactError
from autocompress.export.artifact import Deployable, export_graph, write_artifact
from autocompress.export.pipeline import DECODERS, METADATA, PipelineError, load
from autocompress.export.preprocess_file import embed_preprocess, read_pipeline, read_preprocessing, render_preprocess
from autocompress.models.base import build_family_model
from tests.export.nets import NETS, deployable, splits

IMAGE = ImageInput((1, 8, 8), resize=False, mean=(0.0,), std=(1.0,), white=16, scale=16)
LISTS: Preprocessing = IdInput("user", tuple("abc")), CandidatesInput("candidates", tuple("vwxyz"), count=4)


def untrained(**changes: object) -> Deployable:
    made = deployable("rows", NETS["rows"]().eval(), splits()[0].take(slice(0, 8)))
    return replace(made, **changes)  # type: ignore[arg-type]


def ranker(student: Part, preprocessing: Preprocessing = LISTS) -> Deployable:
    inputs, heads = (InputSpec((), vocabulary=3), InputSpec((4,), vocabulary=5)), {"item": 4}
    torch.manual_seed(0)
    model = build_family_model(student, inputs, heads).eval()
    return Deployable(
        config=CompressionConfig(student, (), Part.of("adamw")),
        task_name="lists",
        task_options={},
        labels={},
        heads=heads,
        inputs=inputs,
        example=tuple(spec.make_zeros() for spec in inputs),
        float_model=model,
        model=model,
        prune_state=None,
        quantize_state=None,
        preprocessing=preprocessing,
    )


def test_inputs_and_outputs_are_described() -> None:
    made = untrained(
        preprocessing=(IMAGE,), heads={"label": 10, "even": Levels(2, levels=(0.0, 2.5))}, labels={"even": ["no", "no"]}
    )
    content = json.loads(render_preprocess(made, weights_only=True))
    assert content["format"] == 1
    (entry,) = content["inputs"]
    assert entry == {
        "tensor": "input",
        "kind": "image",
        "shape": [1, 8, 8],
        "resize": False,
        "mean": [0.0],
        "std": [1.0],
        "white": 16,
        "scale": 16,
        "background": "white",
        "peak": 65535.0,
        "stretch": False,
        "name": "image",
    }
    first, second = content["outputs"]
    # Classes without names are called by their numbers; equal names are told apart.
    assert first == {
        "head": "label",
        "kind": "classes",
        "meaning": first["meaning"],
        "classes": [str(digit) for digit in range(10)],
    }
    assert (second["kind"], second["classes"], second["levels"]) == ("levels", ["no (0)", "no (1)"], [0.0, 2.5])
    assert "softmax" in first["meaning"]
    assert "expected value" in second["meaning"]
    assert content["session"] == {"session.disable_quant_qdq": "1"}
    assert json.loads(render_preprocess(made, weights_only=False))["session"] == {}


@pytest.mark.parametrize(
    ("kind", "size", "names", "more"),
    [
        ("binary", 1, ["0", "1"], {"threshold": 0.5}),
        ("multilabel", 3, ["0", "1", "2"], {"threshold": 0.5}),
        ("dense", 2, ["0", "1"], {"axis": 0}),
        ("tags", 2, ["0", "1"], {"axis": -1}),
        ("regression", 1, ["0"], {}),
    ],
)
def test_a_head_of_another_kind_is_described(kind: str, size: int, names: list[str], more: dict[str, float]) -> None:
    of_kind = KINDS[kind](size)
    (entry,) = json.loads(render_preprocess(untrained(heads={"label": of_kind}, labels={}), weights_only=False))[
        "outputs"
    ]
    assert entry == {"head": "label", "kind": kind, "meaning": entry["meaning"], "classes": names, **more}
    assert kind in DECODERS


def test_a_task_without_a_specification_takes_tensors() -> None:
    (entry,) = json.loads(render_preprocess(untrained(), weights_only=False))["inputs"]
    assert entry == {
        "tensor": "input",
        "kind": "tensor",
        "name": "input",
        "shape": [1, 8, 8],
        "dtype": "float32",
        "vocabulary": 0,
    }


def test_a_specification_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = untrained(preprocessing=(replace(IMAGE, shape=(1, 9, 8)),))
    with pytest.raises(ArtifactError, match=r"specify_preprocessing describes inputs of the shapes \[\(1, 9, 8\)\]"):
        write_artifact(tmp_path / "a", wrong, {})
    with pytest.raises(ArtifactError, match="cannot be stored"):
        render_preprocess(untrained(preprocessing=(replace(IMAGE, mean=(math.nan,)),)), weights_only=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_graph_has_the_same_text_in_its_metadata() -> None:
    made = untrained(preprocessing=(IMAGE,))
    preprocess = render_preprocess(made, weights_only=False)
    proto = onnx.load_from_string(embed_preprocess(export_graph(made), preprocess))
    assert {entry.key: entry.value for entry in proto.metadata_props}[METADATA] == preprocess.decode()


def test_the_pipeline_is_the_file_of_this_version() -> None:
    source = read_pipeline().decode()
    assert source == (Path(__file__).parents[2] / "autocompress" / "export" / "pipeline.py").read_text()
    assert "autocompress." not in "".join(line for line in source.splitlines() if line.startswith(("import", "from")))
    assert source.index('environ.setdefault("ORT_DISABLE_TELEMETRY", "1")') < source.index("import onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("student", ["two_tower", "interaction"])
def test_a_ranking_takes_any_number_of_candidates(student: str, tmp_path: Path) -> None:
    made = ranker(Part(student))
    served = load(write_artifact(tmp_path / "a", made, {}))
    user = torch.tensor([1])
    for items in ([0], [4, 2], [0, 1, 2, 3, 4, 0]):
        outputs = served.compute_outputs([{"user": "b", "candidates": ["vwxyz"[item] for item in items]}])["item"]
        with torch.inference_mode():
            expected = made.model(user, torch.tensor([items]))
        expected = expected["item"] if isinstance(expected, dict) else expected
        assert np.allclose(outputs, expected.numpy(), atol=1e-6)
    best = served.recommend({"user": "b"}, 2)
    ranked = served.predict({"user": "b"})["item"]
    assert [name for name, _ in best] == ranked["ids"][:2]
    assert sorted(ranked["ids"]) == list("vwxyz")
    with pytest.raises(PipelineError, match="the id 'd' is unknown"):
        served.predict({"user": "d"})


class FixedLists(torch.nn.Module):
    """A ranking whose layer reads all candidates at once, so that their number is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = torch.nn.Embedding(5, 3), torch.nn.Linear(12, 4)

    def forward(self, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(self.table(items).flatten(1)) + user[:, None]
        return mixed


@pytest.mark.slow
def test_a_model_that_fixes_the_number_of_candidates_is_exported_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FixedLists().eval()
    made = replace(ranker(Part("two_tower")), model=model, float_model=model)
    monkeypatch.setattr("autocompress.export.artifact.load_artifact", lambda _: model)
    served = load(write_artifact(tmp_path / "a", made, {}))
    assert len(served.predict({"user": "a", "candidates": list("vwxy")})["item"]["ids"]) == 4
    with pytest.raises(PipelineError, match="exported for lists of 4 ids, not of 5"):
        served.predict({"user": "a"})


@pytest.mark.parametrize(
    ("content", "tokenizer"),
    [(b"{", b""), (b"[" * 100_000, b""), (b'{"inputs": [[]]}', b""), (b'{"inputs": []}', b"\xff")],
)
def test_damaged_records_are_named(content: bytes, tokenizer: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"preprocess\.json cannot be read"):
        read_preprocessing(content, tokenizer)
