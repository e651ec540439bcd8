"""Chat requests as they come in, checked, and answers as they go out: OpenAI's protocol, as values. No network here."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from tau2rl.chat.content import NotText, read_content
from tau2rl.types import Usage

MOST_NAME = 256  # characters of a name or id
MOST_DEPTH = 64  # of objects and lists in each other
PASSED_ON = (  # fields of a request that the policy server gets as they are
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "tool_choice", "parallel_tool_calls",
    "response_format", "seed", "presence_penalty", "frequency_penalty", "reasoning_effort",
)  # fmt: skip
REFUSED = ("functions", "function_call", "audio", "modalities", "prediction", "web_search_options", "logprobs", "top_logprobs")


class Refusal(Exception):
    """A request that gets an error: `Refusal(404, "no such model", code="model_not_found")`."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def payload(self) -> dict[str, Any]:
        """OpenAI's error body."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What is asked: `ChatRequest(messages=({"role": "user", "content": "Hi"},))`."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of `PASSED_ON`, those that were there
    stream: bool = False
    include_usage: bool = False
    user: str = ""


def read_request(body: bytes, *, model: str) -> ChatRequest:
    """The request of a body. Raises Refusal."""
    try:
        value: Any = orjson.loads(body)
        orjson.dumps(value)  # what is nested too deeply to be sent on
    except (ValueError, TypeError) as error:
        raise Refusal(400, f"the body is not JSON that can be used: {error}") from None
    if not within_depth(value):
        raise Refusal(400, f"the body is nested more than {MOST_DEPTH} deep")
    given = _object(value, "the body")
    asked = given.get("model")
    if asked != model:
        raise Refusal(404, f"the model `{str(asked)[:MOST_NAME]}` does not exist", code="model_not_found", param="model")
    if given.get("n") not in (None, 1):
        raise Refusal(400, "there is one answer to a request: `n` is 1", param="n")
    for name in REFUSED:
        if given.get(name):
            raise Refusal(400, f"`{name}` is not supported", param=name, code="unsupported_parameter")
    for name, kind in (("stream", bool), ("user", str)):
        if not isinstance(given.get(name, kind()), kind | None):
            raise Refusal(400, f"`{name}` is a {kind.__name__}", param=name)
    user = given.get("user") or ""
    if len(user) > MOST_NAME:
        raise Refusal(400, f"`user` has at most {MOST_NAME} characters", param="user")
    options = given.get("stream_options")
    return ChatRequest(
        messages=_messages(given.get("messages")),
        tools=_tools(given.get("tools")),
        fields={name: given[name] for name in PASSED_ON if given.get(name) is not None},
        stream=bool(given.get("stream")),
        include_usage=bool(_object(options, "`stream_options`").get("include_usage")) if options is not None else False,
        user=user,
    )


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise Refusal(400, "`messages` is a list with at least one message", param="messages")
    return tuple(_message(one, f"messages[{index}]") for index, one in enumerate(cast("list[Any]", value)))


def _message(value: Any, where: str) -> dict[str, Any]:
    message = _object(value, f"`{where}`")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise Refusal(400, f"`{where}.role` is system, developer, user, assistant or tool", param=where)
    calls = message.get("tool_calls")
    for call in _list(calls, f"`{where}.tool_calls`"):
        function = _object(_object(call, f"a call of `{where}`").get("function"), f"the function of a call of `{where}`")
        if not isinstance(function.get("name"), str) or not isinstance(function.get("arguments"), str):
            raise Refusal(400, f"a call of `{where}` has a name and arguments, both text", param=where)
        if not within_depth(arguments_of(function)):
            raise Refusal(400, f"the arguments of a call of `{where}` are nested more than {MOST_DEPTH} deep", param=where)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise Refusal(400, f"`{where}` is a result and names its call: `tool_call_id`", param=where)
    if not (content is None and role == "assistant"):
        text_of(content, where)
    return message


def arguments_of(function: Mapping[str, Any]) -> Any:
    """The JSON of a call's arguments; None where it is none."""
    try:
        return orjson.loads(function["arguments"] or "{}")
    except ValueError:
        return None


def within_depth(value: Any) -> bool:
    """No more than `MOST_DEPTH` objects and lists in each other: what walks a value later calls itself for each."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = [one for one in level if isinstance(one, (dict, list))]
        if not inner:
            return True
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    return False


def text_of(content: Any, where: str = "content") -> str:
    """The text of a content, which may come in parts. Raises Refusal for images and other things that are none."""
    if content is None or isinstance(content, str):
        if content is None and where != "content":
            raise Refusal(400, f"`{where}` has no content", param=where)
        return content or ""
    try:
        said = read_content({"content": content})
    except NotText as error:
        raise Refusal(400, f"`{where}`: {error}; content is text, or a list of parts with text", param=where) from None
    return said.text or said.refusal


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    tools = tuple(_object(tool, "a tool") for tool in _list(value, "`tools`"))
    for tool in tools:
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise Refusal(400, "a tool is of type `function` and has a function", param="tools")
        if not isinstance(cast("dict[str, Any]", function).get("parameters"), dict | None):
            raise Refusal(400, "the parameters of a tool are a JSON object", param="tools")
        name: Any = cast("dict[str, Any]", function).get("name")
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME:
            raise Refusal(400, f"a tool has a name of at most {MOST_NAME} characters", param="tools")
    return tools


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal(400, f"{what} is not a JSON object")
    return cast("dict[str, Any]", value)


def _list(value: Any, what: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise Refusal(400, f"{what} is not a list")
    return cast("list[Any]", value or [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The chosen message with what the choice was: `Reply(message={...}, finish_reason="stop", usage=..., about={...})`."""

    message: dict[str, Any]  # content, tool_calls, perhaps reasoning_content
    finish_reason: str
    usage: Usage  # of all attempts together
    about: Mapping[str, Any]  # how it was chosen; goes out as `tau2rl`


def completion(reply: Reply, *, model: str) -> dict[str, Any]:
    """A chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", **reply.message},
        "finish_reason": reply.finish_reason,
        "logprobs": None,
    }
    return {**_head(model, "chat.completion"), "choices": [choice], "usage": _usage(reply.usage), "tau2rl": dict(reply.about)}


def events(reply: Reply, *, model: str, include_usage: bool) -> Iterator[bytes]:
    """The same as server-sent events: the final answer in pieces, for clients that read streams."""
    head = {**_head(model, "chat.completion.chunk"), **({"usage": None} if include_usage else {})}

    def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
        return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"

    yield event(
        {"role": "assistant", "content": "" if reply.message.get("content") is not None else None}, tau2rl=dict(reply.about)
    )
    for name in ("reasoning_content", "content"):
        for piece in _pieces(reply.message.get(name) or ""):
            yield event({name: piece})
    calls: Sequence[dict[str, Any]] = reply.message.get("tool_calls") or ()
    for index, call in enumerate(calls):
        function = call["function"]
        yield event({"tool_calls": [{**call, "index": index, "function": {"name": function["name"], "arguments": ""}}]})
        yield event({"tool_calls": [{"index": index, "function": {"arguments": function["arguments"]}}]})
    yield event({}, reply.finish_reason)
    if include_usage:
        yield b"data: " + orjson.dumps({**head, "choices": [], "usage": _usage(reply.usage)}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _pieces(text: str, words: int = 8) -> Iterator[str]:
    """A text in pieces that together are the text."""
    parts = text.split(" ")
    for at in range(0, len(parts) if text else 0, words):
        yield " ".join(parts[at : at + words]) + (" " if at + words < len(parts) else "")


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(usage: Usage) -> dict[str, Any]:
    total = usage.prompt_tokens + usage.completion_tokens
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": total}
