"""Pinned here, for every family of models and every way to think that it has:

- the proof finds the family; a way to think that it does not have is refused with the way out;
- a call with every JSON type is read as it was written by hand, and as `write` writes it; so is a thought, apart from the rest;
- the next prompt begins with everything so far; under `per-turn` it is what the template writes for the whole conversation;
- a malformed turn of each shape has its name;
- any ids whatever are actions or a MalformedTurn (20,000 of them behind `slow`).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec, system_prompt
from tau2rl.chat.parsing import typed
from tau2rl.chat.template import chat_dicts
from tau2rl.errors import MalformedTurn, UserError
from tau2rl.types import Actions, CallTool, MalformedKind as K, Message, Opening, Say, Think, Thinking, ToolSchema
from tests.unit.chat.families import MODELS, PAIRS

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "whole": {"type": "integer"},
        "number": {"type": "number"},
        "flag": {"type": "boolean"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "items": {"type": "array", "items": {}},
        "object": {"type": "object"},
    },
}
TOOLS: tuple[ToolSchema, ...] = (
    {"type": "function", "function": {"name": "update", "description": "Update.", "parameters": SCHEMA}},
)
VALUES: list[dict[str, Any]] = [
    {},
    {"text": "plain"},
    {"text": ""},
    {"text": "123"},
    {"text": '"123"'},
    {"text": "true"},
    {"text": "null"},
    {"text": "None"},
    {"text": "[1, 2]"},
    {"text": "Zürich 漢字 🙂\n\n  two lines"},
    {"text": "an </parameter> in it, <parameter=x> and {a: b}"},
    {"whole": 123, "number": -2.5, "flag": True},
    {"flag": False, "maybe": None},
    {"maybe": "text"},
    {"items": [], "object": {}},
    {"items": [1, "1", None, True, [2.5]], "object": {"a": {"b": [None, False]}, "c": "</x>"}},
]


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Thinking], NativeCodec]:
    saved: dict[str, Path] = {name: model.save(tmp_path_factory.mktemp(name)) for name, model in MODELS.items()}
    return {(name, thinking): MODELS[name].codec(saved[name], thinking) for name, thinking in PAIRS}


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_the_proof_finds_the_family(pair: tuple[str, Thinking], codecs: dict[Any, NativeCodec]) -> None:
    assert codecs[pair].chat.family.name == MODELS[pair[0]].reads_as
    assert codecs[pair].append_only == (pair[1] != "per-turn")


@pytest.mark.parametrize(
    ("name", "thinking", "reason", "hint"),
    [
        ("qwen3-instruct", "keep", "does not write thoughts", "chat.thinking=off"),
        ("qwen3-thinking", "off", "always thinks", "chat.thinking=keep"),
        ("llama-3", "per-turn", "does not write thoughts", "chat.thinking=off"),
        ("gpt-oss", "off", "always thinks", "chat.thinking=per-turn"),
        ("gpt-oss", "keep", "ends a turn otherwise once something follows", "chat.thinking=per-turn"),
    ],
)
def test_another_way_to_think_is_refused_with_the_way_out(
    name: str, thinking: Thinking, reason: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        MODELS[name].codec(MODELS[name].save(tmp_path), thinking)
    assert hint in caught.value.hint


def _turns(name: str, thinking: Thinking) -> list[Actions]:
    calls = [CallTool(name="update", arguments=values) for values in VALUES]
    turns: list[Actions] = [(call,) for call in calls] + [(Say(text="Hello.\nWhat now?"),)]
    if name not in ("llama-3", "gpt-oss"):  # whose templates take one call a turn
        turns.append((calls[1], calls[11]))
    if MODELS[name].reads_as in ("hermes", "elements"):
        turns.append((Say(text="One moment."), calls[1]))
    if thinking != "off":
        turns += [(Think(text="Hm.\nWell: <b>"), *turn) for turn in (turns[1], turns[len(calls)])]
    return turns


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_turns_read_as_they_were_written(pair: tuple[str, Thinking], codecs: dict[Any, NativeCodec]) -> None:
    codec, model = codecs[pair], MODELS[pair[0]]
    for actions in _turns(*pair):
        thinks = any(isinstance(a, Think) for a in actions)
        by_hand = model.turn(actions) if thinks or pair[1] == "off" or not model.opened else f"</think>{model.turn(actions)}"
        assert codec.parse(codec.chat.tokenizer.encode(by_hand), TOOLS) == actions
        assert codec.parse(codec.write(actions, TOOLS), TOOLS) == actions
        assert codec.parse(codec.write(actions), TOOLS) == actions


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_the_next_prompt_goes_on_with_everything_so_far(pair: tuple[str, Thinking], codecs: dict[Any, NativeCodec]) -> None:
    """Append-only to the token; under `per-turn` the prompt says what the template says of the whole conversation."""
    codec = codecs[pair]
    thought = (Think(text="Hm."),) if pair[1] != "off" else ()
    call = CallTool(name="update", arguments={"text": "a"})
    rounds: list[tuple[Actions, list[Message]]] = [
        ((*thought, call), [Message(role="tool", content="found 7")]),
        ((*thought, call), [Message(role="tool", content="done")]),
        ((*thought, Say(text="It is done.")), [Message(role="user", content="Thanks. And now?")]),
        ((*thought, Say(text="Good bye.")), [Message(role="user", content="Bye.")]),
    ]
    opening = Opening(domain_policy="Be kind.", messages=(Message(role="user", content="Hi"),), tools=TOOLS)
    messages = [Message(role="system", content=system_prompt("Be kind.")), *opening.messages]
    prompt = codec.open(opening)
    for actions, new in rounds:
        completion = codec.write(actions)
        longer = codec.extend(prompt, completion, new)
        if codec.append_only:
            assert longer[: len(prompt) + len(completion)] == [*prompt, *completion]
        messages += [Message.of(actions), *new]
        prompt = longer
        text = codec.chat.tokenizer.decode(prompt)
        if not codec.append_only:
            assert text == codec.chat.render(chat_dicts(messages), TOOLS, generation=True)
            assert ("Hm." in text) == (new[0].role == "tool")
        assert new[0].content in text


ELEMENTS_SHAPES = [
    ("<tool_call>\n<function=update>\n", K.NO_CLOSE_TAG),
    ("</function>\n</tool_call>", K.NO_OPEN_TAG),
    ("<tool_call>\n{}\n</tool_call>", K.NOT_AN_OBJECT),
    ("<tool_call>\n<function=>\n</function>\n</tool_call>", K.MISSING_NAME),
    ("<tool_call>\n<function=nothing>\n</function>\n</tool_call>", K.UNKNOWN_TOOL),
    ("<tool_call>\n<function=update>\nwhole: 1\n</function>\n</tool_call>", K.BAD_JSON),
    ("<tool_call>\n<function=update>\n<parameter=whole>\n1\n</function>\n</tool_call>", K.NO_CLOSE_TAG),
    ("<tool_call>\n<function=update>\n<parameter=whole>\nx\n</parameter>\n</function>\n</tool_call>", K.WRONG_ARGUMENTS),
    (
        "<tool_call>\n<function=update>\n" + "<parameter=whole>\n1\n</parameter>\n" * 2 + "</function>\n</tool_call>",
        K.WRONG_ARGUMENTS,
    ),
    ("<tool_call>\n<function=update>\n</function>\n</tool_call>\nDone.", K.TEXT_OUTSIDE),
    ("", K.EMPTY),
]
SHAPES: dict[str, list[tuple[str, K]]] = {
    "qwen3.5": ELEMENTS_SHAPES,
    "llama-3": [
        ('{"name": "update", "parameters": {', K.BAD_JSON),
        ('{"parameters": {}}', K.MISSING_NAME),
        ('{"name": "nothing", "parameters": {}}', K.UNKNOWN_TOOL),
        ('{"name": "update", "parameters": []}', K.ARGUMENTS_NOT_AN_OBJECT),
        ('{"name": "update", "parameters": {"whole": "1"}}', K.WRONG_ARGUMENTS),
        ('{"name": "update", "parameters": {}}; {"name": "update", "parameters": {}}', K.TWO_CALLS),
        ('{"name": "update", "parameters": {}} Done.', K.TEXT_OUTSIDE),
        ('Of course. {"name": "update", "parameters": {}}', K.TEXT_OUTSIDE),
    ],
    "bare-several": [
        ('{"name": "update", "parameters": {}}; {"name": "nothing", "parameters": {}}', K.UNKNOWN_TOOL),
        ('{"name": "update", "parameters": {}}{"name": ', K.BAD_JSON),
    ],
    "gemma-4": [
        ("<|tool_call>call:update{", K.NO_CLOSE_TAG),
        ("update{}<tool_call|>", K.NO_OPEN_TAG),
        ("<|tool_call>update{}<tool_call|>", K.NOT_AN_OBJECT),
        ("<|tool_call>call:{}<tool_call|>", K.MISSING_NAME),
        ("<|tool_call>call:nothing{}<tool_call|>", K.UNKNOWN_TOOL),
        ("<|tool_call>call:update{whole:}<tool_call|>", K.BAD_JSON),
        ('<|tool_call>call:update{text:<|"|>a}<tool_call|>', K.BAD_JSON),
        ('<|tool_call>call:update{whole:<|"|>1<|"|>}<tool_call|>', K.WRONG_ARGUMENTS),
        ("<|tool_call>call:update{items:" + "[" * 99 + "}<tool_call|>", K.TOO_DEEP),
        ("Of course.<|tool_call>call:update{}<tool_call|>", K.TEXT_OUTSIDE),
        ("<|tool_call>call:update{}<tool_call|> Done.", K.TEXT_OUTSIDE),
    ],
    "gpt-oss": [
        ("Hello.", K.NO_CONTENT),
        ("<|channel|>analysis<|message|>Hm.<|end|>", K.NO_CONTENT),
        ("<|channel|>analysis<|message|>Hm.", K.NO_CONTENT),
        ("<|channel|>other<|message|>Hm.", K.NO_CONTENT),
        (" to=functions.update<|channel|>commentary json<|message|>{", K.BAD_JSON),
        (" to=functions.update<|channel|>commentary json<|message|>[]", K.ARGUMENTS_NOT_AN_OBJECT),
        (" to=functions.nothing<|channel|>commentary json<|message|>{}", K.UNKNOWN_TOOL),
        (" to=browser.search<|channel|>commentary json<|message|>{}", K.UNKNOWN_TOOL),
        (' to=functions.update<|channel|>commentary json<|message|>{"whole": "1"}', K.WRONG_ARGUMENTS),
        ("<|channel|>final<|message|>Hi.<|end|><|start|>user<|message|>Yes.", K.TEXT_OUTSIDE),
    ],
}


@pytest.mark.parametrize(("name", "text", "kind"), [(n, t, k) for n, shapes in SHAPES.items() for t, k in shapes])
def test_a_malformed_turn_has_its_name(name: str, text: str, kind: K, codecs: dict[Any, NativeCodec]) -> None:
    codec = codecs[name, MODELS[name].thinks[0]]
    with pytest.raises(MalformedTurn) as caught:
        codec.parse([*codec.chat.tokenizer.encode(text), codec.stop_token_ids[0]], TOOLS)
    assert caught.value.kind is kind, caught.value.message


def _fuzz(codec: NativeCodec, name: str, count: int) -> None:
    rng = random.Random(7)
    good = [MODELS[name].turn(actions) for actions in _turns(name, codec.chat.thinking)]
    pieces = [
        *good,
        *MODELS[name].control,
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<function=update>",
        "{",
        "}",
        '"',
    ]
    pieces += [
        "<parameter=whole>",
        "</parameter>",
        "</function>",
        "call:update{",
        "to=functions.update",
        "1e999",
        "NaN",
        "\ud800",
        "é",
    ]
    ids_of = {piece: codec.chat.tokenizer.encode(piece) for piece in pieces}
    for _ in range(count):
        ids = [i for _ in range(rng.randrange(1, 8)) for i in _bent(ids_of[rng.choice(pieces)], rng)]
        try:
            actions = codec.parse(ids, TOOLS)
        except MalformedTurn as error:
            assert 0 < len(error.message) < 400
            continue
        assert actions
        marks = codec.chat.family.thought
        assert not any(mark in a.text for a in actions if isinstance(a, Say) for mark in marks), "a thought reaches the user"


def _bent(ids: list[int], rng: random.Random) -> list[int]:
    match rng.randrange(4):
        case 0:
            at = rng.randrange(len(ids) + 1)
            return ids[:at]
        case 1:
            at = rng.randrange(len(ids) + 1)
            return [*ids[:at], rng.randrange(-2, 400), *ids[at:]]
        case _:
            return ids


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_any_ids_are_actions_or_a_malformed_turn(pair: tuple[str, Thinking], codecs: dict[Any, NativeCodec]) -> None:
    _fuzz(codecs[pair], pair[0], 200)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_twenty_thousand_of_them(pair: tuple[str, Thinking], codecs: dict[Any, NativeCodec]) -> None:
    _fuzz(codecs[pair], pair[0], 20_000)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] != "off"], ids="/".join)
def test_a_cut_thought_is_closed_and_the_turn_goes_on(pair: tuple[str, Thinking], codecs: dict[Any, NativeCodec]) -> None:
    codec, model = codecs[pair], MODELS[pair[0]]
    whole = model.turn((Think(text="A long thought."), Say(text="Yes.")))
    cut = codec.chat.tokenizer.encode(whole[: whole.index(" thought.")])
    closed = [*cut, *codec.close_thoughts(cut)]
    assert codec.close_thoughts(closed) == []
    turn = [*closed, *codec.chat.tokenizer.encode(model.turn((Say(text="Yes."),)))]
    assert codec.parse(turn, TOOLS) == (Think(text="A long"), Say(text="Yes."))


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("123", {"type": "integer"}, 123),
        ("123", {"type": "string"}, "123"),
        ("123", {}, 123),
        ("3", {"type": "number"}, 3),
        ("True", {"type": "boolean"}, True),
        ("true", {"type": "string"}, "true"),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("x", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "x"),
        ("{'a': None}", {"type": "object"}, {"a": None}),
        ('["1", 1]', {"type": "array"}, ["1", 1]),
        ("a", {"enum": ["a", "b"]}, "a"),
        ("1e999", {"type": "number"}, "1e999"),
        ("[1", {"type": "array"}, "[1"),
    ],
)
def test_the_schema_decides_the_type_of_what_is_written_as_text(text: str, schema: dict[str, Any], value: Any) -> None:
    found = typed(text, schema)
    assert found == value and type(found) is type(value)
