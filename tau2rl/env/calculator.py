"""tau2's `calculate` tool without its trap.

It evaluates any expression of digits and `+-*/(). `, powers among them, and one of `9**9**9` holds the interpreter's lock for
hours: no deadline fires, no other episode moves, not even Ctrl-C. Here an expression with a power is evaluated by Python as
well, with its powers and products replaced by ones that refuse numbers of more than `MAX_BITS`. Every other answer and every
error is Python's own, as in tau2; but some 900 operations in a row are more than Python takes in this form.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any

MAX_BITS = 100_000  # of a whole number; a float ends at 1,024, so more is only ever an intermediate result
ALLOWED = frozenset("0123456789+-*/(). ")  # tau2's own
POWER, PRODUCT = "power", "product"  # no name can stand in an expression


def bounded(calculate: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    """tau2's method, with `evaluate` for expressions with a power. Schema and docstring stay tau2's."""

    @functools.wraps(calculate)
    def guarded(self: Any, expression: str) -> str:
        if "**" not in expression or not ALLOWED.issuperset(expression):
            return calculate(self, expression)
        return str(round(float(evaluate(expression)), 2))

    return guarded


def evaluate(expression: str) -> Any:
    """The value of an arithmetic expression. Raises what Python raises, and OverflowError for numbers past `MAX_BITS`.

    >>> evaluate(" 2 ** 10 + 6 / 4")
    1025.5
    >>> evaluate("9**9**9")
    Traceback (most recent call last):
        ...
    OverflowError: int too large to convert to float
    """
    tree = ast.parse(expression.lstrip(" "), filename="<string>", mode="eval")  # `eval` ignores them too
    for node in ast.walk(tree):
        match node:
            case ast.BinOp(op=ast.Pow()):
                _replace(node, POWER)
            case ast.BinOp(op=ast.Mult()):
                _replace(node, PRODUCT)
            case _:
                pass
    code = compile(tree, "<string>", "eval")
    return eval(code, {"__builtins__": None, POWER: _power, PRODUCT: _product}, {})  # noqa: S307 - of `ALLOWED` characters only


def _replace(operation: ast.BinOp, function: str) -> None:
    """Make the operation a call, in its place: a tree may be deeper than Python lets a visitor go."""
    left, right = operation.left, operation.right
    call: Any = operation
    call.__class__ = ast.Call
    call.func = ast.copy_location(ast.Name(id=function, ctx=ast.Load()), left)
    call.args, call.keywords = [left, right], []


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        _check(exponent * abs(base).bit_length())
    return base**exponent


def _product(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() + right.bit_length())
    return left * right


def _check(bits: int) -> None:
    if bits > MAX_BITS:
        raise OverflowError("int too large to convert to float")
