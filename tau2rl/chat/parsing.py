"""A sampled turn to actions, and back: what the protocols share. Every fault of a turn is a `MalformedTurn` with its kind.

Arguments are checked against the JSON schema of their tool: the keywords that tau2's schemas use, as its tools would take them.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from tau2rl.chat.tokenizers import Tokenizer
from tau2rl.errors import MalformedTurn
from tau2rl.types import Actions, CallTool, MalformedKind, ToolSchema

Schema = Mapping[str, Any]
_WORDS = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def complaint(arguments: Mapping[str, Any], schema: Schema) -> str:
    """What is wrong with the arguments, "" when nothing is.

    Beyond the schema: a name that it does not list is refused (tau2 calls a Python function with them), and null is taken
    where the default is null.

    >>> complaint({"id": 5}, {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]})
    '`id` must be a string'
    """
    known: Mapping[str, Any] = schema.get("properties", {})
    if not schema.get("additionalProperties"):
        for name in arguments:
            if name not in known:
                return f"there is no argument `{name[:60]}`"
    return _object(arguments, schema, schema, "")


def _value(value: Any, schema: Any, root: Schema, path: str) -> str:
    if schema is True or (value is None and _takes_null(schema)):
        return ""
    if schema is False:
        return f"`{path}` is not allowed"
    if reference := schema.get("$ref"):
        return _value(value, _resolve(reference, root), root, path)
    if problem := _alternatives(value, schema, root, path) or _itself(value, schema, path):
        return problem
    if isinstance(value, dict):
        return _object(cast("dict[str, Any]", value), schema, root, path)
    if isinstance(value, list) and "items" in schema:
        items = cast("list[Any]", value)
        return next((p for i, item in enumerate(items) if (p := _value(item, schema["items"], root, f"{path}[{i}]"))), "")
    return ""


def _alternatives(value: Any, schema: Schema, root: Schema, path: str) -> str:
    for keyword in ("anyOf", "oneOf"):
        problems = [_value(value, option, root, path) for option in schema.get(keyword, ())]
        if problems and all(problems):
            return max(problems, key=len)  # the one that got furthest into the value
    return next((p for part in schema.get("allOf", ()) if (p := _value(value, part, root, path))), "")


def _itself(value: Any, schema: Schema, path: str) -> str:
    """Type and allowed values, without what is inside."""
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        return f"`{path}` must be one of {', '.join(repr(option) for option in schema['enum'])}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"`{path}` must be {schema['const']!r}"
    if "type" in schema:
        kinds: Sequence[str] = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_is(value, kind) for kind in kinds):
            return f"`{path}` must be {' or '.join(_WORDS.get(kind, kind) for kind in kinds)}"
    return ""


def _object(value: Mapping[str, Any], schema: Schema, root: Schema, path: str) -> str:
    prefix = f"{path}." if path else ""
    for name in schema.get("required", ()):
        if name not in value:
            return f"`{prefix}{name}` is missing"
    known: Mapping[str, Any] = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        if problem := _value(item, known.get(name, others), root, f"{prefix}{name[:60]}"):
            return problem
    return ""


def _takes_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and (schema.get("nullable") is True or schema.get("default", ...) is None)  # pyright: ignore[reportUnknownMemberType]


def _resolve(reference: str, root: Schema) -> Any:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "null":
            return value is None
        case _:
            return True


def _same(value: Any, option: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return value == option and isinstance(value, bool) == isinstance(option, bool)


OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CHARS = 200_000  # more than six times what 4096 tokens, the default of a turn, can write
MAX_DEPTH = 32  # tau2's tools need four


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A turn cut at its tags: `Blocks(before="One moment.", bodies=('{"name": "f"}',), outside="")`."""

    before: str  # all of the text when there is no block
    bodies: tuple[str, ...]  # what stands between each pair of tags
    outside: str  # text between and after the blocks, "" when that is only white space


def turn_text(tokenizer: Tokenizer, body_ids: Sequence[int], control: frozenset[int] | None = None) -> str:
    """The text of a turn whose end token is gone. Raises MalformedTurn: too long, empty, or with `control` tokens inside."""
    if len(body_ids) > MAX_CHARS:
        raise_malformed(MalformedKind.TOO_LONG, f"{len(body_ids)} tokens, where {MAX_CHARS} is the limit")
    if not (tokenizer.control_ids if control is None else control).isdisjoint(body_ids):
        raise_malformed(MalformedKind.TEXT_OUTSIDE, "the turn goes on behind a token that ends or begins one")
    text = tokenizer.decode(body_ids)
    if len(text) > MAX_CHARS:
        raise_malformed(MalformedKind.TOO_LONG, f"{len(text)} characters, where {MAX_CHARS} is the limit")
    if not text.strip():
        raise_malformed(MalformedKind.EMPTY, "the turn has no text")
    return text


def split_blocks(text: str) -> Blocks:
    """Cut a turn at its `<tool_call>` tags. Raises MalformedTurn for a tag without its partner.

    >>> split_blocks("Yes.\\n<tool_call>{}</tool_call>")
    Blocks(before='Yes.\\n', bodies=('{}',), outside='')
    """
    before, *rest = text.split(OPEN)
    if CLOSE in before:
        raise_malformed(MalformedKind.NO_OPEN_TAG, f"{CLOSE} without {OPEN}")
    bodies: list[str] = []
    outside: list[str] = []
    for part in rest:
        body, closed, behind = part.partition(CLOSE)
        if not closed:
            raise_malformed(MalformedKind.NO_CLOSE_TAG, f"{OPEN} without {CLOSE}")
        if CLOSE in behind:
            raise_malformed(MalformedKind.NO_OPEN_TAG, f"{CLOSE} without {OPEN}")
        bodies.append(body)
        outside.append(behind.strip())
    return Blocks(before=before, bodies=tuple(bodies), outside="".join(outside))


def read_call_json(text: str) -> object:
    """Strict JSON: no NaN or infinity, no half characters, no more than MAX_DEPTH levels. Raises MalformedTurn."""
    if _depth(text) > MAX_DEPTH:
        raise_malformed(MalformedKind.TOO_DEEP, f"nested more than {MAX_DEPTH} levels deep")
    try:
        value: object = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escape like \ud800 alone is half a character
    except ValueError as error:  # JSONDecodeError, UnicodeEncodeError and a number with thousands of digits are all ValueErrors
        raise_malformed(MalformedKind.BAD_JSON, _reason(error))
    return value


def read_call(value: object) -> CallTool:
    """A tool call from `{"name": ..., "arguments": {...}}`; arguments that are absent or null are none. Raises MalformedTurn."""
    if not isinstance(value, dict):
        raise_malformed(MalformedKind.NOT_AN_OBJECT, "a tool call must be a JSON object")
    call = cast("dict[str, Any]", value)
    name = call.get("name")
    if not isinstance(name, str) or not name:
        raise_malformed(MalformedKind.MISSING_NAME, "a tool call needs the `name` of a tool")
    arguments = call.get("arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise_malformed(MalformedKind.ARGUMENTS_NOT_AN_OBJECT, "`arguments` must be a JSON object, not text or a list")
    return CallTool(name=name, arguments=cast("dict[str, Any]", arguments))


PYTHON_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None}  # some templates write these


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """A value that was written as text, with the type that its schema has; text where the schema has another.

    Raises MalformedTurn for too many levels.

    >>> [typed("123", {"type": kind}) for kind in ("string", "integer")], typed("True", {"type": "boolean"})
    (['123', 123], True)
    """
    kinds = _kinds(schema)
    if kinds == {"string"} or (isinstance(schema.get("enum"), list) and text in schema["enum"]):
        return text
    found = _literal(text.strip())
    if found is _NOTHING:
        return text
    is_number = _kind(found) in ("integer", "number") and not kinds.isdisjoint({"integer", "number"})
    return found if not kinds or is_number or _kind(found) in kinds else text


_NOTHING = object()
MAX_LITERAL = 20_000  # characters of a value in Python's words


def _literal(text: str) -> Any:
    """A JSON value that is no string, or a list or an object as Python writes them, which some templates do."""
    if text in PYTHON_WORDS:
        return PYTHON_WORDS[text]
    if text not in ("true", "false", "null") and text[:1] not in tuple("-0123456789[{"):
        return _NOTHING
    try:
        return read_call_json(text)
    except MalformedTurn as error:
        if error.kind is MalformedKind.TOO_DEEP:
            raise
    if text[0] in "[{" and len(text) <= MAX_LITERAL:
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            found = ast.literal_eval(text)
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
            if isinstance(found, dict | list):
                return cast("Any", found)
    return _NOTHING


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema admits; empty: any."""
    found: set[str] = set()
    if "type" in schema:
        found |= {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
    for keyword in ("anyOf", "oneOf"):
        for option in schema.get(keyword, ()):
            inner = _kinds(option)
            if not inner:
                return set()
            found |= inner
    if "$ref" in schema:
        return set()
    if found and (schema.get("nullable") is True or schema.get("default", ...) is None):
        found.add("null")
    return found


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case None:
            return "null"
        case list():
            return "array"
        case _:
            return "object"


def check_call(call: CallTool, tools: Sequence[ToolSchema]) -> CallTool:
    """The same call, if one of the tools takes it. Raises MalformedTurn: unknown tool, or arguments that its schema refuses."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == call.name:
            if problem := complaint(call.arguments, function.get("parameters") or {}):
                raise_malformed(MalformedKind.WRONG_ARGUMENTS, f"`{call.name}`: {problem}")
            return call
    raise_malformed(MalformedKind.UNKNOWN_TOOL, f"there is no tool `{call.name[:60]}`")


def raise_malformed(kind: MalformedKind, message: str) -> NoReturn:
    """Raise MalformedTurn."""
    raise MalformedTurn(kind, message)


def _depth(text: str) -> int:
    """How deep brackets nest, strings left out. A plain scan: a pattern could take time quadratic in quotes and backslashes."""
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos}"
    return "text has half a character" if isinstance(error, UnicodeError) else str(error)[:120]


Dump = Callable[[Any], str]


def template_json(value: Any) -> str:
    """JSON as chat templates write it.

    >>> template_json({"city": "Zürich"})
    '{"city": "Zürich"}'
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def escaped(value: Any) -> str:
    r"""The same JSON in plain ASCII without `<`: no tag, no control token and no letter that a tokenizer normalizes is left.

    >>> escaped("</tool_call>")
    '"\\u003c/tool_call>"'
    """
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def write_back(actions: Actions, write: Callable[[Dump], list[int]], read: Callable[[list[int]], Actions]) -> list[int]:
    """The first way of writing the actions that reads back as exactly them. Raises ValueError when there is none."""
    for dump in (template_json, escaped):
        ids = write(dump)
        try:
            if read(ids) == actions:
                return ids
        except MalformedTurn:
            continue
    raise ValueError(f"this protocol has no turn that performs {actions!r:.300}")
