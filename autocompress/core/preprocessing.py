"""Declarative preprocessing: one record for each input of a model says how a raw example becomes a tensor.

A task returns the records from ``specify_preprocessing``. An artifact stores them as ``preprocess.json``, and its
``pipeline.py`` applies them without autocompress.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from autocompress.errors import UsageError

#: A raw example as a pipeline takes it: an image, a text or a series; a mapping of names where a model has several
#: inputs.
RawExample = object
Name = str | None


@dataclass(frozen=True)
class ImageInput:
    """A picture: a file, its bytes, a Pillow image, or an array ``[H, W]`` or ``[H, W, 3]``.

    A picture is rotated as its EXIF data says and converted to grey or RGB. With ``resize`` its center is cropped to
    the aspect ratio and resized with the bilinear filter; with ``stretch``, the whole picture is resized. Without, its
    size must be that of the model. The tensor is ``(pixel / scale - mean) / std`` with channels first.

    Attributes:
        shape: Channels (1 for grey, 3 for RGB), height and width.
        resize: Whether pictures of another size are resized.
        mean: Mean of each channel after the division by ``scale``.
        std: Standard deviation of each channel after the division by ``scale``.
        white: Value of a white pixel; brighter bytes are mapped to whole numbers from 0 to ``white``.
        scale: Divisor of the pixels.
        background: Colour behind transparent pixels.
        peak: Value of white in a picture of more than eight bits.
        stretch: Whether a resized picture is stretched to the aspect ratio instead of cropped, so that nothing is lost.
        name: Name of the input.
    """

    shape: tuple[int, int, int]
    resize: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int = 255
    scale: float = 1.0
    background: str = "white"
    peak: float = 65535.0
    stretch: bool = False
    name: str = "image"

    kind: ClassVar[str] = "image"

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        channels, height, width = self.shape
        mean, std = (
            ", ".join(f"{value * self.scale / self.white:.4f}" for value in values) for values in (self.mean, self.std)
        )
        resized = "stretched to" if self.stretch else "cropped and resized to"
        fit = resized if self.resize else "of"
        raw = "" if self.white == 255 else f" (raw values are from 0 to {self.white})"
        return (
            f"{'RGB' if channels == 3 else 'grey'} images {fit} {height} x {width} pixels from 0 to 1{raw}, channels "
            f"first, minus the mean ({mean}), divided by the standard deviation ({std})."
        )


@dataclass(frozen=True)
class TextInput:
    """A text, which becomes token indices; see :class:`autocompress.tasks.text_encoding.Encoding`.

    Attributes:
        encoding: Kind of token: ``bytes``, ``characters``, ``words`` or ``tokens`` (between white space).
        length: Number of tokens; longer texts lose their end, shorter ones are filled with 0.
        vocabulary: Number of distinct tokens, the padding included.
        alphabet: Characters with a token of their own.
        whitespace: ``strip`` removes white space at both ends, ``collapse`` also reduces it inside to one space.
        unicode_form: Unicode normalization of the text; empty for none.
        name: Name of the input.
    """

    encoding: str
    length: int
    vocabulary: int
    alphabet: str = ""
    whitespace: Literal["strip", "collapse"] = "strip"
    unicode_form: Literal["", "NFC"] = ""
    name: str = "text"

    kind: ClassVar[str] = "text"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example."""
        return (self.length,)

    def describe(self) -> str:
        """Return a sentence for the card of a model.

        Example:
            >>> TextInput("bytes", 4, 257).describe()
            'A text is 4 tokens of int64: each byte of UTF-8 plus 1; longer ones lose their end, 0 fills shorter ones.'
        """
        units = {
            "bytes": "each byte of UTF-8 plus 1",
            "characters": f"the place of each character in {self.alphabet!r} plus 1, {self.vocabulary - 1} for others",
            "words": f"the CRC-32 of each lowercased word modulo {self.vocabulary - 1}, plus 1",
            "tokens": f"the CRC-32 of each word between white space modulo {self.vocabulary - 1}, plus 1",
        }
        return (
            f"A text is {self.length} tokens of int64: {units[self.encoding]}; "
            "longer ones lose their end, 0 fills shorter ones."
        )


@dataclass(frozen=True)
class TokenizerInput:
    """A text, as one of the tensors that a tokenizer of Hugging Face makes of it; its inputs take the same text.

    Attributes:
        tokenizer: Content of ``tokenizer.json``; an artifact holds it as a file.
        length: Number of tokens, special ones included; longer texts lose their end.
        padding: Token id that fills shorter texts.
        vocabulary: Number of token ids.
        name: ``input_ids``, or ``attention_mask``: 1 for a token and 0 for padding.
        side: Side on which shorter texts are filled, ``right`` or ``left``.
    """

    tokenizer: str = field(repr=False)
    length: int
    padding: int
    vocabulary: int
    name: str = "input_ids"
    side: str = "right"

    kind: ClassVar[str] = "tokens"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example."""
        return (self.length,)

    def describe(self) -> str:
        """Return a sentence for the card of a model.

        Example:
            >>> TokenizerInput("", 8, 0, 100).describe()
            'A text is 8 token ids of tokenizer.json; longer ones lose their end, 0 fills shorter ones on the right.'
        """
        if self.name != "input_ids":
            return f"The {self.name} is 1 where a text has a token."
        return (
            f"A text is {self.length} token ids of tokenizer.json; longer ones lose their end, {self.padding} fills "
            f"shorter ones on the {self.side}."
        )


@dataclass(frozen=True)
class SeriesInput:
    """A series of numbers, which becomes ``(series - mean) / std``.

    Attributes:
        shape: Channels and length.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        name: Name of the input.
        is_padded: Whether series have any length: a longer one loses its end, and a shorter one is filled with zeros. A
            further channel, which has no mean, is 1 where the series has values.
    """

    shape: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "series"
    is_padded: bool = False

    kind: ClassVar[str] = "series"

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        text = f"Each channel minus its mean ({mean}), divided by its standard deviation ({std})."
        if self.is_padded:
            text += (
                f" A series longer than {self.shape[1]} points loses its end, and a shorter one is filled with zeros; "
                "the last channel is 1 where it has values."
            )
        return text


@dataclass(frozen=True)
class RowInput:
    """A row of named numbers, which becomes ``(row - mean) / std``.

    Attributes:
        columns: Names of the numbers in their order.
        mean: Mean of each number.
        std: Standard deviation of each number.
        name: Name of the input.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "features"

    kind: ClassVar[str] = "row"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example."""
        return (len(self.columns),)

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        return (
            f"The {self.name} are {len(self.columns)} numbers by name, each minus its mean and divided by its standard "
            "deviation (preprocess.json)."
        )


@dataclass(frozen=True)
class IdInput:
    """An id, such as a user's, which becomes a row of an embedding table.

    Attributes:
        name: Name of the input.
        ids: Ids in the order of their rows; None for a row without an id.
        first_row: Row of the first id.
        unknown_row: Row of every other id; None refuses them.
    """

    name: str
    ids: tuple[Name, ...]
    first_row: int = 0
    unknown_row: int | None = None

    kind: ClassVar[str] = "id"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example."""
        return ()

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        return f"The {self.name} is a row number from the id map in preprocess.json; {self._describe_unknown()}."

    def _describe_unknown(self) -> str:
        return "unknown ids are refused" if self.unknown_row is None else f"unknown ids are row {self.unknown_row}"


@dataclass(frozen=True)
class CandidatesInput(IdInput):
    """A list of ids to rank, of any length; without one, the whole catalogue ``ids`` is ranked.

    Attributes:
        count: Number of candidates in an example of the task.
        first: Name of an input of one id that is scored before the candidates; empty for none.
    """

    count: int = 1
    first: str = ""

    kind: ClassVar[str] = "candidates"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example of the task."""
        return (self.count,)

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        first = f" The {self.first} is scored before them." if self.first else ""
        return (
            f"The {self.name} are any number of rows from the id map in preprocess.json; {self._describe_unknown()}."
            f"{first}"
        )


@dataclass(frozen=True)
class NumbersInput:
    """Numbers of a row of a table by column, each scaled; a missing one is scaled to 0.

    A column with ``knots`` is interpolated between them, so that its values are spread like a normal distribution; the
    others become ``(value - mean) / std``. Behind the numbers stands one flag for each column of ``flagged``, which is
    1 where its value is missing.

    Attributes:
        columns: Columns of the numbers in their order.
        mean: Mean of each column.
        std: Standard deviation of each column.
        flagged: Columns with a flag.
        knots: Values of each column in ascending order; empty without interpolation.
        scores: Scaled value at each knot.
        name: Name of the input.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flagged: tuple[str, ...] = ()
    knots: tuple[tuple[float, ...], ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    name: str = "numbers"

    kind: ClassVar[str] = "numbers"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example."""
        return (len(self.columns) + len(self.flagged),)

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        form = "interpolated to a normal distribution" if any(self.knots) else "minus its mean, by its deviation"
        flags = f" and {len(self.flagged)} flags of missing values" if self.flagged else ""
        return f"The {self.name} are {len(self.columns)} columns of a row, each {form}{flags} (preprocess.json)."


@dataclass(frozen=True)
class CategoriesInput:
    """Categories of a row of a table by column, as rows of one table of embeddings.

    The rows of a column follow those of the column before it: first one for all unknown names, then one for each name.

    Attributes:
        columns: Columns of the categories in their order.
        names: Names of the categories of each column; an empty name is a missing value.
        name: Name of the input.
    """

    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    name: str = "categories"

    kind: ClassVar[str] = "categories"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one example."""
        return (len(self.columns),)

    @property
    def vocabulary(self) -> int:
        """Number of rows of the table of embeddings."""
        return sum(len(names) + 1 for names in self.names)

    def describe(self) -> str:
        """Return a sentence for the card of a model."""
        return f"The {self.name} are row numbers of {len(self.columns)} columns of a row (preprocess.json)."


@dataclass(frozen=True)
class TensorInput:
    """A tensor as the model takes it.

    Attributes:
        name: Name of the input.
        shape: Shape without the batch axis.
        dtype: Element type, as NumPy names it.
        vocabulary: Number of indices, from 0 up; 0 for real numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    vocabulary: int = 0

    kind: ClassVar[str] = "tensor"

    def describe(self) -> str:
        """Return an empty text: nothing is done to a tensor."""
        return ""


RawInput = (
    ImageInput
    | TextInput
    | TokenizerInput
    | SeriesInput
    | RowInput
    | NumbersInput
    | CategoriesInput
    | IdInput
    | TensorInput
)
#: One record for each positional argument of a model; empty if the task specifies none.
Preprocessing = tuple[RawInput, ...]


def dump_input(entry: RawInput) -> dict[str, object]:
    """Return a record as JSON values.

    Example:
        >>> dump_input(IdInput("user", ("a", "b"), first_row=1, unknown_row=0))["kind"]
        'id'
    """
    return {"kind": entry.kind, **asdict(entry)}


#: Kind of a record to its class.
RECORDS: Mapping[str, type[RawInput]] = {
    record.kind: record
    for record in (
        *(ImageInput, TextInput, TokenizerInput, SeriesInput, RowInput, NumbersInput, CategoriesInput),
        *(IdInput, CandidatesInput, TensorInput),
    )
}


def load_input(values: Mapping[str, Any]) -> RawInput:
    """Return the record that :func:`dump_input` wrote; entries that are no attributes are left out.

    Raises:
        UsageError: The kind is unknown, or an attribute is missing.

    Example:
        >>> load_input({"kind": "id", "name": "user", "ids": ["a", "b"], "tensor": "input"}).ids
        ('a', 'b')
    """
    # The constructors take the attributes by name, whatever their types.
    record: Callable[..., RawInput] | None = RECORDS.get(str(values.get("kind")))
    if record is None:
        raise UsageError(f"preprocessing of the kind '{values.get('kind')}' is unknown to this version")
    names = {entry.name for entry in fields(RECORDS[values["kind"]])}
    # JSON has lists, and records have tuples.
    attributes = {name: _as_tuples(value) for name, value in values.items() if name in names}
    try:
        return record(**attributes)
    except TypeError as error:
        raise UsageError(f"preprocessing of the kind '{values['kind']}' cannot be read ({error})") from error


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def describe_preprocessing(preprocessing: Preprocessing) -> str:
    """Return how a raw example becomes the inputs, as sentences; empty without a specification."""
    return " ".join(filter(None, (entry.describe() for entry in preprocessing)))


def check_preprocessing(task: str, preprocessing: Sequence[RawInput], shapes: Sequence[tuple[int, ...]]) -> None:
    """Check that a specification fits the inputs of a model.

    Args:
        task: Name of the task, for messages.
        preprocessing: Records of the task.
        shapes: Shape of each input without the batch axis.

    Raises:
        UsageError: Number, shapes or names of the inputs differ.
    """
    specified, needed = [tuple(entry.shape) for entry in preprocessing], [tuple(shape) for shape in shapes]
    if specified != needed:
        raise UsageError(
            f"task '{task}': specify_preprocessing describes inputs of the shapes {specified}, but its model takes "
            f"{needed}; return one record for each input"
        )
    names = [entry.name for entry in preprocessing]
    if len(set(names)) < len(names):
        raise UsageError(f"task '{task}': specify_preprocessing has two inputs of one name: {', '.join(names)}")
