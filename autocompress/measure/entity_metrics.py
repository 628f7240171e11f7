"""F1 of entities: spans of tokens with a type, written as one tag per token.

Tags are ``O`` outside of entities and otherwise a prefix and a type, such as ``B-PER``: B begins an entity, I continues
it, E ends it, and S (or U) is an entity of one token (L is E). An entity is right if its first token, its last token
and its type are. Tags without their beginning, which a model may predict, begin an entity as in the CoNLL evaluation
(Tjong Kim Sang and De Meulder 2003).
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.core.heads import IGNORED
from autocompress.errors import TrialError
from autocompress.measure.objectives import Subject, objective

_TAG = re.compile(r"([BIESLU])-(.+)")
OUTSIDE = "O"


def split_tag(tag: str) -> tuple[str, str]:
    """Return the prefix and the type of a tag.

    Raises:
        ValueError: It is not a tag of an entity scheme.

    Example:
        >>> split_tag("B-PER"), split_tag("O")
        (('B', 'PER'), ('O', ''))
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"'{tag}' is no entity tag; give O, or a prefix and a type such as B-PER")
    return match.group(1), match.group(2)


def find_entities(tags: NDArray[np.int64], rows: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
    """Return first token, last token and type of each entity, ``[E, 3]``.

    Args:
        tags: Index of the tag of each token, ``[M]``, text after text.
        rows: Index of the text of each token, ``[M]``.
        names: Name of each tag.

    Raises:
        ValueError: A name is not a tag of an entity scheme.

    Example:
        >>> find_entities(np.array([1, 2, 0, 1]), np.zeros(4, np.int64), ["O", "B-X", "I-X"]).tolist()
        [[0, 1, 0], [3, 3, 0]]
    """
    parts = [split_tag(name) for name in names]
    # Sorted, so that the numbers of the types do not depend on the order of the tags.
    types = sorted({kind for _, kind in parts if kind})
    type_of_tag = np.array([types.index(kind) if kind else -1 for _, kind in parts])
    begins = np.array([prefix in "BSU" for prefix, _ in parts])[tags]
    ends = np.array([prefix in "ESLU" for prefix, _ in parts])[tags]
    kinds = type_of_tag[tags]
    is_inside = kinds >= 0
    # A token continues the entity before it if that is of its type, in the same text, and has not ended.
    continues = np.zeros(len(tags), np.bool_)
    continues[1:] = is_inside[1:] & (kinds[1:] == kinds[:-1]) & (rows[1:] == rows[:-1]) & ~begins[1:] & ~ends[:-1]
    first = np.flatnonzero(is_inside & ~continues)
    last = np.flatnonzero(is_inside & ~np.append(continues[1:], False))
    return np.stack([first, last, kinds[first]], axis=1).astype(np.int64)


def f1_of_entities(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Return the harmonic mean of precision and recall of entities ``[E, 3]``; 1 if there are none in either.

    Example:
        >>> f1_of_entities(np.array([[0, 1, 0]]), np.array([[0, 1, 0], [3, 3, 0]])).__round__(4)
        0.6667
    """
    if not len(predicted) and not len(true):
        return 1.0
    right = len(set(map(tuple, predicted.tolist())) & set(map(tuple, true.tolist())))
    return 2 * right / (len(predicted) + len(true))


@objective("entity_f1", "maximize", "score", reads="entities")
def entity_f1(subject: Subject) -> float:
    """Harmonic mean of precision and recall of whole entities: first token, last token and type are right."""
    if not subject.logits:
        raise TrialError("a score needs logits, but the subject has none")
    names = [name for name in subject.logits if subject.head(name).kind == "tags"]
    if not names:
        raise TrialError(f"no head of {sorted(subject.logits)} has tags; use another score, such as accuracy")
    return sum(_score_head(subject, name) for name in names) / len(names)


def _score_head(subject: Subject, name: str) -> float:
    outputs, targets = subject.logits[name], subject.head_targets(name)
    rows, labels = subject.class_rows(name)
    if not bool(rows.isfinite().all()):
        return math.nan
    tags = subject.labels.get(name)
    if not tags:
        raise TrialError(f"entity_f1 needs the names of the tags of '{name}', such as B-PER")
    # Tokens without a label, padding or the end of a word, are no tokens of the evaluation.
    text_of_token = torch.nonzero((targets != IGNORED).reshape(len(outputs), -1))[:, 0].numpy()
    try:
        predicted, true = (find_entities(part.numpy(), text_of_token, tags) for part in (rows.argmax(1), labels))
    except ValueError as error:
        raise TrialError(f"entity_f1 of '{name}': {error}") from error
    return f1_of_entities(predicted, true)


def is_entity_scheme(names: Sequence[str]) -> bool:
    """Return whether all tags belong to an entity scheme, such as O, B-PER and I-PER.

    Example:
        >>> is_entity_scheme(["O", "B-PER", "I-PER"]), is_entity_scheme(["NOUN", "VERB"])
        (True, False)
    """
    return any(name != OUTSIDE for name in names) and all(name == OUTSIDE or _TAG.fullmatch(name) for name in names)
