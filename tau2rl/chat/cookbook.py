"""One `<tool_call>` a turn, `respond` and `done` among the tools: the protocol of the published Qwen3-4B-tau2 checkpoints.

The chat has only system, user and assistant messages. A tool's result is a user message that repeats the call, and the
agent's greeting is left out: the checkpoints never saw one, and it is no tool call.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from tau2rl.chat.cookbook_prompt import OUR_PROMPT, CookbookPrompt
from tau2rl.chat.parsing import CLOSE, OPEN, check_call, fail, read_call, read_json, split_blocks
from tau2rl.chat.probes import PLAIN, prove
from tau2rl.chat.template import TemplateChat
from tau2rl.chat.tokenizers import ChatDict, Tokenizer
from tau2rl.chat.writing import Dump, readable, write_back
from tau2rl.errors import MalformedTurn
from tau2rl.types import Actions, CallTool, MalformedKind, Message, Opening, Say, ToolSchema

RESPOND, DONE = "respond", "done"
NOTHING = "[no_observation]"  # what the checkpoints read in place of an empty message


class CookbookCodec:
    """`types.ChatCodec` of the cookbook; see `chat/__init__.py`."""

    stop: tuple[str, ...] = (CLOSE,)

    def __init__(self, tokenizer: Tokenizer, *, compressed: bool = False, prompt: CookbookPrompt = OUR_PROMPT) -> None:
        """Prove that the template is prefix-preserving. Raises UserError that says why it is not."""
        self._compressed = compressed
        self.prompt = prompt
        self._chat = TemplateChat(tokenizer)
        prove(self._chat, PLAIN)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token first, then the checkpoint's other ends."""
        return self._chat.stop_token_ids

    def open(self, opening: Opening) -> list[int]:
        """The prompt of the first turn: the system prompt with policy and tools, then the messages from the user's first on."""
        return self._chat.open(self.conversation(opening), None)

    def conversation(self, opening: Opening) -> list[ChatDict]:
        """A conversation as this protocol's chat messages, from the user's first on, the system message in front."""
        system = self.prompt.text(opening.policy, opening.tools, compressed=self._compressed)
        first = next((i for i, message in enumerate(opening.messages) if message.role != "assistant" or message.tool_calls), 0)
        return [{"role": "system", "content": system}, *self._dicts(opening.messages[first:], [])]

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn; see `ChatCodec.extend`."""
        calls: list[CallTool] = []
        with suppress(MalformedTurn):  # a repair request follows such a turn, not a result
            calls += [action for action in self._read(completion_ids) if isinstance(action, CallTool)]
        return self._chat.extend(prompt_ids, completion_ids, self._dicts(new_messages, calls))

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """`respond` is Say, everything else CallTool. Raises MalformedTurn, and nothing else."""
        actions = self._read(completion_ids)
        for action in actions:
            if isinstance(action, CallTool) and action.name != DONE:
                check_call(action, tools)
        return actions

    def write(self, actions: Actions) -> list[int]:
        """The turn, up to the stop string. Raises ValueError for more than one action, or a message without text."""
        return write_back(actions, lambda dump: self._chat.write("\n".join(_block(a, dump) for a in actions)), self._read)

    def _read(self, completion_ids: Sequence[int]) -> Actions:
        blocks = split_blocks(self._chat.read(completion_ids))
        if not blocks.bodies:
            fail(MalformedKind.NO_CALL, f"every turn is one {OPEN} block; `{RESPOND}` sends a message")
        body, *more = blocks.bodies
        if more:
            fail(MalformedKind.TWO_CALLS, f"{len(blocks.bodies)} tool calls, where one a turn is allowed")
        if blocks.before.strip() or blocks.outside:
            fail(MalformedKind.TEXT_OUTSIDE, f"text outside {OPEN}; `{RESPOND}` sends a message")
        call = read_call(read_json(body))
        if call.name == DONE and call.arguments:
            fail(MalformedKind.WRONG_ARGUMENTS, f"`{DONE}` takes no arguments")
        return (_said(call),) if call.name == RESPOND else (call,)

    @staticmethod
    def _dicts(messages: Sequence[Message], calls: list[CallTool]) -> list[ChatDict]:
        """System, user and assistant messages; `calls` are the ones that the first results answer."""
        open_calls = calls[:]
        dicts: list[ChatDict] = []
        for message in messages:
            if message.role == "assistant":
                open_calls = list(message.tool_calls)
                blocks = [_block(call, readable) for call in message.tool_calls] or [_block(Say(text=message.content), readable)]
                dicts.append({"role": "assistant", "content": "\n".join(blocks)})
            elif message.role == "tool":
                call = call_text(open_calls.pop(0)) if open_calls else "the last call"
                dicts.append({"role": "user", "content": f"Tool result for {call}:\n{message.content.strip() or NOTHING}"})
            else:
                dicts.append({"role": message.role, "content": message.content.strip() or NOTHING})
        return dicts


def call_text(call: CallTool) -> str:
    """A call as the checkpoints read it above its result.

    >>> call_text(CallTool(name="f", arguments={"id": "#W1", "ok": True, "n": [1, None]}))
    "f(id='#W1', ok=True, n=[1, None])"
    """
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


def _said(call: CallTool) -> Say:
    content = call.arguments.get("content")
    if not isinstance(content, str) or not content.strip():
        fail(MalformedKind.NO_CONTENT, f"`{RESPOND}` needs `content`, the text of the message")
    if len(call.arguments) > 1:
        fail(MalformedKind.WRONG_ARGUMENTS, f"`{RESPOND}` takes `content` and nothing else")
    return Say(text=content)


def _block(action: Say | CallTool, dump: Dump) -> str:
    call = CallTool(name=RESPOND, arguments={"content": action.text}) if isinstance(action, Say) else action
    return f'{OPEN}\n{{"name": {dump(call.name)}, "arguments": {dump(call.arguments)}}}\n{CLOSE}'
