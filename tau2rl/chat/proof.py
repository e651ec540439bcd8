"""The proof that a chat template does what the protocol promises, before the first episode or row: else a named refusal.

- Planted marks (a tool, an argument, a result, a thought) stand in the text that the template writes.
- The call that the template wrote is the call that we read, with every JSON type; so are two calls, and text beside one.
- Conversations of every shape that an episode can take are rendered whole by the template and, beside it, put together as an
  episode does. The two texts must be equal; thoughts aside, where the setting keeps what the template would drop.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import date as Date
from typing import Any

from tau2rl.chat.families import FAMILIES, Hermes, schemas_of
from tau2rl.chat.template import ANSWER, BASE, NEXT, OWN_CODEC, THOUGHT, TemplateChat, chat_dicts
from tau2rl.chat.tokenizers import ChatDict, Tokenizer
from tau2rl.errors import MalformedTurn, UserError
from tau2rl.types import Actions, CallTool, Message, Say, Think, Thinking, ToolSchema

_PROPERTIES: dict[str, Any] = {
    "order_id": {"type": "string", "description": "The order."},
    "zip": {"type": "string", "description": "Digits."},
    "limit": {"type": "integer", "description": "How many."},
    "price": {"type": "number", "description": "Dollars."},
    "urgent": {"type": "boolean", "description": "Now."},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "Text."},
    "items": {"type": "array", "items": {"type": "string"}, "description": "Which."},
    "address": {"type": "object", "properties": {"city": {"type": "string"}}, "description": "Where."},
}
TOOLS: tuple[ToolSchema, ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Find an order.",
            "parameters": {"type": "object", "properties": _PROPERTIES, "required": ["order_id"]},
        },
    }
    for name in ("find_order", "act_on_it")
)
MARKS = {"a tool's name": "find_order", "the last of several tools": "act_on_it", "the name of an argument": "order_id"}
SIGNS = """It's "5 < 6" & more"""  # which HTML writes otherwise
RESULT = f"sent on 7 May{' with care' * 2000}, and signed for"  # as long as a policy, or what a tool finds


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A conversation: `Probe(name="plain text", messages=(...))`, user, assistant, and so on, ending with the user's side."""

    name: str  # completes "... in a conversation with"
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _says(text: str, *calls: CallTool, reasoning: str = "") -> Message:
    return Message(role="assistant", content=text, tool_calls=calls, reasoning=reasoning)


def _result(text: str) -> Message:
    return Message(role="tool", content=text)


def _find(**arguments: Any) -> CallTool:
    return CallTool(name="find_order", arguments=arguments)


_FIND = _find(order_id="#W1")
_FIND_TWO = _find(order_id="#Ж 2", limit=2)
_ACT = CallTool(name="act_on_it", arguments={"order_id": "7"})
_THINKING = Probe(
    name="thinking in an earlier turn",
    messages=(_user("Hi."), _says("Good day.", reasoning=THOUGHT), _user("I need help."), _says("With what?"), _user("This.")),
)
PLAIN: tuple[Probe, ...] = (
    _THINKING,
    Probe(
        name="several turns of plain text",
        messages=(_user(SIGNS), _says("Good day."), _user("Two\nlines.\n\n- and a list"), _says("Naïve Ω 漢字 🙂"), _user("")),
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
        name="a tool call behind a thought",
        messages=(
            _user("Where is it?"),
            _says("", _FIND, reasoning=THOUGHT),
            _result("sent"),
            _says("", _ACT, reasoning="Another thought."),
            _result("done"),
            _says("On its way.", reasoning="A last one."),
            _user("Thanks."),
        ),
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
            _user(SIGNS),
        ),
        tools=TOOLS,
    ),
)
_TYPES: tuple[tuple[str, CallTool], ...] = (
    ("no arguments", CallTool(name="act_on_it", arguments={})),
    ("a long text argument", _find(order_id=f"#W1{' and more' * 500}")),
    ("text arguments", _find(order_id='#W1 "Ж" </parameter> {x}\n\nsecond line', zip="00123")),
    ("a text argument that reads as another type", _find(order_id="null", zip="true")),
    ("numbers", _find(order_id="it's", limit=123, price=-1234.56789)),
    ("true and null", _find(order_id="a", urgent=True, note=None)),
    ("false, zero and an empty list", _find(order_id="", urgent=False, limit=0, items=[])),
    ("a list and an object", _find(order_id="a", items=["x", "1"], address={"city": "Zürich", "units": [1, {"deep": None}]})),
)


def family_chat(tokenizer: Tokenizer, thinking: Thinking, date: Date | None) -> TemplateChat:
    """The template with the family that reads the calls that it writes. Raises UserError: it shows no tools, or nobody does."""
    plain = TemplateChat(tokenizer, thinking=thinking, date=date)
    shown = plain.render(BASE, TOOLS, generation=True)
    for what, message in zip(("the policy", "what the user says"), BASE, strict=True):
        if message["content"] not in shown:
            raise plain.refusal(f"it does not show {what} to the model where there are tools")
    if missing := [what for what, mark in MARKS.items() if mark not in shown]:
        hint = "choose a checkpoint made for tool use, or chat.protocol=cookbook, which shows them in its own system prompt"
        raise plain.refusal(f"it does not show the tools to the model: {missing[0]} is not in the prompt", hint)
    call = chat_dicts([_says("", _find(order_id=ANSWER, limit=3))])[0]
    before = plain.render(BASE, TOOLS, generation=False)
    whole = plain.render([*BASE, call], TOOLS, generation=False)
    if not whole.startswith(before):
        raise plain.refusal("it writes the beginning of a conversation otherwise once something follows")
    written = whole[len(before) :]
    if ANSWER not in written or "find_order" not in written:
        raise plain.refusal("it does not write the tool calls of earlier turns, so that a model would not know what it did")
    complaints: list[UserError] = []
    for family in FAMILIES:
        try:
            if (chat := _speaks(tokenizer, family, thinking, date, call)) is not None:
                return chat
        except UserError as error:
            complaints += [error] if len(family.call_open) > 1 and family.call_open in written else []
    if complaints:
        raise complaints[0]
    raise plain.refusal(f"it writes a tool call as {_short(written)}, a format that is not read here", OWN_CODEC)


def _speaks(tokenizer: Tokenizer, family: Hermes, thinking: Thinking, date: Date | None, call: ChatDict) -> TemplateChat | None:
    """The template with this family, None where it does not read the call. Raises UserError."""
    chat = TemplateChat(tokenizer, family, thinking=thinking, date=date)
    chat.learn_calls()
    ids = tokenizer.encode(chat.written(call))
    return chat if _is(_read(chat, ids), (_find(order_id=ANSWER, limit=3),)) else None


def prove(chat: TemplateChat, probes: tuple[Probe, ...]) -> None:
    """Compare what the template writes with what is read and put together. Raises UserError that names what differs."""
    _prove_thinking(chat)
    _prove_length(chat)
    if probes is TOOL_USE:
        _prove_calls(chat)
    else:
        _prove_text(chat)
    for probe in probes:
        if not (chat.one_call and any(len(m.tool_calls) > 1 for m in probe.messages)):
            _prove(chat, probe)


def _prove_thinking(chat: TemplateChat) -> None:
    if chat.thinking == "off":
        if chat.opens_thinking or chat.family.thinks_always:
            how = "per-turn" if chat.family.thinks_always else "keep"
            raise chat.refusal("its model always thinks", f"chat.thinking={how} lets it")
        return
    turns = ((_says(ANSWER, reasoning=THOUGHT), Say(text=ANSWER)), (_says("", _FIND, reasoning=THOUGHT), _FIND))
    # Gemma 4 writes thoughts before calls alone.
    found = [
        _is(_read(chat, chat.tokenizer.encode(chat.written(chat_dicts([m])[0]))), (Think(text=THOUGHT), a)) for m, a in turns
    ]
    if not any(found):
        raise chat.refusal("it does not write thoughts", "chat.thinking=off, the default, is for a model that has none")
    if chat.thinking == "per-turn" and THOUGHT in chat.hole():
        raise chat.refusal(
            "it keeps the thoughts of earlier turns", "chat.thinking=keep is the same for this template, and cheaper"
        )
    if chat.thinking == "keep":
        full = chat.render([*BASE, {"role": "assistant", "content": ANSWER}, NEXT], None, generation=False)
        if not full.partition(ANSWER)[2].startswith(chat.end_text):
            raise chat.refusal("it ends a turn otherwise once something follows", "chat.thinking=per-turn writes it as it does")


def _prove_length(chat: TemplateChat) -> None:
    for what, role in (("policy", "system"), ("user", "user")):
        messages = [{**message, "content": RESULT} if message["role"] == role else message for message in BASE]
        if RESULT not in chat.render(messages, None, generation=True):
            raise chat.refusal(f"it does not show a long text of the {what} as a whole", OWN_CODEC)


def _prove_calls(chat: TemplateChat) -> None:
    cases: list[tuple[str, Message, Actions]] = [("plain text", _says(ANSWER), (Say(text=ANSWER),))]
    cases += [(name, _says("", call), (call,)) for name, call in _TYPES]
    if chat.family.text_beside:
        cases.append(("text beside a call", _says("One moment.", _FIND), (Say(text="One moment."), _FIND)))
    if not chat.one_call:
        cases.append(("two calls", _says("", _FIND, _FIND_TWO), (_FIND, _FIND_TWO)))
    if chat.thinking != "off":
        cases.append(("a thought before a call", _says("", _FIND, reasoning=THOUGHT), (Think(text=THOUGHT), _FIND)))
    for name, message, actions in cases:
        ids = chat.tokenizer.encode(chat.written(chat_dicts([message])[0]))
        found = _read(chat, ids)
        if not _is(found, actions):
            was = found if isinstance(found, str) else ", ".join(map(repr, found))
            raise chat.refusal(f"a turn with {name} does not come back as it was written: {was[:200]}", OWN_CODEC)
    begun = chat.suffix([{"role": "tool", "content": RESULT}], ("act",))[1]
    if RESULT not in begun:
        raise chat.refusal("it does not show the results of tools to the model", OWN_CODEC)
    opens = begun.rstrip().endswith(chat.family.thought[0])
    if chat.thinking != "off" and opens != chat.opens_thinking:
        raise chat.refusal("it begins a thought behind some messages and not behind others", "chat.thinking=off")


def _prove_text(chat: TemplateChat) -> None:
    """Where a protocol writes its calls as text, the template adds nothing to a turn but an empty thought."""
    start, close = map(re.escape, chat.family.thought)
    added = chat.written({"role": "assistant", "content": ANSWER}).partition(ANSWER)[0]
    if re.sub(rf"{start}\s*{close}", "", added).strip():
        raise chat.refusal(f"it writes {_short(added)} before what the assistant says", OWN_CODEC)


def _is(found: Actions | str, actions: Actions) -> bool:
    """Whether these are the actions, types included: 3 is not 3.0, and true is not 1."""
    return not isinstance(found, str) and found == actions and _arguments(found) == _arguments(actions)


def _arguments(actions: Actions) -> list[str]:
    return [json.dumps(action.arguments, sort_keys=True) for action in actions if isinstance(action, CallTool)]


def _read(chat: TemplateChat, ids: list[int]) -> Actions | str:
    try:
        return chat.actions(ids, schemas_of(TOOLS))
    except MalformedTurn as error:
        return f"{error.kind.value}: {error.message}"


def _prove(chat: TemplateChat, probe: Probe) -> None:
    thinks = chat.thinking != "off"
    told = chat_dicts([_without_text_beside(m) if not chat.family.text_beside else m for m in probe.messages])
    messages: list[ChatDict] = [{"role": "system", "content": "Follow the policy."}, *(_kept(m, thinks=thinks) for m in told)]
    where = f"in a conversation with {probe.name}"
    user = next(i for i, m in enumerate(messages) if m["role"] == "user")  # a greeting before it is part of the opening
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > user]
    encode, decode = chat.tokenizer.encode, chat.tokenizer.decode
    text = chat.render(messages[: turns[0]], probe.tools, generation=True)
    if decode(encode(text)) != text:
        raise chat.refusal(f"its tokenizer does not give back the text that it was given {where}")
    ids = encode(text)
    for turn, following in zip(turns, [*turns[1:], len(messages)], strict=True):
        ids = chat.extend(ids, encode(chat.written(messages[turn])), messages[turn + 1 : following])
        whole = chat.render(messages[:following], probe.tools, generation=True)
        ours = decode(ids)
        if _comparable(chat, ours) != _comparable(chat, decode(encode(whole))):
            raise chat.refusal(f"it writes an earlier turn or a new message otherwise later on {where}")
        for message in messages[:following]:
            if not _shows(whole, str(message.get("content") or "")):
                said = f"{message['role']}: {_short(str(message['content']))}"
                raise chat.refusal(f"it does not write every message {where}: of {said} not all is there")


def _shows(text: str, content: str) -> bool:
    """Whether a content stands in a text, as it is or as JSON; that of an object may stand there in another notation."""
    said = content.strip()
    forms = (said, json.dumps(said)[1:-1], json.dumps(said, ensure_ascii=False)[1:-1])
    return said.startswith("{") or any(form in text for form in forms)


def _without_text_beside(message: Message) -> Message:
    return replace(message, content="") if message.tool_calls else message


def _kept(message: ChatDict, *, thinks: bool) -> ChatDict:
    return message if thinks else {key: value for key, value in message.items() if key not in ("reasoning_content", "thinking")}


def _comparable(chat: TemplateChat, text: str) -> str:
    """The text without empty thoughts, or without any where those stay that the template would drop."""
    if chat.thinking == "per-turn":
        start, close = map(re.escape, chat.family.thought)
        return re.sub(rf"{start}\s*{close}\n*", "", text)
    return chat.family.without_thoughts(text, chat.header, "")


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:120]}...")
