"""Duplicates across the five splits: examples of validation and test that equal an example of an earlier split.

A model that has seen an example scores too well on it. Duplicates are removed from the later split, in the order
train, calibration, search_val, select_val, test, so that the training data stays complete.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from autocompress.core.formatting import format_plural
from autocompress.core.task import Split, Splits
from autocompress.errors import UsageError

_BATCH = 4096


@dataclass(frozen=True)
class DistinctSplits:
    """Five splits without duplicates across them.

    Attributes:
        splits: The splits.
        removed: Split name to the number of examples that were removed from it.
        sizes: Split name to its number of examples before.
    """

    splits: Splits
    removed: Mapping[str, int]
    sizes: Mapping[str, int]

    @property
    def notices(self) -> tuple[str, ...]:
        """One sentence on the removed examples; empty if there are none."""
        if not self.removed:
            return ()
        counts = ", ".join(
            f"{count:,} of {format_plural(self.sizes[name], 'example')} of {name}"
            for name, count in self.removed.items()
        )
        return (f"{counts} had the same input as an example of an earlier split, such as train, and were removed",)


def remove_duplicates(splits: Splits) -> DistinctSplits:
    """Return the splits without the examples whose inputs equal those of an example in an earlier split.

    Equal examples within one split stay: they are no leak.

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
    earlier: set[bytes] = set()
    parts: dict[str, Split] = {}
    removed: dict[str, int] = {}
    for name, split in splits.items():
        digests = hash_examples(split)
        rows = [index for index, digest in enumerate(digests) if digest not in earlier]
        earlier.update(digests)
        # A split without duplicates stays the same object, with the same fingerprint.
        parts[name] = split if len(rows) == len(digests) else split.take(torch.tensor(rows, dtype=torch.int64))
        if len(rows) < len(digests):
            removed[name] = len(digests) - len(rows)
        if digests and not rows:
            raise UsageError(
                f"all {len(digests):,} examples of {name} have the same inputs as examples of an earlier split, such "
                "as train; give other data, for example another test file"
            )
    return DistinctSplits(Splits(**parts), removed, {name: len(split) for name, split in splits.items()})


def hash_examples(split: Split) -> list[bytes]:
    """Return a digest of the inputs of each example, ``[N]``: equal inputs have equal digests."""
    digests: list[bytes] = []
    for batch in split.batches(_BATCH):
        # Each example is one row of bytes, whatever the types of its inputs are.
        columns = [tensor.contiguous().reshape(len(batch), -1).view(torch.uint8).numpy() for tensor in batch.inputs]
        digests += [
            hashlib.blake2b(b"".join(column[index].tobytes() for column in columns), digest_size=12).digest()
            for index in range(len(batch))
        ]
    return digests
