"""Text classifiers of Hugging Face folders: bad folders, labels, tokens, and raw texts through an exported pipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autocompress
from autocompress.core.config import CompressionConfig, Part
from autocompress.errors import UsageError
from autocompress.tasks.pretrained import PretrainedClassifier, from_pretrained

# The libraries of Hugging Face warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = {"good": ("lovely", "superb", "fine", "great"), "bad": ("awful", "boring", "dreadful", "late")}
THINGS = ("soup", "film", "train", "hotel", "concert", "book")


def make_texts(count: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(0)
    labels = [("good", "bad")[row % 2] for row in range(count)]
    texts = [
        f"the {random.choice(THINGS)} number {row} was {random.choice(WORDS[label])}"
        for row, label in enumerate(labels)
    ]
    return texts, labels


def write_folder(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_json", ".json").replace("_safetensors", ".safetensors").replace("_bin", ".bin")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no folder .*nothing is downloaded"),
        ({}, r"config\.json cannot be read"),
        ({"config_json": "{"}, r"config\.json is no JSON"),
        ({"config_json": "[]"}, r"config\.json is no JSON object"),
        ({"config_json": {"architectures": ["BertForMaskedLM"]}}, "the model is BertForMaskedLM; .* text classifiers"),
        ({"config_json": {"auto_map": {}, **CLASSIFIER}}, "code of its own, which is not run"),
        ({"config_json": {"_attn_implementation": "a/b", **CLASSIFIER}}, "_attn_implementation names code of another"),
        ({"config_json": {"num_hidden_layers": 10**9, **CLASSIFIER}}, "num_hidden_layers is 10{9}, more than 1,000"),
        ({"config_json": "[" * 100_000}, r"config\.json is no JSON"),
        ({"config_json": CLASSIFIER}, "has no weights: model.safetensors is missing"),
        ({"config_json": CLASSIFIER, "pytorch_model_bin": ""}, "a pickled file that may run code"),
        ({"config_json": CLASSIFIER, "model_safetensors": ""}, r"has no tokenizer\.json"),
    ],
)
def test_a_folder_that_is_no_classifier_is_refused(tmp_path: Path, files: dict[str, Any] | None, message: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        write_folder(folder, **files)
    with pytest.raises(UsageError, match=message):
        from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BERT and a tokenizer that was trained on the texts."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("bert")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(make_texts(60)[0], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 24, "pad_token": "[PAD]"}))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        id2label={0: "good", 1: "bad"},
        label2id={"good": 0, "bad": 1},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def classifier(folder: Path) -> PretrainedClassifier:
    return from_pretrained(folder)


def test_the_folder_says_classes_length_and_padding(classifier: PretrainedClassifier) -> None:
    assert (classifier.classes, classifier.kind) == (("good", "bad"), "classes")
    assert (classifier.longest, classifier.padding, classifier.side) == (24, 0, "right")


def test_texts_become_tokens_and_a_mask_and_names_become_classes(classifier: PretrainedClassifier) -> None:
    texts, labels = make_texts(40)
    data = classifier.encode((texts, labels), length=6)
    assert data.names == ("input_ids", "attention_mask")
    assert [(spec.shape, spec.missing) for spec in data.inputs] == [((6,), 0), ((6,), None)]
    assert data.inputs[0].vocabulary == classifier.vocabulary
    split = data.splits(0)
    assert len(data.list_test_examples(0)) == len(split.test)
    ids, mask = split.train.inputs
    assert bool(((ids != 0) == (mask == 1)).all())
    assert "100% of the texts are longer than 6 tokens" in " ".join(data.notices)
    held_out = classifier.encode((texts, labels), val=(texts[:20], labels[:20]), length=6).splits(0)
    assert len(held_out.search_val) + len(held_out.select_val) <= 20
    with pytest.raises(UsageError, match=r"length is 40; .* takes texts of 1 to 24 tokens"):
        classifier.encode((texts, labels), length=40)


def test_a_label_or_a_text_that_does_not_fit_is_named(classifier: PretrainedClassifier) -> None:
    texts, labels = make_texts(40)
    with pytest.raises(UsageError, match=r"example 3 has the class 'god', which .*; did you mean 'good'"):
        classifier.encode((texts, [*labels[:3], "god", *labels[4:]]))
    with pytest.raises(UsageError, match=r"example 0 has the class 2, which"):
        classifier.encode((texts, [2] * 40))
    with pytest.raises(UsageError, match=r"example 1 is an empty text"):
        classifier.encode((["a", " "], [0, 1]))
    with pytest.raises(UsageError, match=r"give \(texts, labels\), or a \.csv"):
        classifier.encode(7)


PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
SEARCH = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("changes", [{"normalizer": PANIC}, {"pre_tokenizer": SEARCH}, {"model": {"type": "Unigram"}}])
def test_a_tokenizer_that_fails_is_refused_whatever_it_raises(
    folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    record = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**record, **changes}))
    with pytest.raises(UsageError, match=r"tokenizer\.json is no tokenizer"):
        from_pretrained(copy)


def test_weights_that_lack_the_classifier_are_refused(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    model.bert.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UsageError, match=r"the weights lack classifier.bias and 1 more, which would be random"):
        from_pretrained(tmp_path)


@pytest.mark.slow
def test_an_exported_pipeline_holds_the_tokenizer_and_takes_texts(
    classifier: PretrainedClassifier, tmp_path: Path
) -> None:
    from autocompress.export import pipeline
    from autocompress.export.artifact import Deployable, write_artifact

    file = tmp_path / "reviews.csv"
    texts, labels = make_texts(60)
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True)))
    task = autocompress.bring_model(classifier.model, classifier.encode(file))
    model = task.build(Part("from_teacher"))
    config = CompressionConfig(Part("from_teacher"), (Part("none"),), Part("adamw"))
    deployable = Deployable(
        config,
        task.name,
        task.identity_options,
        task.labels,
        task.heads,
        task.inputs,
        task.example(),
        model,
        model,
        None,
        None,
        (),
        task.specify_preprocessing(0),
    )
    artifact = write_artifact(tmp_path / "artifact", deployable, {})
    loaded = pipeline.load(artifact)
    test = task.list_test_examples(0)
    with torch.no_grad():
        expected = model(*task.splits(0).test.inputs)
    assert np.allclose(loaded.compute_outputs(test)["label"], expected.numpy(), atol=1e-5)
    assert set(loaded.predict(test[0])["label"]["probabilities"]) == {"good", "bad"}
    with pytest.raises(pipeline.PipelineError, match=r"the text is empty"):
        loaded.predict(" ")
    (artifact / "tokenizer.json").write_text("{}")
    with pytest.raises(pipeline.PipelineError, match=r"tokenizer\.json was changed"):
        pipeline.load(artifact)
