"""The file that an artifact carries: encoders and decoders beside those of the tasks, and refusals of bad input."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image, ImageFile

from autocompress.core.boxes import MOST_COMPARED, OVERLAP, select_boxes
from autocompress.core.preprocessing import (
    CandidatesInput,
    IdInput,
    ImageInput,
    RawInput,
    RowInput,
    SeriesInput,
    TensorInput,
    TextInput,
    dump_input,
)
from autocompress.export import pipeline as module
from autocompress.export.artifact import write_artifact
from autocompress.export.folder import read_files, write_files
from autocompress.export.pipeline import ENCODERS, Pipeline, PipelineError, load, main
from autocompress.tasks.image_decoding import Tones, image_pixels
from autocompress.tasks.text_encoding import KINDS, fit_encoding
from tests.export.nets import deployable, splits, train

Array = np.ndarray[Any, np.dtype[Any]]
USER = IdInput("user", ("ann", None, "7"), first_row=1, unknown_row=0)
CANDIDATES = CandidatesInput("candidates", ("x", "y", "z"), count=2)
ROW = RowInput(("age", "height"), (40.0, 1.7), (10.0, 0.1), name="features")


def encoder(record: RawInput) -> Callable[[Any], Array]:
    return ENCODERS[record.kind](json.loads(json.dumps(dump_input(record))))


class Session:
    """A model that returns what a function makes of the inputs."""

    def __init__(self, run: Callable[..., Array], *shapes: tuple[Any, ...]) -> None:
        self.function, self.calls = run, 0
        self.inputs = [SimpleNamespace(name=f"input_{at}", shape=shape) for at, shape in enumerate(shapes)]

    def get_inputs(self) -> list[SimpleNamespace]:
        return self.inputs

    def run(self, heads: list[str], inputs: Mapping[str, Array]) -> list[Array]:
        self.calls += 1
        return [self.function(*(inputs[entry.name] for entry in self.inputs))]


def make(records: list[RawInput], session: Session, **output: Any) -> Pipeline:
    inputs = [{"tensor": f"input_{at}", **dump_input(record)} for at, record in enumerate(records)]
    whole = {"head": "label", "kind": "classes", "classes": ["no", "yes"], **output}
    return Pipeline(json.loads(json.dumps({"inputs": inputs, "outputs": [whole]})), session)  # type: ignore[arg-type]


def ranking(limit: Any = "candidates") -> tuple[Pipeline, Session]:
    """Return a pipeline whose scores fall with the row, except for the user ``7``."""
    session = Session(
        lambda user, items: np.where(user[:, None] == 3, 1.0, -1.0) * items.astype(np.float32), ("b",), ("b", limit)
    )
    return make([USER, CANDIDATES], session, kind="ranking", candidates="candidates"), session


def several() -> Pipeline:
    """Return a pipeline of a click and a ranking of an item among candidates; scores fall with the row."""

    def run(heads: list[str], inputs: dict[str, Any]) -> list[Any]:
        user, item, others = inputs.values()
        sign = np.where(user[:, None] == 3, 1.0, -1.0)
        scores = sign * np.concatenate([item[:, None], others], axis=1)
        return [np.tile(np.array([[0.0, 1.0]]), (len(user), 1)), scores]

    records = [USER, replace(USER, name="item", ids=CANDIDATES.ids, first_row=0), replace(CANDIDATES, first="item")]
    click = {"head": "label", "kind": "classes", "classes": ["no", "yes"]}
    item = {"head": "item", "kind": "ranking", "candidates": "candidates", "first": "item"}
    inputs = [{"tensor": f"input_{at}", **dump_input(record)} for at, record in enumerate(records)]
    shapes = [SimpleNamespace(name=f"input_{at}", shape=("b", "n")) for at in range(3)]
    session = SimpleNamespace(get_inputs=lambda: shapes, run=run)
    return Pipeline(json.loads(json.dumps({"inputs": inputs, "outputs": [click, item]})), session)  # type: ignore[arg-type]


class TestImages:
    RECORD = ImageInput((3, 6, 9), resize=True, mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 4.0))

    def picture(self, mode: str) -> Image.Image:
        random = np.random.default_rng(0)
        if mode == "I;16":
            return Image.fromarray(random.integers(0, 2**16, (20, 30), dtype=np.uint16))
        colours = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
        return Image.fromarray(colours, "RGBA").convert(mode) if mode != "RGBA" else Image.fromarray(colours, "RGBA")

    @pytest.mark.filterwarnings("ignore:'mode' parameter")
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_mode_is_decoded_as_in_training(self, mode: str, channels: int) -> None:
        tones = Tones("#204060", 4095)
        record = ImageInput(
            (channels, 6, 9), True, (10.0,) * channels, (2.0,) * channels, background=tones.background, peak=tones.peak
        )
        expected = image_pixels(self.picture(mode), record.shape, True, tones)
        assert np.array_equal(encoder(record)(self.picture(mode)), (expected.astype(np.float32) - 10) / 2)

    def test_a_stretched_image_is_that_of_the_training(self) -> None:
        record = replace(self.RECORD, shape=(3, 6, 6), stretch=True)
        expected = image_pixels(self.picture("RGB"), record.shape, True, stretch=True).astype(np.float32)
        expected = (expected - np.float32([[[10]], [[20]], [[30]]])) / np.float32([[[2]], [[3]], [[4]]])
        assert np.array_equal(encoder(record)(self.picture("RGB")), expected)
        assert not np.array_equal(encoder(replace(record, stretch=False))(self.picture("RGB")), expected)

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
    def test_a_file_and_its_bytes_are_decoded_as_in_training(self, form: str, tmp_path: Path) -> None:
        exif = Image.Exif()
        # Rotated by a quarter, as a camera says it.
        exif[0x0112] = 6
        path = tmp_path / f"picture.{form.lower()}"
        Image.fromarray(np.arange(300 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 200, 3)).save(
            path, form, exif=exif
        )
        with Image.open(path) as image:
            expected = image_pixels(image, self.RECORD.shape, resize=True).astype(np.float32)
        expected = (expected - np.float32([[[10]], [[20]], [[30]]])) / np.float32([[[2]], [[3]], [[4]]])
        for value in (path, str(path), path.read_bytes()):
            assert np.array_equal(encoder(self.RECORD)(value), expected)

    def test_an_array_of_few_grey_levels_survives_a_file(self, tmp_path: Path) -> None:
        record = ImageInput((1, 4, 4), False, (0.0,), (1.0,), white=16, scale=16)
        pixels = np.arange(16.0).reshape(4, 4) + 1
        read = encoder(record)
        assert np.array_equal(read(pixels), (pixels / 16)[None].astype(np.float32))
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(tmp_path / "levels.png")
        assert np.array_equal(read(tmp_path / "levels.png"), read(pixels))
        assert np.array_equal(read(pixels[..., None]), read(pixels))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("absent.png", "cannot be read"),
            (b"no image", "cannot be read"),
            (b"", "cannot be read"),
            (7, "is of the type int; give a path, bytes"),
            (None, "is of the type NoneType"),
            (np.zeros((3, 6, 9)), r"the shape \[3, 6, 9\]"),
            (np.full((6, 9), 0.5), "whole numbers from 0"),
            (np.full((6, 9), 256), "whole numbers from 0"),
            (np.full((6, 9), -1), "whole numbers from 0"),
            (np.full((6, 9), np.nan), "whole numbers from 0"),
            (np.full((6, 9), "x"), r"is an array of <U1 with the shape \[6, 9\]"),
            (np.zeros((6, 9), complex), r"is an array of complex128 with the shape \[6, 9\]; give a path"),
        ],
    )
    def test_what_is_no_image_is_refused(self, value: Any, message: str) -> None:
        with pytest.raises(PipelineError, match=message):
            encoder(self.RECORD)(value)

    def test_a_truncated_file_and_another_size_are_refused(self) -> None:
        content = io.BytesIO()
        Image.new("RGB", (40, 40), "red").save(content, "PNG")
        with pytest.raises(PipelineError, match="cannot be read"):
            encoder(self.RECORD)(content.getvalue()[:60])
        fixed = ImageInput((3, 6, 9), False, (0.0,) * 3, (1.0,) * 3)
        with pytest.raises(PipelineError, match="the image is 40x40; the model takes 9x6"):
            encoder(fixed)(content.getvalue())

    def test_an_image_that_declares_many_pixels_is_refused_before_it_is_decoded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = io.BytesIO()
        Image.new("1", (9_000, 9_000)).save(content, "PNG")
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
        with pytest.raises(PipelineError, match="has 9000x9000 pixels"):
            encoder(self.RECORD)(content.getvalue())

    def test_a_format_for_which_pillow_starts_a_program_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = io.BytesIO()
        Image.new("RGB", (9, 6)).save(content, "EPS")
        monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
        with pytest.raises(PipelineError, match="cannot identify image file"):
            encoder(self.RECORD)(content.getvalue())


class TestTexts:
    @given(st.text(min_size=1), st.sampled_from(KINDS))
    def test_tokens_are_those_of_the_training(self, text: str, kind: str) -> None:
        encoding = fit_encoding(kind, ["a b c", "don't ÄÖ"], 6)
        try:
            tokens = encoder(encoding.specify_input())(text)
        except PipelineError as error:
            # Texts without a token, which the training leaves out; lone surrogates are no text.
            is_expected = not encoding([text.strip()]).any() if "UTF-8" not in str(error) else max(text) >= "\ud800"
            assert is_expected, error  # noqa: PT017
            return
        assert np.array_equal(tokens, encoding([text.strip()])[0].numpy())

    def test_white_space_and_forms_of_a_character_are_normalized(self) -> None:
        record = TextInput("characters", 4, 5, "abä", whitespace="collapse", unicode_form="NFC")
        assert encoder(record)(" a\t\nb ").tolist() == [1, 4, 2, 0]
        assert encoder(record)("a\u0308").tolist() == encoder(record)("ä").tolist() == [3, 0, 0, 0]

    @pytest.mark.parametrize("value", ["", "  ", "?!", None, 3, b"bytes", ["a"]])
    def test_what_has_no_token_is_refused(self, value: Any) -> None:
        with pytest.raises(PipelineError, match=r"no word|give a text"):
            encoder(TextInput("words", 4, 10))(value)


class TestNumbers:
    SERIES = SeriesInput((1, 3), (1.0,), (2.0,))

    def test_a_series_is_normalized_by_channel(self) -> None:
        assert encoder(self.SERIES)([1, 3, 5]).tolist() == [[0.0, 1.0, 2.0]]
        two = SeriesInput((2, 2), (1.0, 0.0), (1.0, 4.0))
        assert encoder(two)(np.array([[1, 2], [4, 8]])).tolist() == [[0.0, 1.0], [1.0, 2.0]]

    def test_a_series_may_be_a_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([1.0, 3.0, 5.0]))
        (tmp_path / "a.csv").write_text("1,3,5\n")
        (tmp_path / "a.txt").write_text("1\n3\n5\n")
        for name in ("a.npy", "a.csv", "a.txt"):
            assert encoder(self.SERIES)(tmp_path / name).tolist() == [[0.0, 1.0, 2.0]]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1, 2], r"the shape \[2\]; give \[1, 3\] or \[3\]"),
            ([[1], [2, 3]], "different lengths"),
            ([1, 2, np.nan], "not finite"),
            (["a", "b", "c"], "give numbers"),
            (None, "give numbers"),
            ("absent.npy", "cannot be read as numbers"),
        ],
    )
    def test_what_is_no_series_is_refused(self, value: Any, message: str) -> None:
        with pytest.raises(PipelineError, match=message):
            encoder(self.SERIES)(value)

    def test_a_pickle_is_never_run(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([{"a": 1}, None, 3], dtype=object), allow_pickle=True)
        with pytest.raises(PipelineError, match="cannot be read as numbers"):
            encoder(self.SERIES)(tmp_path / "a.npy")

    def test_a_row_is_read_by_its_names(self) -> None:
        assert encoder(ROW)({"height": 1.8, "age": 50}).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
        assert encoder(ROW)([40, 1.7]).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
        with pytest.raises(PipelineError, match="lacks 'height'; the names are age, height"):
            encoder(ROW)({"age": 3})
        with pytest.raises(PipelineError, match="unknown name 'weight'"):
            encoder(ROW)({"age": 3, "height": 1, "weight": 3})

    def test_a_tensor_is_checked(self) -> None:
        indices = TensorInput("input", (2,), "int64", vocabulary=5)
        assert encoder(indices)([4, 0]).dtype == np.int64
        for value in ([5, 0], [-1, 0], [0.5, 0]):
            with pytest.raises(PipelineError, match="whole numbers from 0 to 4"):
                encoder(indices)(value)


class TestIds:
    def test_ids_are_rows_and_unknown_ones_have_theirs(self) -> None:
        rows = {"ann": 1, "7": 3, 7: 3, np.int64(7): 3, " ann ": 1, "bob": 0, 8: 0, "None": 0}
        assert {value: int(encoder(USER)(value)) for value in rows} == rows

    @pytest.mark.parametrize("value", [None, True, 1.0, ["ann"], b"ann"])
    def test_what_is_no_id_is_refused(self, value: Any) -> None:
        with pytest.raises(PipelineError, match="an id is a text or a whole number"):
            encoder(USER)(value)

    def test_an_unknown_id_without_a_row_is_refused(self) -> None:
        with pytest.raises(PipelineError, match="the id 'w' is unknown, and the model has no row"):
            encoder(CANDIDATES)(["x", "w"])
        for value in ("x", {"x": 1}, 3, None):
            with pytest.raises(PipelineError, match="give a list of ids"):
                encoder(CANDIDATES)(value)
        with pytest.raises(PipelineError, match="is empty"):
            encoder(CANDIDATES)([])


class TestPredictions:
    def test_a_class_has_its_name_and_probability(self) -> None:
        made = make([TensorInput("input", (2,))], Session(lambda x: x, ("b", 2)))
        assert made.predict([0.0, np.log(3)]) == {
            "label": {
                "class": "yes",
                "probability": pytest.approx(0.75),
                "probabilities": {"no": pytest.approx(0.25), "yes": pytest.approx(0.75)},
            }
        }
        assert made.predict({"input": [3.0, 0.0]})["label"]["class"] == "no"
        # Logits whose exponentials overflow.
        assert made.predict([1e4, -1e4])["label"]["probability"] == 1.0

    def test_classes_that_are_numbers_have_a_mean(self) -> None:
        made = make([TensorInput("input", (2,))], Session(lambda x: x, ("b", 2)), kind="levels", levels=[1.0, 5.0])
        assert made.predict([0.0, 0.0])["label"]["value"] == pytest.approx(3.0)

    def test_one_logit_is_the_second_class_above_its_threshold(self) -> None:
        session = Session(lambda x: x, ("b", 1))
        made = make([TensorInput("input", (1,))], session, kind="binary", threshold=0.7)
        chances = {"no": pytest.approx(0.4), "yes": pytest.approx(0.6)}
        assert made.predict([np.log(1.5)])["label"] == {
            "class": "no",
            "probability": pytest.approx(0.4),
            "probabilities": chances,
        }
        assert made.predict([1e4])["label"]["class"] == "yes"

    def test_labels_are_those_above_the_threshold(self) -> None:
        session = Session(lambda x: x, ("b", 2))
        made = make([TensorInput("input", (2,))], session, kind="multilabel", threshold=0.5)
        assert made.predict([0.1, 2.0])["label"]["labels"] == ["no", "yes"]
        assert made.predict([-0.1, -2.0])["label"]["labels"] == []
        assert made.predict([0.0, np.log(3)])["label"]["probabilities"] == {"no": 0.5, "yes": pytest.approx(0.75)}

    def test_each_position_has_a_class(self) -> None:
        pixels = Session(lambda x: x, ("b", 2, 2, 2))
        made = make([TensorInput("input", (2, 2, 2))], pixels, kind="dense", axis=0)
        assert made.predict([[[0, 1], [2, 3]], [[1, 0], [3, 2]]])["label"]["classes"] == [["yes", "no"], ["yes", "no"]]
        # A token is tagged "yes" if it is even; padding has no tag.
        tokens = Session(lambda x: np.stack([x % 2, 1 - x % 2], -1).astype(np.float32), ("b", 5))
        made = make([TextInput("bytes", 5, 257)], tokens, kind="tags", axis=-1)
        assert made.predict("abc")["label"]["classes"] == ["yes", "no", "yes"]

    @pytest.mark.parametrize("form", ["file", "rotated", "bytes", "array", "image"])
    def test_boxes_are_those_of_the_maps_in_pixels_of_the_image(self, form: str, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(3)
        maps = 2 * torch.randn(1, 7, 6, 9, generator=generator)
        image = Image.new("L", (30, 20))
        exif = Image.Exif()
        # A camera's rotation by a quarter.
        exif[0x0112] = 6 if form == "rotated" else 1
        (image.rotate(90, expand=True) if form == "rotated" else image).save(tmp_path / "image.png", exif=exif)
        values = {"bytes": (tmp_path / "image.png").read_bytes(), "array": np.asarray(image), "image": image}
        record = ImageInput((1, 48, 72), True, (0.0,), (1.0,), stretch=True)
        selection = {"least_score": 0.3, "overlap": OVERLAP, "compared": MOST_COMPARED, "most": 5}
        made = make([record], Session(lambda x: maps.numpy(), ("b", 1, 48, 72)), kind="detection", **selection)
        boxes = made.predict(values.get(form, tmp_path / "image.png"))["label"]["boxes"]
        expected = select_boxes(maps, 0.3, most=5)[0]
        assert len(boxes) == len(expected) == 5
        assert [box["class"] for box in boxes] == [["no", "yes"][int(number)] for number in expected[:, 0]]
        assert [box["score"] for box in boxes] == pytest.approx(expected[:, 1].tolist(), abs=1e-6)
        pixels = (expected[:, 2:] * torch.tensor([30, 20, 30, 20])).tolist()
        assert [box["box"] for box in boxes] == [pytest.approx(row, abs=1e-4) for row in pixels]

    def test_maps_without_an_object_have_no_boxes(self) -> None:
        record = ImageInput((1, 16, 16), False, (0.0,), (1.0,))
        selection = {"least_score": 0.3, "overlap": OVERLAP, "compared": MOST_COMPARED, "most": 5}
        session = Session(lambda x: np.full((1, 7, 2, 2), -9, np.float32), ("b", 1, 16, 16))
        made = make([record], session, kind="detection", **selection)
        assert made.predict(np.zeros((16, 16), np.uint8)) == {"label": {"boxes": []}}

    def test_numbers_have_names(self) -> None:
        made = make([TensorInput("input", (2,))], Session(lambda x: x, ("b", 2)), kind="regression")
        assert made.predict([1.5, -2.0])["label"] == {"values": {"no": 1.5, "yes": -2.0}}

    def test_batches_give_the_same_in_the_same_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session = Session(lambda x: x, ("b", 2))
        made = make([TensorInput("input", (2,))], session)
        rows = np.random.default_rng(0).normal(size=(7, 2))
        expected = [made.predict(row) for row in rows]
        monkeypatch.setattr(module, "BATCH", 3)
        session.calls = 0
        assert made.predict_batch(rows) == expected
        assert session.calls == 3
        assert np.array_equal(made.compute_outputs(rows)["label"], rows.astype(np.float32))

    def test_the_message_says_which_example_is_bad(self) -> None:
        made = make([TensorInput("input", (2,))], Session(lambda x: x, ("b", 2)))
        with pytest.raises(PipelineError, match=r"example 1, input: it has the shape \[3\]"):
            made.predict_batch([[1, 2], [1, 2, 3]])

    @pytest.mark.parametrize(
        ("example", "message"),
        [
            ("7", "example 0 is of the type str; give a mapping with user, candidates"),
            ({"candidates": ["x"]}, "lacks user"),
            ({"user": "7", "item": "x"}, "unknown input item; the inputs are user, candidates"),
        ],
    )
    def test_a_mapping_must_have_every_input(self, example: Any, message: str) -> None:
        with pytest.raises(PipelineError, match=message):
            ranking()[0].predict(example)


class TestRanking:
    def test_any_number_of_candidates_is_ranked(self) -> None:
        made, _ = ranking()
        for candidates in (["y"], ["y", "x"], ["y", "x", "z", "x"]):
            ranked = made.predict({"user": "ann", "candidates": candidates})["label"]
            assert ranked["ids"] == sorted(candidates)
            assert ranked["scores"] == sorted(ranked["scores"], reverse=True)
        both = made.predict_batch([{"user": "7", "candidates": ["x", "y"]}, {"user": "ann", "candidates": ["z"]}])
        assert [one["label"]["ids"] for one in both] == [["y", "x"], ["z"]]

    def test_without_candidates_the_whole_catalogue_is_ranked(self) -> None:
        made, _ = ranking()
        assert made.predict({"user": "7"})["label"]["ids"] == ["z", "y", "x"]
        assert made.recommend({"user": "7"}, 1) == [("z", 2.0)]
        assert made.recommend({"user": "7"}, 5, exclude=["z", "other"]) == [("y", 1.0), ("x", 0.0)]

    def test_a_long_list_is_scored_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made, session = ranking()
        expected = made.predict({"user": "ann"})
        monkeypatch.setattr(module, "LARGEST_LIST", 2)
        session.calls = 0
        assert made.predict({"user": "ann"}) == expected
        assert session.calls == 2

    def test_an_id_before_the_candidates_is_ranked_with_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = several()
        found = made.predict({"user": "ann", "item": "y", "candidates": ["x", "z"]})
        assert found["item"] == {"ids": ["x", "y", "z"], "scores": [0.0, -1.0, -2.0]}
        assert found["label"]["class"] == "yes"
        # It is listed once, also where it is among the candidates.
        assert made.predict({"user": "ann", "item": "y"})["item"]["ids"] == ["x", "y", "z"]
        assert made.recommend({"user": "7"}, 2) == [("z", 2.0), ("y", 1.0)]
        monkeypatch.setattr(module, "LARGEST_LIST", 2)
        assert made.predict({"user": "ann", "item": "y", "candidates": ["x", "z", "x"]})["item"]["ids"] == list("xxyz")
        with pytest.raises(PipelineError, match="lacks item"):
            made.predict({"user": "ann"})

    def test_a_model_of_lists_of_one_length_says_so(self) -> None:
        made, _ = ranking(limit=2)
        assert made.predict({"user": "7", "candidates": ["x", "y"]})["label"]["ids"] == ["y", "x"]
        with pytest.raises(PipelineError, match="exported for lists of 2 ids, not of 3"):
            made.predict({"user": "7"})

    def test_a_model_that_ranks_nothing_recommends_nothing(self) -> None:
        with pytest.raises(PipelineError, match="ranks nothing"):
            make([USER], Session(lambda x: x, ("b",))).recommend({"user": "7"})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network of two heads whose raw input are images of 8 x 8 pixels; not to be changed."""
    data = splits()[0]
    made = deployable("rows", train("rows", data, epochs=1), data, weight_bits=8, activation_bits=8)
    image = ImageInput((1, 8, 8), resize=False, mean=(0.0,), std=(1.0,), white=16, scale=16)
    folder = tmp_path_factory.mktemp("pipeline") / "t1c2"
    vars(made).update(preprocessing=(image,))
    return write_artifact(folder, made, {})


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = splits()[1].inputs[0][0, 0].numpy() * 16
    Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


# A process in which nothing can be imported but the standard library and what the file says that it needs.
ISOLATED = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime", "pipeline"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_command_needs_neither_autocompress_nor_torch(folder: Path, picture: Path) -> None:
    expected = load(folder).predict(picture)
    command = [sys.executable, "-I", "-c", ISOLATED, str(folder / "pipeline.py"), "--top", "2", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert {head: printed[head]["class"] for head in printed} == {head: expected[head]["class"] for head in expected}
    assert len(printed["label"]["probabilities"]) == 2
    refused = subprocess.run([*command, "absent.png"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: example 0, image: the image cannot be read")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*read_files(folder), "manifest.json"])


@pytest.mark.parametrize(
    ("entries", "form"),
    [
        ([{"kind": "series", "name": "series"}], "a list of numbers or a .npy or .csv file"),
        ([{"kind": "numbers", "name": "n", "columns": ["age", "height", "weight"]}], '{"age": ..., "height": ...}'),
        ([{"kind": "id", "name": "user"}, {"kind": "id", "name": "item"}], '{"user": ..., "item": ...}'),
    ],
)
def test_an_argument_that_is_no_json_is_refused_with_the_form_of_the_inputs(
    entries: list[dict[str, Any]], form: str
) -> None:
    pipeline = SimpleNamespace(record={"inputs": entries})
    with pytest.raises(PipelineError, match=re.escape(f"'[1,2' is no JSON; give {form}")):
        module._parse_argument(pipeline, "[1,2")  # type: ignore[arg-type]


@pytest.mark.slow
def test_lines_of_standard_input_are_answered_one_by_one(
    folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "load", lambda: load(folder))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{picture}\n{picture}\n"))
    assert main([]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == json.loads(second)
    assert set(json.loads(first)) == {"label", "even"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preprocess.json", "model.onnx", "manifest.json"])
def test_a_file_that_is_missing_or_was_changed_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-2] + b"}}")
    with pytest.raises(PipelineError, match=rf"{name} was changed"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(PipelineError, match=rf"is no artifact: .*{name} cannot be read"):
        load(folder)


def sign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change preprocess.json as someone who can also write the manifest would."""
    files = read_files(folder)
    record = json.loads(files["preprocess.json"])
    change(record)
    write_files(folder, files | {"preprocess.json": json.dumps(record).encode()}, lambda _: None)


@pytest.mark.slow
def test_a_specification_of_another_export_is_refused(folder: Path) -> None:
    sign(folder, lambda record: record["inputs"][0].update(mean=[0.5]))
    with pytest.raises(PipelineError, match=r"exported with another preprocess\.json"):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format=2), "has the format 2, this pipeline.py reads 1"),
        (lambda record: record["inputs"][0].update(kind="smell"), "the unknown kind 'smell'"),
        (lambda record: record.pop("session"), "preprocess.json was changed"),
        (lambda record: record.update(session=""), "preprocess.json was changed"),
        (lambda record: record.update(session={"session.disable_quant_qdq": "2"}), "options of a session"),
        (lambda record: record.update(session={"session.disable_quant_qdq": [1]}), "preprocess.json was changed"),
        (lambda record: record.update(inputs=3), "preprocess.json was changed"),
        (lambda record: record.update(session={"session.save_model": "x"}), "options of a session"),
    ],
)
def test_a_specification_of_another_version_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    sign(folder, change)
    with pytest.raises(PipelineError, match=message):
        load(folder)


@pytest.mark.slow
def test_a_read_only_folder_is_served(folder: Path, picture: Path) -> None:
    expected = load(folder).predict(picture)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert load(folder).predict(picture) == expected
    finally:
        folder.chmod(0o755)
