"""What a user model answered, read as a user's message, or the reason why no user can have said it.

A broken answer must never reach the conversation: the agent would be graded for what our user model did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, cast

from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2
from tau2rl.types import Usage

from tau2.data_model.message import ToolCall, UserMessage

MAX_CHARACTERS = 20_000  # of what a user says: tau2's longest scenario has 4,000
# A reasoning model's thoughts, tool calls and turns that its server should have taken out of the text.
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>")
ECHO_CHARACTERS = 40  # both sides may say "Goodbye."
SPEAKS_AS_AGENT = re.compile(r"\bhow (can|may) i (help|assist) you\b", re.IGNORECASE)


class UnusableAnswer(Exception):
    """No user can have said this; the message says why."""


def read_answer(body: dict[str, Any], *, tools: Collection[str], heard: str = "", cost_usd: float = 0.0) -> UserMessage:
    """The user's message from a chat answer, as tau2 reads it.

    `tools` are the names of the tools that the user has, `heard` is what the agent said last. Raises UnusableAnswer.

    >>> body = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "My phone is dead."}}]}
    >>> read_answer(body, tools=()).content
    'My phone is dead.'
    """
    choice = _first_choice(body)
    message = _object(choice.get("message"), "its message is not an object")
    match choice.get("finish_reason"):
        case "content_filter":
            raise UnusableAnswer("a content filter ended its answer")
        case "length":
            raise UnusableAnswer("its answer was cut at the limit of its tokens")
        case _:
            pass
    if message.get("role") not in ("assistant", None):
        raise UnusableAnswer("its message has a role other than `assistant`")
    content = message.get("content")
    if not isinstance(content, str | None):
        raise UnusableAnswer(f"its content is {type(content).__name__}, not text")
    calls = _calls(message.get("tool_calls"), tools)
    _check_text(content or "", heard)
    if not calls and not (content or "").strip():
        raise UnusableAnswer("its answer was empty")
    usage = usage_of(body)
    return UserMessage(
        role="user",
        content=content,
        tool_calls=calls or None,
        cost=cost_usd,
        usage={"completion_tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens},
        raw_data=choice,
    )


def usage_of(body: dict[str, Any]) -> Usage:
    """The tokens of an answer, usable or not; 0 where the server does not count them."""
    counted = body.get("usage")
    usage = cast("dict[str, Any]", counted) if isinstance(counted, dict) else {}
    return Usage(prompt_tokens=_count(usage.get("prompt_tokens")), completion_tokens=_count(usage.get("completion_tokens")))


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise UnusableAnswer("its answer has no choices")
    return _object(cast("list[Any]", choices)[0], "its choice is not an object")


def _calls(listed: Any, tools: Collection[str]) -> list[ToolCall]:
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise UnusableAnswer("its tool calls are not a list")
    calls: list[ToolCall] = []
    for number, one in enumerate(cast("list[Any]", listed)):
        call = _object(one, "a tool call is not an object")
        function = _object(call.get("function"), "a tool call has no function")
        name = function.get("name")
        if not isinstance(name, str) or name not in tools:
            raise UnusableAnswer(f"it called `{str(name)[:100]}`, a tool that this user does not have")
        call_id = call.get("id")
        calls.append(
            ToolCall(
                id=call_id if isinstance(call_id, str) and call_id else f"call_{number}",
                name=name,
                arguments=_arguments(name, function.get("arguments")),
                requestor="user",
            )
        )
    return calls


def _arguments(name: str, value: Any) -> dict[str, Any]:
    """The arguments of a call: an object, or its JSON text; nothing and empty text are no arguments."""
    try:
        read: Any = json.loads(value or "{}") if isinstance(value, str | None) else value
    except (ValueError, RecursionError):
        raise UnusableAnswer(f"the arguments of its call of `{name}` are not JSON") from None
    if read is None:
        return {}
    arguments = _object(read, f"the arguments of its call of `{name}` are not an object")
    if not _is_text(json.dumps(arguments, ensure_ascii=False)):
        raise UnusableAnswer(f"the arguments of its call of `{name}` are not Unicode text")
    return arguments


def _check_text(text: str, heard: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UnusableAnswer(f"its answer has {len(text)} characters")
    if not _is_text(text):
        raise UnusableAnswer("its answer is not Unicode text")
    for tag in MARKUP:
        if tag in text:
            raise UnusableAnswer(f"it wrote `{tag}` as text, which its server should have parsed")
    if SPEAKS_AS_AGENT.search(text) or (len(heard) >= ECHO_CHARACTERS and text.strip() == heard.strip()):
        raise UnusableAnswer("it spoke as the agent")


def _object(value: Any, problem: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnusableAnswer(problem)
    return cast("dict[str, Any]", value)


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
