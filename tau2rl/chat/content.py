"""What a message in OpenAI's format says. Content is text, nothing, or a list of parts: in answers of servers, and in rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

TEXTS = ("text", "output_text", "input_text")  # chat completions; the Responses API
THOUGHTS = {"thinking": "thinking", "reasoning": "text", "redacted_thinking": ""}  # type of a part -> where its thought stands


class NotText(Exception):
    """Content that is no text; the message says what is instead. `types` are those of its parts, without any it is no content."""

    def __init__(self, message: str, *, types: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.types = types


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """`Content(text="Hello.", thought="Who is it?")`; `refusal`: what a model says instead of an answer, as its server tells."""

    text: str = ""
    thought: str = ""
    refusal: str = ""


def read_content(message: Mapping[str, Any]) -> Content:
    """The `content` and the `refusal` of a message. Raises NotText: parts of it are an image, or of a type that nobody knows.

    >>> read_content({"content": [{"type": "text", "text": "He"}, {"type": "output_text", "text": "llo."}]}).text
    'Hello.'
    >>> read_content({"content": None, "refusal": "I cannot help with that."}).refusal
    'I cannot help with that.'
    """
    content, refusal = message.get("content"), _refusal(message)
    if content is None or isinstance(content, str):
        return Content(text=content or "", refusal=refusal)
    if not isinstance(content, list):
        raise NotText(f"content as {type(content).__name__}, not as text")
    parts = list(_parts(cast("list[Any]", content)))
    if unknown := tuple(dict.fromkeys(kind for kind, text in parts if text is None)):
        names = ", ".join(f"`{kind}`" for kind in unknown)
        raise NotText(f"content with a part that is no text: {names}", types=unknown)
    said = {wanted: "".join(text for kind, text in parts if text and kind == wanted) for wanted in ("text", "thought", "refusal")}
    return Content(**{**said, "refusal": said["refusal"] or refusal})


def read_arguments(value: Any) -> Any:
    """The arguments of a call: a value, or what its JSON text spells. Null, blank text and `"null"` are no arguments.

    Raises ValueError for text that is not JSON.

    >>> read_arguments('{"a": 1}'), read_arguments(" "), read_arguments("null"), read_arguments(None)
    ({'a': 1}, {}, {}, {})
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except RecursionError:
            raise ValueError("it is nested too deep") from None
    return {} if value is None else value


def _parts(content: list[Any]) -> Iterator[tuple[str, str | None]]:
    """(what it is, its text) of every part; (its type, None) of one that has none. Raises NotText."""
    for part in content:
        if isinstance(part, str):
            yield "text", part
            continue
        if not isinstance(part, Mapping):
            raise NotText(f"content with a part as {type(part).__name__}, not as an object")
        fields = cast("Mapping[str, Any]", part)
        kind = fields.get("type", "text")  # Gemini and Bedrock give none to text
        if kind in TEXTS and ("text" in fields or len(fields) == 1):
            yield "text", _text(fields.get("text"))
        elif kind in THOUGHTS:
            yield "thought", _text(fields.get(THOUGHTS[kind]))
        elif kind == "refusal":
            yield "refusal", _text(fields.get("refusal"))
        else:
            yield str(kind)[:40], None


def _text(value: Any) -> str:
    """Text, `{"value": text}`, or parts of text one in the other. Raises NotText."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        return _text(cast("Mapping[str, Any]", value).get("value"))
    if isinstance(value, list):
        return "".join(text or "" for _, text in _parts(cast("list[Any]", value)))
    raise NotText(f"content with a text as {type(value).__name__}")


def _refusal(message: Mapping[str, Any]) -> str:
    """litellm keeps it with what only its provider has."""
    own = message.get("provider_specific_fields")
    told = message.get("refusal") or (cast("Mapping[str, Any]", own).get("refusal") if isinstance(own, Mapping) else None)
    return told if isinstance(told, str) else ""
