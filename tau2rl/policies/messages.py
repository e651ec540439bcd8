"""Conversations as OpenAI-compatible APIs read them, and their answers as lines of the transcript protocol. No network here."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from tau2rl.chat.native import system_prompt
from tau2rl.errors import PolicyFailure
from tau2rl.types import CallTool, FinishReason, Message, Opening


def to_openai(conversation: Opening) -> list[dict[str, Any]]:
    """The messages of a chat request: the system prompt that the native protocol has, then the conversation.

    Our messages carry no call ids: results follow their calls in order, so that ids can be given here. APIs refuse calls
    without results and results without calls, so calls that were not carried out (an unknown tool, wrong arguments: the next
    message asks for a better turn) become text.

    >>> from tau2rl.types import Message
    >>> calls = (CallTool(name="f", arguments={"a": 1}),)
    >>> turn = (Message(role="assistant", tool_calls=calls), Message(role="tool", content="ok"))
    >>> [m.get("tool_call_id") for m in to_openai(Opening(policy="", messages=turn, tools=()))]
    [None, None, 'call_0']
    """
    waiting: deque[str] = deque()
    ids = (f"call_{number}" for number in itertools.count())
    messages: list[dict[str, Any]] = [{"role": "system", "content": system_prompt(conversation.policy)}]
    for index, message in enumerate(conversation.messages):
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "tool":
            # A result whose call stands nowhere can still be told, as what the other side said.
            one |= {"tool_call_id": waiting.popleft()} if waiting else {"role": "user"}
        else:
            waiting.clear()
        if message.tool_calls and _results_after(conversation.messages, index) == len(message.tool_calls):
            made = [_call(call, next(ids)) for call in message.tool_calls]
            waiting.extend(call["id"] for call in made)
            one |= {"content": message.content or None, "tool_calls": made}
        elif message.tool_calls:
            one["content"] = _as_text(message)
        messages.append(one)
    return messages


def line_of(message: Any) -> list[int]:
    """The transcript line, as bytes, of an API's assistant message (`content`, `tool_calls`).

    Arguments that are no JSON object stay the text that they are: `TranscriptCodec.parse` names what is wrong with them.
    Raises PolicyFailure for content that is no text.
    """
    content = getattr(message, "content", None)
    if not isinstance(content, str | None):
        raise PolicyFailure(f"the API sent content as {type(content).__name__}, not as text")
    fields: dict[str, Any] = {"role": "assistant", "content": content or ""}
    calls = cast("Sequence[Any]", getattr(message, "tool_calls", None) or ())
    if calls:
        fields["tool_calls"] = [{"name": c.function.name, "arguments": _arguments(c.function.arguments)} for c in calls]
    return list(f"{json.dumps(fields)}\n".encode())


def finish_of(reason: str | None) -> FinishReason:
    """Why the API stopped. Raises PolicyFailure when a filter, not the model, ended the answer."""
    if reason == "content_filter":
        raise PolicyFailure("the API's content filter ended the answer")
    return FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def _results_after(messages: Sequence[Message], index: int) -> int:
    """How many tool messages follow the message at `index` without a break."""
    return sum(1 for _ in itertools.takewhile(lambda message: message.role == "tool", messages[index + 1 :]))


def _as_text(message: Message) -> str:
    """What an assistant said and called, as text; in words that nobody takes for the way to call a tool."""
    calls = (f"[this call was not carried out: {call.name} with {json.dumps(call.arguments)}]" for call in message.tool_calls)
    return "\n".join(filter(None, (message.content, *calls)))


def _call(call: CallTool, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def _arguments(text: Any) -> Any:
    """The object that the text spells, else the text; some APIs write nothing where a tool takes no arguments."""
    try:
        value: Any = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError):
        return text
    return cast("dict[str, Any]", value) if isinstance(value, dict) else text
