"""The proof that a chat template is prefix-preserving: conversations of every shape that an episode can take.

Each is rendered whole by the template and, beside it, put together as an episode does. The two texts must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from tau2rl.chat.template import TemplateChat, chat_dicts
from tau2rl.chat.tokenizers import ChatDict
from tau2rl.types import CallTool, Message, ToolSchema

TOOLS: tuple[ToolSchema, ...] = (
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find an order.",
            "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
        },
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A conversation: `Probe(name="plain text", messages=(...))`, user, assistant, and so on, ending with the user's side."""

    name: str  # completes "... in a conversation with"
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _says(text: str, *calls: CallTool) -> Message:
    return Message(role="assistant", content=text, tool_calls=calls)


def _result(text: str) -> Message:
    return Message(role="tool", content=text)


_FIND = CallTool(name="find", arguments={"order_id": "#W1"})
_FIND_TWO = CallTool(name="find", arguments={"order_id": "#Ж 2"})
_THINKING = Probe(
    name="thinking in an earlier turn",
    messages=(
        _user("Hi."),
        _says("<think>\nA greeting.\n</think>\n\nGood day."),
        _user("I need help."),
        _says("With what?"),
        _user("This."),
    ),
)
PLAIN: tuple[Probe, ...] = (
    _THINKING,
    Probe(
        name="several turns of plain text",
        messages=(_user("Hi."), _says("Good day."), _user("Two\nlines.\n\n- and a list"), _says("Naïve Ω 漢字 🙂"), _user("")),
    ),
)
TOOL_USE: tuple[Probe, ...] = (
    _THINKING,
    Probe(
        name="a greeting before the user's first message",
        messages=(_says("Hi! How can I help you today?"), _user("Cancel it."), _says("Which one?"), _user("Both.")),
        tools=TOOLS,
    ),
    Probe(
        name="a tool call and its result",
        messages=(_user("Where is it?"), _says("", _FIND), _result('{"status": "sent"}'), _says("On its way."), _user("Thanks.")),
        tools=TOOLS,
    ),
    Probe(
        name="several tool calls in one turn",
        messages=(
            _user("Où sont-ils ?"),
            _says("One moment.", _FIND, _FIND_TWO),
            _result("Naïve Ω 漢字 🙂"),
            _result("two\nlines"),
            _says("", _FIND),
            _result(""),
            _says("Here."),
            _user("Thanks."),
        ),
        tools=TOOLS,
    ),
)


def prove(chat: TemplateChat, probes: tuple[Probe, ...]) -> None:
    """Compare the template's text with the text of an episode, turn by turn. Raises UserError that names what differs."""
    for probe in probes:
        _prove(chat, probe)


def _prove(chat: TemplateChat, probe: Probe) -> None:
    messages: list[ChatDict] = [{"role": "system", "content": "Follow the policy."}, *chat_dicts(probe.messages)]
    where = f"in a conversation with {probe.name}"
    user = next(i for i, m in enumerate(messages) if m["role"] == "user")  # a greeting before it is part of the opening
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > user]
    text = chat.render(messages[: turns[0]], probe.tools, generation=True)
    for turn, following in zip(turns, [*turns[1:], len(messages)], strict=True):
        answered = chat.render(messages[: turn + 1], probe.tools, generation=False)
        if not answered.startswith(text) or not answered.endswith(chat.closing):
            raise chat.refusal(f"an assistant turn does not follow on its prompt {where}")
        whole = chat.render(messages[:following], probe.tools, generation=True)
        if not whole.startswith(answered):
            raise chat.refusal(f"it writes an earlier turn differently later on {where}")
        new = _numbered(messages[turn + 1 : following])
        if whole != answered.removesuffix(chat.closing) + chat.suffix(new):
            raise chat.refusal(f"what it writes for a new message depends on more than the message {where}")
        text = whole
    if chat.tokenizer.decode(chat.tokenizer.encode(text)) != text:
        raise chat.refusal(f"its tokenizer does not give back the text that it was given {where}")


def _numbered(new: list[ChatDict]) -> list[ChatDict]:
    """The messages with call ids counted from 0, as an episode's continuation has them."""
    ids = iter(range(len(new)))
    return [{**m, "tool_call_id": f"call{next(ids):05d}"} if m["role"] == "tool" else m for m in new]
