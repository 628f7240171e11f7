"""Tagging of tokens, such as named entities, alone or together with classes of whole texts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from babel import Locale
from babel.dates import format_date
from babel.lists import format_list
from torch import Tensor

from autocompress.core.config import Part
from autocompress.core.duplicates import digest_texts
from autocompress.core.heads import IGNORED, Head, Tags
from autocompress.core.preprocessing import Preprocessing, RawExample
from autocompress.core.registry import TASKS
from autocompress.core.task import ExampleKeys, Split, Splits
from autocompress.errors import UsageError
from autocompress.measure.entity_metrics import OUTSIDE, is_entity_scheme, split_tag
from autocompress.tasks.base import (
    FRACTIONS,
    check_positive,
    complete_splits,
    locate_test_rows,
    sort_classes,
    split_randomly,
    stratify_rows,
)
from autocompress.tasks.mapped_arrays import require_file_memory
from autocompress.tasks.signal_files import DELIMITERS
from autocompress.tasks.split_rows import KeyColumn
from autocompress.tasks.targets import metrics_of
from autocompress.tasks.text import (
    KINDS,
    LANGUAGES,
    LocaleName,
    TokenTask,
    check_distinct_heads,
    check_drop,
    index_classes,
    list_class_names,
    list_label_columns,
    locale_names,
    make_head_name,
    make_text_keys,
    select_distinct_rows,
)
from autocompress.tasks.text_encoding import Encoding, fit_encoding
from autocompress.tasks.text_files import Texts, open_text, read_texts

CONLL_SUFFIXES = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".txt")
# Columns of CoNLL-U: number, form, lemma, universal part of speech, ...
CONLLU_COLUMNS = (1, 3)
TAG_HEAD = "tags"


def read_conll(path: Path, token_column: int, tag_column: int) -> Texts:
    """Return the sentences of a CoNLL file: one token per line with its columns, and a blank line after each sentence.

    Lines that begin with ``#`` or ``-DOCSTART-`` are left out, and so are multi-word tokens and empty nodes of
    CoNLL-U, whose number holds a dash or a dot. White space inside a token becomes an underscore.

    Args:
        path: The file, which may be compressed as ``.gz``.
        token_column: Position of the column of tokens.
        tag_column: Position of the column of tags; -1 for the last.

    Raises:
        UsageError: The file cannot be read, a line has too few columns, or there is no sentence.
    """
    sentences: list[tuple[int, list[str], list[str]]] = []
    is_conllu = path.name.removesuffix(".gz").endswith(".conllu")
    for number, columns in _read_conll_lines(path, is_conllu):
        if not columns:
            # The next token begins a sentence.
            sentences.append((number + 1, [], []))
            continue
        if not sentences:
            sentences.append((number, [], []))
        # The tag of a line that lost it would be the token itself.
        if len(columns) < max(2, token_column + 1, tag_column + 1):
            raise UsageError(
                f"{path}:{number}: {len(columns)} columns, but the token is in column {token_column} and the tag in "
                f"column {tag_column}; add what is missing, or set task.tagging.token_column and tag_column"
            )
        sentences[-1][1].append("_".join(columns[token_column].split()))
        sentences[-1][2].append(columns[tag_column])
    sentences = [sentence for sentence in sentences if sentence[1]]
    if not sentences:
        raise UsageError(f"{path} contains no sentence; give a token and its tag on each line")
    return Texts(
        path,
        tuple(" ".join(tokens) for _, tokens, _ in sentences),
        {TAG_HEAD: tuple(" ".join(tags) for _, _, tags in sentences)},
        tuple(line for line, _, _ in sentences),
        {},
    )


def _read_conll_lines(path: Path, is_conllu: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the columns of each line with a token; no columns for a blank line."""
    try:
        require_file_memory(path)
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip("\r\n")
                if (text.startswith("#") and is_conllu) or text.startswith(("-DOCSTART-", "# ")):
                    continue
                columns = text.split("\t") if "\t" in text else text.split()
                # A range such as 3-4 is the surface form of the tokens 3 and 4, which follow.
                if is_conllu and columns and re.search(r"[-.]", columns[0]):
                    continue
                yield number, columns if text.strip() else []
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); texts are UTF-8") from None


class _TagTask(TokenTask):
    """Base class of tasks with a tag for each word, whose words are separated by one space."""

    def specify_preprocessing(self, seed: int) -> Preprocessing:
        """Return the encoding; white space between words becomes one space."""
        return (self.encoding.specify_input(whitespace="collapse"),)

    def teacher(self) -> tuple[Part, Part]:
        """Return a convolutional network that reads some twenty characters around each, and its training config."""
        return (
            Part.of("text_cnn", embedding=32, width=64, depth=2, kernel=7, block="residual"),
            Part.of("adamw", epochs=8, learning_rate=3e-3, batch_size=64),
        )


@TASKS.register("tagging")
class Tagging(_TagTask):
    """A tag for each token of your own texts, such as named entities, with further labels of the texts if you like.

    Tags with a scheme (IOB2 or IOBES: ``O``, ``B-PER``, ``I-PER``) are scored by the F1 of whole entities, other tags,
    such as parts of speech, by the accuracy of tokens. The tag of a word stands at its first token.

    Args:
        path: A CoNLL file (``.conll``, ``.conllu``, ``.bio``, ``.iob2`` or ``.txt``: one token per line, sentences
            separated by blank lines), or a ``.csv`` or ``.tsv`` file with a header; compressed as ``.gz`` or not.
        test: A second file of that kind for the test split; by default it is taken out of ``path``.
        text: Name of the column of texts of a CSV file, whose tokens are separated by spaces.
        tags: Name of the column of tags of a CSV file, as many as tokens and separated by spaces.
        labels: Names of columns of labels of a CSV file, separated by commas; each is another head.
        token_column: Position of the column of tokens of a CoNLL file; 0 by default, 1 in CoNLL-U.
        tag_column: Position of the column of tags of a CoNLL file; the last by default, 3 in CoNLL-U.
        encoding: Kind of token: ``characters``, ``bytes`` of UTF-8, or ``tokens``, hashed into ``vocabulary`` buckets.
        length: Number of tokens per text; by default the smallest that leaves 95% of the texts untruncated, within
            bounds.
        vocabulary: Number of distinct tokens; by default 4,096 for tokens and at most 512 for characters.
        views: Number of augmented views of the training split; 1 disables augmentation.
        drop: Share of the tokens that an augmented view drops.
        split_groups: Name of the column of groups of a CSV file, such as documents: ``splits: {groups: document}`` in a
            search space.
        split_time: Name of the column of times of a CSV file, instead: ``splits: {time: date}`` in a search space.

    Raises:
        UsageError: A file cannot be used (the message names the line), or an option is out of bounds.
    """

    name = "tagging"
    split_keys = ("groups", "time")

    def __init__(
        self,
        path: str | Path = "",
        *,
        test: str | Path = "",
        text: str = "text",
        tags: str = "tags",
        labels: str | Sequence[str] = "",
        token_column: int | None = None,
        tag_column: int | None = None,
        encoding: str = "characters",
        length: int | None = None,
        vocabulary: int | None = None,
        views: int = 1,
        drop: float = 0.1,
        split_groups: str = "",
        split_time: str = "",
    ) -> None:
        if not path:
            raise UsageError(
                "task.tagging.path is not set; give a CoNLL or a .csv file, for example "
                "--set task.tagging.path=data/train.conll"
            )
        if encoding == "words":
            raise UsageError("task.tagging.encoding is 'words'; give tokens, which have one tag each")
        self.views, self.drop = check_positive("tagging.views", views), check_drop("tagging", drop)
        # Fitting to no texts checks the options before a large file is read.
        fit_encoding(encoding, [], length, vocabulary)
        columns = list_label_columns(self.name, text, labels) if labels else ()
        if tags in columns:
            raise UsageError(f"task.tagging.labels names '{tags}', which is the column of tags")
        parts = {"train": path, **({"test": test} if test else {})}
        key = KeyColumn.from_options(split_groups, split_time)
        source = TaggedColumns(text, tags, columns, token_column, tag_column, key.name)
        texts = {part: _read_tagged(Path(value).expanduser(), source, encoding) for part, value in parts.items()}
        self._read_heads(texts, columns)
        train = texts["train"]
        self.encoding = fit_encoding(encoding, train.texts, length, vocabulary)
        self.inputs = self._input_specs()
        # A repeated text could be in two splits.
        rows = {part: select_distinct_rows(read) for part, read in texts.items()}
        self._texts = {part: [read.texts[row] for row in rows[part]] for part, read in texts.items()}
        keys = make_text_keys(texts, rows, key)
        self._parts = {
            part: replace(self._make_split(read, columns, rows[part]), keys=keys[part]) for part, read in texts.items()
        }
        self._notices = tuple(filter(None, self._collect_notices(texts)))

    @property
    def notices(self) -> Sequence[str]:
        """Remarks on the data: rows that were left out, truncated texts, and numbers of entities."""
        return self._notices

    @staticmethod
    def write_sample(folder: Path) -> Path:
        """Write a tiny CoNLL file of people and places into a folder, and return the value for ``path``."""
        random = np.random.default_rng(0)
        people, places = ("Ada", "Ben", "Cleo", "Dan"), ("Oslo", "New Delhi", "Rome", "San Juan")
        lines = []
        for _ in range(80):
            town = str(random.choice(places)).split()
            lines += [f"{random.choice(people)} B-PER", f"{random.choice(('visits', 'leaves'))} O"]
            lines += [f"{word} {'I' if index else 'B'}-LOC" for index, word in enumerate(town)]
            lines += [f"{random.choice(('today', 'again'))} O", ""]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tags.conll"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def splits(self, seed: int) -> Splits:
        """Return five splits, stratified by the first column of labels, or random without one.

        Raises:
            UsageError: There are too few texts.
        """
        label = self._find_label()
        if label is None:
            return split_randomly(self._parts, seed)
        return complete_splits(self._parts, seed, self.labels[label], self._parts["train"].targets[label])

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the texts of the test split."""
        label = self._find_label()
        strata = None if label is None else self._parts["train"].targets[label]
        part, rows = locate_test_rows(self._parts, seed, strata, at_random=label is None)
        return [self._texts[part][row] for row in rows]

    def _find_label(self) -> str | None:
        """Return the head by whose classes the splits are stratified; None if there are only tags."""
        return next((head for head in self.heads if head != TAG_HEAD), None)

    def _read_heads(self, texts: Mapping[str, Texts], columns: Sequence[str]) -> None:
        """Set the heads and the names of their classes."""
        names = {column: make_head_name(column) for column in columns}
        check_distinct_heads({TAG_HEAD: TAG_HEAD, **names})
        train = texts["train"]
        minimum = len(FRACTIONS) + 1 - ("test" in texts)
        self._classes = {column: list_class_names(train, column, minimum) for column in columns}
        tags = sort_classes({tag for cell in train.labels[TAG_HEAD] for tag in cell.split()})
        # Outside of entities comes first: it is the most frequent one.
        tags = [tag for tag in tags if tag == OUTSIDE] + [tag for tag in tags if tag != OUTSIDE]
        if len(tags) < 2:
            raise UsageError(f"{train.path}: every token has the tag '{tags[0]}'; a task needs at least two tags")
        # Parts of speech have no beginning and no end, so entities are sought only in tags of a scheme.
        is_scheme = is_entity_scheme(tags)
        heads: dict[str, Head] = {TAG_HEAD: Tags(len(tags), "entity_f1" if is_scheme else "accuracy")}
        heads |= {names[column]: Head(len(self._classes[column])) for column in columns}
        self.heads: Mapping[str, int] = heads
        self.labels = {TAG_HEAD: tags, **{names[column]: self._classes[column] for column in columns}}
        self.metrics = metrics_of(list(heads.values()))
        if is_scheme:
            for read in texts.values():
                _check_scheme(read)

    def _make_split(self, texts: Texts, columns: Sequence[str], rows: Sequence[int]) -> Split:
        chosen = [texts.texts[row] for row in rows]
        tags = [texts.labels[TAG_HEAD][row].split() for row in rows]
        targets = {TAG_HEAD: place_tags(self.encoding, chosen, tags, self.labels[TAG_HEAD], texts, rows)}
        for column in columns:
            targets[make_head_name(column)] = index_classes(texts, column, self._classes[column], rows)
        return Split((self.encoding(chosen),), targets)

    def _collect_notices(self, texts: Mapping[str, Texts]) -> Iterator[str]:
        for part, read in texts.items():
            for field, count in read.left_out.items():
                yield f"{read.path.name}: {count:,} rows without a {field} are left out"
            if repeats := len(read.texts) - len(self._parts[part]):
                yield f"{read.path.name}: {repeats:,} texts that repeat an earlier one are left out"
        train = texts["train"]
        words = sum(len(text.split()) for text in train.texts)
        tagged = int((self._parts["train"].targets[TAG_HEAD] != IGNORED).sum())
        repeated = len(train.texts) - len(self._parts["train"])
        if not repeated and tagged < words:
            unit = f"{self.encoding.length} {self.encoding.kind}"
            yield f"{1 - tagged / words:.0%} of the words lie beyond {unit} and are cut off"


def place_tags(
    encoding: Encoding,
    texts: Sequence[str],
    tags: Sequence[Sequence[str]],
    names: Sequence[str],
    source: Texts | None = None,
    rows: Sequence[int] = (),
) -> Tensor:
    """Return the class of every token, ``[N, T]``: that of a word at its first token, ``IGNORED`` at all others.

    Args:
        encoding: Encoding of the texts.
        texts: Texts whose words are separated by spaces.
        tags: Tag of each word of each text.
        names: Names of the tags, in the order of their classes.
        source: File of the texts, for messages.
        rows: Row of each text in the file.

    Raises:
        UsageError: A tag is not among the names.
    """
    classes = {name: index for index, name in enumerate(names)}
    targets = torch.full((len(texts), encoding.length), IGNORED)
    for number, (text, of_text) in enumerate(zip(texts, tags, strict=True)):
        unknown = [tag for tag in of_text if tag not in classes]
        if unknown:
            location = source.format_location(rows[number]) if source else f"text {number}"
            raise UsageError(f"{location}: the tag '{unknown[0]}' does not occur in the training file")
        # Words are separated by single spaces, also where the file had more of them.
        positions = encoding.locate_words(text.split(" "))
        pairs = [(at, classes[tag]) for at, tag in zip(positions, of_text, strict=True) if at < encoding.length]
        if pairs:
            places, indices = zip(*pairs, strict=True)
            targets[number, list(places)] = torch.tensor(indices)
    return targets


@dataclass(frozen=True)
class TaggedColumns:
    """The columns of a file of tagged texts.

    Attributes:
        text: Name of the column of texts.
        tags: Name of the column of tags.
        labels: Names of the columns of labels.
        token: Position of the column of tokens of a CoNLL file; None for the usual one.
        tag: Position of the column of tags of a CoNLL file; None for the usual one.
        key: Name of the column of groups or times; empty if there is none.
    """

    text: str
    tags: str
    labels: tuple[str, ...]
    token: int | None = None
    tag: int | None = None
    key: str = ""


def _read_tagged(path: Path, columns: TaggedColumns, encoding: str) -> Texts:
    """Return the texts of a file, words separated by single spaces, with their tags in the column ``tags``."""
    text, tags, labels = columns.text, columns.tags, columns.labels
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a CoNLL, .csv or .tsv file")
    if suffix in CONLL_SUFFIXES:
        if labels:
            raise UsageError(f"{path} is a CoNLL file, which has no labels of texts; leave task.tagging.labels out")
        if columns.key:
            raise UsageError(
                f"{path} is a CoNLL file, which has no column '{columns.key}'; give a .csv file with one row for each "
                "text, or leave `splits` out"
            )
        default = CONLLU_COLUMNS if suffix == ".conllu" else (0, -1)
        positions = zip((columns.token, columns.tag), default, strict=True)
        token, tag = (given if given is not None else usual for given, usual in positions)
        return read_conll(path, token, tag)
    if suffix not in DELIMITERS:
        suffixes = ", ".join([*CONLL_SUFFIXES, *DELIMITERS])
        raise UsageError(f"{path} is of an unknown kind; give a file that ends in {suffixes}")
    read = read_texts(path, text, [tags, *labels], encoding, columns.key)
    words = [cell.split() for cell in read.texts]
    for row, cell in enumerate(read.labels[tags]):
        if len(cell.split()) != len(words[row]):
            raise UsageError(
                f"{read.format_location(row)}: {len(cell.split())} tags in '{tags}' for {len(words[row])} tokens in "
                f"'{text}'; give one tag for each token, both separated by spaces"
            )
    columns_read = {TAG_HEAD: read.labels[tags], **{name: read.labels[name] for name in labels}}
    return replace(read, texts=tuple(" ".join(row) for row in words), labels=columns_read)


def _check_scheme(texts: Texts) -> None:
    """Check that every entity begins with a B or S tag, and that I and E continue one of their type.

    Raises:
        UsageError: A tag has no beginning; the message names the line of the text.
    """
    for row, cell in enumerate(texts.labels[TAG_HEAD]):
        # An entity does not go on from one text to the next.
        before = (OUTSIDE, "")
        for word, tag in zip(texts.texts[row].split(" "), cell.split(), strict=True):
            prefix, kind = split_tag(tag) if is_entity_scheme([tag]) else (OUTSIDE, "")
            continues = before[0] in ("B", "I") and before[1] == kind
            if prefix in ("I", "E", "L") and not continues:
                raise UsageError(
                    f"{texts.format_location(row)}: '{word}' has the tag '{tag}' but no entity of that type begins "
                    f"before it; begin each entity with 'B-{kind}' (scheme IOB2)"
                )
            before = prefix, kind


@dataclass(frozen=True)
class LocaleSentence:
    """A sentence of names in one language.

    Attributes:
        words: Its words.
        tags: Tag of each word.
        language: Code of the language.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    language: str


@lru_cache(maxsize=1)
def locale_sentences(count: int = 6000, seed: int = 0) -> tuple[LocaleSentence, ...]:
    """Return sentences that list names and dates in one language, built from Babel's locale data (CLDR).

    Each sentence joins one to three names by the list pattern of its language ("A, B und C"), with a date and words
    that are no names, the days of the week, among them. A name occurs in one sentence only, so that a name of the test
    split is never seen in training. They are generated from real names and patterns, not written by people.

    Args:
        count: Number of sentences.
        seed: Seed of the selection and order of the names.

    Example:
        >>> " ".join(locale_sentences()[0].tags).count("B-") >= 1
        True
    """
    random = np.random.default_rng(seed)
    names_of: dict[str, list[LocaleName]] = {code: [] for code in LANGUAGES}
    for name in locale_names():
        names_of[name.language].append(name)
    sentences = []
    for code in LANGUAGES:
        locale = Locale.parse(code)
        names = [names_of[code][index] for index in random.permutation(len(names_of[code]))]
        for _ in range(-(-count // len(LANGUAGES))):
            chosen = [names.pop() for _ in range(int(random.integers(1, 4))) if names]
            if chosen:
                sentences.append(_make_sentence(locale, chosen, random))
    return tuple(sentences[index] for index in random.permutation(len(sentences))[:count])


def _make_sentence(locale: Locale, names: Sequence[LocaleName], random: np.random.Generator) -> LocaleSentence:
    items = [(name.text, name.kind.upper()) for name in names]
    if random.random() < 0.5:
        day = np.datetime64("2000-01-01") + int(random.integers(0, 10_000))
        items.append((format_date(day.astype(object), "long", locale), "DATE"))
    if random.random() < 0.5:
        weekdays = list(locale.days["format"]["wide"].values())
        items.append((weekdays[int(random.integers(len(weekdays)))], ""))
    items = [items[index] for index in random.permutation(len(items))]
    # Markers that no name holds tell the words of the pattern from those of the items.
    pattern = format_list([f"\x01{index}\x02" for index in range(len(items))], locale=locale)
    words, tags = [], []
    for piece in re.split(r"(\x01\d+\x02)", pattern):
        is_item = piece.startswith("\x01")
        text, kind = items[int(piece[1:-1])] if is_item else (piece, "")
        for position, word in enumerate(text.split()):
            words.append(word)
            tags.append(f"{'I' if position else 'B'}-{kind}" if kind else OUTSIDE)
    return LocaleSentence(tuple(words), tuple(tags), locale.language)


@TASKS.register("entities")
class Entities(_TagTask):
    """Named entities and the language of a sentence: two heads, one for each token and one for each text.

    The data is generated from Babel's locale data (CLDR): 6,000 lists of names of territories, languages, currencies
    and scripts, and of dates, in 30 languages, see :func:`locale_sentences`. No name of a test sentence occurs in a
    training sentence.

    Args:
        length: Number of characters per text; words beyond it are cut off.

    Raises:
        UsageError: The length is out of bounds.
    """

    name = "entities"
    labels: Mapping[str, Sequence[str]] = {
        TAG_HEAD: (OUTSIDE, *(f"{prefix}-{kind.upper()}" for kind in (*KINDS, "date") for prefix in "BI")),
        "language": LANGUAGES,
    }
    heads: Mapping[str, int] = {TAG_HEAD: Tags(len(labels[TAG_HEAD])), "language": Head(len(LANGUAGES))}
    metrics = metrics_of([Tags(2), Head(2)])

    def __init__(self, length: int = 64) -> None:
        texts = [" ".join(sentence.words) for sentence in locale_sentences()]
        self.encoding = fit_encoding("characters", texts, length)
        self.inputs = self._input_specs()

    @property
    def notices(self) -> Sequence[str]:
        """A remark that the sentences are generated."""
        return ("the sentences are generated from lists of real names; scores do not transfer to written texts",)

    def splits(self, seed: int) -> Splits:
        """Return five splits, stratified by language."""
        sentences = locale_sentences()
        texts = [" ".join(sentence.words) for sentence in sentences]
        tags = place_tags(self.encoding, texts, [sentence.tags for sentence in sentences], self.labels[TAG_HEAD])
        language = torch.tensor([LANGUAGES.index(sentence.language) for sentence in sentences])
        keys = ExampleKeys(contents=digest_texts(texts))
        whole = Split((self.encoding(texts),), {TAG_HEAD: tags, "language": language}, keys)
        return complete_splits({"train": whole}, seed, LANGUAGES, language)

    def list_test_examples(self, seed: int) -> Sequence[RawExample]:
        """Return the sentences of the test split."""
        sentences = locale_sentences()
        language = torch.tensor([LANGUAGES.index(sentence.language) for sentence in sentences])
        return [" ".join(sentences[row].words) for row in stratify_rows(language, seed)["test"]]
