"""Texts to rows of whole numbers: bytes, characters or hashed words; 0 stands for padding."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import UsageError, did_you_mean

PADDING = 0
BYTES = 257
#: Share of the training texts that the default length holds whole, and its bounds in tokens.
WHOLE = 0.95
LENGTHS: Mapping[str, tuple[int, int]] = {"bytes": (8, 512), "characters": (8, 512), "words": (4, 256)}
VOCABULARIES: Mapping[str, int] = {"bytes": BYTES, "characters": 512, "words": 4096}

# An apostrophe, straight or typographic, stands inside a word.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


@dataclass(frozen=True)
class Encoding:
    """How a text becomes tokens.

    Attributes:
        kind: ``bytes`` of UTF-8, each 1 more than its value; ``characters``, each 1 more than its place in
            ``alphabet``; or ``words``, lowercased, each 1 more than its CRC-32 modulo ``vocabulary - 1``.
        length: Tokens of a text; the end of a longer one is cut, a shorter one is filled up with 0.
        vocabulary: How many tokens there are, the padding included.
        alphabet: The characters that have a token of their own; all others share the last token.

    Example:
        >>> Encoding("bytes", 4, BYTES)(["ab", "ä"]).tolist()
        [[98, 99, 0, 0], [196, 165, 0, 0]]
    """

    kind: str
    length: int
    vocabulary: int
    alphabet: str = ""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, ``[N, length]`` of int64."""
        units, places = _UNITS[self.kind], {character: place for place, character in enumerate(self.alphabet)}
        found = np.zeros((len(texts), self.length), np.int64)
        for row, text in enumerate(texts):
            tokens = [self._token(unit, places) for unit in islice(units(text), self.length)]
            found[row, : len(tokens)] = tokens
        return torch.from_numpy(found)

    def in_words(self) -> str:
        """Return the encoding in a sentence, for whoever deploys a model.

        Example:
            >>> Encoding("bytes", 4, BYTES).in_words()
            'A text is 4 tokens of int64: each byte of UTF-8 plus 1; longer ones lose their end, 0 fills shorter ones.'
        """
        units = {
            "bytes": "each byte of UTF-8 plus 1",
            "characters": f"the place of each character in {self.alphabet!r} plus 1, {self.vocabulary - 1} for others",
            "words": f"the CRC-32 of each lowercased word modulo {self.vocabulary - 1}, plus 1",
        }
        return (
            f"A text is {self.length} tokens of int64: {units[self.kind]}; "
            "longer ones lose their end, 0 fills shorter ones."
        )

    def _token(self, unit: int | str, places: Mapping[str, int]) -> int:
        if isinstance(unit, int):
            return unit + 1
        if self.kind == "characters":
            return places.get(unit, self.vocabulary - 2) + 1
        return crc32(unit.encode()) % (self.vocabulary - 1) + 1


def fit_encoding(kind: str, texts: Sequence[str], length: int | None = None, vocabulary: int | None = None) -> Encoding:
    """Return the encoding for training texts.

    Args:
        kind: ``bytes``, ``characters`` or ``words``.
        texts: The training texts.
        length: Tokens of a text; by default so many that 95% of the texts stay whole, at most 512 bytes or
            characters, or 256 words.
        vocabulary: How many tokens there are at most; by default 512 for characters and 4,096 for words. Of more
            characters the most frequent are kept.

    Raises:
        UsageError: There is no such kind, or a number is out of bounds.

    Example:
        >>> fit_encoding("characters", ["abba", "a c"])
        Encoding(kind='characters', length=8, vocabulary=6, alphabet=' abc')
    """
    if kind not in _UNITS:
        raise UsageError(f"task.text.encoding is {kind!r}; {did_you_mean(kind, _UNITS)}")
    _check("vocabulary", vocabulary, 3, 2**20)
    _check("length", length, 1, 2**14)
    if kind == "bytes" and vocabulary not in (None, BYTES):
        raise UsageError(f"task.text.vocabulary is {vocabulary}; bytes have {BYTES} tokens, so leave it out")
    size = vocabulary or VOCABULARIES[kind]
    if length is None:
        least, most = LENGTHS[kind]
        counts = sorted(sum(1 for _ in _UNITS[kind](text)) for text in texts)
        length = min(max(counts[ceil(WHOLE * len(counts)) - 1] if counts else least, least), most)
    if kind != "characters":
        return Encoding(kind, length, size)
    counted = Counter(chain.from_iterable(texts))
    # By frequency, and by code point where that is equal, so that the same texts give the same alphabet.
    kept = sorted(counted, key=lambda character: (-counted[character], character))[: size - 2]
    return Encoding(kind, length, len(kept) + 2, "".join(sorted(kept)))


def cut_short(encoding: Encoding, texts: Sequence[str]) -> int:
    """Return how many of the texts lose their end.

    Example:
        >>> cut_short(Encoding("words", 2, 100), ["one two", "one two three"])
        1
    """
    units = _UNITS[encoding.kind]
    return sum(next(islice(units(text), encoding.length, None), None) is not None for text in texts)


def says_something(kind: str, text: str) -> bool:
    """Return whether a text has a token that is more than white space.

    Example:
        >>> says_something("words", "?!"), says_something("bytes", "?!"), says_something("bytes", "  ")
        (False, True, False)
    """
    return bool(_WORD.search(text)) if kind == "words" else bool(text.strip())


def drop_tokens(tokens: Tensor, seed: int, share: float) -> Tensor:
    """Return texts without some of their tokens; what follows moves up. The first token always stays.

    Args:
        tokens: ``[N, T]``, padding behind each text.
        seed: The same seed drops the same tokens.
        share: Chance of each token to go.

    Example:
        >>> drop_tokens(torch.tensor([[5, 6, 7, 0]]), seed=2, share=0.5).tolist()
        [[5, 7, 0, 0]]
    """
    generator = torch.Generator().manual_seed(seed)
    goes = torch.rand(tokens.shape, generator=generator) < share
    goes[:, 0] = False
    kept = tokens.masked_fill(goes, PADDING)
    return kept.gather(1, torch.argsort((kept == PADDING).to(torch.uint8), dim=1, stable=True))


def _words(text: str) -> Iterable[str]:
    return (match.group().lower() for match in _WORD.finditer(text))


_UNITS: Mapping[str, Callable[[str], Iterable[int | str]]] = {
    "bytes": str.encode,
    "characters": iter,
    "words": _words,
}
KINDS = tuple(_UNITS)


def _check(option: str, value: int | None, low: int, high: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise UsageError(f"task.text.{option} is {value!r}; give a whole number from {low} to {high:,}")
