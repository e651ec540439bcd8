"""tau2's `calculate` tool without its trap.

It evaluates any expression of digits and `+-*/(). `, powers among them, and one of `9**9**9` holds the interpreter's lock for
hours: no deadline fires, no other episode moves, not even Ctrl-C. Expressions with a power are evaluated here with a bound on
the numbers in between; the answer is tau2's own wherever tau2 would have come to one in reasonable time.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable
from typing import Any

MAX_BITS = 100_000  # a float ends at 1,024 bits; more is only ever an intermediate result
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def bounded(calculate: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    """tau2's method, with powers evaluated by `power_safe`. Schema and docstring stay tau2's."""

    @functools.wraps(calculate)
    def guarded(self: Any, expression: str) -> str:
        if "**" not in expression or not all(char in "0123456789+-*/(). " for char in expression):
            return calculate(self, expression)
        return str(round(float(power_safe(expression)), 2))

    return guarded


def power_safe(expression: str) -> Any:
    """The value of an arithmetic expression. Raises what Python raises, and OverflowError for numbers past `MAX_BITS`.

    >>> power_safe("2 ** 10 + 6 / 4")
    1025.5
    >>> power_safe("9**9**9")
    Traceback (most recent call last):
        ...
    OverflowError: int too large to convert to float
    """
    return _value(ast.parse(expression, filename="<string>", mode="eval").body)


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right):
            return _within(OPERATORS[type(op)](_value(left), _value(right)))
        case _:
            raise TypeError("'int' object is not callable")  # `2(3)`: all that is left of these characters


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and exponent * abs(base).bit_length() > MAX_BITS:
        raise OverflowError("int too large to convert to float")
    return base**exponent


def _within(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError("int too large to convert to float")
    return value
