"""Rows by a filter such as ``effective_flops <= 2 MFLOPs and accuracy >= 95%``: parsed, never executed.

The command line, Python and the page read the same grammar; ``report/query.js`` follows this module function by
function, and ``tests/analysis/filter_cases.json`` holds cases on which both must agree::

    filter    = both {"or" both}
    both      = inverse {"and" inverse}
    inverse   = "not" inverse | "(" filter ")" | condition
    condition = operand sign operand {sign operand} | word | quoted text
    operand   = column | number with an optional unit | quoted text | "True" | "False"
    sign      = "<" | "<=" | ">" | ">=" | "=" | "==" | "!="

A word or a quoted text that is compared with nothing is looked up in all texts of a row. Names of columns are matched
as they are, the longest first, whatever characters they have.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.core.formatting import NUMBER, UNIT, parse_quantity
from autocompress.errors import UnknownNameError, UsageError, did_you_mean

#: Longest filter in characters, and most operators and parentheses around a condition.
LONGEST, DEEPEST = 2000, 50
#: Columns of nested values, which a word is not looked up in.
NESTED = ("config", "details")
#: A character that may continue a name or a number.
NAME_CHARACTER = r"""[^\s()<>=!,"']"""
_QUANTITY = re.compile(rf"[-+]?{NUMBER}(?:\s*{UNIT})?(?!{NAME_CHARACTER})")
_SIGN = re.compile(r"<=|>=|==|!=|[<>=]")
_WORD = re.compile(f"{NAME_CHARACTER}+")
_SPACE = re.compile(r"\s*")
_Comparison: TypeAlias = Callable[[NDArray[np.generic], NDArray[np.generic]], object]
_COMPARISONS: dict[str, _Comparison] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_TRUTH = {"true": 1.0, "false": 0.0}
_Kind: TypeAlias = Literal["column", "number", "text", "word", "sign", "(", ")", "and", "or", "not", "end"]


class FilterError(UsageError):
    """A filter that cannot be read; the message names the character.

    Attributes:
        start: Index of the first character that is wrong.
        end: Index behind the last one.
    """

    def __init__(self, problem: str, start: int, end: int) -> None:
        super().__init__(f"filter, character {start + 1}: {problem}")
        self.start, self.end = start, end

    def show_place(self, expression: str) -> str:
        """Return the filter with a line of marks below the wrong characters.

        Example:
            >>> print(FilterError("unknown column 'acc'", 4, 7).show_place("not acc > 1"))
            not acc > 1
                ^^^
        """
        first = max(0, self.start - 40)
        width = max(1, min(self.end, first + 76) - self.start)
        return f"{expression[first : first + 76]}\n{' ' * (self.start - first)}{'^' * width}"


class UnknownColumnError(FilterError, UnknownNameError):
    """A filter that compares a column that does not exist."""


@dataclass(frozen=True)
class _Token:
    """A piece of a filter: its kind, its text without quotes, and its place."""

    kind: _Kind
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Operand:
    """One side of a comparison: values ``[N]``, a mask of present values, whether they are text, and its tokens."""

    values: NDArray[np.generic]
    present: NDArray[np.bool_]
    is_text: bool
    token: _Token


def filter_rows(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Return the rows that satisfy a filter.

    Allowed are comparisons, ``and``, ``or``, ``not``, parentheses, column names (``accuracy@language`` is one too, and
    so are names with spaces or hyphens, such as ``accuracy@star rating``), numbers, also with a unit (``97%``,
    ``30 KB``), quoted text, ``True`` and ``False``. A word alone, such as ``structured``, holds for rows with a text
    that contains it. A value that is missing or not finite satisfies no comparison, not even ``!=``.

    Raises:
        UnknownColumnError: A name is no column; the message suggests the nearest.
        FilterError: Anything else; the message names the character and what is wrong with it.

    Example:
        >>> frame = pd.DataFrame({"accuracy": [0.9, 0.97], "prune": ["none", "structured"]})
        >>> filter_rows(frame, "accuracy >= 0.95 and prune == 'structured'").index.tolist()
        [1]
        >>> filter_rows(frame, "not accuracy < 97%").index.tolist()
        [1]
        >>> filter_rows(frame, "accuracy > 97 and and")
        Traceback (most recent call last):
            ...
        autocompress.analysis.query.FilterError: filter, character 19: a condition is missing before 'and'
    """
    try:
        rows: pd.DataFrame = table[_Filter(table, expression).select()]
    except FilterError as error:
        error.excerpt = error.show_place(expression)
        raise
    return rows


class _Filter:
    """A recursive-descent parser that evaluates conditions on a table while it reads them."""

    def __init__(self, table: pd.DataFrame, expression: str) -> None:
        self._table = table
        if len(expression) > LONGEST:
            raise FilterError(f"the filter has more than {LONGEST:,} characters", LONGEST, len(expression))
        self._tokens = list(read_tokens(expression, [str(name) for name in table.columns]))
        self._at = 0
        self._depth = 0

    def select(self) -> NDArray[np.bool_]:
        """Return a mask of the rows that satisfy the filter, ``[N]``."""
        mask = self._read_either()
        token = self._token
        if token.kind == ")":
            _refuse("this parenthesis closes none", token)
        if token.kind != "end":
            _refuse(f"write 'and' or 'or' before {_name_token(token)}", token)
        return mask

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _take_token(self) -> _Token:
        token = self._token
        self._at += 1
        return token

    def _read_either(self) -> NDArray[np.bool_]:
        mask = self._read_both()
        while self._token.kind == "or":
            self._at += 1
            mask = mask | self._read_both()
        return mask

    def _read_both(self) -> NDArray[np.bool_]:
        mask = self._read_inverse()
        while self._token.kind == "and":
            self._at += 1
            mask = mask & self._read_inverse()
        return mask

    def _read_inverse(self) -> NDArray[np.bool_]:
        if self._token.kind not in ("not", "("):
            return self._read_condition()
        opening = self._take_token()
        self._depth += 1
        if self._depth > DEEPEST:
            _refuse(f"more than {DEEPEST} parentheses and 'not' around a condition", opening)
        mask = ~self._read_inverse() if opening.kind == "not" else self._read_either()
        self._depth -= 1
        if opening.kind == "(":
            closing = self._take_token()
            if closing.kind == "end":
                _refuse("this parenthesis is not closed", opening)
            if closing.kind != ")":
                _refuse(f"write 'and' or 'or' before {_name_token(closing)}", closing)
        return mask

    def _read_condition(self) -> NDArray[np.bool_]:
        first = self._take_token()
        if first.kind not in ("column", "number", "text", "word"):
            where = "at the end" if first.kind == "end" else f"before {_name_token(first)}"
            _refuse(f"a condition is missing {where}", first)
        if self._token.kind == "sign":
            return self._read_comparison(first)
        if first.kind == "column":
            _refuse(f"'{first.text}' needs a comparison, such as {first.text} >= 0.95", first)
        if first.kind == "number":
            _refuse(f"the number '{first.text}' is compared with nothing", first)
        return self._find_text(first.text)

    def _read_comparison(self, first: _Token) -> NDArray[np.bool_]:
        left = self._read_operand(first)
        mask = np.ones(len(self._table), dtype=bool)
        while self._token.kind == "sign":
            sign, token = self._take_token(), self._take_token()
            if token.kind not in ("column", "number", "text", "word"):
                where = "at the end" if token.kind == "end" else f"before {_name_token(token)}"
                _refuse(f"a column, a number or a quoted text is missing {where}", token)
            if left.is_text and token.kind == "word":
                _refuse(f"write {_name_token(token)} in quotation marks", token)
            right = self._read_operand(token)
            mask &= _compare_operands(left, sign.text, right)
            left = right
        return mask

    def _read_operand(self, token: _Token) -> _Operand:
        everywhere = np.ones(len(self._table), dtype=bool)
        if token.kind == "column":
            return _column_operand(self._table[token.text], token)
        if token.kind == "text":
            return _Operand(np.full(len(self._table), token.text, dtype=object), everywhere, True, token)
        value = parse_quantity(token.text) if token.kind == "number" else _TRUTH.get(token.text.lower())
        if value is None:
            if token.text[0] in "0123456789":
                _refuse(f"'{token.text}' is no number such as 2e6, 97% or 30KB", token)
            hint = did_you_mean(token.text, map(str, self._table.columns))
            raise UnknownColumnError(f"unknown column '{token.text}': {hint}", token.start, token.end)
        if not math.isfinite(value):
            _refuse(f"the number '{shorten_text(token.text)}' is too large", token)
        return _Operand(np.full(len(self._table), value), everywhere, False, token)

    def _find_text(self, text: str) -> NDArray[np.bool_]:
        """Return the rows of which a text contains another one, in capital letters or not."""
        mask = np.zeros(len(self._table), dtype=bool)
        for name in self._table.columns:
            column = self._table[name]
            if name not in NESTED and describe_kind(column) == "text":
                mask |= [value is not None and text.lower() in value.lower() for value in list_texts(column)]
        return mask


def read_tokens(expression: str, columns: list[str]) -> Iterator[_Token]:
    """Yield the tokens of a filter, the last one of the kind ``end``.

    Args:
        expression: The filter.
        columns: Names of the columns.

    Raises:
        FilterError: A quotation mark has no partner, or a character has no meaning.
    """
    # The longest name first: another name may be a part of it.
    names = sorted(filter(None, columns), key=len, reverse=True)
    column = re.compile(rf"(?:{'|'.join(map(re.escape, names))})(?!{NAME_CHARACTER})") if names else None
    at = 0
    while True:
        space = _SPACE.match(expression, at)
        at = at if space is None else space.end()
        if at == len(expression):
            yield _Token("end", "", at, at)
            return
        token = _read_token(expression, at, column)
        yield token
        at = token.end


def _read_token(expression: str, at: int, column: re.Pattern[str] | None) -> _Token:
    character = expression[at]
    if column is not None and (match := column.match(expression, at)):
        return _Token("column", match[0], at, match.end())
    if character in "()":
        return _Token("(" if character == "(" else ")", character, at, at + 1)
    if match := _SIGN.match(expression, at):
        return _Token("sign", match[0], at, match.end())
    if character in "'\"":
        end = expression.find(character, at + 1)
        if end < 0:
            raise FilterError("this quotation mark has no partner", at, at + 1)
        return _Token("text", expression[at + 1 : end], at, end + 1)
    if match := _QUANTITY.match(expression, at):
        return _Token("number", match[0], at, match.end())
    if match := _WORD.match(expression, at):
        words: dict[str, _Kind] = {"and": "and", "or": "or", "not": "not"}
        return _Token(words.get(match[0].lower(), "word"), match[0], at, match.end())
    raise FilterError(f"'{character}' has no meaning here", at, at + 1)


def _refuse(problem: str, token: _Token) -> NoReturn:
    raise FilterError(problem, token.start, token.end)


def _name_token(token: _Token) -> str:
    return f"'{shorten_text(token.text)}'"


def _compare_operands(left: _Operand, sign: str, right: _Operand) -> NDArray[np.bool_]:
    # As in SQL, a missing value satisfies no comparison.
    both = left.present & right.present
    if not both.any():
        return both
    start, end = left.token.start, right.token.end
    if left.is_text != right.is_text:
        text, number = (left.token, right.token) if left.is_text else (right.token, left.token)
        problem = f"this compares the text {_name_token(text)} with the number {_name_token(number)}"
        raise FilterError(problem, start, end)
    if left.is_text and sign not in ("=", "==", "!="):
        raise FilterError(f"texts are compared by == and != only, not by {sign}", start, end)
    _check_unit(left.token, right.token)
    holds: NDArray[np.bool_] = both & np.asarray(_COMPARISONS[sign](left.values, right.values), dtype=bool)
    return holds


def _check_unit(*tokens: _Token) -> None:
    """Check that a number does not have the unit of another column than the one that it is compared with."""
    (column, number) = sorted(tokens, key=lambda token: token.kind)
    if (column.kind, number.kind) == ("column", "number"):
        try:
            parse_quantity(number.text, column.text)
        except ValueError as error:
            _refuse(str(error), number)


def describe_kind(column: "pd.Series[Any]") -> Literal["number", "text", "nested"]:
    """Return what a column holds: ``number`` (also truth values), ``text``, or ``nested`` values."""
    if pd.api.types.is_numeric_dtype(column):
        return "number"
    values = column[column.notna()].tolist()
    if all(isinstance(value, int | float | np.number) for value in values):
        return "number"
    return "text" if all(isinstance(value, str | int | float | bool) for value in values) else "nested"


def _column_operand(column: "pd.Series[Any]", token: _Token) -> _Operand:
    kind = describe_kind(column)
    if kind == "nested":
        _refuse(f"the column '{token.text}' holds neither numbers nor text", token)
    if kind == "number":
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        return _Operand(numbers, np.isfinite(numbers), False, token)
    texts = np.array(list_texts(column), dtype=object)
    return _Operand(texts, texts != np.array(None), True, token)


def list_texts(column: "pd.Series[Any]") -> list[str | None]:
    """Return the values of a column of texts, other values as texts too; None where there is none."""
    return [str(value) if is_present else None for value, is_present in zip(column, column.notna(), strict=True)]


def shorten_text(text: str) -> str:
    """Return a text of at most 60 characters."""
    return text if len(text) <= 60 else text[:57] + "..."
