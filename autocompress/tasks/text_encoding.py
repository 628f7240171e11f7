"""Encoding of texts as token indices: bytes, characters, hashed words or tokens; 0 is padding."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from autocompress.core.preprocessing import TextInput
from autocompress.errors import UsageError, did_you_mean

PADDING = 0
# The 256 values of a byte and the padding.
BYTES = 257
#: Share of the training texts that the default length does not truncate, and its bounds in tokens.
UNTRUNCATED_SHARE = 0.95
LENGTHS: Mapping[str, tuple[int, int]] = {
    "bytes": (8, 512),
    "characters": (8, 512),
    "words": (4, 256),
    "tokens": (4, 256),
}
VOCABULARIES: Mapping[str, int] = {"bytes": BYTES, "characters": 512, "words": 4096, "tokens": 4096}

# An apostrophe, straight or typographic, may occur inside a word.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


@dataclass(frozen=True)
class Encoding:
    """Mapping of texts to token indices.

    Attributes:
        kind: Kind of token: ``bytes`` of UTF-8, with 1 added; ``characters``, by their position in ``alphabet`` plus 1;
            ``words``, lowercased, or ``tokens``, which white space separates and which keep their capitals, both by
            their CRC-32 modulo ``vocabulary - 1`` plus 1.
        length: Number of tokens per text; longer texts are truncated, shorter ones are padded with 0.
        vocabulary: Number of distinct tokens, the padding included.
        alphabet: Characters with a token of their own; all others share the last token.

    Example:
        >>> Encoding("bytes", 4, BYTES)(["ab", "ä"]).tolist()
        [[98, 99, 0, 0], [196, 165, 0, 0]]
    """

    kind: str
    length: int
    vocabulary: int
    alphabet: str = ""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, int64 ``[N, length]``."""
        units, indices = _UNITS[self.kind], {character: index for index, character in enumerate(self.alphabet)}
        tokens_of_text = np.zeros((len(texts), self.length), np.int64)
        for row, text in enumerate(texts):
            tokens = [self._token_index(unit, indices) for unit in islice(units(text), self.length)]
            tokens_of_text[row, : len(tokens)] = tokens
        return torch.from_numpy(tokens_of_text)

    def locate_words(self, words: Sequence[str]) -> list[int]:
        """Return the position of the first token of each word of a text, ``[W]``; the words are separated by spaces.

        Positions from ``length`` on were truncated.

        Example:
            >>> Encoding("characters", 8, 30, "ab").locate_words(["ab", "a"])
            [0, 3]
        """
        if self.kind in ("words", "tokens"):
            return list(range(len(words)))
        units = _UNITS[self.kind]
        # One unit for the space after each word.
        sizes = [sum(1 for _ in units(word)) + 1 for word in words]
        return [sum(sizes[:index]) for index in range(len(words))]

    def specify_input(self, **options: Any) -> TextInput:
        """Return the record that an artifact stores; options are those of :class:`TextInput`, such as white space."""
        return TextInput(self.kind, self.length, self.vocabulary, self.alphabet, **options)

    def _token_index(self, unit: int | str, indices: Mapping[str, int]) -> int:
        # Index 0 is the padding, so all others are shifted by 1.
        if isinstance(unit, int):
            return unit + 1
        if self.kind == "characters":
            return indices.get(unit, self.vocabulary - 2) + 1
        # Not Python's hash(), which differs from one process to the next.
        return crc32(unit.encode()) % (self.vocabulary - 1) + 1


def fit_encoding(kind: str, texts: Sequence[str], length: int | None = None, vocabulary: int | None = None) -> Encoding:
    """Return the encoding for training texts.

    Args:
        kind: Kind of token: ``bytes``, ``characters``, ``words`` or ``tokens``.
        texts: Training texts.
        length: Number of tokens per text; by default the smallest that leaves 95% of the texts untruncated, at most
            512 bytes or characters, or 256 words or tokens.
        vocabulary: Largest number of distinct tokens; by default 512 for characters and 4,096 for words and tokens. The
            most frequent characters are selected.

    Raises:
        UsageError: The kind is unknown, or a number is out of bounds.

    Example:
        >>> fit_encoding("characters", ["abba", "a c"])
        Encoding(kind='characters', length=8, vocabulary=6, alphabet=' abc')
    """
    if kind not in _UNITS:
        raise UsageError(f"task.text.encoding is {kind!r}; {did_you_mean(kind, _UNITS)}")
    _check_range("vocabulary", vocabulary, 3, 2**20)
    _check_range("length", length, 1, 2**14)
    if kind == "bytes" and vocabulary not in (None, BYTES):
        raise UsageError(f"task.text.vocabulary is {vocabulary}; bytes have {BYTES} tokens, so leave it out")
    size = vocabulary or VOCABULARIES[kind]
    if length is None:
        shortest, longest = LENGTHS[kind]
        counts = sorted(sum(1 for _ in _UNITS[kind](text)) for text in texts)
        length = min(max(counts[ceil(UNTRUNCATED_SHARE * len(counts)) - 1] if counts else shortest, shortest), longest)
    if kind != "characters":
        return Encoding(kind, length, size)
    frequencies = Counter(chain.from_iterable(texts))
    # By frequency, and by code point where that is equal, so that the same texts give the same alphabet.
    alphabet = sorted(frequencies, key=lambda character: (-frequencies[character], character))[: size - 2]
    # Two more tokens: the padding and the one for all other characters.
    return Encoding(kind, length, len(alphabet) + 2, "".join(sorted(alphabet)))


def count_truncated(encoding: Encoding, texts: Sequence[str]) -> int:
    """Return the number of texts that the encoding truncates.

    Example:
        >>> count_truncated(Encoding("words", 2, 100), ["one two", "one two three"])
        1
    """
    units = _UNITS[encoding.kind]
    return sum(next(islice(units(text), encoding.length, None), None) is not None for text in texts)


def has_token(kind: str, text: str) -> bool:
    """Return whether a text has a token other than white space.

    Example:
        >>> has_token("words", "?!"), has_token("bytes", "?!"), has_token("bytes", "  ")
        (False, True, False)
    """
    return bool(_WORD.search(text)) if kind == "words" else bool(text.strip())


def select_tokens(tokens: Tensor, seed: int, share: float) -> tuple[Tensor, Tensor]:
    """Return texts without some random tokens, and the position that each of their tokens had.

    Later tokens move up. The first token is never dropped.

    Args:
        tokens: Token indices with padding at the end of each text, ``[N, T]``.
        seed: Seed of the selection.
        share: Probability of dropping a token.

    Example:
        >>> [part.tolist() for part in select_tokens(torch.tensor([[5, 6, 7, 0]]), seed=2, share=0.5)]
        [[[5, 7, 0, 0]], [[0, 2, 1, 3]]]
    """
    generator = torch.Generator().manual_seed(seed)
    is_dropped = torch.rand(tokens.shape, generator=generator) < share
    is_dropped[:, 0] = False
    remaining = tokens.masked_fill(is_dropped, PADDING)
    # A stable sort by "is padding" moves the remaining tokens to the front in their order.
    order = torch.argsort((remaining == PADDING).to(torch.uint8), dim=1, stable=True)
    return remaining.gather(1, order), order


def _split_words(text: str) -> Iterable[str]:
    return (match.group().lower() for match in _WORD.finditer(text))


_UNITS: Mapping[str, Callable[[str], Iterable[int | str]]] = {
    "bytes": str.encode,
    "characters": iter,
    "words": _split_words,
    "tokens": str.split,
}
KINDS = tuple(_UNITS)


def _check_range(option: str, value: int | None, low: int, high: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise UsageError(f"task.text.{option} is {value!r}; give a whole number from {low} to {high:,}")
