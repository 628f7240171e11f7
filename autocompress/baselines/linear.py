"""A linear model: on numbers, on pooled images and series, and on n-grams of texts."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from torch import Tensor
from torch.nn import functional as F

from autocompress.baselines.base import MAX_EXAMPLES, Predictor, draw_examples
from autocompress.core.heads import IGNORED, Head, as_head
from autocompress.core.registry import BASELINES
from autocompress.core.task import InputSpec, Split, Task

Matrix = Any  # A dense or a sparse matrix [N, F]; scipy has no types.

# Larger inputs are averaged over areas: the fit must take seconds.
_MAX_FEATURES = 768
# Up to so many multiplications in one pass over the data, the slower logistic regression is fitted.
_MAX_LOGISTIC_WORK = 3e7
_BUCKETS_BITS = 18
# A vocabulary of at most this size is that of characters or bytes, whose n-grams are longer than those of words.
_CHARACTERS = 1024
_CHARACTER_GRAMS, _WORD_GRAMS = 4, 2
# Sharpness of the softplus that makes probabilities positive.
_SHARPNESS = 16.0
# Smallest probability, and the logit of a class without an example.
_SMALLEST, _ABSENT = 1e-12, -30.0
# Neighbours on each side whose tokens describe a token.
_WINDOW = 3
_MAX_TOKENS = 200_000


@BASELINES.register("linear")
def fit_linear(task: Task, train: Split) -> Predictor | None:
    """A linear model of the input: of its numbers, or of the n-grams of a text."""
    names = [name for name, size in task.heads.items() if as_head(size).kind not in ("candidates", "dense", "tags")]
    tagged = [name for name, size in task.heads.items() if as_head(size).kind == "tags" and _is_text(task.inputs[0])]
    if not (names or tagged) or _has_only_ids(task.inputs):
        return None
    some = draw_examples(train, MAX_EXAMPLES)
    features = Features(task.inputs)
    matrix = features.fit(some) if names else None
    models = {name: _fit_head(as_head(task.heads[name]), matrix, some.targets[name]) for name in names}
    taggers = {name: _fit_tagger(as_head(task.heads[name]), train, name) for name in tagged}

    def predict(split: Split) -> dict[str, Tensor]:
        outputs = {name: tagger(split.inputs[0]) for name, tagger in taggers.items()}
        matrix = features.transform(split) if names else None
        return outputs | {name: model(matrix) for name, model in models.items()}

    return predict


def _has_only_ids(inputs: Sequence[InputSpec]) -> bool:
    """Return whether users and items are all that a model reads: the biases are their linear model."""
    return all(spec.vocabulary and len(spec.shape) == 0 for spec in inputs[:2]) and len(inputs) > 1


def _is_text(spec: InputSpec) -> bool:
    return spec.vocabulary > 0 and len(spec.shape) == 1


class Features:
    """The features of a linear model: standardized numbers, and weighted counts of n-grams.

    Args:
        inputs: The inputs of the task.
    """

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        self._inputs = inputs
        self._scales: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self._weights: dict[int, tuple[TfidfTransformer, NDArray[np.int64]]] = {}

    def fit(self, train: Split) -> Matrix:
        """Return the features of a training split, and keep its statistics for other splits."""
        for position, spec in enumerate(self._inputs):
            counts = _count_features(spec, train.inputs[position])
            if sparse.issparse(counts):
                columns = _select_repeated(counts)
                self._weights[position] = TfidfTransformer(sublinear_tf=True).fit(counts[:, columns]), columns
            else:
                deviation = counts.std(0)
                self._scales[position] = counts.mean(0), np.where(deviation > 0, deviation, 1.0)
        return self.transform(train)

    def transform(self, split: Split) -> Matrix:
        """Return the features of a split, ``[N, F]``."""
        parts = []
        for position, spec in enumerate(self._inputs):
            counts = _count_features(spec, split.inputs[position])
            if sparse.issparse(counts):
                transformer, columns = self._weights[position]
                parts.append(transformer.transform(counts[:, columns]))
            else:
                mean, deviation = self._scales[position]
                parts.append(((counts - mean) / deviation).astype(np.float32))
        if len(parts) == 1:
            return parts[0]
        is_sparse = any(sparse.issparse(part) for part in parts)
        return sparse.hstack(parts, format="csr") if is_sparse else np.hstack(parts)


def _count_features(spec: InputSpec, values: Tensor) -> Matrix:
    """Return the numbers of an input, or the counts of its n-grams, ``[N, F]``."""
    if not spec.vocabulary:
        return _pool(values[:].float()).numpy()
    ids = values[:].reshape(len(values), -1).numpy()
    if len(spec.shape) == 0:
        shape = (len(ids), spec.vocabulary)
        return sparse.csr_matrix((np.ones(len(ids), np.float32), (np.arange(len(ids)), ids[:, 0])), shape=shape)
    longest = _CHARACTER_GRAMS if spec.vocabulary <= _CHARACTERS else _WORD_GRAMS
    return count_ngrams(ids, longest, spec.missing)


def _pool(values: Tensor) -> Tensor:
    """Return the numbers of each example, ``[N, F]``; larger images and series are averaged over areas."""
    axes = values.dim() - 2
    size = int(np.prod(values.shape[1:]))
    if size > _MAX_FEATURES and axes in (1, 2):
        channels = values.shape[1]
        cells = max(1, int((_MAX_FEATURES / channels) ** (1 / axes)))
        shape = [min(cells, int(length)) for length in values.shape[2:]]
        # A missing axis of length 1 makes a series an image of one row.
        image = values[:, :, None] if axes == 1 else values
        values = F.adaptive_avg_pool2d(image, (1, shape[0]) if axes == 1 else (shape[0], shape[1]))
    return values.flatten(1) if values.dim() > 1 else values[:, None]


def count_ngrams(ids: NDArray[np.int64], longest: int, missing: int | None) -> Matrix:
    """Return how often each n-gram occurs in each text, hashed, ``[N, 2^18]``.

    Args:
        ids: Tokens, ``[N, T]``.
        longest: Largest number of tokens in an n-gram.
        missing: The token that stands for nothing; n-grams with it do not count.

    Example:
        >>> count_ngrams(np.array([[1, 2, 1, 0]]), longest=2, missing=0).sum()
        np.float32(5.0)
    """
    count, length = ids.shape
    rows, columns = [], []
    for size in range(1, min(longest, length) + 1):
        width = length - size + 1
        codes = np.zeros((count, width), np.uint64)
        is_present = np.ones((count, width), np.bool_)
        for offset in range(size):
            part = ids[:, offset : width + offset]
            # The multiplier of a 64-bit linear congruential generator (Knuth); sums wrap around.
            codes = codes * np.uint64(6364136223846793005) + part.astype(np.uint64) + np.uint64(size)
            if missing is not None:
                is_present &= part != missing
        columns.append(_hash_codes(codes)[is_present])
        rows.append(np.nonzero(is_present)[0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(count, 1 << _BUCKETS_BITS))
    matrix.sum_duplicates()
    return matrix


def _select_repeated(counts: Matrix) -> NDArray[np.int64]:
    """Return the columns that more than one row has: others cannot be told from chance, and would double the time."""
    columns: NDArray[np.int64] = np.flatnonzero(counts.getnnz(0) > 1)
    return columns


def _hash_codes(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return a bucket for each code, by Fibonacci hashing: the upper bits of a product with 2^64 / phi."""
    buckets = (codes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _BUCKETS_BITS)
    return buckets.astype(np.int64)


def _fit_head(head: Head, matrix: Matrix, targets: Tensor) -> Callable[[Matrix], Tensor]:
    """Return a function from features to the outputs of a head."""
    if not head.has_classes:
        return _fit_values(matrix, targets)
    if head.kind == "multilabel":
        return _fit_labels(matrix, targets)
    classifier = LinearClassifier(head.classes).fit(matrix, head.flatten_targets(targets).numpy())
    if head.kind == "binary":
        return lambda features: (logits := classifier.predict(features))[:, 1:] - logits[:, :1]
    return classifier.predict


def _fit_values(matrix: Matrix, targets: Tensor) -> Callable[[Matrix], Tensor]:
    values = targets.reshape(len(targets), -1).numpy().astype(np.float64)
    labelled = np.isfinite(values).all(1)
    model = Ridge(alpha=1.0).fit(matrix[labelled], values[labelled])
    return lambda features: torch.from_numpy(np.atleast_2d(model.predict(features).T).T).float()


def _fit_labels(matrix: Matrix, targets: Tensor) -> Callable[[Matrix], Tensor]:
    columns = targets.reshape(len(targets), -1)
    labels = Head(2)
    classifiers = []
    for column in range(columns.shape[1]):
        own = columns[:, column]
        # A missing label is NaN, or the class index of missing labels.
        labelled = torch.where(own.double().isnan(), IGNORED, own.double()).long()
        classifiers.append(LinearClassifier(labels.classes).fit(matrix, labelled.numpy()))

    def predict(features: Matrix) -> Tensor:
        logits = [classifier.predict(features) for classifier in classifiers]
        return torch.stack([one[:, 1] - one[:, 0] for one in logits], 1)

    return predict


@dataclass
class LinearClassifier:
    """Logistic regression, or ridge regression of the classes where the former would take long.

    Attributes:
        classes: Number of classes, also of those that no example has.
    """

    classes: int

    def fit(self, matrix: Matrix, labels: NDArray[np.int64]) -> "LinearClassifier":
        """Fit the examples that have a label, and return the model."""
        labelled = labels != IGNORED
        matrix, labels = matrix[labelled], labels[labelled]
        counts = np.bincount(labels, minlength=self.classes) + 1.0
        self._shares = np.log(counts / counts.sum())
        self._model = None
        present = np.unique(labels)
        if len(present) < 2:
            return self
        work = matrix.shape[0] * matrix.shape[1] * len(present)
        is_small = not sparse.issparse(matrix) and work <= _MAX_LOGISTIC_WORK
        # The default solver for sparse features, with few steps: an exact solution is no better on new examples.
        ridge = {"solver": "lsqr", "max_iter": 30, "tol": 1e-3} if sparse.issparse(matrix) else {}
        self._model = LogisticRegression(max_iter=100) if is_small else RidgeClassifier(alpha=1.0, **ridge)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(matrix, labels)
        return self

    def predict(self, matrix: Matrix) -> Tensor:
        """Return the logits of each class, ``[N, C]``; a class without an example has a small one."""
        logits = np.tile(self._shares, (matrix.shape[0], 1))
        if self._model is not None:
            logits += _ABSENT
            logits[:, self._model.classes_] = self._predict_present(matrix)
        return torch.from_numpy(logits).float()

    def _predict_present(self, matrix: Matrix) -> NDArray[np.float64]:
        """Return the logits of the classes that occur."""
        if isinstance(self._model, LogisticRegression):
            # Of a probability that rounds to zero, the logarithm would be infinite.
            return np.asarray(np.log(np.maximum(self._model.predict_proba(matrix), _SMALLEST)))
        decisions = self._model.decision_function(matrix)  # type: ignore[union-attr]
        decisions = np.stack([-decisions, decisions], 1) if decisions.ndim == 1 else decisions
        # Ridge regression of -1 and 1 is a linear model of the probability p = (1 + decision) / 2. It may be below 0:
        # the softplus makes it positive and keeps the order of the classes.
        shares: NDArray[np.float64] = np.logaddexp(0, _SHARPNESS * (1 + decisions) / 2) / _SHARPNESS
        return np.log(shares)


def _fit_tagger(head: Head, train: Split, name: str) -> Callable[[Tensor], Tensor]:
    """Return a function from tokens ``[N, T]`` to logits of tags ``[N, T, C]``."""
    texts = max(1, _MAX_TOKENS // max(1, train.inputs[0].shape[1]))
    some = draw_examples(train, texts)
    labels = head.flatten_targets(some.targets[name]).numpy()
    labelled = labels != IGNORED
    matrix = _describe_tokens(some.inputs[0])[labelled]
    columns = _select_repeated(matrix)
    classifier = LinearClassifier(head.classes).fit(matrix[:, columns], labels[labelled])

    def predict(tokens: Tensor) -> Tensor:
        blocks = [classifier.predict(_describe_tokens(block)[:, columns]) for block in tokens[:].split(texts)]
        return torch.cat(blocks).reshape(*tokens.shape, head.classes)

    return predict


def _describe_tokens(tokens: Tensor) -> Matrix:
    """Return features of every token, ``[N T, 2^18]``: its neighbours by distance, and the n-grams that begin at it."""
    ids = np.pad(tokens.numpy(), ((0, 0), (_WINDOW, 2 * _WINDOW)))
    length = tokens.shape[1]
    columns = []
    for offset in range(-_WINDOW, _WINDOW + 1):
        part = ids[:, _WINDOW + offset : _WINDOW + offset + length].astype(np.uint64)
        columns.append(_hash_codes(part * np.uint64(64) + np.uint64(offset + _WINDOW)))
    codes = np.zeros(tokens.shape, np.uint64)
    for offset in range(2 * _WINDOW):
        part = ids[:, _WINDOW + offset : _WINDOW + offset + length].astype(np.uint64)
        codes = codes * np.uint64(6364136223846793005) + part + np.uint64(offset + 100)
        columns.append(_hash_codes(codes))
    column = np.stack(columns, -1).reshape(-1)
    row = np.repeat(np.arange(tokens.numel()), len(columns))
    shape = (tokens.numel(), 1 << _BUCKETS_BITS)
    return sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=shape)
