"""JSON lines as UTF-8 bytes, for policies that read messages: gold, scripted, API models.

The first line is `{"domain_policy": ..., "tools": [...]}`, every other line a message. A completion is one line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from tau2rl.chat.parsing import Dump, check_call, raise_malformed, read_call, read_call_json, turn_text, write_back
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import ChatConfig
from tau2rl.errors import MalformedTurn
from tau2rl.types import Action, Actions, CallTool, MalformedKind, Message, Opening, Say, Think, ToolSchema

NEWLINE = 10
_BYTES = ByteTokenizer()


class TranscriptCodec:
    """`protocols.ChatCodec` without a tokenizer; see `chat/__init__.py`. `read` gives a prompt back as messages."""

    append_only = True
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = (NEWLINE,)
    vocab_size = 256  # bytes

    def open(self, opening: Opening) -> list[int]:
        """The prompt of the first turn."""
        head = json.dumps({"domain_policy": opening.domain_policy, "tools": list(opening.tools)})
        return list("\n".join([head, *map(line, opening.messages), ""]).encode())

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn; see `ChatCodec.extend`."""
        ended = bool(completion_ids) and completion_ids[-1] == NEWLINE
        return [*prompt_ids, *completion_ids, *(b"" if ended else b"\n"), *"".join(f"{line(m)}\n" for m in new_messages).encode()]

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """The actions of an assistant line. Raises MalformedTurn, and nothing else."""
        actions = self._read(completion_ids)
        for action in actions:
            if isinstance(action, CallTool):
                check_call(action, tools)
        return actions

    def write(self, actions: Actions) -> list[int]:
        """The line, newline included. Raises ValueError for actions that no message performs."""
        return write_back(actions, lambda dump: list(f"{line(Message.of(actions), dump)}\n".encode()), self._read)

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """[]: a line's thoughts are a field of it."""
        return []

    def _read(self, completion_ids: Sequence[int]) -> Actions:
        body = completion_ids[:-1] if completion_ids and completion_ids[-1] == NEWLINE else completion_ids
        text = turn_text(_BYTES, body)
        if NEWLINE in body:
            raise_malformed(MalformedKind.TEXT_OUTSIDE, "a turn is one line")
        message = read_message(read_call_json(text))
        if message.role != "assistant":
            raise_malformed(MalformedKind.NO_CONTENT, "not a message of the assistant")
        said: tuple[Action, ...] = (Say(text=message.content),) if message.content.strip() else ()
        if not said and not message.tool_calls:
            raise_malformed(MalformedKind.NO_CONTENT, "a message without content or tool calls")
        thought: tuple[Action, ...] = (Think(text=message.reasoning),) if message.reasoning.strip() else ()
        return (*thought, *said, *message.tool_calls)


def codec(config: ChatConfig) -> TranscriptCodec:
    """The codec of `chat.protocol: transcript`, which has nothing to set."""
    return TranscriptCodec()


def read(prompt_ids: Sequence[int]) -> Opening:
    """The conversation in a prompt: `Opening(domain_policy=..., messages=..., tools=...)` as it stands at this turn.

    A line that is no message is a malformed turn of the assistant: its text, as it was. Raises ValueError for ids that no
    `TranscriptCodec` made.
    """
    head, *lines = _BYTES.decode(prompt_ids).split("\n")
    try:
        opening: dict[str, Any] = json.loads(head)
        domain_policy, tools = str(opening["domain_policy"]), tuple(opening["tools"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError("this prompt is not a transcript: its first line has no `domain_policy` and `tools`") from error
    return Opening(domain_policy=domain_policy, tools=tools, messages=tuple(_message(text) for text in lines if text))


def _message(text: str) -> Message:
    try:
        return read_message(read_call_json(text))
    except MalformedTurn:
        return Message(role="assistant", content=text)


def line(message: Message, dump: Dump = json.dumps) -> str:
    """A message as one line of JSON.

    >>> line(Message(role="user", content="Hi"))
    '{"role": "user", "content": "Hi"}'
    """
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [{"name": c.name, "arguments": c.arguments} for c in message.tool_calls]
    if message.error:
        fields["error"] = True
    return dump(fields)


def read_message(value: object) -> Message:
    """The message of a line. Raises MalformedTurn."""
    if not isinstance(value, dict):
        raise_malformed(MalformedKind.NOT_AN_OBJECT, "a message must be a JSON object")
    fields = cast("dict[str, Any]", value)
    content, calls, reasoning = fields.get("content"), fields.get("tool_calls"), fields.get("reasoning_content")
    if fields.get("role") not in ("system", "user", "assistant", "tool"):
        raise_malformed(MalformedKind.NO_CONTENT, "a message needs a `role`")
    if not isinstance(content, str | None):
        raise_malformed(MalformedKind.NO_CONTENT, "`content` must be text")
    if not isinstance(reasoning, str | None):
        raise_malformed(MalformedKind.NO_CONTENT, "`reasoning_content` must be text")
    if not isinstance(calls, list | None):
        raise_malformed(MalformedKind.NOT_AN_OBJECT, "`tool_calls` must be a list of objects")
    made = tuple(read_call(call) for call in cast("list[Any]", calls or []))
    return Message(
        role=fields["role"], content=content or "", tool_calls=made, error=fields.get("error") is True, reasoning=reasoning or ""
    )
