"""One `<tool_call>` a turn, `respond` and `done` among the tools: the protocol of the published Qwen3-4B-tau2 checkpoints.

The chat has only system, user and assistant messages. A tool's result is a user message that repeats the call, and the
agent's greeting is left out: the checkpoints never saw one, and it is no tool call.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path
from typing import Any

from tau2rl.chat.parsing import (
    CLOSE,
    OPEN,
    Dump,
    check_call,
    raise_malformed,
    read_call,
    read_call_json,
    split_blocks,
    template_json,
    write_back,
)
from tau2rl.chat.proof import PLAIN, prove
from tau2rl.chat.short_policies import SHORT_POLICIES
from tau2rl.chat.template import TemplateChat, split_thought
from tau2rl.chat.tokenizers import ChatDict, Tokenizer, date_of, tokenizer_of
from tau2rl.config import ChatConfig
from tau2rl.errors import MalformedTurn, UserError
from tau2rl.types import Action, Actions, CallTool, MalformedKind, Message, Opening, Say, Think, Thinking, ToolSchema

UPSTREAM = "https://github.com/jbarnes850/Tau2-RL-Pipeline"
UPSTREAM_COMMIT = "c0d434b453719e149aac70452325f6e04ac086cf"
UPSTREAM_SHA256 = "a0e54902aa13283bdbcd1d87e5622ee18eb4f41f87f7634b76d348cd8a156ab6"  # of prompting.py at that commit

# The gym adds this tool behind the domain's own, so the prompt lists it too.
DONE_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "done",
        "description": "Call this function when you are done with the task.",
        "parameters": {"properties": {}, "title": "parameters", "type": "object"},
    },
}
FIELDS = ("domain", "policy", "tools_text")
# One tool that no other domain has: an opening carries no domain name, and the prompt needs it.
_DOMAIN_OF_TOOL = {
    "book_reservation": "airline",
    "exchange_delivered_order_items": "retail",
    "refuel_data": "telecom",
    "update_task_status": "mock",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CookbookPrompt:
    """`CookbookPrompt(source="...", parts=("You help ", ("domain",), ":\\n", ("policy",)), short_policies={})`."""

    source: str  # where the words come from, for a run's record
    parts: tuple[str | tuple[str], ...]  # literal text, or a field's name in a tuple of its own
    short_policies: Mapping[str, str]  # by domain; a domain without one keeps its full policy

    def text(self, domain_policy: str, tools: Sequence[ToolSchema], *, compressed: bool) -> str:
        """The system message for a domain policy and tools."""
        domain = upstream_domain(tools)
        policy = self.short_policies.get(domain, domain_policy) if compressed else domain_policy
        fields = {"domain": domain, "policy": policy, "tools_text": tools_text(tools)}
        return "".join(part if isinstance(part, str) else fields[part[0]] for part in self.parts)


OUR_PROMPT = CookbookPrompt(
    source="tau2rl",
    parts=(
        "You are a customer service agent (domain: ",
        ("domain",),
        """).

# How to answer
Each of your turns is a single tool call and nothing beside it:
<tool_call>
{"name": "NAME", "arguments": {"PARAMETER": "VALUE"}}
</tool_call>

Two tools stand for what is not a look-up or a change:
- `respond` sends a message to the customer: {"name": "respond", "arguments": {"content": "TEXT"}}
- `done` ends the conversation, once everything the customer wanted is settled: {"name": "done", "arguments": {}}

Know who the customer is before you change anything, have every change confirmed by them first, and tell them what came of it.

# Policy
""",
        ("policy",),
        "\n\n# Tools\n",
        ("tools_text",),
        "\n",
    ),
    short_policies=SHORT_POLICIES,
)


def tools_text(tools: Sequence[ToolSchema]) -> str:
    """The tools as the prompt lists them: name, description and parameters, indented JSON, `done` at the end."""
    functions: list[dict[str, Any]] = [tool.get("function", tool) for tool in tools]
    if not any(function["name"] == "done" for function in functions):
        functions.append(DONE_TOOL["function"])
    keys: dict[str, Any] = {"name": "unknown", "description": "", "parameters": {"type": "object", "properties": {}}}
    return json.dumps([{key: function.get(key, default) for key, default in keys.items()} for function in functions], indent=2)


def upstream_domain(tools: Sequence[ToolSchema]) -> str:
    """The tau2 domain that has these tools, "general" for tools of none.

    >>> upstream_domain([{"type": "function", "function": {"name": "refuel_data"}}])
    'telecom'
    """
    names = (tool.get("function", tool).get("name", "") for tool in tools)
    return next((_DOMAIN_OF_TOOL[name] for name in names if name in _DOMAIN_OF_TOOL), "general")


def upstream_prompt(file: Path, *, sha256: str = UPSTREAM_SHA256) -> CookbookPrompt:
    """The published checkpoints' own prompt, from a copy of their `prompting.py`. Raises UserError: missing, or another text."""
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the cookbook's prompt `{file}`: {error.strerror}", hint=_HINT) from None
    found = hashlib.sha256(source).hexdigest()
    if found != sha256:
        raise UserError(
            f"`{file}` is not the prompt that the checkpoints were trained with (sha256 {found[:12]}, not {sha256[:12]})",
            hint=_HINT,
        )
    tree = ast.parse(source)
    short = {
        name.removeprefix("COMPRESSED_POLICY_").lower(): text
        for name, text in _constants(tree)
        if name.startswith("COMPRESSED_POLICY_")
    }
    return CookbookPrompt(source=f"upstream sha256:{found[:12]}", parts=_template(tree), short_policies=short)


_HINT = f"git clone {UPSTREAM}, check out {UPSTREAM_COMMIT[:7]} and name its tau2_rl_pipeline/prompting.py"


def _constants(tree: ast.Module) -> list[tuple[str, str]]:
    return [
        (target.id, node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _template(tree: ast.Module) -> tuple[str | tuple[str], ...]:
    """The one f-string that has all the fields, as parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = tuple(part for value in node.values if (part := _part(value)) is not None)
            if len(parts) == len(node.values) and {part[0] for part in parts if isinstance(part, tuple)} == set(FIELDS):
                return parts
    raise UserError("the cookbook's prompt file has no text with " + ", ".join(f"`{field}`" for field in FIELDS), hint=_HINT)


def _part(value: ast.expr) -> str | tuple[str] | None:
    match value:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=ast.Name(id=name)):
            return (name,)
        case _:
            return None


RESPOND, DONE = "respond", "done"
NOTHING = "[no_observation]"  # what the checkpoints read in place of an empty message


class CookbookCodec:
    """`protocols.ChatCodec` of the cookbook; see `chat/__init__.py`."""

    stop: tuple[str, ...] = (CLOSE,)

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        compressed: bool = False,
        prompt: CookbookPrompt = OUR_PROMPT,
        thinking: Thinking = "off",
        date: Date | None = None,
    ) -> None:
        """Prove that the template is prefix-preserving. Raises UserError that says why it is not."""
        self._compressed = compressed
        self.prompt = prompt
        self.chat = TemplateChat(tokenizer, thinking=thinking, date=date)
        prove(self.chat, PLAIN)
        self.append_only = thinking != "per-turn"

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer are below it."""
        return self.chat.tokenizer.vocab_size

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The template's end-of-turn token first, then the checkpoint's other ends."""
        return self.chat.stop_token_ids

    def open(self, opening: Opening) -> list[int]:
        """The prompt of the first turn: the system prompt with policy and tools, then the messages from the user's first on."""
        return self.chat.open(self.conversation(opening), None)

    def conversation(self, opening: Opening) -> list[ChatDict]:
        """A conversation as this protocol's chat messages, from the user's first on, the system message in front."""
        system = self.prompt.text(opening.domain_policy, opening.tools, compressed=self._compressed)
        first = next((i for i, message in enumerate(opening.messages) if message.role != "assistant" or message.tool_calls), 0)
        return [{"role": "system", "content": system}, *self._dicts(opening.messages[first:], [])]

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new_messages: Sequence[Message]) -> list[int]:
        """The prompt of the next turn; see `ChatCodec.extend`."""
        calls: list[CallTool] = []
        with suppress(MalformedTurn):  # a repair request follows such a turn, not a result
            calls += [action for action in self._read(completion_ids) if isinstance(action, CallTool)]
        return self.chat.extend(prompt_ids, completion_ids, self._dicts(new_messages, calls))

    def parse(self, completion_ids: Sequence[int], tools: Sequence[ToolSchema]) -> Actions:
        """`respond` is Say, everything else CallTool. Raises MalformedTurn, and nothing else."""
        actions = self._read(completion_ids)
        for action in actions:
            if isinstance(action, CallTool) and action.name != DONE:
                check_call(action, tools)
        return actions

    def write(self, actions: Actions) -> list[int]:
        """The turn, up to the stop string. Raises ValueError for more than one action, or a message without text."""
        body, thought = split_thought(actions)
        return write_back(actions, lambda dump: self.chat.write("\n".join(_block(a, dump) for a in body), thought), self._read)

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """See `ChatCodec.close_thoughts`."""
        return self.chat.close_thoughts(completion_ids)

    def _read(self, completion_ids: Sequence[int]) -> Actions:
        thought, text = self.chat.read(completion_ids)
        action = self._action(text)
        return (Think(text=thought), action) if thought and thought.strip() else (action,)

    @staticmethod
    def _action(text: str) -> Say | CallTool:
        blocks = split_blocks(text)
        if not blocks.bodies:
            raise_malformed(MalformedKind.NO_CALL, f"every turn is one {OPEN} block; `{RESPOND}` sends a message")
        body, *more = blocks.bodies
        if more:
            raise_malformed(MalformedKind.TWO_CALLS, f"{len(blocks.bodies)} tool calls, where one a turn is allowed")
        if blocks.before.strip() or blocks.outside:
            raise_malformed(MalformedKind.TEXT_OUTSIDE, f"text outside {OPEN}; `{RESPOND}` sends a message")
        call = read_call(read_call_json(body))
        if call.name == DONE and call.arguments:
            raise_malformed(MalformedKind.WRONG_ARGUMENTS, f"`{DONE}` takes no arguments")
        return _said(call) if call.name == RESPOND else call

    @staticmethod
    def _dicts(messages: Sequence[Message], calls: list[CallTool]) -> list[ChatDict]:
        """System, user and assistant messages; `calls` are the ones that the first results answer."""
        open_calls = calls[:]
        dicts: list[ChatDict] = []
        for message in messages:
            if message.role == "assistant":
                open_calls = list(message.tool_calls)
                blocks = [_block(call, template_json) for call in message.tool_calls] or [
                    _block(Say(text=message.content), template_json)
                ]
                dicts.append({"role": "assistant", "content": "\n".join(blocks)})
            elif message.role == "tool":
                call = call_text(open_calls.pop(0)) if open_calls else "the last call"
                dicts.append({"role": "user", "content": f"Tool result for {call}:\n{message.content.strip() or NOTHING}"})
            else:
                dicts.append({"role": message.role, "content": message.content.strip() or NOTHING})
        return dicts


def codec(config: ChatConfig) -> CookbookCodec:
    """The codec of `chat.protocol: cookbook`.

    Raises UserError: no tokenizer, a chat template that cannot be used, or a prompt file that is not the published one.
    """
    prompt = upstream_prompt(config.cookbook_prompt) if config.cookbook_prompt else OUR_PROMPT
    compressed = config.policy_text == "compressed"
    return CookbookCodec(
        tokenizer_of(config), compressed=compressed, prompt=prompt, thinking=config.thinking, date=date_of(config)
    )


def call_text(call: CallTool) -> str:
    """A call as the checkpoints read it above its result.

    >>> call_text(CallTool(name="f", arguments={"id": "#W1", "ok": True, "n": [1, None]}))
    "f(id='#W1', ok=True, n=[1, None])"
    """
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


def _said(call: CallTool) -> Say:
    content = call.arguments.get("content")
    if not isinstance(content, str) or not content.strip():
        raise_malformed(MalformedKind.NO_CONTENT, f"`{RESPOND}` needs `content`, the text of the message")
    if len(call.arguments) > 1:
        raise_malformed(MalformedKind.WRONG_ARGUMENTS, f"`{RESPOND}` takes `content` and nothing else")
    return Say(text=content)


def _block(action: Action, dump: Dump) -> str:
    call = action if isinstance(action, CallTool) else CallTool(name=RESPOND, arguments={"content": action.text})
    return f'{OPEN}\n{{"name": {dump(call.name)}, "arguments": {dump(call.arguments)}}}\n{CLOSE}'
