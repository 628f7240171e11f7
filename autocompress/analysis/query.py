"""Rows by an expression such as ``effective_flops <= 2e6 and accuracy >= 0.95``: parsed, never executed."""

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.core.formatting import NUMBER, UNIT, parse_quantity
from autocompress.errors import UnknownNameError, UsageError, did_you_mean

_EXAMPLE = 'write for example "effective_flops <= 2e6 and accuracy >= 0.95"'
# Longer expressions take the parser too long.
_LONGEST = 2000
# Quoted text, names and plain numbers stay as they are; a number with a unit is written as a plain one.
_TOKENS = re.compile(
    rf"""'(?:[^'\\\\]|\\\\.)*'|"(?:[^"\\\\]|\\\\.)*"|[^\W\d][\w.@]*|(?P<quantity>{NUMBER}\s*{UNIT})(?![\w.])|{NUMBER}"""
)
_Comparison: TypeAlias = Callable[[NDArray[np.generic], NDArray[np.generic]], object]
_COMPARISONS: dict[type[ast.cmpop], _Comparison] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class _Operand:
    """One side of a comparison: values ``[N]``, a mask of present values, and whether they are text."""

    values: NDArray[np.generic]
    present: NDArray[np.bool_]
    text: bool
    source: str


def filter_rows(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Return the rows that satisfy an expression.

    Allowed are comparisons, ``and``, ``or``, ``not``, parentheses, column names (``accuracy@language`` is one too, and
    so are names with spaces or hyphens, such as ``accuracy@star rating``), numbers, also with a unit (``97%``,
    ``30 KB``), quoted text, ``True`` and ``False``. A missing value satisfies no comparison, not even ``!=``.

    Raises:
        UnknownNameError: A name is no column; the message suggests the nearest.
        UsageError: Anything else; the message names the offending piece.

    Example:
        >>> frame = pd.DataFrame({"accuracy": [0.9, 0.97], "prune": ["none", "structured"]})
        >>> filter_rows(frame, "accuracy >= 0.95 and prune == 'structured'").index.tolist()
        [1]
        >>> filter_rows(frame, "accuracy < 97%").index.tolist()
        [0]
    """
    # The expression is parsed and interpreted here; it is never given to eval.
    aliases = _alias_columns(table)
    text = _replace_quantities(_replace_names(expression, aliases))
    tree = _parse(text) if len(expression) <= _LONGEST else None
    if tree is None:
        raise UsageError(f"cannot read '{_shorten_text(expression)}': {_EXAMPLE}")
    try:
        return table[_evaluate_condition(tree, table.rename(columns=aliases) if aliases else table)]
    except UsageError as error:
        message = str(error)
        for name, alias in aliases.items():
            message = message.replace(alias, name)
        raise type(error)(message) from None


def _parse(text: str) -> ast.expr | None:
    """Return the syntax tree of an expression; None if there is none."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _alias_columns(table: pd.DataFrame) -> dict[str, str]:
    """Return an alias for each column whose name is no expression: it has a space or a hyphen, or is a keyword."""
    names = filter(None, map(str, table.columns))
    awkward = [name for name in names if (tree := _parse(name)) is None or _column_name(tree) != name]
    return {name: f"column_{number}_of_the_table" for number, name in enumerate(awkward)}


def _replace_names(expression: str, aliases: dict[str, str]) -> str:
    """Return an expression with aliases in the place of columns, except in quoted text."""
    if not aliases:
        return expression
    # The longest name first: another name may be a part of it.
    names = "|".join(re.escape(name) for name in sorted(aliases, key=len, reverse=True))
    pattern = re.compile(rf"'[^']*'|\"[^\"]*\"|(?<![\w@.])(?:{names})(?![\w@.])")
    return pattern.sub(lambda match: aliases.get(match.group(), match.group()), expression)


def _replace_quantities(expression: str) -> str:
    """Return an expression with plain numbers in the place of those with a unit."""

    def replace_one(match: re.Match[str]) -> str:
        return match[0] if match["quantity"] is None else repr(parse_quantity(match["quantity"]))

    return _TOKENS.sub(replace_one, expression)


def _evaluate_condition(node: ast.expr, table: pd.DataFrame) -> NDArray[np.bool_]:
    if isinstance(node, ast.BoolOp):
        parts = [_evaluate_condition(part, table) for part in node.values]
        fold = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(fold.reduce(parts), dtype=bool)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_evaluate_condition(node.operand, table)
    if isinstance(node, ast.Compare):
        source = _shorten_text(ast.unparse(node))
        if any(type(symbol) not in _COMPARISONS for symbol in node.ops):
            raise UsageError(f"'{source}' compares by something else than <, <=, >, >=, == or !=")
        sides = [_read_operand(side, table) for side in (node.left, *node.comparators)]
        holds = np.ones(len(table), dtype=bool)
        for left, symbol, right in zip(sides, node.ops, sides[1:], strict=False):
            holds &= _evaluate_comparison(left, _COMPARISONS[type(symbol)], right, source)
        return holds
    raise UsageError(f"'{_shorten_text(ast.unparse(node))}' is not a comparison: {_EXAMPLE}")


def _evaluate_comparison(left: _Operand, compare: _Comparison, right: _Operand, source: str) -> NDArray[np.bool_]:
    # As in SQL, a missing value satisfies no comparison.
    both = left.present & right.present
    if not both.any():
        return both
    if left.text != right.text:
        text, number = (left, right) if left.text else (right, left)
        raise UsageError(f"'{source}' compares the text {text.source} with the number {number.source}")
    holds: NDArray[np.bool_] = both & np.asarray(compare(left.values, right.values), dtype=bool)
    return holds


def _read_operand(node: ast.expr, table: pd.DataFrame) -> _Operand:
    source = _shorten_text(ast.unparse(node))
    name = _column_name(node)
    if name is not None:
        if name not in table:
            raise UnknownNameError(f"unknown column '{name}': {did_you_mean(name, map(str, table.columns))}")
        return _column_operand(table[name], name)
    sign = 1.0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, node = (-1.0 if isinstance(node.op, ast.USub) else 1.0), node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    everywhere = np.ones(len(table), dtype=bool)
    if isinstance(value, str) and sign == 1.0:
        return _Operand(np.full(len(table), value, dtype=object), everywhere, True, source)
    if isinstance(value, int | float):
        try:
            return _Operand(np.full(len(table), sign * float(value)), everywhere, False, source)
        except OverflowError:
            raise UsageError(f"the number '{source}' is too large") from None
    raise UsageError(f"'{source}' is neither a column, a number nor quoted text")


def _column_operand(column: "pd.Series[Any]", name: str) -> _Operand:
    present = column.notna().to_numpy()
    if pd.api.types.is_numeric_dtype(column):
        return _Operand(column.to_numpy(dtype=np.float64, na_value=np.nan), present, False, name)
    values = list(column)
    given = [value for value, is_present in zip(values, present, strict=True) if is_present]
    if all(isinstance(value, int | float | np.number) for value in given):
        return _Operand(pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64), present, False, name)
    if not all(isinstance(value, str | int | float | bool) for value in given):
        raise UsageError(f"the column '{name}' holds neither numbers nor text")
    texts = [str(value) if is_present else "" for value, is_present in zip(values, present, strict=True)]
    return _Operand(np.array(texts, dtype=object), present, True, name)


def _column_name(node: ast.expr) -> str | None:
    """Return the column that a syntax tree names, such as ``student.cnn.width`` or ``accuracy@language``; else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _column_name(node.value)
        return None if base is None else f"{base}.{node.attr}"
    # Python parses the @ of accuracy@language as matrix multiplication.
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        score, head = _column_name(node.left), _column_name(node.right)
        return None if score is None or head is None else f"{score}@{head}"
    return None


def _shorten_text(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
