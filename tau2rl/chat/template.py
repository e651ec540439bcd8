"""Conversations over a checkpoint's chat template: what was sampled stays as it was, only the rest is rendered.

What a template writes after an assistant turn is what stands behind a mark in a short fixed conversation. That is only right for
a template that does so in every conversation: the proof (`proof.py`) compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date as Date, datetime
from functools import lru_cache
from typing import Any

from tau2rl.chat.families import HERMES, Hermes, Schemas
from tau2rl.chat.parsing import raise_malformed, turn_text
from tau2rl.chat.tokenizers import PINNED_DATE, ChatDict, Tokenizer
from tau2rl.errors import MalformedTurn, UserError
from tau2rl.types import Action, Actions, CallTool, MalformedKind, Message, Think, Thinking

ANSWER = "Certainly."  # the assistant's text in the base conversation; no template writes it by itself
THOUGHT = "Hmm, let me see."
KEPT_HEADS = 64  # encoded policies and tools, some hundred kB each
KEPT_SUFFIXES = 1024  # encoded messages between two turns, some kB each
BASE: tuple[ChatDict, ...] = ({"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."})
NEXT: ChatDict = {"role": "user", "content": "Thanks."}
OWN_CODEC = "docs/models.md lists the formats that are read; a codec of your own (docs/library.md) takes any other"


@dataclass(frozen=True, slots=True)
class _Head:
    tools: Sequence[Mapping[str, Any]] | None  # the very object: comparing schemas would cost as much as encoding them
    ids: list[int] | None  # None: the whole must be written each time


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What ends a turn: `End(before="", text="<|im_end|>", id=151645, closing="<|im_end|>\\n")`."""

    before: str  # what the template writes in front of the token, where it does
    text: str
    id: int
    closing: str  # all that the template writes behind a turn


class TemplateChat:
    """Renders openings and continuations for a protocol that writes through a chat template, and reads turns of its family."""

    def __init__(
        self, tokenizer: Tokenizer, family: Hermes = HERMES, *, thinking: Thinking = "off", date: Date | None = None
    ) -> None:
        """Find how the template begins and ends a turn. Raises UserError when it cannot be found, or it writes the date."""
        self.tokenizer = tokenizer
        self.family = family
        self.thinking: Thinking = thinking
        self._variables = template_variables(thinking, date)
        tags = {ids[0] for tag in family.tags if len(ids := tokenizer.encode(tag)) == 1}
        self._control = tokenizer.control_ids - (tags - set(tokenizer.end_of_turn_ids))
        self._refuse_endless_thought()
        self._refuse_date(date)
        before = self.render(BASE, None, generation=False)
        prompt = self.render(BASE, None, generation=True)
        if not prompt.startswith(before):
            raise self.refusal("what it writes so that the assistant goes on changes what stands before")
        self.begins = prompt[len(before) :]  # what a prompt ends with: the header, and a thought where it opens or denies one
        start = self.begins.find(family.thought[0])
        at = len(self.begins) if start < 0 else start
        self.header, self._begun = self.begins[:at], self.begins[at:]
        self.opens_thinking = self._begun.rstrip().endswith(family.thought[0].rstrip())
        self._before = before
        self.end = self._find_end({"role": "assistant", "content": ANSWER}, "")
        self._call_end: End | None = None
        self.one_call = family.one_call
        self.end_id, self.end_text, self.closing = self.end.id, self.end.text, self.end.closing
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, *tokenizer.end_of_turn_ids)))
        self._remainders: dict[tuple[str, ...], str] = {}  # calls in the turn before -> the rest of the last one behind the mark
        # The attempts of a task get the same results of the same calls.
        self._encode_again = lru_cache(maxsize=KEPT_SUFFIXES)(tokenizer.encode)
        self._heads: dict[tuple[str, ...], _Head] = {}  # by the system message, and the roles of those behind it

    def learn_calls(self) -> None:
        """Find how the template ends a turn with calls. Raises UserError when it cannot be found."""
        self._call_end = self._find_end(_calling(("act",)), self.family.call_close)
        self.stop_token_ids = tuple(dict.fromkeys((*self.stop_token_ids, self._call_end.id)))
        if self.family.one_call:
            with suppress(UserError):  # or it leaves the second one out
                self.one_call = ANSWER not in self.render([*BASE, _calling(("act", "act"))], None, generation=False)

    def hole(self) -> str:
        """What the template leaves in place of an earlier turn's thought."""
        answer: ChatDict = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT, "thinking": THOUGHT}
        text = self.render([*BASE, answer, NEXT], None, generation=False)
        return text[len(self._before) + len(self.header) :].partition(ANSWER)[0]

    def open(self, messages: Sequence[ChatDict], tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        """The prompt of the first turn, which begins with a system message."""
        key = (messages[0]["content"], *(message["role"] for message in messages))
        known = self._heads.get(key)
        if known is not None and known.tools is tools and known.ids is not None:
            return [*known.ids, *self.tokenizer.encode(self._behind_head(messages))]
        text = self.render(messages, tools, generation=True)
        ids = self.tokenizer.encode(text)
        if known is None and len(self._heads) < KEPT_HEADS:
            self._heads[key] = _Head(tools, self._head(messages, text, ids))
        return ids

    def _head(self, messages: Sequence[ChatDict], text: str, ids: list[int]) -> list[int] | None:
        """The ids of a prompt up to its first end of a turn: policy and tools, the same in every episode of a domain.

        None where what follows depends on them (some templates put the tools into the user's first message), or where the
        two parts do not have the ids of the whole.
        """
        head, end, rest = text.partition(self.end_text)
        behind = self._behind_head(messages)
        head_ids = self.tokenizer.encode(head)
        same = bool(end) and end + rest == behind and ids == [*head_ids, *self.tokenizer.encode(behind)]
        return head_ids if same else None

    def _behind_head(self, messages: Sequence[ChatDict]) -> str:
        """From the end of the system message on, as the template writes it behind a short one without tools."""
        _, end, rest = self.render([BASE[0], *messages[1:]], None, generation=True).partition(self.end_text)
        return end + rest

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new: Sequence[ChatDict]) -> list[int]:
        """Everything so far, then what the template writes from the end of the turn to the next one's beginning.

        Untouched; but under `per-turn` the user's next message takes the earlier thoughts out, as the template does it.
        """
        names = self._called(completion_ids, new)
        end, following = self.suffix(new, names)
        ended = bool(completion_ids) and completion_ids[-1] == end.id
        if self.thinking == "per-turn" and any(message["role"] == "user" for message in new):
            ended = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
            text = self.tokenizer.decode([*prompt_ids, *(completion_ids[:-1] if ended else completion_ids)])
            short = self.family.without_thoughts(text, self.header, self.hole())
            return [*self.tokenizer.encode(short), *self._encode_again(end.before + end.text + following)]
        suffix = following if ended else end.before + end.text + following
        return [*prompt_ids, *completion_ids, *self._encode_again(suffix)]

    def _called(self, completion_ids: Sequence[int], new: Sequence[ChatDict]) -> tuple[str, ...]:
        """The names of the tools whose results are the first new messages; some templates write them above the results."""
        results = next((i for i, message in enumerate(new) if message["role"] != "tool"), len(new))
        names: list[str] = []
        if results:
            with suppress(MalformedTurn):
                names = [a.name for a in self.actions(completion_ids, {}) if isinstance(a, CallTool)]
        return tuple([*names, *["act"] * results][:results])

    def actions(self, completion_ids: Sequence[int], schemas: Schemas) -> Actions:
        """A sampled turn's actions, its thought first. Raises MalformedTurn."""
        thought, text = self.read(completion_ids)
        actions = self.family.read(text, schemas)
        if self.one_call and sum(isinstance(a, CallTool) for a in actions) > 1:
            raise_malformed(MalformedKind.TWO_CALLS, "several tool calls, where one a turn is allowed")
        marks = self.family.thought
        if any(not isinstance(a, CallTool | Think) and any(mark in a.text for mark in marks) for a in actions):
            raise_malformed(MalformedKind.TEXT_OUTSIDE, "a thought in the middle of a turn")
        return (Think(text=thought), *actions) if thought and thought.strip() else actions

    def read(self, completion_ids: Sequence[int]) -> tuple[str | None, str]:
        """The thought and the text of a sampled turn, without the token that ended it. Raises MalformedTurn."""
        ended = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
        text = turn_text(self.tokenizer, completion_ids[:-1] if ended else completion_ids, self._control)
        return self.family.split(text, opened=self.opens_thinking)

    def write(self, text: str, thought: str = "") -> list[int]:
        """Token ids of a turn with this text; where the template has begun to think, thinking is ended first."""
        return self.tokenizer.encode(self.with_thought(text, thought))

    def with_thought(self, text: str, thought: str) -> str:
        """A turn's text behind its thought, as it is sampled behind a prompt."""
        if thought:
            return self.family.think(thought, opened=self.opens_thinking) + text
        return self.family.close_text + text if self.opens_thinking else text

    def end_of(self, actions: Actions) -> End:
        """What ends a turn with these actions."""
        return self._call_end if self._call_end and any(isinstance(a, CallTool) for a in actions) else self.end

    def written(self, message: ChatDict) -> str:
        """An assistant message as the template itself writes it behind a prompt, with the token that ends it."""
        whole = self.render([*BASE, message], None, generation=False)
        end = self._call_end if message.get("tool_calls") and self._call_end else self.end
        if not whole.startswith(self._before + self.header) or not whole.endswith(end.closing):
            raise self.refusal("an assistant turn does not follow on its prompt, or does not end as others do")
        turn = whole[len(self._before + self.header) :].removesuffix(end.closing)
        if turn.startswith(self._begun):
            return turn[len(self._begun) :] + end.before + end.text
        if not self.opens_thinking:  # the prompt has an empty thought that the template leaves out later
            return turn + end.before + end.text
        with suppress(MalformedTurn):
            thought, text = self.family.split(turn, opened=False)
            return self.with_thought(text, thought or "") + end.before + end.text
        raise self.refusal("its turns do not go on with the thought that its prompts begin")

    def is_thinking(self, completion_ids: Sequence[int]) -> bool:
        """Whether a turn, so far, has left a thought open."""
        return self.family.open_thought(self.tokenizer.decode(completion_ids), opened=self.opens_thinking)

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """The ids that close the thought which a turn, so far, has left open; [] when none is open."""
        return self.tokenizer.encode(self.family.close_text) if self.is_thinking(completion_ids) else []

    def suffix(self, new: Sequence[ChatDict], names: Sequence[str] = ()) -> tuple[End, str]:
        """How the template ends a turn, and what it writes from there to the next one's beginning when `new` follows.

        `names` are the tools that the turn called, one for each result that `new` begins with.
        """
        fresh = _numbered(new)
        if not names:
            full = self.render([*BASE, {"role": "assistant", "content": ANSWER}, *fresh], None, generation=True)
            rest = full.partition(ANSWER)[2]
            end = self._end_of(rest)
            return end, rest[len(end.before + end.text) :]
        if self._call_end is None:
            raise self.refusal("its protocol has no tool results")
        key = tuple(names)
        answer = _calling(key)
        if key not in self._remainders:
            base = self.render([*BASE, answer], None, generation=False)
            self._remainders[key] = base.partition(ANSWER)[2].removesuffix(self._call_end.closing)
        remainder = self._remainders[key] + self._call_end.before + self._call_end.text
        rest = self.render([*BASE, answer, *fresh], None, generation=True).partition(ANSWER)[2]
        if not rest.startswith(remainder):
            raise self.refusal("it changes an assistant turn once something follows it")
        return self._call_end, rest[len(remainder) :]

    def _find_end(self, answer: ChatDict, behind: str) -> End:
        """The end of a turn: the first control token behind the mark, and behind the end of a call."""
        text = self.render([*BASE, answer], None, generation=False)
        _, found, rest = text.rpartition(ANSWER)
        if behind:
            _, found, rest = rest.rpartition(behind)
        if not found:
            what = "a tool call" if behind else "what the assistant says"
            raise self.refusal(f"it does not write {what}", OWN_CODEC)
        return self._end_of(rest)

    def _end_of(self, rest: str) -> End:
        ids = self.tokenizer.encode(rest)
        at = next((i for i, token in enumerate(ids) if token in self.tokenizer.control_ids), None)
        before = self.tokenizer.decode(ids[:at]) if at is not None else ""
        if at is None or before.strip():
            raise self.refusal("it does not end an assistant turn with a control token right behind what was said", OWN_CODEC)
        return End(before=before, text=self.tokenizer.decode([ids[at]]), id=ids[at], closing=rest)

    def _refuse_endless_thought(self) -> None:
        """Raises UserError for a template that complains of nothing but that thinking is off."""

        def complaint(thinking: Thinking) -> str:
            told = {**self._variables, **template_variables(thinking, None)}
            try:
                self.tokenizer.render(BASE, None, add_generation_prompt=True, variables=told)
            except _faults() as error:
                return str(error) or type(error).__name__
            return ""

        if self.thinking == "off" and (why := complaint("off")) and not complaint("keep"):
            raise self.refusal(f"its model always thinks: {why}", "chat.thinking=keep lets it")

    def _refuse_date(self, date: Date | None) -> None:
        times = () if date else (datetime(2001, 1, 2, 3, 4, 5, 6, UTC), datetime(2012, 11, 23, 14, 25, 36, 7, UTC))
        texts = {self.render(BASE, None, generation=True, date=one) for one in times}
        used: set[str] = set()  # with tools, where the template takes them
        done: ChatDict = {"role": "tool", "content": "Done.", "tool_call_id": "call00000"}
        with suppress(UserError):
            used = {self.render([*BASE, _calling(("act",)), done], [_TOOL], generation=True, date=one) for one in times}
        if len(texts) > 1 or len(used) > 1:
            raise UserError(
                f"the chat template of `{self.tokenizer.name}` writes today's date, so that the prompts of one run would differ",
                hint="chat.date=2026-01-31 tells it the date once and for all, as a part of the run's identity",
            )

    def render(
        self,
        messages: Sequence[ChatDict],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        generation: bool,
        date: Date | None = None,
    ) -> str:
        """The template's text. Raises UserError with the template's own complaint."""
        told = template_variables(self.thinking, date) if date else self._variables
        try:
            return self.tokenizer.render(messages, tools, add_generation_prompt=generation, variables=told)
        except _faults() as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise self.refusal(f"it cannot write a conversation of the roles {roles}: {error}", OWN_CODEC) from None

    def refusal(self, reason: str, hint: str = "") -> UserError:
        """The error that says why this template cannot be used."""
        return UserError(
            f"the chat template of `{self.tokenizer.name}` cannot be used: {reason}",
            hint=hint
            or "it must leave earlier turns as they were; the template of Qwen3-*-Instruct-2507 does, "
            "and a `chat_template.jinja` beside tokenizer.json replaces the checkpoint's own",
        )


def _faults() -> tuple[type[Exception], ...]:
    """What a checkpoint's template code may raise: its own complaint, or a plain fault in it."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError


def template_variables(thinking: Thinking, date: Date | None) -> dict[str, Any]:
    """What templates of several families ask for, by the names that they have for it."""
    told: dict[str, Any] = {
        "enable_thinking": thinking != "off",
        "preserve_thinking": thinking == "keep",  # Qwen3.6, Qwen3.8, Gemma 4
        "truncate_history_thinking": thinking == "per-turn",  # Nemotron 3
        "tools_in_user_message": False,  # Llama 3.x: else the greeting is told as if the user had said it
    }
    if date is not None:
        told[PINNED_DATE] = date
    return told


def _calling(names: Sequence[str]) -> ChatDict:
    """An assistant message with these calls, the mark in the last one's arguments."""
    last = len(names) - 1
    calls = [call_dict(i, name, {"mark": ANSWER} if i == last else {}) for i, name in enumerate(names)]
    return {"role": "assistant", "content": "", "tool_calls": calls}


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "act",
        "description": "Act.",
        "parameters": {"type": "object", "properties": {"mark": {"type": "string", "description": "A mark."}}, "required": []},
    },
}


def _numbered(new: Sequence[ChatDict]) -> list[ChatDict]:
    """The messages with call ids counted from 0, as those of the turn before them."""
    ids = iter(range(len(new)))
    return [{**m, "tool_call_id": f"call{next(ids):05d}"} if m["role"] == "tool" else m for m in new]


def call_dict(index: int, name: str, arguments: Mapping[str, Any]) -> ChatDict:
    """A tool call as chat templates read it; ids have the nine letters and digits that some templates insist on."""
    return {"id": f"call{index:05d}", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def chat_dicts(messages: Sequence[Message]) -> list[ChatDict]:
    """Messages as chat templates read them; a result gets the id of the call that it answers, in order.

    >>> chat_dicts([Message(role="tool", content="ok")])
    [{'role': 'tool', 'content': 'ok', 'tool_call_id': 'call00000'}]
    """
    dicts: list[ChatDict] = []
    calls = results = 0
    for message in messages:
        one: ChatDict = {"role": message.role, "content": message.content}
        if message.tool_calls:
            if not (dicts and dicts[-1].get("tool_calls")):  # what was called before and has no result gets none
                results = calls
            one["tool_calls"] = [call_dict(calls + i, c.name, c.arguments) for i, c in enumerate(message.tool_calls)]
            calls += len(message.tool_calls)
        if message.reasoning:
            one |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}  # gpt-oss has the second name
        if message.role == "tool":
            one["tool_call_id"] = f"call{results:05d}"
            results += 1
        dicts.append(one)
    return dicts


def openai_message(message: ChatDict) -> ChatDict:
    """One of them as OpenAI has it: the arguments of a call are JSON in a string, a thought is `reasoning_content`."""
    message = {key: value for key, value in message.items() if key != "thinking"}
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    written = [{**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}} for c in calls]
    return {**message, **({"tool_calls": written} if written else {})}


def split_thought(actions: Actions) -> tuple[tuple[Action, ...], str]:
    """A turn's actions without its thought, and the thought.

    >>> split_thought((Think(text="Hm."),))
    ((), 'Hm.')
    """
    return tuple(a for a in actions if not isinstance(a, Think)), "\n".join(a.text for a in actions if isinstance(a, Think))
