import numpy as np
import pytest
import torch

from autocompress.core.heads import IGNORED, Tags
from autocompress.errors import TrialError
from autocompress.measure import Subject, measure
from autocompress.measure.entity_metrics import find_entities

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BIOES = ["O", "B-X", "I-X", "E-X", "S-X"]


def entities(tags: str, names: list[str] = NAMES) -> list[tuple[int, int, int]]:
    indices = np.array([names.index(tag) for tag in tags.split()])
    return [tuple(entity) for entity in find_entities(indices, np.zeros(len(indices), np.int64), names).tolist()]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [(0, 1, 1), (3, 3, 0)]),
        ("B-PER B-PER", [(0, 0, 1), (1, 1, 1)]),
        # The CoNLL evaluation begins an entity where its beginning is missing.
        ("I-PER I-PER O", [(0, 1, 1)]),
        ("B-PER I-LOC", [(0, 0, 1), (1, 1, 0)]),
    ],
)
def test_entities_of_iob(tags: str, expected: list[tuple[int, int, int]]) -> None:
    assert entities(tags) == expected


def test_entities_of_bioes() -> None:
    assert entities("B-X I-X E-X S-X O E-X", BIOES) == [(0, 2, 0), (3, 3, 0), (5, 5, 0)]


def test_an_entity_ends_with_its_text() -> None:
    found = find_entities(np.array([1, 2, 2]), np.array([0, 0, 1]), NAMES)
    assert found.tolist() == [[0, 1, 1], [2, 2, 1]]


def subject(predicted: list[list[int]], true: list[list[int]], labels: list[str] = NAMES) -> Subject:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(labels)).float()
    heads = {"tags": Tags(len(labels))}
    return Subject({"tags": logits}, {"tags": torch.tensor(true)}, heads=heads, labels={"tags": labels})


def test_f1_by_hand() -> None:
    """Of two predicted and three true entities one is right: 2 * 1 / 5."""
    score = measure(subject([[1, 2, 0, 3, 0]], [[1, 2, 0, 3, 4]]), ["entity_f1"])["entity_f1"]
    assert score == pytest.approx(2 * 1 / 4)
    score = measure(subject([[1, 2, 0, 3, 0, 0]], [[1, 2, 0, 3, 4, 1]]), ["entity_f1"])["entity_f1"]
    assert score == pytest.approx(2 * 1 / 5)


def test_padding_is_no_token() -> None:
    """The tokens of padding neither end an entity nor begin one."""
    score = measure(subject([[1, 4, 2]], [[1, IGNORED, 2]]), ["entity_f1"])["entity_f1"]
    assert score == 1.0


def test_accuracy_and_the_mean_of_several_heads() -> None:
    both = subject([[1, 2, 0]], [[1, 0, IGNORED]])
    outputs = {**both.logits, "label": torch.eye(2)}
    targets = {**both.targets, "label": torch.tensor([0, 1])}
    several = Subject(outputs, targets, outputs, heads=both.heads, labels=both.labels)
    scores = measure(several, ["accuracy", "entity_f1", "mean_score", "retention"])
    assert scores["accuracy"] == (0.5 + 1) / 2
    assert scores["entity_f1"] == 0.0
    assert scores["mean_score"] == (0.0 + 1) / 2


def test_tags_that_are_no_entities_are_an_error() -> None:
    with pytest.raises(TrialError, match="'NOUN' is no entity tag"):
        measure(subject([[0, 1]], [[0, 1]], ["NOUN", "VERB"]), ["entity_f1"])
