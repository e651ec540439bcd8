"""Pinned here: a transcript reads back as the conversation that was written, malformed turns included as what was said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings, strategies as st

from tau2rl.chat.transcript import TranscriptCodec, read
from tau2rl.errors import MalformedTurn
from tau2rl.types import Actions, CallTool, Message, Opening, Say, Think
from tests.unit.chat.talk import followers, native_actions, openings

CODEC = TranscriptCodec()


@settings(max_examples=60, deadline=None)
@given(opening=openings, rounds=st.lists(st.tuples(native_actions, followers, st.booleans()), max_size=4))
def test_a_transcript_reads_back_as_it_was_written(opening: Opening, rounds: list[tuple[Actions, list[Message], bool]]) -> None:
    prompt = CODEC.open(opening)
    messages = list(opening.messages)
    for actions, new, cut in rounds:
        written = CODEC.write(actions)
        prompt = CODEC.extend(prompt, written[:-1] if cut else written, new)
        messages += [Message.of(actions), *new]
    assert read(prompt) == Opening(domain_policy=opening.domain_policy, tools=opening.tools, messages=tuple(messages))


def test_it_is_one_json_object_a_line() -> None:
    opening = Opening(domain_policy="Be\nkind.", messages=(Message(role="user", content="a\nb"),), tools=())
    prompt = CODEC.extend(
        CODEC.open(opening),
        CODEC.write((CallTool(name="f", arguments={"x": 1}),)),
        [Message(role="tool", content="no", error=True)],
    )
    assert [json.loads(text) for text in bytes(prompt).decode().splitlines()] == [
        {"domain_policy": "Be\nkind.", "tools": []},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"role": "tool", "content": "no", "error": True},
    ]


def test_a_malformed_turn_is_what_the_assistant_said() -> None:
    opening = Opening(domain_policy="P", messages=(), tools=())
    prompt = CODEC.extend(CODEC.open(opening), list(b"not json"), [Message(role="user", content="again")])
    assert read(prompt).messages == (Message(role="assistant", content="not json"), Message(role="user", content="again"))


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def test_done_is_no_tool_that_nobody_listed() -> None:
    """A policy that could end the conversation by itself would score what doing nothing scores."""
    with pytest.raises(MalformedTurn, match="there is no tool `done`"):
        CODEC.parse(CODEC.write((CallTool(name="done", arguments={}),)), (TOOL,))


def test_text_beside_calls_is_kept() -> None:
    actions: Actions = (Say(text="One moment."), CallTool(name="look", arguments={}))
    assert CODEC.parse(CODEC.write(actions), (TOOL,)) == actions


def test_thoughts_are_a_field_of_the_line() -> None:
    actions: Actions = (Think(text="Hm."), Say(text="One moment."))
    assert CODEC.parse(CODEC.write(actions), ()) == actions
    assert json.loads(bytes(CODEC.write(actions)).decode())["reasoning_content"] == "Hm."


@pytest.mark.parametrize("ids", [[], list(b"hello"), list(b"{}\n"), list(b"[1]\n"), [-1, 700]], ids=str)
def test_other_ids_are_no_transcript(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="not a transcript"):
        read(ids)
