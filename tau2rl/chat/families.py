"""How a family of models writes a turn: its calls, its thoughts, the tokens that are part of it. A new family is a class here.

A checkpoint's template writes prompts, whatever the family is; a family reads what was sampled. Which one it is, the proof finds:
the one that reads back the call that the template itself wrote (`chat/proof.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tau2rl.chat.parsing import (
    CLOSE,
    OPEN,
    PYTHON_WORDS,
    Dump,
    escaped,
    raise_malformed,
    read_call,
    read_call_json,
    split_blocks,
    template_json,
    typed,
)
from tau2rl.types import Action, Actions, CallTool, MalformedKind, Say, Think, ToolSchema

Schemas = Mapping[str, Mapping[str, Any]]  # name of a tool -> its parameters


class Hermes:
    """`<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Qwen2.5, Qwen3, Hermes. What the others build on."""

    name = "hermes"
    call_open = OPEN
    call_close = CLOSE
    thought: tuple[str, str] = ("<think>", "</think>")
    close_text = "\n</think>\n\n"  # what closes a thought that is cut
    tags: tuple[str, ...] = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # part of a turn, also where they are special
    one_call = False  # its template may take a single call a turn, which the proof finds out
    text_beside = True  # its template takes text before a call
    thinks_always = False

    def read(self, text: str, schemas: Schemas) -> Actions:
        """The actions of a turn without thoughts and end token. Raises MalformedTurn."""
        blocks = split_blocks(text)
        if blocks.outside:
            raise_malformed(MalformedKind.TEXT_OUTSIDE, f"text behind {CLOSE}")
        if not blocks.bodies:
            return (Say(text=blocks.before),)
        # The template puts one line break between text and calls.
        said: tuple[Action, ...] = (Say(text=blocks.before.removesuffix("\n")),) if blocks.before.strip() else ()
        return (*said, *(read_call(read_call_json(body)) for body in blocks.bodies))

    def spellings(self, actions: Actions) -> tuple[str, ...]:
        """Ways to write actions without thoughts, the readable one first; () = as the template writes them."""
        if not any(isinstance(a, CallTool) for a in actions):
            return ("\n".join(a.text for a in actions if isinstance(a, Say)),)
        return tuple(self._write(actions, dump) for dump in (template_json, escaped))

    def _write(self, actions: Actions, dump: Dump) -> str:
        return "\n".join(
            f'{OPEN}\n{{"name": {dump(a.name)}, "arguments": {dump(a.arguments)}}}\n{CLOSE}'
            if isinstance(a, CallTool)
            else a.text
            for a in actions
        )

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """A turn's thought (None: it has none) and what is behind it. Raises MalformedTurn: never closed, nothing behind it.

        `opened`: the prompt began the thought. What stands before a closing tag is a thought even where nobody opened it.
        """
        start, close = self.thought
        if text.lstrip().startswith(start):
            text, opened = text.lstrip()[len(start) :], True
        before = text.partition(self.call_open)[0]
        if not opened and (close not in before or start in before):
            return None, text
        thought, closed, answer = text.partition(close)
        if not closed:
            raise_malformed(MalformedKind.NO_CONTENT, f"{start} is never closed")
        if not answer.strip():
            raise_malformed(MalformedKind.NO_CONTENT, "the turn has thoughts and nothing else")
        return thought.strip("\n"), answer.lstrip("\n")

    def open_thought(self, text: str, *, opened: bool) -> bool:
        """Whether a turn, so far, has a thought that is not closed."""
        start, close = self.thought
        return (opened or text.lstrip().startswith(start)) and close not in text

    def think(self, thought: str, *, opened: bool) -> str:
        """A thought as text in front of a turn."""
        start, close = self.thought
        begun = "" if opened else f"{start}\n"
        return f"{begun}{thought}\n{close}\n\n"

    def without_thoughts(self, text: str, header: str, hole: str) -> str:
        """A prompt without the thoughts of its turns, each behind `header`; `hole` is what the template leaves in their place."""
        start, close = self.thought
        first, *turns = text.split(header)
        out = [first]
        for turn in turns:
            thought, closed, behind = turn.partition(close)
            thinks = thought.lstrip().startswith(start) and closed
            out.append(hole + behind.lstrip("\n") if thinks else turn)
        return header.join(out)


class Elements(Hermes):
    r"""`<tool_call><function=f><parameter=p>v</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5 to 3.8, Nemotron 3.

    A value is text; its JSON type comes from the tool's schema. It ends at the `</parameter>` behind which another parameter or
    the end of the function stands, so that a text may have the tag in it.

    >>> schemas = {"f": {"properties": {"n": {"type": "integer"}, "s": {"type": "string"}}}}
    >>> values = "<parameter=n>\n5\n</parameter>\n<parameter=s>\n5\n</parameter>\n"
    >>> Elements().read(f"<tool_call>\n<function=f>\n{values}</function>\n</tool_call>", schemas)
    (CallTool(name='f', arguments={'n': 5, 's': '5'}),)
    """

    name = "elements"

    def read(self, text: str, schemas: Schemas) -> Actions:
        """See `Hermes.read`."""
        before, opened, rest = text.partition(OPEN)
        if CLOSE in before:
            raise_malformed(MalformedKind.NO_OPEN_TAG, f"{CLOSE} without {OPEN}")
        if not opened:
            return (Say(text=text),)
        calls: list[CallTool] = []
        while opened:
            call, rest = _function(rest, schemas)
            calls.append(call)
            between, opened, rest = rest.partition(OPEN)
            if between.strip():
                kind = MalformedKind.NO_OPEN_TAG if CLOSE in between else MalformedKind.TEXT_OUTSIDE
                raise_malformed(kind, f"text behind {CLOSE}")
        said: tuple[Action, ...] = (Say(text=before.rstrip("\n")),) if before.strip() else ()
        return (*said, *calls)

    def spellings(self, actions: Actions) -> tuple[str, ...]:
        """Text as it is; calls as the template writes them."""
        return () if any(isinstance(a, CallTool) for a in actions) else super().spellings(actions)


_FUNCTION = re.compile(r"\s*<function=([^>\n]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]*)>\n?")
_END = re.compile(r"\s*</function>\s*</tool_call>")
_VALUE_END = re.compile(r"\n?</parameter>(?=\s*(?:<parameter=|</function>\s*</tool_call>))")


def _function(text: str, schemas: Schemas) -> tuple[CallTool, str]:
    """The function behind `<tool_call>`, and what follows `</tool_call>`. Raises MalformedTurn."""
    if CLOSE not in text:
        raise_malformed(MalformedKind.NO_CLOSE_TAG, f"{OPEN} without {CLOSE}")
    head = _FUNCTION.match(text)
    if head is None:
        raise_malformed(MalformedKind.NOT_AN_OBJECT, "a tool call must be <function=NAME> with its parameters")
    name = head[1].strip()
    if not name:
        raise_malformed(MalformedKind.MISSING_NAME, "a tool call needs the name of a tool: <function=NAME>")
    known: Mapping[str, Any] = schemas.get(name, {}).get("properties", {})
    arguments: dict[str, Any] = {}
    at = head.end()
    while (end := _END.match(text, at)) is None:
        begins = _PARAMETER.match(text, at)
        if begins is None:
            raise_malformed(
                MalformedKind.BAD_JSON, f"`{name[:60]}`: between its parameters stands {text[at : at + 40].strip()!r}"
            )
        key = begins[1].strip()
        ends = _VALUE_END.search(text, begins.end())
        if ends is None:
            raise_malformed(MalformedKind.NO_CLOSE_TAG, f"`{name[:60]}`: <parameter={key[:60]}> is never closed")
        if key in arguments:
            raise_malformed(MalformedKind.WRONG_ARGUMENTS, f"`{name[:60]}`: `{key[:60]}` is given twice")
        arguments[key] = typed(text[begins.end() : ends.start()], known.get(key, {}))
        at = ends.end()
    return CallTool(name=name, arguments=arguments), text[end.end() :]


class BareJson(Hermes):
    """`{"name": ..., "parameters": ...}` and nothing else: Llama 3.x, whose template takes one call a turn. No text beside it."""

    name = "bare-json"
    call_open = "{"
    call_close = "}"
    tags = ("<|python_tag|>",)
    one_call = True
    text_beside = False

    def read(self, text: str, schemas: Schemas) -> Actions:
        """See `Hermes.read`."""
        body = text.strip().removeprefix("<|python_tag|>").lstrip()
        if not body.startswith("{"):
            if re.search(r'\{\s*"name"\s*:', body):
                raise_malformed(MalformedKind.TEXT_OUTSIDE, "text beside a call")
            return (Say(text=text),)
        calls: list[Action] = []
        while body:
            if not body.startswith("{"):
                raise_malformed(MalformedKind.TEXT_OUTSIDE, "text behind a call")
            try:
                _, end = json.JSONDecoder().raw_decode(body)
            except (ValueError, RecursionError):
                end = len(body)
            value = read_call_json(body[:end])
            fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
            calls.append(read_call({**fields, "arguments": fields.get("parameters", fields.get("arguments"))}))
            body = body[end:].lstrip("; \n")
        return tuple(calls)

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """It has no thoughts."""
        return None, text

    def open_thought(self, text: str, *, opened: bool) -> bool:
        """It has no thoughts."""
        return False

    def spellings(self, actions: Actions) -> tuple[str, ...]:
        """Text as it is, calls as JSON."""
        calls = [a for a in actions if isinstance(a, CallTool)]
        if not calls:
            return super().spellings(actions)
        return tuple(
            "\n".join(f'{{"name": {dump(c.name)}, "parameters": {dump(c.arguments)}}}' for c in calls)
            for dump in (template_json, escaped)
        )


class Gemma(Elements):
    r"""`<|tool_call>call:f{text:<|"|>a<|"|>,number:5}<tool_call|>`: Gemma 4. No text beside a call."""

    name = "gemma"
    call_open = "<|tool_call>"
    call_close = "<tool_call|>"
    thought = ("<|channel>thought", "<channel|>")
    close_text = "\n<channel|>"
    tags = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")
    text_beside = False

    def read(self, text: str, schemas: Schemas) -> Actions:
        """See `Hermes.read`."""
        before, *parts = text.split(self.call_open)
        if self.call_close in before:
            raise_malformed(MalformedKind.NO_OPEN_TAG, f"{self.call_close} without {self.call_open}")
        if not parts:
            return (Say(text=text),)
        if before.strip():
            raise_malformed(MalformedKind.TEXT_OUTSIDE, "text beside a call")
        calls: list[Action] = []
        for part in parts:
            body, closed, behind = part.partition(self.call_close)
            if not closed:
                raise_malformed(MalformedKind.NO_CLOSE_TAG, f"{self.call_open} without {self.call_close}")
            if behind.strip():
                raise_malformed(MalformedKind.TEXT_OUTSIDE, f"text behind {self.call_close}")
            calls.append(_gemma_call(body.strip()))
        return tuple(calls)

    def think(self, thought: str, *, opened: bool) -> str:
        """See `Hermes.think`."""
        begun = "" if opened else f"{self.thought[0]}\n"
        return f"{begun}{thought}\n{self.thought[1]}"

    def without_thoughts(self, text: str, header: str, hole: str) -> str:
        """See `Hermes.without_thoughts`: one header stands in front of several turns."""
        return re.sub(r"<\|channel>thought.*?<channel\|>", "", text, flags=re.DOTALL)


_KEY = re.compile(r"""([{,]\s*)([^\s{}\[\],:"][^{}\[\],:"]*?)\s*(?=:)""")
_WORD = re.compile(r"([:,\[]\s*)(True|False|None)(?=\s*[,\]}])")


def _gemma_call(text: str) -> CallTool:
    """`call:f{key:value}` as JSON: strings stand between two `<|"|>`, keys bare. Raises MalformedTurn."""
    head, brace, rest = text.partition("{")
    name = head.removeprefix("call:").strip()
    if not head.startswith("call:") or not brace:
        raise_malformed(MalformedKind.NOT_AN_OBJECT, "a tool call must be call:NAME{...}")
    if not name:
        raise_malformed(MalformedKind.MISSING_NAME, "a tool call needs the name of a tool: call:NAME{...}")
    parts = f"{{{rest}".split('<|"|>')
    if len(parts) % 2 == 0:
        raise_malformed(MalformedKind.BAD_JSON, "a string in the arguments is never closed")
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = json.dumps(part)
        else:
            keyed = _KEY.sub(lambda found: found[1] + json.dumps(found[2]), part)
            parts[i] = _WORD.sub(lambda found: found[1] + json.dumps(PYTHON_WORDS[found[2]]), keyed)
    return read_call({"name": name, "arguments": read_call_json("".join(parts))})


class Harmony(BareJson):
    """Messages in channels, calls by recipient (`to=functions.f`): gpt-oss. It always thinks."""

    name = "harmony"
    call_open = "to=functions."
    thought = ("<|channel|>analysis<|message|>", "<|end|>")
    close_text = "<|end|><|start|>assistant"
    tags = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>")
    thinks_always = True
    HEADER = "<|start|>assistant"

    def read(self, text: str, schemas: Schemas) -> Actions:
        """See `Hermes.read`."""
        actions: list[Action] = []
        *earlier, last = text.split(self.HEADER)
        for part in (*earlier, last):
            head, sep, body = part.partition("<|message|>")
            if not sep:
                raise_malformed(MalformedKind.NO_CONTENT, "a message without <|message|>")
            ended = body.endswith("<|end|>")
            if part is not last and not ended:
                raise_malformed(MalformedKind.NO_CLOSE_TAG, "a message that is not ended before the next one")
            actions.append(self._message(head, body.removesuffix("<|end|>")))
        called = [i for i, a in enumerate(actions) if isinstance(a, CallTool)]
        if called and called[0] != len(actions) - 1:
            raise_malformed(MalformedKind.TEXT_OUTSIDE, "a message behind a call")
        if not actions or any(isinstance(a, Think) for a in actions):
            raise_malformed(MalformedKind.TEXT_OUTSIDE, "a thought that is not in front of the turn")
        return tuple(actions)

    def _message(self, head: str, body: str) -> Action:
        if any(tag in body for tag in self.tags):
            raise_malformed(MalformedKind.TEXT_OUTSIDE, "a control token within a message")
        recipient = re.search(r"to=functions\.([^\s<]+)", head)
        channel = head.partition("<|channel|>")[2].split("<")[0].split(" ")[0].strip()
        if recipient:
            call = read_call({"name": recipient[1], "arguments": read_call_json(body)})
            return call
        if " to=" in head:
            raise_malformed(MalformedKind.UNKNOWN_TOOL, f"there is no recipient in {head.strip()[:60]!r}")
        if channel not in ("final", "commentary"):
            raise_malformed(MalformedKind.NO_CONTENT, f"a message in the channel `{channel[:30]}`, where `final` is for the user")
        return Say(text=body)

    def split(self, text: str, *, opened: bool) -> tuple[str | None, str]:
        """See `Hermes.split`; a turn may think several times before it speaks."""
        thoughts: list[str] = []
        start, close = self.thought
        while text.lstrip().startswith(start):
            thought, closed, text = text.lstrip()[len(start) :].partition(close)
            if not closed or not text.startswith(self.HEADER):
                raise_malformed(MalformedKind.NO_CONTENT, "the turn has thoughts and nothing else")
            thoughts.append(thought)
            text = text[len(self.HEADER) :]
        return ("\n".join(thoughts) if thoughts else None), text

    def open_thought(self, text: str, *, opened: bool) -> bool:
        """See `Hermes.open_thought`."""
        return text.rpartition(self.HEADER)[2].lstrip().startswith(self.thought[0]) and not text.endswith("<|end|>")

    def think(self, thought: str, *, opened: bool) -> str:
        """See `Hermes.think`."""
        return f"{self.thought[0]}{thought}<|end|>{self.HEADER}"

    def spellings(self, actions: Actions) -> tuple[str, ...]:
        """As the template writes them."""
        return ()

    def without_thoughts(self, text: str, header: str, hole: str) -> str:
        """See `Hermes.without_thoughts`: whole messages go."""
        return re.sub(r"<\|start\|>assistant<\|channel\|>analysis<\|message\|>.*?<\|end\|>", "", text, flags=re.DOTALL)


FAMILIES: tuple[Hermes, ...] = (Hermes(), Elements(), Gemma(), Harmony(), BareJson())
HERMES = FAMILIES[0]


def schemas_of(tools: Sequence[ToolSchema]) -> Schemas:
    """Each tool's parameters by its name."""
    functions = (tool.get("function", tool) for tool in tools)
    return {str(f.get("name")): f.get("parameters") or {} for f in functions}
