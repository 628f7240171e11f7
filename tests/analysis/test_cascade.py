from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.analysis.cascade import (
    CASCADE,
    CascadePoint,
    CascadeSearch,
    CascadeTest,
    ScoredModel,
    SingleModel,
    combine_outputs,
    compute_confidence,
    describe_cascade,
    find_front,
    list_cascades,
    select_cascade,
)
from autocompress.errors import ArtifactError, UsageError

TARGETS = np.array([0, 1, 0, 1])
# The small model is right on the first two examples and unsure of the others; the large one is right on the last two.
SMALL = np.array([[4.0, 0.0], [0.0, 3.0], [0.0, 0.2], [0.1, 0.0]])
LARGE = np.array([[0.0, 9.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])


def score(outputs: dict[str, np.ndarray]) -> float:
    return float((outputs["label"].argmax(1) == TARGETS).mean())


def make_model(name: str, cost: float, logits: np.ndarray) -> ScoredModel:
    outputs = {"label": logits}
    return ScoredModel(name, cost, score(outputs), outputs, compute_confidence(outputs, {"label": "classes"}))


MODELS = [make_model("large", 10.0, LARGE), make_model("small", 1.0, SMALL)]
SINGLES = [SingleModel("small", 1.0, 0.5), SingleModel("large", 10.0, 0.5)]


def test_the_confidence_is_the_probability_of_the_prediction() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)) * 5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert compute_confidence({"a": logits}, {"a": "classes"}) == pytest.approx(shares.max(1))
    probability = 1 / (1 + np.exp(-logits))
    certainty = np.maximum(probability, 1 - probability)
    assert compute_confidence({"a": logits}, {"a": "multilabel"}) == pytest.approx(certainty.min(1))
    assert compute_confidence({"a": logits[:, :1]}, {"a": "binary"}) == pytest.approx(certainty[:, 0])
    both = {"a": logits, "b": logits[::-1]}
    assert compute_confidence(both, {"a": "classes", "b": "levels"}) == pytest.approx(
        np.minimum(shares.max(1), shares[::-1].max(1))
    )


def test_huge_logits_do_not_overflow() -> None:
    assert compute_confidence({"a": np.array([[1e4, -1e4]])}, {"a": "classes"}).tolist() == [1.0]
    assert compute_confidence({"a": np.array([[-1e4]])}, {"a": "binary"}).tolist() == [1.0]


def test_a_head_without_probabilities_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="the head 'price' of the kind regression has no confidence"):
        compute_confidence({"price": np.zeros((1, 1))}, {"price": "regression"})


def test_the_larger_model_answers_where_the_smaller_is_unsure() -> None:
    outputs, share = combine_outputs(MODELS[1], MODELS[0], threshold=0.9)
    assert share == 0.5
    assert outputs["label"].tolist() == [[4.0, 0.0], [0.0, 3.0], [9.0, 0.0], [0.0, 9.0]]


def test_outputs_of_more_axes_are_combined_by_example() -> None:
    small, large = (replace(model, outputs={"label": model.outputs["label"][:, None, :]}) for model in MODELS[::-1])
    assert combine_outputs(small, large, 0.9)[0]["label"].shape == (4, 1, 2)


def test_every_pair_has_points_with_expected_cost_and_score() -> None:
    points = list_cascades(MODELS, score, shares=(0.25, 0.5))
    assert [(point.small, point.large, point.share) for point in points] == [
        ("small", "large", 0.25),
        ("small", "large", 0.5),
    ]
    assert [(point.cost, point.score) for point in points] == [(3.5, 0.75), (6.0, 1.0)]


def test_the_cascade_with_the_largest_gain_at_equal_cost_is_recommended() -> None:
    points = list_cascades(MODELS, score, shares=(0.25, 0.5))
    assert select_cascade(points, SINGLES, True) == (points[1], SINGLES[0])
    middle = SingleModel("middle", 5.0, 0.9)
    assert select_cascade(points, [*SINGLES, middle], True) == (points[0], SINGLES[0])
    # A cascade that reaches the score of the recommended candidate comes first, with a smaller gain.
    assert select_cascade(points, [*SINGLES, middle], True, least=0.9) == (points[1], middle)
    assert select_cascade(points, [SingleModel("best", 1.0, 1.0), SINGLES[1]], True) is None
    assert select_cascade(points, [SingleModel("cheap", 1.0, 0.5)], True) is None


def test_smaller_scores_can_be_better() -> None:
    points = list_cascades(MODELS, lambda outputs: 1 - score(outputs), shares=(0.25, 0.5))
    assert select_cascade(points, SINGLES, False) == (points[1], SINGLES[0])
    assert find_front(points, SINGLES, False) == tuple(points)


def test_a_dominated_cascade_is_not_on_the_front() -> None:
    points = list_cascades(MODELS, score, shares=(0.25, 0.5))
    assert find_front(points, SINGLES, True) == tuple(points)
    assert find_front(points, [*SINGLES, SingleModel("middle", 3.0, 0.8)], True) == (points[1],)


POINT = CascadePoint("t1c0", "t2c4", 0.8, 0.25, 3.5e6, 0.97)
SEARCH = CascadeSearch("digits", "accuracy", "maximize", "effective_flops", (POINT,))
RECOMMENDED = replace(
    SEARCH,
    recommended=POINT,
    single=SingleModel("t3c1", 3e6, 0.95),
    test=CascadeTest(0.96, 0.945, 0.015, 0.005, 0.3, 3.6e6),
)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert CascadeSearch.read(tmp_path) is None
    for search in (SEARCH, RECOMMENDED):
        (tmp_path / CASCADE).write_text(search.to_json())
        assert CascadeSearch.read(tmp_path) == search
    (tmp_path / CASCADE).write_text('{"run": 1}')
    with pytest.raises(ArtifactError, match=r"cascade.json cannot be read .* autocompress cascade RUN"):
        CascadeSearch.read(tmp_path)


def test_the_description_has_both_splits_and_the_error() -> None:
    text = describe_cascade(RECOMMENDED)
    assert "t1c0 answers, and t2c4 where the confidence is below 0.8000" in text
    assert "best single candidate of at most that cost is t3c1 with 0.9500" in text
    assert "a difference of +0.0150 with a standard error of 0.0050 (3.0 standard errors)" in text
    assert describe_cascade(SEARCH).startswith("No cascade is better")
