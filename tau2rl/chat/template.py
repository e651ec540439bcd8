"""Prefix-exact conversations over a chat template: what was sampled stays as it was, only the rest is rendered.

What a template writes after an assistant turn is found as a textual difference on a short fixed conversation. That is only
right for a template that never goes back on what it wrote, so construction proves it (`proof.py`) or refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tau2rl.chat.parsing import THINK, UNTHINK, text_of, without_thoughts
from tau2rl.chat.tokenizers import ChatDict, Tokenizer
from tau2rl.errors import UserError
from tau2rl.types import Message

ANSWER = "Certainly."  # the assistant's text in the base conversation; no template writes it by itself
KEPT_HEADS = 64  # encoded policies and tools, some hundred kB each
KEPT_SUFFIXES = 1024  # encoded messages between two turns, some kB each
BASE: tuple[ChatDict, ...] = ({"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."})


@dataclass(frozen=True, slots=True)
class _Head:
    tools: Sequence[Mapping[str, Any]] | None  # the very object: comparing schemas would cost as much as encoding them
    ids: list[int] | None  # None: the whole must be written each time


class TemplateChat:
    """Renders openings and continuations for a protocol that writes through a chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find how the template ends a turn. Raises UserError when it cannot be found."""
        self.tokenizer = tokenizer
        before = self.render(BASE, None, generation=False)
        after = self.render([*BASE, {"role": "assistant", "content": ANSWER}], None, generation=False)
        _, found, closing = after.rpartition(ANSWER)
        ids = tokenizer.encode(closing)
        if not found or not ids or ids[0] not in tokenizer.control_ids:
            raise self.refusal("it does not end an assistant turn with a control token")
        self.end_id: int = ids[0]
        self.end_text = tokenizer.decode(ids[:1])
        if not closing.startswith(self.end_text):
            raise self.refusal("its end-of-turn token does not stand right behind the assistant's text")
        self.closing = closing
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, *tokenizer.end_of_turn_ids)))
        prompt = self.render(BASE, None, generation=True)
        self._opens_thinking = prompt[len(before) :].rstrip().endswith(THINK)
        self._bases: dict[int, str] = {}  # calls in the turn before -> the text of the base conversation
        # The attempts of a task get the same results of the same calls.
        self._encode_again = lru_cache(maxsize=KEPT_SUFFIXES)(tokenizer.encode)
        self._heads: dict[tuple[str, ...], _Head] = {}  # by the system message, and the roles of those behind it

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
        same = end + rest == behind and ids == [*head_ids, *self.tokenizer.encode(behind)]
        return head_ids if same else None

    def _behind_head(self, messages: Sequence[ChatDict]) -> str:
        """From the end of the system message on, as the template writes it behind a short one without tools."""
        _, end, rest = self.render([BASE[0], *messages[1:]], None, generation=True).partition(self.end_text)
        return end + rest

    def extend(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], new: Sequence[ChatDict]) -> list[int]:
        """Everything so far, untouched, then what the template writes from the end of the turn to the next one's beginning."""
        suffix = self.suffix(new)
        if completion_ids and completion_ids[-1] == self.end_id:
            suffix = suffix[len(self.end_text) :]
        return [*prompt_ids, *completion_ids, *self._encode_again(suffix)]

    def read(self, completion_ids: Sequence[int]) -> str:
        """The text of a sampled turn, without the token that ended it and without thoughts. Raises MalformedTurn."""
        ended = bool(completion_ids) and completion_ids[-1] in self.stop_token_ids
        text = text_of(self.tokenizer, completion_ids[:-1] if ended else completion_ids)
        return without_thoughts(f"{THINK}{text}" if self._opens_thinking else text)

    def write(self, text: str) -> list[int]:
        """Token ids of a turn with this text; where the template has begun to think, thinking is ended first."""
        return self.tokenizer.encode(f"\n{UNTHINK}\n\n{text}" if self._opens_thinking else text)

    def close_thoughts(self, completion_ids: Sequence[int]) -> list[int]:
        """The ids that close the thought which a turn, so far, has left open; [] when none is open."""
        text = self.tokenizer.decode(completion_ids)
        thinks = self._opens_thinking or text.lstrip().startswith(THINK)
        return self.tokenizer.encode(f"\n{UNTHINK}\n\n") if thinks and UNTHINK not in text else []

    def suffix(self, new: Sequence[ChatDict]) -> str:
        """What the template writes after an assistant's text when `new` follows: `<|im_end|>`, the messages, the next header."""
        results = next((i for i, message in enumerate(new) if message["role"] != "tool"), len(new))
        answer: ChatDict = {"role": "assistant", "content": "" if results else ANSWER}
        if results:
            answer["tool_calls"] = [call_dict(i, "act", {}) for i in range(results)]
        if results not in self._bases:
            self._bases[results] = self.render([*BASE, answer], None, generation=False)
        base = self._bases[results]
        full = self.render([*BASE, answer, *new], None, generation=True)
        if not base.endswith(self.closing):
            raise self.refusal("it ends a turn with tool calls otherwise than one with text")
        if not full.startswith(base):
            raise self.refusal("it changes an assistant turn once something follows it")
        return self.closing + full[len(base) :]

    def render(self, messages: Sequence[ChatDict], tools: Sequence[Mapping[str, Any]] | None, *, generation: bool) -> str:
        """The template's text. Raises UserError with the template's own complaint."""
        from jinja2 import TemplateError

        try:
            return self.tokenizer.render(messages, tools, add_generation_prompt=generation)
        # What a checkpoint's template code may raise: its own complaint, or a plain fault in it.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise self.refusal(f"it cannot write a conversation of the roles {roles}: {error}") from None

    def refusal(self, reason: str) -> UserError:
        """The error that says why this template cannot be used."""
        return UserError(
            f"the chat template of `{self.tokenizer.name}` cannot be used: {reason}",
            hint="it must leave earlier turns as they were; the template of Qwen3-*-Instruct-2507 does, "
            "and a `chat_template.jinja` beside tokenizer.json replaces the checkpoint's own",
        )


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
            one["tool_calls"] = [call_dict(calls + i, c.name, c.arguments) for i, c in enumerate(message.tool_calls)]
            calls += len(message.tool_calls)
        if message.role == "tool":
            one["tool_call_id"] = f"call{results:05d}"
            results += 1
        dicts.append(one)
    return dicts
