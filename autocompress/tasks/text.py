"""Text classification: the language of a name, and a user's own texts in a CSV file."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from babel import Locale
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.duplicates import digest_texts
from autocompress.core.heads import IGNORED, as_head
from autocompress.core.preprocessing import Preprocessing, RawExample
from autocompress.core.registry import TASKS
from autocompress.core.task import NO_KEYS, ExampleKeys, InputSpec, Split, Splits
from autocompress.errors import UsageError
from autocompress.tasks.base import (
    FRACTIONS,
    Supervised,
    check_positive,
    complete_splits,
    describe_imbalance,
    locate_test_rows,
    sort_classes,
    stratify_examples,
    stratify_rows,
)
from autocompress.tasks.split_rows import KeyColumn
from autocompress.tasks.targets import check_head_names, is_reserved_name
from autocompress.tasks.text_encoding import PADDING, Encoding, count_truncated, fit_encoding, select_tokens
from autocompress.tasks.text_files import Texts, check_class_labels, read_texts

# Languages with good coverage in CLDR that are written in Latin letters.
LANGUAGES = (
    *("az", "ca", "cs", "cy", "da", "de", "en", "es", "et", "eu", "fi", "fr", "ga", "hr", "hu"),
    *("id", "is", "it", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sl", "sv", "tr", "vi"),
)
KINDS = ("territory", "language", "currency", "script")
# Attributes of babel.Locale with the names of each kind.
_ATTRIBUTES = {"territory": "territories", "language": "languages", "currency": "currencies", "script": "scripts"}
NAME_LENGTH = 32
# Tasks with fewer texts than this train their teacher for more epochs.
SMALL_TEXTS = 4000
# Tokens in the longest n-gram of a teacher: longer ones of words hardly repeat.
_CHARACTER_NGRAM, _WORD_NGRAM = 4, 2


@dataclass(frozen=True)
class LocaleName:
    """Name of a territory, language, currency or script in one language.

    Attributes:
        text: Text of the name, such as ``Sierra Leone`` or ``norsk krone``.
        language: Code of the language, one of ``LANGUAGES``.
        kind: Kind of the named thing, one of ``KINDS``.
    """

    text: str
    language: str
    kind: str


@lru_cache(maxsize=1)
def locale_names() -> tuple[LocaleName, ...]:
    """Return the names that belong to one language and one kind, sorted by language, kind and text.

    Names that occur in several languages (Malta, Canada) do not identify a language, and names that are both a language
    and a script (Arabic) do not identify a kind; both are left out. Names that differ only in capitals count as the
    same, and the first of them is used. Babel 2.18 has 40,247 entries, of which 23,566 names remain.

    Example:
        >>> next(name for name in locale_names() if name.text == "Schweizer Franken")
        LocaleName(text='Schweizer Franken', language='de', kind='currency')
    """
    names_of_text: dict[str, set[LocaleName]] = defaultdict(set)
    for code in LANGUAGES:
        locale = Locale.parse(code)
        for kind in KINDS:
            for entry in getattr(locale, _ATTRIBUTES[kind]).values():
                # CLDR has names with repeated spaces and with accents as separate characters.
                text = unicodedata.normalize("NFC", " ".join(entry.split()))
                names_of_text[text.casefold()].add(LocaleName(text, code, kind))
    unique = [same for same in names_of_text.values() if len({(name.language, name.kind) for name in same}) == 1]
    selected = [min(same, key=lambda name: name.text) for same in unique]
    return tuple(sorted(selected, key=lambda name: (name.language, name.kind, name.text)))


class TokenTask(Supervised):
    """Base class of tasks whose only input is a text as tokens."""

    encoding: Encoding
    drop: float = 0.1

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the model inputs for some texts, int64 ``[N, T]``."""
        return self.encoding(texts)

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the encoding; white space at both ends of a text is removed."""
        return (self.encoding.specify_input(),)

    def view(self, split: Split, index: int) -> Split:
        """Return the texts without some random tokens; view 0 is the split itself."""
        if index == 0:
            return split
        tokens, order = select_tokens(split.inputs[0], index, self.drop)
        # A tag moves with its token.
        targets = {
            name: target.gather(1, order).masked_fill(tokens == PADDING, IGNORED)
            if as_head(self.heads[name]).has_positions
            else target
            for name, target in split.targets.items()
        }
        return Split((tokens,), targets)

    def example(self) -> tuple[Tensor, ...]:
        """Return a batch of one text without padding."""
        # Models mask padding, so a text of padding alone would skip what they compute.
        return (torch.arange(self.encoding.length)[None] % (self.encoding.vocabulary - 1) + 1,)

    def _input_specs(self) -> tuple[InputSpec, ...]:
        return (InputSpec((self.encoding.length,), vocabulary=self.encoding.vocabulary, missing=PADDING),)


def make_ngram_teacher(
    kind: str, *, width: int, epochs: int, batch_size: int, buckets: int = 32_768
) -> tuple[Part, Part]:
    """Return n-grams beside convolutions as a teacher of texts, and its training config.

    The branches are trained apart and averaged, which is better than either of them and than both trained together.
    With few texts, convolutions alone are far behind a linear model on n-grams. The teacher reads the texts as they
    are, because a dropped character changes every n-gram around it; students read all augmented views.

    Args:
        kind: Kind of token of the encoding.
        width: Channels of the convolutions.
        epochs: Passes over the training split.
        batch_size: Texts per step.
        buckets: Rows of the table of n-grams.
    """
    longest = _WORD_NGRAM if kind in ("words", "tokens") else _CHARACTER_NGRAM
    return (
        Part.of("text_ngrams", embedding=32, longest=longest, buckets=buckets, width=width, branch_drop=1.0),
        Part.of(
            "adamw",
            epochs=epochs,
            learning_rate=8e-3,
            weight_decay=0.03,
            batch_size=batch_size,
            label_smoothing=0.1,
            views=1,
        ),
    )


@TASKS.register("langid")
class LangId(TokenTask):
    """Classification of names by language, one of 30: 'Schweizer Franken' is German, 'norsk krone' Norwegian.

    The data is the names of territories, languages, currencies and scripts in Babel's locale data (CLDR), about
    23,600 names in 30 languages with the Latin alphabet, encoded as characters. Names that several languages
    share are left out, see :func:`locale_names`. The split is by name: words of a
    test name may occur in training names of its language.

    Args:
        views: Number of augmented views of the training split, each without 10% of the characters; 1 disables them.

    Raises:
        UsageError: The number of views is out of bounds.

    Example:
        >>> LangId().encode(["Schweizer Franken"]).shape
        torch.Size([1, 32])
    """

    name = "langid"
    teacher_buckets = 32_768
    heads: Mapping[str, int] = {"language": len(LANGUAGES)}
    labels: Mapping[str, Sequence[str]] = {"language": LANGUAGES}

    def __init__(self, views: int = 4) -> None:
        self.views = check_positive("langid.views", views)
        self.encoding = _encode_names()[0]
        self.inputs = self._input_specs()

    def splits(self, seed: int) -> Splits:
        """Return five splits: more than half of the names for training, a fifth for testing."""
        _, tokens, targets = _encode_names()
        return stratify_examples((tokens,), {head: targets[head] for head in self.heads}, seed)

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the encoding; names are normalized as :func:`locale_names` does."""
        return (self.encoding.specify_input(whitespace="collapse", unicode_form="NFC"),)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the names of the test split."""
        names = locale_names()
        return [names[row].text for row in stratify_rows(_encode_names()[2]["language"], seed)["test"]]

    def teacher(self) -> tuple[Part, Part]:
        """Return n-grams of up to four characters beside convolutions of width 96, and their training config."""
        return make_ngram_teacher(self.encoding.kind, width=96, epochs=10, batch_size=128, buckets=self.teacher_buckets)


@TASKS.register("langid_kind")
class LangIdKind(LangId):
    """Classification of names by language and by kind (territory, language, currency or script), with two heads.

    The data is that of :class:`LangId`.

    Args:
        views: Number of augmented views of the training split, each without 10% of the characters; 1 disables them.

    Raises:
        UsageError: The number of views is out of bounds.
    """

    name = "langid_kind"
    # Two heads read the table, and with half of its rows the teacher is no better than a linear model.
    teacher_buckets = 65_536
    heads: Mapping[str, int] = {"language": len(LANGUAGES), "kind": len(KINDS)}
    labels: Mapping[str, Sequence[str]] = {"language": LANGUAGES, "kind": KINDS}


@lru_cache(maxsize=1)
def _encode_names() -> tuple[Encoding, Tensor, Mapping[str, Tensor]]:
    """Return the encoding of the names, their tokens and both targets; the cache saves half a second per call."""
    entries = locale_names()
    texts = [name.text for name in entries]
    encoding = fit_encoding("characters", texts, NAME_LENGTH)
    targets = {
        "language": torch.tensor([LANGUAGES.index(name.language) for name in entries]),
        "kind": torch.tensor([KINDS.index(name.kind) for name in entries]),
    }
    return encoding, encoding(texts), targets


@TASKS.register("text")
class Text(TokenTask):
    """Your own texts in a CSV file with one or several labels each; each column of labels is a head.

    Rows without a text or without one of the labels are left out, and so are rows that repeat an earlier one
    (text and labels), because a repeated row could be in two splits; :attr:`notices` holds their numbers. Texts that
    differ only in case, white space or the form of their characters count as duplicates.

    Args:
        path: A ``.csv`` or ``.tsv`` file in UTF-8 with a header, which may be compressed as ``.gz``.
        test: A second file of that kind for the test split; by default it is taken out of ``path``.
        text: Name of the column of texts.
        labels: Name of the column of labels; or several names, as a list or separated by commas.
        encoding: Kind of token: ``words``, lowercased and hashed into ``vocabulary`` buckets (for languages that
            separate words by spaces); ``characters``; or ``bytes`` of UTF-8.
        length: Number of tokens per text; by default the smallest that leaves 95% of the texts untruncated, within
            bounds.
        vocabulary: Number of distinct tokens; by default 4,096 for words and at most 512 for characters.
        views: Number of augmented views of the training split; 1 disables augmentation.
        drop: Share of the tokens that an augmented view drops.
        split_groups: Name of the column of groups, such as users: ``splits: {groups: user}`` in a search space.
        split_time: Name of the column of times, instead: ``splits: {time: date}`` in a search space.

    Raises:
        UsageError: A file cannot be used (the message names the line or the column), or an option is out of bounds.
    """

    name = "text"
    split_keys = ("groups", "time")

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
        split_groups: str = "",
        split_time: str = "",
    ) -> None:
        if not path:
            raise UsageError(
                "task.text.path is not set; give a .csv or .tsv file, for example --set task.text.path=data/reviews.csv"
            )
        self.views = check_positive("text.views", views)
        self.drop = check_drop("text", drop)
        columns = list_label_columns(self.name, text, labels)
        # Fitting to no texts checks the options before a large file is read.
        fit_encoding(encoding, [], length, vocabulary)
        key = KeyColumn.from_options(split_groups, split_time)
        texts_of_part = {"train": read_texts(Path(path).expanduser(), text, columns, encoding, key.name)}
        if test:
            texts_of_part["test"] = read_texts(Path(test).expanduser(), text, columns, encoding, key.name)
        parts = {part: select_distinct_rows(texts) for part, texts in texts_of_part.items()}
        heads = {column: make_head_name(column) for column in columns}
        check_distinct_heads(heads)
        classes = {
            column: list_class_names(texts_of_part["train"], column, len(FRACTIONS) + 1 - bool(test))
            for column in columns
        }
        self.labels: Mapping[str, Sequence[str]] = {heads[column]: classes[column] for column in columns}
        self.heads: Mapping[str, int] = {head: len(names) for head, names in self.labels.items()}
        self._texts = {part: [texts.texts[row] for row in parts[part]] for part, texts in texts_of_part.items()}
        train = self._texts["train"]
        self.encoding = fit_encoding(encoding, train, length, vocabulary)
        self.inputs = self._input_specs()
        keys = make_text_keys(texts_of_part, parts, key)
        self._parts = {
            part: Split(
                (self.encoding(self._texts[part]),),
                {heads[column]: index_classes(texts, column, classes[column], parts[part]) for column in columns},
                keys[part],
            )
            for part, texts in texts_of_part.items()
        }
        self._notices = tuple(self._collect_notices(texts_of_part, parts, train))

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data: rows that were left out, truncated texts and imbalanced classes."""
        return self._notices

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write a tiny CSV file of two classes into a folder, and return the value for ``path``."""
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
        """Return five splits: by groups or time if a column is named, otherwise stratified by the first head.

        Raises:
            UsageError: A class has too few texts, or there are too few groups or times.
        """
        return complete_splits(self._parts, seed, self.labels[next(iter(self.heads))])

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the texts of the test split."""
        part, rows = locate_test_rows(self._parts, seed)
        return [self._texts[part][row] for row in rows]

    def teacher(self) -> tuple[Part, Part]:
        """Return n-grams beside convolutions of width 64, and their training config."""
        # With few texts, an epoch has few steps.
        epochs = 20 if len(self._texts["train"]) < SMALL_TEXTS else 10
        return make_ngram_teacher(self.encoding.kind, width=64, epochs=epochs, batch_size=64)

    def _collect_notices(
        self, texts_of_part: Mapping[str, Texts], parts: Mapping[str, list[int]], train: list[str]
    ) -> list[str]:
        notices = []
        for part, texts in texts_of_part.items():
            for field, count in texts.left_out.items():
                notices.append(f"{texts.path.name}: {count:,} rows without a {field} are left out")
            if repeats := len(texts.texts) - len(parts[part]):
                notices.append(f"{texts.path.name}: {repeats:,} rows that repeat an earlier one are left out")
        if truncated := count_truncated(self.encoding, train):
            notices.append(
                f"{truncated / len(train):.0%} of the texts are longer than {self.encoding.length} "
                f"{self.encoding.kind} and lose their end"
            )
        for head, names in self.labels.items():
            counts = torch.bincount(self._parts["train"].targets[head], minlength=len(names)).tolist()
            notices.append(describe_imbalance(dict(zip(names, counts, strict=True)), f"{head}: class"))
        return [remark for remark in notices if remark]


def check_drop(task: str, drop: float) -> float:
    """Return the share of tokens that an augmented view drops.

    Raises:
        UsageError: It is no share from 0 to 0.5.
    """
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 0.5:
        raise UsageError(f"task.{task}.drop is {drop!r}; give a share from 0 to 0.5")
    return drop


def list_label_columns(task: str, text: str, labels: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the label columns.

    Raises:
        UsageError: There is none, or a column has two uses.
    """
    columns = tuple(part.strip() for part in labels.split(",")) if isinstance(labels, str) else tuple(labels)
    if not columns or not all(isinstance(column, str) and column for column in columns):
        raise UsageError(f"task.{task}.labels is {labels!r}; give a column's name or a list of them")
    if text in columns or len(set(columns)) < len(columns):
        raise UsageError(f"task.{task}.labels names '{text if text in columns else columns[0]}' twice or as the text")
    return columns


def make_head_name(column: str) -> str:
    """Return a valid name of a submodule for a column.

    Example:
        >>> make_head_name("Recommended IND")
        'Recommended_IND'
    """
    head = re.sub(r"\W+", "_", column).strip("_") or "label"
    # Heads become submodules of an nn.ModuleDict, which refuses the names of its own attributes.
    return f"{head}_label" if is_reserved_name(head) else head


def check_distinct_heads(heads: Mapping[str, str]) -> None:
    """Check that the names of the heads, and of their columns in the table of results, are distinct.

    Raises:
        UsageError: Two columns give the same head, or the name of a head ends like the column of a split.
    """
    for head, count in Counter(heads.values()).items():
        if count > 1:
            same = " and ".join(f"'{column}'" for column, name in heads.items() if name == head)
            raise UsageError(f"the columns {same} both give the head '{head}'; rename one of them")
    check_head_names(heads)


def select_distinct_rows(texts: Texts) -> list[int]:
    """Return the rows that do not repeat the text and labels of an earlier one."""
    first_rows: dict[tuple[str, ...], int] = {}
    # The first occurrence stays, and dictionaries keep the order of insertion.
    for row, key in enumerate(zip(texts.texts, *texts.labels.values(), strict=True)):
        first_rows.setdefault(key, row)
    return list(first_rows.values())


def make_text_keys(
    texts: Mapping[str, Texts], rows: Mapping[str, Sequence[int]], column: KeyColumn
) -> dict[str, ExampleKeys]:
    """Return groups or times, and the digests of the normalized texts, of some rows of each part.

    Args:
        texts: Part to the texts of its file.
        rows: Part to its rows.
        column: Column of groups or times.

    Raises:
        UsageError: The column cannot be used; the message names the line.
    """
    fields, places = {}, {}
    if column.name:
        fields = {part: [texts[part].keys[row] for row in rows[part]] for part in texts}
        places = {part: [texts[part].format_location(row) for row in rows[part]] for part in texts}
    keys = column.read_keys(fields, places)
    return {
        part: replace(keys.get(part, NO_KEYS), contents=digest_texts([texts[part].texts[row] for row in rows[part]]))
        for part in texts
    }


def list_class_names(texts: Texts, column: str, minimum: int) -> list[str]:
    """Return the class names of a column, sorted by value if all of them are numbers, otherwise alphabetically.

    Raises:
        UsageError: The column contains measurements or a single class, or a class has too few texts.
    """
    check_class_labels(texts.path, column, texts.labels[column])
    counts = Counter(texts.labels[column][row] for row in select_distinct_rows(texts))
    if len(counts) < 2:
        raise UsageError(
            f"{texts.path}: column '{column}' has a single class, '{next(iter(counts))}'; a task needs at least two"
        )
    rarest = min(counts, key=lambda name: (counts[name], name))
    if counts[rarest] < minimum:
        repeats = texts.labels[column].count(rarest) - counts[rarest]
        raise UsageError(
            f"{texts.path}: class '{rarest}' of column '{column}' occurs in {counts[rarest]} of {counts.total():,} "
            f"distinct texts{f' ({repeats:,} more repeat an earlier one)' if repeats else ''}; {minimum} disjoint "
            "splits need at least one each, so join it with another class or leave it out"
        )
    return sort_classes(counts)


def index_classes(texts: Texts, column: str, classes: Sequence[str], rows: Sequence[int]) -> Tensor:
    """Return the class index of each row, ``[N]``."""
    indices = {name: index for index, name in enumerate(classes)}
    for row in rows:
        if texts.labels[column][row] not in indices:
            raise UsageError(
                f"{texts.format_location(row)}: the class '{texts.labels[column][row]}' of column '{column}' does not "
                "occur in the training file; add examples of it there, or leave the row out"
            )
    return torch.tensor([indices[texts.labels[column][row]] for row in rows])
