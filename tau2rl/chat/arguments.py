"""Tool arguments against a tool's JSON schema: the keywords that tau2's schemas use, judged as tau2's tools would take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

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
