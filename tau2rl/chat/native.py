"""The checkpoint's own chat template: tools through `tools=`, results in the `tool` role, plain text goes to the user."""

from __future__ import annotations

from collections.abc import Sequence

from tau2rl.chat.parsing import CLOSE, OPEN, Dump, check_call, fail, read_call, read_json, split_blocks, write_back
from tau2rl.chat.proof import TOOL_USE, prove
from tau2rl.chat.template import TemplateChat, chat_dicts
from tau2rl.chat.tokenizers import ChatDict, Tokenizer, tokenizer_of
from tau2rl.config import ChatConfig
from tau2rl.types import Action, Actions, CallTool, MalformedKind, Message, Opening, Say, ToolSchema

# tau2's own words to an LLM agent (tau2/agent/llm_agent.py, Copyright (c) 2025 Sierra Research, MIT), so that scores compare
# with the official harness. A test compares them with the installed tau2.
AGENT_INSTRUCTION = """\
You are a customer service agent that helps the user according to the <policy> provided below.
In each turn you can either:
- Send a message to the user.
- Make a tool call.
You cannot do both at the same time.

Try to be helpful and always follow the policy. Always make sure you generate valid JSON only."""
SYSTEM_PROMPT = """\
<instructions>
{agent_instruction}
</instructions>
<policy>
{domain_policy}
</policy>"""


def system_prompt(domain_policy: str) -> str:
    """The system message for a domain policy, as tau2's LLMAgent has it."""
    return SYSTEM_PROMPT.format(agent_instruction=AGENT_INSTRUCTION, domain_policy=domain_policy)


def conversation(opening: Opening) -> list[ChatDict]:
    """A conversation as this protocol's chat messages, the system message first."""
    return [{"role": "system", "content": system_prompt(opening.domain_policy)}, *chat_dicts(opening.messages)]


class NativeCodec:
    """`types.ChatCodec` over a chat template that reads Hermes/Qwen tool calls; see `chat/__init__.py`."""

    append_only = True
    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prove that the template is prefix-preserving. Raises UserError that says why it is not."""
        self._chat = TemplateChat(tokenizer)
        prove(self._chat, TOOL_USE)

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer are below it."""
        return self._chat.tokenizer.vocab_size

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token first, then the checkpoint's other ends."""
        return self._chat.stop_token_ids

    def open(self, opening: Opening) -> list[int]:
        """The prompt of the first turn: tau2's system prompt, the tools, the messages so far."""
        return self._chat.open(conversation(opening), opening.tools)

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn; see `ChatCodec.extend`."""
        return self._chat.extend(prompt_ids, completion_ids, chat_dicts(new_messages))

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """Text for the user, then tool calls; either may be absent. Raises MalformedTurn, and nothing else."""
        actions = self._read(completion_ids)
        for action in actions:
            if isinstance(action, CallTool):
                check_call(action, tools)
        return actions

    def write(self, actions: Actions) -> list[int]:
        """The turn, with its end token. Raises ValueError for text that reads as something else (a tag, a control token)."""
        return write_back(actions, lambda dump: self._written(actions, dump), self._read)

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """See `ChatCodec.close_thoughts`."""
        return self._chat.close_thoughts(completion_ids)

    def _read(self, completion_ids: Sequence[int]) -> Actions:
        blocks = split_blocks(self._chat.read(completion_ids))
        if blocks.outside:
            fail(MalformedKind.TEXT_OUTSIDE, f"text behind {CLOSE}")
        if not blocks.bodies:
            return (Say(text=blocks.before),)
        # The template puts one line break between text and calls.
        said: tuple[Action, ...] = (Say(text=blocks.before.removesuffix("\n")),) if blocks.before.strip() else ()
        return (*said, *(read_call(read_json(body)) for body in blocks.bodies))

    def _written(self, actions: Actions, dump: Dump) -> list[int]:
        parts = [self._block(a, dump) if isinstance(a, CallTool) else a.text for a in actions]
        return self._chat.write("\n".join(parts) + self._chat.end_text)

    @staticmethod
    def _block(call: CallTool, dump: Dump) -> str:
        return f'{OPEN}\n{{"name": {dump(call.name)}, "arguments": {dump(call.arguments)}}}\n{CLOSE}'


def codec(config: ChatConfig) -> NativeCodec:
    """The codec of `chat.protocol: native`. Raises UserError: no tokenizer, or a chat template that cannot be used."""
    return NativeCodec(tokenizer_of(config))
