"""Duplicates across the five splits: examples of validation and test that equal an example of an earlier split.

A model that has seen an example scores too well on it. Duplicates are removed from the later split, in the order
train, calibration, search_val, select_val, test, so that the training data stays complete. Equal are

- inputs, with real numbers rounded to 16 bits, or 12 in long examples: a copy printed with other digits counts;
- contents by the digest of the task: texts without regard to case, white space and Unicode form, or pairs of user and
  item;
- images of at least 32 x 32 pixels that look the same, see :mod:`autocompress.core.similar_images`.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.core.formatting import format_plural
from autocompress.core.similar_images import LEAST_SIDE, MOST_COMPARISONS, ImageSketches
from autocompress.core.task import Split, Splits, bounded_batch
from autocompress.errors import UsageError

_BATCH = 4096
# Examples of at least so many numbers are long: they differ in some number, even if each is rounded more.
_LONG = 16
# Bits of the mantissa of single precision that rounding removes, of 23.
_ROUNDED_BITS, _LONG_ROUNDED_BITS = 7, 11
# Splits that scores are measured on.
SCORED = ("search_val", "select_val", "test")


@dataclass(frozen=True)
class DistinctSplits:
    """Five splits without duplicates across them.

    Attributes:
        splits: The splits.
        removed: Split name to the number of examples that were removed from it.
        sizes: Split name to its number of examples before.
        similar: Split name to the number of the removed examples that are images which look the same as an earlier one.
        is_partial: Whether there are too many images to compare all that look the same.
        rows: Name of each split with removed examples to the row numbers of those that stay.
    """

    splits: Splits
    removed: Mapping[str, int]
    sizes: Mapping[str, int]
    similar: Mapping[str, int] = field(default_factory=dict)
    is_partial: bool = False
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences on the removed examples; empty if there are none."""
        equal = {name: count - self.similar.get(name, 0) for name, count in self.removed.items()}
        sentences = [
            f"{self._format_counts(counts)} {reason} of an earlier split, such as train, and were removed"
            for counts, reason in (
                (equal, "had the same input as an example"),
                (self.similar, "look the same as an image"),
            )
            if any(counts.values())
        ]
        if self.is_partial:
            sentences.append("images that look the same were not sought, because there are too many; equal ones were")
        return tuple(sentences)

    def _format_counts(self, counts: Mapping[str, int]) -> str:
        return ", ".join(
            f"{count:,} of {format_plural(self.sizes[name], 'example')} of {name}"
            for name, count in counts.items()
            if count
        )


def remove_duplicates(splits: Splits, *, compares_inputs: bool = True) -> DistinctSplits:
    """Return the splits without the examples that equal, or look the same as, an example in an earlier split.

    Equal examples within one split stay: they are no leak.

    Args:
        splits: The five splits.
        compares_inputs: Whether equal inputs are duplicates; otherwise only the digests of contents are compared.

    Raises:
        UsageError: All examples of a split are duplicates.

    Example:
        >>> def make_split(*values: float) -> Split:
        ...     return Split((torch.tensor(values),), {"label": torch.zeros(len(values), dtype=torch.int64)})
        >>> splits = Splits(make_split(1, 2, 3), make_split(4), make_split(5, 2), make_split(6), make_split(5, 7, 1))
        >>> distinct = remove_duplicates(splits)
        >>> distinct.removed, len(distinct.splits.test)
        ({'search_val': 1, 'test': 2}, 1)
    """
    is_similar, is_partial = _find_similar_images(splits) if compares_inputs else ({}, False)
    earlier: set[bytes] = set()
    parts: dict[str, Split] = {}
    rows: dict[str, NDArray[np.int64]] = {}
    similar: dict[str, int] = {}
    for name, split in splits.items():
        digests = _list_digests(split, compares_inputs)
        # Digests of inputs and of contents share one set, so either kind of equality removes an example.
        is_equal = np.array([any(digest in earlier for digest in entry) for entry in digests], np.bool_)
        earlier.update(digest for entry in digests for digest in entry)
        is_removed = is_equal | is_similar.get(name, np.zeros(len(split), np.bool_))
        # A split without duplicates stays the same object, with the same fingerprint.
        parts[name] = split
        if is_removed.any():
            rows[name] = np.flatnonzero(~is_removed)
            parts[name] = split.select(torch.from_numpy(rows[name]))
        if (is_removed & ~is_equal).any():
            similar[name] = int((is_removed & ~is_equal).sum())
        if len(split) and is_removed.all():
            raise UsageError(
                f"all {len(split):,} examples of {name} have the same inputs as examples of an earlier split, such "
                "as train; give other data, for example another test file"
            )
    sizes = {name: len(split) for name, split in splits.items()}
    removed = {name: sizes[name] - len(left) for name, left in rows.items()}
    return DistinctSplits(Splits(**parts), removed, sizes, similar, is_partial, rows)


def _list_digests(split: Split, compares_inputs: bool) -> list[tuple[bytes, ...]]:
    """Return the digests of each example, of which any may be shared with a duplicate, ``[N]``."""
    columns: list[list[bytes]] = [hash_examples(split)] if compares_inputs else []
    if split.keys.contents is not None:
        # Eight bytes, so that none equals a digest of inputs.
        columns.append([value.to_bytes(8, "little", signed=True) for value in split.keys.contents.tolist()])
    return list(zip(*columns, strict=True)) if columns else [()] * len(split)


def hash_examples(split: Split) -> list[bytes]:
    """Return a digest of the inputs of each example, ``[N]``: equal inputs have equal digests."""
    digests: list[bytes] = []
    for batch in split.batches(bounded_batch(split, _BATCH)):
        # Each example is one row of bytes, whatever the types of its inputs are.
        columns = [_round(tensor).reshape(len(batch), -1).view(torch.uint8).numpy() for tensor in batch.inputs]
        digests += [
            hashlib.blake2b(b"".join(column[index].tobytes() for column in columns), digest_size=12).digest()
            for index in range(len(batch))
        ]
    return digests


def _round(tensor: Tensor) -> Tensor:
    """Return real numbers rounded, and other tensors as they are; both contiguous."""
    if not tensor.is_floating_point():
        return tensor.contiguous()
    # Adding 0 turns -0 into 0, which has other bits.
    bits = (tensor.float() + 0.0).contiguous().view(torch.int32)
    removed = _LONG_ROUNDED_BITS if tensor[:1].numel() >= _LONG else _ROUNDED_BITS
    return (bits + (1 << (removed - 1))) & ~((1 << removed) - 1)


def _find_similar_images(splits: Splits) -> tuple[dict[str, NDArray[np.bool_]], bool]:
    """Return whether each image of the scored splits looks the same as one of an earlier split, by split.

    The second value tells whether there are too many images for it. Inputs that are no images have no entries.
    """
    first = splits.train.take(slice(0, 1)).inputs
    if len(first) != 1 or first[0].dim() != 4 or not first[0].is_floating_point():
        return {}, False
    if first[0].shape[1] not in (1, 3) or min(first[0].shape[2:]) < LEAST_SIDE:
        return {}, False
    # Counted first: the comparisons grow with the square of the number of images.
    comparisons, before = 0, 0
    for name, split in splits.items():
        comparisons += before * len(split) * (name in SCORED)
        before += len(split)
    if comparisons > MOST_COMPARISONS:
        return {}, True
    earlier: ImageSketches | None = None
    result: dict[str, NDArray[np.bool_]] = {}
    for name, split in splits.items():
        sketches = [ImageSketches(batch.inputs[0]) for batch in split.batches(bounded_batch(split, _BATCH // 8))]
        if not sketches:
            continue
        own = sketches[0]
        for more in sketches[1:]:
            own.append(more)
        # Nothing is scored on the calibration split, so its images may look like those of train.
        if name in SCORED and earlier is not None:
            result[name] = own.find_similar(earlier)
        if earlier is None:
            earlier = own
        else:
            earlier.append(own)
    return result, False


def normalize_text(text: str) -> str:
    """Return a text without differences of case, white space and Unicode form (NFKC).

    Example:
        >>> normalize_text("  The ﬁlm  WAS good ")
        'the film was good'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest_texts(texts: Iterable[str]) -> Tensor:
    """Return a digest of each normalized text, int64 ``[N]``."""
    return digest_contents(normalize_text(text) for text in texts)


def digest_contents(contents: Iterable[str]) -> Tensor:
    """Return a digest of each content, int64 ``[N]``: equal contents have equal digests."""
    return torch.tensor(
        [
            int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little", signed=True)
            for content in contents
        ],
        dtype=torch.int64,
    )
