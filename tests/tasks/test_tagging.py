from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from autocompress.core.config import Part
from autocompress.core.heads import IGNORED
from autocompress.errors import UsageError
from autocompress.measure import Subject, measure
from autocompress.tasks.tagging import TAG_HEAD, Entities, Tagging, locale_sentences, place_tags, read_conll
from autocompress.tasks.text_encoding import fit_encoding
from autocompress.training.fit import FitRequest, fit
from autocompress.training.trainer import predict

CONLL = """-DOCSTART- -X- O

Ada NNP B-PER
visits VB O
New NNP B-LOC
Delhi NNP I-LOC

Ben NNP B-PER
leaves VB O
"""


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reviews(path: Path) -> Path:
    """60 texts with tags, a topic and a sentiment."""
    lines = ["text,tags,topic,sentiment"]
    for number in range(60):
        place, topic = ("Rome", "Oslo")[number % 2], ("food", "hotel", "trip")[number % 3]
        mood = ("good", "bad")[number // 2 % 2]
        lines.append(f"the {topic} in {place} was {mood} {number},O O O B-LOC O O O,{topic},{mood}")
    return write(path, lines)


class TestReadConll:
    def test_sentences_tokens_and_tags(self, tmp_path: Path) -> None:
        path = tmp_path / "a.conll"
        path.write_text(CONLL)
        texts = read_conll(path, 0, -1)
        assert texts.texts == ("Ada visits New Delhi", "Ben leaves")
        assert texts.labels[TAG_HEAD] == ("B-PER O B-LOC I-LOC", "B-PER O")
        assert texts.format_location(1).endswith("a.conll:8")

    def test_conllu_leaves_out_ranges_and_comments(self, tmp_path: Path) -> None:
        rows = ["# text = vámonos", "1-2\tvámonos\t_\t_", "1\tvamos\tir\tVERB", "2\tnos\tnosotros\tPRON", ""]
        path = write(tmp_path / "a.conllu", rows)
        texts = read_conll(path, 1, 3)
        assert (texts.texts, texts.labels[TAG_HEAD]) == (("vamos nos",), ("VERB PRON",))

    def test_a_line_with_too_few_columns_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", ["Ada B-PER", "visits"])
        with pytest.raises(UsageError, match=r"a.conll:1: 2 columns, but .* column 3"):
            read_conll(path, 0, 3)
        with pytest.raises(UsageError, match=r"a.conll:2: 1 columns"):
            read_conll(path, 0, -1)

    def test_an_empty_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="contains no sentence"):
            read_conll(write(tmp_path / "a.conll", [""]), 0, -1)


class TestPlaceTags:
    def test_a_tag_stands_at_the_first_character_of_its_word(self) -> None:
        encoding = fit_encoding("characters", ["Ada in Rome"], 9)
        targets = place_tags(encoding, ["Ada in Rome"], [["B-PER", "O", "B-LOC"]], ["O", "B-LOC", "B-PER"])
        assert targets.tolist() == [[2, *[IGNORED] * 3, 0, *[IGNORED] * 2, 1, IGNORED]]

    def test_a_word_beyond_the_end_has_no_tag(self) -> None:
        encoding = fit_encoding("tokens", ["a b c"], 4)
        assert place_tags(encoding, ["a b c d e"], [["X"] * 5], ["X"]).tolist() == [[0, 0, 0, 0]]


class TestTagging:
    def test_it_learns_entities_of_a_file(self, tmp_path: Path) -> None:
        task = Tagging(Tagging.write_sample(tmp_path))
        assert task.labels[TAG_HEAD] == ["O", "B-LOC", "B-PER", "I-LOC"]
        assert task.metrics[0] == "entity_f1"
        splits = task.splits(0)
        torch.manual_seed(0)
        model = task.build(Part.of("text_cnn", embedding=8, width=8, depth=1))
        fit(model, FitRequest(task, splits.train, Part.of("adamw", epochs=30, learning_rate=2e-2, batch_size=16)))
        subject = Subject(predict(model, task, splits.test), splits.test.targets, heads=task.heads, labels=task.labels)
        assert measure(subject, ["entity_f1"])["entity_f1"] > 0.9

    @pytest.mark.parametrize("student", [Part.of("text_cnn", width=4, stem_stride=4), Part.of("transformer", layers=1)])
    def test_tags_topic_and_sentiment_share_an_encoder(self, tmp_path: Path, student: Part) -> None:
        task = Tagging(reviews(tmp_path / "a.csv"), labels="topic, sentiment", encoding="tokens")
        assert {head: size.describe() for head, size in task.heads.items()} == {
            "tags": "2 tags for each token",
            "topic": "3 classes",
            "sentiment": "2 classes",
        }
        assert task.metrics[:2] == ("mean_score", "entity_f1")
        train = task.splits(0).train
        outputs = task.build(student)(*train.inputs)
        assert {head: list(values.shape[1:]) for head, values in outputs.items()} == {
            "tags": [7, 2],
            "topic": [3],
            "sentiment": [2],
        }
        assert task.loss(outputs, train.targets).isfinite()

    def test_tags_move_with_the_tokens_of_a_view(self, tmp_path: Path) -> None:
        task = Tagging(reviews(tmp_path / "a.csv"), encoding="tokens", views=2, drop=0.4)
        train = task.splits(0).train
        view = task.view(train, 1)
        place = {int(token) for token in train.inputs[0][train.targets[TAG_HEAD] == 1]}
        assert {int(token) for token in view.inputs[0][view.targets[TAG_HEAD] == 1]} == place
        assert (view.targets[TAG_HEAD] == IGNORED).sum() > 0

    def test_parts_of_speech_are_scored_by_token(self, tmp_path: Path) -> None:
        rows = [line for _ in range(60) for line in ("dogs NOUN", "bark VERB", "")]
        rows = [f"{line} " if not line else f"{index}{line}" for index, line in enumerate(rows)]
        assert Tagging(write(tmp_path / "a.conll", rows)).metrics[0] == "accuracy"

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (["a b c,O O"], r"a.csv:2: 2 tags in 'tags' for 3 tokens"),
            (["a b,O I-PER"], r"a.csv:2: 'b' has the tag 'I-PER' but no entity of that type begins"),
            (["a b,B-LOC I-PER"], r"'b' has the tag 'I-PER'.*'B-PER'"),
            (["a b,O O", "c d,O O"], "every token has the tag 'O'"),
        ],
    )
    def test_inconsistent_tags_are_errors(self, tmp_path: Path, rows: list[str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Tagging(write(tmp_path / "a.csv", ["text,tags", *rows]))

    def test_options_that_do_not_fit_are_errors(self, tmp_path: Path) -> None:
        path = Tagging.write_sample(tmp_path)
        with pytest.raises(UsageError, match="has no labels of texts"):
            Tagging(path, labels="topic")
        with pytest.raises(UsageError, match="give tokens, which have one tag each"):
            Tagging(path, encoding="words")
        with pytest.raises(UsageError, match="path is not set"):
            Tagging()
        with pytest.raises(UsageError, match="does not occur in the training file"):
            Tagging(path, test=write(tmp_path / "b.conll", ["Ada B-ORG", ""]))


@pytest.mark.slow
class TestEntities:
    def test_no_name_of_a_sentence_occurs_in_another(self) -> None:
        seen: set[tuple[str, str]] = set()
        for sentence in locale_sentences()[:1500]:
            names, name = [], ""
            for word, tag in zip((*sentence.words, ""), (*sentence.tags, "O"), strict=True):
                if not tag.startswith("I-"):
                    names += [name] if name else []
                    name = "" if tag == "O" or tag.endswith("-DATE") else word
                else:
                    name += f" {word}" if name else ""
            keys = {(sentence.language, one) for one in names}
            assert not keys & seen
            seen |= keys

    def test_both_heads_have_targets_in_every_split(self) -> None:
        task = Entities()
        for _, split in task.splits(0).items():
            assert len(split.targets["language"].unique()) == 30
            assert (split.targets[TAG_HEAD] != IGNORED).any(1).all()
            assert int(split.targets[TAG_HEAD].max()) < task.heads[TAG_HEAD]

    def test_the_splits_are_the_same_each_time(self) -> None:
        assert torch.equal(Entities().splits(1).test.inputs[0], Entities().splits(1).test.inputs[0])
