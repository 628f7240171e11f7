"""Rows by an expression such as ``effective_flops <= 2e6 and accuracy >= 0.95``: parsed, never executed."""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.errors import UnknownNameError, UsageError, did_you_mean

_EXAMPLE = 'write for example "effective_flops <= 2e6 and accuracy >= 0.95"'
_LONGEST = 2000
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class _Operand:
    """One side of a comparison: values ``[N]``, which of them are present, and whether they are text."""

    values: NDArray[Any]
    present: NDArray[np.bool_]
    text: bool
    source: str


def where(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Return the rows for which an expression holds.

    Allowed are comparisons, ``and``, ``or``, ``not``, parentheses, column names (``accuracy@language`` is one too),
    numbers, quoted text, ``True`` and ``False``. A missing value satisfies no comparison, not even ``!=``.

    Raises:
        UnknownNameError: A name is no column; the message suggests the nearest.
        UsageError: Anything else; the message names the offending piece.

    Example:
        >>> frame = pd.DataFrame({"accuracy": [0.9, 0.97], "prune": ["none", "structured"]})
        >>> where(frame, "accuracy >= 0.95 and prune == 'structured'").index.tolist()
        [1]
    """
    tree = None
    if len(expression) <= _LONGEST:
        try:
            tree = ast.parse(expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = None
    if tree is None:
        raise UsageError(f"cannot read '{_short(expression)}': {_EXAMPLE}")
    return table[_condition(tree.body, table)]


def _condition(node: ast.expr, table: pd.DataFrame) -> NDArray[np.bool_]:
    if isinstance(node, ast.BoolOp):
        parts = [_condition(part, table) for part in node.values]
        fold = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(fold.reduce(parts), dtype=bool)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_condition(node.operand, table)
    if isinstance(node, ast.Compare):
        source = _short(ast.unparse(node))
        if any(type(symbol) not in _COMPARISONS for symbol in node.ops):
            raise UsageError(f"'{source}' compares by something else than <, <=, >, >=, == or !=")
        sides = [_operand(side, table) for side in (node.left, *node.comparators)]
        holds = np.ones(len(table), dtype=bool)
        for left, symbol, right in zip(sides, node.ops, sides[1:], strict=False):
            holds &= _compare(left, _COMPARISONS[type(symbol)], right, source)
        return holds
    raise UsageError(f"'{_short(ast.unparse(node))}' is not a comparison: {_EXAMPLE}")


def _compare(left: _Operand, compare: Callable[[Any, Any], Any], right: _Operand, source: str) -> NDArray[np.bool_]:
    both = left.present & right.present
    if not both.any():
        return both
    if left.text != right.text:
        text, number = (left, right) if left.text else (right, left)
        raise UsageError(f"'{source}' compares the text {text.source} with the number {number.source}")
    holds: NDArray[np.bool_] = both & np.asarray(compare(left.values, right.values), dtype=bool)
    return holds


def _operand(node: ast.expr, table: pd.DataFrame) -> _Operand:
    source = _short(ast.unparse(node))
    name = _dotted(node)
    if name is not None:
        if name not in table:
            raise UnknownNameError(f"unknown column '{name}': {did_you_mean(name, map(str, table.columns))}")
        return _column(table[name], name)
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


def _column(column: "pd.Series[Any]", name: str) -> _Operand:
    present = column.notna().to_numpy()
    if pd.api.types.is_numeric_dtype(column):
        return _Operand(column.to_numpy(dtype=np.float64, na_value=np.nan), present, False, name)
    values = list(column)
    known = [value for value, there in zip(values, present, strict=True) if there]
    if all(isinstance(value, int | float | np.number) for value in known):
        return _Operand(pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64), present, False, name)
    if not all(isinstance(value, str | int | float | bool) for value in known):
        raise UsageError(f"the column '{name}' holds neither numbers nor text")
    texts = [str(value) if there else "" for value, there in zip(values, present, strict=True)]
    return _Operand(np.array(texts, dtype=object), present, True, name)


def _dotted(node: ast.expr) -> str | None:
    """Return ``student.cnn.width`` for the tree of a dotted name, or ``accuracy@language``; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        score, head = _dotted(node.left), _dotted(node.right)
        return None if score is None or head is None else f"{score}@{head}"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
