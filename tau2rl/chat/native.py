"""The checkpoint's own chat template: tools through `tools=`, results in the `tool` role, plain text goes to the user."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import date as Date

from tau2rl.chat.families import Schemas, schemas_of
from tau2rl.chat.parsing import check_call
from tau2rl.chat.proof import TOOL_USE, family_chat, prove
from tau2rl.chat.template import TemplateChat, chat_dicts, split_thought
from tau2rl.chat.tokenizers import ChatDict, Tokenizer, date_of, tokenizer_of
from tau2rl.config import ChatConfig
from tau2rl.errors import MalformedTurn, UserError
from tau2rl.types import Actions, CallTool, Message, Opening, Thinking, ToolSchema

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


def native_messages(opening: Opening) -> list[ChatDict]:
    """A conversation as this protocol's chat messages, the system message first."""
    return [{"role": "system", "content": system_prompt(opening.domain_policy)}, *chat_dicts(opening.messages)]


class NativeCodec:
    """`protocols.ChatCodec` over a chat template and the family that reads its turns; see `chat/__init__.py`."""

    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer, *, thinking: Thinking = "off", date: Date | None = None) -> None:
        """Find the family and prove what the protocol promises. Raises UserError that says why the template cannot be used."""
        self.chat: TemplateChat = family_chat(tokenizer, thinking, date)
        prove(self.chat, TOOL_USE)
        self.append_only = thinking != "per-turn"

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer are below it."""
        return self.chat.tokenizer.vocab_size

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token first, then the one that ends calls, then the checkpoint's other ends."""
        return self.chat.stop_token_ids

    def open(self, opening: Opening) -> list[int]:
        """The prompt of the first turn: tau2's system prompt, the tools, the messages so far."""
        return self.chat.open(native_messages(opening), opening.tools)

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn; see `ChatCodec.extend`."""
        return self.chat.extend(prompt_ids, completion_ids, chat_dicts(new_messages))

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """Thought, text for the user, tool calls; each may be absent. Raises MalformedTurn, and nothing else."""
        actions = self.chat.actions(completion_ids, schemas_of(tools))
        for action in actions:
            if isinstance(action, CallTool):
                check_call(action, tools)
        return actions

    def write(self, actions: Actions, tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The turn, with its end token. Raises ValueError for text that reads as something else (a tag, a control token).

        `tools` give the types of arguments that a family writes as text.
        """
        body, thought = split_thought(actions)
        schemas = schemas_of(tools) if tools else _strings_of(actions)
        end = self.chat.end_of(body)
        spellings = [self.chat.with_thought(text, thought) + end.text for text in self.chat.family.spellings(body)]
        with suppress(UserError):
            spellings = spellings or [self.chat.written(chat_dicts([Message.of(actions)])[0])]
        for text in spellings:
            ids = self.chat.tokenizer.encode(text)
            with suppress(MalformedTurn):
                if self.chat.actions(ids, schemas) == actions:
                    return ids
        raise ValueError(f"this protocol has no turn that performs {actions!r:.300}")

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """See `ChatCodec.close_thoughts`."""
        return self.chat.close_thoughts(completion_ids)


def _strings_of(actions: Actions) -> Schemas:
    """Schemas by which what is a text reads as one, where nobody has the tools'."""
    calls = [a for a in actions if isinstance(a, CallTool)]
    texts = {c.name: {k: {"type": "string"} for k, v in c.arguments.items() if isinstance(v, str)} for c in calls}
    return {name: {"properties": properties} for name, properties in texts.items()}


def codec(config: ChatConfig) -> NativeCodec:
    """The codec of `chat.protocol: native`. Raises UserError: no tokenizer, or a chat template that cannot be used."""
    return NativeCodec(tokenizer_of(config), thinking=config.thinking, date=date_of(config))
