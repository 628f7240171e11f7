import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from autocompress.baselines.linear import LinearClassifier, count_ngrams, fit_linear
from autocompress.core.heads import IGNORED, MultiLabel, Tags
from autocompress.core.task import InputSpec, Split
from tests.contracts.test_baselines import Given


def test_it_is_the_logistic_regression_of_scikit_learn_on_small_data() -> None:
    images, labels = load_digits(return_X_y=True)
    ours = LinearClassifier(10).fit(images[:300], labels[:300]).predict(images[300:400])
    theirs = LogisticRegression(max_iter=100).fit(images[:300], labels[:300]).predict_log_proba(images[300:400])
    assert np.allclose(ours.numpy(), theirs, atol=1e-4)


def test_a_class_without_an_example_is_the_least_probable() -> None:
    logits = LinearClassifier(3).fit(np.eye(4), np.array([0, 2, 0, IGNORED])).predict(np.eye(4))
    assert logits.argmin(1).tolist() == [1, 1, 1, 1]


def test_one_class_alone_is_predicted_by_its_share() -> None:
    logits = LinearClassifier(2).fit(np.eye(3), np.array([1, 1, 1])).predict(np.eye(3))
    assert torch.allclose(logits.softmax(1)[0], torch.tensor([0.2, 0.8]))


def test_ngrams_are_counted_as_scikit_learn_counts_those_of_characters() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(1, 6, (20, 12))
    ids[3, 7:] = 0
    texts = ["".join(chr(96 + token) for token in row if token) for row in ids]
    theirs = CountVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform(texts)
    ours = count_ngrams(ids, 3, missing=0)
    # Buckets have no names, so the counts themselves are compared; 2^18 buckets have no collision here.
    assert sorted(ours.data.tolist()) == sorted(theirs.data.tolist())
    assert ours.sum(1).tolist() == theirs.sum(1).tolist()


def test_it_learns_an_order_of_tokens_that_their_counts_do_not_tell() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 40, (200, 9), generator=generator)
    label = torch.arange(200) % 2
    tokens[:, 4:6] = torch.where(label[:, None] == 1, torch.tensor([1, 2]), torch.tensor([2, 1]))
    task = Given((InputSpec((9,), vocabulary=40, missing=0),), {"label": 2})
    split = Split((tokens,), {"label": label})
    predict = fit_linear(task, split.take(slice(0, 150)))
    assert predict is not None
    test = split.take(slice(150, None))
    assert float((predict(test)["label"].argmax(1) == test.targets["label"]).double().mean()) == 1.0


def test_a_tag_is_learned_from_the_neighbours_of_a_token() -> None:
    tokens = torch.randint(1, 8, (150, 12), generator=torch.Generator().manual_seed(0))
    # The tag of a token is whether the next one is a 3.
    tags = torch.cat([(tokens[:, 1:] == 3).long(), torch.full((150, 1), IGNORED)], 1)
    task = Given((InputSpec((12,), vocabulary=8, missing=0),), {"tags": Tags(2, "accuracy")})
    split = Split((tokens,), {"tags": tags})
    predict = fit_linear(task, split.take(slice(0, 100)))
    assert predict is not None
    test = split.take(slice(100, None))
    known = test.targets["tags"] != IGNORED
    assert bool((predict(test)["tags"].argmax(-1) == test.targets["tags"])[known].all())


@pytest.mark.parametrize("label", [0, 1])
def test_each_label_of_several_is_learned_by_itself(label: int) -> None:
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.stack([points[:, 0] > 0, points[:, 1] < 0], 1).float()
    task = Given((InputSpec((4,)),), {"labels": MultiLabel(2)})
    split = Split((points,), {"labels": targets})
    predict = fit_linear(task, split.take(slice(0, 200)))
    assert predict is not None
    test = split.take(slice(200, None))
    ours = predict(test)["labels"][:, label] > 0
    assert float((ours == test.targets["labels"][:, label].bool()).double().mean()) > 0.95
