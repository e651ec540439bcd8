"""A chat codec of your own: `ROLE: text` a line, calls as `call: {"name": ..., "arguments": {...}}`.

    chat: {protocol: "examples.plain_codec:PlainCodec", tokenizer: checkpoints/my-model, options: {end: "\\n"}}

The contract (`tau2rl.ChatCodec`): `extend(p, c, m)` begins with `p + c`, unchanged, and `parse(write(a)) == a`.
It has no thoughts, so that it leaves out `append_only` (default: True) and `close_thoughts` (default: nothing to close).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tau2rl import Actions, CallTool, MalformedKind, MalformedTurn, Message, Opening, Say, Think, Tokenizer, ToolSchema

CALL = "call: "


class PlainCodec:
    """Made with the tokenizer that `chat.tokenizer` names (None where it names none) and `chat.options`."""

    stop_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer, *, end: str = "\n") -> None:
        self._tokenizer = tokenizer
        self.stop = (end,)
        self._end = end

    def open(self, opening: Opening) -> list[int]:
        """The first prompt: domain policy, tools, the messages so far."""
        tools = json.dumps(opening.tools)
        return self._tokenizer.encode(f"{opening.domain_policy}\n{tools}\n{self._lines(opening.messages)}assistant: ")

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """Everything so far, untouched, then what is new."""
        return [*prompt_ids, *completion_ids, *self._tokenizer.encode(f"{self._lines(new_messages)}assistant: ")]

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """A line is a message or a call. Raises MalformedTurn, and nothing else, for any ids whatever."""
        text = self._tokenizer.decode(completion_ids).removesuffix(self._end)
        if not text.strip():
            raise MalformedTurn(MalformedKind.EMPTY, "the turn has no text")
        if not text.startswith(CALL):
            return (Say(text=text),)
        try:
            call = json.loads(text[len(CALL) :])
            return (CallTool(name=str(call["name"]), arguments=dict(call["arguments"])),)
        except (ValueError, LookupError, TypeError) as error:
            raise MalformedTurn(MalformedKind.BAD_JSON, f"not a call: {error}") from None

    def write(self, actions: Actions) -> list[int]:
        """The turn as a model would sample it."""
        (action,) = actions
        if isinstance(action, Think):
            raise ValueError("this protocol has no thoughts")
        call = None if isinstance(action, Say) else {"name": action.name, "arguments": action.arguments}
        return self._tokenizer.encode((action.text if isinstance(action, Say) else CALL + json.dumps(call)) + self._end)

    def _lines(self, messages: Sequence[Message]) -> str:
        return "".join(f"{m.role}: {m.content}{self._end}" for m in messages)
