"""Environments of one domain in their initial state, made without reading the domain's files again.

tau2 parses and validates its databases and reads its policy for every environment, once an episode and twice a grading: seconds
in the large domains. Here that is done once a process, and each environment gets databases of its own: a copy-on-write view of
a shared one where it is large, a copy where it is small. What tau2 keeps on its classes, and so shares between episodes, is each
environment's own.

This holds for tau2's own domains, whose code was read. A domain that somebody else registered may keep anything anywhere: its
environments come from its own constructor, one call each.

tau2's `calculate` tool evaluates any expression of digits and `+-*/(). `, and one of `9**9**9` holds the interpreter's lock for
hours: no deadline fires, no other episode moves, not even Ctrl-C. Here powers and products refuse numbers of more than
`MAX_BITS`; every other answer and error is Python's own, as in tau2.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import importlib
import json
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2
from tau2rl.env.database import SharedDatabase
from tau2rl.env.package import NVIDIA, installed

from tau2.data_model.message import ToolCall, ToolMessage
from tau2.environment.environment import Environment
from tau2.registry import registry

OWN = ("airline", "retail", "telecom", "mock")  # tau2's own
LARGE = ("airline", "retail")  # their tools look up single entities, and write into none that they iterate over


def environment_factory(name: str) -> tuple[Callable[[], Environment], str]:
    """What makes a fresh environment of a registered domain (thread-safe), and a hash of its databases."""
    constructor = registry.get_env_constructor(name)
    if name not in OWN:
        environment = constructor()
        hashes = json.dumps([environment.get_db_hash(), environment.get_user_db_hash()])
        return constructor, hashlib.sha256(hashes.encode()).hexdigest()
    paths = importlib.import_module(f"tau2.domains.{name}.utils")
    names = (f"{name.upper()}_DB_PATH", f"{name.upper()}_USER_DB_PATH")
    content = hashlib.sha256()
    for path in (getattr(paths, path) for path in names if hasattr(paths, path)):
        content.update(Path(path).read_bytes())
    return _Factory(constructor(), large=name in LARGE), content.hexdigest()


def copies_of(environment: Environment, base: str) -> Callable[[], Environment]:
    """What makes fresh environments that equal this one of tau2's own domain `base`, which may have another database."""
    return _Factory(environment, large=base in LARGE)


class _Factory:
    """Makes environments that equal one that tau2's constructor gave."""

    def __init__(self, made: Environment, *, large: bool) -> None:
        toolkits: dict[str, Any] = {"tools": made.tools}
        if made.user_tools is not None:
            toolkits["user_tools"] = made.user_tools
        databases: dict[str, Any] = {attribute: toolkit.db for attribute, toolkit in toolkits.items()}
        large = large and SharedDatabase.fits(databases["tools"])
        self._shared = SharedDatabase(databases.pop("tools")) if large else None
        self._pickled = pickle.dumps(databases, protocol=pickle.HIGHEST_PROTOCOL)  # by the attribute of their toolkit
        self._toolkits = {attribute: _kind(type(toolkit), self._shared) for attribute, toolkit in toolkits.items()}
        self._vpn: Any = copy.deepcopy(getattr(made.user_tools, "default_vpn_details", None))
        self._bare = _without_toolkits(made)

    def __call__(self) -> Environment:
        databases = pickle.loads(self._pickled)  # noqa: S301 - pickled by this process
        if self._shared is not None:
            databases["tools"] = self._shared.database()
        made = copy.copy(self._bare)
        for attribute, kind in self._toolkits.items():
            setattr(made, attribute, kind(databases[attribute]))
        if self._vpn is not None:
            # tau2 keeps these on the class, and `break_vpn` writes into them: every later episode would start with a bad VPN.
            phone: Any = made.user_tools
            phone.default_vpn_details = copy.deepcopy(self._vpn)
        made.sync_tools()
        return made


def _without_toolkits(made: Environment) -> Environment:
    """The environment as tau2's constructor gave it, policy and all, but without its toolkits."""
    made.tools = made.user_tools = None
    if installed().distribution == NVIDIA:  # whose `get_response` this is
        made.__class__ = type(type(made).__name__, (type(made),), {"get_response": _get_response})
    return made


def _kind(kind: type[Any], shared: SharedDatabase | None) -> type[Any]:
    """The toolkit's class with a calculator that ends and, for a shared database, its quick hash."""
    metaclass: Any = type(kind)
    ours: Any = metaclass(kind.__name__, (kind,), {})
    # Set afterwards: tau2 lists a class's own tools before those that it inherits, and their order is part of the prompt.
    if hasattr(kind, "calculate"):
        ours.calculate = bounded(kind.calculate)
    if shared is not None and hasattr(kind, "get_db_hash"):
        ours.get_db_hash = lambda toolkit: shared.hash(toolkit.db)
    return ours


def _get_response(environment: Environment, message: ToolCall) -> ToolMessage:
    """tau2's `get_response`, which writes the text of every answer for a log that nobody reads."""
    error = False
    try:
        answer = environment.make_tool_call(message.name, requestor=message.requestor, **message.arguments)
        environment.sync_tools()
    except Exception as failure:  # noqa: BLE001 - as tau2: whatever a tool raises is its answer
        answer, error = f"Error: {failure}", True
    content = environment.to_json_str(answer)
    return ToolMessage(id=message.id, content=content, requestor=message.requestor, role="tool", error=error)


MAX_BITS = 100_000  # of a whole number; a float ends at 1,024, so more is only ever an intermediate result
ALLOWED = frozenset("0123456789+-*/(). ")  # tau2's own


def bounded(calculate: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    """tau2's method, with `evaluate_expression` for expressions with a power. Schema and docstring stay tau2's."""

    @functools.wraps(calculate)
    def guarded(self: Any, expression: str) -> str:
        # Models call it with numbers and lists, too: tau2 says what is wrong with those.
        if not isinstance(expression, str) or "**" not in expression or not ALLOWED.issuperset(expression):
            return calculate(self, expression)
        return str(round(float(evaluate_expression(expression)), 2))

    return guarded


def evaluate_expression(expression: str) -> Any:
    """The value of an arithmetic expression. Raises what Python raises, and OverflowError for numbers past `MAX_BITS`.

    >>> evaluate_expression(" 2 ** 10 + 6 / 4")
    1025.5
    >>> evaluate_expression("9**9**9")
    Traceback (most recent call last):
        ...
    OverflowError: int too large to convert to float
    """
    text = expression.lstrip(" ")  # `eval` ignores them too
    compile(text, "<string>", "eval")  # whose errors and warnings are those of `eval`; it computes no large numbers
    return _value(ast.parse(text, filename="<string>", mode="eval").body)


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


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _product,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def _value(tree: ast.expr) -> Any:
    """The value of a tree, operands from left to right as Python has it; by a stack, for a tree may be thousands deep."""
    waiting: list[Any] = [tree]  # nodes, and operations with the number of their operands
    values: list[Any] = []
    while waiting:
        match waiting.pop():
            case ast.Constant(value=value):
                values.append(value)
            case ast.Tuple():  # without a comma there is only `()`
                values.append(())
            case ast.BinOp(left=left, op=op, right=right):
                waiting += [(_BINARY[type(op)], 2), right, left]
            case ast.UnaryOp(op=op, operand=operand):
                waiting += [(_UNARY[type(op)], 1), operand]
            # Nothing here can be called, and Python says so: `2(3)`, `2(*3)`, `2(**3)`, `2()`.
            case ast.Call(func=called, args=[ast.Starred(value=given)]):
                waiting += [(lambda called, given: called(*given), 2), given, called]
            case ast.Call(func=called, keywords=[ast.keyword(value=given)]):
                waiting += [(lambda called, given: called(**given), 2), given, called]
            case ast.Call(func=called, args=given):
                waiting += [(lambda called, *given: called(*given), 1 + len(given)), *given, called]
            case (operation, count):
                values[-count:] = [operation(*values[-count:])]
            case other:
                raise TypeError(f"no arithmetic: {type(other).__name__}")
    return values[0]
