"""Text classification tasks: the language of a name, and a user's own texts in a CSV file."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.core.config import Part
from autocompress.core.registry import TASKS
from autocompress.core.task import InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import Supervised, imbalance
from autocompress.tasks.locale_names import KINDS, LANGUAGES, names
from autocompress.tasks.splitting import FRACTIONS, five_splits, stratified_splits
from autocompress.tasks.text_encoding import PADDING, Encoding, cut_short, drop_tokens, fit_encoding
from autocompress.tasks.text_files import Texts, read_texts, refuse_real_numbers

NAME_LENGTH = 32
# A table of results holds each score of a head three times: as it is, and with these behind it for other splits.
TAKEN = ("_test", "_search")


class _Tokens(Supervised):
    """A task whose only input is a text as tokens."""

    encoding: Encoding
    drop: float = 0.1

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return what a model of this task takes for some texts, ``[N, T]`` of int64."""
        return self.encoding(texts)

    @property
    def preprocessing(self) -> str:
        """How a text becomes tokens."""
        return self.encoding.in_words()

    def view(self, split: Split, index: int) -> Split:
        """Return the texts without some of their tokens; view 0 is the split itself."""
        if index == 0:
            return split
        return Split((drop_tokens(split.inputs[0], index, self.drop),), split.targets)

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one text that fills the whole length: of padding alone, a model computes nothing."""
        return (torch.arange(self.encoding.length)[None] % (self.encoding.vocabulary - 1) + 1,)

    def _inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec((self.encoding.length,), vocabulary=self.encoding.vocabulary, missing=PADDING),)


@TASKS.register("langid")
class LangId(_Tokens):
    """Which of 30 languages a name belongs to: 'Schweizer Franken' is German, 'norsk krone' Norwegian.

    The names are those of territories, languages, currencies and scripts in Babel's locale data (CLDR), about
    23,600 of 30 languages that use the Latin alphabet, read character by character. Names that several languages
    share are left out, as :func:`autocompress.tasks.locale_names.names` says. The split is by name: the words of a test
    name may occur in others of its language.

    Args:
        views: Augmented views of the training split, each without a tenth of the characters; 1 leaves it as it is.

    Raises:
        UsageError: The number of views is out of bounds.

    Example:
        >>> LangId().encode(["Schweizer Franken"]).shape
        torch.Size([1, 32])
    """

    name = "langid"
    heads: Mapping[str, int] = {"language": len(LANGUAGES)}
    labels: Mapping[str, Sequence[str]] = {"language": LANGUAGES}

    def __init__(self, views: int = 4) -> None:
        self.views = _positive("langid.views", views)
        self.encoding = _names()[0]
        self.inputs = self._inputs()

    def splits(self, seed: int) -> Splits:
        """Return the five splits: more than half of the names to train on, a fifth to test."""
        _, tokens, targets = _names()
        return stratified_splits((tokens,), {head: targets[head] for head in self.heads}, seed)

    def teacher(self) -> tuple[Part, Part]:
        """Return a network of width 128 with windows of three lengths, and how to train it."""
        return (
            Part.of("text_cnn", embedding=32, width=128, depth=1, block="parallel"),
            Part.of("adamw", epochs=12, learning_rate=3e-3, batch_size=128),
        )


@TASKS.register("langid_kind")
class LangIdKind(LangId):
    """The language of a name, and whether it names a territory, a language, a currency or a script: two heads.

    The names are those of :class:`LangId`.

    Args:
        views: Augmented views of the training split, each without a tenth of the characters; 1 leaves it as it is.

    Raises:
        UsageError: The number of views is out of bounds.
    """

    name = "langid_kind"
    heads: Mapping[str, int] = {"language": len(LANGUAGES), "kind": len(KINDS)}
    labels: Mapping[str, Sequence[str]] = {"language": LANGUAGES, "kind": KINDS}


@lru_cache(maxsize=1)
def _names() -> tuple[Encoding, Tensor, Mapping[str, Tensor]]:
    """Return how names are encoded, their tokens and both targets; reading them takes half a second."""
    found = names()
    texts = [name.text for name in found]
    encoding = fit_encoding("characters", texts, NAME_LENGTH)
    targets = {
        "language": torch.tensor([LANGUAGES.index(name.language) for name in found]),
        "kind": torch.tensor([KINDS.index(name.kind) for name in found]),
    }
    return encoding, encoding(texts), targets


@TASKS.register("text")
class Text(_Tokens):
    """Your own texts in a CSV file, one label each, or several: each column of labels is a head of its own.

    Rows without a text or without one of the labels are left out, and so are rows that repeat an earlier one
    (text and labels), as they could fall into two splits; :attr:`notices` says how many.

    Args:
        path: A ``.csv`` or ``.tsv`` file in UTF-8 with a header, or either with ``.gz`` behind it.
        test: A second such file for the test split; by default it is taken out of ``path``.
        text: Name of the column of texts.
        labels: Name of the column of labels; or several names, with commas between them or as a list.
        encoding: ``words``, lowercased and hashed into ``vocabulary`` buckets (for languages that write spaces);
            ``characters``; or ``bytes`` of UTF-8.
        length: Tokens of a text that count; by default so many that 95% of the texts stay whole, within bounds.
        vocabulary: How many tokens there are; by default 4,096 for words and at most 512 for characters.
        views: Augmented views of the training split; 1 leaves it as it is.
        drop: Share of the tokens that an augmented view is without.

    Raises:
        UsageError: A file cannot be used (the message names the line or the column), or an option is out of bounds.
    """

    name = "text"

    def __init__(
        self,
        path: str | Path = "",
        *,
        test: str | Path = "",
        text: str = "text",
        labels: str | Sequence[str] = "label",
        encoding: str = "words",
        length: int | None = None,
        vocabulary: int | None = None,
        views: int = 4,
        drop: float = 0.1,
    ) -> None:
        if not path:
            raise UsageError(
                "task.text.path is not set; give a .csv or .tsv file, for example --set task.text.path=data/reviews.csv"
            )
        self.views = _positive("text.views", views)
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 0.5:
            raise UsageError(f"task.text.drop is {drop!r}; give a share from 0 to 0.5")
        self.drop = drop
        columns = _columns(text, labels)
        # An empty file shows whether the options are sound, before a large one is read.
        fit_encoding(encoding, [], length, vocabulary)
        found = {"train": read_texts(Path(path).expanduser(), text, columns, encoding)}
        if test:
            found["test"] = read_texts(Path(test).expanduser(), text, columns, encoding)
        parts = {part: _distinct(texts) for part, texts in found.items()}
        heads = {column: _head_name(column) for column in columns}
        _refuse_unclear_heads(heads)
        classes = {column: _classes(found["train"], column, len(FRACTIONS) + 1 - bool(test)) for column in columns}
        self.labels: Mapping[str, Sequence[str]] = {heads[column]: classes[column] for column in columns}
        self.heads: Mapping[str, int] = {head: len(known) for head, known in self.labels.items()}
        train = [found["train"].texts[row] for row in parts["train"]]
        self.encoding = fit_encoding(encoding, train, length, vocabulary)
        self.inputs = self._inputs()
        self._parts = {
            part: Split(
                (self.encoding([texts.texts[row] for row in parts[part]]),),
                {heads[column]: _numbers(texts, column, classes[column], parts[part]) for column in columns},
            )
            for part, texts in found.items()
        }
        self._notices = tuple(self._remarks(found, parts, train))

    @property
    def notices(self) -> Sequence[str]:
        """Rows that were left out, texts that were cut, and classes of very unequal size."""
        return self._notices

    @staticmethod
    def sample(folder: Path) -> Path:
        """Write a tiny CSV file of two classes into a folder, and return what ``path`` is then."""
        random = np.random.default_rng(0)
        things = ("the soup", "this film", "my train", "the hotel", "a concert", "the book", "our guide", "the map")
        words = {"good": ("lovely", "superb", "a joy", "excellent"), "bad": ("awful", "a bore", "dreadful", "too late")}
        lines = ["text,label"]
        for number in range(60):
            label = ("good", "bad")[number % 2]
            thing, word = random.choice(things), random.choice(words[label])
            lines.append(f'"{thing} was {word}, visit {number}",{label}')
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "text.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def splits(self, seed: int) -> Splits:
        """Return five splits, each class of the first head in proportion.

        Raises:
            UsageError: A class has too few texts.
        """
        return five_splits(self._parts, seed, self.labels[next(iter(self.heads))])

    def teacher(self) -> tuple[Part, Part]:
        """Return a network of width 64 with windows of three lengths, and how to train it."""
        return (
            Part.of("text_cnn", embedding=32, width=64, depth=1, block="parallel"),
            Part.of("adamw", epochs=6, learning_rate=2e-3, batch_size=64),
        )

    def _remarks(self, found: Mapping[str, Texts], parts: Mapping[str, list[int]], train: list[str]) -> list[str]:
        remarks = []
        for part, texts in found.items():
            for what, count in texts.left_out.items():
                remarks.append(f"{texts.path.name}: {count:,} rows without a {what} are left out")
            if repeats := len(texts.texts) - len(parts[part]):
                remarks.append(f"{texts.path.name}: {repeats:,} rows that repeat an earlier one are left out")
        if "test" in found:
            seen, first, second = set(train), found["train"], found["test"]
            if again := sum(second.texts[row] in seen for row in parts["test"]):
                remarks.append(f"{second.path.name}: {again:,} texts occur in {first.path.name} too")
        if cut := cut_short(self.encoding, train):
            remarks.append(
                f"{cut / len(train):.0%} of the texts are longer than {self.encoding.length} "
                f"{self.encoding.kind} and lose their end"
            )
        for head, known in self.labels.items():
            counts = torch.bincount(self._parts["train"].targets[head], minlength=len(known)).tolist()
            remarks.append(imbalance(dict(zip(known, counts, strict=True)), f"{head}: class"))
        return [remark for remark in remarks if remark]


def _positive(option: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"task.{option} is {value!r}; give a whole number of at least 1")
    return value


def _columns(text: str, labels: str | Sequence[str]) -> tuple[str, ...]:
    """Return the columns of labels."""
    columns = tuple(part.strip() for part in labels.split(",")) if isinstance(labels, str) else tuple(labels)
    if not columns or not all(isinstance(column, str) and column for column in columns):
        raise UsageError(f"task.text.labels is {labels!r}; give a column's name or a list of them")
    if text in columns or len(set(columns)) < len(columns):
        raise UsageError(f"task.text.labels names '{text if text in columns else columns[0]}' twice or as the text")
    return columns


def _head_name(column: str) -> str:
    """Return what a module may be called: ``Recommended_IND`` for ``Recommended IND``."""
    head = re.sub(r"\W+", "_", column).strip("_") or "label"
    return f"{head}_label" if hasattr(nn.ModuleDict, head) or head == "training" else head


def _refuse_unclear_heads(heads: Mapping[str, str]) -> None:
    """Make sure that every head, and every score of one, has a name of its own.

    Raises:
        UsageError: Two columns would be one head; or of several, one is called as another head's score on a split.
    """
    for column, head in heads.items():
        if len(heads) > 1 and head.endswith(TAKEN):
            end = next(end for end in TAKEN if head.endswith(end))
            raise UsageError(
                f"the column '{column}' would be the head '{head}', whose scores would read as those of a head "
                f"'{head.removesuffix(end)}' on the split '{end[1:]}'; rename the column so that it does not end in "
                f"'{end}'"
            )
    for head, count in Counter(heads.values()).items():
        if count > 1:
            same = " and ".join(f"'{column}'" for column, name in heads.items() if name == head)
            raise UsageError(f"the columns {same} would both be the head '{head}'; rename one of them")


def _distinct(texts: Texts) -> list[int]:
    """Return the rows that do not repeat an earlier one."""
    first: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(zip(texts.texts, *texts.labels.values(), strict=True)):
        first.setdefault(key, row)
    return list(first.values())


def _classes(texts: Texts, column: str, least: int) -> list[str]:
    """Return the classes of a column in order: as numbers where all of them are, otherwise by the alphabet.

    Raises:
        UsageError: They are measurements, there is one alone, or one has too few texts.
    """
    refuse_real_numbers(texts.path, column, texts.labels[column])
    counts = Counter(texts.labels[column][row] for row in _distinct(texts))
    if len(counts) < 2:
        raise UsageError(
            f"{texts.path}: column '{column}' holds a single class, '{next(iter(counts))}'; a task needs at least two"
        )
    rarest = min(counts, key=lambda name: (counts[name], name))
    if counts[rarest] < least:
        raise UsageError(
            f"{texts.path}: class '{rarest}' of column '{column}' has {counts[rarest]} rows; "
            f"{least} disjoint splits need at least one each, so join it with another class or leave it out"
        )
    try:
        return sorted(sorted(counts), key=float)
    except ValueError:
        return sorted(counts)


def _numbers(texts: Texts, column: str, known: Sequence[str], rows: Sequence[int]) -> Tensor:
    """Return the class of each row as a number."""
    places = {name: place for place, name in enumerate(known)}
    for row in rows:
        if texts.labels[column][row] not in places:
            raise UsageError(
                f"{texts.where(row)}: the class '{texts.labels[column][row]}' of column '{column}' does not occur in "
                "the training file; add examples of it there, or leave the row out"
            )
    return torch.tensor([places[texts.labels[column][row]] for row in rows])
